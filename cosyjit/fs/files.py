"""Files on a local disk: replaced whole, copied without passing through memory, opened without waiting."""

import errno
import grp
import itertools
import os
import pwd
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final

from cosyjit.errors import InputError

_BUFFER: Final = 1 << 20
_UNSUPPORTED: Final = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}
"""The errors of systems that cannot copy between two files by themselves."""

DEFAULT_ROOT: Final = "~/.cache/cosyjit"
"""Where files are kept for a user, unless told otherwise."""

UNBLOCKED: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""The flags for opening what may not be a file: a pipe would wait for its other end otherwise."""

TEMPORARY: Final = ".tmp"
"""The end of the names of files that are being written."""

FILE: Final = 0o664
DIRECTORY: Final = 0o775
"""The modes of new files and directories, before the umask: nobody but owner and group may ever write."""


@contextmanager
def replacing(path: Path, *, sync: bool = False, at: int | None = None) -> Iterator[BinaryIO]:
    """A file that takes this path once the block ends, and leaves nothing behind if the block fails.

    Args:
        path: whose directory exists.
        sync: flush the file and its name to the disk, so that they outlast a loss of power.
        at: a descriptor of the directory, if the path is a name in it.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")
    made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, made, FILE, dir_fd=at), "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path, src_dir_fd=at, dst_dir_fd=at)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=at)
    if sync and at is not None:
        os.fsync(at)
    elif sync:
        sync_directory(path.parent)


@contextmanager
def unnamed(directory: Path) -> Iterator[FileIO]:
    """A file in a directory without a name there: nothing is left of it, even where the process is killed.

    Raises:
        OSError: it cannot be made; EOPNOTSUPP where the file system does not have such files.
    """
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except IsADirectoryError:  # what a kernel says that does not know of them
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(directory)) from None
    with FileIO(fd, "r+") as file:
        yield file


def replace_link(path: Path, make: Callable[[Path], None]) -> None:
    """Put a link at a path in one step, in place of a file or link that is there; a link that fails leaves nothing.

    Args:
        path: whose directory exists.
        make: makes the link at the path that it is given, which is another one in the same directory.

    Raises:
        OSError: the link cannot be made, or a directory is at the path.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")
    try:
        make(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # it is still there, too, if both are names of one file: see rename(2)


def replace_symlink(target: str, path: Path) -> None:
    """Make a path a symbolic link to a target in one step, see `replace_link`; a link that leads there stays."""
    if not path.is_symlink() or str(path.readlink()) != target:
        replace_link(path, lambda temporary: temporary.symlink_to(target))


def absolute(path: Path) -> Path:
    """A path from the root on, `~` and `~name` replaced by the home directories of users.

    Raises:
        InputError: there is no such user, or no file system can have such a name.
    """
    try:
        found = path.expanduser().absolute()
        if b"\0" in os.fsencode(found):
            raise ValueError("a NUL in its name")  # noqa: TRY301
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: is not a path ({error}); name a directory") from None
    return found


def write(path: Path, content: bytes) -> None:
    """Write a file whole, flushed to the disk, in a directory that is made if it is missing."""
    make_directory(path.parent)
    with replacing(path, sync=True) as file:
        file.write(content)


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, and flush their names to the disk; all of them or none."""
    missing = list(itertools.takewhile(lambda path: not path.is_dir(), (directory, *directory.parents)))
    made: list[Path] = []
    try:
        for path in reversed(missing):
            path.mkdir(DIRECTORY, exist_ok=True)
            made.append(path)
            sync_directory(path.parent)
    except OSError:
        with suppress(OSError):  # someone has put something there
            for path in reversed(made):
                path.rmdir()
        raise


def make_private(directory: Path) -> None:
    """Make a directory for this user alone, below one that everyone knows.

    Raises:
        OSError: it cannot be made, or what is there is not this user's own.
    """
    make_directory(directory.parent)
    with suppress(FileExistsError):
        directory.mkdir(0o700)
    check_private(directory)


def check_private(directory: Path) -> None:
    """Make sure that a directory is this user's own.

    Raises:
        OSError: it is not there, another user's, a link, or one that all may write to.
    """
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
        raise PermissionError(errno.EPERM, "is not this user's own", str(directory))


def is_private(file: Path | int, *, at: int | None = None) -> bool:
    """Whether nobody but this user can write to a file or directory; True if there is none, since he would make it.

    Args:
        file: a path, or a descriptor.
        at: a descriptor of the directory that the path is relative to; the path itself must not be a link then.
    """
    try:
        found = os.stat(file, dir_fd=at, follow_symlinks=at is None)
    except OSError:
        return True
    others = stat.S_IWOTH if _is_only_member(found.st_gid) else stat.S_IWGRP | stat.S_IWOTH
    return found.st_uid == os.geteuid() and not found.st_mode & others


def _is_only_member(group: int) -> bool:
    """Whether this user is a group's only member, as where each user has a group of the same name."""
    try:
        user, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user and {*found.gr_mem} <= {user}


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory to the disk, so that they outlast a loss of power."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def copy(source: Path, file: BinaryIO) -> None:
    """Append a file's content to another file: by reference where the file system can (reflink), else by copying."""
    with source.open("rb", buffering=0) as original:
        append(original, file)


def append(original: FileIO, file: BinaryIO) -> None:
    """As `copy`, for an open file from its beginning."""
    file.flush()
    left = os.fstat(original.fileno()).st_size
    try:
        while left and (copied := os.copy_file_range(original.fileno(), file.fileno(), left)):
            left -= copied
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    if left:  # the system cannot, or not to the end
        original.seek(-left, os.SEEK_END)
        shutil.copyfileobj(original, file, _BUFFER)


def fill(file: int, buffer: memoryview, at: int) -> bool:
    """Fill a buffer with an open file's bytes from a position on; False if the file ends before."""
    while buffer and (size := os.preadv(file, [buffer], at)):
        buffer, at = buffer[size:], at + size
    return not buffer


class NotAFileError(OSError):
    """A link, a pipe, a device or a socket in the place of a file; reading it may take for ever."""


def check_plain(mode: int, path: Path | str) -> None:
    """Make sure that a mode is that of a file.

    Raises:
        IsADirectoryError: it is that of a directory.
        NotAFileError: it is that of a link, a pipe, a device or a socket.
    """
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a link in the place of a file" if stat.S_ISLNK(mode) else "a pipe or a device"
        raise NotAFileError(errno.EINVAL, kind, str(path))


def plain(path: Path | str, *, at: int | None = None) -> FileIO:
    """Open a file, unbuffered. Nothing else is opened, such as a pipe, whose reader would wait for a writer.

    Args:
        path: the file.
        at: a descriptor of the directory that the path is relative to; the file itself must not be a link then.

    Raises:
        NotAFileError: it is not a file.
        OSError: it cannot be read.
    """
    check_plain(os.stat(path, dir_fd=at, follow_symlinks=at is None).st_mode, path)  # to open a device may change it
    fd = os.open(path, os.O_RDONLY | UNBLOCKED | (0 if at is None else os.O_NOFOLLOW), dir_fd=at)
    try:
        check_plain(os.fstat(fd).st_mode, path)
        return FileIO(fd)
    except BaseException:
        os.close(fd)
        raise


def beginning(path: Path, most: int) -> bytes:
    """The beginning of a file that may be a stranger's: all of it, if it has at most `most` bytes.

    Returns:
        One byte more than `most` if the file has more.

    Raises:
        NotAFileError: it is not a file, and was not opened.
        OSError: it cannot be read.
    """
    with plain(path) as file:
        found: bytes | None = file.read(most + 1)
        if found is None:  # a file of the kernel's, which has nothing to read yet
            raise NotAFileError(errno.EAGAIN, "a file that lets its readers wait", str(path))
        return found


def content(path: Path, most: int) -> bytes | None:
    """The content of a small file that may be a stranger's; None if it is larger, not a file, or cannot be read."""
    with suppress(OSError):
        found = beginning(path, most)
        return found if len(found) <= most else None
    return None


def remove(path: Path) -> None:
    """Remove a file, a link or a whole directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except RecursionError:
            raise OSError(errno.ENAMETOOLONG, "Directories in too many directories", str(path)) from None
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def nearest_directory(path: Path) -> Path:
    """A directory, or the nearest one above it that is there."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def shortage(directory: Path, size: int) -> str | None:
    """In words, that so many bytes do not fit into a directory, which need not be there; None if they do."""
    disk = shutil.disk_usage(nearest_directory(directory))
    if size <= disk.free or not disk.total:  # a file system without a disk has no size; writing to it will tell
        return None
    return f"{size / 1e6:,.0f} MB are to be written and {disk.free / 1e6:,.0f} MB are free"
