"""Keeps the downloaded revisions of models of hubs on this machine.

Below ~/.cache/cosyjit/modelscope, and below ~/.cache/cosyjit/huggingface, are

    <owner>/<name>[@<revision>]/                     the home of a source: its zips are published here
    <owner>/<name>[@<revision>]/snapshots/<commit>/  its configuration and weights, as far as they were needed
    .files/<digest>/<name>                           the bytes, once for all snapshots that have them
    .incoming/<digest>/                              downloads in progress
    .locks/, .gate, .lock                            lock files: of each file, of the queue, of all

In a snapshot the names are symbolic links into `.files`. Hard links would not do: a new or removed snapshot would
change the times of files that others have, and these times show whether a file was changed. An export in progress would
fail, and gigabytes would be read again. A file in `.files` is whole and has the digest of its name. Its SHA-256 is
cached like that of any file, so that checking it again does not read it. Where the hub lists Git's ids, as of small
files, these are the digests, and such a file is read each time.

What the hub's own client has in its cache is not downloaded: in `.files` is a hard link to it then, so that it stays if
the client's cache is emptied; where none can be made, as between two disks, a symbolic link.
"""

import itertools
import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from cosyjit import documents
from cosyjit.errors import FileChangedError, OutputError, RecordError, SourceError, SourceUnavailableError, log_cause
from cosyjit.families import CONFIG_FILES, FAMILIES
from cosyjit.fs import files, locks
from cosyjit.fs.digests import Digests
from cosyjit.fs.identity import Identity
from cosyjit.processes.interrupts import note_changes
from cosyjit.sources import hub
from cosyjit.sources.hub import File, Listing, Model
from cosyjit.sources.ids import hub_of
from cosyjit.weights.weights_file import SAFETENSORS

_PARTS: Final = [part for family in FAMILIES for part in family.components]
_FILES: Final = dict.fromkeys(
    name for part in _PARTS for name in (part.weights, *part.configs, *itertools.chain(*part.either))
)
_OTHERS: Final = dict.fromkeys(str(Path(part.weights).with_suffix(SAFETENSORS)) for part in _PARTS)
NAMES: Final = (*CONFIG_FILES, *_FILES, *_OTHERS)
"""The files of a model that cosyjit uses."""

DOCUMENT: Final = "snapshot.json"
"""The name of a snapshot's description. It is written last, so a snapshot without one is unfinished."""

_RETAINED: Final = 2
"""How many snapshots of a model are retained."""

_DAY: Final = 86_400.0
_STALE: Final = 7 * _DAY
"""The age, in seconds, at which an interrupted download is given up."""

_LOG: Final = logging.getLogger("cosyjit")


@dataclass(frozen=True)
class Snapshot:
    """A model at a commit: the files that the hub listed, and their paths on this machine.

    It can be sent to another machine, where its paths are those of that machine and user.

    Attributes:
        model: the model as the user named it.
        revision: the commit.
        endpoint: the URL of the hub, without credentials.
        files: those of `NAMES` that the model has.
        download: whether missing files may be downloaded.
    """

    model: Model
    revision: str
    endpoint: str
    files: tuple[File, ...]
    download: bool = True

    def __str__(self) -> str:
        return self.model.at(self.revision)

    @property
    def home(self) -> Path:
        """The directory of the model, which stays from commit to commit."""
        return home(self.model)

    @property
    def directory(self) -> Path:
        """The directory in which the files have their names."""
        return self.home / "snapshots" / quote(self.revision, safe="")

    @property
    def configs(self) -> list[str]:
        """The names of the configurations among the files, in the order of `CONFIG_FILES`."""
        names = {file.name for file in self.files}
        return [name for name in CONFIG_FILES if name in names]

    def file(self, name: str) -> File:
        """The file with a name.

        Raises:
            SourceError: the model has no such file.
        """
        for file in self.files:
            if file.name == name:
                return file
        raise SourceError(f"{self}: has no {name}; name a component or a revision that has what it needs")

    def path(self, name: str) -> Path:
        """The path of a file's bytes, which all snapshots share that have it."""
        file = self.file(name)
        return _root(self.model) / ".files" / file.digest / Path(file.name).name

    def uri(self, name: str) -> str:
        """The URL of a file at its commit."""
        return hub_of(self.model).url(self.endpoint, self.model, self.file(name))

    def fetch(self, names: Collection[str]) -> None:
        """Download files that are not on this machine, or were changed here.

        If several processes want a file, one of them downloads it.

        Raises:
            SourceUnavailableError: the hub cannot be reached, or is busy.
            SourceError: the hub no longer has what it listed, or nothing may be downloaded.
            OutputError: there is no room for the files, or they cannot be written.
        """
        wanted = [self.file(name) for name in dict.fromkeys(names)]
        with _write_errors(self.model), _in_use(self.model):
            missing = [file for file in wanted if not self._has(file)]
            if missing and not self.download:
                raise SourceError(
                    f"{self}: {', '.join(file.name for file in missing)} of this revision is not on this machine yet; "
                    f"export {self.model} to fetch and compare it"
                )
            _check_room(self, missing)
            for file in missing:
                self._download(file)
            for file in wanted:
                _link(self.directory / file.name, self.path(file.name))

    def _has(self, file: File) -> bool:
        """Whether a file is on this machine: here, or in the cache of the hub's client, from where it is linked."""
        path = self.path(file.name)
        if _is_present(path, file):
            return True
        copy = hub_of(self.model).local_copy(self.model, file)
        if copy is None:
            return False
        files.make_directory(path.parent)
        with self._locked(file):
            if not _is_present(path, file):
                _adopt(copy, path)
        return _is_present(path, file)

    def _locked(self, file: File) -> AbstractContextManager[object]:
        files.make_directory(_root(self.model) / ".locks")
        return locks.locked(_root(self.model) / ".locks" / file.digest)

    def _download(self, file: File) -> None:
        path, incoming = self.path(file.name), _incoming(self.model, file)
        with self._locked(file):
            if _is_present(path, file):  # another process fetched it while this one waited
                return
            files.make_private(incoming)  # private, since the client creates files with the permissions of the umask
            note_changes("what was downloaded is kept; run it again, and it goes on")
            downloaded = hub_of(self.model).download(self.model, file, incoming)
            files.make_directory(path.parent)
            downloaded.chmod(0o664 & downloaded.stat().st_mode)
            with downloaded.open("rb") as complete:
                before = Identity.written(complete.fileno())
            downloaded.replace(path)
            if file.sha256:
                # The client does not flush to disk, so the bytes are checked again after a restart.
                _digests().remember_sha256(path, file.sha256, before, until_restart=True)
            files.remove(incoming)

    def mark_latest(self) -> None:
        """Record this snapshot as the latest of its model, for use without the hub, and remove old ones."""
        with _write_errors(self.model), locks.locked(_root(self.model) / ".gate"):
            known = _known(self.model)
            if known and replace(known[0].snapshot, download=self.download) == self:
                if len(known) <= _RETAINED:
                    return
            else:
                self._describe(known[0].number + 1 if known else 1)
        with suppress(OSError):  # the next call tries again
            _clean(self.model)

    def _describe(self, number: int) -> None:
        document = {
            "schema": documents.SCHEMA,
            "model": self.model.id,
            "revision": self.revision,
            "endpoint": self.endpoint,
            "number": number,
            "resolved": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "files": [{key: value for key, value in file._asdict().items() if value != ""} for file in self.files],
        }
        files.write(self.directory / DOCUMENT, documents.dump(document))


class _Known(NamedTuple):
    """A snapshot that was recorded: its number among those of its model, and its time."""

    number: int
    resolved: str
    snapshot: Snapshot


def resolve(model: Model, *, download: bool = True) -> Snapshot:
    """The current snapshot of a model, by one request to the hub; without the hub, the latest one on this machine.

    Raises:
        SourceUnavailableError: the hub cannot be reached, or is busy, and no commit of this model is on this machine.
        SourceError: no such model or revision, or no access to it.
    """
    try:
        listing = hub_of(model).listing(model, NAMES)
    except SourceUnavailableError as error:
        known = next(iter(_known(model)), None)
        snapshot = known.snapshot if known else _local(model)
        if snapshot is None:
            raise SourceUnavailableError(f"{error}, or give a model directory that is there") from None
        log_cause(error)
        problem, _, _ = str(error).partition("; ")
        where = f"which was current at {known.resolved}" if known else f"which {hub_of(model).TITLE}'s client has"
        _LOG.warning("%s; commit %s is used, %s", problem, snapshot.revision, where)
        return replace(snapshot, download=download and known is not None)
    return _snapshot(model, listing, download=download)


def last(model: Model) -> Snapshot:
    """The last commit of a model that was planned or exported here. No request is made, and none will be.

    Raises:
        SourceError: there is none.
    """
    known = _known(model)
    snapshot = known[0].snapshot if known else _local(model)
    if snapshot is None:
        raise SourceError(f"{model}: no commit of it is on this machine; export {model} again")
    return replace(snapshot, download=False)


def _snapshot(model: Model, listing: Listing, *, download: bool) -> Snapshot:
    return Snapshot(model, listing.revision, listing.endpoint, listing.files, download)


def _local(model: Model) -> Snapshot | None:
    """What the hub's client has of a model in its cache. It may lack files, so it is not recorded."""
    listing = hub_of(model).local_listing(model, NAMES)
    return None if listing is None else _snapshot(model, listing, download=False)


def home(model: Model) -> Path:
    """The directory of a model as the user named it."""
    owner, _, name = model.id.partition("/")
    return _root(model) / owner / (name if model.revision is None else f"{name}@{quote(model.revision, safe='')}")


def _root(model: Model) -> Path:
    """The directory of all models of a model's hub."""
    return files.absolute(Path(files.DEFAULT_ROOT)) / hub_of(model).FOLDER


def _incoming(model: Model, file: File) -> Path:
    return _root(model) / ".incoming" / file.digest


def _digests() -> Digests:
    """The cache of digests of the default store, so that an export finds them."""
    return Digests(files.absolute(Path(files.DEFAULT_ROOT)) / "digests")


def _is_present(path: Path, file: File) -> bool:
    try:
        if path.stat().st_size != file.size:
            return False
        return _digests().sha256(path) == file.sha256 if file.sha256 else file.is_at(path)
    except (OSError, FileChangedError):
        return False


def _check_room(snapshot: Snapshot, missing: Collection[File]) -> None:
    size = sum(file.size - min(file.size, hub.received(_incoming(snapshot.model, file))) for file in missing)
    root = _root(snapshot.model)
    shortage = files.shortage(root, size) if missing else None
    if shortage:
        raise OutputError(f"{snapshot}: {shortage} in {root}; make room")


def _adopt(copy: Path, path: Path) -> None:
    """Let a path be a file in the cache of a hub's client."""
    try:
        files.replace_link(path, lambda temporary: temporary.hardlink_to(copy))
    except OSError:  # on another disk, or someone else's
        files.replace_symlink(str(copy), path)


def _link(name: Path, path: Path) -> None:
    """Make a name in a snapshot a link to a file. The path is relative, so that the root may be mounted elsewhere."""
    files.make_directory(name.parent)
    files.replace_symlink(os.path.relpath(path, name.parent), name)


def _known(model: Model) -> list[_Known]:
    """The snapshots of a model that were recorded, the latest first."""
    snapshots = [_read(model, path) for path in (home(model) / "snapshots").glob(f"*/{DOCUMENT}")]
    return sorted((known for known in snapshots if known), key=lambda known: (-known.number, known.snapshot.revision))


def _read(model: Model, path: Path) -> _Known | None:
    """The snapshot of a description; None if that is damaged, or a later version wrote it."""
    try:
        document = documents.read(path.read_bytes(), str(path))
        snapshot = Snapshot(
            model,
            _revision(document["revision"]),
            documents.text(document["endpoint"], "[!-~]+"),
            tuple(_file(entry) for entry in document["files"]),
        )
        if document["model"] != model.id or snapshot.directory != path.parent:
            return None
        return _Known(_count(document["number"]), documents.text(document["resolved"], "[0-9T:+-]{1,40}"), snapshot)
    except (OSError, RecordError, LookupError, TypeError, ValueError):
        return None


def _file(entry: dict[str, Any]) -> File:
    name = documents.text(entry["name"])
    if name not in NAMES:
        raise ValueError(f"{name!r} is not a file of a model")
    size, revision = _count(entry["size"]), _revision(entry["revision"])
    if "git_sha1" in entry:
        return File(name, size, "", revision, documents.digest(entry["git_sha1"], 40))
    return File(name, size, documents.digest(entry["sha256"], 64), revision)


def _revision(value: object) -> str:
    if not hub.is_revision(value):
        raise ValueError(f"{value!r} is not a revision")
    return value


def _count(value: object) -> int:
    if not hub.is_size(value):
        raise ValueError(f"{value!r} is not a count")
    return value


@contextmanager
def _write_errors(model: Model) -> Iterator[None]:
    """Translate errors of the block into OutputError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{_root(model)}: cannot be written to ({reason}); mend it, or make room") from None


@contextmanager
def _in_use(model: Model) -> Iterator[None]:
    """Keep `_clean` from removing what the block downloads."""
    root = _root(model)
    files.make_directory(root)
    with ExitStack() as held:
        with locks.locked(root / ".gate"):
            held.enter_context(locks.locked(root / ".lock", shared=True))
        yield


def _clean(model: Model) -> None:
    """Remove all but the latest snapshots of a model, and unused files, unless another process is downloading."""
    root = _root(model)
    with locks.locked(root / ".gate"):
        if not locks.is_free(root / ".lock"):
            return
        outdated = [known.snapshot.directory for known in _known(model)[_RETAINED:]]
        unfinished = [path for path in (home(model) / "snapshots").iterdir() if not (path / DOCUMENT).exists()]
        dropped = {link for directory in outdated for link in _links(directory)}
        for directory in [*outdated, *(path for path in unfinished if _age(path) > _DAY)]:
            files.remove(directory)
        used = {link for directory in root.glob("[!.]*/*/snapshots/*") for link in _links(directory)}
        for path in (root / ".files").glob("*/*"):
            if path.parts[-2:] not in used and (path.parts[-2:] in dropped or _age(path) > _DAY):
                files.remove(path.parent)
        for path in (root / ".incoming").glob("*"):
            if _age(path) > _STALE:
                files.remove(path)
        for path in (root / ".locks").glob("*"):
            files.remove(path)


def _links(directory: Path) -> list[tuple[str, ...]]:
    """The digests and names of the files that a snapshot links to."""
    return [path.readlink().parts[-2:] for path in directory.rglob("*") if path.is_symlink()]


def _age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime
