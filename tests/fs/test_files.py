"""Local files: whole or not there, copied by reference or not; links in one step."""

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosyjit.fs import files
from tests.support.files import other_device
from tests.support.processes import snapshot, start


def test_a_replaced_file_has_its_new_content_and_the_mode_that_umask_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = os.umask(0o027)
    try:
        with files.replacing(path, sync=True) as file:
            file.write(b"new")
            assert path.read_bytes() == b"old"
    finally:
        os.umask(before)
    assert snapshot(tmp_path) == {"file": b"new"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_replacement_that_fails_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with files.replacing(path) as file:
            file.write(b"half")
            raise error

    (tmp_path / "file").write_bytes(b"old")
    for name in ("file", "other"):
        with pytest.raises(error):
            fail(tmp_path / name)
    assert snapshot(tmp_path) == {"file": b"old"}


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write(tmp_path / "directory", b"content")
    assert snapshot(tmp_path) == {"directory": None}


def test_a_symbolic_link_replaces_a_file_or_another_link_and_stays_where_it_is_right(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.write_bytes(b"old")
    for target in ("nowhere", "elsewhere"):
        files.replace_symlink(target, path)
        assert str(path.readlink()) == target
    before = path.lstat()
    files.replace_symlink("elsewhere", path)
    assert path.lstat() == before
    assert [found.name for found in tmp_path.iterdir()] == ["link"]


def test_a_hard_link_replaces_another_name_of_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    for _ in range(2):
        files.replace_link(tmp_path / "link", _link_to(tmp_path / "file"))
        assert (tmp_path / "link").samefile(tmp_path / "file")
    assert snapshot(tmp_path) == {"file": b"content", "link": b"content"}


def _link_to(file: Path) -> Callable[[Path], None]:
    return lambda path: path.hardlink_to(file)


def test_a_link_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        files.replace_symlink("nowhere", tmp_path / "directory")
    with pytest.raises(FileNotFoundError):
        files.replace_link(tmp_path / "link", _link_to(tmp_path / "missing"))
    assert snapshot(tmp_path) == {"directory": None}


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "声" * 85], ids=["one byte", "two bytes", "three bytes"])
def test_the_longest_names_can_be_replaced(name: str, tmp_path: Path) -> None:
    assert len(name.encode()) >= 254
    files.write(tmp_path / name, b"content")
    assert snapshot(tmp_path) == {name: b"content"}


def test_written_files_bring_their_directories(tmp_path: Path) -> None:
    files.write(tmp_path / "a" / "b" / "file", b"content")
    assert snapshot(tmp_path) == {"a": None, "a/b": None, "a/b/file": b"content"}


KILLED_AMID = """
import resource, signal, sys
from pathlib import Path
from cosyjit.fs import files
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with files.replacing(Path(sys.argv[1]), sync=True) as file:
    for _ in range(4):
        file.write(bytes(1 << 19))
"""


def test_a_writer_that_is_killed_amid_the_bytes_leaves_the_name_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with start(KILLED_AMID, path) as writer:
        _, err = writer.communicate(timeout=600)
    assert (writer.returncode, err) == (-signal.SIGXFSZ, "")
    assert path.read_bytes() == b"old"
    (left,) = [found for found in tmp_path.iterdir() if found != path]
    assert left.stat().st_size == 1 << 20
    assert left.name.endswith(".tmp")
    assert left.name.endswith(files.TEMPORARY)


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_a_copy_has_the_bytes_whatever_way_the_file_was_opened(mode: str, size: int, tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(size))
    path.touch()
    with path.open(mode) as file:
        files.copy(source, cast("BinaryIO", file))
    assert path.read_bytes() == source.read_bytes()


@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_copies_follow_what_was_written_before(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], by: bool
) -> None:
    directory = tmp_path_factory.mktemp("copies")
    with (directory / "all").open("wb") as file:
        for index, part in enumerate(parts):
            if index % 2 == by:
                file.write(part)
            else:
                (directory / "part").write_bytes(part)
                files.copy(directory / "part", file)
    assert (directory / "all").read_bytes() == b"".join(parts)


def test_files_are_copied_between_devices(tmp_path: Path) -> None:
    content = os.urandom(2_500_000)
    with files.replacing(tmp_path / "source") as source:
        source.write(content)
    with other_device(tmp_path) as memory:
        with (memory / "copy").open("wb") as file:
            files.copy(tmp_path / "source", file)
        assert (memory / "copy").read_bytes() == content


def test_a_copy_of_a_missing_file_fails_and_one_to_a_full_disk_too(tmp_path: Path) -> None:
    with (tmp_path / "copy").open("wb") as file, pytest.raises(FileNotFoundError):
        files.copy(tmp_path / "missing", file)
    (tmp_path / "source").write_bytes(bytes(4 << 20))
    with pytest.raises(OSError, match="No space left") as full, Path("/dev/full").open("wb", buffering=0) as file:
        files.copy(tmp_path / "source", file)
    assert full.value.errno == errno.ENOSPC


def test_files_links_and_directories_are_removed_and_what_links_lead_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "directory" / "below").mkdir(parents=True)
    (tmp_path / "directory" / "below" / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("directory", "file", "link", "dangling", "missing"):
        files.remove(tmp_path / name)
    assert snapshot(tmp_path) == {"kept": None, "kept/file": b""}


def test_a_shortage_is_said_in_numbers(tmp_path: Path) -> None:
    assert files.shortage(tmp_path, 0) is None
    found = files.shortage(tmp_path, 2**62)
    assert found is not None
    assert found.startswith("4,611,686,018,427 MB are to be written and ")
    assert found.endswith(" MB are free")


def test_a_file_without_a_name_leaves_nothing_and_is_not_made_where_none_can_be(tmp_path: Path) -> None:
    with files.unnamed(tmp_path) as file:
        file.write(b"content")
        file.seek(0)
        assert file.read() == b"content"
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), files.unnamed(tmp_path / "nowhere"):
        pass
    with pytest.raises(OSError, match="not supported") as refused, files.unnamed(Path("/proc")):
        pass
    assert refused.value.errno == errno.EOPNOTSUPP
