"""Artifacts by the digest of their bytes, and the documents that name them.

Below one root stand

    objects/<2 hex>/<sha256>     artifacts, read-only
    records/<fingerprint>.json   what each was made from (`cosyjit.record`)
    latest/<key>.json            the fingerprint that a target was last exported with
    publications/<sha256>.json   the sets that directories show or showed (`cosyjit.publish`)
    heads/<key>.json             the last publication of each directory
    damaged/                     what was found to be other bytes than its name says
    tmp/, digests/, locks/, …    this machine's: work in hand, remembered digests, locks

A document is written only after what it names, so that a reader finds neither half. Of a remote store each machine
keeps what it has seen of the objects in a local one (`Store.cache`), which has its tmp/ and its digests/ as well; what
is below locks/ of a remote store are leases (`cosyjit.leases`).
"""

import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from io import BufferedIOBase, FileIO
from pathlib import Path
from typing import BinaryIO, Final, Literal

from cosyjit import files
from cosyjit.digests import Digests
from cosyjit.errors import CheckpointError, SelectionError, StoreError
from cosyjit.identity import Identity
from cosyjit.place import Place
from cosyjit.signing import Signer, Trusted
from cosyjit.storage import Entry

_UNFINISHED: Final = rf"(objects/[0-9a-f]{{2}}|[a-z]+)/\.[0-9a-f]{{32}}\{files.TEMPORARY}"

_FOLDERS: Final = ("heads", "latest", "publications", "records", "objects")
"""The folders of which a store that was exported into has one."""

DEFAULT_ROOT: Final = files.DEFAULT_ROOT

Condition = Literal["whole", "missing", "damaged"]


class Store(Place):
    """Objects and documents at a path or an fsspec URL.

    Attributes:
        root: the path or URL, absolute.
        digests: those that this machine remembers.
        cache: this machine's copies of a remote store's objects; None for a local one.
        signer: what records are signed with as they are written; None if they are not.
        trusted: the keys of which one has to have signed each record that is read; None if none has to.
        grace: how long, in s, a remote store keeps what was written or renewed, whether anything refers to it or not.
    """

    cache: "Store | None"
    grace: float = 86_400.0

    def __init__(
        self, root: str | Path | None = None, *, sign: Path | None = None, require: Path | None = None
    ) -> None:
        """
        Args:
            root: a directory, which the first write makes, or an fsspec URL; `DEFAULT_ROOT` for None.
            sign: the file of a private key.
            require: a file of public keys.

        Raises:
            StoreError: it is no path, or a URL that fsspec has no file system for.
            SelectionError: the files of keys have none, or what is signed would not be read.
        """
        super().__init__(str(root or DEFAULT_ROOT))
        self.signer = None if sign is None else Signer(sign)
        self.trusted = None if require is None else Trusted(require)
        if self.signer and self.trusted and self.signer.keyid not in self.trusted.keyids:
            raise SelectionError(f"{sign}: is not the private half of a key in {require}; add its public half there")
        local = self.local
        self.cache = None if local else Store(f"{DEFAULT_ROOT}/cache")
        # In a store that others may write to they could make this machine believe that it has read other bytes.
        own = local if local and files.is_exclusive(local) else Path(DEFAULT_ROOT).expanduser()
        self.digests = Digests(own / "digests")

    def __reduce__(self) -> tuple[object, ...]:
        # The keys stay in their files: each machine has its own.
        sign = self.signer.path if self.signer else None
        require = self.trusted.path if self.trusted else None
        return partial(Store, self.root, sign=sign, require=require), ()

    def _work(self) -> Path:
        if self.signer is not None and self.local is not None and not files.is_exclusive(self.local):
            return Path(tempfile.gettempdir())  # where nobody can put another file in the place of one that is signed
        return super()._work()

    def check_there(self) -> None:
        """Make sure that there is a store, so that what is not found in it was not kept.

        Raises:
            StoreError: there is nothing, or something else; or it cannot be read.
        """
        if not self._is_there():
            raise StoreError(
                f"{self}: there is no store; name the one that was exported into, with --store or COSYJIT_STORE, "
                "or export into this one first"
            )

    def _is_there(self) -> bool:
        if self.local is None:
            return any(self.entries(folder) for folder in _FOLDERS) or bool(self.entries() or self.unfinished())
        with self._reached():
            try:
                found = {path.name for path in self.local.iterdir()}
            except FileNotFoundError:
                return False
            return not found or bool(found & {*_FOLDERS, "gate", "lock"})

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
            begun = [entry for entry in self._storage.entries() if re.fullmatch(_UNFINISHED, entry.name)]
            return [*begun, *self._storage.uploads()]

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._reached():
            self._storage.remove(name)

    def remove_old(self, name: str, before: float) -> bool:
        """Remove a file unless someone has changed or renewed it since a time, in s since 1970; whether it is gone.

        Between a look and the removal is the time of one request: what is renewed in that is lost. A local store is
        collected alone.
        """
        with self._reached(), suppress(FileNotFoundError):  # of uploads, which do not change either
            if self.local is None and self._storage.modified(name) >= before:
                return False
        self.remove(name)
        return True

    def renew(self, name: str) -> bool:
        """Keep a file from being collected by another machine, before something is written that names it.

        What it names has to be renewed before it. Nothing of a local store goes while it is in use.

        Returns:
            Whether it is there; of a local store, True.
        """
        if self.local is not None:
            return True
        with self._reached():
            try:
                self._storage.renew(name, self.grace / 2)
            except FileNotFoundError:
                return False
            return True

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
        if self.condition(sha256) != "whole":
            with self._reached():
                with file.open("rb") as complete:
                    before = Identity.written(complete.fileno())
                self._storage.add(file, object_name(sha256))
                if self.local is not None:
                    self.digests.remember_sha256(self.local / object_name(sha256), sha256, before)
        if self.cache is not None:
            with suppress(StoreError):  # it costs a download
                self.cache.add(file, sha256)

    def condition(self, sha256: str) -> Condition:
        """Whether an object is there and has the bytes that its name says; a damaged one is set aside.

        A local object is read for that, unless it is the file that was read before. A remote one is renewed, since
        whoever asks is going to rely on it, and checked as it is fetched.
        """
        if self.local is None:
            return "whole" if self.renew(object_name(sha256)) else "missing"
        with self._reached():
            try:
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

    def worst(self, objects: Iterable[str]) -> Condition:
        """The condition of several objects together: "whole" if all of them are."""
        found = [self.condition(each) for each in objects]
        return next((each for each in found if each != "whole"), "whole")

    def _sha256(self, path: Path) -> str:
        try:
            return self.digests.sha256(path)
        except CheckpointError:  # it was given another name, or taken one: its bytes are what they were
            with path.open("rb") as file:
                return files.sha256_of(file)

    def fetch(self, sha256: str, file: BinaryIO) -> None:
        """Copy an object to the end of a local file. Of what this machine has a copy of a remote store is not asked.

        Raises:
            StoreError: it is missing or damaged.
            OSError: the local file cannot be written to.
        """
        if self.local is not None:
            self._copy(self.local / object_name(sha256), sha256, file)
        elif self.cache is not None and self._is_cached(self.cache, sha256):
            self.cache.fetch(sha256, file)
        else:
            self._download(sha256, file)

    def _copy(self, path: Path, sha256: str, file: BinaryIO) -> None:
        with self._reached():
            before = Identity.of(path) if path.exists() else None
        self._check_whole(sha256)
        with path.open("rb", buffering=0) as original:
            files.append(original, file)
            # What was looked at is what was copied; or else, if it was linked meanwhile, say, its bytes are looked at.
            if Identity.of(original.fileno()) != before and not _has(original, sha256):
                raise StoreError(f"{self}: object {sha256} was changed while it was read; run again")

    def _check_whole(self, sha256: str) -> None:
        condition = self.condition(sha256)
        if condition != "whole":
            raise self._lack(sha256, condition)

    def _lack(self, sha256: str, condition: Condition) -> StoreError:
        return StoreError(f"{self}: object {sha256} is {condition}; export its checkpoint again to build it anew")

    def _is_cached(self, cache: "Store", sha256: str) -> bool:
        """Have a whole copy of a remote object on this machine, if it takes one: a home may be read-only, or full."""
        failure: StoreError | None = None
        try:
            if cache.condition(sha256) == "whole":
                return True
            with cache.staging() as work:
                copy = work / sha256
                try:
                    with copy.open("wb") as file:
                        self._download(sha256, file)
                except StoreError as error:  # of this store, and not of the copy
                    failure = error
                else:
                    cache.add(copy, sha256)
        except (OSError, StoreError):
            return False
        if failure:
            raise failure
        return True

    def _download(self, sha256: str, file: BinaryIO) -> None:
        """Copy a remote object to the end of a local file; if it turns out to be damaged, it is set aside."""
        self._check_whole(sha256)
        digest = hashlib.sha256()
        for block in self._blocks(sha256):
            digest.update(block)
            file.write(block)
        if digest.hexdigest() != sha256:
            self.set_aside(object_name(sha256))
            raise self._lack(sha256, "damaged")

    def _blocks(self, sha256: str) -> Iterator[bytes]:
        """An object in pieces; what goes wrong is the store's fault, and not that of where they are written to."""
        with self._reached(), self._storage.open(object_name(sha256)) as original:
            while block := original.read(1 << 20):
                yield block

    def link(self, sha256: str, path: Path) -> None:
        """Let a path on the same disk be another name of an object of a local store, whatever stood there.

        Raises:
            StoreError: it is missing or damaged, or cannot be linked.
        """
        before = self._settled(sha256)
        if self.local is None or self.condition(sha256) != "whole":
            raise StoreError(f"{self}: object {sha256} cannot be linked; publish without links")
        original = self.local / object_name(sha256)
        temporary = path.with_name(f".{uuid.uuid4().hex}{files.TEMPORARY}")
        try:
            os.link(original, temporary)
            temporary.replace(path)
        except OSError as error:
            raise StoreError(f"{self}: no links into {path.parent} ({error.strerror}); publish without links") from None
        finally:
            temporary.unlink(missing_ok=True)  # of one file's names none replaces the other
        for name in (original, path):
            self.digests.remember_sha256(name, sha256, before)

    def _settled(self, sha256: str) -> Identity | None:
        with suppress(OSError):
            if self.local is not None:
                with (self.local / object_name(sha256)).open("rb") as file:
                    return Identity.written(file.fileno())
        return None

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


def _has(file: FileIO, sha256: str) -> bool:
    """Whether an open file has the bytes that a digest is of."""
    file.seek(0)
    return files.sha256_of(file) == sha256


def object_name(sha256: str) -> str:
    """The name of an object in a store.

    Raises:
        StoreError: that is no SHA-256.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise StoreError(f"{sha256!r}: is no SHA-256; give 64 hexadecimal digits")
    return f"objects/{sha256[:2]}/{sha256}"
