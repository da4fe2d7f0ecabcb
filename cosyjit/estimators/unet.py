"""The U-Net that estimates the flow of CosyVoice and CosyVoice2: residual convolutions and transformers, by time.

Source: Mehta et al., Matcha-TTS, https://arxiv.org/abs/2309.03199, section 2.3, which takes the U-Net of Popov et al.,
Grad-TTS, https://arxiv.org/abs/2105.06337, section 3.4, to one dimension and puts transformers into its stages.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyjit.estimators.layers import Projection, attend, attention_bias, over_frames, sinusoids, visible
from cosyjit.estimators.options import UNetOptions

_GROUPS: Final = 8


class TimeEmbedding(nn.Module):
    """Map times (B,) to (B, E): sinusoids, and `linear_2(SiLU(linear_1(.)))` of them."""

    def __init__(self, options: UNetOptions) -> None:
        super().__init__()
        self.size = options.in_channels
        self.linear_1 = nn.Linear(options.in_channels, options.time_channels)
        self.linear_2 = nn.Linear(options.time_channels, options.time_channels)

    def forward(self, t: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoids(t, self.size).to(self.linear_1.weight.dtype))))


class Convolution(nn.Conv1d):
    """A convolution of kernel 3 that keeps the length; causal: with both zeros before the first frame."""

    def __init__(self, inputs: int, outputs: int, *, causal: bool) -> None:
        super().__init__(inputs, outputs, 3)
        self.zeros = (2, 0) if causal else (1, 1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.zeros))


class Norm(nn.LayerNorm):
    """LayerNorm over the channels of each frame of (B, C, T).

    Source: Ba et al., https://arxiv.org/abs/1607.06450.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """`Mish(norm(conv(x * m))) * m` for x (B, C, T) and its mask m (B, 1, T).

    The norm is over the channels of each frame, or, if not causal, over groups of channels and ALL frames: the padded
    ones of a batch count. Sources: Wu and He, GroupNorm, https://arxiv.org/abs/1803.08494; Misra, Mish,
    https://arxiv.org/abs/1908.08681.
    """

    def __init__(self, inputs: int, outputs: int, *, causal: bool) -> None:
        super().__init__()
        convolution = Convolution(inputs, outputs, causal=causal)
        # The public causal form has a transposition under the name 1.
        norm = [nn.Identity(), Norm(outputs)] if causal else [nn.GroupNorm(_GROUPS, outputs)]
        self.block = nn.Sequential(convolution, *norm, nn.Mish())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.block(x * mask) * mask


class ResidualBlock(nn.Module):
    """`block2(block1(x, m) + mlp(e), m) + res_conv(x * m)`, where mlp is Mish and a linear map, over all frames."""

    def __init__(self, inputs: int, outputs: int, options: UNetOptions) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(options.time_channels, outputs))
        self.block1 = Block(inputs, outputs, causal=options.causal)
        self.block2 = Block(outputs, outputs, causal=options.causal)
        self.res_conv = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor, mask: Tensor, time: Tensor) -> Tensor:
        y = self.block1(x, mask) + self.mlp(time).unsqueeze(2)
        return self.block2(y, mask) + self.res_conv(x * mask)


class Gelu(nn.Module):
    """`gelu(proj(x))`, exact, or by tanh as `z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3)))`.

    Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415, section 2.
    """

    def __init__(self, inputs: int, outputs: int, approximate: str = "none") -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate=self.approximate)


class GatedGelu(nn.Module):
    """`a * gelu(b)` for the halves (a, b) of `proj(x)`. Source: Shazeer, https://arxiv.org/abs/2002.05202."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(b)


class SigmoidGelu(nn.Module):
    """`z * sigmoid(1.702 z)` for `z = proj(x)`, which configurations call "geglu-approximate"; it has no gate.

    Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415, section 2.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        z = self.proj(x)
        return z * torch.sigmoid(1.702 * z)


class SnakeBeta(nn.Module):
    """`z + sin^2(z exp(alpha)) / (exp(beta) + 1e-9)` for `z = proj(x)`, with an alpha and a beta for each channel.

    Source: Ziyin et al., Snake, https://arxiv.org/abs/2006.08195, with a magnitude (beta) of its own as in Lee et al.,
    BigVGAN, https://arxiv.org/abs/2206.04658.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)
        self.alpha = nn.Parameter(torch.zeros(outputs))
        self.beta = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        z = self.proj(x)
        return z + torch.sin(z * self.alpha.exp()).square() / (self.beta.exp() + 1e-9)


_ACTIVATIONS: Final[dict[str, Callable[[int, int], nn.Module]]] = {
    "gelu": Gelu,
    "gelu-approximate": partial(Gelu, approximate="tanh"),
    "geglu": GatedGelu,
    "geglu-approximate": SigmoidGelu,
    "snakebeta": SnakeBeta,
}


class FeedForward(nn.Module):
    """`net.2(activation(net.0.proj(x)))` for (B, T, C), four times as wide inside."""

    def __init__(self, size: int, activation: str) -> None:
        super().__init__()
        self.net = nn.Sequential(_ACTIVATIONS[activation](size, 4 * size), nn.Identity(), nn.Linear(4 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Attention(nn.Module):
    """Attention of (B, T, C) to itself. q, k and v have no bias; `bias` is that of the scores."""

    def __init__(self, size: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_size
        self.to_q = nn.Linear(size, inner, bias=False)
        self.to_k = nn.Linear(size, inner, bias=False)
        self.to_v = nn.Linear(size, inner, bias=False)
        self.to_out = Projection(inner, size)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads, bias))


class Transformer(nn.Module):
    """`x + attn1(norm1(x))`, and then `x + ff(norm3(x))`, for (B, T, C)."""

    def __init__(self, size: int, options: UNetOptions) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=1e-5)
        self.attn1 = Attention(size, options.num_heads, options.attention_head_dim)
        self.norm3 = nn.LayerNorm(size, eps=1e-5)
        self.ff = FeedForward(size, options.act_fn)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x), bias)
        return x + self.ff(self.norm3(x))


class Resampled(nn.Module):
    """A change of the frame rate under the name `conv`."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Stage(nn.ModuleList):
    """A residual block, the transformers behind it, and, but in the middle, the convolution that ends it."""

    def __init__(self, inputs: int, outputs: int, options: UNetOptions, *end: nn.Module) -> None:
        transformers = nn.ModuleList([Transformer(outputs, options) for _ in range(options.n_blocks)])
        super().__init__([ResidualBlock(inputs, outputs, options), transformers, *end])

    def forward(self, x: Tensor, mask: Tensor, time: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """Map (B, inputs, T) to (B, outputs, T) before and behind the last convolution, which may change T.

        Args:
            x: the frames.
            mask: (B, 1, T).
            time: (B, E).
            chunk: see `visible`; it counts frames of this stage.
        """
        residual, transformers, *end = self
        x = residual(x, mask, time).transpose(1, 2)
        bias = attention_bias(visible(mask, chunk), x.dtype)
        for transformer in transformers.children():
            x = transformer(x, bias)
        x = x.transpose(1, 2)
        return x, end[0](x * mask) if end else x


class UNet(nn.Module):
    """The estimator of CosyVoice, and in its causal form that of CosyVoice2."""

    def __init__(self, options: UNetOptions) -> None:
        super().__init__()
        self.in_channels = options.in_channels
        self.static_chunk_size = options.static_chunk_size
        widths, last = options.channels, len(options.channels) - 1
        upward = (*widths[::-1], widths[0])
        self.time_mlp = TimeEmbedding(options)
        self.down_blocks = nn.ModuleList(
            Stage(inputs, outputs, options, _down(outputs) if number < last else _kept(outputs, options))
            for number, (inputs, outputs) in enumerate(zip((options.in_channels, *widths), widths, strict=False))
        )
        self.mid_blocks = nn.ModuleList(Stage(widths[-1], widths[-1], options) for _ in range(options.num_mid_blocks))
        self.up_blocks = nn.ModuleList(
            Stage(2 * upward[number], outputs, options, _up(outputs) if number < last else _kept(outputs, options))
            for number, outputs in enumerate(upward[1:])
        )
        self.final_block = Block(widths[0], widths[0], causal=options.causal)
        self.final_proj = nn.Conv1d(widths[0], options.out_channels, 1)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        mu: Tensor,
        t: Tensor,
        spks: Tensor | None = None,
        cond: Tensor | None = None,
        streaming: bool = False,
    ) -> Tensor:
        """Estimate the flow at x.

        Args:
            x: (B, F, T).
            mask: (B, 1, T), 1 where the frame is real, else 0.
            mu: (B, F, T), the encoder's output.
            t: (B,) from 0 to 1.
            spks: (B, F), the speaker, or None: it is not joined.
            cond: (B, F, T), the known frames, or None: they are not joined. All that are joined have `in_channels`.
            streaming: whether a frame sees its own chunk and those before it alone.

        Returns:
            (B, out_channels, T), 0 where the frame is not real.
        """
        speaker = None if spks is None else over_frames(spks, x.size(2))
        x = torch.cat([each for each in (x, mu, speaker, cond) if each is not None], dim=1)
        time = self.time_mlp(t)
        chunk = self.static_chunk_size if streaming else 0
        skips: list[tuple[Tensor, Tensor]] = []
        next_mask = mask
        for stage in self.down_blocks:
            mask = next_mask
            skip, x = stage(x, mask, time, chunk)
            skips.append((skip, mask))
            next_mask = mask[:, :, ::2]
        for stage in self.mid_blocks:
            _, x = stage(x, mask, time, chunk)
        for stage in self.up_blocks:
            skip, mask = skips.pop()
            _, x = stage(torch.cat([x[:, :, : skip.size(2)], skip], dim=1), mask, time, chunk)
        return self.final_proj(self.final_block(x, mask) * mask) * mask


def _down(size: int) -> nn.Module:
    """Half the frames. It looks ahead by one frame in the causal form as well."""
    return Resampled(nn.Conv1d(size, size, 3, stride=2, padding=1))


def _up(size: int) -> nn.Module:
    """Twice the frames."""
    return Resampled(nn.ConvTranspose1d(size, size, 4, stride=2, padding=1))


def _kept(size: int, options: UNetOptions) -> nn.Module:
    return Convolution(size, size, causal=options.causal)
