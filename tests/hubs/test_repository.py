"""Files on their way to a hub: their bytes come to the end only if they have their digest."""

from pathlib import Path

import pytest

from cosyjit.errors import FileChangedError
from cosyjit.hubs.repository import File, Held
from tests.support.files import sha256
from tests.support.hugging_face import git_sha1

CONTENT = bytes(range(256)) * 10_000


def file(content: Path | bytes, expected: bytes = CONTENT) -> File:
    return File("llm.llm.fp32.zip", len(expected), sha256(expected), content)


@pytest.mark.parametrize("expected", [CONTENT, b"", b"a"])
def test_a_file_gives_its_bytes(tmp_path: Path, expected: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(expected)
    for each in (file(path, expected), file(expected, expected)):
        assert each.read() == expected
        assert each.git_sha1() == git_sha1(expected)
        with each.opened() as opened:
            parts = list(iter(lambda: opened.read(100_000), b""))
        assert b"".join(parts) == expected
        assert all(len(part) <= 100_000 for part in parts)


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT[:-1] + b"?", b"?" + CONTENT[1:]])
def test_the_last_bytes_of_a_file_that_was_changed_never_come(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    came: list[bytes] = []
    with file(path).opened() as opened, pytest.raises(FileChangedError, match=r"it was changed .*; export again"):
        came.extend(iter(opened.read, b""))
    assert sum(map(len, came)) < len(CONTENT)
    with pytest.raises(FileChangedError):
        file(path).check()


def test_what_was_appended_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT + b"more")
    assert file(path).read() == CONTENT


def test_a_file_that_is_gone_or_none_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileChangedError, match=r"^llm\.llm\.fp32\.zip: is not as it was published \("):
            file(path).read()


def test_a_listed_file_is_the_same_by_whichever_digest_its_hub_has() -> None:
    size, other = len(CONTENT), sha256(b"other")
    assert Held(size, sha256(CONTENT)).is_same(file(CONTENT))
    assert Held(size, None, git_sha1(CONTENT)).is_same(file(CONTENT))
    for held in (
        Held(size, other),
        Held(size, other, git_sha1(CONTENT)),
        Held(size, None, git_sha1(b"other")),
        Held(size + 1, sha256(CONTENT)),
        Held(None, sha256(CONTENT)),
        Held(size, None),
    ):
        assert not held.is_same(file(CONTENT))
