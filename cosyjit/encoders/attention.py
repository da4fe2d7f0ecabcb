"""Multi-head self-attention with relative positions, built for streaming.

Source: Dai et al., Transformer-XL, https://arxiv.org/abs/1901.02860, section 3.3. The score of query i and key j is
`((q_i + u) . k_j + (q_i + v) . (P pe_{i-j})) / sqrt(d)`, P being `linear_pos`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from cosyjit.encoders.layers import Context, Linear


class RelPositionMultiHeadedAttention(nn.Module):
    """Attention of n new frames over C cached ones and themselves.

    The published parameters are `linear_q`, `linear_k` (its bias is optional), `linear_v`, `linear_out`, `linear_pos`,
    `pos_bias_u` and `pos_bias_v`; `state_dict` and `load_state_dict` use these. Inside, the three projections of the
    input are one product, `linear_qkv`.
    """

    def __init__(self, heads: int, size: int, key_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.head_size = size // heads
        self.key_bias = key_bias
        self.linear_qkv = Linear(size, 3 * size)
        self.linear_out = Linear(size, size)
        self.linear_pos = nn.Linear(size, size, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, self.head_size))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, self.head_size))
        # The public register_* forms of the two hooks came with torch 2.5 and 2.6.
        self._register_state_dict_hook(_split_projections)  # type: ignore[no-untyped-call]
        self._register_load_state_dict_pre_hook(_join_projections, True)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, n, D) to (B, n, D), and write the keys and values of these frames into `context.att_cache`."""
        batch, frames = x.size(0), x.size(1)
        q, k, v = self.linear_qkv(x).view(batch, frames, 3, self.heads, self.head_size).unbind(2)
        keys = context.att_cache.narrow(3, 0, self.head_size)
        values = context.att_cache.narrow(3, self.head_size, self.head_size)
        keys.narrow(2, keys.size(2) - frames, frames).copy_(k.transpose(1, 2))
        values.narrow(2, values.size(2) - frames, frames).copy_(v.transpose(1, 2))
        scale = 1.0 / math.sqrt(self.head_size)
        content = ((q + self.pos_bias_u) * scale).transpose(1, 2)
        position = ((q + self.pos_bias_v) * scale).transpose(1, 2)
        scores = torch.matmul(content, keys.transpose(2, 3)) + self.position_scores(position, context.positions)
        if context.mask.size(2) > 0:
            hidden = ~context.mask.unsqueeze(1)
            weights = scores.masked_fill_(hidden, -float("inf")).softmax(dim=3).masked_fill_(hidden, 0.0)
        else:
            weights = scores.softmax(dim=3)
        return self.linear_out(torch.matmul(weights, values).transpose(1, 2).flatten(2))

    def position_scores(self, query: Tensor, positions: Tensor) -> Tensor:
        """Map queries (B, H, n, d) and the table (L, D), L = C + 2n - 1, to scores (B, H, n, C + n)."""
        batch, frames = query.size(0), query.size(2)
        rows, size = positions.size(0), positions.size(1)
        weight = self.linear_pos.weight.view(self.heads, self.head_size, size)
        if batch * frames * self.heads < size:
            # With few queries, (P' (q + v)) . pe is cheaper than (q + v) . (P pe): B n H L D products, not L D D.
            queries = torch.matmul(query, weight).flatten(0, 2)
            # The long factor comes first, which makes MKL twice as fast.
            scores = torch.mm(positions, queries.t()).t().contiguous().view(batch, self.heads, frames, rows)
        else:
            scores = torch.matmul(query, torch.matmul(weight, positions.t()))
        # Query i meets key j in row n - 1 - i + j of the table: a view whose rows start one entry earlier each.
        stride = scores.stride()
        return scores.as_strided(
            (batch, self.heads, frames, rows - frames + 1),
            (stride[0], stride[1], stride[2] - stride[3], stride[3]),
            scores.storage_offset() + (frames - 1) * stride[3],
        )


def _parts(module: RelPositionMultiHeadedAttention, prefix: str) -> dict[str, list[str]]:
    """The published names that make up each inner name."""
    biased = "qkv" if module.key_bias else "qv"
    return {
        f"{prefix}linear_qkv.weight": [f"{prefix}linear_{name}.weight" for name in "qkv"],
        f"{prefix}linear_qkv.bias": [f"{prefix}linear_{name}.bias" for name in biased],
    }


def _split_projections(
    module: RelPositionMultiHeadedAttention, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]
) -> None:
    for inner, published in _parts(module, prefix).items():
        tensors = state.pop(inner).chunk(3)
        state.update(zip(published, tensors if len(published) == len(tensors) else tensors[::2], strict=True))


def _join_projections(module: RelPositionMultiHeadedAttention, state: dict[str, Any], prefix: str, *_: Any) -> None:
    size = module.heads * module.head_size
    for inner, published in _parts(module, prefix).items():
        shape = (size, size) if inner.endswith("weight") else (size,)
        if inner in state or any(name not in state or state[name].shape != shape for name in published):
            continue  # load_state_dict then says what is missing or unexpected
        tensors = [state.pop(name) for name in published]
        if len(tensors) < len("qkv"):
            tensors.insert(1, torch.zeros_like(tensors[0]))
        state[inner] = torch.cat(tensors)
