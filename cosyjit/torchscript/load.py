"""Loads the encoder of a component with the tensors of a weights file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from cosyjit.encoders.registry import build_encoder
from cosyjit.errors import CheckpointError
from cosyjit.families import Component
from cosyjit.sources.source import Source
from cosyjit.weights.fit import PLAIN, EncoderNeed, Reading, read_as
from cosyjit.weights.tensors import StoredTensor
from cosyjit.weights.weights_file import numbers, opened


def load_encoder(
    source: Source, component: Component, options: Mapping[str, Any], reading: Reading = PLAIN
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A component's encoder on the meta device, and the tensors that fit it, mapped from the file and not yet read.

    Args:
        source: the model directory.
        component: one of its family's.
        options: from `Checkpoint.options`.
        reading: how the names in the weights file are read.

    Raises:
        UnsupportedOptionError: an option is unknown or missing, or has an unsupported value.
        CheckpointError: the weights file is missing or damaged, or holds more than tensors; or the tensors do not fit.
    """
    need = EncoderNeed.of(component, options, source.config)
    encoder = build_encoder(component.class_name, options, component.overrides)
    tensors = map_tensors(source.directory / source.weights(component.weights), need, reading)
    return encoder, {name.removeprefix(component.prefix): tensor for name, tensor in tensors.items()}


def map_tensors(path: Path, need: EncoderNeed, reading: Reading = PLAIN) -> dict[str, Tensor]:
    """The tensors of a weights file that an encoder needs, by their names there; mapped, and not yet read.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than tensors; the tensors do not fit; or the file
            cannot be mapped.
    """
    with opened(path) as file:
        contents, entries = read_as(file, path, reading)
        need.check(path, entries)
        wanted = {name: entry for name in need.names if isinstance(entry := entries[name], StoredTensor)}
        with numbers(file, path, contents, wanted.values()) as opened_numbers:
            storage = _mapped(opened_numbers, path)
    return {name: _map(entry, storage) for name, entry in wanted.items()}


def _mapped(file: BinaryIO, path: Path) -> Any:
    size = os.fstat(file.fileno()).st_size
    try:
        # By the descriptor, since the path may lead to another file by now.
        return torch.UntypedStorage.from_file(f"/proc/self/fd/{file.fileno()}", shared=False, nbytes=size)
    except RuntimeError:
        reason = f"its {size} bytes cannot be mapped; give the process more memory, or wait until it is complete"
        raise CheckpointError(f"{path}: {reason}") from None


def _map(entry: StoredTensor, storage: Any) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    numbers = storage[entry.start : entry.start + entry.extent]
    if entry.start % entry.item_size:  # torch requires numbers to be aligned to their size
        numbers = numbers.clone()
    tensor = torch.empty(0, dtype=dtype).set_(numbers, 0, entry.shape, entry.stride)
    return tensor if is_row_major(tensor) else torch.empty(entry.shape, dtype=dtype).copy_(tensor)


def is_row_major(tensor: Tensor) -> bool:
    """Whether a tensor has the strides of a new one. TorchScript writes strides, and those of axes of size 1 as well,
    which `is_contiguous` passes over; equal weights have to give equal bytes.
    """
    return tensor.stride() == torch.empty(tensor.shape, device="meta").stride()
