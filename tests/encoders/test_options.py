"""Options of encoders: the defaults, what is supported, and what is said of the rest."""

import pickle
from collections.abc import Iterator
from typing import Any, Final

import pytest

from cosyjit.encoders.options import (
    CONFORMER,
    TRANSFORMER,
    UPSAMPLE_CONFORMER,
    EncoderOptions,
    parse_options,
)
from cosyjit.encoders.registry import ENCODERS, build_encoder
from cosyjit.errors import ConfigError, UnsupportedOptionError
from tests.encoders import vectors

TABLES: Final = {"transformer": TRANSFORMER, "conformer": CONFORMER, "upsample": UPSAMPLE_CONFORMER}

_CONFORMERS: Final = ("conformer", "upsample")

_NEEDED: Final = {
    "input_layer": "linear",
    "pos_enc_layer_type": "rel_pos_espnet",
    "selfattention_layer_type": "rel_selfattn",
}
ENOUGH: Final[dict[str, dict[str, Any]]] = {
    "transformer": _NEEDED | {"input_size": 80},
    "conformer": _NEEDED | {"input_size": 80},
    "upsample": _NEEDED | {"input_size": 512, "output_size": 512},
}
"""The options that each encoder cannot do without, as their defaults are missing or not supported."""

_COUNT: Final = "an integer from 1 to 65536"
_RATE: Final = "a number from 0 to 1"
_FLAG: Final = "true or false"
_ACTIVATIONS: Final = "relu or swish or gelu or tanh or selu or hardtanh"

UNSUPPORTED: Final[dict[str, tuple[str, list[Any]]]] = {
    "input_size": (_COUNT, [0, -80, 10**9, 80.0, "eighty", True, None]),
    "output_size": ("an integer from 2 to 65536", [0, 1, 65_538, 10**50, -2, 256.0, "many", True, None]),
    "attention_heads": (_COUNT, [0, -4, 10**9, 4.0, "four", True, None]),
    "linear_units": (_COUNT, [0, -1, 65_537, 10**18, 2048.0, "lots", True, None]),
    "num_blocks": ("an integer from 1 to 1000", [0, -6, 1_001, 10**9, 6.0, "six", True, None]),
    "dropout_rate": (_RATE, [-0.1, 1.1, 2, float("nan"), "some", True, None]),
    "positional_dropout_rate": (_RATE, [-0.1, 1.1, 2, float("nan"), "some", True, None]),
    "attention_dropout_rate": (_RATE, [-0.1, 1.1, 2, float("nan"), "some", True, None]),
    "input_layer": ("linear or linear_legacy", ["conv2d", "conv2d2", "embed", "Linear", "", 1, False, None]),
    "normalize_before": (_FLAG, [0, 1, "yes", None]),
    "static_chunk_size": ("an integer from 0 to 65536", [-1, 10**9, 1.0, "one", False, True, None]),
    "use_dynamic_chunk": ("false", [True, 0, "no", None]),
    "global_cmvn": ("null", ["cmvn.json", False, 0]),
    "use_dynamic_left_chunk": ("false", [True, 0, "no", None]),
    "gradient_checkpointing": (_FLAG, [0, 1, "yes", None]),
    "key_bias": (_FLAG, [0, 1, "yes", None]),
    "pos_enc_layer_type": ("rel_pos_espnet", ["abs_pos", "rel_pos", "no_pos", "abs_pos_whisper", "", True, None]),
    "selfattention_layer_type": ("rel_selfattn", ["selfattn", "flash", "", True, None]),
    "activation_type": (_ACTIVATIONS, ["mish", "snake", "ReLU", "", True, None]),
}
CONFORMER_UNSUPPORTED: Final[dict[str, tuple[str, list[Any]]]] = {
    "positionwise_conv_kernel_size": ("1", [0, 3, "one", True, None]),
    "macaron_style": (_FLAG, [0, 1, "yes", None]),
    "use_cnn_module": (_FLAG, [0, 1, "yes", None]),
    "cnn_module_kernel": (_COUNT, [0, -15, 10**9 + 1, 15.0, "wide", True, None]),
    "cnn_module_norm": ("batch_norm or layer_norm", ["group_norm", "rms_norm", "", True, None]),
    "causal": (_FLAG, [0, 1, "yes", None]),
}
UPSAMPLE_UNSUPPORTED: Final[dict[str, tuple[str, list[Any]]]] = {
    "input_size": ("512", [80, 511, 1024, "wide", True, None]),
    "output_size": ("512", [256, 514, 1024, "wide", True, None]),
}
OF_ENCODER: Final = {
    "transformer": UNSUPPORTED,
    "conformer": UNSUPPORTED | CONFORMER_UNSUPPORTED,
    "upsample": UNSUPPORTED | CONFORMER_UNSUPPORTED | UPSAMPLE_UNSUPPORTED,
}
"""What is supported in words, and values that are not, by encoder and option."""


def _shown(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _unsupported() -> Iterator[Any]:
    for encoder, options in OF_ENCODER.items():
        for option, (supported, values) in options.items():
            for value in values:
                yield pytest.param(encoder, option, value, supported, id=f"{encoder}-{option}-{_shown(value)}")


def refused(encoder: str, **options: Any) -> UnsupportedOptionError:
    """The error for these options beside enough others."""
    with pytest.raises(UnsupportedOptionError) as caught:
        parse_options(TABLES[encoder], ENOUGH[encoder] | options)
    return caught.value


def assert_says(error: UnsupportedOptionError, option: str, shown: str, supported: str) -> None:
    """The error names all three, in its attributes and in one line."""
    assert (error.option, error.supported) == (option, supported)
    assert shown in error.value
    message = str(error)
    assert f"option {option} is {error.value}" in message
    assert f"supported: {supported}" in message
    assert "\n" not in message


@pytest.mark.parametrize("encoder", TABLES)
def test_every_option_is_tried(encoder: str) -> None:
    assert TABLES[encoder].keys() == OF_ENCODER[encoder].keys()


@pytest.mark.parametrize(("encoder", "option", "value", "supported"), list(_unsupported()))
def test_an_unsupported_value(encoder: str, option: str, value: Any, supported: str) -> None:
    error = refused(encoder, **{option: value})
    assert_says(error, option, _shown(value), supported)
    assert "default" not in str(error)


@pytest.mark.parametrize("option", ["input_size", "output_size"])
def test_a_fraction_for_a_fixed_size(option: str) -> None:
    assert_says(refused("upsample", **{option: 512.0}), option, "512.0", "512")


@pytest.mark.parametrize(
    ("encoder", "option", "default"),
    [
        *((encoder, "input_layer", "conv2d") for encoder in TABLES),
        ("transformer", "pos_enc_layer_type", "abs_pos"),
        *((encoder, "pos_enc_layer_type", "rel_pos") for encoder in _CONFORMERS),
        ("transformer", "selfattention_layer_type", "selfattn"),
        ("upsample", "output_size", "256"),
    ],
)
def test_an_unsupported_default_is_said_to_be_one(encoder: str, option: str, default: str) -> None:
    given = {name: value for name, value in ENOUGH[encoder].items() if name != option}
    with pytest.raises(UnsupportedOptionError) as caught:
        parse_options(TABLES[encoder], given)
    assert_says(caught.value, option, f"{default} (the default)", OF_ENCODER[encoder][option][0])


@pytest.mark.parametrize("encoder", TABLES)
def test_a_missing_option(encoder: str) -> None:
    given = {name: value for name, value in ENOUGH[encoder].items() if name != "input_size"}
    with pytest.raises(UnsupportedOptionError) as caught:
        parse_options(TABLES[encoder], given)
    assert_says(caught.value, "input_size", "missing", OF_ENCODER[encoder]["input_size"][0])


@pytest.mark.parametrize(
    ("encoder", "option"),
    [
        *((encoder, "num_layers") for encoder in TABLES),
        *((encoder, "") for encoder in TABLES),
        *(("transformer", option) for option in CONFORMER_UNSUPPORTED),
    ],
)
def test_an_unknown_option(encoder: str, option: str) -> None:
    error = refused(encoder, **{option: 7})
    assert_says(error, option, "7", error.supported)
    assert all(known in str(error) for known in TABLES[encoder])


@pytest.mark.parametrize(("size", "heads"), [(256, 3), (256, 512), (6, 4)])
@pytest.mark.parametrize("encoder", ["transformer", "conformer"])
def test_heads_that_do_not_divide_the_size(encoder: str, size: int, heads: int) -> None:
    error = refused(encoder, output_size=size, attention_heads=heads)
    assert_says(error, "attention_heads", str(heads), f"a divisor of output_size, {size}")


def test_default_heads_that_do_not_divide_the_size() -> None:
    error = refused("transformer", output_size=10)
    assert_says(error, "attention_heads", "4", "a divisor of output_size, 10")


@pytest.mark.parametrize("encoder", ["transformer", "conformer"])
def test_an_odd_size(encoder: str) -> None:
    assert_says(refused(encoder, output_size=15, attention_heads=3), "output_size", "15", "an even number")


@pytest.mark.parametrize("kernel", [2, 16])
@pytest.mark.parametrize("encoder", _CONFORMERS)
def test_an_even_kernel_has_no_centre(encoder: str, kernel: int) -> None:
    error = refused(encoder, cnn_module_kernel=kernel)
    assert_says(error, "cnn_module_kernel", str(kernel), "an odd number, or causal: true")
    for fit in ({"causal": True}, {"use_cnn_module": False}):
        options = parse_options(TABLES[encoder], ENOUGH[encoder] | {"cnn_module_kernel": kernel, **fit})
        assert options.cnn_module_kernel == kernel


def test_defaults_of_the_transformer() -> None:
    assert parse_options(TRANSFORMER, ENOUGH["transformer"]) == EncoderOptions(
        input_size=80,
        output_size=256,
        attention_heads=4,
        linear_units=2048,
        num_blocks=6,
        input_layer="linear",
        normalize_before=True,
        static_chunk_size=0,
        key_bias=True,
        activation_type="relu",
    )


@pytest.mark.parametrize("encoder", _CONFORMERS)
def test_defaults_of_the_conformers(encoder: str) -> None:
    without_attention = {k: v for k, v in ENOUGH[encoder].items() if k != "selfattention_layer_type"}
    assert parse_options(TABLES[encoder], without_attention) == EncoderOptions(
        input_size=ENOUGH[encoder]["input_size"],
        output_size=ENOUGH[encoder].get("output_size", 256),
        attention_heads=4,
        linear_units=2048,
        num_blocks=6,
        input_layer="linear",
        normalize_before=True,
        static_chunk_size=0,
        key_bias=True,
        activation_type="swish",
        macaron_style=True,
        use_cnn_module=True,
        cnn_module_kernel=15,
        cnn_module_norm="batch_norm",
        causal=False,
    )


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("input_layer", ["linear", "linear_legacy"]),
        ("activation_type", ["relu", "swish", "gelu", "tanh", "selu", "hardtanh"]),
        ("normalize_before", [True, False]),
        ("key_bias", [True, False]),
        ("static_chunk_size", [0, 1, 25]),
        ("macaron_style", [True, False]),
        ("use_cnn_module", [True, False]),
        ("cnn_module_kernel", [1, 31]),
        ("cnn_module_norm", ["batch_norm", "layer_norm"]),
        ("causal", [True, False]),
    ],
)
def test_supported_values_are_taken_over(option: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(parse_options(CONFORMER, ENOUGH["conformer"] | {option: value}), option) == value


@pytest.mark.parametrize(
    "harmless",
    [
        {"dropout_rate": 0},
        {"positional_dropout_rate": 1},
        {"attention_dropout_rate": 0.5},
        {"gradient_checkpointing": True},
        {"use_dynamic_chunk": False, "use_dynamic_left_chunk": False, "global_cmvn": None},
    ],
)
@pytest.mark.parametrize("encoder", TABLES)
def test_options_without_effect_on_inference_change_nothing(encoder: str, harmless: dict[str, Any]) -> None:
    expected = parse_options(TABLES[encoder], ENOUGH[encoder])
    assert parse_options(TABLES[encoder], ENOUGH[encoder] | harmless) == expected


def test_every_encoder_is_registered_with_its_options() -> None:
    assert {name: entry.options for name, entry in ENCODERS.items()} == {
        vectors.TRANSFORMER: TRANSFORMER,
        vectors.CONFORMER: CONFORMER,
        vectors.UPSAMPLE_CONFORMER: UPSAMPLE_CONFORMER,
    }


@pytest.mark.parametrize("class_name", ENCODERS)
def test_building_checks_the_options(class_name: str) -> None:
    with pytest.raises(UnsupportedOptionError, match="option input_layer is embed"):
        build_encoder(class_name, ENOUGH["upsample"] | {"input_layer": "embed"})


@pytest.mark.parametrize("where", ["", "model/cosyvoice.yaml: llm.llm"])
def test_the_error_survives_pickling(where: str) -> None:
    error = refused("transformer", input_layer="conv2d")
    error = UnsupportedOptionError(error.option, error.value, error.supported, where)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnsupportedOptionError
    assert isinstance(again, ConfigError)
    assert str(again) == str(error)
    assert str(again).startswith(where or "option input_layer")
    assert vars(again) == vars(error)
