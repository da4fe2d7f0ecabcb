"""Weights files as strangers may write them: archives and pickles byte by byte, true to the formats or not."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LARGE: Final = 0xFFFFFFFF
"""Stands where a number is too large for its place."""


@dataclass(frozen=True)
class Part:
    """A member of an archive, and what its two headers say of it where that is not the truth."""

    name: bytes
    content: bytes = b""
    header_name: bytes | None = None
    signature: bytes = b"PK\3\4"
    flags: int = 0
    method: int = 0
    size: int | None = None
    packed: int | None = None
    crc: int | None = None
    header_size: int | None = None
    offset: int | None = None
    wide: bool = False
    padding: bytes = b""
    fields: bytes = b""
    disk: int = 0
    attributes: int = 0

    def header(self) -> bytes:
        name = self.name if self.header_name is None else self.header_name
        size = len(self.content) if self.header_size is None else self.header_size
        numbers = (20, self.flags, self.method, 0, 0, self._sum, size, size, len(name), len(self.padding))
        return struct.pack("<4s5H3I2H", self.signature, *numbers) + name + self.padding

    def entry(self, offset: int) -> bytes:
        size = len(self.content) if self.size is None else self.size
        packed = size if self.packed is None else self.packed
        offset = offset if self.offset is None else self.offset
        fields = self.fields
        if self.wide:
            fields = struct.pack("<HH3Q", 1, 24, size, packed, offset) + fields
            size = packed = offset = LARGE
        first = (20, 20, self.flags, self.method, 0, 0, self._sum, packed, size)
        last = (len(self.name), len(fields), 0, self.disk, 0, self.attributes, offset)
        return struct.pack("<4s6H3I5H2I", b"PK\1\2", *first, *last) + self.name + fields

    @property
    def _sum(self) -> int:
        return zlib.crc32(self.content) if self.crc is None else self.crc


@dataclass(frozen=True)
class End:
    """What stands behind the members of an archive, where that is not the truth."""

    entries: int | None = None
    size: int | None = None
    start: int | None = None
    disk: int = 0
    comment: bytes = b""
    wide: bool = False
    wide_start: int | None = None
    place: int | None = None
    disks: int = 1

    def of(self, start: int, length: int, entries: int) -> bytes:
        entries = entries if self.entries is None else self.entries
        short = start if self.start is None else self.start, length if self.size is None else self.size
        shown = (min(entries, 0xFFFF), min(entries, 0xFFFF), min(short[1], LARGE), min(short[0], LARGE))
        end = struct.pack("<4s4H2IH", b"PK\5\6", self.disk, self.disk, *shown, len(self.comment)) + self.comment
        if not self.wide:
            return end
        wide = start if self.wide_start is None else self.wide_start
        record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, length, wide)
        place = start + length if self.place is None else self.place
        return record + struct.pack("<4sIQI", b"PK\6\7", 0, place, self.disks) + end


def archive(parts: Sequence[Part], end: End | None = None, before: bytes = b"", after: bytes = b"") -> bytes:
    """An archive of some members."""
    content, entries = bytearray(before), bytearray()
    for part in parts:
        entries += part.entry(len(content))
        content += part.header() + part.content
    return bytes(content + entries) + (end or End()).of(len(content), len(entries), len(parts)) + after


def write_sparse(path: Path, parts: Sequence[Part], last: int) -> None:
    """An archive whose members' contents are read as zeros, and take no room on the disk, `size` of each.

    Args:
        last: how many members, at the end, have their contents written.
    """
    entries = b""
    with path.open("wb") as file:
        for number, part in enumerate(parts):
            entries += part.entry(file.tell())
            file.write(part.header())
            if number >= len(parts) - last:
                file.write(part.content)
            else:
                file.seek(part.size or 0, io.SEEK_CUR)
        start = file.tell()
        file.write(entries + End(wide=True).of(start, len(entries), len(parts)))


# Pickles, in the instructions of protocol 2.


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    length = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def row(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + row(*arguments) + b"R"


def dictionary(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u"


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def storage(key: str = "0", numbers: int = 6, kind: str = "FloatStorage") -> bytes:
    return row(text("storage"), named("torch", kind), text(key), text("cpu"), number(numbers)) + b"Q"


def tensor(
    shape: Sequence[int] = (2, 3),
    stride: Sequence[int] = (3, 1),
    offset: int = 0,
    of: bytes | None = None,
    more: bytes = b"",
    sizes: bytes | None = None,
    steps: bytes | None = None,
) -> bytes:
    """A tensor as `torch.save` describes it, or with other instructions in place of its sizes and steps."""
    sizes = row(*map(number, shape)) if sizes is None else sizes
    steps = row(*map(number, stride)) if steps is None else steps
    hooks = named("collections", "OrderedDict") + b")R"
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    return rebuild + b"(" + (of or storage()) + number(offset) + sizes + steps + b"\x89" + hooks + more + b"tR"


def parts(value: bytes, storages: Sequence[bytes] = (bytes(24),)) -> list[Part]:
    """The members of a weights file whose pickle says a value."""
    numbers = [Part(b"archive/data/%d" % i, content) for i, content in enumerate(storages)]
    return [Part(b"archive/data.pkl", pickled(value)), Part(b"archive/byteorder", b"little"), *numbers, VERSION]


VERSION: Final = Part(b"archive/version", b"3\n")


def weights(value: bytes, storages: Sequence[bytes] = (bytes(24),)) -> bytes:
    """A weights file whose pickle says a value."""
    return archive(parts(value, storages))


SOUND: Final = dictionary({"llm.a": tensor()})
"""What a weights file of one small tensor says."""
