"""The Transformer and Conformer encoders, for whole sequences and for streaming."""

from typing import Final

import torch
from torch import Tensor, nn

from cosyjit.encoders.attention import RelPositionMultiHeadedAttention
from cosyjit.encoders.layers import (
    Context,
    ConvolutionModule,
    LinearInput,
    PositionwiseFeedForward,
    relative_positions,
    whole_sequence,
)
from cosyjit.encoders.options import EncoderOptions


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each with its norm and a residual."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        size = options.output_size
        self.normalize_before = options.normalize_before
        self.self_attn = RelPositionMultiHeadedAttention(options.attention_heads, size, options.key_bias)
        self.feed_forward = PositionwiseFeedForward(size, options.linear_units, options.activation_type)
        self.norm1 = nn.LayerNorm(size, eps=1e-12)
        self.norm2 = nn.LayerNorm(size, eps=1e-12)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Map (B, n, D) to (B, n, D); also return the given `cnn_cache`, since there is no convolution."""
        if self.normalize_before:
            x = x + self.self_attn(self.norm1(x), context)
            x = x + self.feed_forward(self.norm2(x))
        else:
            x = self.norm1(x + self.self_attn(x, context))
            x = self.norm2(x + self.feed_forward(x))
        return x, context.cnn_cache


class ConformerBlock(nn.Module):
    """Half-step feed-forward (macaron style), attention, convolution, feed-forward; the first and third optional."""

    # Constants, so that TorchScript does not compile branches whose modules are missing.
    macaron_style: Final[bool]
    use_cnn_module: Final[bool]

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        size = options.output_size
        self.normalize_before = options.normalize_before
        self.macaron_style = options.macaron_style
        self.use_cnn_module = options.use_cnn_module
        self.feed_forward_scale = 0.5 if options.macaron_style else 1.0
        self.self_attn = RelPositionMultiHeadedAttention(options.attention_heads, size, options.key_bias)
        self.feed_forward = PositionwiseFeedForward(size, options.linear_units, options.activation_type)
        self.norm_mha = nn.LayerNorm(size, eps=1e-12)
        self.norm_ff = nn.LayerNorm(size, eps=1e-12)
        if self.macaron_style:
            self.feed_forward_macaron = PositionwiseFeedForward(size, options.linear_units, options.activation_type)
            self.norm_ff_macaron = nn.LayerNorm(size, eps=1e-12)
        if self.use_cnn_module:
            self.conv_module = ConvolutionModule(
                size, options.cnn_module_kernel, options.activation_type, options.cnn_module_norm, options.causal
            )
            self.norm_conv = nn.LayerNorm(size, eps=1e-12)
            self.norm_final = nn.LayerNorm(size, eps=1e-12)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Map (B, n, D) to (B, n, D) and the next `cnn_cache`, and write to `context.att_cache`."""
        cnn_cache = context.cnn_cache
        if self.macaron_style:
            if self.normalize_before:
                x = torch.add(x, self.feed_forward_macaron(self.norm_ff_macaron(x)), alpha=self.feed_forward_scale)
            else:
                x = self.norm_ff_macaron(torch.add(x, self.feed_forward_macaron(x), alpha=self.feed_forward_scale))
        if self.normalize_before:
            x = x + self.self_attn(self.norm_mha(x), context)
        else:
            x = self.norm_mha(x + self.self_attn(x, context))
        if self.use_cnn_module:
            if self.normalize_before:
                y, cnn_cache = self.conv_module(self.norm_conv(x), context.pad, cnn_cache)
                x = x + y
            else:
                y, cnn_cache = self.conv_module(x, context.pad, cnn_cache)
                x = self.norm_conv(x + y)
        if self.normalize_before:
            x = torch.add(x, self.feed_forward(self.norm_ff(x)), alpha=self.feed_forward_scale)
        else:
            x = self.norm_ff(torch.add(x, self.feed_forward(x), alpha=self.feed_forward_scale))
        if self.use_cnn_module:
            x = self.norm_final(x)
        return x, cnn_cache


class StreamingEncoder(nn.Module):
    """An encoder over whole sequences (`forward`) or over chunks with carried caches (`forward_chunk`)."""

    def __init__(self, options: EncoderOptions, block: type[TransformerBlock] | type[ConformerBlock]) -> None:
        super().__init__()
        self.heads = options.attention_heads
        self.size = options.output_size
        self.normalize_before = options.normalize_before
        self.static_chunk_size = options.static_chunk_size
        self.embed = LinearInput(options.input_size, options.output_size, options.input_layer)
        self.encoders = nn.ModuleList([block(options) for _ in range(options.num_blocks)])
        self.after_norm = nn.LayerNorm(options.output_size, eps=1e-5)

    def forward(
        self, xs: Tensor, xs_lens: Tensor, decoding_chunk_size: int = 0, num_decoding_left_chunks: int = -1
    ) -> tuple[Tensor, Tensor]:
        """Encode a padded batch.

        Args:
            xs: (B, T, input_size).
            xs_lens: (B,) int32 or int64, frames.
            decoding_chunk_size, num_decoding_left_chunks: accepted for callers; they matter only with dynamic chunks.

        Returns:
            ys (B, T, D), and the pad mask (B, 1, T) bool, true where the frame is real.
        """
        context = whole_sequence(xs_lens, xs.size(1), self.static_chunk_size, self.heads, self.after_norm.weight)
        x = self.embed(xs)
        for block in self.encoders:
            x, _ = block(x, context)
        if self.normalize_before:
            x = self.after_norm(x)
        return x, context.pad

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
        """Encode the next n frames of one sequence.

        Args:
            xs: (1, n, input_size).
            offset: accepted for callers; positions follow from the cache alone.
            required_cache_size: entries of the attention cache to return: all (< 0), none (0), or so many of the last.
            att_cache: (L, H, C, 2d), keys then values; (0, 0, 0, 0) at the start.
            cnn_cache: (L, 1, D, kernel - 1); (0, 0, 0, 0) at the start.
            att_mask: (1, n, C + n) bool, or what broadcasts to it; a last axis of 0 means no mask.

        Returns:
            ys (1, n, D); the next `att_cache`, (L, H, C + n, 2d) or as many of its last entries as required; the next
            `cnn_cache`, (L, 1, D, kernel - 1) with causal convolutions, else (L, 0, 0, 0).
        """
        if xs.size(0) != 1:
            raise ValueError("forward_chunk takes one sequence at a time")
        frames, cached = xs.size(1), att_cache.size(2)
        like = self.after_norm.weight
        positions = relative_positions(cached, frames, like, xs.device)
        pad = torch.empty((0, 0, 0), dtype=torch.bool, device=xs.device)
        next_att = like.new_empty((len(self.encoders), self.heads, cached + frames, 2 * self.size // self.heads))
        if cached > 0:
            next_att.narrow(2, 0, cached).copy_(att_cache)
        next_cnn: list[Tensor] = []
        x = self.embed(xs)
        for i, block in enumerate(self.encoders):
            cnn = cnn_cache[i] if cnn_cache.size(0) > 0 else like.new_empty((0, 0, 0))
            x, cnn = block(x, Context(positions, att_mask, pad, next_att[i : i + 1], cnn))
            next_cnn.append(cnn)
        if self.normalize_before:
            x = self.after_norm(x)
        start = 0
        if required_cache_size >= 0:
            start = max(cached + frames - required_cache_size, 0)
        return x, next_att[:, :, start:], torch.stack(next_cnn)


class TransformerEncoder(StreamingEncoder):
    """Transformer blocks with relative positions."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__(options, TransformerBlock)


class ConformerEncoder(StreamingEncoder):
    """Conformer blocks with relative positions."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__(options, ConformerBlock)
