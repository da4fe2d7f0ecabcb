"""Plans beside published files: what runtimes make of a file with TensorRT, once, and then use in its place.

Nothing in a plan tells what it was made from. So a plan is taken to be of the file that it stands beside, as long as
that does not change. Where a file was missing and is mended, its plan stays, and is told to be older. Where it was
damaged, as other exporters do that write it in place, its plan may have been made since then, and is put aside. A plan
that a runtime is still making when the file changes is not seen.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from cosyjit.families import plans_of
from cosyjit.fs.digests import Digests
from cosyjit.publishing.condition import condition_of
from cosyjit.publishing.layout import Layout, is_ours
from cosyjit.publishing.publication import Publication

_LOG: Final = logging.getLogger("cosyjit")


class OlderPlan(NamedTuple):
    """A plan that is older than the published file that runtimes would make it from; both by name."""

    name: str
    file: str


class OutdatedPlan(NamedTuple):
    """A plan of a file that changes or goes; both by name; and the free name under which the plan can be kept."""

    name: str
    file: str
    kept: str


def older(layout: Layout, names: Collection[str]) -> list[OlderPlan]:
    """The plans that cannot have been made from the files that a directory shows, and would be used.

    Runtimes take a plan that is empty for one that is missing.

    Args:
        layout: of the directory.
        names: of the published files.
    """
    return [
        OlderPlan(plan, name)
        for name, plans in _beside(layout, names)
        for plan in plans
        if _is_older(layout.path / plan, layout.path / name)
    ]


def outdated(
    layout: Layout, live: Publication | None, after: Mapping[str, str | None], gone: Collection[str], digests: Digests
) -> list[OutdatedPlan]:
    """The plans of the files that a publication changes or removes, whatever stands under their names.

    Args:
        layout: of the directory.
        live: what it shows now.
        after: the SHA-256 of what it is going to show, by its names; None for what nobody has made yet.
        gone: the names that it shows now and will not show.
        digests: those that are remembered.

    Raises:
        OutputError: a plan has too long a name for a number behind it.
    """

    def changes(name: str) -> bool:
        sha256 = None if name in gone else after[name]
        if sha256 is None:
            return True
        condition = condition_of(layout.path / name, sha256, digests)
        # What someone has taken away and is shown again is what the plan was made from.
        known = live is not None and name in live.artifacts and live.artifacts[name].sha256 == sha256
        return condition == "damaged" or (condition == "missing" and not known)

    return [
        OutdatedPlan(plan, name, layout.free_name(plan))
        for name, plans in _beside(layout, {*after, *gone})
        if changes(name)
        for plan in plans
    ]


def is_mended(layout: Layout, name: str, live: Publication | None, after: Publication) -> bool:
    """Whether a name leads to a file that is going to be shown again, so that whoever brings it here changes it."""
    if live is None or name not in live.artifacts or name not in after.artifacts:
        return False
    return is_ours(layout.path / name) and live.artifacts[name].sha256 == after.artifacts[name].sha256


def names(plans: Collection[OutdatedPlan]) -> dict[str, str]:
    """By their names, those that plans are kept under."""
    return {each.name: each.kept for each in plans}


def tell(layout: Layout, plans: Collection[OutdatedPlan]) -> None:
    """Write a line to the log for each plan that was put aside."""
    for each in plans:
        path, file, kept = layout.path / each.name, each.file, each.kept
        _LOG.info("%s: was made from another %s than is published now, and is kept as %s", path, file, kept)


def _beside(layout: Layout, names: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """The published files that have plans beside them, and the names of these."""
    for name in sorted(names):
        pattern = plans_of(name)
        plans = layout.matching(pattern) if pattern else []
        if plans:
            yield name, plans


def _is_older(path: Path, than: Path) -> bool:
    """Whether there is something at a path that is not empty and was last changed before a file was."""
    try:
        found = path.stat()
        return found.st_size > 0 and found.st_mtime_ns < than.stat().st_mtime_ns
    except OSError:
        return False
