"""SHA-256 of files."""

import os
from pathlib import Path

import pytest

from cosyjit.fs import hashing
from tests.support.files import sha256


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_the_digest_of_a_file_is_that_of_its_bytes_from_where_it_stands(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb", buffering=0) as raw, (tmp_path / "file").open("rb") as buffered:
        assert hashing.sha256_of(raw) == sha256(content)
        assert hashing.sha256_of(raw) == sha256(b"")
        buffered.read(1)
        assert hashing.sha256_of(buffered) == sha256(content[1:])
