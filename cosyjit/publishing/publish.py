"""What a model directory shows: a set of artifacts under the names that the runtime reads, with those before it.

The files are copies of the store's objects, by reference where the file system can, because other exporters write such
names in place. What is damaged here is copied again from the store.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final

from cosyjit.documents import now
from cosyjit.errors import (
    BusyError,
    LaterSchemaError,
    OutputError,
    PublicationError,
    RecordError,
    SelectionError,
    StoreError,
)
from cosyjit.families import FAMILIES
from cosyjit.fs import files, hashing
from cosyjit.fs.identity import Identity
from cosyjit.processes.processors import processors
from cosyjit.provenance import record
from cosyjit.provenance.record import check_signed
from cosyjit.publishing import layout, publication
from cosyjit.publishing.condition import Finding, condition, inspect
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import Condition, Store, object_name

_LOG: Final = logging.getLogger("cosyjit")

_LARGEST: Final = 1 << 20
"""In bytes, what a manifest may take that stands in a directory, and so may be anyone's."""


@contextmanager
def opened(
    directory: Path,
    size: int = 0,
    names: Collection[str] = (),
    *,
    replace: bool = False,
    own: Collection[str] = (),
    ways: Mapping[str, str] | None = None,
    wait: float | None = None,
) -> Iterator[None]:
    """Make sure that a directory can be published into, before the work; what was brought is removed if that fails.

    Args:
        directory: made if missing.
        size, names, replace, own, ways: see `obstacles`.
        wait: how long others that publish there are waited for at most, in s; None for as long as it takes.

    Raises:
        BusyError: they were waited for so long.
        OutputError: it cannot be made or written to, has too little room, or something else in the place of a name.
    """
    for error in obstacles(directory, size, names, replace=replace, own=own, ways=ways):
        raise error
    with layout.writing(directory, shared=True, wait=wait):
        pass
    try:
        yield
    except BaseException:
        with suppress(OutputError):
            discard(directory)
        raise


def obstacles(
    directory: Path,
    size: int = 0,
    names: Collection[str] = (),
    *,
    replace: bool = False,
    own: Collection[str] = (),
    ways: Mapping[str, str] | None = None,
) -> Iterator[OutputError]:
    """The errors that publishing into a directory would end with, as far as that can be told without writing.

    What only a write can tell, such as that the file system is read-only, is not among them.

    Args:
        directory: need not be there.
        size: how many bytes will be copied into it.
        names: what will be shown, folders with a slash at the end.
        replace: see `publish`.
        own: those that stand there as copies of what was published; see `copies`.
        ways: by the names of folders, what else can be done where something stands in their way.
    """
    above = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    try:
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{above.name} is not a directory")
        yield from layout.obstacles(directory, names, ways or {}, replace=replace, own=own)
    except OSError as error:
        yield OutputError(f"{directory}: cannot be written to ({error.strerror}); publish into another directory")
        return
    try:
        shortage = files.shortage(directory, size)
    except OSError:  # which will be said when it is made
        shortage = None
    if shortage:
        yield OutputError(f"{directory}: {shortage}; make room, or publish into another directory")


def bring(store: Store, directory: Path, artifact: Published, *, link: bool = False) -> None:
    """Copy an artifact into a directory where `publish` will find it, if it is not there yet; nothing of it is shown.

    Raises:
        OutputError: the directory cannot be written to.
        StoreError: an object is missing or damaged, or cannot be linked.
    """
    with layout.writing(directory, shared=True, wait=store.wait):
        for digest in artifact.objects:
            _bring(store, directory, digest, link=link)


def publish(
    store: Store,
    directory: Path,
    artifacts: Mapping[str, Published],
    source: str,
    *,
    link: bool = False,
    replace: bool = False,
) -> Publication:
    """Show artifacts in a directory, beside those of other names that it shows already: all of them or none.

    If it shows them already, no new publication is made, and what is damaged is mended. What it goes on showing from
    another store is copied into this one.

    Args:
        store: where they are kept, entered with `Store.in_use`.
        directory: where to show them.
        artifacts: by the names of the runtime.
        source: what they were made from.
        link: whether files are to be hard links to the store's objects, on whose disk the directory must be then.
        replace: whether what others have put where a folder is to be shown is put aside, and not an error.

    Raises:
        OutputError: the directory cannot be written to; it shows what it did.
        SignatureError: an artifact has no record with a signature that the store requires.
        StoreError: an object is missing or damaged, or cannot be linked; the directory shows what it did.
    """
    with layout.writing(directory, wait=store.wait):
        wanted = shown(store, directory)
        others = {name: each for name, each in _others(store, directory, wanted).items() if name not in artifacts}
        merged = {**others, **artifacts}
        _check_signed(store, merged)
        _keep(store, directory, others)
        if wanted is None or (wanted.artifacts, wanted.source) != (merged, source):
            wanted = _following(wanted, source, merged)
        elif _is_well(store, directory, wanted, link=link):
            if publication.head(store, directory) != wanted:  # it may be a copy of another directory
                _renew(store, wanted, others.values())
                _save(store, wanted, directory, shown=True)
            layout.clean(directory)
            return wanted
        _show(store, directory, wanted, others.values(), link=link, replace=replace)
    return wanted


def rollback(store: Store, directory: Path, number: int | None = None) -> Publication:
    """Show an earlier set again, as a new publication.

    Args:
        number: that of the publication whose set it is; the one before what is shown now for None.

    Raises:
        PublicationError: there is no such publication, or none that is kept.
        SignatureError: an artifact of it has no record with a signature that the store requires.
        StoreError: an object of it is missing or damaged. As after any error, the directory shows what it did.
    """
    current(store, directory)  # nothing is made where nothing was published
    store.check_there()
    with store.in_use(), layout.writing(directory, wait=store.wait):
        last = current(store, directory)
        found = _earlier(store, directory, last, number)
        _check_signed(store, found.artifacts)
        _keep(
            store, directory, {name: each for name, each in found.artifacts.items() if last.artifacts.get(name) == each}
        )
        after = _following(last, found.source, found.artifacts, found.restores or found.number)
        _show(store, directory, after, found.artifacts.values())
    return after


def _earlier(store: Store, directory: Path, last: Publication, number: int | None) -> Publication:
    """The publication of a number, among the last one of a directory and those before it; see `rollback`."""
    wanted = number if number is not None else (last.restores or last.number) - 1
    oldest = last
    for each in publication.chain(store, last):  # no further than to it: a history may be long
        if each.number == wanted:
            return each
        oldest = each
    raise PublicationError(
        f"{directory}: there is no publication {wanted} to go back to; kept are {oldest.number} to {last.number}"
    )


def check_others(store: Store, directory: Path, names: Collection[str], *, exporting: bool = False) -> None:
    """Make sure, before the work, that what else a directory shows can be shown further, out of a store.

    Args:
        names: those that are going to be shown anew.
        exporting: whether damaged objects are set aside and those in a bucket renewed; else nothing is changed.

    Raises:
        SignatureError: one has not the signature that the store requires.
        StoreError: one is whole neither in the store nor in the directory.
    """
    found = _others(store, directory, shown(store, directory))
    others = {name: each for name, each in found.items() if name not in names}
    _check_signed(store, others)
    list(_lacking(store, directory, others, store.check_or_set_aside if exporting else store.condition))


def _keep(store: Store, directory: Path, artifacts: Mapping[str, Published]) -> None:
    """Let a store have what a directory goes on showing, where it was published from another store.

    Raises:
        StoreError: an object is whole neither in the store nor in the directory, or the store cannot be written to.
    """
    for path, digest in _lacking(store, directory, artifacts, store.check_or_set_aside):
        if not store.read_only:
            _take(store, path, digest)


def _take(store: Store, path: Path, digest: str) -> None:
    """Copy a file into a store, where it is checked before it is an object."""
    try:
        with store.staging() as work:
            with (work / digest).open("wb+") as file:
                files.copy(path, file)
                file.seek(0)
                changed = hashing.sha256_of(file) != digest
            if changed:
                raise StoreError(f"{path}: was changed while it was copied into {store}; run again")
            store.add(work / digest, digest)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be copied into {store} ({error.strerror}); make room there, or name another store"
        ) from None


def _lacking(
    store: Store, directory: Path, artifacts: Mapping[str, Published], check: Callable[[str], Condition]
) -> Iterator[tuple[Path, str]]:
    """The objects of artifacts that a store has not: where a directory has them, whole, and their digests.

    Raises:
        StoreError: it has one neither.
    """
    for name, artifact in artifacts.items():
        for member, digest in artifact.members(name).items():
            if check(digest) == "whole":
                continue
            for path in (layout.file(directory, digest), directory / member):
                if condition(store, path, digest, again=False) == "whole":
                    yield path, digest
                    break
            else:
                raise StoreError(
                    f"{directory / member}: is not as it was published, and {store} has no object {digest}; "
                    f"export it again with this store{_options(name)}, or remove {directory / name}"
                )


def _options(name: str) -> str:
    """How the component that is published under a name is named to an export; nothing for a name that none has."""
    parts = [part for family in FAMILIES for part in family.components]
    for made, precision in ((part, each) for part in parts for each in part.tolerances):
        if made.file_name(precision) == name:
            return f", --component {made.name}" + (f" --precision {precision}" if made.published is None else "")
    return ""


def _check_signed(store: Store, artifacts: Mapping[str, Published]) -> None:
    for name, each in artifacts.items():
        check_signed(store, name, each.sha256, each.bytes, each.fingerprint)


def current(store: Store, directory: Path) -> Publication:
    """The publication that a directory shows, or showed when it was last whole.

    Raises:
        PublicationError: nothing was published there that the directory or the store knows of.
    """
    found = shown(store, directory)
    if found is None:
        raise PublicationError(
            f"{directory}: nothing is published here from {store}; name its store, or export into it"
        )
    return found


def history(store: Store, directory: Path, last: int | None = None) -> list[Publication]:
    """The publications of a directory as far back as the store has them, the one that it shows first.

    Args:
        last: how many at most, at least 1; the time that this takes goes with it. All of them for None.

    Raises:
        PublicationError: nothing was published there that the directory or the store knows of.
        SelectionError: `last` is less than 1.
        StoreError: there is no store.
    """
    if last is not None and last < 1:
        raise SelectionError(f"--last {last}: give 1 or more")
    shown_now = current(store, directory)
    store.check_there()
    return list(islice(publication.chain(store, shown_now), None if last is None else min(last, sys.maxsize)))


def _is_well(store: Store, directory: Path, wanted: Publication, *, link: bool) -> bool:
    """Whether a publication is shown, whole, as a set, and not by links into the store unless these are asked for."""
    objects = [digest for each in wanted.artifacts.values() for digest in each.objects]
    linked = any(store.is_linked(digest, layout.file(directory, digest)) for digest in objects)
    whole = all(found.condition == "whole" for found in inspect(store, directory, wanted))
    return whole and layout.current(directory) == wanted.identity and (link or not linked)


def _others(store: Store, directory: Path, shown: Publication | None) -> dict[str, Published]:
    """What was published in a directory and is to be shown further.

    What someone has taken away, or with it the whole directory, is not wanted back; nor is what he has put another file
    or folder in place of, which may be another model's.
    """
    artifacts = shown.artifacts if shown else {}
    return {
        name: each
        for name, each in artifacts.items()
        if layout.is_ours(directory / name) or _is_copy(store, directory / name, each)
    }


def copies(store: Store, directory: Path, names: Collection[str], artifacts: Mapping[str, Published]) -> frozenset[str]:
    """The names in a directory that are no links, but copies of published files and folders: cosyjit's own.

    That is how `cp -rL`, `rsync -L` and a download leave what a directory has shown. Such a folder has exactly the
    files of one that was published there, as far back as the directory and the store know, or that is going to be.

    Args:
        names: those to look at.
        artifacts: what is going to be published, by its names.
    """

    def published(name: str) -> Iterator[Published]:
        if name in artifacts:
            yield artifacts[name]
        for last in (shown(store, directory), publication.head(store, directory)):
            yield from (each.artifacts[name] for each in publication.chain(store, last) if name in each.artifacts)

    there = [name for name in names if _is_real(directory / name)]
    return frozenset(name for name in there if any(_is_copy(store, directory / name, each) for each in published(name)))


def _is_real(path: Path) -> bool:
    """Whether there is something at a path itself, and not a link."""
    return os.path.lexists(path) and not path.is_symlink()


def _is_copy(store: Store, path: Path, artifact: Published) -> bool:
    """Whether a path is no link, and the file of an artifact, or a folder with exactly its files."""
    if not _is_real(path):
        return False
    if artifact.files is None:
        return condition(store, path, artifact.sha256, again=False) == "whole"
    try:
        names = {each.name for each in path.iterdir()}
    except OSError:  # no folder, or one that cannot be read
        return False
    found = (condition(store, path / name, each, again=False) for name, each in artifact.files.items())
    return names == artifact.files.keys() and all(each == "whole" for each in found)


def shown(store: Store, directory: Path) -> Publication | None:
    """The publication that a directory shows, or showed when it was last whole; None if there is none."""
    identity = layout.current(directory)
    if identity is None:
        found = _parsed(directory / layout.MANIFEST)  # in a copy of a directory, whose links have become files
    elif re.fullmatch("[0-9a-f]{64}", identity):
        found = _parsed(layout.document(directory, identity), identity) or publication.load(store, identity)
    else:
        found = None
    return found or publication.head(store, directory)


def _parsed(path: Path, identity: str | None = None) -> Publication | None:
    """The publication in a document; None if it is none, or another one than is looked for."""
    content = files.content(path, _LARGEST)
    if content is None or identity not in (None, sha256(content).hexdigest()):
        return None
    try:
        return publication.parse(content, str(path))
    except LaterSchemaError:
        raise
    except RecordError:
        return None  # a stranger's, who may have named it for its digest


def discard(directory: Path) -> None:
    """Remove what was brought into a directory and is not shown there; if others publish there now, they will."""
    with suppress(BusyError), layout.writing(directory, wait=0):
        layout.clean(directory)


def look(store: Store, directory: Path, *, again: bool = False) -> tuple[Publication, list[Finding]]:
    """What a directory shows, and what became of each name of it: of one publication, whatever comes meanwhile.

    Raises:
        PublicationError: nothing was published there that the directory or the store knows of.
        OutputError: the directory cannot be read.
    """
    try:
        while True:
            published = current(store, directory)
            found = inspect(store, directory, published, again=again)
            if all(each.condition == "whole" for each in found) or current(store, directory) == published:
                return published, found
    except PermissionError as error:
        raise OutputError(
            f"{error.filename}: cannot be read ({error.strerror}); let this user read the whole directory, or run as "
            "one who may"
        ) from None


def _following(
    before: Publication | None, source: str, artifacts: Mapping[str, Published], restores: int | None = None
) -> Publication:
    return Publication(
        number=before.number + 1 if before else 1,
        published=now(),
        source=source,
        artifacts=dict(artifacts),
        previous=before.identity if before else None,
        restores=restores,
    )


def _show(
    store: Store,
    directory: Path,
    after: Publication,
    unrecorded: Collection[Published],
    *,
    link: bool = False,
    replace: bool = False,
) -> None:
    members = {path: digest for name, each in after.artifacts.items() for path, digest in each.members(name).items()}
    before = shown(store, directory)
    dropped = before.artifacts.keys() - after.artifacts.keys() if before else set()
    folders = {name for name, each in after.artifacts.items() if each.files is not None}
    own = copies(store, directory, folders | dropped, after.artifacts)
    layout.check_names(directory, members, replace=replace, own=own)
    digests = set(members.values())
    with ThreadPoolExecutor(processors()) as pool:  # one copies while another waits for the disk
        list(pool.map(lambda digest: _bring(store, directory, digest, link=link), digests))
    _renew(store, after, unrecorded)
    # The store has to know of it before anyone sees it, or its objects could be collected.
    _save(store, after, directory, shown=False)
    layout.show(directory, after.identity, after.content, members, replace=replace, own=own)
    _save(store, after, directory, shown=True)
    if store.read_only:
        _LOG.warning("%s: is read-only, so its history has not this publication; %s itself has", store, directory)


def _save(store: Store, published: Publication, directory: Path, *, shown: bool) -> None:
    """Let a store know of a publication; of a read-only one the directory's own manifest alone does."""
    if not store.read_only:
        publication.save(store, published, directory, shown=shown)


def _renew(store: Store, after: Publication, unrecorded: Collection[Published]) -> None:
    """Keep what a publication names from being collected by another machine before that can see it.

    Args:
        unrecorded: artifacts of which the store may have no record: those from another store never had one here.

    Raises:
        StoreError: something else is missing.
    """

    def renew(artifact: Published) -> None:
        made = record.name_of(artifact.fingerprint)
        missing = [name for name in (*map(object_name, artifact.objects), made) if not store.renew(name)]
        for name in missing:
            if name != made or artifact not in unrecorded:
                raise StoreError(f"{store}/{name}: is missing; export its checkpoint again to build it anew")

    with ThreadPoolExecutor(processors()) as pool:  # one asks while another waits for the answer
        list(pool.map(renew, after.artifacts.values()))


def _bring(store: Store, directory: Path, digest: str, *, link: bool) -> None:
    path = layout.file(directory, digest)
    there = not path.is_symlink() and condition(store, path, digest, again=False) == "whole"
    if there and (link or not store.is_linked(digest, path)):
        return
    files.make_directory(path.parent)
    if path.is_dir() and not path.is_symlink():  # a stranger's, in the place of a file of ours
        files.remove(path)
    if link:
        store.link(digest, path)
        return
    with files.replacing(path) as file:
        store.fetch(digest, file)
        file.flush()
        before = Identity.written(file.fileno())
    store.digests.remember_sha256(path, digest, before, until_restart=True)
