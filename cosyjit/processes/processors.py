"""How many processors there are to work with, and of what kind they are."""

import hashlib
import os
import platform
from functools import cache
from pathlib import Path
from typing import Final

_DESCRIBING: Final = {"vendor_id", "flags", "CPU implementer", "Features"}
"""The lines of /proc/cpuinfo, on x86 and ARM, by which torch and its libraries choose their code."""

_CHOOSING: Final = (
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


@cache
def kind() -> str:
    """The kind of this machine's processors: where it is the same, torch computes by the same code."""
    lines = dict.fromkeys(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines())
    said = [line for line in lines if line.partition(":")[0].strip() in _DESCRIBING]
    said += [f"{name}={os.environ[name]}" for name in _CHOOSING if name in os.environ]
    return f"{platform.machine()} {hashlib.sha256(chr(10).join(said).encode()).hexdigest()[:16]}"
