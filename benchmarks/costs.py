"""What a call costs; and the calls of `benchmarks.folders`, where the processes that run them can import them."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from cosyjit.families import Precision
from cosyjit.folders import folder as folders
from cosyjit.folders.content import Content
from cosyjit.hf.gate import check_tokenizer
from cosyjit.hf.rules import Folder as Merged
from cosyjit.processes.worker import Progress


class Cost(NamedTuple):
    """Of one call: seconds, and bytes of memory at its peak."""

    seconds: float
    memory: int


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def cost(call: Callable[[], object]) -> Cost:
    """What a call costs, on one processor."""
    torch.set_num_threads(1)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    begun = time.perf_counter()
    call()
    return Cost(time.perf_counter() - begun, _status("VmHWM") - before)


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def write(folder: Content, weights: Path, out: Path, precision: Precision, progress: Progress) -> Cost:
    """What `cosyjit.folders.folder.write` costs, and bringing the files to the disk."""

    def call() -> None:
        folders.write(folder, weights, out, precision, progress)
        _sync(out)

    return cost(call)


def verify(folder: Content, weights: Path, out: Path, precision: Precision, progress: Progress) -> Cost:
    """What the gate costs."""

    def call() -> None:
        folders.verify(folder, weights, out, precision, progress)
        if isinstance(folder, Merged):
            check_tokenizer(folder, out)

    return cost(call)


def plain(size: int, out: Path, progress: Progress) -> Cost:  # noqa: ARG001  (as `worker.run` calls)
    """What writing as many bytes costs, and bringing them to the disk."""
    block = os.urandom(8 << 20)

    def call() -> None:
        with (out / "plain").open("wb", buffering=0) as file:
            for at in range(0, size, len(block)):
                file.write(block[: min(len(block), size - at)])
        _sync(out)

    return cost(call)
