"""The names and shapes by which the encoders are saved and loaded."""

from typing import Final

import pytest
import torch
from hypothesis import given, settings

from cosyjit.encoders.registry import build_encoder
from tests.encoders.cases import CONFIGURATIONS, STREAMING, Configuration, configurations
from tests.encoders.vectors import frames, ours, plain, weights

_LINEAR_NAMES: Final = {"weight", "bias"}


def _named(*names: str) -> set[str]:
    return {f"{name}.{each}" for name in names for each in _LINEAR_NAMES}


_ATTENTION_NAMES: Final = {
    f"self_attn.{name}"
    for name in (
        *_named("linear_q", "linear_k", "linear_v", "linear_out"),
        "linear_pos.weight",
        "pos_bias_u",
        "pos_bias_v",
    )
}
_TRANSFORMER_BLOCK: Final = _ATTENTION_NAMES | _named("feed_forward.w_1", "feed_forward.w_2", "norm1", "norm2")
_CONFORMER_BLOCK: Final = _ATTENTION_NAMES | _named("feed_forward.w_1", "feed_forward.w_2", "norm_mha", "norm_ff")
_MACARON: Final = _named("feed_forward_macaron.w_1", "feed_forward_macaron.w_2", "norm_ff_macaron")
_CONVOLUTION: Final = _named(
    "norm_conv",
    "norm_final",
    "conv_module.pointwise_conv1",
    "conv_module.depthwise_conv",
    "conv_module.norm",
    "conv_module.pointwise_conv2",
)
_BATCH_NORM: Final = {f"conv_module.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
_AROUND: Final = _named("embed.out.0", "embed.out.1", "after_norm")
_AROUND_UPSAMPLE: Final = _AROUND | _named(
    "pre_lookahead_layer.conv1", "pre_lookahead_layer.conv2", "up_layer.conv", "up_embed.out.0", "up_embed.out.1"
)


def _blocks(name: str, count: int, names: set[str]) -> set[str]:
    return {f"{name}.{number}.{each}" for number in range(count) for each in names}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer", _AROUND | _blocks("encoders", 2, _TRANSFORMER_BLOCK)),
        ("conformer", _AROUND | _blocks("encoders", 2, _CONFORMER_BLOCK)),
        (
            "causal convolution",
            _AROUND | _blocks("encoders", 2, _CONFORMER_BLOCK | _MACARON | _CONVOLUTION | _BATCH_NORM),
        ),
        (
            "layer norm",
            _AROUND
            | _blocks("encoders", 2, (_CONFORMER_BLOCK | _MACARON | _CONVOLUTION) - {"self_attn.linear_k.bias"}),
        ),
        (
            "upsample",
            _AROUND_UPSAMPLE | _blocks("encoders", 1, _CONFORMER_BLOCK) | _blocks("up_encoders", 4, _CONFORMER_BLOCK),
        ),
    ],
)
def test_state_has_the_published_names(name: str, expected: set[str]) -> None:
    assert set(build_encoder(*CONFIGURATIONS[name]).state_dict()) == expected


@settings(deadline=None, max_examples=40)
@given(configurations())
def test_state_has_the_names_and_shapes_of_the_plain_one(configuration: Configuration) -> None:
    actual = {name: tensor.shape for name, tensor in ours(*configuration).state_dict().items()}
    assert actual == {name: tensor.shape for name, tensor in plain(*configuration).state_dict().items()}


@pytest.mark.parametrize("key_bias", [True, False])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_state_loaded_again_gives_the_same(name: str, key_bias: bool) -> None:
    configuration = CONFIGURATIONS[name].having(key_bias=key_bias)
    encoder = ours(*configuration)
    again = build_encoder(*configuration)
    state = dict(encoder.state_dict())
    given_state = weights(encoder, "")
    assert any(name.endswith("linear_k.bias") for name in state) == key_bias
    again.load_state_dict(state, strict=True, assign=True)
    assert state.keys() == given_state.keys()
    for each, tensor in again.state_dict().items():
        assert torch.equal(tensor, given_state[each])
    xs, lengths = frames("again", (2, 6, configuration.options["input_size"])), torch.tensor([6, 4])
    assert torch.equal(again(xs, lengths)[0], encoder(xs, lengths)[0])


# A state may lack the counter of BatchNorm: torch fills it in for states from before there was one, which a plain
# dict, having no version, is taken for.
@pytest.mark.parametrize("name", STREAMING)
def test_a_state_that_does_not_fit_is_an_error(name: str) -> None:
    encoder = build_encoder(*STREAMING[name])
    state = weights(encoder, "")
    for each in state:
        if each.endswith("num_batches_tracked"):
            continue
        with pytest.raises((RuntimeError, KeyError)):
            encoder.load_state_dict({other: state[other] for other in state if other != each}, assign=True)
        larger = torch.zeros([length + 1 for length in state[each].shape])
        with pytest.raises(RuntimeError):
            encoder.load_state_dict(state | {each: larger}, assign=True)
        with pytest.raises(RuntimeError, match="Unexpected"):
            encoder.load_state_dict(state | {f"{each}_more": state[each]}, assign=True)


def test_a_key_bias_that_is_not_wanted_is_an_error() -> None:
    encoder = build_encoder(*STREAMING["layer norm"])
    unwanted = {"encoders.0.self_attn.linear_k.bias": torch.zeros(16)}
    with pytest.raises(RuntimeError, match=r"Unexpected.*linear_k\.bias"):
        encoder.load_state_dict(weights(encoder, "") | unwanted, assign=True)
