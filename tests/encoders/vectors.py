"""Weights and inputs from names alone, by the recipe of the golden vectors, and encoders filled with them."""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.plain import build_plain
from cosyjit.encoders.registry import build_encoder

GOLDEN: Final = Path(__file__).parent.parent / "golden"

TRANSFORMER: Final = "cosyvoice.transformer.encoder.TransformerEncoder"
CONFORMER: Final = "cosyvoice.transformer.encoder.ConformerEncoder"
UPSAMPLE_CONFORMER: Final = "cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder"

Build = Callable[[str, Mapping[str, Any]], nn.Module]


def golden_options(family: str, component: str) -> dict[str, Any]:
    """The arguments of an encoder of the golden vectors."""
    options: dict[str, Any] = json.loads((GOLDEN / "configs.json").read_text())[family][component]
    return options


def golden_outputs(file: str = "golden.npz") -> dict[str, Tensor]:
    """What the public model code computed, by vector and output: "cosyvoice/llm.forward/y"."""
    with np.load(GOLDEN / file) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers from [-1, 1) that depend on the key alone."""
    return 2 * np.random.Generator(np.random.Philox(zlib.crc32(key.encode()))).random(size=shape) - 1


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A float32 parameter by its full name: of unit variance in and out, norms near one, biases near zero."""
    last = name.rpartition(".")[2]
    values = uniform(name, shape)
    if len(shape) > 1 and not last.startswith("pos_bias_"):
        values = math.sqrt(3 / math.prod(shape[1:])) * values
    elif last == "weight":
        values = 1 + 0.1 * values
    elif last == "running_var":
        values = 1 + 0.5 * np.abs(values)
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


def frames(key: str, shape: tuple[int, ...]) -> Tensor:
    """A float32 input of unit variance."""
    return torch.from_numpy(uniform(key, shape).astype(np.float32) * np.float32(math.sqrt(3)))


def weights(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A state for the encoder; its integer buffers, which count training steps, are 0."""
    return {
        name: weight(prefix + name, tuple(tensor.shape))
        if tensor.is_floating_point()
        else torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in encoder.state_dict().items()
    }


def filled(build: Build, class_name: str, options: Mapping[str, Any], prefix: str = "") -> nn.Module:
    """A built encoder with weights by their names; `build` is as `build_encoder` and `build_plain` are."""
    encoder = build(class_name, options)
    encoder.load_state_dict(weights(encoder, prefix), strict=True, assign=True)
    return encoder


def ours(class_name: str, options: Mapping[str, Any], prefix: str = "") -> nn.Module:
    """The product's encoder, filled."""
    return filled(build_encoder, class_name, options, prefix)


def plain(class_name: str, options: Mapping[str, Any], prefix: str = "") -> nn.Module:
    """The plain encoder with the same weights."""
    return filled(build_plain, class_name, options, prefix)
