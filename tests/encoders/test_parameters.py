"""The tensors that an encoder has by its options alone, beside those of the encoder that is built."""

import pytest
import torch
from hypothesis import given

from cosyjit.encoders.parameters import Parameter, parameters
from cosyjit.encoders.registry import build_encoder
from cosyjit.errors import UnsupportedOptionError
from tests.encoders.cases import CONFIGURATIONS, UPSAMPLE, Configuration, configurations
from tests.encoders.vectors import TRANSFORMER


def assert_as_built(configuration: Configuration) -> None:
    state = build_encoder(*configuration).state_dict()
    assert parameters(*configuration) == {
        name: Parameter(
            tuple(tensor.shape), "" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
        )
        for name, tensor in state.items()
    }


@given(configurations())
def test_they_are_those_of_any_encoder(configuration: Configuration) -> None:
    assert_as_built(configuration)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
def test_they_are_those_of_each_class(name: str, norm: str) -> None:
    assert_as_built(CONFIGURATIONS[name])
    if name in UPSAMPLE:
        assert_as_built(CONFIGURATIONS[name].having(cnn_module_norm=norm, num_blocks=2, key_bias=False))


def test_those_that_count_have_their_type() -> None:
    found = {each.dtype for each in parameters(*CONFIGURATIONS["upsample with all"]).values()}
    assert found == {"", str(torch.int64).removeprefix("torch.")}


def test_an_option_that_is_not_supported_is_refused() -> None:
    with pytest.raises(UnsupportedOptionError, match="option input_layer is embed; supported: linear"):
        parameters(TRANSFORMER, {"input_size": 4, "input_layer": "embed"})
