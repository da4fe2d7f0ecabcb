"""The gate of ONNX files: what it lets pass, and that it names what is wrong with what it refuses.

Each fault is planted in the graph that a file is written of. Then the gate is asked twice: with the sound model, whose
bytes the file does not have; and with the faulty one, as if the code that makes graphs had the fault.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from torch import Tensor

from cosyjit.errors import VerificationError
from cosyjit.estimators.options import DiTOptions
from cosyjit.onnx import dit, gate, layers
from cosyjit.onnx.forms import FORMS, LIMITS
from cosyjit.onnx.graph import Graph, Interface, Model
from tests.estimators.vectors import CAUSAL_UNET, DIT, UNET
from tests.support.onnx_files import Case, case_of
from tests.support.tiers import sampled

UNETS: Final[dict[str, Any]] = {
    "in_channels": 16,
    "out_channels": 4,
    "channels": [16, 16],
    "attention_head_dim": 4,
    "n_blocks": 1,
    "num_mid_blocks": 1,
    "num_heads": 2,
    "act_fn": "gelu",
}
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    UNET: UNETS,
    CAUSAL_UNET: {**UNETS, "channels": [16], "static_chunk_size": 6},
    DIT: {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "mel_dim": 4, "spk_dim": 4, "static_chunk_size": 6},
}
CHANGED: Final = "this is a fault of cosyjit or of the disk: export again, and report it if it stays"
OTHER_GRAPH: Final = f"its graph is not that of the estimator; {CHANGED}"


@pytest.fixture(params=OPTIONS, ids=lambda name: name.rpartition(".")[2])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return case_of(tmp_path, request.param, OPTIONS[request.param])


@pytest.fixture
def transformer(tmp_path: Path) -> Case:
    return case_of(tmp_path, DIT, OPTIONS[DIT])


@pytest.fixture
def unet(tmp_path: Path) -> Case:
    return case_of(tmp_path, CAUSAL_UNET, OPTIONS[CAUSAL_UNET])


@pytest.mark.parametrize("form", sampled(FORMS, 2))
def test_every_form_of_every_class_passes(case: Case, form: str, tmp_path: Path) -> None:
    model, path = case.model(form), tmp_path / "made.onnx"
    case.write(model, path)
    content = path.read_bytes()
    metrics = case.judge(path, model)
    tolerance = LIMITS[FORMS[form].dtype].tolerance
    assert 0 < metrics.absolute <= tolerance.absolute
    assert 0 < metrics.relative <= tolerance.relative
    assert tolerance.cosine <= metrics.cosine < 1
    assert path.read_bytes() == content


# Faults of graphs.


def changed(model: Model, change: Callable[[onnx.GraphProto], None]) -> Model:
    """A model whose graph is changed."""
    proto = copy.deepcopy(model.proto)
    change(proto.graph)
    return replace(model, proto=proto)


def refusals(case: Case, form: str, faulty: Model, path: Path) -> str:
    """What the gate says of a faulty file if the code has the fault as well; without it, it says that bytes differ."""
    case.write(faulty, path)
    assert case.refusal(path, case.model(form)) == OTHER_GRAPH
    return case.refusal(path, faulty)


def swap(first: str, second: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [{first: second, second: first}.get(each, each) for each in node.input]

    return change


@pytest.mark.parametrize("pair", [("mu", "cond"), ("x", "mu"), ("x", "cond")])
def test_inputs_that_are_taken_for_each_other(case: Case, pair: tuple[str, str], tmp_path: Path) -> None:
    said = refusals(case, "fp32", changed(case.model("fp32"), swap(*pair)), tmp_path / "made.onnx")
    assert said.startswith("4 frames: the largest absolute error is ")
    assert said.endswith("; this is a fault of cosyjit or of ONNX Runtime: report it")


def test_inputs_in_another_order(unet: Case, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.input[2].name, graph.input[5].name = "cond", "mu"

    said = refusals(unet, "fp32", changed(unet.model("fp32"), change), tmp_path / "made.onnx")
    shape = "(float, 2 x 4 x seq_len)"
    assert said == f"binds cond {shape} where runtimes bind mu {shape}; {CHANGED}"


def test_a_batch_of_any_size(unet: Case, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.input[3].type.tensor_type.shape.dim[0].dim_param = "batch"

    said = refusals(unet, "fp32", changed(unet.model("fp32"), change), tmp_path / "made.onnx")
    assert said == f"binds t (float, batch) where runtimes bind t (float, 2); {CHANGED}"


def test_a_batch_of_two_where_any_is_asked_for(unet: Case, tmp_path: Path) -> None:
    path, model = tmp_path / "made.onnx", replace(unet.model("fp32"), form=FORMS["fp32.dynamic_batch"])
    unet.write(model, path)
    said = unet.refusal(path, model)
    assert said.startswith("binds x (float, 2 x 4 x seq_len) where runtimes bind x (float, batch x 4 x seq_len); ")


def test_an_input_too_many(unet: Case, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.input.append(onnx.helper.make_tensor_value_info("streaming", TensorProto.BOOL, []))

    said = refusals(unet, "fp32", changed(unet.model("fp32"), change), tmp_path / "made.onnx")
    assert said == f"binds streaming (bool, ) where runtimes bind estimator_out (float, 2 x 4 x seq_len); {CHANGED}"


def test_an_output_too_many(unet: Case, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.output.append(graph.output[0])

    said = refusals(unet, "fp32", changed(unet.model("fp32"), change), tmp_path / "made.onnx")
    assert said == f"binds 8 values, and runtimes 7; {CHANGED}"


def test_numbers_in_another_file(unet: Case, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        constant = graph.initializer[0]
        constant.ClearField("raw_data")
        constant.data_location = TensorProto.EXTERNAL
        constant.external_data.add(key="location", value="made.onnx.data")

    model = changed(unet.model("fp32"), change)
    said = refusals(unet, "fp32", model, tmp_path / "made.onnx")
    assert said == f"has numbers outside of the file ({model.proto.graph.initializer[0].name}); {CHANGED}"


def test_another_version(unet: Case, tmp_path: Path) -> None:
    model = copy.deepcopy(unet.model("fp32"))
    model.proto.ir_version = 11
    said = refusals(unet, "fp32", model, tmp_path / "made.onnx")
    assert said == f"is of opset [('', 18)] and IR version 11, not of 18 and 8; {CHANGED}"


@pytest.mark.parametrize("fault", ["an operator", "a shape"])
def test_a_graph_that_is_not_valid(unet: Case, fault: str, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        node = next(each for each in graph.node if each.op_type == "Conv")
        if fault == "an operator":
            node.op_type = "Convolve"
        else:
            node.input[1] = "down_blocks.0.0.mlp.1.weight"

    said = refusals(unet, "fp32", changed(unet.model("fp32"), change), tmp_path / "made.onnx")
    assert said.startswith("is not valid (")
    assert said.endswith(f"; {CHANGED}")


def test_a_rotation_of_all_heads(transformer: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rotated = dit._DiT.rotated

    def all_heads(self: dit._DiT, value: str) -> str:
        one = copy.copy(self)
        one.options = replace(self.options, heads=1)
        return rotated(one, value)

    with monkeypatch.context() as patch:
        patch.setattr(dit._DiT, "rotated", all_heads)
        faulty = transformer.model("fp32")
    said = refusals(transformer, "fp32", faulty, tmp_path / "made.onnx")
    assert said.startswith("4 frames: the largest absolute error is ")


@pytest.mark.parametrize("form", ["streaming.fp32", "streaming.autocast_fp16"])
@pytest.mark.parametrize("class_name", [CAUSAL_UNET, DIT])
def test_a_chunk_too_few(class_name: str, form: str, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        (node,) = (each for each in graph.node if each.op_type == "LessOrEqual")
        node.op_type = "Less"

    case = case_of(tmp_path, class_name, OPTIONS[class_name])
    said = refusals(case, form, changed(case.model(form), change), tmp_path / "made.onnx")
    assert said.startswith("16 frames: the largest absolute error is ")


@pytest.mark.parametrize("class_name", [CAUSAL_UNET, DIT])
def test_a_chunk_of_a_frame_more(class_name: str, tmp_path: Path) -> None:
    case = case_of(tmp_path, class_name, OPTIONS[class_name])
    other = case._replace(options={**case.options, "static_chunk_size": 7}).model("streaming.fp32")
    said = refusals(case, "streaming.fp32", other, tmp_path / "made.onnx")
    assert said.startswith("16 frames: the largest absolute error is ")


def test_all_frames_seen_when_streaming(unet: Case, tmp_path: Path) -> None:
    offline = replace(unet.model("fp32"), form=FORMS["streaming.fp32"])
    said = refusals(unet, "streaming.fp32", offline, tmp_path / "made.onnx")
    assert said.startswith("16 frames: the largest absolute error is ")


def infinite_bias(graph: Graph, mask: str, _: int) -> str:
    """The product of what is padded and -1e10, which is an infinity in half precision."""
    half = graph.node("Cast", mask, to=TensorProto.FLOAT16)
    padded = graph.node("Sub", graph.constant(1), graph.node("Unsqueeze", half, graph.integers(1)))
    with np.errstate(over="ignore"):
        least = graph.constant(-1e10)
    return graph.wide(graph.node("Mul", padded, least))


def test_an_infinite_bias_in_half_precision(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layers, "attention_bias", infinite_bias)
        faulty = case.model("autocast_fp16")
    said = refusals(case, "autocast_fp16", faulty, tmp_path / "made.onnx")
    assert said == "4 frames has 32 of 32 numbers NaN or infinite; export fp32 instead"


def half_angles(graph: Graph, time: str, size: int) -> str:
    """The sinusoids of the time, whose angles are rounded to half precision."""
    half = size // 2
    frequencies = np.exp(-np.arange(half) * np.log(10_000) / (half - 1))
    column = graph.node("Unsqueeze", graph.node("Mul", time, graph.constant(1000)), graph.integers(1))
    angles = graph.wide(graph.node("Mul", column, graph.constant(frequencies)))
    return graph.node("Concat", graph.node("Sin", angles), graph.node("Cos", angles), axis=1)


def test_a_time_in_half_precision(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layers, "sinusoids", half_angles)
        faulty = case.model("autocast_fp16")
    said = refusals(case, "autocast_fp16", faulty, tmp_path / "made.onnx")
    assert " is " in said
    assert said.endswith("; export fp32 instead")


def test_an_output_that_is_masked(transformer: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = dit.build

    def masked(graph: Graph, options: DiTOptions, interface: Interface) -> str:
        return graph.node("Mul", build(graph, options, interface), interface.mask)

    with monkeypatch.context() as patch:
        patch.setattr(dit, "build", masked)
        faulty = transformer.model("fp32")
    said = refusals(transformer, "fp32", faulty, tmp_path / "made.onnx")
    assert said.startswith("a padded batch of 33 and 20 frames: the largest absolute error is ")


def test_an_output_that_is_not_masked(unet: Case, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        last = graph.node[-1]
        assert last.op_type == "Mul"
        del graph.node[-1]
        graph.node[-1].output[0] = last.output[0]

    said = refusals(unet, "fp32", changed(unet.model("fp32"), change), tmp_path / "made.onnx")
    assert said.startswith("a padded batch of 33 and 20 frames: the largest absolute error is ")


@pytest.mark.parametrize("name", ["down_blocks.0.Mul_1", "up_blocks.0.Mul_1"])
def test_what_is_padded_is_not_masked_before_the_length_changes(name: str, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        (product,) = (node for node in graph.node if node.name == name)
        (user,) = (node for node in graph.node if product.output[0] in node.input)
        assert user.op_type in ("Conv", "ConvTranspose")
        user.input[0] = product.input[0]

    for class_name in (UNET, CAUSAL_UNET):
        (tmp_path / class_name).mkdir()
        case = case_of(tmp_path / class_name, class_name, {**UNETS, "channels": [16, 16]})
        said = refusals(case, "fp32", changed(case.model("fp32"), change), tmp_path / class_name / "made.onnx")
        assert said.startswith("a padded batch of ")


# Faults of files.


def test_a_weight_of_which_a_bit_is_another(case: Case, tmp_path: Path) -> None:
    model, path = case.model("fp32"), tmp_path / "made.onnx"
    case.write(model, path)
    whole = onnx.load(path)
    weight = whole.graph.initializer[-1]
    numbers = numpy_helper.to_array(weight).copy()
    numbers.view(np.uint32).reshape(-1)[-1] ^= 1
    weight.raw_data = numbers.tobytes()
    path.write_bytes(whole.SerializeToString())
    assert case.refusal(path, model) == (
        f"{weight.name} is not the cast of decoder.estimator.{weight.name} in {case.weights}; {CHANGED}"
    )


def test_weights_of_which_two_have_changed_places(unet: Case, tmp_path: Path) -> None:
    model, path = unet.model("fp32"), tmp_path / "made.onnx"
    first, second = "mid_blocks.0.1.0.attn1.to_k.weight", "mid_blocks.0.1.0.attn1.to_v.weight"
    said = refusals(unet, "fp32", changed(model, swap(first, second)), path)
    assert said.startswith("4 frames: ")


@pytest.mark.parametrize("size", [-1, 1])
def test_a_file_that_is_shorter_or_longer(unet: Case, size: int, tmp_path: Path) -> None:
    model, path = unet.model("fp32"), tmp_path / "made.onnx"
    unet.write(model, path)
    content = path.read_bytes()
    path.write_bytes(content[:size] if size < 0 else content + b"\0")
    assert unet.refusal(path, model) == (OTHER_GRAPH if size < 0 else f"is longer than what was planned; {CHANGED}")


def test_weights_that_the_estimator_overflows_with(unet: Case, tmp_path: Path) -> None:
    def large(tensor: Tensor) -> Tensor:
        return tensor * 1e30

    case = case_of(tmp_path, unet.class_name, unet.options, large)
    model, path = case.model("fp32"), tmp_path / "made.onnx"
    case.write(model, path)
    said = case.refusal(path, model)
    assert said.startswith("4 frames of the estimator itself has ")
    assert said.endswith(" numbers NaN or infinite; export a checkpoint whose weights are sound")


LARGE: Final = {
    # A layer, what its outputs are multiplied by, the layer behind it that takes that back, and what overflows.
    "a feed-forward layer": (DIT, "ff.ff.0.0", 4e4, "ff.ff.2", "transformer_blocks.0.ff.Gemm_1"),
    "a convolution before a norm": (CAUSAL_UNET, "block1.block.0", 4e4, None, "down_blocks.0.0.Conv_1"),
    "a sum before a norm": (UNET, "0.0.res_conv", 1e6, None, "down_blocks.1.0.Cast_2"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_value_that_overflows_in_half_precision_though_the_output_does_not_show_it(kind: str, tmp_path: Path) -> None:
    class_name, large, factor, small, where = LARGE[kind]
    case = case_of(tmp_path, class_name, OPTIONS[class_name])
    for name, tensor in case.state.items():
        layer, _, part = name.rpartition(".")
        if layer.endswith(large):
            tensor.mul_(factor if part == "weight" else 1)
        elif small and layer.endswith(small) and part == "weight":
            tensor.div_(factor)
    case.save()
    model, path = case.model("autocast_fp16"), tmp_path / "made.onnx"
    case.write(model, path)
    said = case.refusal(path, model)
    assert said.startswith(f"4 frames: {where} reaches ")
    assert said.endswith(", more than the 65,504 of half precision; export fp32 instead")
    case.write(case.model("fp32"), tmp_path / "made.fp32.onnx")
    case.judge(tmp_path / "made.fp32.onnx", case.model("fp32"))


def test_a_file_that_onnx_runtime_does_not_load(unet: Case, tmp_path: Path) -> None:
    path = tmp_path / "made.onnx"
    path.write_bytes(b"not a message of protobuf")
    with pytest.raises(
        VerificationError, match=r"made\.onnx: ONNX Runtime does not load it \(.*\); this is a fault of"
    ):
        gate.compare(path, unet.model("fp32"), unet.estimator)


def test_a_file_that_onnx_runtime_does_not_run(unet: Case, tmp_path: Path) -> None:
    # The checker does not count what a reshape asks for where a length is not known.
    def change(graph: onnx.GraphProto) -> None:
        (heads,) = (each for each in graph.initializer if each.data_type == TensorProto.INT64 and each.dims == [4])
        heads.raw_data = np.array([2, -1, 3, 4], np.int64).tobytes()

    path = tmp_path / "made.onnx"
    unet.write(changed(unet.model("fp32"), change), path)
    with pytest.raises(VerificationError, match=r"made\.onnx: ONNX Runtime does not run it \(.*\); this is a fault of"):
        gate.compare(path, unet.model("fp32"), unet.estimator)
