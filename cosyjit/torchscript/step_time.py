"""What a step of decoding takes with an artifact, beside the eager encoder in the same process.

Taken while other artifacts are built on the same machine, with one thread: an indication, good for seeing a change.
"""

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import nn

STEP: Final = "forward_chunk"
"""The method that a runtime calls for each step."""

_CACHED: Final = 64
"""How many frames the step is behind."""

_TURNS: Final = 5


class Step(NamedTuple):
    """The seconds of a step, and how many times the speed of the encoder's that is."""

    seconds: float
    speedup: float


def measure(module: Any, encoder: nn.Module, dtype: torch.dtype) -> Step:
    """Let an artifact and its encoder take turns; the quickest of each counts, which others disturb least.

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
    found: tuple[torch.Tensor, ...] = model.forward_chunk(
        xs, offset=offset, required_cache_size=-1, att_cache=cache, cnn_cache=torch.zeros(0, 0, 0, 0), att_mask=seen
    )
    return found


def _timed(turn: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    turn()
    return time.perf_counter() - begun
