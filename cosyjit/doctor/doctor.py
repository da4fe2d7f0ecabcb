"""Puts together what a report of a problem should hold. It changes nothing, and nothing that fails ends it."""

from collections.abc import Sequence
from pathlib import Path

from cosyjit.doctor import environment, machine, servers, stores, versions
from cosyjit.doctor.finding import Finding, look
from cosyjit.errors import SelectionError


def doctor(
    parts: Sequence[str] = (), *, store: str | None = None, configuration: Path | None = None
) -> tuple[Finding, ...]:
    """Find out what a report of a problem should hold.

    What takes time is looked at at the same time, and for a limited time: processes that import torch and Prefect, a
    store that may be far away, and servers.

    Args:
        parts: what to look at, such as "store"; everything if there are none.
        store: the path or URL of a store; that of this user for None.
        configuration: the file that the command line has read options from, if there is one.

    Raises:
        SelectionError: there is no such part.
    """
    probes = [
        *versions.probes(),
        *machine.probes(),
        *stores.probes(store),
        *servers.probes(),
        *environment.probes(configuration),
    ]
    known = dict.fromkeys(each.part for each in probes)
    for part in parts:
        if part not in known:
            raise SelectionError(f"{part}: is not a part of the report; give one of {', '.join(known)}")
    return look([each for each in probes if not parts or each.part in parts])
