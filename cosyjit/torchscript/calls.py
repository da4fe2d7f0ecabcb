"""The calls by which an artifact and its encoder are compared: on both sides of every branch, and over a stream.

An encoder computes the same for any number of frames, but for these branches in `cosyjit.encoders`:

    where                                       sides                           calls
    Linear.forward                              one row | several               "one" | all others
    attention.position_scores                   few queries | many              "one", "padded", steps | "many", prompt
    attention_mask, with a chunk                chunks 1 to 3 | later ones      "one", "padded" | "many"
    attention_mask, pad_mask                    all real | padded               "one" | "padded", "many"
    UpsampleConformerEncoder: streaming         no | yes                        each form
    UpsampleConformerEncoder: context           none | given                    each form
    forward_chunk: att_cache, cnn_cache         none | given                    prompt | all others
    forward_chunk: att_mask                     given | none                    all others | last step
    forward_chunk: required_cache_size          all | so many                   all others | last step

A stream of single frames takes no other branch than one of them, but shows how exact a precision is. Frames behind a
random cache reach far positions for the price of a frame, and the memory of the cache. Farther ones, and those of
`forward`, are not computed: there the code is proof, which `structure` compares.
"""

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

STEP: Final = "forward_chunk"
"""The method that a runtime calls for each step of decoding."""

Labelled = tuple[str, Tensor]

_PADDED: Final = [3, 2]
"""The lengths of a padded batch with few queries."""

_REAL: Final = [333]
"""A length that texts and speech have. Chunks may be longer than it is: then the code is proof of later ones."""

_FAR: Final = 1_040
"""Frames behind a chunk. The cache of a full-size `llm.llm` then takes 120 MB, for which builds reserve memory."""


class Call(NamedTuple):
    """One way to use an encoder.

    Attributes:
        name: in messages.
        run: from a model and the type of its inputs to labelled outputs.
        key: the same for calls of an encoder that give the same.
    """

    name: str
    run: Callable[[Any, torch.dtype], Iterator[Labelled]]
    key: str


Extent = Literal["branches", "few"]
"""How much is computed: on both sides of every branch, or over a few frames."""


def calls(
    encoder: nn.Module, methods: Sequence[str], extent: Extent, *, real: bool = False, stream: bool = True
) -> Iterator[Call]:
    """The ways to use an encoder.

    Args:
        encoder: not scripted; its weights are not read.
        methods: the methods of the artifact beside `forward`.
        extent: how much to compute.
        stream: whether to compute a stream of steps. No branch needs it.
        real: whether to compute over a real length besides. No branch needs it, but the errors of a precision, and
            whether it overflows, depend on the weights and the inputs.
    """
    size: Any = encoder.get_submodule("embed.out.0").in_features
    for form in forms(encoder):
        sequences = form.sequences if extent == "branches" else [_PADDED]
        for lengths in [*sequences, *([_REAL] if real and not form.options else [])]:
            words = " and ".join(map(str, lengths))
            name = f"forward over {words} frames{form.name}"
            yield Call(name, _forward(lengths, size, form.options), name)
    for method in methods:
        key = f"{method}, {extent}{', stream' if stream else ''}"
        yield Call(method, _METHODS[method](encoder, size, extent, stream=stream), key)


class Form(NamedTuple):
    """A form of `forward`: its name in messages, its options, and the lengths of its batches, in frames."""

    name: str
    options: dict[str, Any]
    sequences: list[list[int]]


def forms(encoder: Any) -> list[Form]:
    """The forms of `forward`, each with the lengths that its branches need: see the table above."""
    sequences = _sequences(encoder)
    if "streaming" not in signature(encoder.forward).parameters:
        return [Form("", {}, sequences)]
    return [
        Form("", {}, sequences),
        Form(", streaming", {"streaming": True}, sequences[2:]),
        Form(", streaming with context", {"streaming": True, "context": 3}, [_PADDED]),
    ]


def _sequences(encoder: Any) -> list[list[int]]:
    """The lengths "one", "padded" and "many"."""
    # Queries are many if all sequences together have at least as many as a head has channels. The frame after three
    # chunks is hidden from the third one, and seen where there are no chunks.
    many = max(_head_size(encoder) // 2, min(3 * encoder.static_chunk_size, *_REAL)) + 1
    return [[1], _PADDED, [many, many // 2 + 1]]


def _head_size(encoder: Any) -> int:
    size: int = encoder.size // encoder.heads
    return size


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _forward(
    lengths: Sequence[int], size: int, options: dict[str, Any]
) -> Callable[[Any, torch.dtype], Iterator[Labelled]]:
    xs = _random(max(lengths), len(lengths), max(lengths), size)
    context = _random(3, len(lengths), options["context"], size) if "context" in options else None

    def run(model: Any, dtype: torch.dtype) -> Iterator[Labelled]:
        given = options if context is None else {**options, "context": context.to(dtype)}
        ys, mask = model(xs.to(dtype), torch.tensor(lengths, dtype=torch.int32), **given)
        yield from (("mask", mask), ("ys", ys[mask.squeeze(1)]))

    return run


class _Chunk(NamedTuple):
    """A call of `forward_chunk`.

    Attributes:
        frames: how many.
        cached: the frames behind it, of a random cache; None for the cache of the call before.
        mask: from the frames and the frames behind them to (1, frames or 1, frames behind + frames or 1) bool.
        required: the `required_cache_size`.
    """

    frames: int
    cached: int | None
    mask: Callable[[int, int], Tensor]
    required: int = -1


def _causal(frames: int, cached: int) -> Tensor:
    return torch.ones(1, frames, cached + frames, dtype=torch.bool).tril(cached)


def _scattered(frames: int, cached: int) -> Tensor:
    """Half of all keys, and of each query its own."""
    return (_random(4, 1, frames, cached + frames) > 0) | torch.eye(frames, cached + frames).roll(cached, 1).bool()


def _everything(frames: int, cached: int) -> Tensor:  # noqa: ARG001  (it is broadcast)
    """The mask that the runtime gives at each step."""
    return torch.ones(1, 1, 1, dtype=torch.bool)


def _none(frames: int, cached: int) -> Tensor:  # noqa: ARG001
    return torch.ones(0, 0, 0, dtype=torch.bool)


def chunks(encoder: Any, extent: Extent, *, stream: bool) -> list[_Chunk]:
    """The calls of `forward_chunk`."""
    step = _Chunk(1, None, _everything)  # a single one shows little of how exact a precision is
    if extent == "few":
        return [_Chunk(2, 0, _causal), *[step] * (9 if stream else 1), _Chunk(1, None, _none, 2)]
    return [
        _Chunk(_head_size(encoder), 0, _causal),  # many queries, no cache: a prompt
        *[step] * (5 if stream else 1),
        _Chunk(4, None, _causal),
        *([*[step] * 5, _Chunk(2, _FAR, _scattered)] if stream else []),
        _Chunk(1, 8 if stream else _FAR, _none, 2),
    ]


def _forward_chunk(
    encoder: Any, size: int, extent: Extent, *, stream: bool
) -> Callable[[Any, torch.dtype], Iterator[Labelled]]:
    steps = chunks(encoder, extent, stream=stream)
    inputs = [_random(number, 1, step.frames, size) for number, step in enumerate(steps)]

    def run(model: Any, dtype: torch.dtype) -> Iterator[Labelled]:
        att_cache, cnn_cache = torch.zeros(0, 0, 0, 0), torch.zeros(0, 0, 0, 0)
        for number, (step, xs) in enumerate(zip(steps, inputs, strict=True), start=1):
            if step.cached:
                att_cache = random_cache(encoder, step.cached, att_cache.dtype)
            before, cached = att_cache, att_cache.size(2)
            ys, att_cache, cnn_cache = model.forward_chunk(
                xs.to(dtype),
                offset=cached,
                required_cache_size=step.required,
                att_cache=att_cache,
                cnn_cache=cnn_cache,
                att_mask=step.mask(step.frames, cached),
            )
            call = f"call {number}, {step.frames} frames behind {cached}"
            yield f"ys of {call}", ys
            if step.required < 0:
                same = att_cache.size(2) == cached + step.frames and (
                    cached == 0 or torch.equal(att_cache[:, :, :cached], before.to(att_cache.dtype))
                )
                yield f"what att_cache of {call}, keeps", torch.tensor(same)
            # A copy of what is new, so that the whole cache does not stay in memory.
            yield f"att_cache of {call}", att_cache[:, :, cached if step.required < 0 else 0 :].contiguous()
        yield "cnn_cache", cnn_cache

    return run


def random_cache(encoder: Any, cached: int, dtype: torch.dtype) -> Tensor:
    """An `att_cache` (L, H, cached, 2d) of unit variance, which norms and projections give keys and values about.

    It takes the memory of one block: each block has the numbers of the one before, moved by one place. They are
    multiples of 1/32 below 8, which all types hold exactly.
    """
    blocks, heads, channels = len(encoder.encoders), encoder.heads, 2 * _head_size(encoder)
    each = heads * cached * channels
    numbers = (_random(cached, each + blocks - 1) * 32).round().clamp(-255, 255) / 32
    return numbers.to(dtype).unfold(0, each, 1).view(blocks, heads, cached, channels)


_METHODS: Final = {STEP: _forward_chunk}
"""The calls of each method that an artifact may keep beside `forward`."""
