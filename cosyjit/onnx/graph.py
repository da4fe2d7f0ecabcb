"""Builds an ONNX graph node by node. Its weights are names, shapes and types: their numbers come with the file."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from cosyjit.encoders.parameters import Parameter
from cosyjit.onnx.forms import BATCH, Form
from cosyjit.weights.tensors import ITEM_SIZES

OPSET: Final = 18
IR_VERSION: Final = 8
"""The lowest that has this opset, so that old readers take the file."""

TYPES: Final = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
"""The types of weights, by torch's names."""

Axis = int | str
"""The size of an axis, or its name where it may have any."""


class Weight(NamedTuple):
    """A weight of a graph.

    Attributes:
        name: that of the parameter.
        parameter_shape: its shape in the checkpoint.
        dtype: its type in the graph, by torch's name.
        column: whether it has an axis of 1 behind it in the graph. Its bytes are the same.
    """

    name: str
    parameter_shape: tuple[int, ...]
    dtype: str
    column: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the graph."""
        return (*self.parameter_shape, 1) if self.column else self.parameter_shape

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


class Interface(NamedTuple):
    """The inputs of an estimator, in the order of the file.

    Attributes:
        x: the noisy frames, (B, channels, T).
        mask: (B, 1, T), 1 for real frames.
        mu: the encoder's frames, (B, channels, T).
        t: the time of the flow, (B), from 0 to 1.
        spks: the speakers' vectors, (B, channels).
        cond: the frames of the prompt, (B, channels, T).
    """

    x: str
    mask: str
    mu: str
    t: str
    spks: str
    cond: str


class Graph:
    """A graph that is being built. Values are the names of what nodes give.

    Attributes:
        form: that of the file.
        weights: those used so far, by their names, in the order of their first use.
    """

    def __init__(self, parameters: Mapping[str, Parameter], form: Form) -> None:
        self.form = form
        self.weights: dict[str, Weight] = {}
        self._parameters = parameters
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._counts: dict[str, int] = {}
        self._shapes: dict[tuple[int, ...], str] = {}
        self._scope = ""

    # Places.

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Within the block, nodes are named and weights are found below this name."""
        outer = self._scope
        self._scope = f"{outer}{name}."
        try:
            yield
        finally:
            self._scope = outer

    # Values.

    def input(self, name: str, shape: Sequence[Axis]) -> str:
        """Declare an input of the form's type; the order of these calls is that of the file."""
        self._inputs.append(helper.make_tensor_value_info(name, TYPES[self.form.dtype], list(shape)))
        return name

    def output(self, name: str, value: str, shape: Sequence[Axis]) -> None:
        """Declare a value as an output, under a name of its own."""
        for node in self._nodes:
            for field in (node.input, node.output):
                field[:] = [name if each == value else each for each in field]
        self._outputs.append(helper.make_tensor_value_info(name, TYPES[self.form.dtype], list(shape)))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output.

        Args:
            operator: of ONNX.
            inputs: values, weights or constants.
            attributes: those of the operator.
        """
        return self.nodes(operator, 1, *inputs, **attributes)[0]

    def nodes(self, operator: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        stem = f"{self._scope}{operator}"
        number = self._counts[stem] = self._counts.get(stem, 0) + 1
        name = f"{stem}_{number}"
        values = [name] if outputs == 1 else [f"{name}.{each}" for each in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), values, name=name, **attributes))
        return values

    def weight(self, name: str, *, dtype: str | None = None, column: bool = False) -> str:
        """A parameter of the network, by its name below the scope.

        Args:
            name: below the scope.
            dtype: its type in the graph; by default that of the form.
            column: whether a vector stands along the axis before the last, with an axis of 1 behind it.
        """
        full = f"{self._scope}{name}"
        shape = self._parameters[full].shape
        self.weights[full] = Weight(full, shape, dtype or self.form.dtype, column)
        return full

    def constant(self, values: Any, dtype: str = "") -> str:
        """Numbers that follow from the options. Equal ones are stored once.

        Args:
            values: a number or an array.
            dtype: their type by numpy's name; by default that of the form.
        """
        array = np.asarray(values, dtype or self.form.dtype)
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        key = array.dtype.name, array.shape, content
        if key not in self._constants:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            name = f"constant_{len(self._constants) + 1}"
            self._constants[key] = helper.make_tensor(name, kind, array.shape, content, raw=True)
        return self._constants[key].name

    def integers(self, *values: int) -> str:
        """A vector of integers, such as axes and sizes are."""
        return self.constant(values, "int64")

    # Types.

    def wide(self, value: str) -> str:
        """A value of the form's type, in float32."""
        return value if self.form.dtype == "float32" else self.node("Cast", value, to=TensorProto.FLOAT)

    def narrow(self, value: str) -> str:
        """A value in float32, in the form's type."""
        return value if self.form.dtype == "float32" else self.node("Cast", value, to=TYPES[self.form.dtype])

    # Shapes.

    def batched(self, like: str, *sizes: int) -> str:
        """The shape of a batch with axes of these sizes, of which one may be -1: what is left for it.

        Args:
            like: a value whose first axis is the batch.
            sizes: those of the other axes.
        """
        if not self.form.dynamic_batch:
            return self.integers(BATCH, *sizes)
        if sizes not in self._shapes:
            with self._at_root():
                rows = self.node("Shape", like, start=0, end=1)
                self._shapes[sizes] = self.node("Concat", rows, self.integers(*sizes), axis=0)
        return self._shapes[sizes]

    @contextmanager
    def _at_root(self) -> Iterator[None]:
        outer, self._scope = self._scope, ""
        try:
            yield
        finally:
            self._scope = outer

    # The whole.

    def model(self, sizes: Mapping[str, int], chunk: int) -> "Model":
        """What was built; for the arguments see `Model`.

        Raises:
            ValueError: a parameter is not used.
        """
        unused = [name for name in self._parameters if name not in self.weights]
        if unused:
            raise ValueError(f"the graph does not use {', '.join(unused)}")
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, "estimator", self._inputs, self._outputs, constants)
        opset = helper.make_opsetid("", OPSET)
        proto = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="cosyjit")
        return Model(proto, tuple(self.weights.values()), self.form, sizes, chunk)


@dataclass(frozen=True)
class Model:
    """A model whose weights are described, but not there.

    Attributes:
        proto: the model with all but its weights; those that it has as initializers are constants of the graph.
        weights: those that the file has as initializers behind these, in this order.
        form: that of the file.
        sizes: the channels of each input that has some, by its name.
        chunk: the frames of a chunk; 0 if the estimator has no chunks.
    """

    proto: onnx.ModelProto
    weights: tuple[Weight, ...]
    form: Form
    sizes: Mapping[str, int]
    chunk: int

    @property
    def size(self) -> int:
        """The size of the weights, in bytes."""
        return sum(weight.size for weight in self.weights)
