"""The two U-Nets as graphs: `ConditionalDecoder` of CosyVoice, and the causal one of CosyVoice2.

The equations are in `cosyjit.estimators`. Two products with the mask that they have are left out, since they follow
another with the same mask, which is 0 or 1.

In half precision, the sums that run through the whole network are in float32: each block, attention and feed-forward
layer computes its linear layers and convolutions in half precision, between casts, and adds to them. The layers that
the sums themselves pass through (`res_conv`, those between the levels, the last two) are in float32 as well: they have
2 % of the numbers, and in half precision they would nearly double the error.
"""

from typing import Final

from cosyjit.estimators.options import UNetOptions
from cosyjit.onnx import layers
from cosyjit.onnx.graph import Graph, Interface

_GROUPS: Final = 8
"""Of the norms."""

_END: Final = (1 << 63) - 1
"""The end of an axis of any length."""


def build(graph: Graph, options: UNetOptions, interface: Interface) -> str:
    """Add the nodes of a U-Net.

    Returns:
        Its output, (B, out_channels, T).
    """
    return _UNet(graph, options).build(interface)


class _UNet:
    def __init__(self, graph: Graph, options: UNetOptions) -> None:
        self.graph = graph
        self.options = options

    def build(self, inputs: Interface) -> str:
        graph, options = self.graph, self.options
        time = layers.time_embedding(graph, inputs.t, options.in_channels, "time_mlp.linear_1", "time_mlp.linear_2")
        self.time = graph.narrow(layers.mish(graph, time))
        speaker = layers.repeated(graph, inputs.spks, inputs.x)
        value = graph.wide(graph.node("Concat", inputs.x, inputs.mu, speaker, inputs.cond, axis=1))
        chunk = options.static_chunk_size if graph.form.streaming else 0
        levels = []
        mask = graph.wide(inputs.mask)
        bias = layers.attention_bias(graph, mask, chunk)
        last = len(options.channels) - 1
        for number, size in enumerate(options.channels):
            with graph.scope(f"down_blocks.{number}"):
                value = self.stage(value, mask, bias, size)
                levels.append((value, mask, bias))
                value = graph.node("Mul", value, mask)
                if number == last:
                    value = self.same(value, "2")
                else:
                    value = layers.convolution(graph, value, "2.conv", (1, 1), stride=2, dtype="float32")
                    mask = self.halved(mask)
                    bias = layers.attention_bias(graph, mask, chunk)
        for number in range(options.num_mid_blocks):
            with graph.scope(f"mid_blocks.{number}"):
                value = self.stage(value, mask, bias, options.channels[-1])
        for number, size in enumerate((*options.channels[-2::-1], options.channels[0])):
            skip, mask, bias = levels.pop()
            with graph.scope(f"up_blocks.{number}"):
                if number:
                    value = self.cut(value, skip)
                value = self.stage(graph.node("Concat", value, skip, axis=1), mask, bias, size)
                value = graph.node("Mul", value, mask)
                value = self.same(value, "2") if number == last else self.doubled(value, "2.conv")
        value = self.same(graph.node("Mul", value, mask), "final_block.block.0")
        value = self.normed(value, "final_block.block", options.channels[0])
        value = layers.convolution(graph, graph.node("Mul", value, mask), "final_proj", dtype="float32")
        return graph.narrow(graph.node("Mul", value, mask))

    # Resampling.

    def same(self, value: str, name: str, dtype: str | None = "float32") -> str:
        """A convolution of 3 frames that keeps the length; its type is that of the value."""
        return layers.convolution(self.graph, value, name, (2, 0) if self.options.causal else (1, 1), dtype=dtype)

    def halved(self, mask: str) -> str:
        """Every second frame of a mask, from the first."""
        graph = self.graph
        bounds = graph.integers(0), graph.integers(_END), graph.integers(2), graph.integers(2)
        return graph.node("Slice", mask, *bounds)

    def doubled(self, value: str, name: str) -> str:
        graph = self.graph
        weights = (graph.weight(f"{name}.{each}", dtype="float32") for each in ("weight", "bias"))
        return graph.node("ConvTranspose", value, *weights, pads=[1, 1], strides=[2])

    def cut(self, value: str, skip: str) -> str:
        """A value of twice half a length, rounded up, cut to that length."""
        graph = self.graph
        end = graph.node("Shape", skip, start=2, end=3)
        return graph.node("Slice", value, graph.integers(0), end, graph.integers(2))

    # Blocks. Values are in float32 but inside of them.

    def stage(self, value: str, mask: str, bias: str, size: int) -> str:
        """A residual block and the transformer blocks behind it, over (B, channels, T)."""
        graph = self.graph
        with graph.scope("0"):
            value = self.residual(value, mask, size)
        if not self.options.n_blocks:
            return value
        rows = layers.rows_of(graph, layers.swapped(graph, value), size)
        for number in range(self.options.n_blocks):
            with graph.scope(f"1.{number}"):
                rows = self.transformer(rows, bias, size)
        return layers.swapped(graph, layers.sequences_of(graph, rows, size))

    def residual(self, value: str, mask: str, size: int) -> str:
        graph = self.graph
        masked = graph.node("Mul", value, mask)
        shift = graph.wide(graph.node("Unsqueeze", layers.linear(graph, self.time, "mlp.1"), graph.integers(2)))
        hidden = graph.node("Add", self.block(masked, "block1.block", size), shift)
        hidden = self.block(graph.node("Mul", hidden, mask), "block2.block", size)
        hidden = graph.node("Mul", hidden, mask)
        return graph.node("Add", hidden, layers.convolution(graph, masked, "res_conv", dtype="float32"))

    def block(self, masked: str, name: str, size: int) -> str:
        """Convolution, norm and Mish, whose padded frames are not masked."""
        graph = self.graph
        value = graph.wide(self.same(graph.narrow(masked), f"{name}.0", None))
        return self.normed(value, name, size)

    def normed(self, value: str, name: str, size: int) -> str:
        """The norm and Mish behind the convolution of a block."""
        graph = self.graph
        if self.options.causal:
            rows = layers.swapped(graph, value)
            value = layers.swapped(graph, layers.layer_norm(graph, rows, f"{name}.2"))
        else:
            value = self.group_norm(value, f"{name}.1", size)
        return layers.mish(graph, value)

    def group_norm(self, value: str, name: str, size: int) -> str:
        """A norm over the channels of a group and all frames, padded ones too.

        The operator of this name has one weight for each group until opset 21.
        """
        graph = self.graph
        groups = graph.node("Reshape", value, graph.integers(0, _GROUPS, -1))
        ones, zeros = graph.constant([1] * _GROUPS, "float32"), graph.constant([0] * _GROUPS, "float32")
        normed = graph.node("InstanceNormalization", groups, ones, zeros, epsilon=1e-5)
        normed = graph.node("Reshape", normed, graph.integers(0, size, -1))
        scaled = graph.node("Mul", normed, graph.weight(f"{name}.weight", dtype="float32", column=True))
        return graph.node("Add", scaled, graph.weight(f"{name}.bias", dtype="float32", column=True))

    def transformer(self, rows: str, bias: str, size: int) -> str:
        graph = self.graph
        hidden = graph.narrow(layers.layer_norm(graph, rows, "norm1"))
        rows = graph.node("Add", rows, graph.wide(self.attention(hidden, bias)))
        hidden = graph.narrow(layers.layer_norm(graph, rows, "norm3"))
        hidden = self.activation(layers.linear(graph, hidden, "ff.net.0.proj"), 4 * size)
        return graph.node("Add", rows, graph.wide(layers.linear(graph, hidden, "ff.net.2")))

    def attention(self, rows: str, bias: str) -> str:
        graph, heads, size = self.graph, self.options.num_heads, self.options.attention_head_dim
        scale = {"to_q": size**-0.5, "to_k": 1.0, "to_v": 1.0}
        with graph.scope("attn1"):
            queries, keys, values = (
                layers.heads_of(graph, layers.linear(graph, rows, name, bias=False, scale=factor), heads, size)
                for name, factor in scale.items()
            )
            mixed = layers.rows_of(graph, layers.attention(graph, queries, keys, values, bias), heads * size)
            return layers.linear(graph, mixed, "to_out.0")

    def activation(self, value: str, size: int) -> str:
        """The activation of a feed-forward layer, over its `size` channels."""
        graph = self.graph
        match self.options.act_fn:
            case "gelu":
                return layers.gelu(graph, value)
            case "gelu-approximate":
                return layers.tanh_gelu(graph, value)
            case "geglu":
                value, gate = graph.nodes("Split", 2, value, graph.integers(size, size), axis=1)
                return graph.node("Mul", value, layers.gelu(graph, gate))
            case "geglu-approximate":
                wide = graph.wide(value)
                gate = graph.node("Sigmoid", graph.node("Mul", wide, graph.constant(1.702, "float32")))
                return graph.narrow(graph.node("Mul", wide, gate))
            case _:
                return self.snake(value)

    def snake(self, value: str) -> str:
        """SnakeBeta: z + sin^2(z exp(alpha)) / (exp(beta) + 1e-9)."""
        graph = self.graph
        wide = graph.wide(value)
        frequency, magnitude = (
            graph.node("Exp", graph.wide(graph.weight(f"ff.net.0.{name}"))) for name in ("alpha", "beta")
        )
        sine = graph.node("Sin", graph.node("Mul", wide, frequency))
        magnitude = graph.node("Add", magnitude, graph.constant(1e-9, "float32"))
        return graph.narrow(graph.node("Add", wide, graph.node("Div", graph.node("Mul", sine, sine), magnitude)))
