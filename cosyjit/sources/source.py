"""Where a checkpoint comes from: a model directory, or a model of ModelScope at a revision."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cosyjit.configuration import yaml_nodes
from cosyjit.errors import SourceError
from cosyjit.families import CONFIG_FILES
from cosyjit.fs import files
from cosyjit.sources import modelscope, snapshots
from cosyjit.sources.snapshots import Snapshot
from cosyjit.weights.weights_file import SAFETENSORS

_WAYS: Final = (
    f"give a model directory, with one of {', '.join(CONFIG_FILES)} in it, "
    "or a ModelScope id such as iic/CosyVoice-300M"
)


@dataclass(frozen=True)
class Source:
    """A model directory, which may be one that is filled from the hub.

    Sent to another machine, one of the hub is the same commit there, in the directory of that machine and user.

    Attributes:
        directory: where the weights files are, absolute.
        config: the configuration in it.
        snapshot: what it is of the hub; None for a directory of the user's own.
    """

    directory: Path
    config: Path
    snapshot: Snapshot | None = None

    def __reduce__(self) -> tuple[object, ...]:
        if self.snapshot is not None:
            return _of, (self.snapshot,)
        return Source, (self.directory, self.config)

    @property
    def name(self) -> str:
        """What it is called from one revision to the next: the directory, or the id as it was asked for."""
        return str(self.directory if self.snapshot is None else self.snapshot.model)

    @property
    def pinned(self) -> str:
        """What it is called for good: the directory, or the id at the commit that it was."""
        return str(self.directory if self.snapshot is None else self.snapshot)

    @property
    def home(self) -> Path:
        """Where its zips are published unless it is said where."""
        return self.directory if self.snapshot is None else self.snapshot.home

    def file(self, name: str) -> Path:
        """Where the bytes of a file are: those that do not change from one commit to the next stay where they are."""
        return self.directory / name if self.snapshot is None else self.snapshot.path(name)

    def weights(self, name: str) -> str:
        """The name of a weights file here: that of the same file as safetensors, where it has no other."""
        other = str(Path(name).with_suffix(SAFETENSORS))
        if self.snapshot is not None:
            names = {file.name for file in self.snapshot.files}
            return other if other in names and name not in names else name
        is_other = not os.path.lexists(self.directory / name) and os.path.lexists(self.directory / other)
        return other if is_other else name

    def uri(self, name: str) -> str:
        """Where a file came from."""
        return (self.directory / name).as_uri() if self.snapshot is None else self.snapshot.uri(name)

    def obtain(self, names: Collection[str]) -> None:
        """See to it that the configuration and the files of these names are at hand.

        Raises:
            SourceUnavailableError: the hub cannot be reached, or is busy.
            SourceError: it has not what is asked for, or other bytes than it says.
            OutputError: there is no room for them, or they cannot be written.
        """
        if self.snapshot is not None:
            self.snapshot.bring([self.config.name, *names])
            if self.snapshot.download:
                self.snapshot.keep()


def open_source(source: str | Path) -> Source:
    """Find the configuration of a model directory, or get it from the hub; `obtain` gets the weights.

    A directory that exists is never taken for an id. Of configurations with the same bytes under several names it is
    the one whose name comes first in `CONFIG_FILES`.

    Raises:
        SourceUnavailableError: the hub cannot be reached, or is busy, and nothing of the model is at hand.
        SourceError: no such directory or model, no configuration in it, or different ones side by side.
        OutputError: what comes from the hub cannot be written.
    """
    path = _path(source)
    if path.is_dir():
        return _in(path, source)
    if path.exists():
        raise SourceError(f"{source}: is a file; {_WAYS}")
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():  # such as to a disk that is not mounted
            raise SourceError(f"{source}: {link} is a link that leads nowhere; restore what it leads to")
    missing = "does not exist" if str(source) == str(path) else f"the directory {path} does not exist"
    model = modelscope.parse(str(source))
    if model is None:
        raise SourceError(f"{source}: {missing}; {_WAYS}")
    try:
        snapshot = snapshots.resolve(model)
    except SourceError as error:
        said = str(error).removeprefix(f"{model}: ")
        raise type(error)(f"{source}: {missing}; as a ModelScope id: {said}") from None
    return _from_hub(snapshot)


def reopen(name: str, *, ask: bool) -> Source:
    """The source that a `Source.name` is of, wherever the caller stands: a directory's is absolute, others are ids.

    Nothing is downloaded.

    Args:
        ask: whether the hub is asked what a model is now; else it is the last commit that was planned or exported here.

    Raises:
        SourceError, OutputError: see `open_source`.
    """
    model = modelscope.parse(name)
    if model is None:
        return open_source(name)
    return _from_hub(snapshots.resolve(model, download=False) if ask else snapshots.last(model))


def _in(directory: Path, source: str | Path) -> Source:
    try:
        there = [name for name in CONFIG_FILES if _is_there(directory / name)]
        found = [name for name in there if (directory / name).is_file()]
    except OSError as error:
        raise SourceError(f"{source}: cannot be read ({error.strerror}); make it readable") from None
    if there and not found:
        path = directory / there[0]
        kind = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "not a file"
        raise SourceError(f"{path}: is {kind}; put the configuration there")
    contents = {files.content(directory / name, yaml_nodes.LARGEST) for name in found}
    alike = len(contents) == 1 and None not in contents
    return Source(directory, directory / _only(found, source, "in this directory", alike=alike))


def _is_there(path: Path) -> bool:
    """Whether there is something, or a link that leads nowhere; `os.path.lexists` says no where it may not look."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _from_hub(snapshot: Snapshot) -> Source:
    alike = len({snapshot.file(name).sha256 for name in snapshot.configs}) == 1
    name = _only(snapshot.configs, snapshot, "among its files", alike=alike)
    snapshot.bring([name])
    return _of(snapshot)


def _of(snapshot: Snapshot) -> Source:
    directory = snapshot.directory
    return Source(directory, directory / snapshot.configs[0], snapshot)


def _only(found: list[str], source: object, where: str, *, alike: bool) -> str:
    """The name of the one configuration that there is: of several with the same bytes, the first."""
    if not found:
        raise SourceError(f"{source}: no configuration {where}; it needs one of {', '.join(CONFIG_FILES)}")
    if len(found) > 1 and not alike:
        raise SourceError(
            f"{source}: {' and '.join(found)} stand side by side and differ; keep the one that the weights belong to"
        )
    return found[0]


def _path(source: str | Path) -> Path:
    """Where a model directory of this name would be.

    Raises:
        SourceError: it is not a path.
    """
    try:
        path = Path(source).expanduser().absolute()
        path.exists()  # which tells of what cannot be looked up
    except PermissionError as error:
        raise SourceError(f"{source}: cannot be looked up ({error.strerror}); make it readable") from None
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a user that there is not, a NUL
        raise SourceError(f"{source}: is not a path ({error}); {_WAYS}") from None
    return path
