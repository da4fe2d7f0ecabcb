"""The names that the runtime reads: a set of files put into a model directory, whole or not at all."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cosyjit.errors import OutputError

_STAGING: Final = ".cosyjit-"


@contextmanager
def staging(directory: Path, size: int = 0) -> Iterator[Path]:
    """A new directory inside `directory`, on the same file system, for what is going to be published there.

    It is locked while in use and removed at the end. What an export that was killed left behind is not locked, and is
    removed here.

    Args:
        directory: made if missing, and removed again if it stays empty.
        size: how many bytes will be written there.

    Raises:
        OutputError: the directory cannot be made or written to, or has too little room.
    """
    made: list[Path] = []
    try:
        _make(directory, made)
        with _locked(directory):
            for left in directory.glob(f"{_STAGING}*"):
                _remove_unlocked(left)
            path = Path(tempfile.mkdtemp(prefix=_STAGING, dir=directory))
            lock = os.open(path, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        _remove_empty(made)
        raise OutputError(_unwritable(directory, error)) from None
    try:
        if (free := shutil.disk_usage(path).free) < size:
            message = f"{directory}: {size / 1e6:,.0f} MB are to be written and {free / 1e6:,.0f} MB are free"
            raise OutputError(f"{message}; make room, or publish into another directory")
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        _remove_empty(made)


def publish(files: Mapping[str, Path], directory: Path) -> list[Path]:
    """Move a set of files from a `staging` of this directory to their names in it.

    Each name changes from the file before to the new one in one step. Where one of them cannot be moved, all that were
    are put back. Of several publications into one directory, each waits for the one before.

    Args:
        files: names to files.
        directory: where the names are to stand.

    Returns:
        The published paths, in the order of `files`.

    Raises:
        OutputError: a name cannot be written; the directory is as it was.
    """
    try:
        with _locked(directory):
            return _replace_all(files, directory)
    except OSError as error:
        raise OutputError(_unwritable(directory, error)) from None


def _replace_all(files: Mapping[str, Path], directory: Path) -> list[Path]:
    before: dict[Path, Path | None] = {}
    try:
        for name, file in files.items():
            path = directory / name
            before[path] = _keep(path, file.with_suffix(".before"))
            file.replace(path)
        _sync(directory)
    except BaseException:
        for path, kept in before.items():
            _restore(path, kept)
        raise
    return list(before)


def _keep(path: Path, copy: Path) -> Path | None:
    """A second name, or where there are no links a copy, of what stands at a path; None if nothing does."""
    if not os.path.lexists(path):
        return None
    try:
        os.link(path, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, copy, follow_symlinks=False)
    return copy


def _restore(path: Path, kept: Path | None) -> None:
    if kept is not None:
        kept.replace(path)
    else:
        path.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Make renames in a directory last through a loss of power."""
    with _opened(directory) as fd:
        os.fsync(fd)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with _opened(directory) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def _make(directory: Path, made: list[Path]) -> None:
    """Make a directory and its parents; those that were not there go into `made`, innermost first."""
    for path in (*reversed(directory.parents), directory):
        if not path.exists():
            path.mkdir(exist_ok=True)
            made.insert(0, path)


def _remove_empty(directories: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for path in directories:
            path.rmdir()


def _remove_unlocked(directory: Path) -> None:
    """Remove a staging directory that no export is at work in; leave what cannot be locked or removed."""
    with contextlib.suppress(OSError), _opened(directory) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)


def _unwritable(directory: Path, error: OSError) -> str:
    return f"{directory}: cannot be written to ({error.strerror}); publish into another directory"
