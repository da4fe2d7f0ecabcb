"""The parts that all encoders share: linear maps, feed-forward, convolution, input layer, masks, positions.

Every module is TorchScript-able, runs in eval mode only (dropout is the identity and has no module here), and
carries the parameter names of the published checkpoints.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "relu": nn.ReLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "selu": nn.SELU,
    "hardtanh": nn.Hardtanh,
}


_LONG_ROW: Final = 2048


class Linear(nn.Linear):
    """`nn.Linear` for (B, T, in_features), written as products with views of the weight.

    `torch.jit.optimize_for_inference` turns every `aten::linear` of a frozen graph into a product with a transposed
    copy of its weight, one copy per preserved method. An `addmm` or `baddbmm` is left alone, so that all methods of an
    artifact share the one stored weight.

    On a CPU in float32 the product is a batch of products with slices of the weight: MKL spreads a batch over threads,
    but not a single product with one row. One row that is not too long is the second factor, since MKL then reads the
    weights at memory speed. (Measured on an AMD EPYC with torch 2.13: 16 GB/s as an `addmm`, 25 with the row first, 31
    with the row second; a sum reads 32. Rows of 4,096 were slower as the second factor.)
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.slices = math.gcd(out_features, 8)
        self.row_second = in_features <= _LONG_ROW

    def forward(self, input: Tensor) -> Tensor:
        rows = input.flatten(0, 1)
        if input.is_cuda or input.dtype != torch.float32:
            y = torch.addmm(self.bias, rows, self.weight.t())
        else:
            bias = self.bias.view(self.slices, -1, 1)
            weight = self.weight.view(self.slices, -1, rows.size(1))
            rows = rows.expand(self.slices, -1, -1)
            if rows.size(1) == 1 and self.row_second:
                y = torch.baddbmm(bias, weight, rows.transpose(1, 2))
            else:
                y = torch.baddbmm(bias.transpose(1, 2), rows, weight.transpose(1, 2)).transpose(0, 1).flatten(1)
        return y.view(input.size(0), input.size(1), self.out_features)


class PositionwiseFeedForward(nn.Module):
    """`w_2(activation(w_1(x)))` for (B, T, D)."""

    def __init__(self, size: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.w_1 = Linear(size, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.w_2 = Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(self.activation(self.w_1(x)))


class ConvolutionModule(nn.Module):
    """The Conformer's convolution over time, causal (with a cache) or centred.

    The padding differs. A causal convolution is preceded by kernel - 1 frames of the input, or zeros, which pass
    through `pointwise_conv1` and get its bias. A centred convolution is surrounded by the zeros of `depthwise_conv`.

    Source: Gulati et al., Conformer, https://arxiv.org/abs/2005.08100, section 2.2.
    """

    def __init__(self, size: int, kernel: int, activation: str, norm: str, causal: bool) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(size, 2 * size, 1)
        self.depthwise_conv = nn.Conv1d(size, size, kernel, groups=size, padding=0 if causal else kernel // 2)
        self.use_layer_norm = norm == "layer_norm"
        self.norm = nn.LayerNorm(size, eps=1e-5) if self.use_layer_norm else nn.BatchNorm1d(size)
        self.pointwise_conv2 = nn.Conv1d(size, size, 1)
        self.activation = ACTIVATIONS[activation]()
        self.causal = causal
        self.context = kernel - 1

    def forward(self, x: Tensor, pad: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, T, D) to (B, T, D) and the next cache, (0, 0, 0) if centred. `pad` and `cache`: see `Context`."""
        x = x.transpose(1, 2)
        if pad.size(2) > 0:
            x = x.masked_fill(~pad, 0.0)
        if self.causal:
            x = F.pad(x, (self.context, 0)) if cache.size(2) == 0 else torch.cat([cache, x], dim=2)
            cache = x[:, :, x.size(2) - self.context :]
        else:
            cache = torch.zeros((0, 0, 0), dtype=x.dtype, device=x.device)
        x = self.depthwise_conv(F.glu(self.pointwise_conv1(x), dim=1))
        x = self.norm(x.transpose(1, 2)).transpose(1, 2) if self.use_layer_norm else self.norm(x)
        x = self.pointwise_conv2(self.activation(x))
        if pad.size(2) > 0:
            x = x.masked_fill(~pad, 0.0)
        return x.transpose(1, 2), cache


class LinearInput(nn.Module):
    """The input layers "linear" and "linear_legacy", which has a ReLU behind the norm; both scale by sqrt(D)."""

    def __init__(self, input_size: int, size: int, kind: str) -> None:
        super().__init__()
        self.out = nn.Sequential(Linear(input_size, size), nn.LayerNorm(size, eps=1e-5))
        if kind == "linear_legacy":
            self.out.append(nn.ReLU())
        self.scale = math.sqrt(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * self.scale


class Context(NamedTuple):
    """The inputs of a block besides its frames.

    Shapes, for n new frames behind C cached ones:
        positions: (C + 2n - 1, D), from `relative_positions`.
        mask: (B, 1 or n, C + n) bool, or what broadcasts to it, true where a query may see a key; a last axis of 0
            means no mask.
        pad: (B, 1, n) bool, true where the frame is real; (0, 0, 0) means that all are.
        att_cache: (B, H, C + n, 2d), keys then values; a block reads the first C entries and writes the last n.
        cnn_cache: (B, D, kernel - 1), the frames before these, for a causal convolution; (0, 0, 0) means zeros.
    """

    positions: Tensor
    mask: Tensor
    pad: Tensor
    att_cache: Tensor
    cnn_cache: Tensor


def whole_sequence(lengths: Tensor, frames: int, chunk: int, heads: int, like: Tensor) -> Context:
    """The context of a padded batch of whole sequences.

    Args:
        lengths: (B,) int32 or int64; its device is the context's.
        frames: T, the padded length.
        chunk: see `attention_mask`.
        heads: H.
        like: a (D,) parameter, for D and the type.
    """
    pad = pad_mask(lengths, frames)
    return Context(
        positions=relative_positions(0, frames, like, lengths.device),
        mask=attention_mask(pad, chunk),
        pad=pad,
        att_cache=like.new_empty((lengths.size(0), heads, frames, 2 * like.size(0) // heads)),
        cnn_cache=like.new_empty((0, 0, 0)),
    )


def pad_mask(lengths: Tensor, frames: int) -> Tensor:
    """Map lengths (B,) to a bool mask (B, 1, frames), true where the frame is real."""
    return (torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)).unsqueeze(1)


def attention_mask(pad: Tensor, chunk: int) -> Tensor:
    """The keys that each query of a whole sequence may see.

    Args:
        pad: (B, 1, T) bool.
        chunk: frames per chunk; query i sees the keys of its own chunk and of all before it. 0: no limit.

    Returns:
        (B, 1 or T, T) bool. A query that would see nothing, such as one past the end of its sequence, sees everything,
        so that no softmax is empty.
    """
    mask = pad
    if chunk > 0:
        frame = torch.arange(pad.size(2), device=pad.device)
        end = (frame // chunk + 1) * chunk
        mask = mask & (frame < end.unsqueeze(1))
    return mask | ~mask.any(dim=2, keepdim=True)


def relative_positions(cached: int, queries: int, like: Tensor, device: torch.device) -> Tensor:
    """The sinusoidal table for `queries` new frames behind `cached` earlier ones.

    Row m is for the relative distance `cached + queries - 1 - m` (query position minus key position): from that of the
    last query and the first key down to `1 - queries`. The table is computed at each call, since checkpoints do not
    have it and its length is not bounded. That takes a small part of the time of one block.

    The device has to be that of an input: freezing writes the device of a parameter into the graph as a constant, but
    an artifact may be loaded on another device than it was exported on.

    Returns:
        (cached + 2 * queries - 1, D), computed in float32, in the type of `like`, a (D,) parameter.
    """
    distance = torch.arange(cached + queries - 1, -queries, -1, device=device, dtype=torch.float32)
    size = like.size(0)
    even = torch.arange(0, size, 2, device=device, dtype=torch.float32)
    angle = distance.unsqueeze(1) * torch.exp(even * (-math.log(10000.0) / size))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).to(like.dtype)
