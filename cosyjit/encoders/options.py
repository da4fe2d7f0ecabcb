"""The options that a configuration may give an encoder: their names, defaults and supported values."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

from cosyjit.errors import UnsupportedOptionError


@dataclass(frozen=True)
class EncoderOptions:
    """The checked options of an encoder that decide what it computes. Sizes are in channels, chunks in frames."""

    input_size: int
    output_size: int
    attention_heads: int
    linear_units: int
    num_blocks: int
    input_layer: str
    normalize_before: bool
    static_chunk_size: int
    key_bias: bool
    activation_type: str
    macaron_style: bool = False
    use_cnn_module: bool = False
    cnn_module_kernel: int = 15
    cnn_module_norm: str = "batch_norm"
    causal: bool = False
    always_streaming: bool = False
    """Configurations do not have this one; see `cosyjit.families.Component.overrides`."""


class Option(NamedTuple):
    """An option: its default (`REQUIRED` for none), its supported values in words, and the test for them."""

    default: Any
    supported: str
    accepts: Callable[[Any], bool]


REQUIRED: Final = object()
SHOWN: Final = 100
"""How much of a value a message quotes, in characters."""
_AMBIGUOUS: Final = re.compile(r"|[-+.]?[0-9].*|true|false|null|~", re.IGNORECASE)
"""A text that YAML would not read as a text without quotes."""


def yaml(value: Any) -> str:
    """The value in the form of YAML, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    text = repr(value) if isinstance(value, str) and _AMBIGUOUS.fullmatch(value) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _integer(default: Any, least: int, most: int = 65_536) -> Option:
    """An option that is an integer. It is bounded, so that the encoder can be built."""
    words = f"an integer from {least} to {most}"
    return Option(default, words, lambda value: _is_number(value, int) and least <= value <= most)


def one_of(default: Any, *supported: Any) -> Option:
    """An option that is one of some values."""

    def accepts(value: Any) -> bool:
        # In Python, though not in a configuration, 1 equals true, and 1.0 as well.
        return any(type(value) is type(each) and value == each for each in supported)

    return Option(default, " or ".join(map(yaml, supported)), accepts)


def rate(default: float) -> Option:
    """An option that is a number from 0 to 1."""
    return Option(default, "a number from 0 to 1", lambda value: _is_number(value, (int, float)) and 0 <= value <= 1)


def flag(default: bool) -> Option:
    """An option that is true or false."""
    return one_of(default, True, False)


_ACTIVATIONS: Final = ("relu", "swish", "gelu", "tanh", "selu", "hardtanh")

_COMMON: Final[dict[str, Option]] = {
    "input_size": _integer(REQUIRED, 1),
    "output_size": _integer(256, 2),
    "attention_heads": _integer(4, 1),
    "linear_units": _integer(2048, 1),
    "num_blocks": _integer(6, 1, most=1_000),
    "dropout_rate": rate(0.1),
    "positional_dropout_rate": rate(0.1),
    "attention_dropout_rate": rate(0.0),
    "input_layer": one_of("conv2d", "linear", "linear_legacy"),
    "normalize_before": flag(True),
    "static_chunk_size": _integer(0, 0),
    "use_dynamic_chunk": one_of(False, False),
    "global_cmvn": one_of(None, None),
    "use_dynamic_left_chunk": one_of(False, False),
    "gradient_checkpointing": flag(False),
    "key_bias": flag(True),
}

TRANSFORMER: Final = _COMMON | {
    "pos_enc_layer_type": one_of("abs_pos", "rel_pos_espnet"),
    "selfattention_layer_type": one_of("selfattn", "rel_selfattn"),
    "activation_type": one_of("relu", *_ACTIVATIONS),
}

CONFORMER: Final = _COMMON | {
    "pos_enc_layer_type": one_of("rel_pos", "rel_pos_espnet"),
    "selfattention_layer_type": one_of("rel_selfattn", "rel_selfattn"),
    "activation_type": one_of("swish", *_ACTIVATIONS),
    "positionwise_conv_kernel_size": one_of(1, 1),
    "macaron_style": flag(True),
    "use_cnn_module": flag(True),
    "cnn_module_kernel": _integer(15, 1),
    "cnn_module_norm": one_of("batch_norm", "batch_norm", "layer_norm"),
    "causal": flag(False),
}

UPSAMPLE_CONFORMER: Final = CONFORMER | {
    "input_size": one_of(REQUIRED, 512),
    "output_size": one_of(256, 512),
}

TABLES: Final[dict[str, dict[str, Option]]] = {
    "cosyvoice.transformer.encoder.TransformerEncoder": TRANSFORMER,
    "cosyvoice.transformer.encoder.ConformerEncoder": CONFORMER,
    "cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder": UPSAMPLE_CONFORMER,
}
"""The options by the class names that configurations use."""


def parse_options(known: Mapping[str, Option], given: Mapping[str, Any]) -> EncoderOptions:
    """The checked options of an encoder, defaults filled in.

    Args:
        known: `TRANSFORMER`, `CONFORMER` or `UPSAMPLE_CONFORMER`.
        given: option names to values, as the configuration has them.

    Raises:
        UnsupportedOptionError: an option is unknown or missing, or has an unsupported value.
    """
    values = checked(known, given)
    options = EncoderOptions(**{f.name: values[f.name] for f in fields(EncoderOptions) if f.name in values})
    _check_together(options)
    return options


def checked(known: Mapping[str, Option], given: Mapping[str, Any], show: Callable[[Any], str] = yaml) -> dict[str, Any]:
    """The value of each known option, defaults filled in.

    Args:
        known: the options by their names.
        given: option names to values, as the configuration has them.
        show: a value as messages quote it.

    Raises:
        UnsupportedOptionError: an option is unknown or missing, or has an unsupported value.
    """
    for name, value in given.items():
        if name not in known:
            raise UnsupportedOptionError(name, show(value), f"the options are {', '.join(sorted(known))}")
    values = {}
    for name, option in known.items():
        value = given.get(name, option.default)
        if value is REQUIRED:
            raise UnsupportedOptionError(name, "missing", option.supported)
        if not option.accepts(value):
            shown = show(value) + ("" if name in given else " (the default)")
            raise UnsupportedOptionError(name, shown, option.supported)
        values[name] = value
    return values


def _check_together(options: EncoderOptions) -> None:
    size, heads, kernel = options.output_size, options.attention_heads, options.cnn_module_kernel
    if size % 2:
        raise UnsupportedOptionError("output_size", str(size), "an even number")
    if size % heads:
        raise UnsupportedOptionError("attention_heads", str(heads), f"a divisor of output_size, {size}")
    if options.use_cnn_module and not options.causal and kernel % 2 == 0:
        raise UnsupportedOptionError("cnn_module_kernel", str(kernel), "an odd number, or causal: true")
