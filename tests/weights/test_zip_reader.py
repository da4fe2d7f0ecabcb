"""Which archives are read, and that there is one reading of them."""

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosyjit.weights.formats import UnsupportedFormError
from cosyjit.weights.zip_reader import blocks, content, extent, members
from tests.support.hostile_weights import LARGE, End, Part, archive, write_sparse

A: Final = Part(b"x/a", b"first")
B: Final = Part(b"x/b", b"second one")


REFUSALS: Final = (UnsupportedFormError, ValueError, struct.error, zlib.error)


def found(file: bytes) -> dict[str, bytes]:
    """The contents of an archive's members."""
    opened = io.BytesIO(file)
    return {name: content(opened, member, 1 << 20) for name, member in members(opened).items()}


def refused(file: bytes) -> str:
    with pytest.raises(REFUSALS) as error:
        found(file)
    return str(error.value)


FIELD: Final = struct.pack("<HH4s", 0x5455, 4, b"time")
NAMES: Final = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
CONTENTS: Final = st.dictionaries(NAMES.map(str.lower), st.binary(max_size=20), max_size=5)
PARTS: Final = st.builds(
    lambda contents, **options: [Part(f"x/{name}".encode(), content, **options) for name, content in contents.items()],
    CONTENTS,
    flags=st.sampled_from([0, 8, 0x800, 0x808]),
    header_size=st.sampled_from([None, 0, LARGE]),
    wide=st.booleans(),
    padding=st.sampled_from([b"", b"FB\4\0ZZZZ"]),
    fields=st.sampled_from([b"", FIELD]),
)


@given(PARTS, st.booleans())
def test_what_is_true_to_the_format_is_read(parts: list[Part], wide: bool) -> None:
    expected = {part.name.decode().partition("/")[2]: part.content for part in parts}
    assert found(archive(parts, End(wide=wide))) == expected


@given(CONTENTS)
def test_what_the_standard_library_writes_is_read(contents: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x/", b"")
        for name, written in contents.items():
            file.writestr(f"x/{name}", written)
    assert found(buffer.getvalue()) == {"": b""} | contents


def test_members_are_read_where_torch_finds_them() -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(5), "b": torch.ones(3)}, buffer)
    reader = torch._C.PyTorchFileReader(io.BytesIO(buffer.getvalue()))
    for name, member in members(buffer).items():
        assert content(buffer, member, 1000) == reader.get_record(name)
        assert extent(buffer, member)[0] == reader.get_record_offset(name)  # type: ignore[attr-defined]


def test_a_member_behind_the_first_4_gb_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    write_sparse(path, [Part(b"x/large", size=5 << 30, wide=True), replace(B, wide=True)], 1)
    with path.open("rb") as file:
        large, b = members(file).values()
        assert (large.size, b.header > 5 << 30) == (5 << 30, True)
        assert content(file, b, 100) == B.content
        with pytest.raises(
            UnsupportedFormError, match=r"^has 5368709120 bytes in x/large, more than the 100 that are read"
        ):
            content(file, large, 100)


def part(**options: object) -> Callable[[], bytes]:
    return lambda: archive([replace(A, **options), B])  # type: ignore[arg-type]


def end(**options: object) -> Callable[[], bytes]:
    return lambda: archive([A, B], End(**options))  # type: ignore[arg-type]


HOSTILE: Final[dict[str, tuple[Callable[[], bytes], str]]] = {
    "nothing": (lambda: b"", "does not end as a zip archive"),
    "text": (lambda: b"text" * 50, "does not end as a zip archive"),
    "bytes before": (lambda: b"before" + archive([A, B]), "not at its end"),
    "another archive before": (lambda: archive([A]) + archive([B]), "not at its end"),
    "bytes behind": (lambda: archive([A, B], after=b"\0"), "has a comment or other bytes behind its end"),
    "another end behind": (lambda: archive([A, B], after=End().of(0, 0, 0)), "not at its end"),
    "comment": (end(comment=b"why not"), "has a comment or other bytes behind its end"),
    "an end in the comment": (end(comment=End().of(0, 0, 0)), "not at its end"),
    "first of several disks": (end(disk=1), "not at its end"),
    "directory at the start": (end(start=0), "not at its end"),
    "directory far away": (end(start=LARGE - 1), "not at its end"),
    "longer directory": (end(size=LARGE - 1), "not at its end"),
    "shorter directory": (end(size=53), "not at its end"),
    "fewer entries": (end(entries=1), "more than its entries"),
    "more entries": (end(entries=3), "unpack_from requires"),
    "most entries": (end(entries=0xFFFF), "unpack_from requires"),
    "wide and elsewhere": (end(wide=True, wide_start=0), "its end records disagree"),
    "wide and elsewhere, short as well": (end(wide=True, wide_start=0, start=0), "not at its end"),
    "wide and past any file": (end(wide=True, wide_start=2**64 - 1), "its end records disagree"),
    "wide and said to be elsewhere": (end(wide=True, place=0), "record of large numbers"),
    "wide on two disks": (end(wide=True, disks=2), "several files"),
    "wide with too many entries": (end(wide=True, entries=2**40), "unpack_from requires"),
    "said to be deflated": (part(method=8), "invalid"),
    "of another size when unpacked": (part(packed=4), "x/a has two sizes"),
    "encrypted": (part(flags=1), r"has members that are encrypted \(x/a\)"),
    "patched": (part(flags=0x20), r"has members that are encrypted \(x/a\)"),
    "encrypted strongly": (part(flags=0x40), r"has members that are encrypted \(x/a\)"),
    "masked": (part(flags=0x2000), r"has members that are encrypted \(x/a\)"),
    "on another disk": (part(disk=1), r"has members that are encrypted \(x/a\)"),
    "compressed in another way": (part(method=12), r"has members that are compressed by method 12 \(x/a\)"),
    "marked as a folder": (part(attributes=0x10), "x/a is marked as a folder"),
    "another name in the header": (part(header_name=b"x/c"), "the header of x/a names another member"),
    "a longer name in the header": (part(header_name=b"x/abc"), "the header of x/a names another member"),
    "a shorter name in the header": (part(header_name=b"x/", padding=b"a"), "the header of x/a names another member"),
    "no header": (part(signature=b"PK\1\2"), "the header of x/a names another member"),
    "larger by a byte": (part(size=6), "x/a is cut short"),
    "larger than the file": (part(size=1 << 31), "has 2147483648 bytes in x/a, more than the 1048576"),
    "largest": (part(size=2**64 - 1, wide=True), "has 18446744073709551615 bytes in x/a, more than the 1048576"),
    "at the other's place": (part(offset=38), "x/a is cut short"),
    "within the other": (lambda: archive([A, replace(B, offset=4)]), "x/a is cut short"),
    "around the other": (lambda: archive([replace(A, size=48), B]), "x/a is cut short"),
    "at the directory": (part(offset=81), "is cut short"),
    "behind the file": (part(offset=1 << 30), "is cut short"),
    "far behind the file": (part(offset=2**64 - 1, wide=True), "x/a is cut short"),
    "large, and no number": (part(size=LARGE), "has 4294967295 bytes in x/a, more than the 1048576"),
    "large, and half a number": (part(size=LARGE, fields=b"\1\0\4\0aaaa"), "its directory lacks a large number"),
    "large, and a number cut short": (part(size=LARGE, fields=b"\1\0\x10\0aaaa"), "unpack_from requires"),
    "large, and a field cut short": (part(size=LARGE, fields=b"\1\0\x08"), "unpack_from requires"),
    "one name twice": (lambda: archive([A, A]), "two members have one name"),
    "one name in two cases": (lambda: archive([A, Part(b"x/A")]), "two members have one name"),
    "one name in two folders": (lambda: archive([A, Part(b"y/a")]), "two members have one name"),
    "two folders": (lambda: archive([A, Part(b"y/b")]), "several folders"),
    "a thousand of one name": (lambda: archive([A] * 1000), "two members have one name"),
    "name with an end": (lambda: archive([Part(b"x/a\0b")]), "not a printable text"),
    "name with a line break": (lambda: archive([Part(b"x/a\nb")]), "not a printable text"),
    "name for a terminal": (lambda: archive([Part(b"x/\x1b[2J")]), "not a printable text"),
    "name of no text": (lambda: archive([Part(b"x/\xff")]), "not a printable text"),
    "name of a surrogate": (lambda: archive([Part(b"x/\xed\xa0\x80")]), "not a printable text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_can_be_read_in_another_way_is_refused(name: str) -> None:
    made, reason = HOSTILE[name]
    with pytest.raises(REFUSALS, match=reason):
        found(made())


def test_the_archives_that_the_others_are_made_of_are_sound() -> None:
    for options in ({}, {"wide": True}, {"wide": True, "start": LARGE}, {"wide": True, "size": LARGE}):
        assert found(archive([A, B], End(**options))) == {"a": A.content, "b": B.content}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flip_anywhere_raises_nothing_else(flip: int, wide: bool) -> None:
    file = bytearray(archive([replace(A, wide=wide, fields=FIELD), B], End(wide=wide)))
    for i in range(len(file)):
        file[i] ^= flip
        with contextlib.suppress(*REFUSALS):
            assert sum(map(len, found(bytes(file)).values())) <= len(A.content) + len(B.content)
        file[i] ^= flip


def test_an_archive_cut_anywhere_is_refused() -> None:
    file = archive([A, replace(B, wide=True)], End(wide=True))
    for length in range(len(file)):
        refused(file[:length])
        refused(file[length + 1 :])


def test_a_directory_too_large_for_any_checkpoint_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"PK")
    with path.open("r+b") as file:
        file.seek(20 << 30)
        file.write(End(wide=True).of(0, 20 << 30, 1 << 28))
    with (
        path.open("rb") as file,
        pytest.raises(UnsupportedFormError, match=r"^has a directory of 21474836480 bytes, more"),
    ):
        members(file)


def test_a_million_members_are_not_read() -> None:
    entries = A.entry(0) * 1_000_000
    with pytest.raises(UnsupportedFormError, match=r"^has a directory of 49000000 bytes, more than the 4194304 that"):
        members(io.BytesIO(entries + End(wide=True).of(0, len(entries), 1_000_000)))


def test_more_members_than_any_checkpoint_has_are_read() -> None:
    named = [Part(b"archive/data/%d" % i, wide=True) for i in range(20_000)]
    assert len(members(io.BytesIO(archive(named, End(wide=True))))) == 20_000


def deflated(contents: bytes, **options: object) -> Part:
    """A member that is deflated, or said to be otherwise."""
    packed = zlib.compress(contents, wbits=-15)
    stated = {"size": len(contents), "packed": len(packed), "crc": zlib.crc32(contents), "method": 8, **options}
    return replace(A, content=packed, **stated)  # type: ignore[arg-type]


@given(st.binary(max_size=300) | st.integers(0, 3 << 20).map(bytes))
def test_what_is_deflated_is_read(contents: bytes) -> None:
    file = io.BytesIO(archive([deflated(contents), B]))
    a, b = members(file).values()
    assert content(file, a, 1 << 30) == contents
    assert all(len(block) <= 1 << 20 for block in blocks(file, a))
    assert content(file, b, 100) == B.content


def test_what_the_standard_library_deflates_is_read() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/a", b"abc" * 1000)
        file.writestr("x/b", b"")
    assert found(buffer.getvalue()) == {"a": b"abc" * 1000, "b": b""}


BOMB: Final = bytes(1 << 24)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (deflated(BOMB, size=100), "x/a is longer than it says"),
        (deflated(BOMB), "has 16777216 bytes in x/a, more than the 1048576 that are read"),
        (deflated(b"abc", size=4), "x/a is not what it says"),
        (deflated(b"abc", crc=1), "has a member whose bytes are not those of its checksum (x/a)"),
        (replace(deflated(b"abc"), content=deflated(b"abc").content + b"x", packed=6), "x/a is longer than it says"),
        (replace(deflated(b"abc" * 50), content=deflated(b"abc" * 50).content[:-2]), "x/a is cut short"),
        (replace(deflated(b"abcdefgh"), packed=4), "x/a is not what it says"),
    ],
    ids=["bomb", "large", "shorter", "another sum", "more behind it", "cut", "half of it"],
)
def test_what_is_not_as_it_was_when_it_was_deflated_is_refused(part: Part, reason: str) -> None:
    assert reason in refused(archive([part, replace(B, offset=None)]))
