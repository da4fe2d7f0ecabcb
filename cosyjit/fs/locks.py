"""Locks between the processes of a machine, each a file; the system frees those of a process that was killed."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosyjit.fs import files
from cosyjit.fs.waits import Wait, holders


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: Wait | None = None, at: int | None = None) -> Iterator[None]:
    """Hold the lock of a file, exclusively or shared with others; a process that is killed frees it.

    Args:
        path: the file, which is made if it is missing.
        shared: whether others may hold it at the same time, shared as well.
        wait: how to wait for others; None for as long as it takes.
        at: a descriptor of the directory that the path is relative to.

    Raises:
        BusyError: others held it for as long as `wait` allows.
        OSError: it is not a file, or this user can only read it and wants it exclusively.
    """
    wait = wait or Wait(path)
    with lock_file(path, shared=shared, at=at) as fd:
        wait.poll(lambda: taken(fd, shared=shared), lambda: holders([os.fstat(fd).st_ino]))
        yield


def is_free(path: Path, *, at: int | None = None) -> bool:
    """Whether nobody holds the lock of a file."""
    with lock_file(path, at=at) as fd:
        return taken(fd)


@contextmanager
def lock_file(path: Path, *, shared: bool = False, at: int | None = None) -> Iterator[int]:
    """An open descriptor of a lock's file, for `taken`; the arguments are those of `locked`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | files.UNBLOCKED | os.O_NOFOLLOW, files.FILE, dir_fd=at)
    except OSError as error:
        if not shared or error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        fd = os.open(path, os.O_RDONLY | files.UNBLOCKED | os.O_NOFOLLOW, dir_fd=at)
    try:
        files.check_plain(os.fstat(fd).st_mode, path)
        if os.fstat(fd).st_nlink > 1:  # a holder of one lock would wait for itself at the other
            raise files.NotAFileError(errno.EINVAL, "a file with several names in the place of a lock", str(path))
        yield fd
    finally:
        os.close(fd)


def taken(fd: int, *, shared: bool = False) -> bool:
    """Take a lock, until its descriptor is closed, if nobody is in the way; whether it was taken."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
