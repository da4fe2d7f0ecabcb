"""Where the members of a zip archive are in its file, for archives that can be read in one way alone.

The format lets a file be two archives, to two readers. What `torch.save` writes leaves no choice, and nothing else is
taken: the members are below one folder, each under a name that no other has, none within another; the directory stands
right before the end of the file. So a member's bytes are those that torch would read. `torch.save` stores members as
they are; those that another program has deflated are inflated to the size that the directory gives, and no further.
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
"""Stands for a number that is in the field of large numbers instead."""

_LARGE_NUMBERS: Final = 1
_ENCRYPTED_OR_PATCHED: Final = 0x2061
"""The flags of members that are not what they seem."""

_FOLDER: Final = 0x10
"""The attribute of members that are folders."""

_STORED: Final = 0
_DEFLATED: Final = 8
"""Methods of compression: the two that torch reads."""

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
        header: where in the file its header is, in bytes.
        bytes: the size of what it holds.
        packed: the size of that in the file.
        method: the number of the method of compression; None where it is encrypted, patched or in another file.
        sum: the CRC-32 of what it holds.
        end: what it has to end before, the header of the next one.
    """

    name: str
    header: int
    bytes: int
    packed: int
    method: int | None
    sum: int
    end: int

    @property
    def is_stored(self) -> bool:
        """Whether its bytes in the file are what it holds."""
        return self.method == _STORED and self.packed == self.bytes


class _Entry(NamedTuple):
    """What the directory says of a member."""

    name: str
    header: int
    bytes: int
    packed: int
    method: int | None
    sum: int


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
        raise unlike_saved("two members have one name")
    if len({each.name.partition("/")[0] for each in entries}) > 1:
        raise unlike_saved("the members are in several folders")
    return found


def extent(file: BinaryIO, member: Member) -> tuple[int, int]:
    """Where the bytes of a member begin in the file, and how many there are.

    Raises:
        UnsupportedFormError: it is encrypted, or compressed in a way that torch does not read either.
        ValueError, struct.error: it is cut short, or its header says that it is another.
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
        raise unlike_saved(f"{member.name} is another one by its header")
    if start + extra + member.packed > member.end:
        raise unlike_saved(f"{member.name} is cut short")
    return start + extra, member.packed


def content(file: BinaryIO, member: Member, most: int) -> bytes:
    """What a member holds.

    Raises:
        UnsupportedFormError, ValueError, struct.error, zlib.error: as `blocks`, or it has more than `most` bytes.
    """
    if member.bytes > most:
        raise UnsupportedFormError(
            f"has {member.bytes} bytes in {member.name}, more than the {most} that are read; "
            "save a flat state dictionary alone"
        )
    return b"".join(blocks(file, member))


def blocks(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """What a member holds, a megabyte at a time; never more than the directory says.

    Raises:
        UnsupportedFormError, ValueError, struct.error: as `extent`.
        ValueError, zlib.error: what is inflated is of another size or sum than the directory says, or damaged.
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
            if size > member.bytes or inflater.unused_data:
                raise ValueError(f"{member.name} is longer than it says")
            yield block
    if not inflater.eof or size != member.bytes:
        raise ValueError(f"{member.name} is not what it says")
    if total != member.sum:
        raise UnsupportedFormError(
            f"has a member whose bytes are not those of its checksum ({member.name}); copy or download it again"
        )


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
        start = max(0, size - _LONGEST_COMMENT - _SLACK - _END.size)
        if b"PK\5\6" in _read(file, start, size - start)[: -_END.size + 4]:
            raise UnsupportedFormError("has a comment or other bytes behind its end; zip it again without them")
        raise ValueError("it does not end as a zip archive does")
    short = _Directory(start, length, entries)
    at, found = size - _END.size, short
    if tail[_END64.size :].startswith(b"PK\6\7"):
        at, found = size - _TAIL, _large_directory(tail, size - _TAIL)
        if any(each not in {wide, most} for each, wide, most in zip(short, found, _MOST, strict=True)):
            raise unlike_saved("its end has two readings")
    if disk or first_disk or here != entries or found.start + found.bytes != at:
        raise unlike_saved("its directory is not at its end")
    if found.bytes > _LARGEST_DIRECTORY:
        raise UnsupportedFormError(
            f"has a directory of {found.bytes} bytes, more than the {_LARGEST_DIRECTORY} that are read; "
            "save a flat state dictionary alone"
        )
    return found


def _large_directory(tail: bytes, at: int) -> _Directory:
    """What the record of large numbers says, which stands `at` in the file, at the start of `tail`."""
    _, locator_disk, place, disks = _LOCATOR.unpack_from(tail, _END64.size)
    signature, rest, _, _, disk, first_disk, here, entries, length, start = _END64.unpack_from(tail)
    if (signature, rest, place) != (b"PK\6\6", _END64.size - 12, at):
        raise unlike_saved("its record of large numbers is not at its end")
    if locator_disk or disks > 1 or disk or first_disk or here != entries:
        raise unlike_saved("it is one of several files")
    return _Directory(start, length, entries)


def _entries(directory: bytes, count: int) -> list[_Entry]:
    found, at = [], 0
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
        if kind & _FOLDER and not name_of.endswith("/"):  # torch reads nothing of it, and takes what memory holds
            raise unlike_saved(f"{name_of} is marked as a folder")
        found.append(_Entry(name_of, header, size, packed, method if plain else None, total))
    if at != len(directory):
        raise unlike_saved("its directory has more than its entries")
    return found


def _name(encoded: bytes) -> str:
    name = encoded.decode(errors="replace")
    if name.encode() != encoded or not name.isprintable():
        raise unlike_saved("a member's name is not a printable text")
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
