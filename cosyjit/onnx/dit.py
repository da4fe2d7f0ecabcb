"""The diffusion transformer of CosyVoice3 as a graph. The equations are in `cosyjit.estimators`."""

from typing import Final

import numpy as np

from cosyjit.estimators.options import DiTOptions
from cosyjit.estimators.parameters import POSITION_GROUPS, POSITION_KERNEL, TIME_SINUSOIDS
from cosyjit.onnx import layers
from cosyjit.onnx.graph import Graph, Interface

_EPSILON: Final = 1e-6
"""Of the norms."""


def build(graph: Graph, options: DiTOptions, interface: Interface) -> str:
    """Add the nodes of a diffusion transformer.

    Returns:
        Its output, (B, mel_dim, T). Padded frames of it hold numbers.
    """
    return _DiT(graph, options).build(interface)


class _DiT:
    def __init__(self, graph: Graph, options: DiTOptions) -> None:
        self.graph = graph
        self.options = options

    def build(self, inputs: Interface) -> str:
        graph, options = self.graph, self.options
        time = layers.time_embedding(graph, inputs.t, TIME_SINUSOIDS, "time_embed.time_mlp.0", "time_embed.time_mlp.2")
        self.time = layers.silu(graph, time)
        self.time = graph.narrow(self.time)
        chunk = options.static_chunk_size if graph.form.streaming else 0
        self.bias = layers.attention_bias(graph, inputs.mask, chunk)
        self.mask = layers.swapped(graph, inputs.mask)
        self.rotation = self.angles(inputs.x)
        value = embedded = self.embedding(inputs)
        for number in range(options.depth):
            with graph.scope(f"transformer_blocks.{number}"):
                value = self.block(value)
        size = options.dim
        if options.long_skip_connection:
            joined = layers.rows_of(graph, graph.node("Concat", value, embedded, axis=2), 2 * size)
            value = layers.sequences_of(graph, layers.linear(graph, joined, "long_skip_connection", bias=False), size)
        scale, shift = self.modulation("norm_out.linear", 2)
        rows = layers.rows_of(graph, self.norm(value, scale, shift), size)
        value = layers.sequences_of(graph, layers.linear(graph, rows, "proj_out"), options.mel_dim)
        return layers.swapped(graph, value)

    def embedding(self, inputs: Interface) -> str:
        """The joined inputs and their positions, (B, T, dim)."""
        graph, options = self.graph, self.options
        joined = [inputs.x, inputs.cond, inputs.mu]
        if options.spk_dim:
            joined.append(layers.repeated(graph, inputs.spks, inputs.x))
        channels = 2 * options.mel_dim + options.mu_dim + options.spk_dim
        rows = layers.rows_of(graph, layers.swapped(graph, graph.node("Concat", *joined, axis=1)), channels)
        with graph.scope("input_embed"):
            value = layers.sequences_of(graph, layers.linear(graph, rows, "proj"), options.dim)
            positions = layers.swapped(graph, value)
            for name in ("conv1", "conv2"):
                positions = self.position(positions, f"conv_pos_embed.{name}.0")
            return graph.node("Add", value, layers.swapped(graph, positions))

    def position(self, value: str, name: str) -> str:
        graph = self.graph
        weights = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
        pads = [POSITION_KERNEL - 1, 0]
        value = graph.node("Conv", value, *weights, group=POSITION_GROUPS, pads=pads)
        return graph.narrow(layers.mish(graph, graph.wide(value)))

    def angles(self, like: str) -> tuple[str, str]:
        """The cosines and the signed sines of each frame's rotation, (T, 1, dim_head)."""
        graph, size = self.graph, self.options.dim_head
        frames = graph.node("Range", graph.constant(0, "int64"), layers.length(graph, like), graph.constant(1, "int64"))
        column = graph.node("Unsqueeze", graph.node("Cast", frames, to=layers.FLOAT), graph.integers(1))
        angles = graph.node("Mul", column, graph.weight("rotary_embed.inv_freq", dtype="float32"))
        pairs = graph.node("Unsqueeze", angles, graph.integers(2))
        # (a, b) -> (a cos - b sin, b cos + a sin): both numbers of a pair have its cosine and, with a sign, its sine.
        signs = {"Cos": [1, 1], "Sin": [-1, 1]}
        cosines, sines = (
            graph.narrow(
                graph.node(
                    "Reshape",
                    graph.node("Mul", graph.node(function, pairs), graph.constant(values, "float32")),
                    graph.integers(-1, 1, size),
                )
            )
            for function, values in signs.items()
        )
        return cosines, sines

    def block(self, value: str) -> str:
        graph, size = self.graph, self.options.dim
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation("attn_norm.linear", 6)
        mixed = graph.node("Mul", self.attention(self.norm(value, scale_a, shift_a)), self.mask)
        value = graph.node("Add", value, graph.node("Mul", gate_a, mixed))
        rows = layers.rows_of(graph, self.norm(value, scale_f, shift_f), size)
        with graph.scope("ff"):
            hidden = layers.tanh_gelu(graph, layers.linear(graph, rows, "ff.0.0"))
            hidden = layers.sequences_of(graph, layers.linear(graph, hidden, "ff.2"), size)
        return graph.node("Add", value, graph.node("Mul", gate_f, hidden))

    def modulation(self, name: str, parts: int) -> list[str]:
        """What the time gives for the norms and the gates, in equal parts of (B, 1, dim)."""
        graph, size = self.graph, self.options.dim
        joined = graph.node("Reshape", layers.linear(graph, self.time, name), graph.integers(0, 1, parts * size))
        return graph.nodes("Split", parts, joined, graph.integers(*[size] * parts), axis=2)

    def norm(self, value: str, scale: str, shift: str) -> str:
        """A norm without weights, scaled by 1 + scale, and shifted."""
        graph = self.graph
        ones = graph.constant(np.ones(self.options.dim))
        normed = graph.node("LayerNormalization", value, ones, axis=-1, epsilon=_EPSILON)
        scaled = graph.node("Mul", normed, graph.node("Add", scale, graph.constant(1)))
        return graph.node("Add", scaled, shift)

    def attention(self, value: str) -> str:
        graph, heads, size = self.graph, self.options.heads, self.options.dim_head
        rows = layers.rows_of(graph, value, self.options.dim)
        scale = {"to_q": size**-0.5, "to_k": 1.0, "to_v": 1.0}
        with graph.scope("attn"):
            queries, keys, values = (
                layers.heads_of(graph, layers.linear(graph, rows, name, scale=factor), heads, size)
                for name, factor in scale.items()
            )
            mixed = layers.attention(graph, self.rotated(queries), self.rotated(keys), values, self.bias)
            rows = layers.rows_of(graph, mixed, heads * size)
            return layers.sequences_of(graph, layers.linear(graph, rows, "to_out.0"), self.options.dim)

    def rotated(self, value: str) -> str:
        """Heads (B, T, heads, dim_head), of which the first is rotated; the others have no positions."""
        graph, others = self.graph, self.options.heads - 1
        first, *rest = graph.nodes("Split", 2, value, graph.integers(1, others), axis=2) if others else [value]
        cosines, sines = self.rotation
        neighbours = graph.node("Gather", first, graph.constant(_neighbours(self.options.dim_head), "int64"), axis=3)
        turned = graph.node("Add", graph.node("Mul", first, cosines), graph.node("Mul", neighbours, sines))
        return graph.node("Concat", turned, *rest, axis=2) if rest else turned


def _neighbours(size: int) -> list[int]:
    """For each number of a head, the place of the other of its pair."""
    return [place ^ 1 for place in range(size)]
