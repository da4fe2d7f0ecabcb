"""The parts that all estimators share: sinusoids of the time, what a query sees, attention, the join of the inputs.

Every module runs in eval mode only (dropout is the identity and has no module here), and carries the parameter names of
the published checkpoints.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HIDDEN: Final = -1e10
"""What is added to the score of a key that a query does not see, where the type has such a number."""


def sinusoids(t: Tensor, size: int) -> Tensor:
    """The sines and then the cosines of the angles `1000 t w_i`, with `w_i = exp(-i ln(10000) / (size / 2 - 1))`.

    Source: Vaswani et al., https://arxiv.org/abs/1706.03762, section 3.5, for a time in place of a position, scaled as
    in Popov et al., Grad-TTS, https://arxiv.org/abs/2105.06337. The last wavelength is exactly 10000 times the first.

    Args:
        t: (B,) times from 0 to 1.
        size: an even number, at least 4.

    Returns:
        (B, size) in float32, whatever the type of t: times rounded to half precision are what most of the error of an
        estimator in half precision comes from.
    """
    half = size // 2
    rates = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000) / (half - 1)))
    angles = 1000 * t.float().unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def visible(mask: Tensor, chunk: int) -> Tensor:
    """The keys that each query sees.

    Args:
        mask: (B, 1, T), not 0 where the frame is real.
        chunk: frames per chunk; query i sees the keys of its own chunk and of all before it. 0: no limit.

    Returns:
        (B, 1 or T, T) bool. A query that would see nothing sees everything, so that no softmax is empty.
    """
    keys = mask != 0
    if chunk > 0:
        frame = torch.arange(mask.size(2), device=mask.device)
        keys = keys & (frame < (frame // chunk + 1).unsqueeze(1) * chunk)
    return keys | ~keys.any(dim=2, keepdim=True)


def attention_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: 0 where a key is seen, and where not a finite number below all scores.

    It is finite at each precision, since 0 times an infinite constant makes every output NaN.

    Args:
        seen: (B, 1 or T, T) bool, from `visible`.
        dtype: the type of the scores.

    Returns:
        (B, 1, 1 or T, T), the same for all heads.
    """
    hidden = max(_HIDDEN, torch.finfo(dtype).min / 2)
    return torch.where(seen, 0.0, hidden).to(dtype).unsqueeze(1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor) -> Tensor:
    """The attention of several heads: `softmax(q k / sqrt(d) + bias) v` for each.

    Source: Vaswani et al., https://arxiv.org/abs/1706.03762, section 3.2.

    Args:
        q, k, v: (B, T, heads * d).
        heads: how many parts the channels have.
        bias: from `attention_bias`.

    Returns:
        (B, T, heads * d).
    """
    q, k, v = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def over_frames(speaker: Tensor, frames: int) -> Tensor:
    """Repeat (B, F), what is the same for a whole utterance, to (B, F, frames)."""
    return speaker.unsqueeze(2).expand(-1, -1, frames)


class Projection(nn.Sequential):
    """A linear map under the name `0`, as the published attentions have it in front of a dropout."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs))
