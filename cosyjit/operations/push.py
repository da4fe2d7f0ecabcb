"""Push what a directory shows to a repository of a model hub, with its manifest and the records of its artifacts.

The manifest of a push also says which files of the repository are cosyjit's: those that it lists, and the records of
their fingerprints. All others there are other people's, and stay as they are.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from cosyjit.errors import (
    LaterSchemaError,
    OutputError,
    PublicationError,
    RecordError,
    RepositoryChangedError,
    SelectionError,
)
from cosyjit.hubs.hugging_face import HuggingFace
from cosyjit.hubs.modelscope import ModelScope
from cosyjit.hubs.repository import Contents, File, Held, Repository
from cosyjit.processes.interrupts import note_changes
from cosyjit.provenance import beside
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.layout import MANIFEST
from cosyjit.publishing.publication import Publication, Published
from cosyjit.sources import hugging_face, ids, modelscope
from cosyjit.store.store import Store
from cosyjit.text import listed, one_line, plain

_LARGEST: Final = 1 << 20
"""In bytes, what a manifest may take that stands in a repository, and so may be anyone's."""

_LONGEST: Final = 200
"""The most characters of a source in the message of a commit."""

_ATTEMPTS: Final = 3
"""How often a push begins anew if others push to the same branch."""


_REPOSITORIES: Final[Mapping[str, type[Repository]]] = {
    hugging_face.SCHEME: HuggingFace,
    modelscope.SCHEME: ModelScope,
}
"""By what the ids of their hubs begin with."""


@dataclass(frozen=True)
class Pushed:
    """What a push came to.

    Attributes:
        publication: the one that the directory shows.
        repository: the id and the branch that it was pushed to.
        endpoint: the URL of the hub, without credentials.
        commit: the commit of the branch that has all of it.
        uploaded: the files that were not there, or were others, with their sizes in bytes.
        present: the names of those that were there already.
        removed: the names of those that belonged to what was pushed there before.
    """

    publication: Publication
    repository: str
    endpoint: str
    commit: str
    uploaded: Mapping[str, int]
    present: tuple[str, ...]
    removed: tuple[str, ...]


def push(directory: str | Path, to: str, *, store: Store | None = None, replace: bool = False) -> Pushed:
    """Push what a directory shows, its manifest, and the records of its artifacts to a repository of a hub.

    Only what is not there yet is uploaded, and all of it becomes visible by one commit. If all of it is there, that
    takes one request. If the push is cut, nothing is visible, and the next one uploads only the files that are missing.
    What was pushed there before and is not shown any more is removed by the same commit.

    The repository and the branch have to exist: whether others may see them is for their owner to say.

    Args:
        directory: where it is published.
        to: an id with an optional branch: "owner/name" or "owner/name@branch" of ModelScope, "hf:owner/name" of Hugging
            Face.
        store: the one that has the records; that of this user for None. Without one there, the records that stand
            beside the files are pushed.
        replace: whether files of others are replaced that have the names of published files, and removed where they
            are in the way. Otherwise they are an error.

    Raises:
        SourceError: the repository is not there, access is refused, or the id is not one.
        SourceUnavailableError: the hub cannot be reached, or is busy, or others push to the branch at the same time.
        PublicationError: nothing is published in the directory, or not all of it is as it was published, or an artifact
            has no record.
        SignatureError: an artifact does not have the signature that the store requires.
        FileChangedError: a file is changed while it is uploaded.
        OutputError: files of others are in the way. As after any error, the branch is as it was.
    """
    repository = _repository(to)
    published = PublishedDirectory(directory, store)
    live = _intact(published)
    wanted = {file.name: file for file in _files(published, live)}
    for attempt in range(1, _ATTEMPTS + 1):
        found = repository.contents()
        changes = _changes(repository, found, wanted, replace=replace)
        try:
            commit = _commit(repository, changes, live, found)
        except RepositoryChangedError:
            if attempt == _ATTEMPTS:
                raise
        else:
            break
    return Pushed(
        publication=live,
        repository=str(repository),
        endpoint=repository.endpoint,
        commit=commit,
        uploaded={file.name: file.size for file in changes.added},
        present=tuple(file.name for file in wanted.values() if file not in changes.added),
        removed=changes.removed,
    )


def _repository(to: str) -> Repository:
    """The repository of an id.

    Raises:
        SelectionError: it is not an id with a branch.
    """
    model = ids.parse(to)
    if model is None:
        raise SelectionError(
            f"--to {to}: is not an id of a model; give one such as owner/name, owner/name@branch or hf:owner/name"
        )
    if re.fullmatch("[0-9a-f]{40}", model.revision or ""):
        raise SelectionError(f"--to {to}: names a commit; name a branch, to which a commit can be added")
    return _REPOSITORIES[model.scheme](model)


def _intact(directory: PublishedDirectory) -> Publication:
    """The live publication, after a check that the directory shows it as it was published."""
    live, checked = directory.check()
    for each in checked:
        if each.condition != "intact":
            raise PublicationError(
                f"{directory.path / each.name}: is {each.condition}, so nothing is pushed; export again to mend it, "
                "or go back to an earlier set with cosyjit rollback"
            )
    return live


def _files(directory: PublishedDirectory, live: Publication) -> Iterator[File]:
    """The files of a push; the manifest comes last."""
    for name, artifact in live.artifacts.items():
        for member, digest in artifact.members(name).items():
            yield _file(directory, member, digest)
        yield _document(beside.name_of(artifact.fingerprint), _record(directory, name, artifact))
    yield _document(MANIFEST, live.content)


def _file(directory: PublishedDirectory, member: str, digest: str) -> File:
    path = Path(os.path.realpath(directory.path / member))  # which stays if another set is published meanwhile
    try:
        return File(member, path.stat().st_size, digest, path)
    except OSError as error:
        raise PublicationError(
            f"{directory.path / member}: was changed while it was read ({error.strerror}); run again"
        ) from None


def _document(name: str, content: bytes) -> File:
    return File(name, len(content), sha256(content).hexdigest(), content)


def _record(directory: PublishedDirectory, name: str, artifact: Published) -> bytes:
    """The content of an artifact's record, as it is kept: with its signature."""
    content = beside.find(directory.store, directory.path, name, artifact.sha256, artifact.size, artifact.fingerprint)
    if content is None:
        raise PublicationError(
            f"{directory.path / name}: has no record in {directory.store}; name the store that it was exported with, "
            "or export it again"
        )
    return content


class _Changes(NamedTuple):
    """What a commit does: the files that it adds or replaces, and the names of those that it removes."""

    added: tuple[File, ...]
    removed: tuple[str, ...]


def _changes(repository: Repository, found: Contents, wanted: Mapping[str, File], *, replace: bool) -> _Changes:
    """What has to change in a repository that holds `found`, so that it shows `wanted`."""
    added = tuple(
        file for name, file in wanted.items() if name not in found.files or not found.files[name].is_same(file)
    )
    own = _own(repository, found, wanted, replace=replace)
    others = [name for name in found.files if name not in own and _is_in_the_way(name, wanted, added)]
    if others and not replace:
        raise OutputError(
            f"{repository}: {listed(others)} there is not what cosyjit pushed; remove it, push to another branch, or "
            "give --replace"
        )
    return _Changes(added, tuple(name for name in found.files if name in {*own, *others} and name not in wanted))


def _is_in_the_way(name: str, wanted: Mapping[str, File], added: Collection[File]) -> bool:
    """Whether a file that is not cosyjit's would be replaced, or stands where a published folder or file shall be."""
    if name in wanted:
        return wanted[name] in added
    first, _, rest = name.partition("/")
    if first == beside.FOLDER and rest:  # nobody reads a record that no manifest names
        return False
    return first in {each.partition("/")[0] for each in wanted}


def _own(repository: Repository, found: Contents, wanted: Mapping[str, File], *, replace: bool) -> set[str]:
    """The names of the files in a repository that are cosyjit's.

    Raises:
        OutputError: its manifest is not cosyjit's, and not to be replaced.
        LaterSchemaError: a later version wrote its manifest.
    """
    held = found.files.get(MANIFEST)
    if held is None:
        return set()
    if held.is_same(wanted[MANIFEST]):
        return set(wanted)
    pushed = _manifest(repository, held, found.commit)
    if pushed is None and not replace:
        raise OutputError(
            f"{repository}: {MANIFEST} there is not cosyjit's; remove it, push to another branch, or give --replace"
        )
    return {MANIFEST, *(_names(pushed) if pushed else ())}


def _manifest(repository: Repository, held: Held, commit: str) -> Publication | None:
    """The publication that a repository shows; None if its manifest is not cosyjit's."""
    if held.size is None or held.size > _LARGEST or not (held.sha256 or held.git_sha1):
        return None
    try:
        return publication.parse(repository.read(MANIFEST, held, commit), f"{repository}: {MANIFEST}")
    except LaterSchemaError:
        raise
    except RecordError:
        return None


def _names(published: Publication) -> Iterator[str]:
    """The names of the files of a publication in a repository, without the manifest."""
    for name, artifact in published.artifacts.items():
        yield from artifact.members(name)
        yield beside.name_of(artifact.fingerprint)


def _commit(repository: Repository, changes: _Changes, live: Publication, found: Contents) -> str:
    if not any(changes):
        return found.commit
    note_changes("the hub shows all of the publication or nothing of it; push again, and it goes on")
    message = f"cosyjit: publication {live.number} ({live.identity}) from {one_line(plain(live.source), _LONGEST)}"
    return repository.commit(changes.added, changes.removed, message, found)
