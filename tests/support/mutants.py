"""The table of mutants: all that the gate has to refuse in an artifact, besides files that are damaged.

A mutant is an encoder that is right but for one fault, exported as a build does it. Each names the component that it is
made of, the precisions at which it has to be refused, and the check that has to see it.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from cosyjit.encoders.attention import RelPositionMultiHeadedAttention
from cosyjit.encoders.layers import Linear
from cosyjit.encoders.quantized import quantize
from tests.support import faulty_encoders as faulty

NUMBERS: Final = "numbers"
"""The check that compares outputs with the encoder's. Of float32 artifacts it comes first, of half ones last."""
CODE: Final = "code"
"""The check that compares the artifact's code with that of an encoder that is scripted anew."""
WEIGHTS: Final = "weights"
"""The check that compares the artifact's constants with the tensors, bit for bit."""


class Mutant(NamedTuple):
    """A fault of an artifact.

    Attributes:
        name: what is wrong.
        component: of which it is made; those of CosyVoice2 are "flow.encoder 2" and "flow.encoder.chunked".
        fault: what makes an encoder faulty, or gives another one.
        seen: the check that has to refuse it, by the precisions at which it has to be refused.
    """

    name: str
    component: str
    fault: Callable[[nn.Module], object]
    seen: dict[str, str]


def _parameter(encoder: nn.Module, name: str) -> Tensor:
    return encoder.get_parameter(name).detach()


def _by(fp32: str, half: str = "", int8: str = "") -> dict[str, str]:
    """The checks that have to refuse a mutant, by precision; at half precisions the same unless another is given."""
    return {"fp32": fp32} | dict.fromkeys(("fp16", "bf16"), half or fp32) | ({"int8": int8} if int8 else {})


# Weights.


def _off(encoder: nn.Module) -> None:
    _parameter(encoder, "encoders.1.feed_forward.w_1.weight")[5, 7] += 0.01


def _off_by_one_unit(encoder: nn.Module) -> None:
    weight = _parameter(encoder, "encoders.1.feed_forward.w_1.weight")
    weight.view(torch.int32 if weight.dtype == torch.float32 else torch.int16)[3, 4] += 1


def _transposed(encoder: nn.Module) -> None:
    weight = _parameter(encoder, "encoders.1.self_attn.linear_pos.weight")
    weight.copy_(weight.t().clone())


def _negated(encoder: nn.Module) -> None:
    _parameter(encoder, "after_norm.bias").neg_()


def _swap(one: Tensor, other: Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def _blocks_swapped(encoder: nn.Module) -> None:
    first, second = (_parameter(encoder, f"encoders.{number}.feed_forward.w_2.weight") for number in range(2))
    _swap(first, second)


def _biases_swapped(encoder: nn.Module) -> None:
    _swap(*(_parameter(encoder, f"encoders.0.self_attn.pos_bias_{name}") for name in "uv"))


def _queries_and_keys_swapped(encoder: nn.Module) -> None:
    queries, keys, _ = _parameter(encoder, "encoders.0.self_attn.linear_qkv.weight").chunk(3)
    _swap(queries, keys)


def _equal(encoder: nn.Module) -> None:
    first, second = (_parameter(encoder, f"encoders.{number}.feed_forward.w_1.weight") for number in range(2))
    second.copy_(first)


def _zero(encoder: nn.Module) -> None:
    _parameter(encoder, "encoders.1.self_attn.linear_out.weight").zero_()


def _up_layer_reversed(encoder: nn.Module) -> None:
    weight = _parameter(encoder, "up_layer.conv.weight")
    weight.copy_(weight.flip(2))


# Options.


def _limited_to_64(encoder: Any) -> None:
    """Lets a frame see the first 64 alone, which nobody notices who has no more."""
    encoder.static_chunk_size = 64


def _never_streaming(encoder: Any) -> None:
    encoder.offline_chunk_size = 0


def _another_chunk(encoder: Any) -> None:
    encoder.offline_chunk_size -= 1


def _another_streaming_chunk(encoder: Any) -> None:
    encoder.static_chunk_size += 1


def _without_a_chunk(encoder: Any) -> None:
    encoder.static_chunk_size = 0


def _another_activation(encoder: Any) -> None:
    encoder.encoders[1].feed_forward.activation = nn.GELU()


def _another_scale(encoder: Any) -> None:
    encoder.embed.scale *= 1.001


def _a_larger_eps(encoder: Any) -> None:
    encoder.encoders[1].get_submodule("norm2" if hasattr(encoder.encoders[1], "norm2") else "norm_ff").eps = 1e-5


def _norm_after(encoder: Any) -> None:
    encoder.encoders[0].normalize_before = False


# Positions, masks, branches.


def _positions(far: int) -> Callable[[nn.Module], None]:
    return lambda encoder: faulty.astray(encoder, far=far)


def _late_chunks(fault: str) -> Callable[[nn.Module], None]:
    return lambda encoder: faulty.astray(encoder, fault=fault)


def _position_scores(*, few: bool, right: int = 0) -> Callable[[nn.Module], None]:
    return _replaced(RelPositionMultiHeadedAttention, faulty.WrongPositionScores, few=few, right=right)


def _linear(*, one: bool) -> Callable[[nn.Module], None]:
    return _replaced(Linear, faulty.WrongLinear, one=one)


def _replaced(kind: type[nn.Module], wrong: type[nn.Module], **options: int) -> Callable[[nn.Module], None]:
    """Makes all modules of a kind wrong ones, which have options besides."""

    def make(encoder: nn.Module) -> None:
        for module in encoder.modules():
            if isinstance(module, kind):
                module.__class__ = wrong
                vars(module).update(options)

    return make


def _limited(kind: type[faulty.Streaming], limit: int) -> Callable[[nn.Module], nn.Module]:
    return lambda encoder: kind(encoder, limit)


def _quantized_in_bfloat16(encoder: nn.Module) -> None:
    quantize(encoder)
    encoder.bfloat16()


MUTANTS: Final = (
    # Weights, of an encoder that streams, one that does not, and one that doubles the frame rate.
    Mutant("a weight is off", "llm.llm", _off, _by(NUMBERS, WEIGHTS, WEIGHTS)),
    Mutant("a weight is off", "flow.encoder", _off, _by(NUMBERS, WEIGHTS)),
    Mutant("a weight is off by one unit", "llm.llm", _off_by_one_unit, _by(WEIGHTS)),
    Mutant("a weight is transposed", "llm.llm", _transposed, _by(NUMBERS, WEIGHTS, NUMBERS)),
    Mutant("a weight is transposed", "llm.text_encoder", _transposed, _by(NUMBERS, WEIGHTS)),
    Mutant("a bias is negated", "llm.llm", _negated, _by(NUMBERS, WEIGHTS, NUMBERS)),
    Mutant("the weights of two blocks are swapped", "llm.text_encoder", _blocks_swapped, _by(NUMBERS, WEIGHTS)),
    Mutant("the biases of positions are swapped", "flow.encoder", _biases_swapped, _by(NUMBERS, WEIGHTS)),
    Mutant("queries and keys are swapped", "flow.encoder", _queries_and_keys_swapped, _by(NUMBERS, WEIGHTS)),
    Mutant("two blocks have equal weights", "llm.llm", _equal, _by(NUMBERS, CODE, NUMBERS)),
    Mutant("a weight is zero", "flow.encoder", _zero, _by(NUMBERS, CODE)),
    Mutant("a convolution is reversed", "flow.encoder 2", _up_layer_reversed, _by(NUMBERS, WEIGHTS)),
    # Types and methods.
    Mutant("numbers are of bfloat16", "llm.llm", nn.Module.bfloat16, {"fp16": CODE}),
    Mutant("numbers are of bfloat16", "llm.llm", _quantized_in_bfloat16, {"int8": NUMBERS}),
    Mutant("results are of float64", "flow.encoder", faulty.Widening, _by(NUMBERS, CODE)),
    Mutant("a channel is lost", "flow.encoder", faulty.Shortening, _by(NUMBERS, CODE)),
    Mutant("it is wrong under autocast", "flow.encoder", faulty.WrongUnderAutocast, {"fp16": CODE, "bf16": CODE}),
    # Options that TorchScript writes into the code.
    Mutant("the activation is another", "llm.llm", _another_activation, _by(NUMBERS, CODE, CODE)),
    Mutant("the scale of inputs is another", "llm.text_encoder", _another_scale, _by(NUMBERS, CODE)),
    Mutant("the eps of a norm is larger", "llm.llm", _a_larger_eps, _by(CODE, int8=CODE)),
    Mutant("a norm comes after", "flow.encoder", _norm_after, _by(NUMBERS, CODE)),
    # Masks.
    Mutant("padding is seen", "flow.encoder", faulty.BlindToPadding, _by(NUMBERS, CODE)),
    Mutant("padding is said to be real", "flow.encoder", faulty.MaskingNothing, _by(NUMBERS, CODE)),
    Mutant("64 frames are seen alone", "flow.encoder", _limited_to_64, _by(CODE)),
    Mutant("chunks are not there", "llm.text_encoder", _without_a_chunk, _by(NUMBERS, CODE)),
    Mutant("late chunks see everything", "llm.text_encoder", _late_chunks("everything"), _by(NUMBERS, CODE)),
    Mutant("late chunks see too little", "llm.text_encoder", _late_chunks("too little"), _by(NUMBERS, CODE)),
    Mutant("late chunks see everything", "llm.llm", _late_chunks("everything"), _by(NUMBERS, CODE, NUMBERS)),
    Mutant("late chunks see everything", "flow.encoder 2", _late_chunks("everything"), _by(NUMBERS, CODE)),
    Mutant("late chunks see too little", "flow.encoder 2", _late_chunks("too little"), _by(NUMBERS, CODE)),
    Mutant("late chunks see everything", "flow.encoder.chunked", _late_chunks("everything"), _by(NUMBERS, CODE)),
    Mutant("late chunks see too little", "flow.encoder.chunked", _late_chunks("too little"), _by(NUMBERS, CODE)),
    Mutant("chunks are not there", "flow.encoder.chunked", _never_streaming, _by(NUMBERS, CODE)),
    Mutant("chunks are shorter", "flow.encoder.chunked", _another_chunk, _by(NUMBERS, CODE)),
    Mutant("chunks are longer", "flow.encoder 2", _another_streaming_chunk, _by(NUMBERS, CODE)),
    Mutant("streaming is ignored", "flow.encoder 2", faulty.NotStreaming, _by(NUMBERS, CODE)),
    Mutant("the context is ignored", "flow.encoder 2", faulty.WithoutContext, _by(NUMBERS, CODE)),
    # Branches.
    Mutant("one row is off", "llm.llm", _linear(one=True), _by(NUMBERS, CODE)),
    Mutant("several rows are off", "llm.llm", _linear(one=False), _by(NUMBERS, CODE)),
    Mutant("few queries are off", "flow.encoder", _position_scores(few=True), _by(NUMBERS, CODE)),
    Mutant("many queries are off", "flow.encoder", _position_scores(few=False), _by(NUMBERS, CODE)),
    Mutant("few queries are off", "flow.encoder 2", _position_scores(few=True), _by(NUMBERS, CODE)),
    Mutant("many queries are off", "flow.encoder 2", _position_scores(few=False), _by(NUMBERS, CODE)),
    Mutant("few queries of a batch are off", "llm.llm", _position_scores(few=True, right=1), _by(NUMBERS, CODE)),
    Mutant("many queries of a batch are off", "llm.llm", _position_scores(few=False, right=1), _by(NUMBERS, CODE)),
    # Positions. Beyond the frames of the calls, the code is compared.
    *(
        Mutant(f"positions beyond {far:,} are wrong", name, _positions(far), seen)
        for far, name, seen in [
            (20, "llm.llm", _by(NUMBERS, CODE, CODE)),
            (20, "llm.text_encoder", _by(CODE)),
            (20, "flow.encoder 2", _by(NUMBERS, CODE)),
            (200, "llm.llm", _by(NUMBERS, CODE, CODE)),
            (500, "llm.llm", _by(NUMBERS, CODE, CODE)),
            (1000, "llm.llm", _by(NUMBERS, CODE, CODE)),
            (2000, "llm.llm", _by(CODE, int8=CODE)),
            (5000, "llm.llm", _by(CODE, int8=CODE)),
            *((far, "llm.text_encoder", _by(CODE)) for far in (200, 500, 2000, 5000)),
            *((far, "flow.encoder", _by(CODE)) for far in (200, 500, 2000, 5000)),
            *((far, "flow.encoder 2", _by(CODE)) for far in (200, 500, 2000, 5000)),
        ]
    ),
    Mutant("2,000 frames back are seen", "llm.llm", _limited(faulty.ShortOfMemory, 2000), _by(CODE, int8=CODE)),
    # Caches.
    *(
        Mutant(name, "llm.llm", fault, _by(NUMBERS, CODE, int8))
        for name, fault, int8 in [
            ("the latest frame is forgotten", faulty.Forgetful, NUMBERS),
            ("the cache is ignored", faulty.Unremembering, NUMBERS),
            ("20 frames back are seen", _limited(faulty.ShortOfMemory, 20), NUMBERS),
            ("500 frames back are seen", _limited(faulty.ShortOfMemory, 500), CODE),
            ("1,000 frames back are seen", _limited(faulty.ShortOfMemory, 1000), CODE),
            ("a mask is ignored", faulty.Unmasked, CODE),
            ("a number of the cache is off", faulty.Mislaying, NUMBERS),
            ("a cache is cut to 20", _limited(faulty.Cutting, 20), NUMBERS),
            ("a cache is cut to 500", _limited(faulty.Cutting, 500), NUMBERS),
            ("a cache is shifted beyond 20", _limited(faulty.Shifting, 20), NUMBERS),
            ("a cache is shifted beyond 500", _limited(faulty.Shifting, 500), NUMBERS),
            ("a call raises", faulty.Raising, NUMBERS),
        ]
    ),
)
