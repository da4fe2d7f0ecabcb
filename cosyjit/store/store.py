"""Artifacts by the digest of their bytes, and the documents that name them.

Below one root stand

    objects/<2 hex>/<sha256>     artifacts, read-only
    records/<fingerprint>.json   what each was made from (`cosyjit.provenance.record`)
    latest/<key>.json            the fingerprint that a target was last exported with
    publications/<sha256>.json   the sets that directories show or showed (`cosyjit.publishing.publish`)
    heads/<key>.json             the last publication of each directory
    damaged/                     what was found to be other bytes than its name says
    tmp/, digests/, locks/, …    this machine's: work in hand, remembered digests, locks

A document is written only after what it names, so that a reader finds neither half. Of a remote store each machine
keeps what it has seen of the objects in a local one (`Store.cache`), which has its tmp/ and its digests/ as well; what
is below locks/ of a remote store are leases (`cosyjit.store.leases`).
"""

import hashlib
import itertools
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from io import BufferedIOBase, FileIO
from pathlib import Path
from typing import BinaryIO, Final, Literal

from cosyjit import documents
from cosyjit.errors import CheckpointError, SelectionError, StoreError
from cosyjit.fs import files
from cosyjit.fs.identity import Identity
from cosyjit.store.backends import Entry
from cosyjit.store.coordination import OWN, STAGED, Place
from cosyjit.store.signing import Signer, Trusted
from cosyjit.weights.digests import Digests

_UNFINISHED: Final = rf"(objects/[0-9a-f]{{2}}|[a-z]+)/\.[0-9a-f]{{32}}\{files.TEMPORARY}"

KEPT: Final = ("objects", "records", "latest", "publications", "heads")
"""The folders of what is kept: what is in one names only what is in those before it."""

FORMS: Final = {
    "objects": r"objects/(?P<start>[0-9a-f]{2})/(?P=start)[0-9a-f]{62}",
    "publications": r"publications/[0-9a-f]{64}\.json",
    **{folder: rf"{folder}/[0-9a-f]{{32}}\.json" for folder in ("records", "latest", "heads", "digests")},
    "damaged": r"damaged/(objects\.[0-9a-f]{2}\.[0-9a-f]{64}|records\.[0-9a-f]{32}\.json)\.[0-9a-f]{8}",
    "tmp": rf"tmp/{STAGED}/.+",
    "locks": r"locks/[0-9a-f]{32}",  # of remote stores: those of local ones are named for less
}
"""The forms of the names of a store's files, by folder."""

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
        self,
        root: str | Path | None = None,
        *,
        sign: Path | None = None,
        require: Path | None = None,
        wait: float | None = None,
    ) -> None:
        """
        Args:
            root: a directory, which the first write makes, or an fsspec URL; `DEFAULT_ROOT` for None.
            sign: the file of a private key.
            require: a file of public keys.
            wait: how long other processes are waited for at most, in s; None for as long as it takes.

        Raises:
            StoreError: it is no path, or a URL that fsspec has no file system for.
            SelectionError: the files of keys have none, or what is signed would not be read; or there is no such time.
        """
        super().__init__(str(root or DEFAULT_ROOT), wait)
        if wait is not None and not wait >= 0:
            raise SelectionError(f"--wait {wait:g}: is no time to wait; give a number of seconds, 0 or more")
        self.signer = None if sign is None else Signer(sign)
        self.trusted = None if require is None else Trusted(require)
        if self.signer and self.trusted and self.signer.keyid not in self.trusted.keyids:
            raise SelectionError(f"{sign}: is not the private half of a key in {require}; add its public half there")
        local = self.local
        self.cache = None if local else Store(OWN, wait=wait)
        # In a store that others may write to they could make this machine believe that it has read other bytes.
        own = local if local and self.workshop is self else Path(DEFAULT_ROOT).expanduser()
        self.digests = Digests(own / "digests")

    def __reduce__(self) -> tuple[object, ...]:
        # The keys stay in their files: each machine has its own.
        sign = self.signer.path if self.signer else None
        require = self.trusted.path if self.trusted else None
        return partial(Store, self.root, sign=sign, require=require, wait=self.wait), ()

    def check_there(self) -> None:
        """Make sure that there is a store, so that what is not found in it was not kept.

        Raises:
            StoreError: there is nothing, or something else; or it cannot be read.
        """
        with self._reached():
            found = self._storage.names()
            is_new = found == set() if self.local else any(self._storage.uploads())
        if not is_new and not (found or set()) & {*FORMS, "gate", "lock"}:
            raise StoreError(
                f"{self}: there is no store; name the one that was exported into, with --store or COSYJIT_STORE, "
                "or export into this one first"
            )

    # Documents.

    def read(self, name: str) -> bytes | None:
        """The content of a document; None if there is none of this name.

        Raises:
            RecordError: something else than a document stands there.
        """
        with self._reached():
            try:
                content = self._storage.read(name)
                if not documents.is_complete(content):
                    self._storage.check_size(name, len(content))
            except FileNotFoundError:
                return None
            except files.NoFileError as error:
                raise documents.damaged_error(f"{self}/{name}", str(error.strerror)) from None
            return content

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self._reached(), suppress(FileNotFoundError):
            self._storage.modified(name)
            return True
        return False

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
        """Move what is not the file that it should be out of the way, for someone to look at; if that can be done."""
        if self.read_only:
            return
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
                if self.workshop is self and self.local is not None:  # else others may have put something there
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
                with self._opened(sha256) as file:
                    inode = Identity.of(file.fileno()).inode
                    if self._sha256(file, sha256) == sha256:
                        return "whole"
                replaced = self._local.below.stat(object_name(sha256)).st_ino != inode
            except FileNotFoundError:
                return "missing"
            except files.NoFileError:
                replaced = False
        if replaced:  # by another process, which found it damaged as well
            return self.condition(sha256)
        self.set_aside(object_name(sha256))
        return "damaged"

    def worst(self, objects: Iterable[str]) -> Condition:
        """The condition of several objects together: "whole" if all of them are."""
        found = [self.condition(each) for each in objects]
        return next((each for each in found if each != "whole"), "whole")

    def _opened(self, sha256: str) -> FileIO:
        """An object of a local store."""
        return self._local.below.open(object_name(sha256))

    def _sha256(self, file: FileIO, sha256: str) -> str:
        """The SHA-256 of what an object's file has."""
        try:
            return self.digests.sha256_of(file, self._local.root / object_name(sha256))
        except CheckpointError:  # it was given another name, or taken one: its bytes are what they were
            return _digest(file)

    def fetch(self, sha256: str, file: BinaryIO) -> None:
        """Copy an object to the end of a local file. Of what this machine has a copy of a remote store is not asked.

        Raises:
            StoreError: it is missing or damaged.
            OSError: the local file cannot be written to.
        """
        if self.cache is not None and self._is_cached(self.cache, sha256):
            self.cache.fetch(sha256, file)
        elif self._is_own(sha256):
            self._copy(sha256, file)
        else:
            self._download(sha256, file)

    def _is_own(self, sha256: str) -> bool:
        """Whether nobody but this user can change an object, or put another in its place."""
        with self._reached():
            return self.local is not None and self._local.below.is_exclusive(object_name(sha256))

    def _copy(self, sha256: str, file: BinaryIO) -> None:
        """Copy an object that nobody else can change: by reference, where the file system can."""
        self._check_whole(sha256)
        with self._reached():
            original = self._opened(sha256)
        with original:
            before = Identity.of(original.fileno())
            whole = self._sha256(original, sha256) == sha256
            files.append(original, file)
            # What was looked at is what was copied; or else, if it was linked meanwhile, say, its bytes are looked at.
            if not whole or (Identity.of(original.fileno()) != before and _digest(original) != sha256):
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
        """Copy an object to the end of a local file, and take the digest of the very bytes that are written there.

        If it turns out to be damaged, it is set aside.
        """
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
        condition = self.condition(sha256)
        if self.local is None or condition != "whole":
            raise StoreError(f"{self}: object {sha256} cannot be linked; publish without links")
        with self._reached():
            original = self._opened(sha256)
        temporary = path.with_name(f".{uuid.uuid4().hex}{files.TEMPORARY}")
        with original:
            before = Identity.written(original.fileno())
            if not self._is_own(sha256):
                self._check_linkable(original, sha256)
            try:
                # The very file that was looked at, whatever has its name by now.
                os.link(f"/proc/self/fd/{original.fileno()}", temporary, src_dir_fd=original.fileno())
                temporary.replace(path)
            except OSError as error:
                reason = f"{path.parent} ({error.strerror})"
                raise StoreError(f"{self}: no links into {reason}; publish without links") from None
            finally:
                temporary.unlink(missing_ok=True)  # of one file's names none replaces the other
        for name in (self.local / object_name(sha256), path):
            self.digests.remember_sha256(name, sha256, before)

    def _check_linkable(self, file: FileIO, sha256: str) -> None:
        """See that an object in a store of others has its bytes; and will have, where a signature is required."""
        if self.trusted is not None and not files.is_own(file.fileno()):
            raise StoreError(f"{self}: object {sha256} can be changed by others; publish without links")
        if _digest(file) != sha256:
            raise StoreError(f"{self}: object {sha256} is damaged; publish without links")

    def is_linked(self, sha256: str, path: Path) -> bool:
        """Whether a file is an object of a local store itself, by another name."""
        try:
            return self.local is not None and os.path.samestat(path.stat(), self._local.below.stat(object_name(sha256)))
        except OSError:
            return False

    def open(self, name: str) -> FileIO | BufferedIOBase:
        """A file, to be read in pieces, unchecked."""
        with self._reached():
            return self._storage.open(name)

    def strange(self) -> list[str]:
        """The names of what stands among documents and objects and is none, such as links, pipes and folders."""
        with self._reached():
            found = [self._storage.strange(folder, r"objects/[0-9a-f]{2}") for folder in KEPT]
            return sorted(itertools.chain.from_iterable(found))

    def objects(self) -> set[str]:
        """The digests by which objects are named."""
        return {entry.name.rpartition("/")[2] for entry in self.entries("objects")}


def _digest(file: FileIO) -> str:
    """The SHA-256 of an open file, from its beginning."""
    file.seek(0)
    return files.sha256_of(file)


def object_name(sha256: str) -> str:
    """The name of an object in a store.

    Raises:
        StoreError: that is no SHA-256.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise StoreError(f"{sha256!r}: is no SHA-256; give 64 hexadecimal digits")
    return f"objects/{sha256[:2]}/{sha256}"
