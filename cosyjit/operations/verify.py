"""Reading everything again: whether a store or a directory holds what it says."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cosyjit import documents
from cosyjit.errors import RecordError, StoreError, log_cause
from cosyjit.families import FAMILIES
from cosyjit.fs.files import absolute, sha256_of
from cosyjit.provenance import record
from cosyjit.publishing import layout, publication, publish
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import FORMS, Store, object_name


class Fault(NamedTuple):
    """Something that is not what it should be: the file, and in words what is wrong with it."""

    name: str
    problem: str


STRANGE: Final = "is a link, a folder, a pipe or a device, and no file"

_NAMES: Final = {
    part.file_name(precision) for family in FAMILIES for part in family.components for precision in part.tolerances
}
"""What a runtime may look for in a directory."""


def audit_directory(store: Store, directory: Path) -> list[Fault]:
    """Read all that a directory shows, and compare its digests; and where the store requires signatures, check these.

    Raises:
        PublicationError: nothing was published there with this store.
        StoreError: the store cannot be read.
    """
    shown, found = publish.look(store, directory, again=True)
    faults = [Fault(str(directory / each.name), each.condition) for each in found if each.condition != "whole"]
    return [*faults, *_unsigned(store, directory, shown)]


def _unsigned(store: Store, directory: Path, shown: Publication) -> Iterator[Fault]:
    others = _NAMES - shown.artifacts.keys() if store.trusted else ()
    for name in sorted(others):
        if os.path.lexists(directory / name):
            yield Fault(str(directory / name), "is not of the publication, and of no signed record")
    for name, each in shown.artifacts.items():
        problem = _lacks_signature(store, name, each)
        if problem:
            yield Fault(str(directory / name), problem)


def _lacks_signature(store: Store, name: str, artifact: Published) -> str | None:
    try:
        record.check_signed(store, name, artifact.sha256, artifact.bytes, artifact.fingerprint)
    except RecordError as error:
        log_cause(error)
        return str(error)
    return None


def is_store(place: str) -> bool:
    """Whether a place is a store, and not a directory to publish into."""
    if "://" in place:
        return True
    path = absolute(Path(place))
    shows = (path / layout.STATE).is_dir()  # whoever may write there is not to make a store of it
    return not shows and any((path / name).is_dir() for name in ("objects", "records", "publications"))


def audit_store(store: Store) -> list[Fault]:
    """Read all that a store holds. Nothing is changed: what is damaged is set aside when it is needed.

    What exports and collections bring and take meanwhile is no fault.

    Raises:
        StoreError: the store cannot be read, or there is none.
    """
    store.check_there()
    faults = [Fault(name, STRANGE) for name in store.strange()]
    faults += _objects(store)
    objects = store.objects()
    return [*faults, *_records(store, objects), *_publications(store, objects), *_heads(store)]


def _objects(store: Store) -> Iterator[Fault]:
    for entry in store.entries("objects"):
        if not re.fullmatch(FORMS["objects"], entry.name):
            yield Fault(entry.name, "is no object")
            continue
        try:
            with store.open(entry.name) as file:
                found = sha256_of(file)
        except (OSError, StoreError) as error:
            log_cause(error)
            if store.has(entry.name):
                yield Fault(entry.name, f"cannot be read ({error})")
            continue
        if object_name(found) != entry.name:
            yield Fault(entry.name, "damaged")


def _records(store: Store, objects: Collection[str]) -> Iterator[Fault]:
    for name in (entry.name for entry in store.entries("records")):
        if not re.fullmatch(FORMS["records"], name):
            yield Fault(name, "is no record")
            continue
        try:
            found = record.load(store, documents.stem(name))
        except RecordError as error:
            log_cause(error)
            yield Fault(name, str(error))
            continue
        for digest in found.objects if found is not None else ():
            if digest not in objects and _lacks(store, name, object_name(digest)):
                yield Fault(name, f"object {digest} missing")


def _publications(store: Store, objects: Collection[str]) -> Iterator[Fault]:
    for name in sorted(entry.name for entry in store.entries("publications")):
        if not re.fullmatch(FORMS["publications"], name):
            yield Fault(name, "is no publication")
            continue
        try:
            found = publication.load(store, documents.stem(name))
        except RecordError as error:
            log_cause(error)
            yield Fault(name, str(error))
            continue
        if found is None:
            if store.read(name) is not None:
                yield Fault(name, "damaged")
            continue
        for digest in (each for artifact in found.artifacts.values() for each in artifact.objects):
            if digest not in objects and _lacks(store, name, object_name(digest)):
                yield Fault(name, f"object {digest} missing")


def _heads(store: Store) -> Iterator[Fault]:
    try:
        for head in publication.heads(store):
            name = publication.name_of(head.publication)
            if not store.has(name) and publication.read_head(store, head.directory) == head:
                yield Fault(name, f"missing, the last of {head.directory}")
    except RecordError as error:
        log_cause(error)
        yield Fault("heads", str(error))


def _lacks(store: Store, document: str, name: str) -> bool:
    """Whether a document is there and a file that it names is not: it comes last, and goes first."""
    return not store.has(name) and store.has(document)
