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
    """Hold the lock that a file stands for, alone or with others that share it; a process that is killed frees it.

    Args:
        wait: how others are waited for; as long as it takes for None.
        at: a descriptor of the directory that the path is relative to.

    Raises:
        BusyError: they were waited for as long as that says.
        OSError: something else stands there, or who only may read wants to be alone.
    """
    wait = wait or Wait(path)
    with lock_file(path, shared=shared, at=at) as fd:
        wait.poll(lambda: taken(fd, shared=shared), lambda: holders([os.fstat(fd).st_ino]))
        yield


def is_free(path: Path, *, at: int | None = None) -> bool:
    """Whether nobody holds a lock."""
    with lock_file(path, at=at) as fd:
        return taken(fd)


@contextmanager
def lock_file(path: Path, *, shared: bool = False, at: int | None = None) -> Iterator[int]:
    """A descriptor of a file that stands for a lock, for `taken`; the arguments are those of `locked`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | files.UNBLOCKED | os.O_NOFOLLOW, files.FILE, dir_fd=at)
    except OSError as error:
        if not shared or error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        fd = os.open(path, os.O_RDONLY | files.UNBLOCKED | os.O_NOFOLLOW, dir_fd=at)
    try:
        files.check_plain(os.fstat(fd).st_mode, path)
        if os.fstat(fd).st_nlink > 1:  # whoever holds one lock would wait for himself at the other
            raise files.NoFileError(errno.EINVAL, "a file with several names in the place of a lock", str(path))
        yield fd
    finally:
        os.close(fd)


def taken(fd: int, *, shared: bool = False) -> bool:
    """Take a lock if nobody is in the way, until its file is closed."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
