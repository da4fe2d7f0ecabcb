"""Vectors of options that no published configuration uses, in every form an encoder has, the plain one included.

`options.json` has the arguments of each encoder by its name, beside its class; the names of its weights and inputs begin
with that name.
"""

import json
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from tests.encoders.jit import optimized
from tests.encoders.vectors import (
    CONFORMER,
    GOLDEN,
    TRANSFORMER,
    UPSAMPLE_CONFORMER,
    frames,
    golden_outputs,
    ours,
    plain,
)

TOLERANCE: Final = 2e-5
LENGTHS: Final = (19, 12)
CHUNKS: Final = (19, 1, 1, 1, 1, 1)

_CLASSES: Final = {name.rpartition(".")[2]: name for name in (TRANSFORMER, CONFORMER, UPSAMPLE_CONFORMER)}
_OPTIONS: Final[dict[str, dict[str, Any]]] = json.loads((GOLDEN / "options.json").read_text())
_EXPECTED: Final = golden_outputs("options.npz")
_OUTPUTS: Final = {
    name: {vector.partition("/")[2] for vector in _EXPECTED if vector.startswith(f"{name}/")} for name in _OPTIONS
}
_STREAMED: Final = [name for name, outputs in _OUTPUTS.items() if "stream" in outputs]


@pytest.fixture(scope="module", params=["eager", "optimized", "plain", "plain optimized"])
def encoders(request: pytest.FixtureRequest) -> dict[str, Any]:
    """All encoders of the vectors in one form."""
    build = plain if request.param.startswith("plain") else ours
    built: dict[str, Any] = {}
    for name, given in _OPTIONS.items():
        options = {option: value for option, value in given.items() if option != "class"}
        built[name] = build(_CLASSES[given["class"]], options, f"{name}.")
    if request.param.endswith("optimized"):
        built = {name: optimized(encoder) for name, encoder in built.items()}
    return built


def assert_near(actual: Tensor, vector: str) -> None:
    torch.testing.assert_close(actual, _EXPECTED[vector], rtol=0, atol=TOLERANCE)


def test_every_vector_is_used() -> None:
    assert len(_OPTIONS) == 9
    assert set(_EXPECTED) == {f"{name}/{output}" for name, outputs in _OUTPUTS.items() for output in outputs}
    for name, outputs in _OUTPUTS.items():
        upsampling, streamed = _OPTIONS[name]["class"] == "UpsampleConformerEncoder", name in _STREAMED
        convolving = streamed and bool(_OPTIONS[name].get("causal"))
        assert outputs == {
            "forward",
            *(["forward_streaming"] if upsampling else []),
            *(["stream", "att_cache"] if streamed else []),
            *(["cnn_cache"] if convolving else []),
        }
    # Of all that has no centred convolution, which sees what is to come.
    assert {name for name in _OPTIONS if name not in _STREAMED} == {
        "conv_batch_norm",
        "conv_layer_norm",
        "conv_post_norm",
        "upsample_conv",
    }


@pytest.mark.parametrize("name", _OPTIONS)
def test_forward(encoders: dict[str, Any], name: str) -> None:
    xs = frames(f"{name}:x", (len(LENGTHS), max(LENGTHS), _OPTIONS[name]["input_size"]))
    for output in _OUTPUTS[name] & {"forward", "forward_streaming"}:
        arguments = {"streaming": True} if output == "forward_streaming" else {}
        ys, mask = encoders[name](xs, torch.tensor(LENGTHS, dtype=torch.int32), **arguments)
        assert mask.sum(dim=2).flatten().tolist() == [ys.size(1) // max(LENGTHS) * length for length in LENGTHS]
        assert_near(ys.masked_fill(~mask.transpose(1, 2), 0.0), f"{name}/{output}")


@pytest.mark.parametrize("name", _STREAMED)
def test_forward_chunk(encoders: dict[str, Any], name: str) -> None:
    xs = frames(f"{name}:stream", (1, sum(CHUNKS), _OPTIONS[name]["input_size"]))
    att_cache = cnn_cache = torch.zeros(0, 0, 0, 0)
    ys = []
    for chunk in torch.split(xs, CHUNKS, dim=1):
        offset, count = att_cache.size(2), chunk.size(1)
        seen = torch.ones(1, count, offset + count, dtype=torch.bool).tril(offset)
        y, att_cache, cnn_cache = encoders[name].forward_chunk(chunk, offset, -1, att_cache, cnn_cache, seen)
        ys.append(y)
    assert_near(torch.cat(ys, dim=1), f"{name}/stream")
    assert_near(att_cache, f"{name}/att_cache")
    if "cnn_cache" in _OUTPUTS[name]:
        assert_near(cnn_cache, f"{name}/cnn_cache")
    else:
        assert cnn_cache.shape == (_OPTIONS[name]["num_blocks"], 0, 0, 0)
