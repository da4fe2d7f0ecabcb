"""The encoder of a component, checked against the tensors of a weights file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from cosyjit.encoders.registry import build_encoder
from cosyjit.errors import CheckpointError, TensorMismatchError, UnsupportedOptionError
from cosyjit.families import Component
from cosyjit.source import Source
from cosyjit.tensors import Other, StoredTensor, opened, read_index


def load_encoder(
    source: Source, component: Component, options: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A component's encoder on the meta device, and the tensors that fit it, mapped from the file and not yet read.

    Args:
        source: the model directory.
        component: one of its family's.
        options: from `Checkpoint.options`.

    Raises:
        UnsupportedOptionError: an option that is unknown, missing, or of a value that is not supported.
        CheckpointError: the weights file is missing, damaged or more than tensors, or the tensors do not fit.
    """
    try:
        encoder = build_encoder(component.class_name, options, component.overrides)
    except UnsupportedOptionError as error:
        where = f"{source.config}: {component.node}"
        raise UnsupportedOptionError(error.option, error.value, error.supported, where) from None
    path = source.directory / component.weights
    found = read_weights(path, component.prefix)
    _check(f"{path}: {component.name}", component.prefix, encoder.state_dict(), found)
    return encoder, {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def read_weights(path: Path, prefix: str = "") -> dict[str, Tensor | Other]:
    """The entries of a `.pt` file under a prefix, without it; tensors are mapped, so that only those used are read.

    What training leaves beside a model's weights, `epoch` and `step`, is under no prefix.

    Raises:
        CheckpointError: the file is missing, empty or damaged, would run code, is no dictionary, or cannot be mapped.
    """
    with opened(path) as file:
        index = read_index(file, path)
        storage = _mapped(file, path)
    found = {name[len(prefix) :]: entry for name, entry in index.items() if name.startswith(prefix)}
    return {name: _map(entry, storage) if isinstance(entry, StoredTensor) else entry for name, entry in found.items()}


def _mapped(file: BinaryIO, path: Path) -> Any:
    size = os.fstat(file.fileno()).st_size
    try:
        # By the descriptor: the path may meanwhile be another file's.
        return torch.UntypedStorage.from_file(f"/proc/self/fd/{file.fileno()}", shared=False, nbytes=size)
    except RuntimeError:
        reason = f"its {size} bytes cannot be mapped; give the process more memory, or wait until it is complete"
        raise CheckpointError(f"{path}: {reason}") from None


def _map(entry: StoredTensor, storage: Any) -> Tensor:
    numbers = storage[entry.start : entry.start + entry.extent]
    return torch.empty(0, dtype=getattr(torch, entry.dtype)).set_(numbers, 0, entry.shape, entry.stride)


def _check(where: str, prefix: str, wanted: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    missing = [prefix + name for name in wanted if name not in found]
    unexpected = [prefix + name for name in found if name not in wanted]
    misshapen = [
        f"{prefix}{name} ({_kind(found[name])} instead of {_shape(tensor)})"
        for name, tensor in wanted.items()
        if name in found and _kind(found[name]) != _shape(tensor)
    ]
    if missing or unexpected or misshapen:
        raise TensorMismatchError(where, missing, unexpected, misshapen)


def _kind(value: Any) -> str:
    """The shape of a tensor, or what an entry is instead."""
    return f"no plain tensor, {value.kind}" if isinstance(value, Other) else _shape(value)


def _shape(tensor: Tensor) -> str:
    """What of a tensor has to be as wanted, in words: its shape, and its type unless that is a float."""
    kind = "" if tensor.is_floating_point() else f"{str(tensor.dtype).removeprefix('torch.')} "
    return f"{kind}{tuple(tensor.shape)}"
