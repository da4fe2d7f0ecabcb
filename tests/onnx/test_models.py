"""The graphs of estimators: every option at every length, and what runtimes bind."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from cosyjit.errors import UnsupportedOptionError
from cosyjit.estimators.parameters import parameters
from cosyjit.onnx import gate, ranges
from cosyjit.onnx.calls import calls
from cosyjit.onnx.forms import FORMS
from cosyjit.onnx.graph import Graph, Model
from cosyjit.onnx.models import make
from tests.estimators.cases import Configuration, configurations
from tests.estimators.vectors import DIT, UNET
from tests.onnx.test_gate import OPTIONS
from tests.support.onnx_files import case_of, run

ATOL: Final = 2e-5


def joined(configuration: Configuration) -> Configuration:
    """A configuration whose inputs are all joined, as those of a file are."""
    options = dict(configuration.options)
    if "in_channels" in options:
        options["in_channels"] = 4 * options["out_channels"]
    return Configuration(configuration.class_name, options)


@given(
    configurations().map(joined),
    st.sampled_from(["fp32", "streaming.fp32"]),
    st.lists(st.integers(1, 23), min_size=2, max_size=2),
)
@example(Configuration(UNET, {**OPTIONS[UNET], "channels": [16, 24, 16]}), "fp32", [23, 5])
@example(Configuration(DIT, {**OPTIONS[DIT], "long_skip_connection": True, "heads": 1}), "streaming.fp32", [19, 7])
@settings(max_examples=40)
def test_a_graph_computes_what_its_network_does(configuration: Configuration, form: str, lengths: list[int]) -> None:
    class_name, options = configuration
    with TemporaryDirectory() as directory:
        case = case_of(Path(directory), class_name, options)
        model, path = case.model(form), Path(directory) / "made.onnx"
        gate.check_graph(path, model)
        case.write(model, path)
        longest, sizes = max(lengths), model.sizes
        generator = torch.Generator().manual_seed(0)
        inputs = {
            "x": torch.randn(2, sizes["x"], longest, generator=generator),
            "mask": (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).unsqueeze(1).float(),
            "mu": torch.randn(2, sizes["mu"], longest, generator=generator),
            "t": torch.tensor([0.3, 0.8]),
            "spks": torch.randn(2, sizes["spks"], generator=generator),
            "cond": torch.randn(2, sizes["cond"], longest, generator=generator),
        }
        with torch.inference_mode():
            expected = case.estimator(*inputs.values(), streaming=FORMS[form].streaming)
        torch.testing.assert_close(run(path, inputs), expected, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize(("which", "factor"), [(r"", 1e-3), (r"to_[qk]\.weight$", 4)], ids=["small", "sharp"])
@pytest.mark.parametrize("class_name", OPTIONS)
def test_constants_that_count_with_other_weights(class_name: str, which: str, factor: float, tmp_path: Path) -> None:
    """What norms add to a variance counts where weights are small, and what is not seen where scores are far apart."""
    case = case_of(tmp_path, class_name, OPTIONS[class_name])
    for name, tensor in case.state.items():
        tensor.mul_(factor if re.search(which, name) else 1)
    case.save()
    form = "fp32" if class_name == UNET else "streaming.fp32"
    model, path = case.model(form), tmp_path / "made.onnx"
    case.write(model, path)
    (call,) = (each for each in calls(model.form, model.sizes, model.chunk) if "24 and 13" in each.name)
    with torch.inference_mode():
        expected = case.estimator(*call.inputs.values(), streaming=model.form.streaming)
    error = (run(path, call.inputs) - expected).norm() / expected.norm()
    assert error < 1e-4


def without_casts(model: Model) -> list[Any]:
    """The nodes of a graph with their attributes and inputs, whatever the types of floats are."""
    floats = TensorProto.FLOAT, TensorProto.FLOAT16
    whole = onnx.shape_inference.infer_shapes(ranges.described(model)).graph
    types = {each.name: each.type.tensor_type.elem_type for each in (*whole.input, *whole.value_info, *whole.output)}
    names = dict[str, Any]()
    for constant in whole.initializer:
        numbers = numpy_helper.to_array(constant)
        kept = numbers.astype(np.float16).astype(np.float64) if numbers.dtype.kind == "f" else numbers
        names[constant.name] = (constant.dims, kept.tolist())
    nodes = list[Any]()
    for node in whole.node:
        inputs = [names.get(each, each) for each in node.input]
        if node.op_type == "Cast" and {types[node.input[0]], types[node.output[0]]} <= {*floats}:
            names[node.output[0]] = inputs[0]
            continue
        for number, each in enumerate(node.output):
            names[each] = (len(nodes), number)
        nodes.append((node.op_type, inputs, [each.SerializeToString() for each in node.attribute]))
    return [*nodes, names[whole.output[0].name]]


VARIANTS: Final[list[tuple[str, dict[str, Any]]]] = [
    *((class_name, {}) for class_name in OPTIONS),
    *((UNET, {"act_fn": act_fn}) for act_fn in ("gelu-approximate", "geglu", "geglu-approximate", "snakebeta")),
    (DIT, {"long_skip_connection": True, "heads": 1, "spk_dim": None}),
]


@pytest.mark.parametrize("streaming", ["", "streaming."])
@pytest.mark.parametrize(("class_name", "options"), VARIANTS)
def test_a_graph_in_half_precision_is_that_of_float32_but_for_casts(
    class_name: str, options: dict[str, Any], streaming: str
) -> None:
    half, full = (
        make(class_name, {**OPTIONS[class_name], **options}, FORMS[f"{streaming}{precision}"])
        for precision in ("autocast_fp16", "fp32")
    )
    assert [weight._replace(dtype="") for weight in half.weights] == [
        weight._replace(dtype="") for weight in full.weights
    ]
    with np.errstate(over="ignore"):
        assert without_casts(half) == without_casts(full)


@pytest.mark.parametrize("length", [4, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("class_name", OPTIONS)
def test_the_ends_of_the_range_of_lengths(class_name: str, length: int, tmp_path: Path) -> None:
    case, path = case_of(tmp_path, class_name, OPTIONS[class_name]), tmp_path / "made.onnx"
    case.write(case.model("fp32"), path)
    generator = torch.Generator().manual_seed(0)
    x, mu, cond = (torch.randn(2, 4, length, generator=generator) for _ in range(3))
    inputs = {"x": x, "mask": torch.ones(2, 1, length), "mu": mu, "t": torch.tensor([0.1, 0.6]), "spks": x[:, :, 0]}
    with torch.inference_mode():
        expected = case.estimator(*inputs.values(), cond)
    torch.testing.assert_close(run(path, {**inputs, "cond": cond}), expected, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize("channels", [8, 12, 18])
def test_inputs_that_a_file_does_not_have(channels: int) -> None:
    options: dict[str, Any] = {**OPTIONS[UNET], "in_channels": channels}
    with pytest.raises(UnsupportedOptionError) as caught:
        make(UNET, options, FORMS["fp32"])
    assert str(caught.value) == (
        f"option in_channels is {channels}; supported: 16, 4 times out_channels, since an ONNX file joins x, mu, spks "
        "and cond"
    )


def test_a_parameter_that_a_graph_does_not_use() -> None:
    graph = Graph(parameters(DIT, OPTIONS[DIT]), FORMS["fp32"])
    with pytest.raises(ValueError, match=r"^the graph does not use time_embed\.time_mlp\.0\.weight, "):
        graph.model({}, 0)
