"""SHA-256 of files and of folders."""

import hashlib
from collections.abc import Mapping
from typing import Final, Protocol

_BUFFER: Final = 1 << 20
"""In bytes, what is read at a time."""


class _Readable(Protocol):
    def readinto(self, buffer: bytearray, /) -> int | None: ...


def sha256_of(file: _Readable) -> str:
    """The SHA-256 of an open file from where it stands, in hex."""
    digest = hashlib.sha256()
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    while size := file.readinto(buffer):
        digest.update(view[:size])
    return digest.hexdigest()


def sha256_of_folder(digests: Mapping[str, str]) -> str:
    """What a folder is known by: the SHA-256 of the list of its files' digests, by their names.

    The list is what `sha256sum *` prints in the folder.
    """
    lines = [f"{digests[name]}  {name}\n" for name in sorted(digests)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
