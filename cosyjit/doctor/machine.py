"""The machine: its system, processors and their instructions, memory, and what torch makes of them."""

import os
import platform
import resource
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from cosyjit import settings
from cosyjit.doctor.children import asked
from cosyjit.doctor.finding import Finding, Probe
from cosyjit.errors import SelectionError
from cosyjit.processes import memory
from cosyjit.processes.processors import processor, processors, quota

_INSTRUCTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "fp16": ("avx512_fp16", "amx_fp16", "asimdhp", "f16c", "fphp"),
    "bf16": ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"),
    "int8": ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm", "svei8mm"),
}
"""By precision, the kernel's names of instruction sets for it, on x86 and ARM. f16c and fphp only convert, or compute
one number at a time."""

_FILES: Final = 1024
"""How many open files are usual; a build server, Prefect and a client of S3 need some hundreds."""

_TORCH: Final = 90.0
"""In s, how long the import of torch may take: it reads a gigabyte, and a disk may be slow."""


def probes() -> list[Probe]:
    return [
        Probe("system", "system", _system),
        Probe("processors", "processors", partial(_processors, Path("/"))),
        Probe("memory", "memory", partial(_memory, Path("/"))),
        Probe("torch", "torch", _torch, _TORCH),
    ]


def _system() -> Iterator[Finding]:
    yield Finding("system", "kernel", f"{platform.system()} {platform.release()} {platform.machine()}")
    with suppress(OSError):  # a system without that file
        yield Finding("system", "distribution", platform.freedesktop_os_release()["PRETTY_NAME"])
    yield Finding("system", "libc", " ".join(platform.libc_ver()).strip() or "not told")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = files != resource.RLIM_INFINITY and files < _FILES
    yield Finding(
        "system",
        "open files",
        _limit(files),
        "note" if few else "ok",
        f"is a low limit; raise it with `ulimit -n {_FILES}`" if few else "",
    )


def _limit(given: int) -> int | str:
    return "no limit" if given == resource.RLIM_INFINITY else given


def _processors(root: Path) -> Iterator[Finding]:
    found, usable, allowed = processor(root), processors(), quota(root)
    yield Finding("processors", "model", found.name or platform.machine())
    yield Finding("processors", "usable", usable)
    yield Finding("processors", "in all", os.cpu_count())
    if allowed is not None:
        fewer = allowed < usable
        advice = (
            "is less than there is to use, and as many builds run at a time; `taskset` limits them" if fewer else ""
        )
        yield Finding("processors", "group's share", round(allowed, 2), "note" if fewer else "ok", advice)
    for precision, sets in _INSTRUCTIONS.items():
        yield Finding("processors", f"{precision} instructions", [each for each in sets if each in found.features])


def _memory(root: Path) -> Iterator[Finding]:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory.installed(root)
    yield Finding("memory", "installed", physical, unit="bytes")
    if limit < physical:
        yield Finding("memory", "group's limit", limit, unit="bytes")
    with suppress(OSError, LookupError, ValueError):  # an old kernel does not say
        lines = dict(each.split(":") for each in (root / "proc/meminfo").read_text(encoding="ascii").splitlines())
        yield Finding("memory", "available", 1024 * int(lines["MemAvailable"].split()[0]), unit="bytes")
    address, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address != resource.RLIM_INFINITY:
        advice = "torch maps more than it uses; if a build lacks memory, raise it with `ulimit -v unlimited`"
        yield Finding("memory", "address space", address, "note", advice, "bytes")
    with suppress(SelectionError):  # which is told of among the settings
        yield Finding("memory", "for builds", settings.memory() or int(memory.SHARE * limit), unit="bytes")


def _torch() -> Iterator[Finding]:
    found = asked("cosyjit.doctor.with_torch", _TORCH)
    yield Finding("torch", "version", found["version"])
    yield Finding("torch", "code for", found["capability"])
    yield from map(partial(_arithmetic, found), ("fp16", "bf16"))
    yield Finding("torch", "int8 engine", found["quantized"])
    yield Finding("torch", "CUDA", found["cuda"] or "built without")
    yield Finding("torch", "GPUs", found["gpus"])


def _arithmetic(found: Mapping[str, Any], precision: str) -> Finding:
    if found[precision]:
        return Finding("torch", f"{precision} arithmetic", "native")
    advice = f"{precision} is exported and proven here as well, over fewer frames; it is slow to run on this machine"
    return Finding("torch", f"{precision} arithmetic", "emulated", "note", advice)
