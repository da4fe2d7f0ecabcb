"""Where the members of a zip archive are in its file, for archives that can be read in one way alone.

The format lets a file be two archives, to two readers. What `torch.save` writes leaves no choice, and nothing else is
taken: the members are below one folder, each under a name that no other has, none within another; those read are stored
as they are; the directory stands right before the end of the file. So a member's bytes are those that torch would read,
and all members together are no larger than the file.
"""

import io
import struct
from typing import BinaryIO, Final, NamedTuple

_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
_HEADER: Final = struct.Struct("<4s22xHH")
_FIELD: Final = struct.Struct("<HH")

_SATURATED: Final = 0xFFFFFFFF
"""Stands for a number that is in the field of large numbers instead."""

_LARGE_NUMBERS: Final = 1
_ENCRYPTED_OR_PATCHED: Final = 0x2061
"""The flags of members that are not what they seem."""

_LARGEST_DIRECTORY: Final = 4 << 20
"""In bytes. That of 1,500 tensors takes 0.1 MB."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: its whole name.
        header: where in the file its header is, in bytes.
        bytes: its size.
        stored: whether its bytes are what it holds; else they are compressed or encrypted.
        end: what it has to end before, the header of the next one.
    """

    name: str
    header: int
    bytes: int
    stored: bool
    end: int


class _Entry(NamedTuple):
    """What the directory says of a member."""

    name: str
    header: int
    bytes: int
    stored: bool


class _Directory(NamedTuple):
    """Where the directory of an archive is in its file, its size in bytes, and the number of its entries."""

    start: int
    bytes: int
    entries: int


_MOST: Final = _Directory(_SATURATED, _SATURATED, 0xFFFF)
_TAIL: Final = _END64.size + _LOCATOR.size + _END.size


def members(file: BinaryIO) -> dict[str, Member]:
    """The members of an archive by their names below its folder.

    At most 4 MB are read, and less than twenty times that is taken in memory, whatever the file says.

    Raises:
        ValueError, struct.error: it is no archive, is damaged, or can be read in several ways.
    """
    directory = _directory(file)
    entries = _entries(_read(file, directory.start, directory.bytes), directory.entries)
    entries.sort(key=lambda each: each.header)
    ends = [*(each.header for each in entries), directory.start][1:]
    found = {each.name.partition("/")[2]: Member(*each, end) for each, end in zip(entries, ends, strict=True)}
    # Without regard to case, as torch looks for names.
    if len({name.lower() for name in found}) < len(entries):
        raise ValueError("two members have one name")
    if len({each.name.partition("/")[0] for each in entries}) > 1:
        raise ValueError("the members are in several folders")
    return found


def extent(file: BinaryIO, member: Member) -> tuple[int, int]:
    """Where the bytes of a member begin in the file, and how many there are.

    Raises:
        ValueError, struct.error: it is compressed or cut short, or its header says that it is another.
    """
    if not member.stored:
        raise ValueError(f"{member.name} is compressed")
    name = member.name.encode()
    start = member.header + _HEADER.size + len(name)
    if start + member.bytes > member.end:
        raise ValueError(f"{member.name} is cut short")
    header = _read(file, member.header, start - member.header)
    signature, length, extra = _HEADER.unpack_from(header)
    if signature != b"PK\3\4" or length != len(name) or header[_HEADER.size :] != name:
        raise ValueError(f"{member.name} is another one by its header")
    if start + extra + member.bytes > member.end:
        raise ValueError(f"{member.name} is cut short")
    return start + extra, member.bytes


def content(file: BinaryIO, member: Member, most: int) -> bytes:
    """The bytes of a member.

    Raises:
        ValueError, struct.error: as `extent`, or it has more than `most` bytes.
    """
    start, length = extent(file, member)
    if length > most:
        raise ValueError(f"{member.name} has {length} bytes, more than {most}")
    return _read(file, start, length)


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    found = file.read(length)
    if len(found) < length:
        raise ValueError("it is cut short")
    return found


def _directory(file: BinaryIO) -> _Directory:
    size = file.seek(0, io.SEEK_END)
    tail = _read(file, max(0, size - _TAIL), min(size, _TAIL)).rjust(_TAIL, b"\0")
    signature, disk, first_disk, here, entries, length, start, comment = _END.unpack_from(tail, _TAIL - _END.size)
    if signature != b"PK\5\6" or comment:
        raise ValueError("it does not end as a zip archive does")
    short = _Directory(start, length, entries)
    at, found = size - _END.size, short
    if tail[_END64.size :].startswith(b"PK\6\7"):
        at, found = size - _TAIL, _large_directory(tail, size - _TAIL)
        if any(each not in {wide, most} for each, wide, most in zip(short, found, _MOST, strict=True)):
            raise ValueError("its end has two readings")
    if disk or first_disk or here != entries or found.start + found.bytes != at:
        raise ValueError("its directory is not at its end")
    if found.bytes > _LARGEST_DIRECTORY:
        raise ValueError(f"its directory has {found.bytes} bytes, more than {_LARGEST_DIRECTORY}")
    return found


def _large_directory(tail: bytes, at: int) -> _Directory:
    """What the record of large numbers says, which stands `at` in the file, at the start of `tail`."""
    _, locator_disk, place, disks = _LOCATOR.unpack_from(tail, _END64.size)
    signature, rest, _, _, disk, first_disk, here, entries, length, start = _END64.unpack_from(tail)
    if (signature, rest, place) != (b"PK\6\6", _END64.size - 12, at):
        raise ValueError("its record of large numbers is not at its end")
    if locator_disk or disks > 1 or disk or first_disk or here != entries:
        raise ValueError("it is one of several files")
    return _Directory(start, length, entries)


def _entries(directory: bytes, count: int) -> list[_Entry]:
    found, at = [], 0
    for _ in range(count):
        signature, _, _, flags, method, *_, packed, size, name, extra, comment, disk, _, _, header = _ENTRY.unpack_from(
            directory, at
        )
        names = at + _ENTRY.size
        fields = names + name
        at = fields + extra + comment
        if signature != b"PK\1\2" or at > len(directory):
            raise ValueError("its directory is damaged")
        size, packed, header = _large(directory[fields : fields + extra], (size, packed, header))
        stored = not (method or packed != size or flags & _ENCRYPTED_OR_PATCHED or disk)
        found.append(_Entry(_name(directory[names:fields]), header, packed, stored))
    if at != len(directory):
        raise ValueError("its directory has more than its entries")
    return found


def _name(encoded: bytes) -> str:
    name = encoded.decode()
    if not name.isprintable():
        raise ValueError("a member's name is no printable text")
    return name


def _large(fields: bytes, numbers: tuple[int, int, int]) -> tuple[int, ...]:
    """Numbers of an entry; those that are too large for their place are in one of its other fields."""
    wanted = numbers.count(_SATURATED)
    at = 0
    while wanted and at < len(fields):
        kind, length = _FIELD.unpack_from(fields, at)
        if kind == _LARGE_NUMBERS:
            if length < 8 * wanted:
                raise ValueError("its directory has no number for a large one")
            found = iter(struct.unpack_from(f"<{wanted}Q", fields, at + _FIELD.size))
            return tuple(next(found) if number == _SATURATED else number for number in numbers)
        at += _FIELD.size + length
    return numbers
