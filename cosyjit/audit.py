"""Reading everything again: whether a store or a directory holds what it says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosyjit import documents, publication, publish, record
from cosyjit.errors import RecordError, StoreError
from cosyjit.files import absolute, sha256_of
from cosyjit.store import Store, object_name


class Fault(NamedTuple):
    """Something that is not what it should be: the file, and in words what is wrong with it."""

    name: str
    problem: str


def audit_directory(store: Store, directory: Path) -> list[Fault]:
    """Read all that a directory shows, and compare its digests.

    Raises:
        PublicationError: nothing was published there with this store.
        StoreError: the store cannot be read.
    """
    shown = publish.current(store, directory)
    found = publish.inspect(store, directory, shown, again=True)
    return [Fault(str(directory / each.name), each.condition) for each in found if each.condition != "whole"]


def is_store(place: str) -> bool:
    """Whether a place is a store, and not a directory to publish into."""
    folders = ("objects", "records", "publications")
    return "://" in place or any((absolute(Path(place)) / name).is_dir() for name in folders)


def audit_store(store: Store) -> list[Fault]:
    """Read all that a store holds. Nothing is changed: what is damaged is set aside when it is needed.

    Raises:
        StoreError: the store cannot be read.
    """
    return [*_objects(store), *_records(store), *_publications(store)]


def _objects(store: Store) -> Iterator[Fault]:
    for entry in store.entries("objects"):
        digest = entry.name.rpartition("/")[2]
        if not re.fullmatch("[0-9a-f]{64}", digest) or entry.name != object_name(digest):
            yield Fault(entry.name, "is no object")
            continue
        try:
            with store.open(entry.name) as file:
                found = sha256_of(file)
        except (OSError, StoreError) as error:
            yield Fault(entry.name, f"cannot be read ({error})")
            continue
        if found != digest:
            yield Fault(entry.name, "damaged")


def _records(store: Store) -> Iterator[Fault]:
    objects = store.objects()
    for name in (entry.name for entry in store.entries("records")):
        try:
            found = record.load(store, documents.stem(name))
        except RecordError as error:
            yield Fault(name, str(error))
            continue
        if found is not None and found.sha256 not in objects:
            yield Fault(name, f"object {found.sha256} missing")


def _publications(store: Store) -> Iterator[Fault]:
    objects = store.objects()
    names = {entry.name for entry in store.entries("publications")}
    for name in sorted(names):
        try:
            found = publication.load(store, documents.stem(name))
        except RecordError as error:
            yield Fault(name, str(error))
            continue
        if found is None:
            yield Fault(name, "damaged")
            continue
        for artifact in found.artifacts.values():
            if artifact.sha256 not in objects:
                yield Fault(name, f"object {artifact.sha256} missing")
    try:
        for head in publication.heads(store):
            name = publication.name_of(head.publication)
            if name not in names:
                yield Fault(name, f"missing, the last of {head.directory}")
    except RecordError as error:
        yield Fault("heads", str(error))
