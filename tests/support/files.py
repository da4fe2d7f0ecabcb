"""Files in tests: their digests, damage to them, and a place on another device."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (the other device that most machines have)


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    """That of a file's bytes."""
    return sha256(path.read_bytes())


def flip(path: Path) -> None:
    """Damage a file in place, in its middle, whatever its permissions are."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0xFF]))


@contextmanager
def other_device(directory: Path) -> Iterator[Path]:
    """A directory on another device than this one, removed in the end."""
    if not _MEMORY.is_dir() or _MEMORY.stat().st_dev == directory.stat().st_dev:
        pytest.skip("there is one device only")
    with tempfile.TemporaryDirectory(dir=_MEMORY) as path:
        yield Path(path)
