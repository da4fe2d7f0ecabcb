"""Small configurations of estimators, all options among them."""

from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from tests.estimators.vectors import CAUSAL_UNET, DIT, UNET

ACTIVATIONS: Final = ("gelu", "gelu-approximate", "geglu", "geglu-approximate", "snakebeta")
FEATURES: Final = 4
"""The channels of x in all configurations."""


class Configuration(NamedTuple):
    """A class and its options. Speaker and condition are among the inputs where their channels are not 0."""

    class_name: str
    options: dict[str, Any]


@st.composite
def unets(draw: st.DrawFn) -> Configuration:
    class_name = draw(st.sampled_from([UNET, CAUSAL_UNET]))
    options = {
        "in_channels": FEATURES * draw(st.integers(2, 4)),
        "out_channels": draw(st.integers(1, 5)),
        "channels": draw(st.lists(st.sampled_from([16, 24]), min_size=1, max_size=3)),
        "attention_head_dim": draw(st.integers(1, 5)),
        "n_blocks": draw(st.integers(0, 2)),
        "num_mid_blocks": draw(st.integers(0, 2)),
        "num_heads": draw(st.integers(1, 3)),
        "act_fn": draw(st.sampled_from(ACTIVATIONS)),
    }
    if class_name == CAUSAL_UNET:
        options["static_chunk_size"] = draw(st.integers(0, 7))
    return Configuration(class_name, options)


@st.composite
def dits(draw: st.DrawFn) -> Configuration:
    options = {
        "dim": draw(st.sampled_from([16, 32])),
        "depth": draw(st.integers(0, 2)),
        "heads": draw(st.integers(1, 3)),
        "dim_head": draw(st.sampled_from([2, 4, 6])),
        "ff_mult": draw(st.integers(1, 3)),
        "mel_dim": FEATURES,
        "mu_dim": draw(st.sampled_from([None, FEATURES, 3])),
        "spk_dim": draw(st.sampled_from([None, 0, FEATURES, 5])),
        "out_channels": draw(st.sampled_from([None, FEATURES])),
        "long_skip_connection": draw(st.booleans()),
        "static_chunk_size": draw(st.integers(0, 7)),
    }
    return Configuration(DIT, options)


def configurations() -> st.SearchStrategy[Configuration]:
    return st.one_of(unets(), dits())
