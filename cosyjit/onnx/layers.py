"""The layers that the estimators consist of, as nodes of a graph.

Inside of transformers, frames are rows: a batch of B sequences of T frames is a matrix of B * T rows. So a linear layer
is one `Gemm` with the parameter as it is in the checkpoint, bias and scale included, and no weight is transposed.

Half precision has 11 bits and ends at 65,504. In a graph whose type is float16, norms, softmax and activations compute
in float32, between casts.
"""

import math
from typing import Final

import numpy as np
from onnx import TensorProto

from cosyjit.onnx.graph import Graph

FLOAT: Final = int(TensorProto.FLOAT)
BOOL: Final = int(TensorProto.BOOL)

_UNSEEN: Final = -1e10
"""What is added to the score of a key that is not visible. An infinity could make a NaN of it."""

_LONGEST_PERIOD: Final = 10_000.0
"""Of the sinusoids of the time, over the shortest."""

_STEPS: Final = 1_000.0
"""The scale of the time, which itself is from 0 to 1."""


def linear(
    graph: Graph, rows: str, name: str, *, bias: bool = True, scale: float = 1.0, dtype: str | None = None
) -> str:
    """A linear layer over rows, times a scale.

    Args:
        graph: that it is added to.
        rows: (N, inputs).
        name: that of the layer.
        bias: whether it has one.
        scale: what its outputs are multiplied by.
        dtype: the type of its weights, if not the form's.
    """
    inputs = [rows, graph.weight(f"{name}.weight", dtype=dtype)]
    factors = {"alpha": scale} if scale != 1 else {}
    if bias:
        inputs.append(graph.weight(f"{name}.bias", dtype=dtype))
        factors |= {"beta": scale} if scale != 1 else {}
    return graph.node("Gemm", *inputs, transB=1, **factors)


def convolution(
    graph: Graph, value: str, name: str, pads: tuple[int, int] = (0, 0), stride: int = 1, dtype: str | None = None
) -> str:
    """A convolution over (B, channels, T), with zeros before and after; for `dtype` see `linear`."""
    weights = graph.weight(f"{name}.weight", dtype=dtype), graph.weight(f"{name}.bias", dtype=dtype)
    return graph.node("Conv", value, *weights, pads=list(pads), strides=[stride])


def layer_norm(graph: Graph, value: str, name: str) -> str:
    """A norm over the last axis, in float32."""
    weights = graph.weight(f"{name}.weight", dtype="float32"), graph.weight(f"{name}.bias", dtype="float32")
    return graph.node("LayerNormalization", value, *weights, axis=-1, epsilon=1e-5)


def swapped(graph: Graph, value: str) -> str:
    """(B, T, channels) of (B, channels, T), and the other way round."""
    return graph.node("Transpose", value, perm=[0, 2, 1])


def sequences_of(graph: Graph, rows: str, size: int) -> str:
    """(B, T, size) of (B * T, size)."""
    return graph.node("Reshape", rows, graph.batched("x", -1, size))


def rows_of(graph: Graph, sequences: str, size: int) -> str:
    """(B * T, size) of (B, T, size), or of heads (B, T, heads, head size) that have so many channels together."""
    return graph.node("Reshape", sequences, graph.integers(-1, size))


# Activations.


def mish(graph: Graph, value: str) -> str:
    """Mish: z tanh(softplus(z)). It has an operator of its own, which not every reader of opset 18 knows.

    Its value is in float32.
    """
    return graph.node("Mul", value, graph.node("Tanh", graph.node("Softplus", value)))


def silu(graph: Graph, value: str) -> str:
    """SiLU: z sigmoid(z)."""
    return graph.node("Mul", value, graph.node("Sigmoid", value))


def gelu(graph: Graph, value: str) -> str:
    """GELU by the error function. ONNX Runtime and TensorRT know this sequence of nodes."""
    wide = graph.wide(value)
    error = graph.node("Erf", graph.node("Div", wide, graph.constant(math.sqrt(2), "float32")))
    doubled = graph.node("Mul", wide, graph.node("Add", error, graph.constant(1, "float32")))
    return graph.narrow(graph.node("Mul", doubled, graph.constant(0.5, "float32")))


def tanh_gelu(graph: Graph, value: str) -> str:
    """GELU by the hyperbolic tangent: z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2."""
    wide = graph.wide(value)
    cube = graph.node("Mul", wide, graph.node("Mul", wide, wide))
    bent = graph.node("Add", wide, graph.node("Mul", cube, graph.constant(0.044715, "float32")))
    tanh = graph.node("Tanh", graph.node("Mul", bent, graph.constant(math.sqrt(2 / math.pi), "float32")))
    doubled = graph.node("Mul", wide, graph.node("Add", tanh, graph.constant(1, "float32")))
    return graph.narrow(graph.node("Mul", doubled, graph.constant(0.5, "float32")))


# Time.


def sinusoids(graph: Graph, time: str, size: int) -> str:
    """The sines of 1000 t w_i, and then their cosines, in float32: (B, size), of t (B).

    w_i = exp(-i ln(10000) / (size / 2 - 1)). The exponents are rounded to float32 first, as in training. This is always
    in float32: at t = 0.5, half precision has steps of 0.25 in the angle.
    """
    half = size // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(_LONGEST_PERIOD) / (half - 1))
    frequencies = [math.exp(exponent) for exponent in exponents.tolist()]
    steps = graph.node("Mul", graph.wide(time), graph.constant(_STEPS, "float32"))
    column = graph.node("Unsqueeze", steps, graph.integers(1))
    angles = graph.node("Mul", column, graph.constant(frequencies, "float32"))
    return graph.node("Concat", graph.node("Sin", angles), graph.node("Cos", angles), axis=1)


def time_embedding(graph: Graph, time: str, size: int, first: str, second: str) -> str:
    """The embedding of a time, in float32: linear, SiLU, linear of its sinusoids."""
    hidden = silu(graph, linear(graph, sinusoids(graph, time, size), first, dtype="float32"))
    return linear(graph, hidden, second, dtype="float32")


# Attention.


def attention_bias(graph: Graph, mask: str, chunk: int) -> str:
    """What is added to the scores of attention: (B, 1, 1 or T, T).

    A frame sees the real frames up to the end of its own chunk. One that would see none sees all, so that its output
    does not depend on the size of the bias.

    Args:
        graph: that it is added to.
        mask: (B, 1, T), 1 for real frames.
        chunk: the frames of a chunk; 0 if there are no chunks.
    """
    real = graph.node("Unsqueeze", mask, graph.integers(1))
    visible = graph.node("Cast", real, to=BOOL)
    seen = real
    if chunk:
        frames = graph.node("Range", graph.constant(0, "int64"), length(graph, mask), graph.constant(1, "int64"))
        chunks = graph.node("Div", frames, graph.constant(chunk, "int64"))
        column = graph.node("Unsqueeze", chunks, graph.integers(1))
        visible = graph.node("And", visible, graph.node("LessOrEqual", chunks, column))
        seen = graph.node("Cast", visible, to=FLOAT)
    some = graph.node("Cast", graph.node("ReduceMax", seen, graph.integers(-1)), to=BOOL)
    visible = graph.node("Or", visible, graph.node("Not", some))
    return graph.node("Where", visible, graph.constant(0, "float32"), graph.constant(_UNSEEN, "float32"))


def length(graph: Graph, value: str) -> str:
    """The number of frames of (B, channels, T), as a scalar."""
    return graph.node("Squeeze", graph.node("Shape", value, start=2, end=3))


def heads_of(graph: Graph, rows: str, heads: int, size: int) -> str:
    """(B, T, heads, size) of (B * T, heads * size)."""
    return graph.node("Reshape", rows, graph.batched("x", -1, heads, size))


def attention(graph: Graph, queries: str, keys: str, values: str, bias: str) -> str:
    """Softmax attention: (B, T, heads, size), of queries that are scaled, keys and values of that shape."""
    scores = graph.node(
        "MatMul",
        graph.node("Transpose", queries, perm=[0, 2, 1, 3]),
        graph.node("Transpose", keys, perm=[0, 2, 3, 1]),
    )
    shares = graph.narrow(graph.node("Softmax", graph.node("Add", graph.wide(scores), bias), axis=-1))
    mixed = graph.node("MatMul", shares, graph.node("Transpose", values, perm=[0, 2, 1, 3]))
    return graph.node("Transpose", mixed, perm=[0, 2, 1, 3])


def repeated(graph: Graph, vector: str, like: str) -> str:
    """(B, channels, T) of (B, channels), with the T of another value."""
    length = graph.node("Shape", like, start=2, end=3)
    shape = graph.node("Concat", graph.integers(1, 1), length, axis=0)
    return graph.node("Expand", graph.node("Unsqueeze", vector, graph.integers(2)), shape)
