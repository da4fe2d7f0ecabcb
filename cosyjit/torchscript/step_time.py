"""Measures the time of a decoding step of an artifact and of the eager encoder, in the same process.

It is measured with one thread, while other artifacts are built on the same machine. So it is an indication, good for
seeing a change.
"""

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import nn

STEP: Final = "forward_chunk"
"""The method that a runtime calls for each step."""

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
    xs = torch.randn(1, _CACHED + 1, size, generator=torch.Generator().manual_seed(0))
    cache = _chunk(encoder, xs[:, :_CACHED], 0, torch.zeros(0, 0, 0, 0))[1]
    frame, narrow = xs[:, _CACHED:], cache.to(dtype)
    turns: dict[str, Callable[[], Any]] = {
        "artifact": lambda: _chunk(module, frame.to(dtype), _CACHED, narrow),
        "encoder": lambda: _chunk(encoder, frame, _CACHED, cache),
    }
    seconds = {name: min(_timed(turn) for _ in range(_TURNS)) for name, turn in turns.items()}
    return Step(seconds["artifact"], seconds["encoder"] / seconds["artifact"])


def _chunk(model: Any, xs: torch.Tensor, offset: int, cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
    seen = torch.ones(1, xs.size(1), xs.size(1), dtype=torch.bool)
    outputs: tuple[torch.Tensor, ...] = model.forward_chunk(
        xs, offset=offset, required_cache_size=-1, att_cache=cache, cnn_cache=torch.zeros(0, 0, 0, 0), att_mask=seen
    )
    return outputs


def _timed(turn: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    turn()
    return time.perf_counter() - begun
