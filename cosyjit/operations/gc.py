"""What nothing refers to any more: found, and removed when asked to."""

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
from cosyjit.provenance import latest, record
from cosyjit.publishing import publication, publish
from cosyjit.publishing.publication import Publication
from cosyjit.store.backends import Entry
from cosyjit.store.store import FORMS, Store

KEEP: Final = 10
"""How many publications of each directory are kept unless asked otherwise."""

OLDER_THAN: Final = 7 * 86_400.0
"""The age, in seconds, that what nothing refers to has to have unless asked otherwise."""


def collect(store: Store, *, keep: int = KEEP, older_than: float = OLDER_THAN, remove: bool = False) -> list[Entry]:
    """Find, and remove if asked to, what no publication in reach refers to.

    In reach are the publications that directories show, and the last ones of each directory. What is younger than
    `older_than` stays as well. A local store is collected while nobody uses it: exports under way are waited for, but
    not to look only. With a remote one go the copies of objects that this machine has had for as long, in reach or not.

    Args:
        keep: how many publications of each directory are in reach, at least 1.
        older_than: in seconds; `Store.grace` at least for a remote store, where nobody can be waited for. Exports
            renew what they rely on there, and each file is looked at again right before it goes.
        remove: remove what is found; else nothing is changed.

    Returns:
        What was found, the largest first.

    Raises:
        SelectionError: `keep` is less than 1, or `older_than` less than 0.
        StoreError: there is no store, it cannot be read or written, or a later version has written a document in it;
            what was found is there still.
    """
    if keep < 1 or older_than < 0:
        raise SelectionError(f"--keep {keep} --older-than {older_than:g}: keep 1 or more, for 0 seconds or longer")
    store.check_there()
    older_than = older_than if store.local else max(older_than, store.grace)
    oldest = time.time() - older_than
    with store.alone() if remove else store.looked_at():
        found = list(_Search(store, oldest).found(keep))
        if remove:
            found = [entry for entry in found if store.remove_old(entry.name, oldest)]
            memory.tidy(memory.notes())
            store.digests.tidy()
    found += _copies(store, older_than, remove=remove)
    return sorted(found, key=lambda entry: -entry.size)


def _copies(store: Store, older_than: float, *, remove: bool) -> list[Entry]:
    """The same for this machine's copies of a remote store's objects, which nothing refers to; named by their paths."""
    cache = store.cache
    if cache is None or cache.local is None or not cache.local.is_dir():
        return []
    with suppress(StoreError):  # of a home that is read-only, where they stay
        found = collect(cache, older_than=older_than, remove=remove)
        return [entry._replace(name=str(cache.local / entry.name)) for entry in found]
    return []


class _Search:
    """The files of a store, a folder at a time, and which of them nothing refers to.

    Of what was read only keys and digests are kept: a store may have a hundred thousand records.
    """

    def __init__(self, store: Store, oldest: float) -> None:
        self._store = store
        self._oldest = oldest
        self._published: set[str] = set()  # the keys of the records that publications need
        self._recorded: set[str] = set()  # those of the records that stay
        self._named: set[str] = set()  # the digests of the objects that stay

    def found(self, keep: int) -> Iterator[Entry]:
        """All that can go, documents before what they name."""
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
        """The store's own files below a folder; a stranger's are left alone."""
        is_own = re.compile(FORMS[folder]).fullmatch
        return (each for each in self._store.entries(folder) if is_own(each.name))

    def _publications(self, keep: int) -> Iterator[Entry]:
        """The publications that can go; what the others name is noted."""
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
        """The records that can go; what the others name is noted."""
        for entry in self._below("records"):
            key = documents.stem(entry.name)
            objects = self._objects(key)
            if key not in self._published and self._is_old(entry):
                yield entry
            elif objects is not None:
                self._recorded.add(key)
                self._named.update(objects)

    def _references(self) -> Iterator[Entry]:
        """The references that can go, to records that are going or gone."""
        for entry in self._below("latest"):
            if latest.read(self._store, entry.name) not in self._recorded and self._is_old(entry):
                yield entry

    def _in_reach(self, keep: int) -> Iterator[Publication]:
        for head in publication.heads(self._store):
            for last in (publication.load(self._store, head.publication), self._shown(head.directory)):
                yield from islice(publication.chain(self._store, last), min(keep, sys.maxsize))

    def _shown(self, directory: Path) -> Publication | None:
        try:
            return publish.shown(self._store, directory)
        except RecordError:
            return None  # who may write there is not to stop collections; the store has what was published with it

    def _publication(self, name: str) -> Publication | None:
        found = publication.load(self._store, documents.stem(name))
        gone = found is None and self._store.read(name) is None  # by another machine's collection
        if found is None and not gone:  # what was before it would seem to be out of reach
            raise documents.damaged_error(f"{self._store}/{name}", "other content than its name says")
        return found

    def _objects(self, key: str) -> Collection[str] | None:
        try:
            return record.objects(self._store, key)
        except (LaterSchemaError, SignatureError):
            raise
        except RecordError:
            return None  # no one can use it; what it named is built again

    def _forgotten(self, going: Collection[str]) -> Iterator[Entry]:
        """The digests of files that are gone or going, which are of no use whatever their age."""
        local = self._store.local
        if local is None:
            return
        paths = self._store.digests.of_missing({str(local / name) for name in going})
        missing = {f"digests/{path.name}" for path in paths}
        yield from (each for each in self._below("digests") if each.name in missing)
