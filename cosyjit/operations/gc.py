"""Garbage collection: find what nothing in a store refers to, and delete it when asked to."""

import re
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from cosyjit import documents
from cosyjit.errors import LaterSchemaError, RecordError, SelectionError, SignatureError, StoreError
from cosyjit.processes import memory
from cosyjit.processes.interrupts import note_changes
from cosyjit.provenance import graphs, latest, record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Publication
from cosyjit.store.backends import Entry
from cosyjit.store.store import FORMS, Store

KEEP: Final = 10
"""How many publications of each directory are kept by default."""

OLDER_THAN: Final = 7 * 86_400.0
"""How old garbage must be by default, in seconds, before it is deleted."""


def gc(
    store: Store | None = None, *, keep: int = KEEP, older_than: float = OLDER_THAN, delete: bool = False
) -> list[Entry]:
    """Find the files of a store that no kept publication refers to, and delete them when asked to.

    Kept are the live publication of each directory and the last ones before it. Files younger than `older_than` stay
    too. Before deleting in a local store, it waits until no export is running. For a remote store, it also deletes this
    machine's cached copies of objects that are older than that, whether or not a publication refers to them.

    Args:
        store: that of this user for None.
        keep: how many publications of each directory are kept, at least 1.
        older_than: in seconds; at least `Store.grace` for a remote store, whose users cannot be waited for. Exports
            renew the objects that they rely on there, and the age of each file is checked again before it is deleted.
        delete: delete what is found; otherwise nothing is changed.

    Returns:
        What was found, the largest first.

    Raises:
        SelectionError: `keep` is less than 1, or `older_than` less than 0.
        StoreError: the store does not exist, or cannot be read or written, or a later version of cosyjit wrote a
            document in it; nothing was deleted.
    """
    if keep < 1:
        raise SelectionError(f"--keep {keep}: keep 1 or more publications of each directory")
    if older_than < 0:
        raise SelectionError(f"--older-than {older_than:g} s: keep files for 0 s or longer")
    store = store or Store()
    store.check_there()
    older_than = older_than if store.local else max(older_than, store.grace)
    oldest = time.time() - older_than
    with store.exclusive() if delete else store.looked_at():
        found = list(_Search(store, oldest).found(keep))
        if delete:
            note_changes("files that nothing refers to were removed; run it again, and it goes on")
            found = [entry for entry in found if store.remove_old(entry.name, oldest)]
            memory.tidy(memory.reservations_directory())
            store.digests.tidy()
    found += _copies(store, older_than, delete=delete)
    return sorted(found, key=lambda entry: -entry.size)


def _copies(store: Store, older_than: float, *, delete: bool) -> list[Entry]:
    """Collect this machine's cached copies of a remote store's objects; the entries are named by their paths."""
    cache = store.cache
    if cache is None or cache.local is None or not cache.local.is_dir():
        return []
    with suppress(StoreError):  # of a home that is read-only, where they stay
        found = gc(cache, older_than=older_than, delete=delete)
        return [entry._replace(name=str(cache.local / entry.name)) for entry in found]
    return []


class _Search:
    """Searches a store folder by folder for files that nothing refers to.

    It remembers only keys and digests of what it has read: a store may have a hundred thousand records.
    """

    def __init__(self, store: Store, oldest: float) -> None:
        self._store = store
        self._oldest = oldest
        self._published: set[str] = set()  # the keys of the records that publications need
        self._recorded: set[str] = set()  # those of the records that stay
        self._named: set[str] = set()  # the digests of the objects that stay

    def found(self, keep: int) -> Iterator[Entry]:
        """All garbage, documents before the files that they name."""
        yield from self._publications(keep)
        yield from self._records()
        yield from self._references()
        gone = [each for each in self._old("objects") if each.name.rpartition("/")[2] not in self._named]
        yield from gone
        for folder in ("damaged", "locks", "tmp"):
            yield from self._old(folder)
        yield from (each for each in self._store.unfinished() if self._is_old(each))
        yield from self._forgotten({each.name for each in gone})

    def _old(self, folder: str) -> Iterator[Entry]:
        return filter(self._is_old, self._below(folder))

    def _is_old(self, entry: Entry) -> bool:
        return entry.modified < self._oldest

    def _below(self, folder: str) -> Iterator[Entry]:
        """The files below a folder that have names of a store; all others are left alone."""
        is_own = re.compile(FORMS[folder]).fullmatch
        return (each for each in self._store.entries(folder) if is_own(each.name))

    def _publications(self, keep: int) -> Iterator[Entry]:
        """The publications that are garbage; notes what the others refer to."""
        reached = set()
        entries = list(self._below("publications"))
        for each in self._in_reach(keep):
            reached.add(publication.name_of(each.identity))
            self._note(each)
        for entry in entries:
            found = self._publication(entry.name)
            if entry.name not in reached and self._is_old(entry):
                yield entry
            elif found is not None:
                self._note(found)

    def _note(self, published: Publication) -> None:
        for artifact in published.artifacts.values():
            self._published.add(artifact.fingerprint)
            self._named.update(artifact.objects)

    def _records(self) -> Iterator[Entry]:
        """The records that are garbage; notes what the others refer to."""
        for entry in self._below("records"):
            key = documents.stem(entry.name)
            objects = self._objects(key)
            if key not in self._published and self._is_old(entry):
                yield entry
            elif objects is not None:
                self._recorded.add(key)
                self._named.update(objects)

    def _references(self) -> Iterator[Entry]:
        """The references and graphs whose record is garbage, or deleted already."""
        for folder, key_of in (("latest", latest.read), ("graphs", self._artifact)):
            for entry in self._below(folder):
                if key_of(self._store, entry.name) not in self._recorded and self._is_old(entry):
                    yield entry

    def _artifact(self, store: Store, name: str) -> str | None:
        try:
            return graphs.artifact(store, name)
        except LaterSchemaError:
            raise
        except RecordError:
            return None  # nobody can use it; the next export proves it anew

    def _in_reach(self, keep: int) -> Iterator[Publication]:
        for head in publication.heads(self._store):
            for last in (publication.load(self._store, head.publication), self._shown(head.directory)):
                yield from islice(publication.chain(self._store, last), min(keep, sys.maxsize))

    def _shown(self, directory: Path) -> Publication | None:
        try:
            return PublishedDirectory(directory, self._store).live()
        except RecordError:
            return None  # someone who can write there must not stop gc; the store has its own copy of what it published

    def _publication(self, name: str) -> Publication | None:
        found = publication.load(self._store, documents.stem(name))
        gone = found is None and self._store.read(name) is None  # another machine has just deleted it
        if found is None and not gone:  # the publications before it would look like garbage
            raise documents.damaged_error(f"{self._store}/{name}", "other content than its name says")
        return found

    def _objects(self, key: str) -> Collection[str] | None:
        try:
            return record.objects(self._store, key)
        except (LaterSchemaError, SignatureError):
            raise
        except RecordError:
            return None  # nobody can use it; its artifact is built again

    def _forgotten(self, going: Collection[str]) -> Iterator[Entry]:
        """The digests of files that are gone or going, which are of no use whatever their age."""
        local = self._store.local
        if local is None:
            return
        paths = self._store.digests.of_missing({str(local / name) for name in going})
        missing = {f"digests/{path.name}" for path in paths}
        yield from (each for each in self._below("digests") if each.name in missing)
