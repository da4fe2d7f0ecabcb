"""TorchScript in tests: the product's way from an encoder to an optimized module, and looks into its graphs."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cosyjit.torchscript.script import deprecations_ignored, optimize


def preserved_methods(encoder: nn.Module) -> list[str]:
    """The methods beside `forward` that an artifact of this encoder has to keep."""
    return ["forward_chunk"] if hasattr(encoder, "forward_chunk") else []


def optimized(encoder: nn.Module) -> Any:
    """The encoder scripted, frozen and optimized."""
    return optimize(encoder, preserved_methods(encoder))


def saved(module: torch.jit.ScriptModule) -> bytes:
    """The module as the bytes of its zip."""
    buffer = io.BytesIO()
    with deprecations_ignored():
        torch.jit.save(module, buffer)
    return buffer.getvalue()


def loaded(data: bytes) -> Any:
    """The module from the bytes of its zip."""
    with deprecations_ignored():
        return torch.jit.load(io.BytesIO(data))


def graphs(module: Any, methods: Sequence[str]) -> list[Any]:
    """The inlined graphs of `forward` and of the other methods."""
    return [module.inlined_graph, *(getattr(module, name).inlined_graph for name in methods)]


def nodes(block: Any) -> Iterator[Any]:
    """All nodes of a graph or block, those of inner blocks included."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from nodes(inner)


def constant_tensors(graph: Any) -> Iterator[Tensor]:
    """The tensors that a graph holds as constants, those in lists included."""
    for node in nodes(graph):
        if node.kind() == "prim::Constant":
            value = node.output().toIValue()
            yield from (each for each in (value if isinstance(value, list) else [value]) if torch.is_tensor(each))


def constant_devices(graph: Any) -> list[str]:
    """The devices that a graph holds as constants, as text."""
    return [
        str(node).strip()
        for node in nodes(graph)
        if node.kind() == "prim::Constant" and str(node.output().type()) == "Device"
    ]
