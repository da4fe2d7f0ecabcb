"""The encoders as they are called: arguments, half precision, TorchScript."""

import functools
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from cosyjit.encoders.registry import build_encoder
from tests.encoders.cases import (
    CONFIGURATIONS,
    SINGLE,
    STREAMING,
    Batch,
    Chunks,
    assert_near,
    assert_same_chunks,
    assert_same_forward,
    batches,
    chunks,
)
from tests.encoders.jit import (
    constant_devices,
    constant_tensors,
    graphs,
    loaded,
    nodes,
    optimized,
    preserved_methods,
    saved,
)
from tests.encoders.vectors import frames, ours
from tests.support.tiers import sampled


@pytest.fixture(scope="module", params=["eager", "optimized"])
def form(request: pytest.FixtureRequest) -> str:
    """The form of the encoders of a test."""
    return str(request.param)


@functools.cache
def in_form(form: str, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """An encoder of a type as it is or optimized; the executor keeps what it makes of it by method and by autocast."""
    encoder = ours(*CONFIGURATIONS[name]).to(dtype)
    if form == "eager":
        return encoder
    with torch.inference_mode(mode=False):
        return optimized(encoder)


@pytest.mark.parametrize("batch", [0, 2])
def test_forward_chunk_takes_one_sequence(form: str, batch: int) -> None:
    encoder = in_form(form, "transformer")
    error = ValueError if form == "eager" else torch.jit.Error
    with pytest.raises(error, match="one sequence at a time"):
        encoder.forward_chunk(frames("batch", (batch, 3, 12)), 0, -1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_lengths_of_both_types(form: str, name: str) -> None:
    configuration = CONFIGURATIONS[name]
    encoder = in_form(form, name)
    xs = frames("lengths", (2, 5, configuration.options["input_size"]))
    short = encoder(xs, torch.tensor([5, 2], dtype=torch.int32))
    long = encoder(xs, torch.tensor([5, 2], dtype=torch.int64))
    for each, other in zip(short, long, strict=True):
        assert torch.equal(each, other)


# Half precision

_PRECISION: Final = {torch.float16: 0.02, torch.bfloat16: 0.15}
"""How far off outputs of about unit variance may be."""


@pytest.fixture(scope="module", params=_PRECISION, ids=str)
def half(request: pytest.FixtureRequest) -> torch.dtype:
    """A type of 16 bits."""
    dtype: torch.dtype = request.param
    return dtype


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True], ids=["half inputs", "autocast"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_forward_in_half_precision(form: str, half: torch.dtype, name: str, autocast: bool) -> None:
    configuration = CONFIGURATIONS[name]
    encoder, rounded = in_form(form, name, half), _rounded(name, half)
    xs = frames("half", (2, 9, configuration.options["input_size"])).to(half).float()
    lengths = torch.tensor([9, 5])
    expected, mask = rounded(xs, lengths)
    real = mask.squeeze(1)
    with torch.autocast("cpu", dtype=half, enabled=autocast):
        for _ in range(3):  # TorchScript optimizes after the first calls
            ys, actual_mask = encoder(xs if autocast else xs.to(half), lengths)
            assert torch.equal(actual_mask, mask)
            assert ys.dtype == _output_type(form, half, autocast)
            assert_near(ys.float()[real], expected[real], _PRECISION[half])


@pytest.mark.parametrize("autocast", [False, True], ids=["half inputs", "autocast"])
@pytest.mark.parametrize("name", sampled(STREAMING, 2))
def test_forward_chunk_in_half_precision(form: str, half: torch.dtype, name: str, autocast: bool) -> None:
    encoder, rounded = in_form(form, name, half), _rounded(name, half)
    xs = frames("half chunks", (1, 8, 12)).to(half).float()
    caches = expected_caches = [torch.zeros(0, 0, 0, 0), torch.zeros(0, 0, 0, 0)]
    for chunk in torch.split(xs, [4, 1, 1, 2], dim=1):
        mask = torch.ones(1, 1, 1, dtype=torch.bool)
        expected, *expected_caches = rounded.forward_chunk(chunk, 0, -1, *expected_caches, mask)
        with torch.autocast("cpu", dtype=half, enabled=autocast):
            ys, *caches = encoder.forward_chunk(chunk if autocast else chunk.to(half), 0, -1, *caches, mask)
        assert ys.dtype == _output_type(form, half, autocast)
        assert caches[0].dtype == half
        assert_near(ys.float(), expected, _PRECISION[half])
        for cache, expected_cache in zip(caches, expected_caches, strict=True):
            assert_near(cache.float(), expected_cache, _PRECISION[half])


@functools.cache
def _rounded(name: str, half: torch.dtype) -> Any:
    """An encoder in float32 of the weights that it has in half precision, so that only the arithmetic differs."""
    rounded = build_encoder(*CONFIGURATIONS[name])
    weights = in_form("eager", name, half).state_dict()
    state = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    rounded.load_state_dict(state, strict=True, assign=True)
    return rounded


def _output_type(form: str, half: torch.dtype, autocast: bool) -> torch.dtype:
    # On a CPU only the autocast of TorchScript takes layer norms in float32; on CUDA, that of eager torch does too.
    return torch.float32 if autocast and form == "optimized" else half


# TorchScript


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def scripted_pair(request: pytest.FixtureRequest) -> tuple[Any, nn.Module, int]:
    """An encoder optimized, saved and loaded, the same eagerly, and its input size."""
    name = request.param
    size = CONFIGURATIONS[name].options["input_size"]
    return loaded(saved(in_form("optimized", name))), in_form("eager", name), size


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(batch=batches())
def test_scripted_forward_is_the_eager_one(scripted_pair: tuple[Any, nn.Module, int], batch: Batch) -> None:
    scripted, encoder, size = scripted_pair
    assert_same_forward(scripted, encoder, batch, size, torch.float32, SINGLE)


@settings(deadline=None, max_examples=25)
@given(sequence=chunks())
@pytest.mark.parametrize("name", STREAMING)
def test_scripted_forward_chunk_is_the_eager_one(streaming_pairs: dict[str, Any], name: str, sequence: Chunks) -> None:
    scripted, encoder = streaming_pairs[name]
    assert_same_chunks(scripted, encoder, sequence, 12, torch.float32, SINGLE)


@pytest.fixture(scope="module")
def streaming_pairs() -> dict[str, tuple[Any, nn.Module]]:
    """All encoders with `forward_chunk`, optimized and eager."""
    return {name: (in_form("optimized", name), in_form("eager", name)) for name in STREAMING}


_MEGABYTE: Final = 2**20
_LARGE: Final = {"input_size": 512, "output_size": 512, "linear_units": 2048}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_artifact_has_each_weight_once_and_no_device(name: str) -> None:
    """A megabyte is little here: these encoders have 25 and more."""
    encoder = ours(*CONFIGURATIONS[name].having(**_LARGE))
    methods = preserved_methods(encoder)
    with torch.inference_mode(mode=False):
        module = optimized(encoder)
    weight_bytes = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    assert weight_bytes > 25 * _MEGABYTE
    storages: dict[int, torch.UntypedStorage] = {}
    for graph in graphs(module, methods):
        kinds = {node.kind() for node in nodes(graph)}
        assert "aten::linear" not in kinds
        assert not [kind for kind in kinds if "mkldnn" in kind.lower()]
        assert constant_devices(graph) == []
        for tensor in constant_tensors(graph):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    attributes = [*module.parameters(), *module.buffers()]
    constant_bytes = sum(storage.nbytes() for storage in storages.values())
    limit = 1.05 * weight_bytes + _MEGABYTE
    assert 0.95 * weight_bytes < constant_bytes + sum(tensor.nbytes for tensor in attributes) < limit
    assert len(saved(module)) < limit
