"""Read a store or a directory again, and report whatever is not as it was written."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cosyjit import documents
from cosyjit.building.build import prove
from cosyjit.errors import CheckpointError, CosyjitError, RecordError, StoreError, line, log_cause
from cosyjit.families import FAMILIES
from cosyjit.fs.files import absolute
from cosyjit.fs.hashing import sha256_of
from cosyjit.fs.waits import Wait
from cosyjit.planning.plan import find_targets
from cosyjit.planning.target import Target
from cosyjit.processes.memory import reservations_directory, reserved
from cosyjit.provenance import beside, graphs, record
from cosyjit.provenance.fingerprint import differences
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.layout import STATE
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.coordination import PRIVATE_ROOT
from cosyjit.store.store import FORMS, Store, object_name


class Fault(NamedTuple):
    """A file that is not as it should be, and what is wrong with it."""

    name: str
    problem: str


STRANGE: Final = "is not a file, but a link, a folder, a pipe or a device"

_NAMES: Final = {
    part.file_name(precision)
    for family in FAMILIES
    for part in family.components
    if not part.on_request
    for precision in part.tolerances
}
"""What the runtime looks for with `load_jit` and `load_vllm`. Checkpoints are published with files of other names, such
as an ONNX file, which are no more signed than their weights."""


def verify_directory(
    directory: str | Path, *, store: Store | None = None, deep: bool = False, memory: int | None = None
) -> list[Fault]:
    """Read all files that a directory shows and compare their digests; check signatures if the store requires them.

    Records that stand beside the files, as in a directory that was downloaded from a hub, count as those of the store.

    Args:
        directory: where it is published.
        store: the one that it was published from; that of this user for None.
        deep: also compare each artifact with its checkpoint again, which has to be at hand, as if no graph had been
            proven before. This takes the memory and time of an export.
        memory: what that and builds together may take on this machine, in bytes; three quarters of its memory for None.

    Raises:
        PublicationError: nothing was published there with this store.
        StoreError: the store cannot be read.
    """
    published = PublishedDirectory(directory, store)
    live, checked = published.check(reread=True)
    faults = [Fault(str(published.path / each.name), each.condition) for each in checked if each.condition != "intact"]
    faults += _beside(published, live)
    faults += _unsigned(published, live)
    if deep:
        faults += _unlike(published, live, memory)
    return faults


def _unlike(directory: PublishedDirectory, live: Publication, memory: int | None) -> Iterator[Fault]:
    """The artifacts that do not match their checkpoints, or cannot be compared with them."""
    store = directory.store
    private = Store(PRIVATE_ROOT, wait=store.wait)
    for name, each in live.artifacts.items():
        try:
            # In use, or the next command that begins takes what is staged there for that of a process that was killed.
            with store.looked_at(), private.in_use(), private.staging() as work:
                _compare(_target(store, name, each), each, store, work, memory)
        except CosyjitError as error:  # noqa: PERF203  (each is a fault of its own)
            log_cause(error)
            yield Fault(str(directory.path / name), line(error))


def _target(store: Store, name: str, artifact: Published) -> Target:
    made = record.load(store, artifact.fingerprint)
    if made is None:
        raise RecordError(f"{store}: has no record of {name}, and so not its checkpoint; export it again")
    component, precision = made.component, made.fingerprint.precision
    (target,) = find_targets(made.source, [component], [precision], store=store)
    if target.fingerprint.key != artifact.fingerprint:
        changes = "; ".join(differences(made.fingerprint, target.fingerprint))
        raise CheckpointError(f"{made.source}: is not what {name} was made from ({changes}); export it again")
    return target


def _compare(target: Target, artifact: Published, store: Store, work: Path, memory: int | None) -> None:
    path = work / target.file_name
    if artifact.files is not None:
        path.mkdir()
    for member, digest in (artifact.files or {"": artifact.sha256}).items():
        with (path / member).open("wb") as file:
            store.fetch(digest, file, set_aside=False)
    with reserved(reservations_directory(), target.memory_bytes, memory, wait=Wait("memory", store.wait)):
        prove(target, path)


def _unsigned(directory: PublishedDirectory, live: Publication) -> Iterator[Fault]:
    if directory.store.trusted is None:
        return
    for name in sorted(_NAMES - live.artifacts.keys()):
        if os.path.lexists(directory.path / name):
            yield Fault(str(directory.path / name), "does not belong to the publication, and no signed record names it")
    for name, each in live.artifacts.items():
        problem = _lacks_signature(directory, name, each)
        if problem:
            yield Fault(str(directory.path / name), problem)


def _lacks_signature(directory: PublishedDirectory, name: str, artifact: Published) -> str | None:
    try:
        beside.find(directory.store, directory.path, name, artifact.sha256, artifact.size, artifact.fingerprint)
    except RecordError as error:
        log_cause(error)
        return str(error)
    return None


def _beside(directory: PublishedDirectory, live: Publication) -> Iterator[Fault]:
    """The records beside the files that are damaged, or not theirs, or missing among others."""
    some = (directory.path / beside.FOLDER).is_dir()
    for name, each in live.artifacts.items():
        path = str(directory.path / beside.name_of(each.fingerprint))
        try:
            found = beside.check(directory.path, name, each.sha256, each.size, each.fingerprint)
        except RecordError as error:
            log_cause(error)
            yield Fault(path, str(error).removeprefix(f"{path}: "))
            continue
        if some and not found and not directory.store.has(record.name_of(each.fingerprint)):
            yield Fault(path, "missing")


def is_store(place: str) -> bool:
    """Whether a path or URL is a store, and not a directory that is published into."""
    if "://" in place:
        return True
    path = absolute(Path(place))
    shows = (path / STATE).is_dir()  # someone who can write there must not make it look like a store
    return not shows and any((path / name).is_dir() for name in ("objects", "records", "publications"))


def verify_store(store: Store | None = None) -> list[Fault]:
    """Read all files of a store and compare their digests; nothing is changed.

    Files that other processes add or delete meanwhile are not faults.

    Args:
        store: that of this user for None.

    Raises:
        StoreError: the store does not exist, or cannot be read.
    """
    store = store or Store()
    store.check_there()
    faults = [Fault(name, STRANGE) for name in store.strange()]
    faults += _objects(store)
    objects = store.objects()
    return [*faults, *_records(store, objects), *_graphs(store), *_publications(store, objects), *_heads(store)]


def _objects(store: Store) -> Iterator[Fault]:
    for entry in store.entries("objects"):
        if not re.fullmatch(FORMS["objects"], entry.name):
            yield Fault(entry.name, "is not an object")
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
            yield Fault(name, "is not a record")
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


def _graphs(store: Store) -> Iterator[Fault]:
    for name in (entry.name for entry in store.entries("graphs")):
        if not re.fullmatch(FORMS["graphs"], name):
            yield Fault(name, "is not a graph")
            continue
        try:
            graphs.artifact(store, name)
        except RecordError as error:
            if store.has(name):
                log_cause(error)
                yield Fault(name, str(error))


def _publications(store: Store, objects: Collection[str]) -> Iterator[Fault]:
    for name in sorted(entry.name for entry in store.entries("publications")):
        if not re.fullmatch(FORMS["publications"], name):
            yield Fault(name, "is not a publication")
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
    """Whether a document exists and a file that it names does not: documents are written last and deleted first."""
    return not store.has(name) and store.has(document)
