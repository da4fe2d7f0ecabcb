"""Options of estimators: the defaults, what is supported, and what is said of the rest."""

from collections.abc import Iterator
from typing import Any, Final

import pytest

from cosyjit.errors import UnsupportedOptionError
from cosyjit.estimators.options import TABLES, DiTOptions, UNetOptions, options_of
from cosyjit.estimators.registry import build_estimator
from tests.estimators.vectors import CAUSAL_UNET, DIT, UNET

ENOUGH: Final[dict[str, dict[str, Any]]] = {
    UNET: {"in_channels": 320, "out_channels": 80, "act_fn": "gelu"},
    CAUSAL_UNET: {"in_channels": 320, "out_channels": 80, "act_fn": "gelu"},
    DIT: {"dim": 1024},
}
"""The options that each estimator cannot do without, as their defaults are missing or not supported."""

_COUNT: Final = "an integer from 1 to 65536"
_NOT_COUNTS: Final = [0, -4, 65_537, 10**50, 4.0, "four", "4", True, None, [4]]
_RATE: Final = "a number from 0 to 1"
_NOT_RATES: Final = [-0.1, 1.1, 2, float("nan"), "some", True, None]
_WIDTHS: Final = "a list of 1 to 16 multiples of 8 from 8 to 65536"
_OR_NULL: Final = f"{_COUNT}, or null"
_NOT_OR_NULL: Final = [0, -80, 65_537, 80.0, "all", True, [80]]
_ACTIVATIONS: Final = "gelu or gelu-approximate or geglu or geglu-approximate or snakebeta"

_STREAMING: Final[dict[str, tuple[str, list[Any]]]] = {
    "static_chunk_size": ("an integer from 0 to 65536", [-1, 65_537, 1.0, "one", True, None]),
    "num_decoding_left_chunks": ("an integer from -1 to 65536", [-2, 65_537, 1.0, "all", False, None]),
}
_UNET: Final[dict[str, tuple[str, list[Any]]]] = {
    "in_channels": ("a multiple of 2 from 4 to 65536", [0, 2, 319, 65_538, 320.0, "many", True, None]),
    "out_channels": (_COUNT, _NOT_COUNTS),
    "channels": (
        _WIDTHS,
        [[], 256, [12], [256, 0], [256, -8], [256.0], [True], ["wide"], [8] * 17, {}, "8", None],
    ),
    "dropout": (_RATE, _NOT_RATES),
    "attention_head_dim": (_COUNT, _NOT_COUNTS),
    "n_blocks": ("an integer from 0 to 100", [-1, 101, 1.0, "one", True, None]),
    "num_mid_blocks": ("an integer from 0 to 100", [-1, 101, 1.0, "one", True, None]),
    "num_heads": (_COUNT, _NOT_COUNTS),
    "act_fn": (_ACTIVATIONS, ["snake", "relu", "GELU", "", True, None, 1, ["gelu"]]),
}
UNSUPPORTED: Final[dict[str, dict[str, tuple[str, list[Any]]]]] = {
    UNET: _UNET,
    CAUSAL_UNET: _UNET | _STREAMING,
    DIT: {
        "dim": ("a multiple of 16 from 16 to 65536", [0, 8, 100, 1024.0, "wide", True, None]),
        "depth": ("an integer from 0 to 1000", [-1, 1_001, 22.0, "deep", True, None]),
        "heads": (_COUNT, _NOT_COUNTS),
        "dim_head": ("a multiple of 2 from 2 to 65536", [0, 1, 63, 64.0, "wide", True, None]),
        "dropout": (_RATE, _NOT_RATES),
        "ff_mult": ("an integer from 1 to 1000", [0, 1_001, 2.0, "two", True, None]),
        "mel_dim": (_COUNT, _NOT_COUNTS),
        "mu_dim": (_OR_NULL, _NOT_OR_NULL),
        "long_skip_connection": ("true or false", [0, 1, "yes", None]),
        "spk_dim": ("an integer from 0 to 65536, or null", [-1, 65_537, 80.0, "all", False, [80]]),
        "out_channels": (_OR_NULL, _NOT_OR_NULL),
        **_STREAMING,
    },
}
"""What is supported in words, and values that are not, by class and option."""


def _shown(value: Any) -> str:
    """A value as YAML, or the beginning of it."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value))
    if isinstance(value, dict):
        return "a mapping"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _unsupported() -> Iterator[Any]:
    for class_name, options in UNSUPPORTED.items():
        for option, (supported, values) in options.items():
            for value in values:
                name = f"{class_name.rpartition('.')[2]}-{option}-{_shown(value)}"
                yield pytest.param(class_name, option, value, supported, id=name)


def refused(class_name: str, given: dict[str, Any]) -> UnsupportedOptionError:
    with pytest.raises(UnsupportedOptionError) as caught:
        options_of(class_name, given)
    return caught.value


def assert_says(error: UnsupportedOptionError, option: str, shown: str, supported: str) -> None:
    """The error names all three, in its attributes and in one line."""
    assert (error.option, error.supported) == (option, supported)
    assert shown in error.value
    assert str(error) == f"option {option} is {error.value}; supported: {supported}"
    assert "\n" not in str(error)


def test_every_option_is_tried() -> None:
    assert {name: table.keys() for name, table in TABLES.items()} == {
        name: options.keys() for name, options in UNSUPPORTED.items()
    }


@pytest.mark.parametrize(("class_name", "option", "value", "supported"), list(_unsupported()))
def test_an_unsupported_value(class_name: str, option: str, value: Any, supported: str) -> None:
    error = refused(class_name, ENOUGH[class_name] | {option: value})
    assert_says(error, option, _shown(value), supported)
    assert "default" not in str(error)


def test_a_long_value_is_cut() -> None:
    error = refused(UNET, ENOUGH[UNET] | {"channels": [12] * 10**6})
    assert error.value == f"[{'12, ' * 24}12,..."
    assert refused(UNET, ENOUGH[UNET] | {"channels": [["8"], {}, "8", None]}).value == "[a list, a mapping, '8', null]"


@pytest.mark.parametrize(
    ("class_name", "option"),
    [*((each, option) for each in (UNET, CAUSAL_UNET) for option in ("in_channels", "out_channels")), (DIT, "dim")],
)
def test_a_missing_option(class_name: str, option: str) -> None:
    given = {name: value for name, value in ENOUGH[class_name].items() if name != option}
    assert_says(refused(class_name, given), option, "missing", UNSUPPORTED[class_name][option][0])


@pytest.mark.parametrize("class_name", [UNET, CAUSAL_UNET])
def test_the_public_default_that_cannot_work(class_name: str) -> None:
    given = {name: value for name, value in ENOUGH[class_name].items() if name != "act_fn"}
    assert_says(refused(class_name, given), "act_fn", "snake (the default)", _ACTIVATIONS)


@pytest.mark.parametrize(
    ("class_name", "option"),
    [
        *((each, option) for each in TABLES for option in ("num_layers", "")),
        (UNET, "static_chunk_size"),
        (DIT, "act_fn"),
        (CAUSAL_UNET, "causal"),
    ],
)
def test_an_unknown_option(class_name: str, option: str) -> None:
    error = refused(class_name, ENOUGH[class_name] | {option: 7})
    assert_says(error, option, "7", error.supported)
    assert all(known in str(error) for known in TABLES[class_name])


@pytest.mark.parametrize("class_name", ["fork.decoder.ConditionalDecoder", "ConditionalDecoder", "", "cosyvoice.x.DiT"])
def test_a_class_of_a_fork(class_name: str) -> None:
    error = refused(class_name, ENOUGH[UNET])
    assert_says(error, "class", class_name, " or ".join(TABLES))
    with pytest.raises(UnsupportedOptionError, match="option class is"):
        build_estimator(class_name, ENOUGH[UNET])


def test_the_defaults_of_the_u_nets() -> None:
    defaults = UNetOptions(
        in_channels=320,
        out_channels=80,
        channels=(256, 256),
        attention_head_dim=64,
        n_blocks=1,
        num_mid_blocks=2,
        num_heads=4,
        act_fn="gelu",
        causal=False,
        static_chunk_size=0,
    )
    assert options_of(UNET, ENOUGH[UNET]) == defaults
    causal = options_of(CAUSAL_UNET, ENOUGH[CAUSAL_UNET])
    assert causal == UNetOptions(**{**vars(defaults), "causal": True, "static_chunk_size": 50})


def test_the_defaults_of_the_transformer() -> None:
    assert options_of(DIT, ENOUGH[DIT]) == DiTOptions(
        dim=1024,
        depth=8,
        heads=8,
        dim_head=64,
        ff_mult=4,
        mel_dim=80,
        mu_dim=80,
        spk_dim=0,
        long_skip_connection=False,
        static_chunk_size=50,
    )


@pytest.mark.parametrize(
    ("class_name", "option", "values"),
    [
        (UNET, "in_channels", [4, 240]),
        (UNET, "channels", [(8,), (256, 256, 512)]),
        (UNET, "n_blocks", [0, 100]),
        (UNET, "act_fn", _ACTIVATIONS.split(" or ")),
        (CAUSAL_UNET, "static_chunk_size", [0, 1, 25]),
        (DIT, "dim", [16, 1040]),
        (DIT, "depth", [0, 22]),
        (DIT, "mu_dim", [1, 512]),
        (DIT, "spk_dim", [0, 192]),
        (DIT, "long_skip_connection", [True, False]),
        (DIT, "static_chunk_size", [0, 1, 25]),
    ],
)
def test_supported_values_are_taken_over(class_name: str, option: str, values: list[Any]) -> None:
    for value in values:
        given = list(value) if isinstance(value, tuple) else value
        assert getattr(options_of(class_name, ENOUGH[class_name] | {option: given}), option) == value


def test_without_channels_of_its_own_the_encoders_output_has_those_of_the_mel() -> None:
    assert options_of(DIT, {"dim": 16, "mel_dim": 24, "mu_dim": None, "spk_dim": None}) == options_of(
        DIT, {"dim": 16, "mel_dim": 24, "mu_dim": 24, "spk_dim": 0}
    )


@pytest.mark.parametrize(
    ("class_name", "harmless"),
    [
        *((each, {"dropout": value}) for each in TABLES for value in (0, 0.5, 1)),
        *((each, {"num_decoding_left_chunks": value}) for each in (CAUSAL_UNET, DIT) for value in (-1, 0, 7)),
        *((DIT, {"out_channels": value}) for value in (None, 80, 7)),
    ],
)
def test_options_without_effect_on_inference_change_nothing(class_name: str, harmless: dict[str, Any]) -> None:
    assert options_of(class_name, ENOUGH[class_name] | harmless) == options_of(class_name, ENOUGH[class_name])
