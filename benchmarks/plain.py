"""The same encoders, written down plainly: an oracle for tests, and the yardstick "plain" of the benchmark.

Nothing here is clever on purpose. The projections are separate `nn.Linear` modules, the table of positions has a fixed
length and is projected as a whole at every call, scores are aligned by padding and viewing, and caches are rebuilt by
concatenation. Attributes carry the names of the published checkpoint, so `load_state_dict(strict=True)` takes one as
it is.

Source of attention and positions: Dai et al., Transformer-XL, https://arxiv.org/abs/1901.02860, section 3.3 and
appendix B; of the convolution: Gulati et al., Conformer, https://arxiv.org/abs/2005.08100, section 2.2.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyjit.encoders.options import EncoderOptions, parse_options
from cosyjit.encoders.registry import ENCODERS

MAX_POSITIONS: Final = 5000
"""The number of positions in the table; a longer sequence is an error."""

_ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "relu": nn.ReLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "selu": nn.SELU,
    "hardtanh": nn.Hardtanh,
}


class PlainAttention(nn.Module):
    """Attention with relative positions; keys and values are appended to a cache."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        size = options.output_size
        self.heads = options.attention_heads
        self.head_size = size // self.heads
        self.linear_q = nn.Linear(size, size)
        self.linear_k = nn.Linear(size, size, bias=options.key_bias)
        self.linear_v = nn.Linear(size, size)
        self.linear_out = nn.Linear(size, size)
        self.linear_pos = nn.Linear(size, size, bias=False)
        self.pos_bias_u = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.heads, self.head_size)))
        self.pos_bias_v = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.heads, self.head_size)))

    def split(self, x: Tensor) -> Tensor:
        """(B, n, D) to (B, H, n, d)."""
        return x.view(x.size(0), x.size(1), self.heads, self.head_size).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Attend over C cached frames and the n frames of x.

        Args:
            x: (B, n, D).
            mask: (B, 1 or n, C + n) bool, or what broadcasts to it; a last axis of 0 means no mask.
            positions: (1, 2(C + n) - 1, D), distances from C + n - 1 down to 1 - C - n.
            cache: (B, H, C, 2d), keys then values; (0, 0, 0, 0) means none.

        Returns:
            (B, n, D), and the cache with n more entries.
        """
        q, k, v = self.split(self.linear_q(x)), self.split(self.linear_k(x)), self.split(self.linear_v(x))
        if cache.size(0) > 0:
            keys, values = torch.split(cache, self.head_size, dim=3)
            k = torch.cat([keys, k], dim=2)
            v = torch.cat([values, v], dim=2)
        p = self.split(self.linear_pos(positions))
        content = torch.matmul(q + self.pos_bias_u.unsqueeze(1), k.transpose(2, 3))
        position = relative_shift(torch.matmul(q + self.pos_bias_v.unsqueeze(1), p.transpose(2, 3)))
        scores = (content + position) / math.sqrt(self.head_size)
        if mask.size(2) > 0:
            hidden = mask.unsqueeze(1).logical_not()
            weights = torch.softmax(scores.masked_fill(hidden, -float("inf")), dim=3).masked_fill(hidden, 0.0)
        else:
            weights = torch.softmax(scores, dim=3)
        y = torch.matmul(weights, v).transpose(1, 2).reshape(x.size(0), x.size(1), self.heads * self.head_size)
        return self.linear_out(y), torch.cat([k, v], dim=3)


def relative_shift(scores: Tensor) -> Tensor:
    """(B, H, n, 2K - 1) scores by distance, from K - 1 down to 1 - K, to (B, H, n, K) scores by key.

    Query i of the n stands at position K - n + i, so that its row has to move left by n - 1 - i. With one entry put
    before each row, cutting the flat rows anew one entry shorter moves each row one further than the row above it.
    """
    batch, heads, queries, distances = scores.shape
    padded = F.pad(scores, (1, 0)).view(batch, heads, distances + 1, queries)
    return padded[:, :, 1:].reshape(batch, heads, queries, distances)[:, :, :, : (distances + 1) // 2]


class PlainFeedForward(nn.Module):
    """`w_2(activation(w_1(x)))`."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        self.w_1 = nn.Linear(options.output_size, options.linear_units)
        self.activation = _ACTIVATIONS[options.activation_type]()
        self.w_2 = nn.Linear(options.linear_units, options.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        y: Tensor = self.w_2(self.activation(self.w_1(x)))
        return y


class PlainConvolution(nn.Module):
    """Pointwise, gated; depthwise over time, normed, activated; pointwise."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        size, kernel = options.output_size, options.cnn_module_kernel
        self.causal = options.causal
        self.kernel = kernel
        self.layer_norm = options.cnn_module_norm == "layer_norm"
        self.pointwise_conv1 = nn.Conv1d(size, 2 * size, kernel_size=1)
        self.depthwise_conv = nn.Conv1d(size, size, kernel_size=kernel, groups=size)
        self.norm = nn.LayerNorm(size) if self.layer_norm else nn.BatchNorm1d(size)
        self.activation = _ACTIVATIONS[options.activation_type]()
        self.pointwise_conv2 = nn.Conv1d(size, size, kernel_size=1)

    def forward(self, x: Tensor, pad: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve over time.

        Args:
            x: (B, T, D).
            pad: (B, 1, T) bool, true where the frame is real; (0, 0, 0) means that all are.
            cache: (B, D, kernel - 1), the frames before x, for a causal convolution; (0, 0, 0) means zeros.

        Returns:
            (B, T, D), and the next cache; (0, 0, 0) if not causal.
        """
        x = x.transpose(1, 2)
        if pad.size(2) > 0:
            x = x.masked_fill(pad.logical_not(), 0.0)
        next_cache = torch.zeros((0, 0, 0), dtype=x.dtype, device=x.device)
        if self.causal:
            if cache.size(0) == 0:
                cache = torch.zeros((x.size(0), x.size(1), self.kernel - 1), dtype=x.dtype, device=x.device)
            x = torch.cat([cache, x], dim=2)
            next_cache = x.narrow(2, x.size(2) - (self.kernel - 1), self.kernel - 1)
        x = F.glu(self.pointwise_conv1(x), dim=1)
        if not self.causal:
            x = F.pad(x, ((self.kernel - 1) // 2, (self.kernel - 1) // 2))
        x = self.depthwise_conv(x)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2) if self.layer_norm else self.norm(x)
        x = self.pointwise_conv2(self.activation(x))
        if pad.size(2) > 0:
            x = x.masked_fill(pad.logical_not(), 0.0)
        return x.transpose(1, 2), next_cache


class PlainInput(nn.Module):
    """The input layer and the table of positions."""

    pe: Tensor

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        size = options.output_size
        layers: list[nn.Module] = [nn.Linear(options.input_size, size), nn.LayerNorm(size)]
        if options.input_layer == "linear_legacy":
            layers.append(nn.ReLU())
        self.out = nn.Sequential(*layers)
        self.scale = math.sqrt(size)
        self.longest = MAX_POSITIONS
        self.register_buffer("pe", position_table(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, input_size) to (B, T, D)."""
        y: Tensor = self.out(x)
        return y * self.scale

    def positions(self, keys: int) -> Tensor:
        """(1, 2 keys - 1, D): the distances from keys - 1 down to 1 - keys."""
        if keys > self.longest:
            raise ValueError("the table of positions is too short")
        return self.pe[:, self.longest - keys : self.longest + keys - 1]


def position_table(size: int) -> Tensor:
    """(1, 2 MAX_POSITIONS - 1, size): sines and cosines, by distances from MAX_POSITIONS - 1 down to its negative."""
    distances = torch.arange(MAX_POSITIONS - 1, -MAX_POSITIONS, -1, dtype=torch.float32)
    frequencies = torch.exp(torch.arange(0, size, 2, dtype=torch.float32) * -(math.log(10000.0) / size))
    table = torch.zeros(1, 2 * MAX_POSITIONS - 1, size)
    table[0, :, 0::2] = torch.sin(torch.outer(distances, frequencies))
    table[0, :, 1::2] = torch.cos(torch.outer(distances, frequencies))
    return table


class PlainTransformerBlock(nn.Module):
    """Attention, then feed-forward."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        self.normalize_before = options.normalize_before
        self.self_attn = PlainAttention(options)
        self.feed_forward = PlainFeedForward(options)
        self.norm1 = nn.LayerNorm(options.output_size, eps=1e-12)
        self.norm2 = nn.LayerNorm(options.output_size, eps=1e-12)

    def forward(
        self, x: Tensor, mask: Tensor, positions: Tensor, pad: Tensor, att_cache: Tensor, cnn_cache: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, n, D), the rest as in `PlainAttention` and `PlainConvolution`; returns x and the two next caches."""
        residual = x
        if self.normalize_before:
            x = self.norm1(x)
        y, att_cache = self.self_attn(x, mask, positions, att_cache)
        x = residual + y
        if not self.normalize_before:
            x = self.norm1(x)
        residual = x
        if self.normalize_before:
            x = self.norm2(x)
        x = residual + self.feed_forward(x)
        if not self.normalize_before:
            x = self.norm2(x)
        return x, att_cache, torch.zeros((0, 0, 0), dtype=x.dtype, device=x.device)


class PlainConformerBlock(nn.Module):
    """Feed-forward (if macaron), attention, convolution (if any), feed-forward."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        size, macaron, cnn = options.output_size, options.macaron_style, options.use_cnn_module
        self.normalize_before = options.normalize_before
        self.scale = 0.5 if macaron else 1.0
        self.self_attn = PlainAttention(options)
        self.feed_forward = PlainFeedForward(options)
        self.feed_forward_macaron = PlainFeedForward(options) if macaron else None
        self.conv_module = PlainConvolution(options) if cnn else None
        self.norm_mha = nn.LayerNorm(size, eps=1e-12)
        self.norm_ff = nn.LayerNorm(size, eps=1e-12)
        self.norm_ff_macaron = nn.LayerNorm(size, eps=1e-12) if macaron else None
        self.norm_conv = nn.LayerNorm(size, eps=1e-12) if cnn else None
        self.norm_final = nn.LayerNorm(size, eps=1e-12) if cnn else None

    def first_feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward of macaron style, (B, n, D) to (B, n, D); without that style, x."""
        if self.feed_forward_macaron is not None and self.norm_ff_macaron is not None:
            residual = x
            if self.normalize_before:
                x = self.norm_ff_macaron(x)
            x = residual + self.scale * self.feed_forward_macaron(x)
            if not self.normalize_before:
                x = self.norm_ff_macaron(x)
        return x

    def forward(
        self, x: Tensor, mask: Tensor, positions: Tensor, pad: Tensor, att_cache: Tensor, cnn_cache: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, n, D), the rest as in `PlainAttention` and `PlainConvolution`; returns x and the two next caches."""
        x = self.first_feed_forward(x)
        residual = x
        if self.normalize_before:
            x = self.norm_mha(x)
        y, att_cache = self.self_attn(x, mask, positions, att_cache)
        x = residual + y
        if not self.normalize_before:
            x = self.norm_mha(x)
        next_cnn_cache = torch.zeros((0, 0, 0), dtype=x.dtype, device=x.device)
        if self.conv_module is not None and self.norm_conv is not None:
            residual = x
            if self.normalize_before:
                x = self.norm_conv(x)
            y, next_cnn_cache = self.conv_module(x, pad, cnn_cache)
            x = residual + y
            if not self.normalize_before:
                x = self.norm_conv(x)
        residual = x
        if self.normalize_before:
            x = self.norm_ff(x)
        x = residual + self.scale * self.feed_forward(x)
        if not self.normalize_before:
            x = self.norm_ff(x)
        if self.norm_final is not None:
            x = self.norm_final(x)
        return x, att_cache, next_cnn_cache


def masks(xs_lens: Tensor, frames: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The pad mask (B, 1, T) and the attention mask (B, T, T) of whole sequences, both bool, true where visible.

    A query sees the real keys of its own chunk and of those before; one that would see none sees all.
    """
    frame = torch.arange(frames, device=xs_lens.device)
    pad = (frame.unsqueeze(0) < xs_lens.unsqueeze(1)).unsqueeze(1)
    visible = pad.expand(-1, frames, -1)
    if chunk > 0:
        end = (torch.div(frame, chunk, rounding_mode="floor") + 1) * chunk
        visible = visible.logical_and((frame.unsqueeze(0) < end.unsqueeze(1)).unsqueeze(0))
    nothing = visible.any(dim=2, keepdim=True).logical_not()
    return pad, visible.logical_or(nothing)


class PlainEncoder(nn.Module):
    """What the Transformer and the Conformer share: `forward` over whole sequences, `forward_chunk` over chunks."""

    def __init__(self, options: EncoderOptions, block: Callable[[EncoderOptions], nn.Module]) -> None:
        super().__init__()
        self.normalize_before = options.normalize_before
        self.static_chunk_size = options.static_chunk_size
        self.embed = PlainInput(options)
        self.encoders = nn.ModuleList([block(options) for _ in range(options.num_blocks)])
        self.after_norm = nn.LayerNorm(options.output_size)

    def forward(
        self, xs: Tensor, xs_lens: Tensor, decoding_chunk_size: int = 0, num_decoding_left_chunks: int = -1
    ) -> tuple[Tensor, Tensor]:
        """xs (B, T, input_size) and lengths (B,) to ys (B, T, D) and the pad mask (B, 1, T)."""
        pad, mask = masks(xs_lens, xs.size(1), self.static_chunk_size)
        x = self.embed(xs)
        positions = self.embed.positions(xs.size(1))
        no_att = torch.zeros((0, 0, 0, 0), dtype=x.dtype, device=x.device)
        no_cnn = torch.zeros((0, 0, 0), dtype=x.dtype, device=x.device)
        for block in self.encoders:
            x, _, _ = block(x, mask, positions, pad, no_att, no_cnn)
        if self.normalize_before:
            x = self.after_norm(x)
        return x, pad

    @torch.jit.export
    def forward_chunk(
        self,
        xs: Tensor,
        offset: int,
        required_cache_size: int,
        att_cache: Tensor = torch.zeros(0, 0, 0, 0),  # noqa: B008  (never written to)
        cnn_cache: Tensor = torch.zeros(0, 0, 0, 0),  # noqa: B008
        att_mask: Tensor = torch.ones((0, 0, 0), dtype=torch.bool),  # noqa: B008
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next n frames of one sequence, and the next caches.

        Args:
            xs: (1, n, input_size).
            offset: not used; positions follow from the cache.
            required_cache_size: entries of the attention cache to return: all (< 0), none (0), the last so many (> 0).
            att_cache: (L, H, C, 2d); (0, 0, 0, 0) at the start.
            cnn_cache: (L, 1, D, kernel - 1); (0, 0, 0, 0) at the start.
            att_mask: (1, n, C + n) bool, or what broadcasts to it; a last axis of 0 means no mask.

        Returns:
            ys (1, n, D), the next `att_cache`, and the next `cnn_cache`.
        """
        if xs.size(0) != 1:
            raise ValueError("forward_chunk takes one sequence at a time")
        x = self.embed(xs)
        keys = att_cache.size(2) + xs.size(1)
        start = 0
        if required_cache_size >= 0:
            start = max(keys - required_cache_size, 0)
        positions = self.embed.positions(keys)
        pad = torch.ones((0, 0, 0), dtype=torch.bool, device=xs.device)
        att_caches: list[Tensor] = []
        cnn_caches: list[Tensor] = []
        for i, block in enumerate(self.encoders):
            att = att_cache[i : i + 1]
            cnn = cnn_cache[i] if cnn_cache.size(0) > 0 else torch.zeros((0, 0, 0), dtype=x.dtype, device=x.device)
            x, att, cnn = block(x, att_mask, positions, pad, att, cnn)
            att_caches.append(att[:, :, start:])
            cnn_caches.append(cnn.unsqueeze(0))
        if self.normalize_before:
            x = self.after_norm(x)
        return x, torch.cat(att_caches, dim=0), torch.cat(cnn_caches, dim=0)


class PlainTransformerEncoder(PlainEncoder):
    """Transformer blocks."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__(options, PlainTransformerBlock)


class PlainConformerEncoder(PlainEncoder):
    """Conformer blocks."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__(options, PlainConformerBlock)


class PlainLookahead(nn.Module):
    """Each frame and the three behind it, by two convolutions and a residual."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(size, size, kernel_size=4)
        self.conv2 = nn.Conv1d(size, size, kernel_size=3)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, T, D); context (B, 3, D) stands behind it, or, with a middle axis of 0, three zero frames."""
        if context.size(1) == 0:
            context = torch.zeros((x.size(0), 3, x.size(2)), dtype=x.dtype, device=x.device)
        y: Tensor = self.conv1(torch.cat([x, context], dim=1).transpose(1, 2))
        y = self.conv2(F.pad(F.leaky_relu(y, negative_slope=0.01), (2, 0)))
        return y.transpose(1, 2) + x


class PlainUpsample(nn.Module):
    """Each frame twice, then a convolution over it and the four before."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size, size, kernel_size=5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, 2T, D)."""
        y = F.interpolate(x.transpose(1, 2), scale_factor=2.0, mode="nearest")
        y = F.pad(y, (4, 0))
        z: Tensor = self.conv(y)
        return z.transpose(1, 2)


class PlainUpsampleConformerEncoder(nn.Module):
    """Look-ahead, Conformer blocks, upsampling, four more Conformer blocks."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        size = options.output_size
        self.normalize_before = options.normalize_before
        self.static_chunk_size = options.static_chunk_size
        self.embed = PlainInput(options)
        self.pre_lookahead_layer = PlainLookahead(size)
        self.encoders = nn.ModuleList([PlainConformerBlock(options) for _ in range(options.num_blocks)])
        self.up_layer = PlainUpsample(size)
        self.up_embed = PlainInput(options)
        self.up_encoders = nn.ModuleList([PlainConformerBlock(options) for _ in range(4)])
        self.after_norm = nn.LayerNorm(size)

    def forward(
        self,
        xs: Tensor,
        xs_lens: Tensor,
        context: Tensor = torch.zeros(0, 0, 0),  # noqa: B008  (never written to)
        decoding_chunk_size: int = 0,
        num_decoding_left_chunks: int = -1,
        streaming: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """xs (B, T, D), lengths (B,) and context (B, 3, D) or (0, 0, 0) to ys (B, 2T, D) and pad mask (B, 1, 2T)."""
        chunk = self.static_chunk_size if streaming else 0
        if context.size(1) > 0:
            context = self.embed(context)
        x = self.pre_lookahead_layer(self.embed(xs), context)
        no_att = torch.zeros((0, 0, 0, 0), dtype=x.dtype, device=x.device)
        no_cnn = torch.zeros((0, 0, 0), dtype=x.dtype, device=x.device)
        pad, mask = masks(xs_lens, x.size(1), chunk)
        positions = self.embed.positions(x.size(1))
        for block in self.encoders:
            x, _, _ = block(x, mask, positions, pad, no_att, no_cnn)
        x = self.up_embed(self.up_layer(x))
        pad, mask = masks(2 * xs_lens, x.size(1), 2 * chunk)
        positions = self.up_embed.positions(x.size(1))
        for up_block in self.up_encoders:
            x, _, _ = up_block(x, mask, positions, pad, no_att, no_cnn)
        if self.normalize_before:
            x = self.after_norm(x)
        return x, pad


_PLAIN: Final[dict[str, Callable[[EncoderOptions], nn.Module]]] = {
    "cosyvoice.transformer.encoder.TransformerEncoder": PlainTransformerEncoder,
    "cosyvoice.transformer.encoder.ConformerEncoder": PlainConformerEncoder,
    "cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder": PlainUpsampleConformerEncoder,
}


def build_plain(class_name: str, options: Mapping[str, Any]) -> nn.Module:
    """A plain encoder in eval mode on the CPU, with the usual random weights of torch.

    Args:
        class_name: a key of `cosyjit.encoders.registry.ENCODERS`.
        options: the configuration's options for it, checked by the same tables.

    Raises:
        UnsupportedOptionError: an option that is unknown, missing, or of a value that is not supported.
    """
    return _PLAIN[class_name](parse_options(ENCODERS[class_name].options, options)).eval()
