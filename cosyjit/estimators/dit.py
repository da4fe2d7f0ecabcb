"""The diffusion transformer that estimates the flow of CosyVoice3: transformers whose norms are steered by the time.

Source: Peebles and Xie, DiT, https://arxiv.org/abs/2212.09748, section 3.2 (adaLN-Zero), in the form that Chen et al.,
F5-TTS, https://arxiv.org/abs/2410.06885, section 3.2, give it for speech.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyjit.estimators.layers import Projection, attend, attention_bias, over_frames, sinusoids, visible
from cosyjit.estimators.options import DiTOptions
from cosyjit.estimators.parameters import POSITION_GROUPS, POSITION_KERNEL, TIME_SINUSOIDS


class TimeEmbedding(nn.Module):
    """Map times (B,) to (B, D): 256 sinusoids, a linear map, SiLU, a linear map."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(TIME_SINUSOIDS, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, t: Tensor) -> Tensor:
        return self.time_mlp(sinusoids(t, TIME_SINUSOIDS).to(next(self.parameters()).dtype))


class PositionConvolutions(nn.Module):
    """Twice a convolution over the 30 frames before and the frame itself, and Mish, for (B, D, T)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv1 = self._convolution(size)
        self.conv2 = self._convolution(size)

    @staticmethod
    def _convolution(size: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(size, size, POSITION_KERNEL, groups=POSITION_GROUPS), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2):
            x = convolution(F.pad(x, (POSITION_KERNEL - 1, 0)))
        return x


class InputEmbedding(nn.Module):
    """`u + conv_pos_embed(u)` for `u = proj(joined)`, (B, T, D). It needs no mask, as it does not look ahead."""

    def __init__(self, options: DiTOptions) -> None:
        super().__init__()
        self.proj = nn.Linear(2 * options.mel_dim + options.mu_dim + options.spk_dim, options.dim)
        self.conv_pos_embed = PositionConvolutions(options.dim)

    def forward(self, joined: Tensor) -> Tensor:
        u = self.proj(joined)
        return u + self.conv_pos_embed(u.transpose(1, 2)).transpose(1, 2)


class RotaryEmbedding(nn.Module):
    """Rotations of pairs of channels by the frame's position: by `p * inv_freq[i]` for the pair (2i, 2i + 1).

    Source: Su et al., RoFormer, https://arxiv.org/abs/2104.09864, section 3.2.2. `inv_freq` is in the checkpoint.
    """

    inv_freq: Tensor

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.empty(head_size // 2))

    def forward(self, frames: int) -> tuple[Tensor, Tensor]:
        """The cosines and the sines, each (frames, d / 2) in float32."""
        position = torch.arange(frames, device=self.inv_freq.device, dtype=torch.float32)
        angles = position.unsqueeze(1) * self.inv_freq.float()
        return angles.cos(), angles.sin()


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first head of x (B, T, heads * d): `(a, b) -> (a cos - b sin, b cos + a sin)`.

    The rotation has d channels and is applied before the split into heads, so the other heads carry no position. It is
    computed in float32 at least.
    """
    cos, sin = rotation
    size = 2 * cos.size(1)
    first, rest = x[:, :, :size], x[:, :, size:]
    a, b = first[:, :, 0::2], first[:, :, 1::2]
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=3).flatten(2)
    return torch.cat([turned.to(x.dtype), rest], dim=2)


class Attention(nn.Module):
    """Attention of (B, T, D) to itself, 0 where a frame is not real."""

    def __init__(self, options: DiTOptions) -> None:
        super().__init__()
        self.heads = options.heads
        inner = options.heads * options.dim_head
        self.to_q = nn.Linear(options.dim, inner)
        self.to_k = nn.Linear(options.dim, inner)
        self.to_v = nn.Linear(options.dim, inner)
        self.to_out = Projection(inner, options.dim)

    def forward(self, x: Tensor, real: Tensor, bias: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Attend.

        Args:
            x: (B, T, D).
            real: (B, T, 1) bool.
            bias: from `attention_bias`.
            rotation: from `RotaryEmbedding`.
        """
        q, k = rotated(self.to_q(x), rotation), rotated(self.to_k(x), rotation)
        return self.to_out(attend(q, k, self.to_v(x), self.heads, bias)).masked_fill(~real, 0)


class FeedForward(nn.Module):
    """A linear map, GELU by tanh, a linear map, for (B, T, D)."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        widen = nn.Sequential(nn.Linear(size, hidden), nn.GELU(approximate="tanh"))
        self.ff = nn.Sequential(widen, nn.Identity(), nn.Linear(hidden, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class Modulation(nn.Module):
    """Steers a block by the time: `parts` vectors (B, 1, D) from `linear(SiLU(e))`."""

    def __init__(self, size: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(size, parts * size)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(time)).unsqueeze(1).chunk(self.parts, dim=2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`LN(x) (1 + scale) + shift`, where LN has no parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """`u + gate_a attn(modulated(u))`, and then `u + gate_f ff(modulated(u))`."""

    def __init__(self, options: DiTOptions) -> None:
        super().__init__()
        self.attn_norm = Modulation(options.dim, 6)
        self.attn = Attention(options)
        self.ff = FeedForward(options.dim, options.ff_mult * options.dim)

    def forward(self, u: Tensor, time: Tensor, real: Tensor, bias: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.attn_norm(time)
        u = u + gate_a * self.attn(modulated(u, shift_a, scale_a), real, bias, rotation)
        return u + gate_f * self.ff(modulated(u, shift_f, scale_f))


class DiT(nn.Module):
    """The estimator of CosyVoice3."""

    def __init__(self, options: DiTOptions) -> None:
        super().__init__()
        self.has_speaker = options.spk_dim > 0
        self.static_chunk_size = options.static_chunk_size
        self.time_embed = TimeEmbedding(options.dim)
        self.input_embed = InputEmbedding(options)
        self.rotary_embed = RotaryEmbedding(options.dim_head)
        self.transformer_blocks = nn.ModuleList(DiTBlock(options) for _ in range(options.depth))
        self.long_skip_connection = (
            nn.Linear(2 * options.dim, options.dim, bias=False) if options.long_skip_connection else None
        )
        self.norm_out = Modulation(options.dim, 2)
        self.proj_out = nn.Linear(options.dim, options.mel_dim)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        mu: Tensor,
        t: Tensor,
        spks: Tensor | None,
        cond: Tensor,
        streaming: bool = False,
    ) -> Tensor:
        """Estimate the flow at x.

        Args:
            x: (B, mel_dim, T).
            mask: (B, 1, T), 1 where the frame is real, else 0.
            mu: (B, mu_dim, T), the encoder's output.
            t: (B,) or () from 0 to 1.
            spks: (B, spk_dim), the speaker; it is not used where `spk_dim` is 0.
            cond: (B, mel_dim, T), the known frames.
            streaming: whether a frame sees its own chunk and those before it alone.

        Returns:
            (B, mel_dim, T). It is not masked: frames that are not real have numbers as well.
        """
        joined = [x, cond, mu]
        if self.has_speaker and spks is not None:
            joined.append(over_frames(spks, x.size(2)))
        time = self.time_embed(t.expand(x.size(0)))
        u = embedded = self.input_embed(torch.cat(joined, dim=1).transpose(1, 2))
        bias = attention_bias(visible(mask, self.static_chunk_size if streaming else 0), u.dtype)
        real = (mask != 0).transpose(1, 2)
        rotation = self.rotary_embed(x.size(2))
        for block in self.transformer_blocks:
            u = block(u, time, real, bias, rotation)
        if self.long_skip_connection is not None:
            u = self.long_skip_connection(torch.cat([u, embedded], dim=2))
        scale, shift = self.norm_out(time)
        return self.proj_out(modulated(u, shift, scale)).transpose(1, 2)
