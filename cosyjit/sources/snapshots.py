"""Models of the hub on this machine: what was downloaded of which revision.

Below ~/.cache/cosyjit/modelscope stand

    <owner>/<name>[@<revision>]/                     the home of a source: its zips are published here
    <owner>/<name>[@<revision>]/snapshots/<commit>/  its configuration and weights, as far as they were needed
    .files/<sha256>/<name>                           the bytes, once for all snapshots that have them
    .incoming/<sha256>/                              what is being downloaded
    .locks/, .gate, .lock                            who does what

In a snapshot the names are symbolic links into `.files`. With hard links a snapshot that comes or goes would change the
times of files that others have, which is how a file that was changed is told from one that was not: an export under way
would end, and gigabytes would be read again. A file in `.files` is whole and has the digest of its name; what the last
look at it found is remembered as any file's digest is, so that looking again takes no reading.
"""

import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
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
from cosyjit.sources import modelscope
from cosyjit.sources.modelscope import File, Model
from cosyjit.weights.weights_file import SAFETENSORS

_PARTS: Final = [part for family in FAMILIES for part in family.components]
_FILES: Final = dict.fromkeys(name for part in _PARTS for name in (part.weights, *part.configs))
_OTHERS: Final = dict.fromkeys(str(Path(part.weights).with_suffix(SAFETENSORS)) for part in _PARTS)
NAMES: Final = (*CONFIG_FILES, *_FILES, *_OTHERS)
"""The files of a model that matter here."""

DOCUMENT: Final = "snapshot.json"
"""What a snapshot's description is called. It is written last: a snapshot without one was not needed to the end."""

_KEPT: Final = 2
"""How many snapshots of a home stay."""

_DAY: Final = 86_400.0
_STALE: Final = 7 * _DAY
"""The age, in seconds, at which nobody will go on with a download that broke off."""

_LOG: Final = logging.getLogger("cosyjit")


@dataclass(frozen=True)
class Snapshot:
    """A model at a commit: what the hub listed of it, and where this machine has it.

    It can be sent to another machine: its paths are those of the machine, and the user, that it is used by.

    Attributes:
        model: what was asked for.
        revision: the commit that this was.
        endpoint: the hub, without credentials.
        files: those of `NAMES` that the model has.
        download: whether what is missing may be downloaded.
    """

    model: Model
    revision: str
    endpoint: str
    files: tuple[File, ...]
    download: bool = True

    def __str__(self) -> str:
        return f"{self.model.id}@{self.revision}"

    @property
    def home(self) -> Path:
        """The directory that stays where it is from commit to commit."""
        return home(self.model)

    @property
    def directory(self) -> Path:
        """Where the files have the names that they have in the model."""
        return self.home / "snapshots" / quote(self.revision, safe="")

    @property
    def configs(self) -> list[str]:
        """The names of the configurations among the files, in the order of `CONFIG_FILES`."""
        names = {file.name for file in self.files}
        return [name for name in CONFIG_FILES if name in names]

    def file(self, name: str) -> File:
        """
        Raises:
            SourceError: the model has no file of this name.
        """
        for file in self.files:
            if file.name == name:
                return file
        raise SourceError(f"{self}: has no {name}; name a component or a revision that has what it needs")

    def path(self, name: str) -> Path:
        """Where the bytes of a file are, whichever snapshots have it."""
        file = self.file(name)
        return _root() / ".files" / file.sha256 / Path(file.name).name

    def uri(self, name: str) -> str:
        """Where the hub has a file, at its commit."""
        return modelscope.url(self.endpoint, self.model, self.file(name))

    def bring(self, names: Collection[str]) -> None:
        """See to it that files are at hand: those that are not, or are not what they were, are downloaded.

        Of several processes that want a file, one downloads it.

        Raises:
            SourceUnavailableError: the hub cannot be reached, or is busy.
            SourceError: it has not what it listed, or nothing may be downloaded.
            OutputError: there is no room for them, or they cannot be written.
        """
        wanted = [self.file(name) for name in dict.fromkeys(names)]
        with _written(), _in_use():
            missing = [file for file in wanted if not _is_at_hand(self.path(file.name), file)]
            if missing and not self.download:
                raise SourceError(
                    f"{self}: {', '.join(file.name for file in missing)} of this revision is not on this machine yet; "
                    f"export {self.model} to fetch and compare it"
                )
            _check_room(self, missing)
            for file in missing:
                self._fetch(file)
            for file in wanted:
                _link(self.directory / file.name, self.path(file.name))

    def _fetch(self, file: File) -> None:
        path, incoming = self.path(file.name), _incoming(file)
        files.make_directory(_root() / ".locks")
        with locks.locked(_root() / ".locks" / file.sha256):
            if _is_at_hand(path, file):  # another process has fetched it while we waited
                return
            files.make_private(incoming)  # all may write to what the client makes in it, by the umask
            came = modelscope.download(self.model, file, incoming)
            files.make_directory(path.parent)
            came.chmod(0o664 & came.stat().st_mode)
            with came.open("rb") as complete:
                before = Identity.written(complete.fileno())
            came.replace(path)
            # The client does not wait for the disk: after a loss of power the bytes are looked at once more.
            _digests().remember_sha256(path, file.sha256, before, until_restart=True)
            files.remove(incoming)

    def keep(self) -> None:
        """Make this the last of its home, which is used while the hub cannot be reached; older ones are removed."""
        with _written(), locks.locked(_root() / ".gate"):
            known = _known(self.model)
            if known and replace(known[0].snapshot, download=self.download) == self:
                if len(known) <= _KEPT:
                    return
            else:
                self._describe(known[0].number + 1 if known else 1)
        with suppress(OSError):  # there will be another occasion
            _clean(self.model)

    def _describe(self, number: int) -> None:
        document = {
            "schema": documents.SCHEMA,
            "model": self.model.id,
            "revision": self.revision,
            "endpoint": self.endpoint,
            "number": number,
            "resolved": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "files": [file._asdict() for file in self.files],
        }
        files.write(self.directory / DOCUMENT, documents.dump(document))


class _Known(NamedTuple):
    """A snapshot that was kept: which one it was of its home's, and when."""

    number: int
    resolved: str
    snapshot: Snapshot


def resolve(model: Model, *, download: bool = True) -> Snapshot:
    """What a model is now, by one request to the hub; or was, while that cannot be reached.

    Raises:
        SourceUnavailableError: the hub cannot be reached, or is busy, and nothing of this model is at hand.
        SourceError: no such model or revision, or no access to it.
    """
    try:
        found = modelscope.listing(model, NAMES)
    except SourceUnavailableError as error:
        known = next(iter(_known(model)), None)
        if known is None:
            raise SourceUnavailableError(f"{error}, or give a model directory that is there") from None
        log_cause(error)
        problem, _, _ = str(error).partition("; ")
        _LOG.warning("%s; commit %s is used, which it was at %s", problem, known.snapshot.revision, known.resolved)
        return replace(known.snapshot, download=download)
    return Snapshot(model, found.revision, found.endpoint, found.files, download)


def last(model: Model) -> Snapshot:
    """The last commit of a model that was planned or exported here. Nobody is asked, and nothing can be downloaded.

    Raises:
        SourceError: there is none.
    """
    known = _known(model)
    if not known:
        raise SourceError(f"{model}: no commit of it is on this machine; export {model} again")
    return replace(known[0].snapshot, download=False)


def home(model: Model) -> Path:
    """The directory of a model as it is asked for."""
    owner, _, name = model.id.partition("/")
    return _root() / owner / (name if model.revision is None else f"{name}@{quote(model.revision, safe='')}")


def _root() -> Path:
    return files.absolute(Path(files.DEFAULT_ROOT)) / "modelscope"


def _incoming(file: File) -> Path:
    return _root() / ".incoming" / file.sha256


def _digests() -> Digests:
    """Where a store that is where stores are by default remembers them, so that this is known there."""
    return Digests(files.absolute(Path(files.DEFAULT_ROOT)) / "digests")


def _is_at_hand(path: Path, file: File) -> bool:
    try:
        return path.stat().st_size == file.size and _digests().sha256(path) == file.sha256
    except (OSError, FileChangedError):
        return False


def _check_room(snapshot: Snapshot, missing: Collection[File]) -> None:
    size = sum(file.size - min(file.size, modelscope.received(_incoming(file))) for file in missing)
    shortage = files.shortage(_root(), size) if missing else None
    if shortage:
        raise OutputError(f"{snapshot}: {shortage} in {_root()}; make room")


def _link(name: Path, path: Path) -> None:
    """Let a name in a snapshot lead to a file, whatever it was; by a path that holds wherever all of it is mounted."""
    files.make_directory(name.parent)
    files.replace_symlink(os.path.relpath(path, name.parent), name)


def _known(model: Model) -> list[_Known]:
    """The snapshots of a home that were kept, the last first."""
    found = [_read(model, path) for path in (home(model) / "snapshots").glob(f"*/{DOCUMENT}")]
    return sorted((each for each in found if each), key=lambda each: (-each.number, each.snapshot.revision))


def _read(model: Model, path: Path) -> _Known | None:
    """What a description says; None if it is damaged, or a later version's."""
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
        raise ValueError(f"{name!r} is no file of a model")
    return File(name, _count(entry["size"]), documents.digest(entry["sha256"], 64), _revision(entry["revision"]))


def _revision(value: object) -> str:
    if not modelscope.is_revision(value):
        raise ValueError(f"{value!r} is no revision")
    return str(value)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise ValueError(f"{value!r} is no number of things")
    return value


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{_root()}: cannot be written to ({reason}); mend it, or make room") from None


@contextmanager
def _in_use() -> Iterator[None]:
    """Keep `_clean` from removing what is being brought."""
    files.make_directory(_root())
    with ExitStack() as held:
        with locks.locked(_root() / ".gate"):
            held.enter_context(locks.locked(_root() / ".lock", shared=True))
        yield


def _clean(model: Model) -> None:
    """Remove the snapshots of a home but the last ones, and files that no snapshot has; not while anyone brings any."""
    with locks.locked(_root() / ".gate"):
        if not locks.is_free(_root() / ".lock"):
            return
        kept = _known(model)
        going = [each.snapshot.directory for each in kept[_KEPT:]]
        unfinished = [path for path in (home(model) / "snapshots").iterdir() if not (path / DOCUMENT).exists()]
        dropped = {link for directory in going for link in _links(directory)}
        for directory in [*going, *(path for path in unfinished if _age(path) > _DAY)]:
            files.remove(directory)
        used = {link for directory in _root().glob("[!.]*/*/snapshots/*") for link in _links(directory)}
        for path in (_root() / ".files").glob("*/*"):
            if path.parts[-2:] not in used and (path.parts[-2:] in dropped or _age(path) > _DAY):
                files.remove(path.parent)
        for path in (_root() / ".incoming").glob("*"):
            if _age(path) > _STALE:
                files.remove(path)
        for path in (_root() / ".locks").glob("*"):
            files.remove(path)


def _links(directory: Path) -> list[tuple[str, ...]]:
    """Digests and names of the files that a snapshot leads to."""
    return [path.readlink().parts[-2:] for path in directory.rglob("*") if path.is_symlink()]


def _age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime
