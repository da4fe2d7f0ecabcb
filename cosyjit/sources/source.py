"""Finds the source of a checkpoint: a model directory, or a model of a hub at a revision."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cosyjit.configuration import yaml_nodes
from cosyjit.errors import SourceError
from cosyjit.families import CONFIG_FILES, Component
from cosyjit.fs import files
from cosyjit.sources import addresses, ids, snapshots
from cosyjit.sources.snapshots import Snapshot
from cosyjit.text import without_password
from cosyjit.weights.weights_file import SAFETENSORS

_HINT: Final = f"give a model directory, with one of {', '.join(CONFIG_FILES)} in it, or {ids.EXAMPLES}"


@dataclass(frozen=True)
class Source:
    """A model directory, which may be filled from the hub.

    It can be sent to another machine. A source of the hub is then the same commit, in that machine's own directory.

    Attributes:
        directory: the absolute path of the directory with the weights files.
        config: the path of the configuration in it.
        snapshot: the model of the hub at its commit; None for a directory of the user's own.
    """

    directory: Path
    config: Path
    snapshot: Snapshot | None = None

    def __reduce__(self) -> tuple[object, ...]:
        if self.snapshot is not None:
            return _source_of, (self.snapshot,)
        return Source, (self.directory, self.config)

    @property
    def name(self) -> str:
        """The name that stays from revision to revision: the directory, or the id as the user gave it."""
        return str(self.directory if self.snapshot is None else self.snapshot.model)

    @property
    def pinned(self) -> str:
        """The name of exactly this revision: the directory, or the id with the commit."""
        return str(self.directory if self.snapshot is None else self.snapshot)

    @property
    def home(self) -> Path:
        """The directory that its zips are published in by default."""
        return self.directory if self.snapshot is None else self.snapshot.home

    def file(self, name: str) -> Path:
        """The path of a file's bytes. It stays from commit to commit for a file that does not change."""
        return self.directory / name if self.snapshot is None else self.snapshot.path(name)

    def weights(self, name: str) -> str:
        """The name of a weights file in this source: that of the same file as safetensors, if only that exists."""
        other = str(Path(name).with_suffix(SAFETENSORS))
        return other if self._has(other) and not self._has(name) else name

    def files(self, component: Component) -> tuple[str, ...]:
        """The names of the files that a component is made from, but for the configuration.

        Of sets of which it needs one, the first that is complete; if none is, the last.
        """
        complete = (names for names in component.either if all(map(self._has, names)))
        last = component.either[-1] if component.either else ()
        return (self.weights(component.weights), *component.configs, *next(complete, last))

    def _has(self, name: str) -> bool:
        if self.snapshot is not None:
            return name in {file.name for file in self.snapshot.files}
        return os.path.lexists(self.directory / name)

    def uri(self, name: str) -> str:
        """The URI that a file came from."""
        return (self.directory / name).as_uri() if self.snapshot is None else self.snapshot.uri(name)

    def obtain(self, names: Collection[str]) -> None:
        """Download the configuration and the named files, unless they are on this machine.

        Raises:
            SourceUnavailableError: the hub cannot be reached, or is busy.
            SourceError: the hub lacks a file, or sends other bytes than it lists.
            OutputError: there is no room for them, or they cannot be written.
        """
        if self.snapshot is not None:
            self.snapshot.fetch([self.config.name, *names])
            if self.snapshot.download:
                self.snapshot.mark_latest()


def open_source(source: str | Path) -> Source:
    """Find the configuration of a model directory, or download it from the hub; `obtain` downloads the weights.

    A directory that exists is never read as an id. If several configurations have the same bytes, the one whose name
    comes first in `CONFIG_FILES` is used.

    Raises:
        SourceUnavailableError: the hub cannot be reached, or is busy, and no commit of the model is on this machine.
        SourceError: there is no such directory or model, no configuration in it, or several that differ.
        OutputError: a download cannot be written.
    """
    path = _path(source)
    if path.is_dir():
        return _directory_source(path, source)
    if path.exists():
        raise SourceError(f"{source}: is a file; {_directory_hint(path)}")
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():  # such as to a disk that is not mounted
            raise SourceError(f"{source}: {link} is a link that leads nowhere; restore what it leads to")
    if addresses.is_address(str(source)):
        raise SourceError(f"{without_password(str(source))}: is an address; {_address_hint(str(source))}")
    missing = "does not exist" if str(source) == str(path) else f"the directory {path} does not exist"
    model = ids.parse(str(source))
    if model is None:
        ids.check_scheme(str(source))
        raise SourceError(f"{source}: {missing}; {_HINT}")
    try:
        snapshot = snapshots.resolve(model)
    except SourceError as error:
        if model.scheme:  # so that no directory is meant
            raise
        reason = str(error).removeprefix(f"{model}: ")
        raise type(error)(f"{source}: {missing}; as a {ids.hub_of(model).TITLE} id: {reason}") from None
    return _from_hub(snapshot)


def _directory_hint(path: Path) -> str:
    """What to give in place of a file: its directory, if that has a model."""
    has_model = any((path.parent / name).is_file() for name in CONFIG_FILES)
    return f"give the model directory that it is in, {path.parent}" if has_model else _HINT


def _address_hint(source: str) -> str:
    """What to give in place of an address of the web."""
    named = addresses.source_at(source)
    return _HINT if named is None else f"give {named}"


def reopen(name: str, *, ask: bool) -> Source:
    """The source with a `Source.name`, whatever the current directory is. Nothing is downloaded.

    Args:
        name: the absolute path of a directory, or an id.
        ask: whether to ask the hub for the current commit; otherwise it is the last one that was planned or exported
            here.

    Raises:
        SourceError, OutputError: as `open_source`.
    """
    model = ids.parse(name)
    if model is None:
        return open_source(name)
    return _from_hub(snapshots.resolve(model, download=False) if ask else snapshots.last(model))


def _directory_source(directory: Path, source: str | Path) -> Source:
    try:
        present = [name for name in CONFIG_FILES if _is_there(directory / name)]
        configs = [name for name in present if (directory / name).is_file()]
    except OSError as error:
        raise SourceError(f"{source}: cannot be read ({error.strerror}); make it readable") from None
    if present and not configs:
        path = directory / present[0]
        kind = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "not a file"
        raise SourceError(f"{path}: is {kind}; put the configuration there")
    contents = {files.content(directory / name, yaml_nodes.LARGEST) for name in configs}
    alike = len(contents) == 1 and None not in contents
    return Source(directory, directory / _only(configs, source, "in this directory", alike=alike))


def _is_there(path: Path) -> bool:
    """Whether a path exists, even as a broken link; unlike `os.path.lexists`, it raises where it may not look."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _from_hub(snapshot: Snapshot) -> Source:
    alike = len({snapshot.file(name).digest for name in snapshot.configs}) == 1
    name = _only(snapshot.configs, snapshot, "among its files", alike=alike)
    snapshot.fetch([name])
    return _source_of(snapshot)


def _source_of(snapshot: Snapshot) -> Source:
    directory = snapshot.directory
    return Source(directory, directory / snapshot.configs[0], snapshot)


def _only(configs: list[str], source: object, where: str, *, alike: bool) -> str:
    """The name of the one configuration; of several with the same bytes, the first."""
    if not configs:
        raise SourceError(f"{source}: no configuration {where}; it needs one of {', '.join(CONFIG_FILES)}")
    if len(configs) > 1 and not alike:
        raise SourceError(
            f"{source}: {' and '.join(configs)} stand side by side and differ; keep the one that the weights belong to"
        )
    return configs[0]


def _path(source: str | Path) -> Path:
    """The path of a model directory with this name.

    Raises:
        SourceError: it is not a path.
    """
    try:
        path = Path(source).expanduser().absolute()
        path.exists()  # raises where it cannot be looked up
    except PermissionError as error:
        raise SourceError(f"{source}: cannot be looked up ({error.strerror}); make it readable") from None
    except (OSError, RuntimeError, ValueError) as error:  # the name is too long, has an unknown user or a NUL
        raise SourceError(f"{source}: is not a path ({error}); {_HINT}") from None
    return path
