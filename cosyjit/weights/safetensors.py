"""Safetensors files: what the tensors are called, and where their bytes stand behind the head that says so.

The form is https://huggingface.co/docs/safetensors: eight bytes that give the length of a JSON object, the object, and
the bytes of the tensors, which leave no gap. Offsets count from the end of the object.
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
"""What to do about a file that was written by cosyjit and is not what it should be."""

_ITEM_SIZES: Final = {code: ITEM_SIZES[dtype] for code, dtype in _DTYPES.items()}
_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = {"format": "pt"}
"""What transformers refuses to do without."""
_LARGEST: Final = 100_000_000
"""In bytes, of the object: the format's own limit."""
_LARGEST_INDEX: Final = 2 << 20
"""The same of a file that may be a stranger's; of 1,500 tensors it has 0.2 MB."""


class Entry(NamedTuple):
    """A tensor in a file: its type by the format's name, its shape, and its bytes' offsets behind the head."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def head(tensors: Mapping[str, Sequence[int]], dtype: str) -> bytes:
    """What stands before the bytes of tensors, which follow in this order.

    Args:
        tensors: their shapes, by their names.
        dtype: the type of all, by torch's name.
    """
    code = TYPES[dtype]
    found: dict[str, Any] = {"__metadata__": _METADATA}
    at = 0
    for name, shape in tensors.items():
        end = at + math.prod(shape) * _ITEM_SIZES[code]
        found[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(found, separators=(",", ":")).encode("ascii")
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
        raise VerificationError(f"{file.name}: is no whole safetensors file ({line(error)}); {UNSOUND}") from None


def _read_head(file: BinaryIO, size: int) -> tuple[bytes, dict[str, Entry]]:
    content, metadata, entries = _parse(file, size, _LARGEST)
    ordered = sorted(entries.values(), key=lambda entry: (entry.start, entry.end))
    if len(content) % _LENGTH.size or metadata != _METADATA or ordered != list(entries.values()):
        raise ValueError("a head of another form")
    return content, entries


def is_begun(beginning: bytes, size: int) -> bool:
    """Whether a file may be of this format, by its first bytes and its size."""
    return beginning[_LENGTH.size : _LENGTH.size + 2] == b'{"' and _LENGTH.unpack_from(beginning)[0] < size


def read_index(file: BinaryIO, size: int) -> Entries:
    """The tensors of a file that may be a stranger's.

    Args:
        file: at its beginning.
        size: that of the file, in bytes.

    Raises:
        ValueError, TypeError, KeyError, RecursionError, struct.error: it is damaged.
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
    """The head of a file, what stands in it beside the tensors, and these; their bytes are all that follows it."""
    prefix = file.read(_LENGTH.size)
    (length,) = _LENGTH.unpack(prefix)
    if length > min(most, size - _LENGTH.size):
        raise ValueError(f"a head of {length} bytes, more than {min(most, size - _LENGTH.size)}")
    text = file.read(length)
    found = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    if text[:1] != b"{":
        raise ValueError("a head of another form")
    metadata = found.pop("__metadata__", None)
    entries = {name: _entry(**value) for name, value in found.items()}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda each: (each[1].start, each[1].end)):
        item = _ITEM_SIZES.get(entry.dtype)
        if entry.start != at or (item and entry.end - at != math.prod(entry.shape) * item):
            raise ValueError(f"the bytes of {name} are from {entry.start} to {entry.end}")
        at = entry.end
    if at != size - _LENGTH.size - length:
        raise ValueError(f"{size - _LENGTH.size - length} bytes of tensors in place of {at}")
    return prefix + text, metadata, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _entry(dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    start, end = data_offsets
    numbers = (*shape, start, end)
    if not all(type(number) is int and 0 <= number <= LARGEST_NUMBER for number in numbers) or start > end:
        raise ValueError(f"a shape of {shape} at {data_offsets}")
    if type(dtype) is not str or len(shape) > MOST_DIMENSIONS or math.prod(n or 1 for n in shape) > LARGEST_NUMBER:
        raise ValueError("a tensor that is too large for torch")
    return Entry(dtype, tuple(shape), start, end)
