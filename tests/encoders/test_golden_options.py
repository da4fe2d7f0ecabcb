"""Vectors of options that no published configuration uses, in every form an encoder has, the plain one included.

`options.json` has the arguments of each encoder by its name, beside its class; its name begins the names of its weights
and inputs. `chunked.json` has one more: the flow encoder as runtimes of before April 2025 call it.
"""

import json
from functools import cache
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from cosyjit.encoders.registry import build_encoder
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
    weights,
)
from tests.support.tiers import sampled

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


FORMS: Final = ("eager", "optimized", "plain", "plain optimized")


@cache
def in_form(form: str, name: str) -> Any:
    """An encoder of the vectors in a form."""
    options = {option: value for option, value in _OPTIONS[name].items() if option != "class"}
    build = plain if form.startswith("plain") else ours
    with torch.inference_mode(mode=False):
        encoder = build(_CLASSES[_OPTIONS[name]["class"]], options, f"{name}.")
        return optimized(encoder) if form.endswith("optimized") else encoder


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sampled(_OPTIONS, 3))
def test_forward(form: str, name: str) -> None:
    xs = frames(f"{name}:x", (len(LENGTHS), max(LENGTHS), _OPTIONS[name]["input_size"]))
    for output in _OUTPUTS[name] & {"forward", "forward_streaming"}:
        arguments = {"streaming": True} if output == "forward_streaming" else {}
        ys, mask = in_form(form, name)(xs, torch.tensor(LENGTHS, dtype=torch.int32), **arguments)
        assert mask.sum(dim=2).flatten().tolist() == [ys.size(1) // max(LENGTHS) * length for length in LENGTHS]
        assert_near(ys.masked_fill(~mask.transpose(1, 2), 0.0), f"{name}/{output}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sampled(_STREAMED, 3))
def test_forward_chunk(form: str, name: str) -> None:
    xs = frames(f"{name}:stream", (1, sum(CHUNKS), _OPTIONS[name]["input_size"]))
    att_cache = cnn_cache = torch.zeros(0, 0, 0, 0)
    encoder = in_form(form, name)
    ys = []
    for chunk in torch.split(xs, list(CHUNKS), dim=1):
        offset, count = att_cache.size(2), chunk.size(1)
        seen = torch.ones(1, count, offset + count, dtype=torch.bool).tril(offset)
        y, att_cache, cnn_cache = encoder.forward_chunk(chunk, offset, -1, att_cache, cnn_cache, seen)
        ys.append(y)
    assert_near(torch.cat(ys, dim=1), f"{name}/stream")
    assert_near(att_cache, f"{name}/att_cache")
    if "cnn_cache" in _OUTPUTS[name]:
        assert_near(cnn_cache, f"{name}/cnn_cache")
    else:
        assert cnn_cache.shape == (_OPTIONS[name]["num_blocks"], 0, 0, 0)


# The flow encoder of older runtimes: its `static_chunk_size` is set to 50 once it is built from a configuration that
# says 25, and `forward` is given the frames and the lengths alone. Stored is every seventh frame, from "chunked:x".

_CHUNKED: Final[dict[str, Any]] = json.loads((GOLDEN / "chunked.json").read_text())
_CHUNKED_EXPECTED: Final = golden_outputs("chunked.npz")
_CHUNKED_LENGTHS: Final = (70, 55)


@pytest.fixture(scope="module", params=FORMS)
def chunked(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """The encoder in one form, and the arguments by which it attends in chunks; ours needs none."""
    options = {option: value for option, value in _CHUNKED.items() if option != "class"}
    class_name = _CLASSES[_CHUNKED["class"]]
    if request.param.startswith("plain"):
        encoder: Any = plain(class_name, options | {"static_chunk_size": 50}, "chunked.")
    else:
        encoder = build_encoder(class_name, options, {"static_chunk_size": 50, "always_streaming": True})
        encoder.load_state_dict(weights(encoder, "chunked."), assign=True)
    arguments = {"streaming": True} if request.param.startswith("plain") else {}
    return optimized(encoder) if request.param.endswith("optimized") else encoder, arguments


def test_chunked(chunked: tuple[Any, dict[str, Any]]) -> None:
    encoder, arguments = chunked
    xs = frames("chunked:x", (len(_CHUNKED_LENGTHS), max(_CHUNKED_LENGTHS), 512))
    ys, mask = encoder(xs, torch.tensor(_CHUNKED_LENGTHS, dtype=torch.int32), **arguments)
    assert torch.equal(mask, _CHUNKED_EXPECTED["mask"])
    stored = ys.masked_fill(~mask.transpose(1, 2), 0.0)[:, ::7]
    torch.testing.assert_close(stored, _CHUNKED_EXPECTED["y"], rtol=0, atol=TOLERANCE)


def test_chunked_does_not_hear_of_streaming_and_has_what_runtimes_of_today_give(
    chunked: tuple[Any, dict[str, Any]],
) -> None:
    encoder, arguments = chunked
    xs, lengths = frames("chunked:x", (2, 70, 512)), torch.tensor(_CHUNKED_LENGTHS, dtype=torch.int32)
    context = frames("chunked:context", (2, 3, 512))
    usual = encoder(xs, lengths, **arguments)[0]
    if not arguments:
        for streaming in (False, True):
            assert torch.equal(encoder(xs, lengths, streaming=streaming)[0], usual)
    assert not torch.equal(encoder(xs, lengths, context=context, streaming=True)[0], usual)
