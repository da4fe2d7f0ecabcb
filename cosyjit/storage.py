"""Where a store keeps its files: a directory of this machine, or whatever fsspec has a URL for.

In both a name shows a whole file or none, whenever someone looks and whenever the writer is killed. A local file is
written under another name, brought to the disk and renamed; what fsspec reaches is expected to show a file when it is
complete, as object stores do.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

from cosyjit import files


class Entry(NamedTuple):
    """A file: its name below the root, its bytes, and the time of its last change, in seconds since 1970."""

    name: str
    size: int
    modified: float


class Storage(ABC):
    """Files by their names below a root. All of these raise OSError; what is not there is FileNotFoundError."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a small file."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a small file, or replace it."""

    @abstractmethod
    def add(self, file: Path, name: str) -> None:
        """Take over a local file, which may be gone afterwards, read-only from now on."""

    @abstractmethod
    def open(self, name: str) -> BufferedIOBase:
        """A file, to be read in pieces."""

    @abstractmethod
    def entries(self, folder: str = "") -> Iterator[Entry]:
        """All files below a folder; none if there is no such folder."""

    @abstractmethod
    def move(self, name: str, to: str) -> None:
        """Give a file another name."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


class Local(Storage):
    """In a directory, which is made by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        files.write(self.root / name, content)

    def add(self, file: Path, name: str) -> None:
        path = self.root / name
        files.make_directory(path.parent)
        if file.stat().st_dev == path.parent.stat().st_dev:
            with file.open("rb") as content:
                os.fsync(content.fileno())
            file.chmod(file.stat().st_mode & 0o555)
            file.replace(path)
            files.sync_directory(path.parent)
        else:
            with files.replacing(path, sync=True) as copy:
                files.copy(file, copy)
                os.fchmod(copy.fileno(), os.fstat(copy.fileno()).st_mode & 0o555)

    def open(self, name: str) -> BufferedIOBase:
        return (self.root / name).open("rb")

    def entries(self, folder: str = "") -> Iterator[Entry]:
        for directory, _, names in os.walk(self.root / folder, onerror=_raise, followlinks=True):
            for name in names:
                path = Path(directory, name)
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # removed by someone else meanwhile
                yield Entry(str(path.relative_to(self.root)), stat.st_size, stat.st_mtime)

    def move(self, name: str, to: str) -> None:
        path = self.root / to
        (self.root / name).stat()  # or nothing is made
        files.make_directory(path.parent)
        (self.root / name).replace(path)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)


class Remote(Storage):
    """Behind a URL of fsspec's."""

    def __init__(self, url: str) -> None:
        import fsspec  # a tenth of a second, which local stores do without

        self._system, self._root = fsspec.url_to_fs(url)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        return bytes(self._system.cat_file(self._path(name)))

    def write(self, name: str, content: bytes) -> None:
        self._system.pipe_file(self._path(name), content)

    def add(self, file: Path, name: str) -> None:
        self._system.put_file(str(file), self._path(name))

    def open(self, name: str) -> BufferedIOBase:
        opened: BufferedIOBase = self._system.open(self._path(name), "rb")
        return opened

    def entries(self, folder: str = "") -> Iterator[Entry]:
        self._system.invalidate_cache()
        found = self._system.find(self._path(folder), detail=True)
        for path, info in found.items():
            yield Entry(path.removeprefix(self._path("")), int(info["size"]), _modified(info))

    def move(self, name: str, to: str) -> None:
        self._system.mv(self._path(name), self._path(to))

    def remove(self, name: str) -> None:
        if self._system.exists(self._path(name)):
            self._system.rm_file(self._path(name))


def _modified(info: dict[str, Any]) -> float:
    """When a file was changed, by the names that file systems of fsspec have for it."""
    for name in ("LastModified", "modified", "mtime", "created"):
        if name in info:
            moment = info[name]
            return float(moment.timestamp() if hasattr(moment, "timestamp") else moment)
    raise OSError(f"the file system tells no time of change for {info['name']}")


def storage(root: str) -> Storage:
    """The storage at a path or URL."""
    if "\0" in root:
        raise ValueError("a NUL in its name")
    root = root.removeprefix("file://")
    if "://" in root:
        return Remote(root)
    return Local(Path(root).expanduser().absolute())


def _raise(error: OSError) -> None:
    """What cannot be looked into is not empty; what is not there is."""
    if not isinstance(error, FileNotFoundError):
        raise error
