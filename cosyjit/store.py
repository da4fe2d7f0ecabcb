"""Artifacts by the digest of their bytes, and the documents that name them.

Below one root stand

    objects/<2 hex>/<sha256>     artifacts, read-only
    records/<fingerprint>.json   what each was made from (`cosyjit.record`)
    latest/<key>.json            the fingerprint that a target was last exported with
    publications/<sha256>.json   the sets that directories show or showed (`cosyjit.publish`)
    heads/<key>.json             the last publication of each directory
    damaged/                     what was found to be other bytes than its name says
    tmp/, digests/, locks/, …    this machine's: work in hand, remembered digests, locks

A document is written only after what it names, so that a reader finds neither half.
"""

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO, Final, Literal

from cosyjit import files
from cosyjit.digests import Digests
from cosyjit.errors import CheckpointError, StoreError
from cosyjit.identity import Identity
from cosyjit.storage import Entry, Local, Storage, storage

STAGING: Final = "cosyjit-"
"""What the names of directories for work in hand begin with."""

_UNFINISHED: Final = rf"(objects/[0-9a-f]{{2}}|[a-z]+)/\.[0-9a-f]{{32}}\{files.TEMPORARY}"

DEFAULT_ROOT: Final = "~/.cache/cosyjit"

Condition = Literal["whole", "missing", "damaged"]


class Store:
    """Objects and documents at a path or an fsspec URL.

    Attributes:
        root: the path or URL, absolute.
        digests: those that this machine remembers.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        """
        Args:
            root: a directory, which the first write makes, or an fsspec URL; `DEFAULT_ROOT` for None.

        Raises:
            StoreError: it is no path, or a URL that fsspec has no file system for.
        """
        given = str(root or DEFAULT_ROOT)
        try:
            self._storage: Storage = storage(given)
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            raise StoreError(f"{given}: is no store ({_line(error)}); give a directory or an fsspec URL") from None
        local = self.local
        self.root = given if local is None else str(local)
        self.digests = Digests((local or Path(DEFAULT_ROOT).expanduser()) / "digests")

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.root,)

    def __str__(self) -> str:
        return self.root

    @property
    def local(self) -> Path | None:
        """The directory, if it is one of this machine's."""
        return self._storage.root if isinstance(self._storage, Local) else None

    # Documents.

    def read(self, name: str) -> bytes | None:
        """The content of a document; None if there is none of this name."""
        with self._reached():
            try:
                return self._storage.read(name)
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a document, or replace it."""
        with self._reached():
            self._storage.write(name, content)

    def entries(self, folder: str = "") -> list[Entry]:
        """The files below a folder, but for those that are being written."""
        with self._reached():
            return [entry for entry in self._storage.entries(folder) if not entry.name.endswith(files.TEMPORARY)]

    def unfinished(self) -> list[Entry]:
        """The files that are being written, or were when their process was killed."""
        with self._reached():
            return [entry for entry in self._storage.entries() if re.fullmatch(_UNFINISHED, entry.name)]

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._reached():
            self._storage.remove(name)

    def set_aside(self, name: str) -> None:
        """Move a file that is not what it should be out of the way, for someone to look at."""
        with self._reached(), suppress(FileNotFoundError):
            self._storage.move(name, f"damaged/{name.replace('/', '.')}.{uuid.uuid4().hex[:8]}")

    # Objects.

    def add(self, file: Path, sha256: str) -> None:
        """Keep a file as an object; it may be gone afterwards. One that is there already, and whole, stays.

        Args:
            file: on the store's disk best, in a `staging` directory: then it is renamed, otherwise copied.
            sha256: the digest of its bytes.
        """
        if self.condition(sha256) == "whole":
            return
        with self._reached():
            self._storage.add(file, object_name(sha256))
            if self.local is not None:
                self.digests.remember_sha256(self.local / object_name(sha256), sha256)

    def condition(self, sha256: str) -> Condition:
        """Whether an object is there and has the bytes that its name says; a damaged one is set aside.

        A local object is read for that, unless it is the file that was read before. A remote one is checked as it is
        fetched.
        """
        with self._reached():
            try:
                if self.local is None:
                    self._storage.open(object_name(sha256)).close()
                    return "whole"
                path = self.local / object_name(sha256)
                inode = path.stat().st_ino
                if self._sha256(path) == sha256:
                    return "whole"
                replaced = path.stat().st_ino != inode
            except FileNotFoundError:
                return "missing"
        if replaced:  # by another process, which found it damaged as well
            return self.condition(sha256)
        self.set_aside(object_name(sha256))
        return "damaged"

    def _sha256(self, path: Path) -> str:
        try:
            return self.digests.sha256(path)
        except CheckpointError:  # it was given another name, or taken one: its bytes are what they were
            with path.open("rb") as file:
                return files.sha256_of(file)

    def fetch(self, sha256: str, file: BinaryIO) -> None:
        """Copy an object to the end of a local file.

        Raises:
            StoreError: it is missing or damaged.
            OSError: the local file cannot be written to.
        """
        condition = self.condition(sha256)
        if condition == "whole":
            if self.local is not None:
                path = self.local / object_name(sha256)
                before = Identity.of(path)
                files.copy(path, file)
                if Identity.of(path)[:3] == before[:3]:  # but for its time of change: it may have been linked
                    return
                raise StoreError(f"{self}: object {sha256} was changed while it was read; run again")
            digest = hashlib.sha256()
            for block in self._blocks(sha256):
                digest.update(block)
                file.write(block)
            if digest.hexdigest() == sha256:
                return
            self.set_aside(object_name(sha256))
            condition = "damaged"
        raise StoreError(f"{self}: object {sha256} is {condition}; export its checkpoint again to build it anew")

    def _blocks(self, sha256: str) -> Iterator[bytes]:
        """An object in pieces; what goes wrong is the store's fault, and not that of where they are written to."""
        with self._reached(), self._storage.open(object_name(sha256)) as original:
            while block := original.read(1 << 20):
                yield block

    def link(self, sha256: str, path: Path) -> None:
        """Give an object of a local store another name on the same disk.

        Raises:
            StoreError: it is missing or damaged, or cannot be linked.
        """
        if self.local is None or self.condition(sha256) != "whole":
            raise StoreError(f"{self}: object {sha256} cannot be linked; publish without links")
        original = self.local / object_name(sha256)
        try:
            os.link(original, path)
        except OSError as error:
            raise StoreError(f"{self}: no links into {path.parent} ({error.strerror}); publish without links") from None
        self.digests.remember_sha256(original, sha256)  # one more name is a change of the file's record, not its bytes

    def is_linked(self, sha256: str, path: Path) -> bool:
        """Whether a file is an object of a local store itself, by another name."""
        try:
            return self.local is not None and path.samefile(self.local / object_name(sha256))
        except OSError:
            return False

    def open(self, name: str) -> BufferedIOBase:
        """A file, to be read in pieces, unchecked."""
        with self._reached():
            return self._storage.open(name)

    def objects(self) -> set[str]:
        """The digests by which objects are named."""
        return {entry.name.rpartition("/")[2] for entry in self.entries("objects")}

    # Work in hand.

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep `alone` of other processes waiting, so that nothing is collected between its writing and its naming.

        Not to be entered twice by one thread.
        """
        with ExitStack() as held:
            if self.local is not None:
                with self._reached():
                    files.make_directory(self.local)
                    with files.locked(self.local / "gate"):  # who waits to be alone is not passed by for ever
                        if files.is_free(self.local / "lock"):
                            for left in (self.local / "tmp").glob(f"{STAGING}*"):
                                files.remove(left)  # of a process that was killed
                        held.enter_context(files.locked(self.local / "lock", shared=True))
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody uses the store, and keep others waiting. A remote store knows no such thing."""
        with ExitStack() as held:
            if self.local is not None:
                with self._reached():
                    held.enter_context(files.locked(self.local / "gate"))
                    held.enter_context(files.locked(self.local / "lock"))
            yield

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Keep other processes of this machine waiting that want to build the same."""
        with ExitStack() as held:
            if self.local is not None:
                with self._reached():
                    files.make_directory(self.local / "locks")
                    # Some keys share a lock, so that there is no end of files; their builds only wait for each other.
                    held.enter_context(files.locked(self.local / "locks" / key[:2]))
            yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A directory for files that are going to be objects, removed at the end."""
        with self._reached():
            directory = Path(tempfile.mkdtemp(dir=self._work(), prefix=STAGING))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def check_room(self, size: int) -> None:
        """
        Raises:
            StoreError: there is no room for so many bytes where artifacts are built.
        """
        with self._reached():
            shortage = files.shortage(self._work(), size)
        if shortage:
            raise StoreError(f"{self}: {shortage}; make room, with `cosyjit gc` perhaps, or name another store")

    def _work(self) -> Path:
        if self.local is None:
            return Path(tempfile.gettempdir())
        files.make_directory(self.local / "tmp")
        return self.local / "tmp"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or _line(error)
            raise StoreError(
                f"{self.root}: cannot be read or written ({reason}); mend it, or name another store"
            ) from None


def object_name(sha256: str) -> str:
    """The name of an object in a store.

    Raises:
        StoreError: that is no SHA-256.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise StoreError(f"{sha256!r}: is no SHA-256; give 64 hexadecimal digits")
    return f"objects/{sha256[:2]}/{sha256}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
