"""Encoders that are right but for one fault each, to be scripted: another encoder, and what goes wrong with it."""

# ruff: noqa: ARG002  (signatures are the runtime's)

from typing import Any

import torch
from torch import Tensor, nn

from cosyjit.encoders.layers import pad_mask


class Streaming(nn.Module):
    """The encoder inside, as it is."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, xs: Tensor, xs_lens: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(xs, xs_lens)

    def step(
        self, xs: Tensor, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor, forgotten: int = 0, latest: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder's `forward_chunk`, blind to the first so many frames behind it, and to the latest ones.

        What it gives as its cache lacks nothing.
        """
        start, cached = forgotten, att_cache.size(2)
        if start + latest == 0:
            return self.encoder.forward_chunk(xs, 0, -1, att_cache, cnn_cache, att_mask)
        seen = att_cache[:, :, start : cached - latest]
        ys, after, cnn_cache = self.encoder.forward_chunk(xs, 0, -1, seen, cnn_cache, att_mask[:, :, start + latest :])
        new = after[:, :, after.size(2) - xs.size(1) :]
        return ys, torch.cat([att_cache.to(new.dtype), new], dim=2), cnn_cache

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.step(xs, att_cache, cnn_cache, att_mask)


class Forgetful(Streaming):
    """Forgets the latest frame behind it."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.step(xs, att_cache, cnn_cache, att_mask, latest=1 if offset > 0 else 0)


class Unremembering(Streaming):
    """Ignores its cache."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.step(xs, att_cache, cnn_cache, att_mask, forgotten=att_cache.size(2))


class ShortOfMemory(Streaming):
    """Looks back no further than 20 frames."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.step(xs, att_cache, cnn_cache, att_mask, forgotten=max(att_cache.size(2) - 20, 0))


class Unmasked(Streaming):
    """Lets all the frames of a chunk with others behind it see each other."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.step(xs, att_cache, cnn_cache, att_mask[:, :, :0] if offset > 0 else att_mask)


class Mislaying(Streaming):
    """Spoils one number of the cache that it gives in the end, behind 31 frames."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ys, att_cache, cnn_cache = self.step(xs, att_cache, cnn_cache, att_mask)
        if att_cache.size(2) == 31:
            att_cache[0, 0, 30, 0] += 1.0
        return ys, att_cache, cnn_cache


class Raising(Streaming):
    """Raises where 17 frames or more are behind it."""

    @torch.jit.export
    def forward_chunk(
        self, xs: Tensor, offset: int, required_cache_size: int, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.step(xs, att_cache, cnn_cache, att_mask[:, :, :2] if offset >= 17 else att_mask)


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
