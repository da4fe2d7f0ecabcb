"""What a model directory shows: a set of artifacts under the names that the runtime reads, with those before it.

The files are copies of the store's objects, by reference where the file system can, because other exporters write such
names in place. What is damaged here is copied again from the store.
"""

import errno
import os
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from cosyjit import files, publication, record, sets
from cosyjit.digests import processors
from cosyjit.errors import (
    LaterSchemaError,
    OutputError,
    PublicationError,
    RecordError,
    StoreError,
)
from cosyjit.findings import Finding, condition, inspect
from cosyjit.identity import Identity
from cosyjit.publication import Publication, Published
from cosyjit.record import check_signed, now
from cosyjit.store import Store, object_name

_LARGEST: Final = 1 << 20
"""In bytes, what a manifest may take that stands in a directory, and so may be anyone's."""


@contextmanager
def opened(
    directory: Path,
    size: int = 0,
    names: Collection[str] = (),
    *,
    replace: bool = False,
    ways: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Make sure that a directory can be published into, before the work; what was brought is removed if that fails.

    Args:
        directory: made if missing.
        size, names, replace, ways: see `obstacles`.

    Raises:
        OutputError: it cannot be made or written to, has too little room, or something else in the place of a name.
    """
    for error in obstacles(directory, size, names, replace=replace, ways=ways):
        raise error
    with sets.writing(directory, shared=True):
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
    ways: Mapping[str, str] | None = None,
) -> Iterator[OutputError]:
    """The errors that publishing into a directory would end with, as far as that can be told without writing.

    What only a write can tell, such as that the file system is read-only, is not among them.

    Args:
        directory: need not be there.
        size: how many bytes will be copied into it.
        names: what will be shown, folders with a slash at the end.
        replace: see `publish`.
        ways: by the names of folders, what else can be done where something stands in their way.
    """
    above = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    try:
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{above.name} is not a directory")
        yield from sets.obstacles(directory, names, ways or {}, replace=replace)
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
    with sets.writing(directory, shared=True):
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

    If it shows them already, no new publication is made, and what is damaged is mended.

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
    with sets.writing(directory):
        wanted = shown(store, directory)
        others = _others(directory, wanted)
        merged = {**others, **artifacts}
        _check_signed(store, merged)
        if wanted is None or (wanted.artifacts, wanted.source) != (merged, source):
            wanted = _following(wanted, source, merged)
        elif _is_well(store, directory, wanted, link=link):
            if publication.head(store, directory) != wanted:  # it may be a copy of another directory
                _renew(store, wanted, others)
                publication.save(store, wanted, directory, shown=True)
            sets.clean(directory)
            return wanted
        _show(store, directory, wanted, others, link=link, replace=replace)
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
    with store.in_use(), sets.writing(directory):
        known = history(store, directory)
        last = known[0]
        wanted = number if number is not None else (last.restores or last.number) - 1
        found = next((each for each in known if each.number == wanted), None)
        if found is None:
            raise PublicationError(
                f"{directory}: there is no publication {wanted} to go back to; "
                f"kept are {known[-1].number} to {last.number}"
            )
        _check_signed(store, found.artifacts)
        after = _following(last, found.source, found.artifacts, found.restores or found.number)
        _show(store, directory, after, last.artifacts)
    return after


def check_others(store: Store, directory: Path, names: Collection[str]) -> None:
    """Make sure, before the work, that what else a directory shows has the signatures that a store requires.

    Args:
        names: those that are going to be shown anew.

    Raises:
        SignatureError: one has none.
    """
    if store.trusted is not None:
        others = _others(directory, shown(store, directory))
        _check_signed(store, {name: each for name, each in others.items() if name not in names})


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


def history(store: Store, directory: Path) -> list[Publication]:
    """The publications of a directory as far back as the store has them, the one that it shows first.

    Raises:
        PublicationError: nothing was published there that the directory or the store knows of.
        StoreError: there is no store.
    """
    last = current(store, directory)
    store.check_there()
    return list(publication.chain(store, last))


def _is_well(store: Store, directory: Path, wanted: Publication, *, link: bool) -> bool:
    """Whether a publication is shown, whole, and not by links into the store unless these are asked for."""
    objects = [digest for each in wanted.artifacts.values() for digest in each.objects]
    linked = any(store.is_linked(digest, sets.file(directory, digest)) for digest in objects)
    whole = all(found.condition == "whole" for found in inspect(store, directory, wanted))
    return whole and (link or not linked)


def _others(directory: Path, shown: Publication | None) -> dict[str, Published]:
    """What was published in a directory and is to be shown further.

    What someone has taken away, or with it the whole directory, is not wanted back; nor is a folder that he has put
    another in place of.
    """

    def is_wanted(path: Path, artifact: Published) -> bool:
        return os.path.lexists(path) if artifact.files is None else sets.is_ours(path)

    artifacts = shown.artifacts if shown else {}
    return {name: each for name, each in artifacts.items() if is_wanted(directory / name, each)}


def shown(store: Store, directory: Path) -> Publication | None:
    """The publication that a directory shows, or showed when it was last whole; None if there is none."""
    identity = sets.current(directory)
    if identity is not None and re.fullmatch("[0-9a-f]{64}", identity):
        found = _document(directory, identity) or publication.load(store, identity)
        if found is not None:
            return found
    return publication.head(store, directory)


def _document(directory: Path, identity: str) -> Publication | None:
    """The publication in a set's document; None if it is not what the set's name says."""
    path = sets.document(directory, identity)
    content = files.content(path, _LARGEST)
    if content is None or sha256(content).hexdigest() != identity:
        return None
    try:
        return publication.parse(content, str(path))
    except LaterSchemaError:
        raise
    except RecordError:
        return None  # a stranger's, who has named it for its digest


def discard(directory: Path) -> None:
    """Remove what was brought into a directory and is not shown there."""
    with sets.writing(directory):
        sets.clean(directory)


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
    before: Mapping[str, Published],
    *,
    link: bool = False,
    replace: bool = False,
) -> None:
    members = {path: digest for name, each in after.artifacts.items() for path, digest in each.members(name).items()}
    sets.check_names(directory, members, replace=replace)
    digests = set(members.values())
    with ThreadPoolExecutor(processors()) as pool:  # one copies while another waits for the disk
        list(pool.map(lambda digest: _bring(store, directory, digest, link=link), digests))
    _renew(store, after, before)
    # The store has to know of it before anyone sees it, or its objects could be collected.
    publication.save(store, after, directory, shown=False)
    sets.show(directory, after.identity, after.content, members, replace=replace)
    publication.save(store, after, directory, shown=True)


def _renew(store: Store, after: Publication, before: Mapping[str, Published]) -> None:
    """Keep what a publication names from being collected by another machine before that can see it.

    Args:
        before: what is shown already, and goes on being shown even if the store has lost it.

    Raises:
        StoreError: something else is missing.
    """

    def renew(artifact: Published) -> None:
        for name in (*map(object_name, artifact.objects), record.name_of(artifact.fingerprint)):
            if not store.renew(name) and artifact not in before.values():
                raise StoreError(f"{store}/{name}: is missing; export its checkpoint again to build it anew")

    with ThreadPoolExecutor(processors()) as pool:  # one asks while another waits for the answer
        list(pool.map(renew, after.artifacts.values()))


def _bring(store: Store, directory: Path, digest: str, *, link: bool) -> None:
    path = sets.file(directory, digest)
    there = not path.is_symlink() and condition(store, path, digest, again=False) == "whole"
    if there and (link or not store.is_linked(digest, path)):
        return
    files.make_directory(path.parent)
    if link:
        store.link(digest, path)
        return
    with files.replacing(path) as file:
        store.fetch(digest, file)
        file.flush()
        before = Identity.written(file.fileno())
    store.digests.remember_sha256(path, digest, before, until_restart=True)
