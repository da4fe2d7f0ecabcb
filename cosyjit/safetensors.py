"""The head of a safetensors file: what the tensors are called, and where their bytes stand behind it.

The form is https://huggingface.co/docs/safetensors: eight bytes that give the length of a JSON object, the object, and
the bytes of the tensors, which leave no gap. Offsets count from the end of the object.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final, NamedTuple

from cosyjit.errors import VerificationError

TYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The types that are written, by torch's names."""

UNSOUND: Final = "this is a fault of cosyjit or of the disk: export again, and report it if it stays"
"""What to do about a file that was written by cosyjit and is not what it should be."""

_ITEM_SIZES: Final = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = {"format": "pt"}
"""What transformers refuses to do without."""
_LARGEST: Final = 100_000_000
"""In bytes, of the object: the format's own limit."""


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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VerificationError(f"{file.name}: is no whole safetensors file ({reason}); {UNSOUND}") from None


def _read_head(file: BinaryIO, size: int) -> tuple[bytes, dict[str, Entry]]:
    prefix = file.read(_LENGTH.size)
    (length,) = _LENGTH.unpack(prefix)
    if length > min(_LARGEST, size - _LENGTH.size):
        raise ValueError(f"a head of {length} bytes")
    text = file.read(length)
    found = json.loads(text, object_pairs_hook=_unique)
    if text[:1] != b"{" or length % _LENGTH.size or found.pop("__metadata__") != _METADATA:
        raise ValueError("a head of another form")
    entries = {name: _entry(**value) for name, value in found.items()}
    at = 0
    for name, entry in entries.items():
        if entry.start != at or entry.end != at + math.prod(entry.shape) * _ITEM_SIZES[entry.dtype]:
            raise ValueError(f"the bytes of {name} are from {entry.start} to {entry.end}")
        at = entry.end
    if at != size - _LENGTH.size - length:
        raise ValueError(f"{size - _LENGTH.size - length} bytes of tensors in place of {at}")
    return prefix + text, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _entry(dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    start, end = data_offsets
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"a shape of {shape} at {data_offsets}")
    return Entry(dtype, tuple(shape), start, end)
