"""ONNX files of small estimators, made by the product's own calls, and what its gate says of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from cosyjit.errors import VerificationError
from cosyjit.estimators.registry import build_estimator
from cosyjit.metrics import Metrics
from cosyjit.onnx import gate, writer
from cosyjit.onnx.forms import FORMS
from cosyjit.onnx.graph import Model
from cosyjit.onnx.models import make
from tests.estimators.vectors import state

PREFIX = "decoder.estimator."
"""The beginning of the tensors' names in the weights file."""


class Case(NamedTuple):
    """An estimator that a file is made of.

    Attributes:
        class_name, options: as the configuration has them.
        weights: its weights file, which holds other tensors as well.
        state: its tensors.
    """

    class_name: str
    options: Mapping[str, Any]
    weights: Path
    state: dict[str, Tensor]

    @property
    def estimator(self) -> nn.Module:
        """The eager float32 network."""
        network = build_estimator(self.class_name, self.options)
        network.load_state_dict({name: each.float() for name, each in self.state.items()}, strict=True, assign=True)
        return network

    def save(self) -> None:
        """Save its tensors, beside others."""
        others = {"input_embedding.weight": torch.ones(3, 2)}
        torch.save({**others, **{f"{PREFIX}{name}": tensor for name, tensor in self.state.items()}}, self.weights)

    def model(self, form: str) -> Model:
        """Its model."""
        return make(self.class_name, self.options, FORMS[form])

    def write(self, model: Model, path: Path) -> int:
        """Write a file of a model. Returns how many numbers became 0."""
        return writer.write(model, self.weights, PREFIX, path, lambda _: None)

    def judge(self, path: Path, model: Model) -> Metrics:
        """The product's own gate."""
        return gate.verify(path, model, self.estimator, self.weights, PREFIX, lambda _: None)

    def refusal(self, path: Path, model: Model) -> str:
        """What the gate says of a faulty file, but for the path that it begins with."""
        try:
            self.judge(path, model)
        except VerificationError as error:
            message = str(error)
            assert message.startswith(f"{path}: ")
            assert "\n" not in message
            return message.removeprefix(f"{path}: ")
        raise AssertionError("the gate lets it pass")


def case_of(
    directory: Path, class_name: str, options: Mapping[str, Any], change: Callable[[Tensor], Tensor] = torch.clone
) -> Case:
    """An estimator with weights by their names, saved beside others.

    Args:
        directory: for the weights file.
        class_name, options: the estimator's.
        change: what is done to each tensor before it is saved.
    """
    tensors = {name: change(tensor) for name, tensor in state(class_name, options).items()}
    case = Case(class_name, options, directory / "flow.pt", tensors)
    case.save()
    return case


def run(path: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """What a file computes, in float32; its inputs are rounded to the type that it has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    dtype = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}[session.get_inputs()[0].type]
    (output,) = session.run(None, {name: each.to(dtype).numpy() for name, each in inputs.items()})
    return torch.from_numpy(output).float()


def loaded(path: Path) -> onnx.ModelProto:
    """The whole file."""
    return onnx.load(path, load_external_data=False)
