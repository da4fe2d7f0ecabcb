"""The tensors that an estimator has by its options alone, beside those of the estimator that is built."""

import math
from typing import Any, Final, NamedTuple

import pytest
import torch
from hypothesis import given

from cosyjit.encoders.parameters import Parameter
from cosyjit.errors import TensorMismatchError, UnsupportedOptionError
from cosyjit.estimators.parameters import parameters
from cosyjit.estimators.registry import build_estimator
from cosyjit.weights.fit import check_tensors
from tests.estimators.cases import ACTIVATIONS, Configuration, configurations
from tests.estimators.vectors import CAUSAL_UNET, DIT, INSTANCES, UNET, state

_PUBLISHED_UNET: Final[dict[str, Any]] = {
    "in_channels": 320,
    "out_channels": 80,
    "channels": [256, 256],
    "dropout": 0.0,
    "attention_head_dim": 64,
    "n_blocks": 4,
    "num_mid_blocks": 12,
    "num_heads": 8,
    "act_fn": "gelu",
}
_STREAMING: Final = {"static_chunk_size": 50, "num_decoding_left_chunks": -1}
_PUBLISHED_DIT: Final[dict[str, Any]] = {
    "dim": 1024,
    "depth": 22,
    "heads": 16,
    "dim_head": 64,
    "ff_mult": 2,
    **dict.fromkeys(("mel_dim", "mu_dim", "spk_dim", "out_channels"), 80),
    **_STREAMING,
}

PUBLISHED: Final = {
    UNET: (_PUBLISHED_UNET, 1042, 81_878_864),
    CAUSAL_UNET: (_PUBLISHED_UNET | {"channels": [256]} | _STREAMING, 910, 71_302_480),
    DIT: (_PUBLISHED_DIT, 323, 331_142_256),
}
"""By class: the published options, and how many tensors and numbers the published files have."""


class Entry(NamedTuple):
    """A tensor of a weights file, described."""

    dtype: str
    shape: tuple[int, ...]


def assert_as_built(configuration: Configuration) -> None:
    built = build_estimator(*configuration)
    assert not built.training
    assert all(tensor.is_meta for tensor in built.state_dict().values())
    shapes = {name: Parameter(tuple(tensor.shape)) for name, tensor in built.state_dict().items()}
    assert parameters(*configuration) == shapes


@given(configurations())
def test_they_are_those_of_any_estimator(configuration: Configuration) -> None:
    assert_as_built(configuration)


@pytest.mark.parametrize("act_fn", ACTIVATIONS)
@pytest.mark.parametrize("class_name", [UNET, CAUSAL_UNET])
def test_they_are_those_of_each_activation(class_name: str, act_fn: str) -> None:
    small = {"in_channels": 16, "out_channels": 4, "channels": [8, 16, 24], "act_fn": act_fn}
    assert_as_built(Configuration(class_name, small))


@pytest.mark.parametrize("class_name", PUBLISHED)
def test_they_are_as_many_as_published(class_name: str) -> None:
    options, tensors, numbers = PUBLISHED[class_name]
    found = parameters(class_name, options)
    assert (len(found), sum(math.prod(each.shape) for each in found.values())) == (tensors, numbers)
    assert_as_built(Configuration(class_name, options))


def test_the_names_are_the_published_ones() -> None:
    shapes = {
        UNET: {
            "time_mlp.linear_1.weight": (1024, 320),
            "down_blocks.0.0.mlp.1.bias": (256,),
            "down_blocks.0.0.block1.block.1.weight": (256,),
            "down_blocks.0.2.conv.weight": (256, 256, 3),
            "down_blocks.1.2.weight": (256, 256, 3),
            "mid_blocks.11.1.3.attn1.to_out.0.weight": (256, 512),
            "up_blocks.0.0.res_conv.weight": (256, 512, 1),
            "up_blocks.0.2.conv.weight": (256, 256, 4),
            "up_blocks.1.1.3.ff.net.0.proj.weight": (1024, 256),
            "up_blocks.1.2.bias": (256,),
            "final_proj.weight": (80, 256, 1),
        },
        CAUSAL_UNET: {
            "down_blocks.0.0.block1.block.2.weight": (256,),
            "down_blocks.0.2.weight": (256, 256, 3),
            "up_blocks.0.2.weight": (256, 256, 3),
            "final_block.block.0.weight": (256, 256, 3),
        },
        DIT: {
            "time_embed.time_mlp.0.weight": (1024, 256),
            "input_embed.proj.weight": (1024, 320),
            "input_embed.conv_pos_embed.conv2.0.weight": (1024, 64, 31),
            "rotary_embed.inv_freq": (32,),
            "transformer_blocks.21.attn_norm.linear.weight": (6144, 1024),
            "transformer_blocks.21.attn.to_out.0.bias": (1024,),
            "transformer_blocks.21.ff.ff.0.0.weight": (2048, 1024),
            "norm_out.linear.bias": (2048,),
            "proj_out.weight": (80, 1024),
        },
    }
    for class_name, expected in shapes.items():
        found = parameters(class_name, PUBLISHED[class_name][0])
        assert {name: found[name].shape for name in expected} == expected


@pytest.mark.parametrize("name", ["cosyvoice", "cosyvoice2", "cosyvoice3"])
def test_tensors_that_do_not_fit_are_refused_all_of_them(name: str) -> None:
    instance = INSTANCES[name]
    estimator = build_estimator(instance.class_name, instance.options)
    tensors = state(instance.class_name, instance.options)
    misshapen = {name: torch.zeros((*tensor.shape, 1)) for name, tensor in tensors.items()}
    extra = {f"{name}.extra": tensor for name, tensor in tensors.items()}
    for wrong, begins, ends in (
        ({}, '"', '"'),
        (misshapen, "size mismatch for ", ":"),
        ({**tensors, **extra}, '"', '.extra"'),
    ):
        with pytest.raises(RuntimeError, match=r"Missing key|size mismatch|Unexpected key") as caught:
            estimator.load_state_dict(wrong, strict=True, assign=True)
        assert [name for name in tensors if f"{begins}{name}{ends}" not in str(caught.value)] == []
    estimator.load_state_dict(tensors, strict=True, assign=True)


@pytest.mark.parametrize("name", ["cosyvoice", "cosyvoice2", "cosyvoice3"])
def test_a_weights_file_that_does_not_fit_is_described_in_a_line(name: str) -> None:
    instance = INSTANCES[name]
    wanted = parameters(instance.class_name, instance.options)
    entries = {each: Entry("float16", parameter.shape) for each, parameter in wanted.items()}
    check_tensors("flow.pt", wanted, entries)
    missing, misshapen, *_ = wanted
    shape = wanted[misshapen].shape
    wrong = {**entries, misshapen: Entry("float32", (*shape, 1)), "lora.weight": Entry("float32", (1,))}
    del wrong[missing]
    with pytest.raises(TensorMismatchError) as caught:
        check_tensors("flow.pt", wanted, wrong)
    assert str(caught.value) == (
        f"flow.pt: the tensors do not fit the configuration (1 missing: {missing}; 1 unexpected: lora.weight; "
        f"1 of another shape: {misshapen} ({(*shape, 1)} instead of {shape})); export a matching pair"
    )


def test_an_option_that_is_not_supported_is_refused() -> None:
    with pytest.raises(UnsupportedOptionError, match=r"option act_fn is snake \(the default\); supported: gelu or"):
        parameters(UNET, {"in_channels": 16, "out_channels": 4})
