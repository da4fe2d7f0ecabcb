"""A zip that is written by a proven graph is the zip that torch would write, or none is written."""

import base64
import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cosyjit.encoders.registry import build_encoder
from cosyjit.families import PRECISIONS
from cosyjit.processes import worker
from cosyjit.torchscript import calls, dissect, script, structure
from cosyjit.torchscript.graph import MARK, Graph
from tests.encoders.cases import CONFIGURATIONS, Configuration
from tests.encoders.vectors import ours

State = dict[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def _server_here() -> None:
    """The build server starts anew, and so in a directory that is there: a test before may have left it in another."""
    worker.stop()


def encoder_of(configuration: Configuration, state: State) -> nn.Module:
    encoder = build_encoder(*configuration)
    encoder.load_state_dict(state, assign=True)
    return encoder


def methods_of(encoder: nn.Module) -> list[str]:
    return [method for method in calls._METHODS if hasattr(encoder, method)]


def save(configuration: Configuration, state: State, into: Path, provenance: bytes, progress: object) -> Path:
    """Script an encoder in a process of its own, where torch begins to number classes of the same name."""
    del progress
    encoder = encoder_of(configuration, state)
    return script.save(script.optimize(encoder, methods_of(encoder)), into, {"cosyjit.json": provenance})


class Zips:
    """Zips of the encoders of a configuration at a precision, whose weights are changed."""

    def __init__(self, configuration: Configuration, precision: str, into: Path) -> None:
        self.configuration, self.precision, self.into = configuration, PRECISIONS[precision], into
        self.encoder = ours(*configuration)
        self.methods = methods_of(self.encoder)
        self.graph = self._graph()

    def state(self, edit: Callable[[State], object] | None = None) -> State:
        """The weights in the precision's type; with an edit, others than the graph's own."""
        state = {name: each.clone() for name, each in self.encoder.state_dict().items()}
        if edit is not None:
            for each in (each for each in state.values() if each.is_floating_point()):
                each.mul_(1.25)
            edit(state)
        return script.cast(state, getattr(torch, self.precision.dtype))

    def weights(self, edit: Callable[[State], object]) -> State:
        """The same by the names of an encoder's attributes."""
        return structure.weights_of(encoder_of(self.configuration, self.state(edit)))

    def scripted(self, state: State, name: str = "scripted", provenance: bytes = b"provenance 1") -> Path:
        directory = self.into / name
        directory.mkdir()
        return worker.run(save, self.configuration, state, directory, provenance)

    def filled(self, weights: State, provenance: bytes = b"provenance 1") -> Path | None:
        assert self.graph is not None
        path = self.into / "filled.zip"
        return path if dissect.fill(path, self.graph, weights, provenance) else None

    def _graph(self) -> Graph | None:
        state = self.state()
        path = self.scripted(state, "proven")
        return self.graph_of(path, self.encoder, structure.weights_of(encoder_of(self.configuration, state)))

    def graph_of(self, path: Path, encoder: nn.Module, weights: State) -> Graph | None:
        with script.deprecations_ignored():
            module = torch.jit.load(path)
        compared = structure.compare(path, module, encoder, self.methods, self.precision)
        assert compared.problem is None
        assert compared.reference is not None
        return dissect.graph_of(path, compared.reference, weights, b"provenance 1")


def nothing(state: State) -> None:
    """Leaves the weights as they are when they have been multiplied."""


def cases() -> Iterator[Any]:
    """Each configuration at fp32 and at a half precision, of which the two differ in the name of their type.

    The first in half precision is tested always, the others are slow.
    """
    for number, name in enumerate(CONFIGURATIONS):
        for precision in ("fp32", ("fp16", "bf16")[number % 2]):
            marks = [] if (number, precision) == (0, "fp16") else [pytest.mark.slow]
            yield pytest.param(name, precision, marks=marks, id=f"{name}-{precision}")


FOLDED = {"causal convolution", "upsample with all"}
"""The configurations with a batch norm behind a convolution, which freezing makes one of."""


@pytest.mark.parametrize(("name", "precision"), list(cases()))
def test_a_graph_with_other_weights_is_what_torch_writes(name: str, precision: str, tmp_path: Path) -> None:
    zips = Zips(CONFIGURATIONS[name], precision, tmp_path)
    assert (zips.graph is None) == (name in FOLDED)
    if zips.graph is not None:
        filled = zips.filled(zips.weights(nothing), b"provenance 2")
        assert filled is not None
        scripted = zips.scripted(zips.state(nothing), provenance=b"provenance 2")
        assert filled.read_bytes() == scripted.read_bytes()
        assert filled.stat().st_size == zips.graph.size


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> Zips:
    """Zips of a language model in fp16."""
    return Zips(CONFIGURATIONS["transformer"], "fp16", tmp_path_factory.mktemp("zips"))


ONE, OTHER = "encoders.0.feed_forward.w_1.weight", "encoders.1.feed_forward.w_1.weight"
BIAS, NORM = "encoders.0.feed_forward.w_2.bias", "encoders.1.norm1.weight"


def equal(state: State) -> None:
    state[OTHER].copy_(state[ONE])


def equal_but_for_signs_of_zeros(state: State) -> None:
    state[BIAS].zero_()
    state[NORM].zero_().neg_()


def equal_in_half_precision(state: State) -> None:
    state[NORM].copy_(state[BIAS] * (1 + 1e-6))


def equal_in_another_order(state: State) -> None:
    state["encoders.0.self_attn.linear_out.weight"].copy_(state["encoders.1.self_attn.linear_out.weight"].t())


def its_own_transpose(state: State) -> None:
    weight = state["encoders.0.self_attn.linear_out.weight"]
    weight.copy_(weight + weight.t())


def like_a_checksum(state: State) -> None:
    state[BIAS][:2] = torch.frombuffer(bytearray(MARK), dtype=torch.float16).float()


@pytest.mark.parametrize(
    "edit",
    [
        equal,
        equal_but_for_signs_of_zeros,
        equal_in_half_precision,
        equal_in_another_order,
        its_own_transpose,
        like_a_checksum,
    ],
    ids=lambda edit: edit.__name__,
)
def test_weights_that_freezing_would_merge_and_others_that_do_not_fit_are_not_written(
    zips: Zips, edit: Callable[[State], object]
) -> None:
    assert zips.filled(zips.weights(edit)) is None


def test_numbers_in_another_order_or_with_other_signs_of_zero_are_seen() -> None:
    weight = torch.randn(1001, 64, generator=torch.Generator().manual_seed(0))
    weight[:9] = 0
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for one in (weight.to(dtype), weight.to(dtype).flatten()[1:]):
            others = [one.clone(), one.flatten().flip(0), one.flatten().roll(3), *([one.t()] if one.ndim > 1 else [])]
            others[0][one == 0] = -0.0
            assert not any(dissect.are_apart({"one": one, "other": other}) for other in others)
            assert dissect.are_apart({"one": one, "other": one.flatten().flip(0) * 2})
            different = one.clone()
            different.view(-1)[-1] += 1
            assert dissect.are_apart({"one": one, "other": different})


def test_strided_weights_are_not_written(zips: Zips) -> None:
    weights = zips.weights(nothing)
    name = next(name for name, each in weights.items() if each.ndim == 2)
    strided = {**weights, name: weights[name].t().contiguous().t()}
    assert zips.graph is not None
    assert dissect.fill(zips.into / "contiguous.zip", zips.graph, weights, b"provenance 1")
    assert not dissect.fill(zips.into / "strided.zip", zips.graph, strided, b"provenance 1")


@pytest.mark.parametrize("provenance", [b"", b"longer than it was"])
def test_provenance_of_another_length_is_not_written(zips: Zips, provenance: bytes) -> None:
    assert zips.filled(zips.weights(nothing), provenance) is None


@pytest.mark.parametrize("edit", [equal, pytest.param(its_own_transpose, marks=pytest.mark.slow)])
def test_equal_weights_do_not_give_a_graph(edit: Callable[[State], object], tmp_path: Path) -> None:
    zips = Zips(CONFIGURATIONS["transformer"], "fp32", tmp_path)
    path = zips.scripted(zips.state(edit), "alike")
    encoder = encoder_of(zips.configuration, zips.state(edit))
    assert zips.graph_of(path, encoder, structure.weights_of(encoder)) is None


def test_every_byte_of_a_zip_is_compared(zips: Zips) -> None:
    weights = zips.weights(nothing)
    path = zips.filled(weights)
    assert path is not None
    assert zips.graph is not None
    whole = path.read_bytes()
    assert dissect.is_filled(path, zips.graph, weights, b"provenance 1")
    changed = zips.into / "changed.zip"
    for at in range(0, len(whole), 97):
        changed.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not dissect.is_filled(changed, zips.graph, weights, b"provenance 1"), at
    for content in (whole[:-1], whole + b"\0", b""):
        changed.write_bytes(content)
        assert not dissect.is_filled(changed, zips.graph, weights, b"provenance 1")


def test_a_graph_comes_back_from_its_document(zips: Zips) -> None:
    assert zips.graph is not None
    graph = dataclasses.replace(zips.graph, figures={"step_seconds": 0.25})
    again = Graph.parse(json.loads(json.dumps(graph.document)))
    assert again == graph
    assert again.figures == {"step_seconds": 0.25}


def twice(kind: str) -> Callable[[dict[str, Any]], None]:
    """Puts a second gap beside one of a kind: with many of these, a zip would fill the disk."""

    def change(document: dict[str, Any]) -> None:
        gaps = document["gaps"]
        at = next(number for number, gap in enumerate(gaps) if gap[1] == kind)
        gaps.insert(at, gaps[at])

    return change


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no bytes": lambda document: document.pop("own"),
    "bytes that are not base64": lambda document: document.update(own="*"),
    "bytes that are not packed": lambda document: document.update(own="AAAA"),
    "bytes cut short": lambda document: document.update(own=document["own"][:40]),
    "a bomb": lambda document: document.update(own=base64.b64encode(zlib.compress(bytes(65 << 20))).decode()),
    "no gaps": lambda document: document.pop("gaps"),
    "a gap of another kind": lambda document: document["gaps"][0].__setitem__(1, "hole"),
    "a gap without a size": lambda document: document["gaps"][0].pop(),
    "a gap of a negative size": lambda document: document["gaps"][0].__setitem__(3, -1),
    "a gap that is not one": lambda document: document["gaps"].__setitem__(0, 1),
    "two gaps for a weight": twice("weight"),
    "two gaps for provenance": twice("provenance"),
    "two gaps for an id": twice("id"),
    "gaps that are not in order": lambda document: document["gaps"].reverse(),
    "a gap behind the end": lambda document: document["gaps"][-1].__setitem__(0, 1 << 40),
    "no figures": lambda document: document.pop("figures"),
    "a figure that is not a number": lambda document: document.update(figures={"step_seconds": "1"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_document_is_not_a_graph(zips: Zips, damage: str) -> None:
    assert zips.graph is not None
    document = json.loads(json.dumps(zips.graph.document))
    DAMAGES[damage](document)
    with pytest.raises((LookupError, TypeError, ValueError)):
        Graph.parse(document)
