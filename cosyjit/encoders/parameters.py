"""The tensors of an encoder by their published names, derived from its options without torch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from cosyjit.encoders.options import TABLES, EncoderOptions, parse_options


class Parameter(NamedTuple):
    """A parameter or buffer: its shape, and its type by torch's name, or "" for any floating-point type."""

    shape: tuple[int, ...]
    dtype: str = ""


Parameters = Iterator[tuple[str, Parameter]]


def parameters(class_name: str, options: Mapping[str, Any]) -> dict[str, Parameter]:
    """The tensors in the `state_dict` of an encoder.

    Args:
        class_name: a key of `TABLES`.
        options: the configuration's options for it.

    Raises:
        UnsupportedOptionError: an option is unknown or missing, or has an unsupported value.
    """
    describe = _ENCODERS[class_name.rpartition(".")[2]]
    return dict(describe(parse_options(TABLES[class_name], options)))


def _transformer(options: EncoderOptions) -> Parameters:
    yield from _layers(options, _transformer_block)


def _conformer(options: EncoderOptions) -> Parameters:
    yield from _layers(options, _conformer_block)


def _upsample_conformer(options: EncoderOptions) -> Parameters:
    size = options.output_size
    yield from convolution("pre_lookahead_layer.conv1.", size, size, 4)
    yield from convolution("pre_lookahead_layer.conv2.", size, size, 3)
    yield from convolution("up_layer.conv.", size, size, 5)
    yield from _input("up_embed.", options)
    for number in range(4):
        yield from _conformer_block(f"up_encoders.{number}.", options)
    yield from _layers(options, _conformer_block)


def _layers(options: EncoderOptions, block: Callable[[str, EncoderOptions], Parameters]) -> Parameters:
    yield from _input("embed.", options)
    for number in range(options.num_blocks):
        yield from block(f"encoders.{number}.", options)
    yield from norm("after_norm.", options.output_size)


def _input(name: str, options: EncoderOptions) -> Parameters:
    yield from linear(f"{name}out.0.", options.input_size, options.output_size)
    yield from norm(f"{name}out.1.", options.output_size)


def _transformer_block(name: str, options: EncoderOptions) -> Parameters:
    yield from _attention(f"{name}self_attn.", options)
    yield from _feed_forward(f"{name}feed_forward.", options)
    yield from _norms(name, ("norm1", "norm2"), options.output_size)


def _conformer_block(name: str, options: EncoderOptions) -> Parameters:
    yield from _attention(f"{name}self_attn.", options)
    yield from _feed_forward(f"{name}feed_forward.", options)
    yield from _norms(name, ("norm_mha", "norm_ff"), options.output_size)
    if options.macaron_style:
        yield from _feed_forward(f"{name}feed_forward_macaron.", options)
        yield from _norms(name, ("norm_ff_macaron",), options.output_size)
    if options.use_cnn_module:
        yield from _convolution_module(f"{name}conv_module.", options)
        yield from _norms(name, ("norm_conv", "norm_final"), options.output_size)


def _attention(name: str, options: EncoderOptions) -> Parameters:
    size, heads = options.output_size, options.attention_heads
    for projection in ("linear_q", "linear_k", "linear_v", "linear_out"):
        yield from linear(f"{name}{projection}.", size, size, bias=projection != "linear_k" or options.key_bias)
    yield from linear(f"{name}linear_pos.", size, size, bias=False)
    for bias in ("pos_bias_u", "pos_bias_v"):
        yield f"{name}{bias}", Parameter((heads, size // heads))


def _feed_forward(name: str, options: EncoderOptions) -> Parameters:
    yield from linear(f"{name}w_1.", options.output_size, options.linear_units)
    yield from linear(f"{name}w_2.", options.linear_units, options.output_size)


def _convolution_module(name: str, options: EncoderOptions) -> Parameters:
    size = options.output_size
    yield from convolution(f"{name}pointwise_conv1.", size, 2 * size, 1)
    yield from convolution(f"{name}depthwise_conv.", 1, size, options.cnn_module_kernel)
    yield from convolution(f"{name}pointwise_conv2.", size, size, 1)
    yield from norm(f"{name}norm.", size)
    if options.cnn_module_norm == "batch_norm":
        yield f"{name}norm.running_mean", Parameter((size,))
        yield f"{name}norm.running_var", Parameter((size,))
        yield f"{name}norm.num_batches_tracked", Parameter((), "int64")


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Parameters:
    """The tensors of a linear layer, whose names begin with `name`."""
    yield f"{name}weight", Parameter((outputs, inputs))
    if bias:
        yield f"{name}bias", Parameter((outputs,))


def convolution(name: str, inputs: int, outputs: int, kernel: int) -> Parameters:
    """The tensors of a convolution over time; the channels of inputs are those of a group."""
    yield f"{name}weight", Parameter((outputs, inputs, kernel))
    yield f"{name}bias", Parameter((outputs,))


def norm(name: str, size: int) -> Parameters:
    """The tensors of a norm that has a weight and a bias."""
    yield f"{name}weight", Parameter((size,))
    yield f"{name}bias", Parameter((size,))


def _norms(name: str, norms: tuple[str, ...], size: int) -> Parameters:
    for each in norms:
        yield from norm(f"{name}{each}.", size)


_ENCODERS: Final = {
    "TransformerEncoder": _transformer,
    "ConformerEncoder": _conformer,
    "UpsampleConformerEncoder": _upsample_conformer,
}
"""The functions that describe encoders, by the last part of the class's name."""
