"""What nothing refers to any more: found, and removed when asked to."""

import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from cosyjit import documents, latest, memory, publication, publish, record
from cosyjit.errors import LaterSchemaError, RecordError, SelectionError, SignatureError, StoreError
from cosyjit.place import STAGING
from cosyjit.publication import Publication
from cosyjit.storage import Entry
from cosyjit.store import Store, object_name

KEEP: Final = 10
"""How many publications of each directory are kept unless asked otherwise."""

_NAMES: Final = {
    "objects": r"objects/[0-9a-f]{2}/[0-9a-f]{64}",
    "publications": r"publications/[0-9a-f]{64}\.json",
    **{folder: rf"{folder}/[0-9a-f]{{32}}\.json" for folder in ("records", "latest", "heads", "digests")},
    "damaged": r"damaged/(objects|records)\..*\.[0-9a-f]{8}",
    "tmp": rf"tmp/{STAGING}.*",
    "locks": r"locks/[0-9a-f]{32}",  # of remote stores: those of local ones are named for less
}
"""The forms of the names of a store's files, by folder."""

OLDER_THAN: Final = 7 * 86_400.0
"""The age, in seconds, that what nothing refers to has to have unless asked otherwise."""


def collect(store: Store, *, keep: int = KEEP, older_than: float = OLDER_THAN, remove: bool = False) -> list[Entry]:
    """Find, and remove if asked to, what no publication in reach refers to.

    In reach are the publications that directories show, and the last ones of each directory. What is younger than
    `older_than` stays as well. A local store is collected while nobody uses it: exports under way are waited for. With
    a remote one go the copies of objects that this machine has had for as long, in reach or not.

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
    with store.alone():
        found = list(_Search(store, oldest).found(keep))
        if remove:
            found = [entry for entry in found if store.remove_old(entry.name, oldest)]
            memory.tidy(memory.notes())
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
    """The files of a store, and which of them nothing refers to."""

    def __init__(self, store: Store, oldest: float) -> None:
        self._store = store
        self._oldest = oldest
        self._entries = store.entries()

    def found(self, keep: int) -> Iterator[Entry]:
        """All that can go, documents before what they name."""
        publications = {name: self._publication(name) for name in self._below("publications")}
        records = {name: self._record(documents.stem(name)) for name in self._below("records")}
        references = {name: latest.read(self._store, name) for name in self._below("latest")}
        reached = list(self._in_reach(keep))

        gone = self._unnamed("publications", {publication.name_of(each.identity) for each in reached})
        yield from gone.values()
        left = [found for name, found in publications.items() if name not in gone and found is not None]
        published = [artifact for each in (*reached, *left) for artifact in each.artifacts.values()]

        gone = self._unnamed("records", {record.name_of(each.fingerprint) for each in published})
        yield from gone.values()
        recorded = [found for name, found in records.items() if name not in gone and found is not None]

        keys = {each.fingerprint.key for each in recorded}
        yield from self._unnamed("latest", {name for name, key in references.items() if key in keys}).values()

        digests = {digest for artifact in published for digest in artifact.objects}
        digests |= {digest for made in recorded for digest in made.objects}
        gone = self._unnamed("objects", {object_name(digest) for digest in digests})
        yield from gone.values()
        yield from self._unnamed("damaged", set()).values()
        yield from self._unnamed("locks", set()).values()
        yield from self._left(gone)

    def _below(self, folder: str) -> dict[str, Entry]:
        """The store's own files below a folder; a stranger's are left alone."""
        return {each.name: each for each in self._entries if re.fullmatch(_NAMES[folder], each.name)}

    def _unnamed(self, folder: str, names: set[str]) -> dict[str, Entry]:
        """The old entries below a folder that have none of these names."""
        below = self._below(folder)
        return {name: each for name, each in below.items() if name not in names and each.modified < self._oldest}

    def _in_reach(self, keep: int) -> Iterator[Publication]:
        for head in publication.heads(self._store):
            for last in (publication.load(self._store, head.publication), self._shown(head.directory)):
                yield from islice(publication.chain(self._store, last), keep)

    def _shown(self, directory: Path) -> Publication | None:
        try:
            return publish.shown(self._store, directory)
        except RecordError:
            return None  # who may write there is not to stop collections; the store has what was published with it

    def _publication(self, name: str) -> Publication | None:
        found = publication.load(self._store, documents.stem(name))
        gone = found is None and self._store.read(name) is None  # by another machine's collection
        if found is None and not gone:  # what was before it would seem to be out of reach
            raise documents.damaged(f"{self._store}/{name}", "other content than its name says")
        return found

    def _record(self, key: str) -> record.Record | None:
        try:
            return record.load(self._store, key)
        except (LaterSchemaError, SignatureError):
            raise
        except RecordError:
            return None  # no one can use it; what it named is built again

    def _left(self, going: Collection[str]) -> Iterator[Entry]:
        """What processes that were killed were writing, and the digests of files that are gone or going."""
        yield from self._below("tmp").values()
        local = self._store.local
        for each in self._store.unfinished():
            at_any_time = local is None or each.name.startswith("digests/")
            if not at_any_time or each.modified < self._oldest:
                yield each
        if local is None:
            return
        paths = self._store.digests.of_missing({local / name for name in going})
        missing = {f"digests/{path.name}" for path in paths}
        yield from (each for name, each in self._below("digests").items() if name in missing)
