"""Digests of files, remembered by the file's identity, so that a file that has not changed is not read again."""

import json
import os
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any, Final

import xxhash

from cosyjit.errors import FileChangedError
from cosyjit.fs.files import plain
from cosyjit.fs.hashing import sha256_of
from cosyjit.fs.identity import Identity, settle
from cosyjit.fs.roots import Root

_LARGEST: Final = 64 << 20
"""The most bytes of an entry that are read."""

_FORMAT: Final = b"cosyjit digests 3\n"
"""What the checksum of an entry begins with: entries of another format have another checksum, and are ignored."""

_ONE_AT_A_TIME: Final = threading.Lock()
"""Held while a file's SHA-256 is taken: several builds that ask for it at once wait for the same answer."""


@cache
def _boot() -> str:
    """An identifier of this start of the machine; of this process where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116  (a Path for each of a hundred thousand takes longer than the rest)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False  # it may well be there
    return False


class Digests:
    """Digests of files, remembered in a directory.

    The directory is a cache: whoever looks at a file may write to it, it holds nothing that cannot be computed again,
    and without it, or where it cannot be written to, digests are computed each time.

    Attributes:
        directory: where they are remembered; made by the first that is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._root, self._folder = Root(directory.parent), directory.name

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file, in hex.

        Raises:
            OSError: it cannot be read.
            FileChangedError: it was changed while it was read.
        """
        with plain(path) as file:
            return self.sha256_of(file, path)

    def sha256_of(self, file: FileIO, path: Path) -> str:
        """The SHA-256 of a file that is open already, unbuffered; it is remembered by its path.

        Raises:
            OSError, FileChangedError: see `sha256`.
        """
        if remembered := self._recall_sha256(file, path):
            return remembered
        with _ONE_AT_A_TIME:
            if remembered := self._recall_sha256(file, path):
                return remembered
            identity = Identity.of(file.fileno())
            (settled,) = settle([file.fileno()])
            file.seek(0)
            digest = sha256_of(file)
            if not identity.is_still(file.fileno(), path):
                raise FileChangedError(f"{path}: was changed while it was read; run again when it is complete")
        if settled:
            self.remember("sha256", path, identity, digest)
        return digest

    def begin_sha256(self, paths: Iterable[Path]) -> None:
        """Compute the SHA-256 of files in a thread; `sha256` waits for it."""

        def work() -> None:
            for path in paths:
                with suppress(OSError, FileChangedError):  # `sha256` raises it again
                    self.sha256(path)

        threading.Thread(target=work, daemon=True).start()

    def remember_sha256(self, path: Path, sha256: str, before: Identity | None, *, until_restart: bool = False) -> None:
        """Remember the SHA-256 of a file that was given a name, if nothing else has happened to it.

        Args:
            path: its name now.
            sha256: the digest, in hex.
            before: the file before it was given the name, see `Identity.written`; for None nothing is remembered.
            until_restart: forget it when the machine is started again, before which it may not have reached the disk.
        """
        with suppress(OSError):  # it was moved on already
            identity = Identity.of(path)
            if before and identity[:3] == before[:3]:  # all but the time of change
                self.remember(f"sha256 {_boot()}" if until_restart else "sha256", path, identity, sha256)

    def _recall_sha256(self, file: FileIO, path: Path) -> str | None:
        identity = Identity.of(file.fileno())
        digest = self.recall("sha256", path, identity) or self.recall(f"sha256 {_boot()}", path, identity)
        return digest if isinstance(digest, str) else None

    def recall(self, kind: str, path: Path, identity: Identity) -> Any:
        """What is remembered of a file; None if nothing is.

        Args:
            kind: what it is remembered as.
            path: the file.
            identity: what the file is now.
        """
        entry = self._read(self._name(kind, path))
        if entry is None or (entry["path"], entry["identity"]) != (str(path), list(identity)):
            return None
        return entry["value"]

    def remember(self, kind: str, path: Path, identity: Identity, value: Any) -> None:
        """Remember something of a file, for as long as the file stays what it is.

        Args:
            kind, path, identity: see `recall`.
            value: anything that JSON has.
        """
        entry = json.dumps({"path": str(path), "identity": identity, "value": value}).encode()
        # A directory that cannot be written to costs time only.
        with suppress(OSError), self._root.replacing(self._name(kind, path)) as file:
            file.write(_checksum(entry) + entry)

    def tidy(self) -> None:
        """Forget the digests of files that are gone."""
        with suppress(OSError):  # a directory that cannot be written to costs time only
            for path in self.of_missing():
                self._root.remove(f"{self._folder}/{path.name}")

    def of_missing(self, going: Collection[str] = ()) -> Iterator[Path]:
        """The entries of files that are gone, or whose paths are in `going`."""
        names: list[str] = []
        with suppress(OSError):  # a directory that cannot be read has no entries
            names = [name for name, _ in self._root.walk(self._folder) if name.endswith(".json")]
        for name in names:
            entry = self._read(name)
            if entry is None or entry["path"] in going or _is_missing(entry["path"]):
                yield self._root.path / name

    def _name(self, kind: str, path: Path) -> str:
        return f"{self._folder}/{xxhash.xxh3_128_hexdigest(kind.encode() + b' ' + os.fsencode(path))}.json"

    def _read(self, name: str) -> dict[str, Any] | None:
        """An entry; None if there is none, or if it is damaged or of another version."""
        with suppress(OSError, ValueError, RecursionError):
            checksum, _, text = self._root.read(name, _LARGEST).partition(b"\n")
            entry = json.loads(text) if checksum + b"\n" == _checksum(text) else None
            if isinstance(entry, dict) and entry.keys() == {"path", "identity", "value"}:
                return entry if isinstance(entry["path"], str) else None
        return None


def _checksum(entry: bytes) -> bytes:
    """The line before an entry, without which a damaged one would be believed."""
    return xxhash.xxh3_128_hexdigest(_FORMAT + entry).encode() + b"\n"
