"""Linear maps with weights of 8 bits, for a CPU: dynamic quantization, as torch's quantized kernels compute it.

Source: Jacob et al., https://arxiv.org/abs/1712.05877. Weights are quantized symmetrically per output channel, inputs
by their range at each call.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from cosyjit.encoders.layers import Linear


class QuantizedLinear(nn.Module):
    """A `Linear` with a weight of 8 bits: (B, T, in_features) to (B, T, out_features), both float32."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.packed = pack(weight, bias)

    def forward(self, input: Tensor) -> Tensor:
        # Inputs use 7 of the 8 bits: without VNNI instructions the kernels add in 16 bits, which would overflow.
        return torch.ops.quantized.linear_dynamic(input, self.packed, True)


def pack(weight: Tensor, bias: Tensor) -> Any:
    """Pack a weight (out_features, in_features), rounded to 8 bits, and a bias in the form of the kernels."""
    scales = (weight.abs().amax(dim=1).double() / 127).clamp_min(torch.finfo(torch.float32).tiny)
    zeros = torch.zeros(weight.size(0), dtype=torch.long)
    with warnings.catch_warnings():
        # A later torch will drop quantized tensors, but the kernels of this one take no other weights.
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor, .* are deprecated", UserWarning)
        quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantized, bias)


def quantize(encoder: nn.Module) -> None:
    """Replace every `Linear` of a filled encoder. `linear_pos` is an `nn.Linear` and stays: its weight is read."""
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, QuantizedLinear(child.weight.detach(), child.bias.detach()))
