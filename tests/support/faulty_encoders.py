"""Encoders that are right but for one fault each, to be scripted: another encoder, and what goes wrong with it."""

# ruff: noqa: ARG002  (signatures are the runtime's)

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyjit.encoders.attention import RelPositionMultiHeadedAttention
from cosyjit.encoders.encoder import StreamingEncoder
from cosyjit.encoders.layers import Context, Linear, pad_mask, relative_positions, whole_sequence
from cosyjit.encoders.upsample import UpsampleConformerEncoder


class Streaming(nn.Module):
    """The encoder inside, as it is."""

    def __init__(self, encoder: Any, limit: int = 20) -> None:
        super().__init__()
        self.encoder = encoder
        self.limit = limit

    def forward(self, xs: Tensor, xs_lens: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(xs, xs_lens)

    def step(
        self,
        xs: Tensor,
        required_cache_size: int,
        att_cache: Tensor,
        cnn_cache: Tensor,
        att_mask: Tensor,
        forgotten: int = 0,
        latest: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder's `forward_chunk`, blind to the first so many frames behind it, and to the latest ones.

        What it gives as its cache lacks nothing.
        """
        start, cached = forgotten, att_cache.size(2)
        if start + latest == 0:
            return self.encoder.forward_chunk(xs, 0, required_cache_size, att_cache, cnn_cache, att_mask)
        seen = att_cache[:, :, start : cached - latest]
        ys, after, cnn_cache = self.encoder.forward_chunk(xs, 0, -1, seen, cnn_cache, att_mask[:, :, start + latest :])
        new = after[:, :, after.size(2) - xs.size(1) :]
        after = torch.cat([att_cache.to(new.dtype), new], dim=2)
        if required_cache_size >= 0:
            after = after[:, :, max(after.size(2) - required_cache_size, 0) :]
        return ys, after, cnn_cache

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.step(xs, required_cache_size, att_cache, cnn_cache, att_mask)


class Forgetful(Streaming):
    """Forgets the latest frame behind it."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        latest = 1 if offset > 0 else 0
        return self.step(xs, required_cache_size, att_cache, cnn_cache, att_mask, latest=latest)


class Unremembering(Streaming):
    """Ignores its cache."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        forgotten = att_cache.size(2)
        return self.step(xs, required_cache_size, att_cache, cnn_cache, att_mask, forgotten=forgotten)


class ShortOfMemory(Streaming):
    """Looks back no further than `limit` frames."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        forgotten = max(att_cache.size(2) - self.limit, 0)
        return self.step(xs, required_cache_size, att_cache, cnn_cache, att_mask, forgotten=forgotten)


class Unmasked(Streaming):
    """Lets all the frames of a chunk with others behind it see each other."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        seen = att_mask[:, :, :0] if offset > 0 else att_mask
        return self.step(xs, required_cache_size, att_cache, cnn_cache, seen)


class Mislaying(Streaming):
    """Spoils one number of the cache that it gives, where it has more than `limit` frames."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ys, att_cache, cnn_cache = self.step(xs, required_cache_size, att_cache, cnn_cache, att_mask)
        if att_cache.size(2) > self.limit:
            att_cache[0, 0, att_cache.size(2) - 1, 0] += 1.0
        return ys, att_cache, cnn_cache


class Cutting(Streaming):
    """Gives no more than the last `limit` frames as its cache."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ys, att_cache, cnn_cache = self.step(xs, required_cache_size, att_cache, cnn_cache, att_mask)
        return ys, att_cache[:, :, max(att_cache.size(2) - self.limit, 0) :], cnn_cache


class Shifting(Streaming):
    """Gives a cache whose frames are one place off, where it has more than `limit`."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ys, att_cache, cnn_cache = self.step(xs, required_cache_size, att_cache, cnn_cache, att_mask)
        if att_cache.size(2) > self.limit:
            att_cache = att_cache.roll([1], [2])
        return ys, att_cache, cnn_cache


class Raising(Streaming):
    """Raises where 17 frames or more are behind it."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        seen = att_mask[:, :, :2] if offset >= 17 else att_mask
        return self.step(xs, required_cache_size, att_cache, cnn_cache, seen)


class BlindToPadding(Streaming):
    """Takes frames past a sequence's end for real ones, and yet gives the right mask."""

    def forward(self, xs: Tensor, xs_lens: Tensor) -> tuple[Tensor, Tensor]:
        ys, _ = self.encoder(xs, torch.full_like(xs_lens, xs.size(1)))
        return ys, pad_mask(xs_lens, xs.size(1))


class MaskingNothing(Streaming):
    """Says that all frames are real."""

    def forward(self, xs: Tensor, xs_lens: Tensor) -> tuple[Tensor, Tensor]:
        ys, mask = self.encoder(xs, xs_lens)
        return ys, torch.ones_like(mask)


class Shortening(Streaming):
    """Loses a channel."""

    def forward(self, xs: Tensor, xs_lens: Tensor) -> tuple[Tensor, Tensor]:
        ys, mask = self.encoder(xs, xs_lens)
        return ys[:, :, 1:], mask


class Widening(Streaming):
    """Gives float64 whatever it computes in."""

    def forward(self, xs: Tensor, xs_lens: Tensor) -> tuple[Tensor, Tensor]:
        ys, mask = self.encoder(xs, xs_lens)
        return ys.double(), mask


class WrongUnderAutocast(Streaming):
    """Is right for inputs of the weights' type alone."""

    def forward(self, xs: Tensor, xs_lens: Tensor) -> tuple[Tensor, Tensor]:
        ys, mask = self.encoder(xs.flip(2) if xs.dtype == torch.float32 else xs, xs_lens)
        return ys, mask


class Upsampling(nn.Module):
    """The same of an encoder that doubles the frame rate."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        xs: Tensor,
        xs_lens: Tensor,
        context: Tensor = torch.zeros(0, 0, 0),  # noqa: B008  (never written to)
        streaming: bool = False,
    ) -> tuple[Tensor, Tensor]:
        return self.encoder(xs, xs_lens, context, 0, -1, streaming)


class NotStreaming(Upsampling):
    """Ignores `streaming`."""

    def forward(
        self,
        xs: Tensor,
        xs_lens: Tensor,
        context: Tensor = torch.zeros(0, 0, 0),  # noqa: B008
        streaming: bool = False,
    ) -> tuple[Tensor, Tensor]:
        return self.encoder(xs, xs_lens, context, 0, -1, False)


class WithoutContext(Upsampling):
    """Ignores `context`."""

    def forward(
        self,
        xs: Tensor,
        xs_lens: Tensor,
        context: Tensor = torch.zeros(0, 0, 0),  # noqa: B008
        streaming: bool = False,
    ) -> tuple[Tensor, Tensor]:
        return self.encoder(xs, xs_lens, context[:, :0], 0, -1, streaming)


# What an encoder, or a module in it, is made by another class, rather than being inside one.

NOWHERE: Final = 1 << 30
"""A distance that no sequence has."""


def clamped(positions: Tensor, queries: int, far: int) -> Tensor:
    """A table of positions in which all distances beyond `far` have the row of that distance."""
    beyond = positions.size(0) - queries - far  # row m has the distance positions.size(0) - queries - m
    if beyond <= 0:
        return positions
    return torch.cat([positions[beyond : beyond + 1].expand(beyond, -1), positions[beyond:]])


def faulty_mask(pad: Tensor, chunk: int, fault: str) -> Tensor:
    """The mask of `attention_mask`, but that from the third chunk on frames see "everything", or "too little"."""
    mask = pad
    if chunk > 0:
        frame = torch.arange(pad.size(2), device=pad.device)
        end = (frame // chunk + 1) * chunk
        late = frame >= 2 * chunk
        if fault == "everything":
            end = torch.where(late, end + pad.size(2), end)
        if fault == "too little":
            end = torch.where(late, end - chunk, end)
        mask = mask & (frame < end.unsqueeze(1))
    return mask | ~mask.any(dim=2, keepdim=True)


def with_faults(context: Context, chunk: int, far: int, fault: str) -> Context:
    """A context of `whole_sequence` whose positions are clamped, and whose mask has a fault."""
    positions = clamped(context.positions, context.pad.size(2), far)
    return Context(positions, faulty_mask(context.pad, chunk, fault), context.pad, context.att_cache, context.cnn_cache)


class Astray(StreamingEncoder):
    """Takes all distances beyond `far` for that one, and from the third chunk on has the mask of `fault`."""

    far: int
    fault: str

    def forward(
        self, xs: Tensor, xs_lens: Tensor, decoding_chunk_size: int = 0, num_decoding_left_chunks: int = -1
    ) -> tuple[Tensor, Tensor]:
        context = whole_sequence(xs_lens, xs.size(1), self.static_chunk_size, self.heads, self.after_norm.weight)
        context = with_faults(context, self.static_chunk_size, self.far, self.fault)
        x = self.embed(xs)
        for block in self.encoders:
            x, _ = block(x, context)
        return self.after_norm(x), context.pad

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
        frames, cached = xs.size(1), att_cache.size(2)
        like = self.after_norm.weight
        positions = clamped(relative_positions(cached, frames, like, xs.device), frames, self.far)
        none = torch.empty((0, 0, 0), dtype=torch.bool, device=xs.device)
        after = like.new_empty((len(self.encoders), self.heads, cached + frames, 2 * self.size // self.heads))
        if cached > 0:
            after.narrow(2, 0, cached).copy_(att_cache)
        x = self.embed(xs)
        for i, block in enumerate(self.encoders):
            x, _ = block(x, Context(positions, att_mask, none, after[i : i + 1], like.new_empty((0, 0, 0))))
        start = max(cached + frames - required_cache_size, 0) if required_cache_size >= 0 else 0
        return self.after_norm(x), after[:, :, start:], like.new_empty((len(self.encoders), 0, 0, 0))


class UpsamplingAstray(UpsampleConformerEncoder):
    """The same of an encoder that doubles the frame rate."""

    far: int
    fault: str

    def forward(
        self,
        xs: Tensor,
        xs_lens: Tensor,
        context: Tensor = torch.zeros(0, 0, 0),  # noqa: B008  (never written to)
        decoding_chunk_size: int = 0,
        num_decoding_left_chunks: int = -1,
        streaming: bool = False,
    ) -> tuple[Tensor, Tensor]:
        chunk = self.static_chunk_size if streaming else self.offline_chunk_size
        like, stride = self.after_norm.weight, self.up_layer.stride
        if context.size(1) > 0:
            context = self.embed(context)
        x = self.pre_lookahead_layer(self.embed(xs), context)
        surroundings = whole_sequence(xs_lens, x.size(1), chunk, self.heads, like)
        surroundings = with_faults(surroundings, chunk, self.far, self.fault)
        for block in self.encoders:
            x, _ = block(x, surroundings)
        x = self.up_embed(self.up_layer(x))
        surroundings = whole_sequence(stride * xs_lens, x.size(1), stride * chunk, self.heads, like)
        surroundings = with_faults(surroundings, stride * chunk, self.far, self.fault)
        for up_block in self.up_encoders:
            x, _ = up_block(x, surroundings)
        return self.after_norm(x), surroundings.pad


def astray(encoder: Any, far: int = NOWHERE, fault: str = "") -> None:
    """Make an encoder one whose positions or masks are wrong."""
    encoder.__class__ = UpsamplingAstray if isinstance(encoder, UpsampleConformerEncoder) else Astray
    encoder.far = far
    encoder.fault = fault


class WrongPositionScores(RelPositionMultiHeadedAttention):
    """Has the scores of positions off by a hundredth on one side of the branch: with few queries, or with many.

    Those of the first `right` sequences of a batch are right.
    """

    few: bool
    right: int

    def position_scores(self, query: Tensor, positions: Tensor) -> Tensor:
        batch, frames = query.size(0), query.size(2)
        rows, size = positions.size(0), positions.size(1)
        weight = self.linear_pos.weight.view(self.heads, self.head_size, size)
        scores = torch.matmul(query, torch.matmul(weight, positions.t()))
        if (batch * frames * self.heads < size) == self.few:
            scores = torch.cat([scores[: self.right], 1.01 * scores[self.right :]])
        stride = scores.stride()
        return scores.as_strided(
            (batch, self.heads, frames, rows - frames + 1),
            (stride[0], stride[1], stride[2] - stride[3], stride[3]),
            scores.storage_offset() + (frames - 1) * stride[3],
        )


class WrongLinear(Linear):
    """Is off by a hundredth for one row, or for several."""

    one: bool

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name in `nn.Linear`)
        y = F.linear(input, self.weight, self.bias)
        return y + 0.01 if (input.size(0) * input.size(1) == 1) == self.one else y
