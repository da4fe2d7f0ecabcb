"""How many processors there are to work with, and of what kind they are."""

import hashlib
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from cosyjit.processes import groups

_DESCRIBING: Final = {"vendor_id", "flags", "CPU implementer", "Features"}
"""The lines of /proc/cpuinfo, on x86 and ARM, by which torch and its libraries choose their code."""

CHOOSING: Final = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
)
"""The environment variables that choose other code."""


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def quota(root: Path = Path("/")) -> float | None:
    """How many processors' time the control groups of this process allow it; None if they do not limit it.

    Args:
        root: where /proc and the file systems of control groups are.
    """
    found = []
    for version, place in groups.directories("cpu", root):
        with suppress(OSError, ValueError):  # the topmost group has no limit; "max" is none
            if version == "cgroup2":
                given, period = map(int, (place / "cpu.max").read_text(encoding="ascii").split())
            else:
                given, period = (
                    int((place / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period")
                )
            found += [given / period] if given > 0 else []
    return min(found, default=None)


class Processor(NamedTuple):
    """What the kernel says of a processor.

    Attributes:
        name: its model; "" where it does not say any, as on ARM.
        features: the names of its instruction sets, as the kernel has them.
    """

    name: str
    features: frozenset[str]


def processor(root: Path = Path("/")) -> Processor:
    """The first processor of this machine.

    Args:
        root: where /proc is.
    """
    found: dict[str, str] = {}
    for line in (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    features = found.get("flags") or found.get("Features", "")
    return Processor(found.get("model name", ""), frozenset(features.split()))


@cache
def kind() -> str:
    """The kind of this machine's processors: where it is the same, torch computes by the same code."""
    lines = dict.fromkeys(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines())
    said = [line for line in lines if line.partition(":")[0].strip() in _DESCRIBING]
    said += [f"{name}={os.environ[name]}" for name in CHOOSING if name in os.environ]
    return f"{platform.machine()} {hashlib.sha256(chr(10).join(said).encode()).hexdigest()[:16]}"
