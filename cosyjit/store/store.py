"""Artifacts by the digest of their bytes, and the documents that name them.

Below one root are

    objects/<2 hex>/<sha256>     artifacts, read-only
    records/<fingerprint>.json   what each was made from (`cosyjit.provenance.record`)
    latest/<key>.json            the fingerprint that a target was last exported with
    graphs/<key>.json            what the zips of many checkpoints have in common (`cosyjit.provenance.graphs`)
    publications/<sha256>.json   the sets that directories show or showed (`cosyjit.publishing.publication`)
    heads/<key>.json             the last publication of each directory
    damaged/                     files that were set aside, since their bytes are not what their names say
    tmp/, digests/, locks/, …    this machine's: staging directories, remembered digests, locks

A document is written only after what it names, so that no reader finds one half. Each machine keeps copies of the
objects of a remote store in a local one (`Store.cache`), which has a tmp/ and digests/ of its own. Below locks/ of a
remote store are leases (`cosyjit.store.leases`).

Queries such as `Store.condition` change nothing of that. What they remember goes into digests/, which is a cache: it
holds nothing that cannot be computed again. Damaged files are moved by `Store.set_aside` and `Store.check_or_set_aside`
alone, which is for whoever is going to rely on them: exports and rollbacks.
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
from cosyjit.errors import FileChangedError, SelectionError, StoreError
from cosyjit.fs import files, hashing
from cosyjit.fs.digests import Digests
from cosyjit.fs.identity import Identity
from cosyjit.store.backends import Entry
from cosyjit.store.coordination import LOCKS, PRIVATE_ROOT, STAGED, Location
from cosyjit.store.signing import Signer, TrustedKeys

_UNFINISHED: Final = rf"(objects/[0-9a-f]{{2}}|[a-z]+)/\.[0-9a-f]{{32}}\{files.TEMPORARY}"

KEPT: Final = ("objects", "records", "latest", "graphs", "publications", "heads")
"""The folders of what is kept. A file names only files of the folders before its own."""

FORMS: Final = {
    "objects": r"objects/(?P<start>[0-9a-f]{2})/(?P=start)[0-9a-f]{62}",
    "publications": r"publications/[0-9a-f]{64}\.json",
    **{folder: rf"{folder}/[0-9a-f]{{32}}\.json" for folder in ("records", "latest", "graphs", "heads", "digests")},
    "damaged": r"damaged/(objects\.[0-9a-f]{2}\.[0-9a-f]{64}|records\.[0-9a-f]{32}\.json)\.[0-9a-f]{8}",
    "tmp": rf"tmp/{STAGED}/.+",
    "locks": r"locks/[0-9a-f]{32}",  # leases: the locks of local stores have shorter names, and stay
}
"""The forms of the names of a store's files, by folder."""

DEFAULT_ROOT: Final = files.DEFAULT_ROOT

Condition = Literal["intact", "missing", "damaged"]


class Store(Location):
    """Objects and documents at a path or an fsspec URL.

    Attributes:
        root: the path or URL, absolute.
        digests: the digests of files that this machine remembers.
        cache: this machine's copies of a remote store's objects; None for a local one.
        signer: the key that signs records as they are written; None if they are not signed.
        trusted: the public keys, one of which must have signed each record that is read; None if none has to.
        grace: how long, in s, a remote store keeps a file that was written or renewed, even if nothing refers to it.
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
        """Open a store; the keys are read, and nothing is written.

        Args:
            root: a directory, which the first write makes, or an fsspec URL; `DEFAULT_ROOT` for None.
            sign: the file of a private key.
            require: a file of public keys.
            wait: how long to wait for other processes at most, in s; None for as long as it takes.

        Raises:
            StoreError: `root` is not a path, or fsspec has no file system for the URL.
            SelectionError: a file has no key, `require` lacks the public half of `sign`, or `wait` is not a time.
        """
        super().__init__(str(root or DEFAULT_ROOT), wait)
        if wait is not None and not wait >= 0:
            raise SelectionError(f"--wait {wait:g}: is not a time to wait; give a number of seconds, 0 or more")
        self.signer = None if sign is None else Signer(sign)
        self.trusted = None if require is None else TrustedKeys(require)
        if self.signer and self.trusted and self.signer.keyid not in self.trusted.keyids:
            raise SelectionError(f"{sign}: is not the private half of a key in {require}; add its public half there")
        local = self.local
        self.cache = None if local else Store(PRIVATE_ROOT, wait=wait)
        # In a store that others can write to, they could make this machine believe that it has read other bytes.
        own = local if local and self.workshop is self else Path(DEFAULT_ROOT).expanduser()
        self.digests = Digests(own / "digests")

    def __reduce__(self) -> tuple[object, ...]:
        # The keys stay in their files: each machine has its own.
        sign = self.signer.path if self.signer else None
        require = self.trusted.path if self.trusted else None
        return partial(Store, self.root, sign=sign, require=require, wait=self.wait), ()

    def is_there(self) -> bool:
        """Whether there is a store: files of one, or an empty directory.

        Raises:
            StoreError: there is something else, or it cannot be read.
        """
        with self._reached():
            found = self._storage.names()
            is_new = found == set() if self.local else any(self._storage.uploads())
        return is_new or bool((found or set()) & {*FORMS, *LOCKS})

    def check_there(self) -> None:
        """Make sure that there is a store, so that a file which is not found was never kept.

        Raises:
            StoreError: there is nothing, or something else, or it cannot be read.
        """
        if not self.is_there():
            raise StoreError(
                f"{self}: there is no store; name the one that was exported into, with --store or COSYJIT_STORE, "
                "or export into this one first"
            )

    # Documents.

    def read(self, name: str) -> bytes | None:
        """The content of a document; None if there is no file of this name.

        Raises:
            RecordError: the file is not a document: a link, a pipe, a folder, or too large.
        """
        with self._reached():
            try:
                content = self._storage.read(name)
                if not documents.is_complete(content):
                    self._storage.check_size(name, len(content))
            except FileNotFoundError:
                return None
            except files.NotAFileError as error:
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

    def write_if_allowed(self, name: str, content: bytes) -> bool:
        """Write a document, or replace it, unless this process may only read the store.

        Returns:
            Whether it may write. Of a URL that shows when a write is refused.
        """
        if self.read_only:
            return False
        with self._reached():
            try:
                self._storage.write(name, content)
            except PermissionError:
                if self.local is not None:  # a folder in it is in the way, which its user can mend
                    raise
                return False
        return True

    def entries(self, folder: str = "") -> list[Entry]:
        """The files below a folder, without those that are being written."""
        with self._reached():
            return [entry for entry in self._storage.entries(folder) if not entry.name.endswith(files.TEMPORARY)]

    def unfinished(self) -> list[Entry]:
        """The files that are being written, or were being written when a process was killed."""
        with self._reached():
            begun = [entry for entry in self._storage.entries() if re.fullmatch(_UNFINISHED, entry.name)]
            return [*begun, *self._storage.uploads()]

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._reached():
            self._storage.remove(name)

    def remove_old(self, name: str, before: float) -> bool:
        """Remove a file of a remote store unless it was changed or renewed since; of a local one in any case.

        A file that is renewed between this check and the request that deletes it is deleted anyway. A local store is
        collected with `exclusive`, where no file is renewed.

        Args:
            name: the file.
            before: in s since 1970.

        Returns:
            Whether it is gone.
        """
        with self._reached(), suppress(FileNotFoundError):  # of uploads, which do not change either
            if self.local is None and self._storage.modified(name) >= before:
                return False
        self.remove(name)
        return True

    def renew(self, name: str) -> bool:
        """Keep a file of a remote store from being collected, before a document is written that names it.

        The files that it names must be renewed first. Nothing of a local store is collected while it is in use.

        Returns:
            Whether it is there; True for a local store.
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
        """Move a damaged file to damaged/, where someone can look at it; a read-only store stays as it is."""
        if self.read_only:
            return
        with self._reached(), suppress(FileNotFoundError):
            self._storage.move(name, f"damaged/{name.replace('/', '.')}.{uuid.uuid4().hex[:8]}")

    # Objects.

    def add(self, file: Path, sha256: str) -> None:
        """Keep a file as an object; the file may be gone afterwards. An object that is whole stays.

        Args:
            file: renamed if it is on the store's disk, as in a `staging` directory; otherwise copied.
            sha256: the digest of its bytes.
        """
        if self.check_or_set_aside(sha256) != "intact":
            with self._reached():
                with file.open("rb") as complete:
                    before = Identity.written(complete.fileno())
                self._storage.add(file, object_name(sha256))
                if self.workshop is self and self.local is not None:  # else others may have replaced it
                    self.digests.remember_sha256(self.local / object_name(sha256), sha256, before)
        if self.cache is not None:
            with suppress(StoreError):  # it costs a download
                self.cache.add(file, sha256)

    def condition(self, sha256: str) -> Condition:
        """Whether an object is there and has the bytes that its name says. Nothing of the store is changed.

        A local object is read for that, unless the digest of its file is remembered. Whether a remote one is damaged
        shows when it is fetched.
        """
        if self.local is None:
            return "intact" if self.has(object_name(sha256)) else "missing"
        with self._reached():
            try:
                with self._opened(sha256) as file:
                    inode = Identity.of(file.fileno()).inode
                    if self._sha256(file, sha256) == sha256:
                        return "intact"
                replaced = self._local.below.stat(object_name(sha256)).st_ino != inode
            except FileNotFoundError:
                return "missing"
            except files.NotAFileError:
                replaced = False
        # Another process has found it damaged as well, and has replaced it meanwhile.
        return self.condition(sha256) if replaced else "damaged"

    def check_or_set_aside(self, sha256: str) -> Condition:
        """As `condition`, for whoever is going to rely on the object: a damaged one is set aside, a remote one renewed.

        Raises:
            StoreError: the store cannot be read or written.
        """
        if self.local is None:
            return "intact" if self.renew(object_name(sha256)) else "missing"
        condition = self.condition(sha256)
        if condition == "damaged":
            self.set_aside(object_name(sha256))
        return condition

    def condition_of_all(self, objects: Iterable[str]) -> Condition:
        """The condition of several objects together: "intact" if all of them are. Nothing of the store is changed."""
        return _together([self.condition(each) for each in objects])

    def check_all_or_set_aside(self, objects: Iterable[str]) -> Condition:
        """As `condition_of_all`, for whoever is going to rely on them, see `check_or_set_aside`."""
        return _together([self.check_or_set_aside(each) for each in objects])

    def _opened(self, sha256: str) -> FileIO:
        """The open file of an object of a local store."""
        return self._local.below.open(object_name(sha256))

    def _sha256(self, file: FileIO, sha256: str) -> str:
        """The SHA-256 of an object's open file."""
        try:
            return self.digests.sha256_of(file, self._local.root / object_name(sha256))
        except FileChangedError:  # the file was linked elsewhere, say: its bytes may be what they were
            return _digest(file)

    def fetch(self, sha256: str, file: BinaryIO, *, set_aside: bool = True) -> None:
        """Append an object to a local file. If this machine has a cached copy, the remote store is not contacted.

        Args:
            sha256: the object.
            file: where it is written to.
            set_aside: whether a damaged object is set aside, and one in a bucket renewed; see `check_or_set_aside`.

        Raises:
            StoreError: the object is missing or damaged.
            OSError: the local file cannot be written to.
        """
        if self.cache is not None and self._is_cached(self.cache, sha256, set_aside=set_aside):
            self.cache.fetch(sha256, file)
        elif self._is_private(sha256):
            self._copy(sha256, file, set_aside=set_aside)
        else:
            self._download(sha256, file, set_aside=set_aside)

    def _is_private(self, sha256: str) -> bool:
        """Whether nobody but this user can change an object, or put another file in its place."""
        with self._reached():
            return self.local is not None and self._local.below.is_private(object_name(sha256))

    def _copy(self, sha256: str, file: BinaryIO, *, set_aside: bool) -> None:
        """Copy an object that only this user can change: by reference, where the file system can."""
        self._check_whole(sha256, set_aside=set_aside)
        with self._reached():
            original = self._opened(sha256)
        with original:
            before = Identity.of(original.fileno())
            whole = self._sha256(original, sha256) == sha256
            files.append(original, file)
            # If the file has changed since it was checked, it may have been linked only: then its bytes are checked.
            if not whole or (Identity.of(original.fileno()) != before and _digest(original) != sha256):
                raise StoreError(f"{self}: object {sha256} was changed while it was read; run again")

    def _check_whole(self, sha256: str, *, set_aside: bool) -> None:
        condition = self.check_or_set_aside(sha256) if set_aside else self.condition(sha256)
        if condition != "intact":
            raise self._unusable(sha256, condition)

    def _unusable(self, sha256: str, condition: Condition) -> StoreError:
        return StoreError(f"{self}: object {sha256} is {condition}; export its checkpoint again to build it anew")

    def _is_cached(self, cache: "Store", sha256: str, *, set_aside: bool) -> bool:
        """Whether this machine has a whole copy of a remote object, which is made if the home can be written to."""
        failure: StoreError | None = None
        try:
            if cache.check_or_set_aside(sha256) == "intact":
                return True
            with cache.staging() as work:
                copy = work / sha256
                try:
                    with copy.open("wb") as file:
                        self._download(sha256, file, set_aside=set_aside)
                except StoreError as error:  # of this store, and not of the copy
                    failure = error
                else:
                    cache.add(copy, sha256)
        except (OSError, StoreError):
            return False
        if failure:
            raise failure
        return True

    def _download(self, sha256: str, file: BinaryIO, *, set_aside: bool) -> None:
        """Append an object to a local file, and check the digest of the bytes that are written there."""
        self._check_whole(sha256, set_aside=set_aside)
        digest = hashlib.sha256()
        for block in self._blocks(sha256):
            digest.update(block)
            file.write(block)
        if digest.hexdigest() != sha256:
            if set_aside:
                self.set_aside(object_name(sha256))
            raise self._unusable(sha256, "damaged")

    def _blocks(self, sha256: str) -> Iterator[bytes]:
        """An object in pieces. An error is one of the store, and not of the file that the caller writes them to."""
        with self._reached(), self._storage.open(object_name(sha256)) as original:
            while block := original.read(1 << 20):
                yield block

    def link(self, sha256: str, path: Path) -> None:
        """Make a path on the same disk a hard link to an object of a local store, in place of a file that is there.

        Raises:
            StoreError: the object is missing or damaged, or cannot be linked.
        """
        if self.local is None or self.check_or_set_aside(sha256) != "intact":
            raise StoreError(f"{self}: object {sha256} cannot be linked; publish without links")
        with self._reached():
            original = self._opened(sha256)
        with original:
            before = Identity.written(original.fileno())
            if not self._is_private(sha256):
                self._check_linkable(original, sha256)
            # The very file that was checked, whatever has its name by now.
            checked = f"/proc/self/fd/{original.fileno()}"
            try:
                files.replace_link(path, lambda new: os.link(checked, new, src_dir_fd=original.fileno()))
            except OSError as error:
                reason = f"{path.parent} ({error.strerror})"
                raise StoreError(f"{self}: no links into {reason}; publish without links") from None
        for name in (self.local / object_name(sha256), path):
            self.digests.remember_sha256(name, sha256, before)

    def _check_linkable(self, file: FileIO, sha256: str) -> None:
        """Make sure that an object others could change has its bytes, and keeps them if a signature is required."""
        if self.trusted is not None and not files.is_private(file.fileno()):
            raise StoreError(f"{self}: object {sha256} can be changed by others; publish without links")
        if _digest(file) != sha256:
            raise StoreError(f"{self}: object {sha256} is damaged; publish without links")

    def is_linked(self, sha256: str, path: Path) -> bool:
        """Whether a file is a hard link to an object of a local store."""
        try:
            return self.local is not None and os.path.samestat(path.stat(), self._local.below.stat(object_name(sha256)))
        except OSError:
            return False

    def open(self, name: str) -> FileIO | BufferedIOBase:
        """An open file, to be read in pieces; its digest is not checked."""
        with self._reached():
            return self._storage.open(name)

    def strange(self) -> list[str]:
        """The names among the documents and objects that are not files, such as links, pipes and folders."""
        with self._reached():
            found = [self._storage.strange(folder, r"objects/[0-9a-f]{2}") for folder in KEPT]
            return sorted(itertools.chain.from_iterable(found))

    def objects(self) -> set[str]:
        """The digests that are names of objects."""
        return {entry.name.rpartition("/")[2] for entry in self.entries("objects")}


def _together(conditions: Iterable[Condition]) -> Condition:
    return next((each for each in conditions if each != "intact"), "intact")


def _digest(file: FileIO) -> str:
    """The SHA-256 of an open file, from its beginning."""
    file.seek(0)
    return hashing.sha256_of(file)


def object_name(sha256: str) -> str:
    """The name of an object in a store.

    Raises:
        StoreError: it is not a SHA-256.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise StoreError(f"{sha256!r}: is not a SHA-256; give 64 hexadecimal digits")
    return f"objects/{sha256[:2]}/{sha256}"
