"""Every golden vector, in every form an encoder has, the plain one included."""

from typing import Any, Final, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.encoders.jit import optimized
from tests.encoders.vectors import (
    CONFORMER,
    TRANSFORMER,
    UPSAMPLE_CONFORMER,
    frames,
    golden_options,
    golden_outputs,
    ours,
    plain,
)

TOLERANCE: Final = 2e-5


class Component(NamedTuple):
    """An encoder of the vectors: its place in `configs.json`, its class, and the prefix of its weights' names."""

    family: str
    name: str
    class_name: str
    prefix: str


class Whole(NamedTuple):
    """A call of `forward`: the input's key and shape, the lengths, and the rest of the arguments."""

    key: str
    shape: tuple[int, ...]
    lengths: list[int]
    arguments: dict[str, Any]


COMPONENTS: Final = {
    "cosyvoice/text_encoder": Component("cosyvoice", "text_encoder", CONFORMER, "llm.text_encoder."),
    "cosyvoice/llm": Component("cosyvoice", "llm", TRANSFORMER, "llm.llm."),
    "cosyvoice/flow_encoder": Component("cosyvoice", "flow_encoder", CONFORMER, "flow.encoder."),
    "cosyvoice2/flow_encoder": Component("cosyvoice2", "flow_encoder", UPSAMPLE_CONFORMER, "flow.encoder."),
}

_ONE_LEFT: Final = {"decoding_chunk_size": 1, "num_decoding_left_chunks": -1}

WHOLE: Final = {
    "cosyvoice/text_encoder.single": Whole("cosyvoicete1", (1, 17, 32), [17], _ONE_LEFT),
    "cosyvoice/text_encoder.padded": Whole("cosyvoicete3", (3, 17, 32), [17, 8, 1], _ONE_LEFT),
    "cosyvoice/llm.forward": Whole("cosyvoicell2", (2, 17, 64), [17, 14], {}),
    "cosyvoice/flow_encoder.single": Whole("cosyvoicefe1", (1, 17, 32), [17], {}),
    "cosyvoice/flow_encoder.padded": Whole("cosyvoicefe2", (2, 17, 32), [17, 12], {}),
    "cosyvoice2/flow_encoder.offline": Whole("cosyvoice2x", (1, 13, 512), [13], {"streaming": False}),
    "cosyvoice2/flow_encoder.streaming": Whole("cosyvoice2x", (1, 13, 512), [13], {"streaming": True}),
    "cosyvoice2/flow_encoder.streaming_context": Whole(
        "cosyvoice2x", (1, 13, 512), [13], {"streaming": True, "context": frames("cosyvoice2c", (1, 3, 512))}
    ),
    "cosyvoice2/flow_encoder.padded": Whole("cosyvoice2x2", (2, 13, 512), [13, 9], {}),
}

CHUNKED: Final = {
    "cosyvoice/llm.forward_chunk": [17, 1, 1, 1, 1, 1, 1],
    "cosyvoice/llm.chunked_prefill": [13, 4],
}
"""The sizes of the chunks of one sequence, in which each frame sees itself and all before it."""

_EXPECTED: Final = golden_outputs()


@pytest.fixture(scope="module", params=["eager", "optimized", "plain", "plain optimized"])
def encoders(request: pytest.FixtureRequest) -> dict[str, Any]:
    """All encoders of the vectors in one form."""
    build = plain if request.param.startswith("plain") else ours
    built: dict[str, Any] = {
        name: build(component.class_name, golden_options(component.family, component.name), component.prefix)
        for name, component in COMPONENTS.items()
    }
    if request.param.endswith("optimized"):
        built = {name: optimized(encoder) for name, encoder in built.items()}
    return built


def assert_near(actual: Tensor, vector: str, output: str, real: Tensor | None = None) -> None:
    """Compare an output with the vector's, only where `real` (B, T) is true if that is given."""
    expected = _EXPECTED[f"{vector}/{output}"]
    assert actual.shape == expected.shape
    if real is not None:
        actual, expected = actual[real], expected[real]
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def test_every_vector_is_used() -> None:
    whole = {f"{vector}/{output}" for vector in WHOLE for output in ("y", "mask")}
    chunked = {f"{vector}/{output}" for vector in CHUNKED for output in ("y", "att_cache")}
    assert set(_EXPECTED) == whole | chunked | {"cosyvoice/llm.forward_chunk/cnn_cache_shape"}


@pytest.mark.parametrize("vector", WHOLE)
def test_forward(encoders: dict[str, nn.Module], vector: str) -> None:
    call = WHOLE[vector]
    lengths = torch.tensor(call.lengths, dtype=torch.int32)
    ys, mask = encoders[vector.partition(".")[0]](frames(call.key, call.shape), lengths, **call.arguments)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, _EXPECTED[f"{vector}/mask"])
    assert_near(ys, vector, "y", real=mask.squeeze(1))


@pytest.mark.parametrize("vector", CHUNKED)
def test_forward_chunk(encoders: dict[str, Any], vector: str) -> None:
    sizes = CHUNKED[vector]
    xs = frames("cosyvoicelc", (1, 23, 64))[:, : sum(sizes)]
    att_cache = cnn_cache = torch.zeros(0, 0, 0, 0)
    ys = []
    for chunk in torch.split(xs, sizes, dim=1):
        offset, count = att_cache.size(2), chunk.size(1)
        seen = torch.ones(1, count, offset + count, dtype=torch.bool).tril(offset)
        y, att_cache, cnn_cache = encoders["cosyvoice/llm"].forward_chunk(
            chunk,
            offset=offset,
            required_cache_size=-1,
            att_cache=att_cache,
            cnn_cache=cnn_cache,
            att_mask=seen[:, :, :1] if count == 1 else seen,
        )
        ys.append(y)
    assert_near(torch.cat(ys, dim=1), vector, "y")
    assert_near(att_cache, vector, "att_cache")
    assert list(cnn_cache.shape) == _EXPECTED["cosyvoice/llm.forward_chunk/cnn_cache_shape"].tolist()
