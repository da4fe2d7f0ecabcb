"""The tensors of an estimator by their published names, derived from its options without torch."""

from collections.abc import Mapping
from typing import Any, Final

from cosyjit.encoders.parameters import Parameter, Parameters, convolution, linear, norm
from cosyjit.estimators.options import DiTOptions, UNetOptions, features, options_of

TIME_SINUSOIDS: Final = 256
"""The size of a diffusion transformer's sinusoids of the time, before its embedding. A U-Net's is `in_channels`."""
POSITION_KERNEL: Final = 31
POSITION_GROUPS: Final = 16
"""The convolutions that give a diffusion transformer its positions."""


def parameters(class_name: str, options: Mapping[str, Any]) -> dict[str, Parameter]:
    """The tensors in the `state_dict` of an estimator.

    Args:
        class_name: a key of `cosyjit.estimators.options.TABLES`.
        options: the configuration's options for it.

    Raises:
        UnsupportedOptionError: as `options_of`.
    """
    known = options_of(class_name, options)
    return dict(_unet(known) if isinstance(known, UNetOptions) else _dit(known))


def parameters_of_file(class_name: str, options: Mapping[str, Any]) -> dict[str, Parameter]:
    """The tensors of an estimator of which an ONNX file can be made; for the arguments see `parameters`.

    Raises:
        UnsupportedOptionError: as `parameters`; or the inputs are not those of a file.
    """
    features(options_of(class_name, options))
    return parameters(class_name, options)


def _unet(options: UNetOptions) -> Parameters:
    widths, time = options.channels, options.time_channels
    last = len(widths) - 1
    yield from linear("time_mlp.linear_1.", options.in_channels, time)
    yield from linear("time_mlp.linear_2.", time, time)
    for number, (inputs, outputs) in enumerate(zip((options.in_channels, *widths), widths, strict=False)):
        name = f"down_blocks.{number}."
        yield from _stage(name, inputs, outputs, options)
        yield from convolution(f"{name}2.{'conv.' * (number < last)}", outputs, outputs, 3)
    for number in range(options.num_mid_blocks):
        yield from _stage(f"mid_blocks.{number}.", widths[-1], widths[-1], options)
    upward = widths[::-1]
    for number, (inputs, outputs) in enumerate(zip(upward, (*upward[1:], widths[0]), strict=True)):
        name = f"up_blocks.{number}."
        yield from _stage(name, 2 * inputs, outputs, options)
        resampled = number < last
        yield from convolution(f"{name}2.{'conv.' * resampled}", outputs, outputs, 4 if resampled else 3)
    yield from _block("final_block.block.", widths[0], widths[0], options)
    yield from convolution("final_proj.", widths[0], options.out_channels, 1)


def _stage(name: str, inputs: int, outputs: int, options: UNetOptions) -> Parameters:
    """A residual block and the transformer blocks behind it."""
    yield from linear(f"{name}0.mlp.1.", options.time_channels, outputs)
    yield from _block(f"{name}0.block1.block.", inputs, outputs, options)
    yield from _block(f"{name}0.block2.block.", outputs, outputs, options)
    yield from convolution(f"{name}0.res_conv.", inputs, outputs, 1)
    for number in range(options.n_blocks):
        yield from _transformer(f"{name}1.{number}.", outputs, options)


def _block(name: str, inputs: int, outputs: int, options: UNetOptions) -> Parameters:
    yield from convolution(f"{name}0.", inputs, outputs, 3)
    yield from norm(f"{name}{2 if options.causal else 1}.", outputs)


def _transformer(name: str, size: int, options: UNetOptions) -> Parameters:
    inner, widened = options.num_heads * options.attention_head_dim, 4 * size
    yield from norm(f"{name}norm1.", size)
    for projection in ("to_q", "to_k", "to_v"):
        yield from linear(f"{name}attn1.{projection}.", size, inner, bias=False)
    yield from linear(f"{name}attn1.to_out.0.", inner, size)
    yield from norm(f"{name}norm3.", size)
    yield from linear(f"{name}ff.net.0.proj.", size, 2 * widened if options.act_fn == "geglu" else widened)
    if options.act_fn == "snakebeta":
        yield f"{name}ff.net.0.alpha", Parameter((widened,))
        yield f"{name}ff.net.0.beta", Parameter((widened,))
    yield from linear(f"{name}ff.net.2.", widened, size)


def _dit(options: DiTOptions) -> Parameters:
    size = options.dim
    yield from linear("time_embed.time_mlp.0.", TIME_SINUSOIDS, size)
    yield from linear("time_embed.time_mlp.2.", size, size)
    yield from linear("input_embed.proj.", 2 * options.mel_dim + options.mu_dim + options.spk_dim, size)
    for layer in ("conv1", "conv2"):
        name = f"input_embed.conv_pos_embed.{layer}.0."
        yield from convolution(name, size // POSITION_GROUPS, size, POSITION_KERNEL)
    yield "rotary_embed.inv_freq", Parameter((options.dim_head // 2,))
    for number in range(options.depth):
        yield from _dit_block(f"transformer_blocks.{number}.", options)
    if options.long_skip_connection:
        yield from linear("long_skip_connection.", 2 * size, size, bias=False)
    yield from linear("norm_out.linear.", size, 2 * size)
    yield from linear("proj_out.", size, options.mel_dim)


def _dit_block(name: str, options: DiTOptions) -> Parameters:
    size, inner = options.dim, options.heads * options.dim_head
    yield from linear(f"{name}attn_norm.linear.", size, 6 * size)
    for projection in ("to_q", "to_k", "to_v"):
        yield from linear(f"{name}attn.{projection}.", size, inner)
    yield from linear(f"{name}attn.to_out.0.", inner, size)
    yield from linear(f"{name}ff.ff.0.0.", size, options.ff_mult * size)
    yield from linear(f"{name}ff.ff.2.", options.ff_mult * size, size)
