"""Reads and writes the heads of safetensors files, which give the names, shapes and offsets of the tensors.

The format is https://huggingface.co/docs/safetensors: eight bytes give the length of a JSON object; the object and the
bytes of the tensors, without gaps, follow. Offsets count from the end of the object.
"""

import itertools
import json
import math
import operator
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final, NamedTuple

from cosyjit.errors import VerificationError, line
from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.tensors import ITEM_SIZES, LARGEST_NUMBER, MOST_DIMENSIONS, Entries, StoredTensor

TYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The types that are written, by torch's names."""

_DTYPES: Final = {
    **{code: dtype for dtype, code in TYPES.items()},
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
"""The types that are read, by the format's names."""

UNSOUND: Final = "this is a fault of cosyjit or of the disk: export again, and report it if it stays"
"""What messages advise about a file that cosyjit wrote and that is not what it should be."""

_ITEM_SIZES: Final = {code: ITEM_SIZES[dtype] for code, dtype in _DTYPES.items()}
_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = {"format": "pt"}
"""The metadata that transformers requires."""
_LARGEST: Final = 100_000_000
"""The format's own limit for the object, in bytes."""
_LARGEST_INDEX: Final = 2 << 20
"""The limit where a stranger may have written the file, in bytes; the object of 1,500 tensors has 0.2 MB."""


class Entry(NamedTuple):
    """A tensor in a file: its type by the format's name, its shape, and the offsets of its bytes behind the head."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def head(tensors: Mapping[str, Sequence[int]], dtype: str) -> bytes:
    """The head of a file with tensors of one type, whose bytes follow in this order.

    Args:
        tensors: their shapes, by their names.
        dtype: their type, by torch's name.
    """
    code = TYPES[dtype]
    described: dict[str, Any] = {"__metadata__": _METADATA}
    at = 0
    for name, shape in tensors.items():
        end = at + math.prod(shape) * _ITEM_SIZES[code]
        described[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(described, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _LENGTH.size)
    return _LENGTH.pack(len(text)) + text


def read_head(file: BinaryIO, size: int) -> tuple[bytes, dict[str, Entry]]:
    """The head of an open file, and the tensors that it describes, in the order of their bytes.

    Args:
        file: at its beginning.
        size: that of the file, in bytes.

    Raises:
        VerificationError: the head is not well-formed, or the tensors' bytes are not all of what follows it.
    """
    try:
        return _read_head(file, size)
    except (ValueError, TypeError, KeyError, RecursionError, struct.error) as error:
        raise VerificationError(f"{file.name}: is not a whole safetensors file ({line(error)}); {UNSOUND}") from None


def _read_head(file: BinaryIO, size: int) -> tuple[bytes, dict[str, Entry]]:
    content, metadata, entries = _parse(file, size, _LARGEST)
    ordered = sorted(entries.values(), key=lambda entry: (entry.start, entry.end))
    if len(content) % _LENGTH.size or metadata != _METADATA or ordered != list(entries.values()):
        raise ValueError("its head is not as cosyjit writes it")
    return content, entries


def is_begun(beginning: bytes, size: int) -> bool:
    """Whether a file may be of this format, judged by its first bytes and its size."""
    return beginning[_LENGTH.size : _LENGTH.size + 2] == b'{"' and _LENGTH.unpack_from(beginning)[0] < size


def read_index(file: BinaryIO, size: int) -> Entries:
    """The tensors of a file that a stranger may have written.

    Args:
        file: at its beginning.
        size: that of the file, in bytes.

    Raises:
        ValueError, TypeError, KeyError, RecursionError, struct.error: the file is damaged.
    """
    content, _, entries = _parse(file, size, _LARGEST_INDEX)
    return {name: _stored(entry, len(content)) for name, entry in entries.items()}


def _stored(entry: Entry, begin: int) -> StoredTensor | Other:
    if entry.dtype not in _DTYPES:
        return Other(f"Tensor of {entry.dtype}")
    steps = list(itertools.accumulate(reversed(entry.shape[1:]), operator.mul, initial=1))[: len(entry.shape)]
    start = begin + entry.start if entry.end > entry.start else 0
    return StoredTensor(_DTYPES[entry.dtype], entry.shape, tuple(reversed(steps)), start)


def _parse(file: BinaryIO, size: int, most: int) -> tuple[bytes, Any, dict[str, Entry]]:
    """The head of a file, its metadata, and its tensors, whose bytes are all that follows the head."""
    prefix = file.read(_LENGTH.size)
    (length,) = _LENGTH.unpack(prefix)
    if length > min(most, size - _LENGTH.size):
        raise ValueError(f"its head has {length} bytes, more than {min(most, size - _LENGTH.size)}")
    text = file.read(length)
    described = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    if text[:1] != b"{":
        raise ValueError("its head is not an object")
    metadata = described.pop("__metadata__", None)
    entries = {name: _entry(**value) for name, value in described.items()}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        item_size = _ITEM_SIZES.get(entry.dtype)
        if entry.start != at or (item_size and entry.end - at != math.prod(entry.shape) * item_size):
            raise ValueError(f"the bytes of {name} are from {entry.start} to {entry.end}")
        at = entry.end
    if at != size - _LENGTH.size - length:
        raise ValueError(f"{size - _LENGTH.size - length} bytes of tensors instead of {at}")
    return prefix + text, metadata, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _entry(dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    start, end = data_offsets
    numbers = (*shape, start, end)
    if not all(type(number) is int and 0 <= number <= LARGEST_NUMBER for number in numbers) or start > end:
        raise ValueError(f"a shape of {shape} at {data_offsets}")
    if type(dtype) is not str or len(shape) > MOST_DIMENSIONS or math.prod(n or 1 for n in shape) > LARGEST_NUMBER:
        raise ValueError("a tensor that is too large for torch")
    return Entry(dtype, tuple(shape), start, end)
