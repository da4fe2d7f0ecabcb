"""Copy a whole store to another place, such as a bucket: its objects, and the documents that name them.

Objects are copied first, and then the documents that name them: records, references, graphs, publications, and the head
of each directory. So no document of the copy ever names a file that is missing there, and a copy that was killed can be
run again. Temporary files, cached digests and locks belong to one machine and are not copied.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

from cosyjit import documents
from cosyjit.errors import LaterSchemaError, RecordError, StoreError, StoreUnavailableError, log_cause
from cosyjit.fs.hashing import sha256_of
from cosyjit.operations.verify import STRANGE, Fault
from cosyjit.processes.interrupts import note_changes
from cosyjit.processes.processors import processors
from cosyjit.provenance import graphs, latest, record
from cosyjit.publishing import publication
from cosyjit.publishing.layout import STATE
from cosyjit.publishing.publication import Head
from cosyjit.store.backends import Entry
from cosyjit.store.coordination import optional
from cosyjit.store.store import FORMS, KEPT, Store, object_name

_T = TypeVar("_T")


class Copied(NamedTuple):
    """What became of the files of a store that was copied.

    Attributes:
        copied: those that were copied, with their sizes in bytes.
        present: the names of those that were there already.
        left_out: those that were not copied, and why.
    """

    copied: tuple[Entry, ...]
    present: tuple[str, ...]
    left_out: tuple[Fault, ...]


def copy_store(source: Store, to: Store) -> Copied:
    """Copy the content of a store into another one, with the history of all directories; existing files stay.

    The digest of each object and the checksum of each document are checked. It leaves out files that are damaged or of
    a later version, documents that name a file that is left out, and the head of a directory for which the other store
    has a head that does not lead to this one. The directories themselves are not read; the copied history names them
    by the same paths.

    Args:
        source: need not be writable, and is not changed.
        to: made if missing.

    Raises:
        StoreError: the source holds nothing, both are the same store, or one cannot be read or written. Files that were
            copied stay, and are not copied again.
    """
    _check_apart(source, to)
    if not any(source.entries(folder) for folder in KEPT):
        raise StoreError(f"{source}: holds nothing; name a store that something was exported to")
    with ExitStack() as held:
        with optional():  # one whose lock cannot be had is copied as it stands
            held.enter_context(source.looked_at())
        note_changes("what was copied is kept; run it again, and it goes on")
        held.enter_context(to.in_use())
        return _Copy(source, to).all()


def _check_apart(source: Store, to: Store) -> None:
    """Raise an error if a store would be copied into itself, or among the files of a model."""
    ours, theirs = (Path(os.path.realpath(each.root)) for each in (source, to))
    if ours == theirs or (source.local and to.local and (ours in theirs.parents or theirs in ours.parents)):
        raise StoreError(f"{to}: is the store itself, or one of the two is in the other; name another place")
    if to.local and (STATE in theirs.parts or (theirs / STATE).exists() or any(theirs.glob("cosyvoice*.yaml"))):
        raise StoreError(f"{to}: is a model's directory, or one that is published into; name another place")


class _LeftOutError(Exception):
    """Why a file is not copied."""


def _without_cache(store: Store) -> Store:
    """The same store without this machine's cache, which would otherwise take a copy of everything."""
    found = Store(store.root, wait=store.wait)
    found.cache = None
    return found


class _Copy:
    """Copies from one store to another."""

    def __init__(self, source: Store, to: Store) -> None:
        self._source, self._to = _without_cache(source), _without_cache(to)
        self._staging = to.staging
        self._copied: list[Entry] = []
        self._present: list[str] = []
        self._left_out: list[Fault] = []
        self._there: set[str] = set()

    def all(self) -> Copied:
        self._left_out += [Fault(name, STRANGE) for name in self._source.strange()]
        copiers = (self._object, self._record, self._latest, self._graph, self._publication, self._head)
        for folder, copy in zip(KEPT, copiers, strict=True):
            self._each(self._source.entries(folder), copy)
            self._there |= {entry.name for entry in self._to.entries(folder)}
        return Copied(tuple(self._copied), tuple(self._present), tuple(self._left_out))

    def _each(self, entries: Iterable[Entry], copy: Callable[[str], bool | None]) -> None:
        """Copy files of one kind, several at a time: one waits for an answer while another is written."""

        def copied(entry: Entry) -> None:
            try:
                is_new = copy(entry.name)
            except (_LeftOutError, RecordError) as error:
                log_cause(error)
                self._left_out.append(Fault(entry.name, str(error)))
                return
            if is_new:
                self._copied.append(entry)
            elif is_new is not None:
                self._present.append(entry.name)

        with ThreadPoolExecutor(processors()) as pool:
            try:
                for _ in pool.map(copied, sorted(entries)):
                    pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    # Each returns True if it copied the file, False if it was there already, None if it has been deleted since.

    def _object(self, name: str) -> bool | None:
        if not re.fullmatch(FORMS["objects"], name):
            raise _LeftOutError("is not an object")
        digest = name.rpartition("/")[2]
        if self._to.check_or_set_aside(digest) == "intact":
            return False
        with self._staging() as work:
            self._fetch(digest, work / digest)
            self._to.add(work / digest, digest)
        return True

    def _fetch(self, digest: str, path: Path) -> None:
        """Write an object of the source to a local file, and check its digest."""
        try:
            with path.open("wb+") as file:
                self._source.fetch(digest, file, set_aside=False)
                file.seek(0)
                found = sha256_of(file)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            raise _LeftOutError(str(error)) from None
        except OSError as error:
            raise StoreError(
                f"{path.parent}: cannot be written to ({error.strerror}); make room there, and run again"
            ) from None
        if found != digest:
            raise _LeftOutError("is damaged; export its checkpoint again to build it anew")

    def _record(self, name: str) -> bool | None:
        content = self._source.read(name)
        if content is None:
            return None
        key = documents.stem(name)
        made = _readable(lambda: record.parse(content, f"{self._source}/{name}"))
        if made.fingerprint.key != key:
            raise _LeftOutError("is another fingerprint's")
        self._check_there(map(object_name, made.objects))
        if self._is_same(name, content):
            return False
        with self._to.build_lock(key):  # nobody builds the same meanwhile
            other = self._to.read(name)
            if other == content:
                return False
            if other is not None and not self._is_damaged(name, other):
                raise _LeftOutError(f"{self._to} has another record of it, which stays")
            if other is not None:
                self._to.set_aside(name)
            self._to.write(name, content)
        return True

    def _is_damaged(self, name: str, content: bytes) -> bool:
        try:
            return record.parse(content, f"{self._to}/{name}").fingerprint.key != documents.stem(name)
        except LaterSchemaError:
            return False
        except RecordError:
            return True

    def _latest(self, name: str) -> bool | None:
        content = self._source.read(name)
        if content is None:
            return None
        key = _readable(lambda: latest.read(self._source, name))
        if key is None:
            raise _LeftOutError("is damaged; the next export writes it anew")
        self._check_there([record.name_of(key)])
        if self._to.read(name) is not None:  # of what was exported to that store, perhaps later
            return False
        self._to.write(name, content)
        return True

    def _graph(self, name: str) -> bool | None:
        content = self._source.read(name)
        if content is None:
            return None
        key = _readable(lambda: graphs.artifact(self._source, name))
        self._check_there([record.name_of(key)])
        if self._to.read(name) is not None:  # of what was exported to that store, perhaps later
            return False
        self._to.write(name, content)
        return True

    def _publication(self, name: str) -> bool | None:
        content = self._source.read(name)
        if content is None:
            return None
        if publication.name_of(hashlib.sha256(content).hexdigest()) != name:
            raise _LeftOutError("is of other content than its name says")
        found = _readable(lambda: publication.parse(content, f"{self._source}/{name}"))
        self._check_there(object_name(digest) for each in found.artifacts.values() for digest in each.objects)
        if self._is_same(name, content):
            return False
        self._to.write(name, content)
        return True

    def _head(self, name: str) -> bool | None:
        content = self._source.read(name)
        if content is None:
            return None
        ours = _readable(lambda: publication.parse_head(content, self._source, name))
        self._check_there([publication.name_of(ours.publication)])
        other = self._to.read(name)
        if other == content:
            return False
        if other is not None:
            theirs = _readable(lambda: publication.parse_head(other, self._to, name))
            if self._leads_to(theirs, ours):
                return False
            if not self._leads_to(ours, theirs):
                raise _LeftOutError(
                    f"{self._to} has another publication of {ours.directory}, which stays; go on from that, "
                    f"or remove {self._to}/{name}, and run again"
                )
        self._to.write(name, content)
        return True

    def _leads_to(self, head: Head, earlier: Head) -> bool:
        """Whether a head is the same as another one, or leads to it."""
        if head.publication == earlier.publication:
            return head.shown or not earlier.shown
        last = publication.load(self._to, head.publication)
        return any(each.identity == earlier.publication for each in publication.chain(self._to, last))

    def _is_same(self, name: str, content: bytes) -> bool:
        """Whether the other store has a document already, and keeps it from being collected."""
        return self._to.read(name) == content and self._to.renew(name)

    def _check_there(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._there:
                raise _LeftOutError(f"names {name}, which is not in {self._to}")


def _readable(read: Callable[[], _T]) -> _T:
    """What a document says."""
    try:
        return read()
    except RecordError as error:
        raise _LeftOutError(str(error)) from None
