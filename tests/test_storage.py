"""Files by name, in a directory or behind a URL: the same from outside."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from cosyjit.storage import Local, Storage, storage
from tests.calls import ROOT, start
from tests.stored import said, unique_url


@pytest.fixture(params=["directory", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return storage(str(tmp_path / "root") if request.param == "directory" else unique_url())


def names(place: Storage, folder: str = "") -> set[str]:
    return {entry.name for entry in place.entries(folder)}


def added(place: Storage, content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(content)
    place.add(tmp_path / "given", name)


def test_what_is_written_is_read_and_replaced_whole(place: Storage) -> None:
    for content in (b"one", b"", b"x" * 100_000):
        place.write("a/b/c.json", content)
        assert place.read("a/b/c.json") == content
    assert names(place) == {"a/b/c.json"}


def test_what_is_not_there_is_not_found(place: Storage) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            place.read("a/b")
        with pytest.raises(FileNotFoundError):
            place.open("a/b")
        with pytest.raises(FileNotFoundError):
            place.move("a/b", "c")
        place.remove("a/b")
        assert names(place) == names(place, "a") == set()
        place.write("other", b"")
        place.remove("other")


def test_a_local_file_is_taken_over_and_read_in_pieces(place: Storage, tmp_path: Path) -> None:
    content = os.urandom(300_001)
    added(place, content, "objects/aa/b", tmp_path)
    with place.open("objects/aa/b") as file:
        pieces = [file.read(1 << 17) for _ in range(4)]
        assert b"".join(pieces) == content
        assert [len(piece) for piece in pieces[:2]] == [1 << 17, 1 << 17]
    added(place, b"again", "objects/aa/b", tmp_path)
    assert place.read("objects/aa/b") == b"again"


def test_entries_have_names_sizes_and_times(place: Storage, tmp_path: Path) -> None:
    before = time.time() - 2
    place.write("a/one", b"1")
    place.write("a/b/two", b"22")
    place.write("ab/three", b"333")
    added(place, b"4444", "four", tmp_path)
    assert {(each.name, each.size) for each in place.entries()} == {
        ("a/one", 1),
        ("a/b/two", 2),
        ("ab/three", 3),
        ("four", 4),
    }
    assert names(place, "a") == {"a/one", "a/b/two"}
    assert all(before <= each.modified <= time.time() + 2 for each in place.entries())


def test_files_are_moved_and_removed(place: Storage) -> None:
    place.write("a", b"1")
    place.move("a", "damaged/a")
    assert names(place) == {"damaged/a"}
    assert place.read("damaged/a") == b"1"
    place.remove("damaged/a")
    assert names(place) == set()


def test_two_roots_are_two_places(tmp_path: Path) -> None:
    for first, second in ((unique_url(), unique_url()), (str(tmp_path / "a"), str(tmp_path / "ab"))):
        storage(first).write("name", b"1")
        assert names(storage(second)) == set()
        assert names(storage(first)) == {"name"}


def test_a_path_is_made_absolute_and_a_home_directory_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, path in (("root", tmp_path / "root"), ("~/root", tmp_path / "home" / "root"), ("/root", Path("/root"))):
        found = storage(given)
        assert isinstance(found, Local)
        assert found.root == path


def test_a_file_removed_while_a_directory_is_listed_is_passed_over(tmp_path: Path) -> None:
    place = storage(str(tmp_path))
    for number in range(100):
        (tmp_path / str(number)).touch()
    listing = place.entries()
    first = next(listing)
    for path in tmp_path.iterdir():
        path.unlink()
    assert [first, *listing] == [first]


def test_a_directory_that_cannot_be_listed_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="Not a directory"):
            list(storage(str(root)).entries())


UNPRIVILEGED = """
import os, sys
from cosyjit.storage import storage
if os.getuid() == 0:
    os.setuid(65534)
try:
    print(sorted(entry.name for entry in storage(sys.argv[1]).entries()))
except OSError as error:
    print(type(error).__name__)
"""


def test_a_folder_that_must_not_be_read_is_no_empty_one() -> None:
    with tempfile.TemporaryDirectory() as root:  # pytest's own directories are their owner's alone
        Path(root).chmod(0o755)
        place = storage(root)
        place.write("a/one", b"1")
        place.write("b/two", b"2")
        Path(root, "a").chmod(0)
        try:
            with start(UNPRIVILEGED, root, cwd=ROOT) as reader:
                assert said(reader) == "PermissionError"
        finally:
            Path(root, "a").chmod(0o755)


def test_a_url_of_this_machines_files_is_a_directory(tmp_path: Path) -> None:
    place = storage(f"file://{tmp_path}/root")
    place.write("a/b", b"1")
    assert (tmp_path / "root" / "a" / "b").read_bytes() == b"1"
