"""SHA-256 of files and of folders."""

import hashlib
from collections.abc import Mapping
from typing import Final, Protocol

_BUFFER: Final = 1 << 20
"""In bytes, what is read at a time."""


class _Readable(Protocol):
    def readinto(self, buffer: bytearray, /) -> int | None: ...


def sha256_of(file: _Readable) -> str:
    """The SHA-256 of the rest of an open file, from its position on, in hex."""
    digest = hashlib.sha256()
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    while size := file.readinto(buffer):
        digest.update(view[:size])
    return digest.hexdigest()


def sha256_of_folder(digests: Mapping[str, str]) -> str:
    """The digest of a folder: the SHA-256 of what `sha256sum *` prints in it, which lists its files' digests.

    Args:
        digests: the SHA-256 of the files in hex, by their names.
    """
    lines = [f"{digests[name]}  {name}\n" for name in sorted(digests)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
