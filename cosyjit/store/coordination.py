"""Where a store is, whether it can be reached, and which processes use it."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import UnsupportedOperation
from pathlib import Path
from typing import Final, cast

from cosyjit.errors import BusyError, StoreError, StoreUnavailableError, line
from cosyjit.fs import files, locks
from cosyjit.fs.waits import Wait, holders
from cosyjit.store import leases
from cosyjit.store.backends import Local, Remote, Storage, storage
from cosyjit.store.remote_errors import UnavailableError

PRIVATE_ROOT: Final = f"{files.DEFAULT_ROOT}/cache"
"""This user's private location, beside stores that others can write to."""

STAGING: Final = "cosyjit-"
STAGED: Final = rf"{STAGING}[a-z0-9_]{{8}}"
"""What the names of staging directories begin with, and their form."""

_WORK: Final = "tmp"
"""The folder of the staging directories."""

LOCKS: Final = "gate", "lock"
_ENTRY, _USE = map(Path, LOCKS)
"""The files of two locks. Whoever enters a store holds the entry lock until it has the use lock; whoever uses the store
holds the use lock, shared with others or exclusively."""

_CLOSED, _OPEN = 2.5, 1.0
"""In s, how long a process that waits for exclusive use keeps others out, and how long it lets them in afterwards."""


class Location:
    """A directory of this machine, or a URL with a local location beside it.

    Attributes:
        root: the path or URL, absolute.
        cache: the local location that belongs to a remote one; None for a local one.
        workshop: where files are made that are going to be objects: this location itself if only this user can write
            to it, else a private one.
        wait: how long to wait for other processes at most, in s; None for as long as it takes.
    """

    cache: "Location | None" = None

    def __init__(self, given: str, wait: float | None = None) -> None:
        """Find out what a path or URL is; nothing is read or written.

        Args:
            given: a directory, or an fsspec URL.
            wait: how long to wait for other processes at most, in s; None for as long as it takes.

        Raises:
            StoreError: `given` is not a path, or fsspec has no file system for the URL.
        """
        self.wait = wait
        shown = re.sub("(?<=://).*@", "…@", given)  # what is there may be a password
        try:
            self._storage: Storage = storage(given)
        except ImportError as error:
            raise StoreError(f"{shown}: needs a package that is missing; {line(error)}") from None
        except (RuntimeError, TypeError, ValueError, OSError) as error:
            raise StoreError(f"{shown}: is not a store ({line(error)}); give a directory or an fsspec URL") from None
        self.root = given if self.local is None else str(self.local)
        own = self.local is not None and self.is_private and not self.read_only
        self.workshop = self if own or given == PRIVATE_ROOT else Location(PRIVATE_ROOT, wait)

    def __str__(self) -> str:
        return self.root

    @property
    def local(self) -> Path | None:
        """The directory, if it is one of this machine's."""
        return self._storage.root if isinstance(self._storage, Local) else None

    @property
    def _local(self) -> Local:
        """The storage of a local location."""
        return cast("Local", self._storage)

    @property
    def read_only(self) -> bool:
        """Whether this is a directory that this process can only read. False for a URL, where that is not known."""
        return self.local is not None and os.access(self.local, os.F_OK) and not os.access(self.local, os.W_OK)

    @property
    def is_private(self) -> bool:
        """Whether this is a directory that nobody but this user can write to."""
        return self.local is not None and files.is_private(self.local)

    def try_write(self) -> bool:
        """Try whether files could be written here; nothing is left, and no directory is made.

        Returns:
            Whether that could be tried.

        Raises:
            StoreError: they could not be written.
        """
        with self._reached():
            try:
                self._storage.try_write()
            except UnsupportedOperation:
                return False
        return True

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Translate an OSError of the block into a StoreError."""
        try:
            yield
        except UnavailableError as error:
            raise StoreUnavailableError(f"{self.root}: cannot be reached now ({error}); try again later") from None
        except OSError as error:
            reason = f"{self._where(error.filename)}{error.strerror or line(error)}"
            raise StoreError(
                f"{self.root}: cannot be read or written ({reason}); mend it, or name another store"
            ) from None

    def _where(self, path: object) -> str:
        """The beginning of a message about a file of the store: its name; "" if the error is about the whole store."""
        if self.local is None or not isinstance(path, str | Path) or Path(path) == self.local:
            return ""
        below = Path(path).is_relative_to(self.local)
        return f"{Path(path).relative_to(self.local) if below else path}: "

    def waits(self, check: Callable[[], None] = lambda: None) -> Wait:
        """How to wait for other processes here.

        Args:
            check: is called repeatedly during the wait, and may raise to give up.
        """
        return Wait(self, self.wait, check)

    @contextmanager
    def in_use(self, *, joining: bool = False) -> Iterator[None]:
        """Keep `exclusive` of other processes waiting, so that no file is collected before a document names it.

        A thread must not enter it twice. Of a remote store only the workshop is locked. In a read-only directory
        nothing is written.

        Args:
            joining: set where a parent process already holds the store and waits for this one. Skips the queue behind
                a waiting `exclusive`, since that would be a deadlock of three.

        Raises:
            BusyError: another process had exclusive use for as long as `wait` allows.
            StoreError: the store cannot be written to, or a remote one is not there.
        """
        with ExitStack() as held:
            if self.local is None or self.read_only:
                held.enter_context(self.looked_at())
            else:
                with self._reached(), self._local.below.folder(make=True) as fd, ExitStack() as entering:
                    if not joining:  # a waiting `exclusive` holds the entry lock for a while
                        entering.enter_context(locks.locked(_ENTRY, wait=self.waits(), at=fd))
                        self._clean(fd)
                    held.enter_context(locks.locked(_USE, shared=True, wait=self.waits(), at=fd))
            if self.workshop is not self:
                with optional():
                    held.enter_context(self.workshop.in_use(joining=joining))
            yield

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Keep `exclusive` of other processes waiting while this one reads; shared users do not wait for it.

        Raises:
            BusyError: another process had exclusive use for as long as `wait` allows.
            StoreError: the store is not there.
        """
        with ExitStack() as held, self._reached():
            if self.local is None:
                self._storage.check()
            else:
                with self._local.below.folder() as fd, suppress(FileNotFoundError):  # a read-only one may have no locks
                    held.enter_context(locks.locked(_USE, shared=True, wait=self.waits(), at=fd))
            yield

    def _clean(self, fd: int) -> None:
        """Remove the staging directories of processes that were killed, if no process uses the store.

        Builds that such a process had started may still write there.

        Args:
            fd: a descriptor of the store's directory.
        """
        if self.is_private and locks.is_free(_USE, at=fd):
            below = self._local.below
            with suppress(OSError):
                for name in below.names(_WORK):
                    if re.fullmatch(STAGED, name):
                        below.remove_folder(f"{_WORK}/{name}")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no process uses the store, and keep others out. Does nothing for a remote store.

        While it waits, it keeps others out for some two seconds and then lets them in for one, again and again.
        Otherwise a process that was stopped while it uses the store would keep everyone out.

        Raises:
            BusyError: other processes used the store for as long as `wait` allows.
        """
        with ExitStack() as held:
            if isinstance(self._storage, Local):
                with self._reached(), self._storage.below.folder() as fd:
                    wait = self.waits()
                    while not self._have_left(fd, held, wait):
                        time.sleep(_OPEN)
            yield

    def _have_left(self, fd: int, held: ExitStack, wait: Wait) -> bool:
        """Keep others out for a while, for good if all users leave meanwhile; whether they do."""
        with ExitStack() as entering:
            entering.enter_context(locks.locked(_ENTRY, wait=wait, at=fd))
            lock = entering.enter_context(locks.lock_file(_USE, at=fd))
            until = time.monotonic() + _CLOSED
            wait.poll(lambda: locks.taken(lock) or time.monotonic() > until, lambda: holders([os.fstat(lock).st_ino]))
            if not locks.taken(lock):  # taking a lock that one has already succeeds
                return False
            held.push(entering.pop_all())
            return True

    @contextmanager
    def build_lock(self, key: str, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep others waiting that want to build the same; of a remote store, on other machines as well.

        Two machines can hold it at once if one cannot reach the store for half a minute, or if both find at the same
        moment that a third one has died, see `leases.held`. Then both build, and the store has one object in the end.

        Args:
            key: the key of what is built.
            waiting: is called repeatedly during the wait, and may raise to give up.

        Raises:
            BusyError: others held it for as long as `wait` allows.
        """
        with ExitStack() as held:
            if isinstance(self._storage, Local):
                with self._reached(), self._storage.below.folder("locks", make=True) as fd:
                    # Keys that begin the same share a file, so that there are 256 at most; their builds may wait.
                    held.enter_context(locks.locked(Path(key[:2]), wait=self.waits(waiting), at=fd))
            if self.cache is not None:
                with optional():
                    held.enter_context(self.cache.build_lock(key, waiting=waiting))
            if isinstance(self._storage, Remote):
                with self._reached():
                    held.enter_context(leases.held(self._storage, f"locks/{key}", wait=self.waits(waiting)))
            yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A directory for files that are going to be objects; it is removed at the end of the block."""
        with self._reached():
            directory = Path(tempfile.mkdtemp(dir=self._work(make=True), prefix=STAGING))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def check_room(self, size: int) -> None:
        """Make sure that so many bytes fit where artifacts are built. Nothing is written.

        Raises:
            StoreError: they do not fit, or the store cannot be read.
        """
        with self._reached():
            shortage = files.shortage(self._work(make=False), size)
        if shortage:
            raise StoreError(f"{self}: {shortage}; make room, with `cosyjit gc` perhaps, or name another store")

    def _work(self, *, make: bool) -> Path:
        """The folder of the staging directories: the workshop's, or the system's if that cannot be written to."""
        if self.workshop is self:
            return self._work_below(make=make)
        with suppress(OSError):
            if self.workshop.is_private:
                directory = self.workshop._work_below(make=make)  # noqa: SLF001  (of the same class)
                if os.access(files.nearest_directory(directory), os.W_OK):
                    return directory
        return Path(tempfile.gettempdir())

    def _work_below(self, *, make: bool) -> Path:
        try:
            with self._local.below.folder(_WORK, make=make):
                pass
        except FileNotFoundError:
            if make:
                raise
        return self._local.root / _WORK


@contextmanager
def optional() -> Iterator[None]:
    """Do without a location that cannot be used, such as this user's private one; others are waited for there too."""
    try:
        yield
    except BusyError:
        raise
    except StoreError:
        pass
