"""The solver around an estimator: from noise to a mel spectrogram in some steps.

Sources: Lipman et al., Flow Matching, https://arxiv.org/abs/2210.02747, whose ordinary differential equation is solved
by Euler's method; Ho and Salimans, https://arxiv.org/abs/2207.12598, for guidance without a classifier; Du et al.,
CosyVoice, https://arxiv.org/abs/2407.05407, section 2.3, for the times and the guidance together.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

Estimate = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""An estimator for a batch of two: (x, mask, mu, t, spks, cond) to the flow at x."""

STEPS: Final = 10
CFG_RATE: Final = 0.7
"""What the runtime solves with."""


def times(steps: int) -> list[float]:
    """The times `1 - cos(pi/2 k/n)` for k from 0 to n: short steps first."""
    return [1 - math.cos(math.pi / 2 * step / steps) for step in range(steps + 1)]


def guided(tensor: Tensor) -> Tensor:
    """Put a row of zeros behind the only row: the estimate without a condition."""
    return torch.cat([tensor, torch.zeros_like(tensor)])


def solve(
    estimate: Estimate,
    z: Tensor,
    mu: Tensor,
    spks: Tensor,
    cond: Tensor,
    *,
    steps: int = STEPS,
    cfg_rate: float = CFG_RATE,
) -> Tensor:
    """Solve `dx = v dt` from `x = z` by Euler's method, with `v = (1 + r) y_0 - r y_1` and y_1 without a condition.

    Args:
        estimate: an estimator.
        z: (1, F, T), the noise.
        mu: (1, F, T), the encoder's output.
        spks: (1, F), the speaker.
        cond: (1, F, T), the known frames.
        steps: how often the estimator is called.
        cfg_rate: r.

    Returns:
        (1, F, T).
    """
    x = z
    mask = torch.ones((2, 1, z.size(2)), dtype=z.dtype, device=z.device)
    mu, spks, cond = guided(mu), guided(spks), guided(cond)
    moments = times(steps)
    for t, following in pairwise(moments):
        y = estimate(torch.cat([x, x]), mask, mu, torch.full((2,), t, dtype=z.dtype, device=z.device), spks, cond)
        x = x + (following - t) * ((1 + cfg_rate) * y[:1] - cfg_rate * y[1:])
    return x
