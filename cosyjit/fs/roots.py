"""Files below a directory that others can write to: reached step by step, and never through a link.

Each step opens a folder by its name in the one before, as openat(2) does. So a link that someone puts in the place of a
folder, even while a process looks, leads nobody out of the directory. A link, a pipe or a device in the place of a file
is not opened.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from cosyjit.fs import files

_DEPTH: Final = 5
"""In how many folders, one in the other, a file is looked for: more than any of cosyjit's own is in."""


class Root:
    """A directory, which the first write makes, and the files below it by relative names with slashes.

    All methods raise OSError with the whole path as its `filename`: FileNotFoundError for what is not there, and
    `files.NotAFileError` for what is not a file, or not a folder.
    """

    def __init__(self, path: Path) -> None:
        """Take a path; nothing is read.

        Args:
            path: absolute. It may be a link, or lead through links: whoever names it decides that.
        """
        self.path = path

    @contextmanager
    def folder(self, name: str = "", *, make: bool = False) -> Iterator[int]:
        """A descriptor of a folder.

        Args:
            make: make it, and the folders that it is in, if they are missing.
        """
        fd = self._folder(name, make=make)
        try:
            yield fd
        finally:
            os.close(fd)

    def _folder(self, name: str, *, make: bool = False) -> int:
        """A descriptor of a folder, which the caller closes."""
        with self._named(name):
            if make:
                files.make_directory(self.path)
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for part in name.split("/") if name else ():
                outside = fd
                try:
                    fd = _step(outside, part, make=make)
                finally:
                    os.close(outside)
        return fd

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Give errors of the block the path of the file that they are about."""
        try:
            yield
        except OSError as error:
            if error.filename is None or not Path(os.fsdecode(error.filename)).is_absolute():
                error.filename = str(self.path / name)
            raise

    @contextmanager
    def _in_folder(self, name: str, *, make: bool = False) -> Iterator[tuple[int, Path]]:
        """A descriptor of the folder that a file is in, and its name there."""
        parent, _, last = name.rpartition("/")
        with self.folder(parent, make=make) as fd, self._named(name):
            yield fd, Path(last)

    def open(self, name: str) -> FileIO:
        """A file, unbuffered."""
        parent, _, last = name.rpartition("/")
        fd = self._folder(parent)
        try:
            with self._named(name):
                return files.plain(last, at=fd)
        except IsADirectoryError:
            raise files.NotAFileError(errno.EISDIR, "a folder in the place of a file", str(self.path / name)) from None
        finally:
            os.close(fd)

    def read(self, name: str, most: int) -> bytes:
        """The content of a file.

        Args:
            name: the file.
            most: the most bytes that it may have.

        Raises:
            NotAFileError: it has more.
        """
        with self.open(name) as file, self._named(name):
            # To allocate `most` bytes would take longer than all the rest.
            content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
            if len(content) > most:
                raise files.NotAFileError(errno.EFBIG, f"more than {most:,} bytes")
            return content

    @contextmanager
    def replacing(self, name: str, *, sync: bool = False) -> Iterator[BinaryIO]:
        """As `files.replacing`, in a folder that is made if it is missing."""
        with self._in_folder(name, make=True) as (fd, last), files.replacing(last, sync=sync, at=fd) as file:
            yield file

    def take(self, file: Path, name: str) -> None:
        """Move a file of the same file system here, and flush its new name to the disk.

        Args:
            file: its path, which nobody else can change.
            name: its name here.

        Raises:
            OSError: with `errno.EXDEV` if the file is on another file system.
        """
        with self._in_folder(name, make=True) as (fd, last):
            os.rename(file, last, dst_dir_fd=fd)
            os.fsync(fd)

    def move(self, name: str, to: str) -> None:
        """Give a file, or whatever is in its place, another name."""
        with self._in_folder(name) as (fd, last):
            os.stat(last, dir_fd=fd, follow_symlinks=False)  # or nothing is made
            with self._in_folder(to, make=True) as (other, then):
                os.rename(last, then, src_dir_fd=fd, dst_dir_fd=other)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there; anything else stays."""
        with suppress(FileNotFoundError), self._in_folder(name) as (fd, last):
            _unlink(fd, last)

    def remove_folder(self, name: str) -> None:
        """Remove a folder with the files and folders in it; anything else in it stays, and so does the folder then."""
        with suppress(FileNotFoundError), self._in_folder(name) as (fd, last):
            _remove_folder(fd, last, _DEPTH)

    def stat(self, name: str) -> os.stat_result:
        """The status of a file; links are not followed."""
        with self._in_folder(name) as (fd, last):
            return os.stat(last, dir_fd=fd, follow_symlinks=False)

    def names(self, name: str) -> list[str]:
        """The names of what is in a folder."""
        with self.folder(name) as fd:
            return os.listdir(fd)  # noqa: PTH208  (a descriptor has no path)

    def walk(self, name: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """All that is below a folder, each folder before its contents, as far down as a file of cosyjit's own can be.

        Files that are removed meanwhile are left out; a folder that is not there has no files.
        """
        with suppress(FileNotFoundError), self.folder(name) as fd, self._named(name):
            yield from _walk(fd, f"{name}/" if name else "", _DEPTH)

    def is_private(self, name: str) -> bool:
        """Whether nobody but this user can change a file or folder, or put another one in its place."""
        with suppress(FileNotFoundError), self._named(name), ExitStack() as opened:
            if not files.is_private(self.path):
                return False
            fd = opened.enter_context(self.folder())
            for part in PurePosixPath(name).parts:
                if not files.is_private(Path(part), at=fd):
                    return False
                if not stat.S_ISDIR(os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode):
                    break
                fd = _step(fd, part, make=False)
                opened.callback(os.close, fd)
        return True


def _step(fd: int, part: str, *, make: bool) -> int:
    """Open a folder in a folder."""
    try:
        return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        if not make:
            raise
    except OSError:
        if stat.S_ISLNK(os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode):
            raise files.NotAFileError(errno.ENOTDIR, "a link in the place of a folder") from None
        raise
    with suppress(FileExistsError):
        os.mkdir(part, files.DIRECTORY, dir_fd=fd)
        os.fsync(fd)
    return _step(fd, part, make=False)


def _unlink(fd: int, name: Path) -> None:
    if stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=fd)


def _remove_folder(fd: int, name: Path, depth: int) -> None:
    inside = _step(fd, str(name), make=False)
    try:
        with os.scandir(inside) as found:
            for each in found:
                if each.is_dir(follow_symlinks=False) and depth:
                    _remove_folder(inside, Path(each.name), depth - 1)
                elif each.is_file(follow_symlinks=False):
                    os.unlink(each.name, dir_fd=inside)
    finally:
        os.close(inside)
    with suppress(OSError):  # something else is in it, which stays
        os.rmdir(name, dir_fd=fd)


def _walk(fd: int, prefix: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(fd) as found:
        for each in found:
            with suppress(FileNotFoundError):
                yield f"{prefix}{each.name}", each.stat(follow_symlinks=False)
                if each.is_dir(follow_symlinks=False) and depth:
                    inside = _step(fd, each.name, make=False)
                    try:
                        yield from _walk(inside, f"{prefix}{each.name}/", depth - 1)
                    finally:
                        os.close(inside)
