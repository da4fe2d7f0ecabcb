"""Finds the members of a zip archive in its file, for archives that every reader reads alike.

The format allows a file that is two archives, to two readers. The files of `torch.save` are not, and no others are
accepted: the members are in one folder, their names differ, none is within another, and the directory is right before
the end of the file. So the bytes of a member are those that torch would read. `torch.save` stores members as they are.
Members that another program has deflated are inflated to the size that the directory gives, and not further.

    offset 0                                                                             end of the file
    ├ header  bytes ┼ header  bytes ┼ … ┼ directory: one entry for each member ┼ end records ┤
      └── a member's header ◀────────────── its entry ◀───────────────────────── the directory's offset
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from cosyjit.weights.formats import UnsupportedFormError, unlike_saved

_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
_HEADER: Final = struct.Struct("<4s22xHH")
_FIELD: Final = struct.Struct("<HH")

_SATURATED: Final = 0xFFFFFFFF
"""The value of a number whose real value is in the field of large numbers."""

_LARGE_NUMBERS: Final = 1
_ENCRYPTED_OR_PATCHED: Final = 0x2061
"""The flags of members that are encrypted, or patches of other data."""

_FOLDER: Final = 0x10
"""The attribute of a folder."""

_STORED: Final = 0
_DEFLATED: Final = 8
"""The two methods of compression that torch reads."""

_LONGEST_COMMENT: Final = 0xFFFF
_SLACK: Final = 8192
"""How far before the longest comment torch looks for the end of an archive, at most."""

_BLOCK: Final = 1 << 20
"""How much is inflated at a time, in bytes."""

_LARGEST_DIRECTORY: Final = 4 << 20
"""In bytes. That of 1,500 tensors takes 0.1 MB."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: its whole name.
        header: the offset of its header in the file, in bytes.
        size: the bytes of its content.
        packed: the bytes of that in the file.
        method: the number of its method of compression; None if it is encrypted, patched or in another file.
        sum: the CRC-32 of its content.
        end: the offset of the next header, before which it has to end.
    """

    name: str
    header: int
    size: int
    packed: int
    method: int | None
    sum: int
    end: int

    @property
    def is_stored(self) -> bool:
        """Whether its bytes in the file are its content."""
        return self.method == _STORED and self.packed == self.size


class _Entry(NamedTuple):
    """The entry of a member in the directory."""

    name: str
    header: int
    size: int
    packed: int
    method: int | None
    sum: int


class _Directory(NamedTuple):
    """The offset of an archive's directory in its file, its size in bytes, and the number of its entries."""

    start: int
    size: int
    entries: int


_MOST: Final = _Directory(_SATURATED, _SATURATED, 0xFFFF)
_TAIL: Final = _END64.size + _LOCATOR.size + _END.size


def members(file: BinaryIO) -> dict[str, Member]:
    """The members of an archive by their names below its folder.

    It reads at most 4 MB and takes less than twenty times that in memory, whatever the file says.

    Raises:
        UnsupportedFormError, ValueError, struct.error: it is not an archive, is damaged, or has several readings.
    """
    directory = _directory(file)
    entries = _entries(_read(file, directory.start, directory.size), directory.entries)
    entries.sort(key=lambda entry: entry.header)
    ends = [*(entry.header for entry in entries), directory.start][1:]
    by_name = {entry.name.partition("/")[2]: Member(*entry, end) for entry, end in zip(entries, ends, strict=True)}
    # Without regard to case, as torch looks for names.
    if len({name.lower() for name in by_name}) < len(entries):
        raise unlike_saved("two members have one name")
    if len({entry.name.partition("/")[0] for entry in entries}) > 1:
        raise unlike_saved("the members are in several folders")
    return by_name


def extent(file: BinaryIO, member: Member) -> tuple[int, int]:
    """The offset of a member's bytes in the file, and their number.

    Raises:
        UnsupportedFormError: it is encrypted, or compressed in a way that torch does not read either.
        UnsupportedFormError, ValueError, struct.error: it is cut short, or its header names another member.
    """
    if member.method not in {_STORED, _DEFLATED}:
        how = "encrypted" if member.method is None else f"compressed by method {member.method}"
        raise UnsupportedFormError(f"has members that are {how} ({member.name}); unpack it, and zip it without that")
    if member.method == _STORED and not member.is_stored:
        raise unlike_saved(f"{member.name} has two sizes")
    name = member.name.encode()
    start = member.header + _HEADER.size + len(name)
    if start + member.packed > member.end:
        raise unlike_saved(f"{member.name} is cut short")
    header = _read(file, member.header, start - member.header)
    signature, length, extra = _HEADER.unpack_from(header)
    if signature != b"PK\3\4" or length != len(name) or header[_HEADER.size :] != name:
        raise unlike_saved(f"the header of {member.name} names another member")
    if start + extra + member.packed > member.end:
        raise unlike_saved(f"{member.name} is cut short")
    return start + extra, member.packed


def content(file: BinaryIO, member: Member, most: int) -> bytes:
    """The content of a member.

    Raises:
        UnsupportedFormError, ValueError, struct.error, zlib.error: as `blocks`; or it has more than `most` bytes.
    """
    if member.size > most:
        raise UnsupportedFormError(
            f"has {member.size} bytes in {member.name}, more than the {most} that are read; "
            "save a flat state dictionary alone"
        )
    return b"".join(blocks(file, member))


def blocks(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """The content of a member, a megabyte at a time; never more than the directory says.

    Raises:
        UnsupportedFormError, ValueError, struct.error: as `extent`.
        ValueError, zlib.error: the size or checksum of the content is not the directory's, or it is damaged.
    """
    start, packed = extent(file, member)
    if member.is_stored:
        for at in range(0, packed, _BLOCK):
            yield _read(file, start + at, min(_BLOCK, packed - at))
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size = total = 0
    for at in range(0, packed, _BLOCK):
        left, block = _read(file, start + at, min(_BLOCK, packed - at)), b"more"
        while left or len(block) == _BLOCK:
            block = inflater.decompress(left, _BLOCK)
            left = inflater.unconsumed_tail
            size += len(block)
            total = zlib.crc32(block, total)
            if size > member.size or inflater.unused_data:
                raise ValueError(f"{member.name} is longer than it says")
            yield block
    if not inflater.eof or size != member.size:
        raise ValueError(f"{member.name} is not what it says")
    if total != member.sum:
        raise UnsupportedFormError(
            f"has a member whose bytes are not those of its checksum ({member.name}); copy or download it again"
        )


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    block = file.read(length)
    if len(block) < length:
        raise ValueError("it is cut short")
    return block


def _directory(file: BinaryIO) -> _Directory:
    size = file.seek(0, io.SEEK_END)
    tail = _read(file, max(0, size - _TAIL), min(size, _TAIL)).rjust(_TAIL, b"\0")
    signature, disk, first_disk, here, entries, length, start, comment = _END.unpack_from(tail, _TAIL - _END.size)
    if signature != b"PK\5\6" or comment:
        start = max(0, size - _LONGEST_COMMENT - _SLACK - _END.size)
        if b"PK\5\6" in _read(file, start, size - start)[: -_END.size + 4]:
            raise UnsupportedFormError("has a comment or other bytes behind its end; zip it again without them")
        raise ValueError("it does not end as a zip archive does")
    short = _Directory(start, length, entries)
    at, directory = size - _END.size, short
    if tail[_END64.size :].startswith(b"PK\6\7"):
        at, directory = size - _TAIL, _large_directory(tail, size - _TAIL)
        if any(number not in {wide, most} for number, wide, most in zip(short, directory, _MOST, strict=True)):
            raise unlike_saved("its end records disagree")
    if disk or first_disk or here != entries or directory.start + directory.size != at:
        raise unlike_saved("its directory is not at its end")
    if directory.size > _LARGEST_DIRECTORY:
        raise UnsupportedFormError(
            f"has a directory of {directory.size} bytes, more than the {_LARGEST_DIRECTORY} that are read; "
            "save a flat state dictionary alone"
        )
    return directory


def _large_directory(tail: bytes, at: int) -> _Directory:
    """The directory by the record of large numbers, which is `at` this offset in the file and begins `tail`."""
    _, locator_disk, place, disks = _LOCATOR.unpack_from(tail, _END64.size)
    signature, rest, _, _, disk, first_disk, here, entries, length, start = _END64.unpack_from(tail)
    if (signature, rest, place) != (b"PK\6\6", _END64.size - 12, at):
        raise unlike_saved("its record of large numbers is not at its end")
    if locator_disk or disks > 1 or disk or first_disk or here != entries:
        raise unlike_saved("it is one of several files")
    return _Directory(start, length, entries)


def _entries(directory: bytes, count: int) -> list[_Entry]:
    entries, at = [], 0
    for _ in range(count):
        signature, _, _, flags, method, _, _, total, packed, size, name, extra, comment, disk, _, kind, header = (
            _ENTRY.unpack_from(directory, at)
        )
        names = at + _ENTRY.size
        fields = names + name
        at = fields + extra + comment
        if signature != b"PK\1\2" or at > len(directory):
            raise ValueError("its directory is damaged")
        size, packed, header = _large(directory[fields : fields + extra], (size, packed, header))
        plain = not (flags & _ENCRYPTED_OR_PATCHED or disk)
        name_of = _name(directory[names:fields])
        if kind & _FOLDER and not name_of.endswith("/"):  # torch would read nothing of it, and take what memory holds
            raise unlike_saved(f"{name_of} is marked as a folder")
        entries.append(_Entry(name_of, header, size, packed, method if plain else None, total))
    if at != len(directory):
        raise unlike_saved("its directory has more than its entries")
    return entries


def _name(encoded: bytes) -> str:
    name = encoded.decode(errors="replace")
    if name.encode() != encoded or not name.isprintable():
        raise unlike_saved("a member's name is not a printable text")
    return name


def _large(fields: bytes, numbers: tuple[int, int, int]) -> tuple[int, ...]:
    """The real values of an entry's numbers; those that are too large are in one of its extra fields."""
    wanted = numbers.count(_SATURATED)
    at = 0
    while wanted and at < len(fields):
        kind, length = _FIELD.unpack_from(fields, at)
        if kind == _LARGE_NUMBERS:
            if length < 8 * wanted:
                raise ValueError("its directory lacks a large number")
            large = iter(struct.unpack_from(f"<{wanted}Q", fields, at + _FIELD.size))
            return tuple(next(large) if number == _SATURATED else number for number in numbers)
        at += _FIELD.size + length
    return numbers
