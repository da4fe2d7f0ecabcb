"""What `benchmarks.export` runs in processes of their own, in a module that these can import."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from cosyjit.processes.worker import Progress

T = TypeVar("T")

STAGES: Final = ("load", "script", "save", "verify")
"""The stages of a zip; the last one is the gate's, the others are the build's."""


def metered(function: Callable[..., T], *args: Any, progress: Progress) -> tuple[T, dict[str, float]]:
    """Call a function, as `worker.run` would, and give besides the processor seconds of each of its stages.

    They are those of the process, which begins with the call, with all of its threads.
    """
    begun = [("", 0.0)]

    def note(stage: str) -> None:
        if stage in STAGES:  # other messages say something of the stage that runs
            begun.append((stage, time.process_time()))
        progress(stage)

    result = function(*args, progress=note)
    seconds: dict[str, float] = defaultdict(float)
    for (stage, start), (_, end) in pairwise([*begun, ("", time.process_time())]):
        seconds[stage or STAGES[0]] += end - start
    return result, dict(seconds)


def retrain(path: Path, prefixes: Sequence[str], seed: int, progress: Progress) -> None:  # noqa: ARG001  (as `worker.run` calls)
    """Replace a weights file by one in which all tensors with a prefix are a little different, as training would."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    for name, tensor in state.items():
        if name.startswith(tuple(prefixes)) and tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            tensor.add_(noise.mul_(0.01 * tensor.abs().mean() + 1e-4))
    new = path.with_suffix(".new")
    torch.save(state, new)
    new.replace(path)
