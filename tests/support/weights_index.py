"""What the index of a weights file says, beside what torch loads of it."""

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from cosyjit.errors import CheckpointError
from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.tensors import Entries, StoredTensor, entries_of
from cosyjit.weights.weights_file import numbers, opened, read_contents

PATH: Final = Path("llm.pt")


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def indexed(content: bytes) -> Entries:
    return entries_of(read_contents(io.BytesIO(content), PATH).state)


def indexed_file(path: Path) -> Entries:
    with opened(path) as file:
        return entries_of(read_contents(file, path).state)


def inflated(content: bytes) -> bytes:
    """A file that has the bytes of all tensors where the index says."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(content)
        contents = read_contents(file, PATH)
        tensors = [entry for entry in entries_of(contents.state).values() if isinstance(entry, StoredTensor)]
        with numbers(file, PATH, contents, tensors) as opened_numbers:
            opened_numbers.seek(0)
            return opened_numbers.read()


def tensor_of(content: bytes, entry: StoredTensor | Other) -> Tensor:
    """A tensor made of nothing but what the index says of it and the file's bytes there."""
    assert isinstance(entry, StoredTensor)
    extent = bytearray(content[entry.start : entry.start + entry.extent])
    assert len(extent) == entry.extent
    flat = torch.frombuffer(extent, dtype=torch.uint8) if extent else torch.empty(0, dtype=torch.uint8)
    dtype = getattr(torch, entry.dtype)
    return torch.empty(0, dtype=dtype).set_(flat.untyped_storage(), 0, entry.shape, entry.stride)


def assert_as_torch_loads(content: bytes) -> Entries:
    """The index has torch's tensors: names, order, types, shapes, strides and numbers."""
    index = indexed(content)
    expected = torch.load(io.BytesIO(content), weights_only=True)
    assert list(index) == list(expected)
    for name, tensor in expected.items():
        entry, found = index[name], tensor_of(content, index[name])
        assert isinstance(entry, StoredTensor)
        assert (found.dtype, found.shape, found.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert entry.size == tensor.numel() * tensor.element_size()
        assert entry.item_size == tensor.element_size()
        assert tensor.numel() == 0 or entry.contiguous == tensor.is_contiguous()
        torch.testing.assert_close(found, tensor.detach(), rtol=0, atol=0, equal_nan=True)
    return index


def refused(content: bytes, *words: str) -> str:
    with pytest.raises(CheckpointError) as error:
        indexed(content)
    message = str(error.value)
    assert type(error.value) is CheckpointError
    assert message.startswith(f"{PATH}: ")
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    return message


def rewritten(content: bytes, changes: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with other contents of some members, or members besides."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        members = {name: old.read(name) for name in old.namelist()}
        for name, member in {**members, **{f"archive/{name}": member for name, member in changes.items()}}.items():
            new.writestr(name, member)
    return buffer.getvalue()
