"""What is remembered of files: as long as they are the same, and believed only if it is undamaged."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from cosyjit.errors import FileChangedError
from cosyjit.fs.digests import Digests
from cosyjit.fs.identity import Identity
from tests.support.file_changes import CHANGED, CHANGING, changing
from tests.support.files import sha256_of
from tests.support.processes import wait_for


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def test_the_sha256_of_a_file_is_remembered_until_it_changes(path: Path, memory: Digests) -> None:
    right = sha256_of(path)
    assert memory.sha256(path) == right
    memory.remember("sha256", path, Identity.of(path), "0" * 64)
    assert memory.sha256(path) == "0" * 64
    path.touch()
    assert memory.sha256(path) == right
    path.touch()
    memory.remember_sha256(path, "1" * 64, Identity.of(path))
    assert memory.sha256(path) == "1" * 64


def test_a_sha256_that_is_taken_in_the_background_is_waited_for(path: Path, memory: Digests) -> None:
    path.write_bytes(bytes(16 << 20))
    memory.begin_sha256([path.with_name("missing"), path])
    wait_for(lambda: memory.directory.exists() and list(memory.directory.glob("*.json")))
    assert memory.sha256(path) == sha256_of(path)


VALUE: Final[dict[str, Any]] = {"anything": ["that", "JSON", "has", 1, None]}


def test_anything_is_remembered_of_a_file_by_its_kind_until_the_file_changes(path: Path, memory: Digests) -> None:
    before = Identity.of(path)
    memory.remember("kind", path, before, VALUE)
    assert Digests(memory.directory).recall("kind", path, before) == VALUE
    assert memory.recall("another kind", path, before) is None
    assert memory.recall("kind", path.with_name("other"), before) is None
    path.write_bytes(b"changed")
    assert memory.recall("kind", path, Identity.of(path)) is None
    memory.remember("kind", path, Identity.of(path), 5)
    assert memory.recall("kind", path, Identity.of(path)) == 5
    assert len(list(memory.directory.iterdir())) == 1


def damaged(content: bytes) -> list[bytes]:
    checksum, _, text = content.partition(b"\n")
    entry = json.loads(text)
    others = [[], {}, None, "text", entry | {"more": 2}, entry | {"path": "other"}, entry | {"value": "0" * 64}]
    return [
        b"",
        b"\0" * len(content),
        b"\xff\xfe",
        content[:-1],
        content * 2,
        b"[" * 100_000,
        *(checksum + b"\n" + json.dumps(each).encode() for each in others),
    ]


def test_a_damaged_entry_is_not_believed_and_written_anew(path: Path, memory: Digests) -> None:
    right = memory.sha256(path)
    (entry,) = memory.directory.iterdir()
    whole = entry.read_bytes()
    for content in damaged(whole):
        entry.write_bytes(content)
        assert list(memory.of_missing()) == [entry]
        assert memory.sha256(path) == right
        assert entry.read_bytes() == whole


def test_the_entries_of_files_that_are_gone_are_forgotten(path: Path, memory: Digests) -> None:
    gone = path.with_name("gone")
    gone.write_bytes(b"x")
    memory.sha256(path)
    (stays,) = memory.directory.iterdir()
    memory.sha256(gone)
    assert list(memory.of_missing()) == []
    assert list(memory.of_missing({str(path)})) == [stays]
    gone.unlink()
    memory.tidy()
    assert list(memory.directory.iterdir()) == [stays]


@pytest.mark.parametrize("directory", ["/proc/memory", "/sys/memory", "file/memory"])
def test_a_directory_that_cannot_be_written_to_costs_time_only(directory: str, path: Path, tmp_path: Path) -> None:
    memory = Digests(tmp_path / directory)
    for _ in range(2):
        assert memory.sha256(path) == sha256_of(path)
        assert memory.recall("sha256", path, Identity.of(path)) is None
    memory.tidy()
    assert list(memory.of_missing()) == []


@pytest.mark.parametrize("place", ["missing", "."])
def test_what_is_not_a_file_has_no_digest(place: str, memory: Digests, tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, IsADirectoryError)):
        memory.sha256(tmp_path / place)
    assert not memory.directory.exists()


# What happens to a file while it is read.


@pytest.mark.slow
def test_a_file_that_is_changed_while_its_sha256_is_taken_never_has_a_wrong_one(
    memory: Digests, tmp_path: Path
) -> None:
    originals = [tmp_path / "0", tmp_path / "1"]
    for value, original in enumerate(originals):
        original.write_bytes(bytes([value]) * (8 << 20))
    right = [sha256_of(path) for path in originals]
    path = Path(shutil.copy(originals[0], tmp_path / "changing"))
    errors: list[str] = []

    def seen() -> bool:
        try:
            assert memory.sha256(path) in right
        except FileChangedError as error:
            errors.append(str(error))
        return len(errors) == 5

    with changing(CHANGING["rewritten"], path, originals):
        assert wait_for(seen)
    assert errors == [f"{path}: {CHANGED}"] * 5
    assert memory.sha256(path) == sha256_of(path)
