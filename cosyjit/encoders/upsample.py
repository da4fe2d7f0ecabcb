"""The flow encoder of CosyVoice2: Conformer blocks, twice the frame rate, Conformer blocks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyjit.encoders.encoder import ConformerBlock
from cosyjit.encoders.layers import LinearInput, whole_sequence
from cosyjit.encoders.options import EncoderOptions

CHANNELS = 512
LOOKAHEAD = 3
STRIDE = 2
UP_BLOCKS = 4


class PreLookaheadLayer(nn.Module):
    """Lets each frame see the next three: two convolutions over time and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.lookahead = LOOKAHEAD
        self.conv1 = nn.Conv1d(CHANNELS, CHANNELS, LOOKAHEAD + 1)
        self.conv2 = nn.Conv1d(CHANNELS, CHANNELS, 3)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map (B, T, 512) to (B, T, 512); context is (B, 3, 512), the frames after x, or (0, 0, 0) for zeros."""
        y = x.transpose(1, 2)
        y = F.pad(y, (0, self.lookahead)) if context.size(1) == 0 else torch.cat([y, context.transpose(1, 2)], dim=2)
        y = F.leaky_relu(self.conv1(y), 0.01)
        y = self.conv2(F.pad(y, (2, 0)))
        return x + y.transpose(1, 2)


class Upsample1D(nn.Module):
    """Repeats each frame and smooths with a causal convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stride = STRIDE
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, 2 * STRIDE + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, 512) to (B, 2T, 512)."""
        y = x.transpose(1, 2).repeat_interleave(self.stride, dim=2)
        return self.conv(F.pad(y, (2 * self.stride, 0))).transpose(1, 2)


class UpsampleConformerEncoder(nn.Module):
    """Whole sequences, or, with `streaming`, the prefix known so far with a look-ahead of three frames."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        self.heads = options.attention_heads
        self.size = options.output_size
        self.normalize_before = options.normalize_before
        self.static_chunk_size = options.static_chunk_size
        self.offline_chunk_size = options.static_chunk_size if options.always_streaming else 0
        self.embed = LinearInput(options.input_size, options.output_size, options.input_layer)
        self.pre_lookahead_layer = PreLookaheadLayer()
        self.encoders = nn.ModuleList([ConformerBlock(options) for _ in range(options.num_blocks)])
        self.up_layer = Upsample1D()
        self.up_embed = LinearInput(options.input_size, options.output_size, options.input_layer)
        self.up_encoders = nn.ModuleList([ConformerBlock(options) for _ in range(UP_BLOCKS)])
        self.after_norm = nn.LayerNorm(options.output_size, eps=1e-5)

    def forward(
        self,
        xs: Tensor,
        xs_lens: Tensor,
        context: Tensor = torch.zeros(0, 0, 0),  # noqa: B008  (never written to)
        decoding_chunk_size: int = 0,
        num_decoding_left_chunks: int = -1,
        streaming: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encode a padded batch to twice its frame rate.

        Args:
            xs: (B, T, input_size).
            xs_lens: (B,) int32 or int64, frames.
            context: (B, 3, input_size), the frames after xs; (0, 0, 0) for none.
            decoding_chunk_size, num_decoding_left_chunks: accepted for callers; they matter only with dynamic chunks.
            streaming: whether attention is limited to chunks of `static_chunk_size` frames, and twice that after
                upsampling. With the option `always_streaming` it always is.

        Returns:
            ys (B, 2T, 512), and the pad mask (B, 1, 2T) bool, true where the frame is real.
        """
        chunk = self.static_chunk_size if streaming else self.offline_chunk_size
        like, stride = self.after_norm.weight, self.up_layer.stride
        if context.size(1) > 0:
            context = self.embed(context)
        x = self.pre_lookahead_layer(self.embed(xs), context)
        surroundings = whole_sequence(xs_lens, x.size(1), chunk, self.heads, like)
        for block in self.encoders:
            x, _ = block(x, surroundings)
        x = self.up_embed(self.up_layer(x))
        surroundings = whole_sequence(stride * xs_lens, x.size(1), stride * chunk, self.heads, like)
        for up_block in self.up_encoders:
            x, _ = up_block(x, surroundings)
        if self.normalize_before:
            x = self.after_norm(x)
        return x, surroundings.pad
