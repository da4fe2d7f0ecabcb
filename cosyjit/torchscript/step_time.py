"""Measures the time of a decoding step of an artifact and of the eager encoder, in the same process.

It is measured with one thread, while other artifacts are built on the same machine. So it is an indication, good for
seeing a change.
"""

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from cosyjit.torchscript.calls import random_cache

_CACHED: Final = 64
"""The number of frames before the step."""

_TURNS: Final = 5


class Step(NamedTuple):
    """The time of a step in seconds, and its speed as a multiple of the encoder's."""

    seconds: float
    speedup: float


def measure(module: Any, encoder: nn.Module, dtype: torch.dtype) -> Step:
    """Run an artifact and its encoder in turns. The fastest turn of each counts, since it was disturbed least.

    Args:
        module: the artifact, loaded, with `forward_chunk`.
        encoder: filled, float32, not scripted.
        dtype: the type of the artifact's inputs.
    """
    size: Any = encoder.get_submodule("embed.out.0").in_features
    frame = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(0))
    cache = random_cache(encoder, _CACHED, torch.float32)
    narrow_frame, narrow_cache = frame.to(dtype), cache.to(dtype)
    turns: dict[str, Callable[[], Any]] = {
        "artifact": lambda: _step(module, narrow_frame, narrow_cache),
        "encoder": lambda: _step(encoder, frame, cache),
    }
    seconds = {name: min(_timed(turn) for _ in range(_TURNS)) for name, turn in turns.items()}
    return Step(seconds["artifact"], seconds["encoder"] / seconds["artifact"])


def _step(model: Any, frame: torch.Tensor, cache: torch.Tensor) -> None:
    seen, none = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(0, 0, 0, 0)
    model.forward_chunk(frame, offset=_CACHED, required_cache_size=-1, att_cache=cache, cnn_cache=none, att_mask=seen)


def _timed(turn: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    turn()
    return time.perf_counter() - begun
