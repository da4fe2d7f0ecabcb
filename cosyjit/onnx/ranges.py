"""Shows how large the values of a graph become that are in half precision, where 65,504 is the largest number.

ONNX Runtime computes such values in float32 on processors that lack arithmetic in half precision, and rounds few of
them. So a value beyond that does not show in its output there, but is infinite on a GPU.
"""

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from cosyjit.onnx import writer
from cosyjit.onnx.graph import TYPES, Model

LARGEST: Final = 65_504
"""The largest number of half precision."""

OUTPUT: Final = "largest"


def halves(model: Model) -> list[str]:
    """The values of a graph that are in half precision, in the order of its nodes."""
    inferred = onnx.shape_inference.infer_shapes(described(model)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    values = (value for node in inferred.node for value in node.output)
    return [value for value in values if types[value] == TensorProto.FLOAT16]


def weights(model: Model, path: Path) -> dict[str, np.ndarray]:
    """The weights in a file by their names, as it is mapped; none of them is copied."""
    content = np.memmap(path, np.uint8, "r")
    return {
        weight.name: content[place : place + weight.size].view(weight.dtype).reshape(weight.shape)
        for weight, place in zip(model.weights, writer.places(model), strict=True)
    }


def watching(model: Model, values: list[str]) -> onnx.ModelProto:
    """A model that computes what a file does, and the largest magnitude of each of some values.

    Args:
        model: that of the file.
        values: names of values.

    Returns:
        A model whose last output is `OUTPUT`, float32 of the shape (values,). Its weights are said to be elsewhere.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    for weight in model.weights:
        tensor = graph.initializer.add(name=weight.name, data_type=TYPES[weight.dtype], dims=weight.shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="the session")
    scalar = f"{OUTPUT}.shape"
    graph.initializer.append(helper.make_tensor(scalar, TensorProto.INT64, [1], [1]))
    largest = []
    for number, value in enumerate(values):
        wide, magnitude, one, each = (f"{OUTPUT}.{number}.{step}" for step in ("wide", "magnitude", "one", "each"))
        graph.node.extend(
            [
                helper.make_node("Cast", [value], [wide], to=TensorProto.FLOAT),
                helper.make_node("Abs", [wide], [magnitude]),
                helper.make_node("ReduceMax", [magnitude], [one], keepdims=0),
                helper.make_node("Reshape", [one, scalar], [each]),
            ]
        )
        largest.append(each)
    graph.node.append(helper.make_node("Concat", largest, [OUTPUT], axis=0))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [len(largest)]))
    return proto


def described(model: Model) -> onnx.ModelProto:
    """A model whose weights are inputs: the graph is the same, and no number is in memory."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.input.extend(
        helper.make_tensor_value_info(weight.name, TYPES[weight.dtype], weight.shape) for weight in model.weights
    )
    return proto
