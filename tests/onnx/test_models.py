"""The graphs of estimators: every option at every length, and what runtimes bind."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cosyjit.errors import UnsupportedOptionError
from cosyjit.estimators.parameters import parameters
from cosyjit.onnx import gate
from cosyjit.onnx.forms import FORMS
from cosyjit.onnx.graph import Graph
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


@pytest.mark.parametrize("length", [4, 3000])
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
