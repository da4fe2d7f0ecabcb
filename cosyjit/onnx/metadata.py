"""Finds an entry of an ONNX file's metadata, without reading its graph, and without the package `onnx`.

The file is one message of protobuf, whose metadata is among its outermost fields; see `cosyjit.onnx.writer`. Anyone may
have written it.
"""

import io
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

BEGINNING: Final = b"\x08"
"""The first byte of an ONNX file: the tag of its IR version."""

_METADATA: Final = 14
_KEY: Final = 1
_VALUE: Final = 2

_MOST_FIELDS: Final = 1000
"""How many outermost fields a file may have. One that the package `onnx` writes has some ten."""
_LONGEST_VARINT: Final = 10


def metadata(file: BinaryIO, name: str, largest: int) -> bytes:
    """The value of an entry of a file's metadata.

    Args:
        file: the ONNX file.
        name: the entry's.
        largest: the most bytes that are read of an entry.

    Raises:
        ValueError: there is no such entry, or the file is not a message of protobuf.
    """
    for field in _fields(file):
        if field.number == _METADATA and field.size <= largest:
            content = file.read(field.size)
            entry = {each.number: content[each.start : each.start + each.size] for each in _fields(io.BytesIO(content))}
            if entry.get(_KEY) == name.encode() and _VALUE in entry:
                return entry[_VALUE]
    raise ValueError(f"it has no metadata {name}")


class _Field(NamedTuple):
    """A field of a message: its number, and where its content is, in bytes."""

    number: int
    start: int
    size: int


def _fields(file: BinaryIO) -> Iterator[_Field]:
    """The fields of a message that fills a file; the file is at the content of each while it is looked at."""
    end = file.seek(0, io.SEEK_END)
    at = file.seek(0)
    for _ in range(_MOST_FIELDS):
        if at == end:
            return
        tag = _varint(file)
        size = _size(file, tag & 7)
        start = file.tell()
        if size > end - start:
            raise ValueError("it is cut short")
        yield _Field(tag >> 3, start, size)
        at = file.seek(start + size)
    raise ValueError(f"it has more than {_MOST_FIELDS:,} fields")


def _size(file: BinaryIO, kind: int) -> int:
    """The size of the content that begins here, in bytes, by the kind of its field."""
    if kind == 0:
        start = file.tell()
        _varint(file)
        size = file.tell() - start
        file.seek(start)
        return size
    if kind == 2:  # noqa: PLR2004  (its length stands before it)
        return _varint(file)
    if kind in (1, 5):
        return 8 if kind == 1 else 4
    raise ValueError(f"it has a field of kind {kind}")


def _varint(file: BinaryIO) -> int:
    """A number in seven bits a byte, the lowest first."""
    value = 0
    for place in range(_LONGEST_VARINT):
        byte = file.read(1)
        if not byte:
            raise ValueError("it is cut short")
        value |= (byte[0] & 0x7F) << 7 * place
        if byte[0] < 0x80:  # noqa: PLR2004
            return value
    raise ValueError("it has a number of more than ten bytes")
