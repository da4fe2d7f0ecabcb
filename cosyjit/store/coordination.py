"""Where a store is, whether it can be reached, and who is at work in it."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, cast

from cosyjit.errors import BusyError, StoreError, StoreUnavailableError, line
from cosyjit.fs import files, locks
from cosyjit.fs.waits import Wait, holders
from cosyjit.store import leases
from cosyjit.store.backends import Local, Remote, Storage, storage
from cosyjit.store.remote_errors import UnavailableError

OWN: Final = f"{files.DEFAULT_ROOT}/cache"
"""This user's own place beside stores that others write to."""

STAGING: Final = "cosyjit-"
STAGED: Final = rf"{STAGING}[a-z0-9_]{{8}}"
"""What the names of directories for work in hand begin with, and their form."""

_WORK: Final = "tmp"
"""The folder that those are in."""

_GATE, _LOCK = Path("gate"), Path("lock")
"""The files of locks: whoever comes in passes the gate; whoever is in shares the lock, or has it for himself alone."""

_CLOSED, _OPEN = 2.5, 1.0
"""In s, how long the gate is closed by someone who waits to be alone, and left open in between."""


class Place:
    """A directory of this machine, or a URL with a local place of the same kind beside it.

    Attributes:
        root: the path or URL, absolute.
        cache: the local place that belongs to a remote one; None for a local one.
        workshop: where files are made that are going to be objects: this place itself, if nobody but this user can
            change anything in it; else one of his own.
        wait: how long others are waited for at most, in s; None for as long as it takes.
    """

    cache: "Place | None" = None

    def __init__(self, given: str, wait: float | None = None) -> None:
        """
        Args:
            given: a directory, or an fsspec URL.
            wait: how long others are waited for at most, in s; None for as long as it takes.

        Raises:
            StoreError: it is no path, or a URL that fsspec has no file system for.
        """
        self.wait = wait
        shown = re.sub("(?<=://).*@", "…@", given)  # what stands there may be a password
        try:
            self._storage: Storage = storage(given)
        except ImportError as error:
            raise StoreError(f"{shown}: needs a package that is missing; {line(error)}") from None
        except (RuntimeError, TypeError, ValueError, OSError) as error:
            raise StoreError(f"{shown}: is no store ({line(error)}); give a directory or an fsspec URL") from None
        self.root = given if self.local is None else str(self.local)
        own = self.local is not None and self.is_exclusive and not self.read_only
        self.workshop = self if own or given == OWN else Place(OWN, wait)

    def __str__(self) -> str:
        return self.root

    @property
    def local(self) -> Path | None:
        """The directory, if it is one of this machine's."""
        return self._storage.root if isinstance(self._storage, Local) else None

    @property
    def _local(self) -> Local:
        """The storage of a local place."""
        return cast("Local", self._storage)

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written here, and all of it is only looked at. Of a remote one that is not known."""
        return self.local is not None and os.access(self.local, os.F_OK) and not os.access(self.local, os.W_OK)

    @property
    def is_exclusive(self) -> bool:
        """Whether this is a directory that nobody but this user can write to."""
        return self.local is not None and files.is_exclusive(self.local)

    @contextmanager
    def _reached(self) -> Iterator[None]:
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
        """What of a store an error is about, if that is not all of it."""
        if self.local is None or not isinstance(path, str | Path) or Path(path) == self.local:
            return ""
        below = Path(path).is_relative_to(self.local)
        return f"{Path(path).relative_to(self.local) if below else path}: "

    def waits(self, check: Callable[[], None] = lambda: None) -> Wait:
        """How others are waited for here.

        Args:
            check: is called again and again meanwhile, and may raise to give up.
        """
        return Wait(self, self.wait, check)

    @contextmanager
    def in_use(self, *, joining: bool = False) -> Iterator[None]:
        """Keep `alone` of other processes waiting, so that nothing is collected between its writing and its naming.

        Not to be entered twice by one thread. A remote store knows no such thing; of its workshop it is true. In a
        directory that is read-only nothing is written for it.

        Args:
            joining: pass by who waits to be alone: another process holds the store and waits for this one.

        Raises:
            BusyError: someone who is alone was waited for as long as `wait` says.
            StoreError: the store cannot be written to, or, a remote one, is not there.
        """
        with ExitStack() as held:
            if self.local is None or self.read_only:
                held.enter_context(self.looked_at())
            else:
                with self._reached(), self._local.below.folder(make=True) as fd, ExitStack() as entering:
                    if not joining:  # who waits to be alone has the gate, for a while
                        entering.enter_context(locks.locked(_GATE, wait=self.waits(), at=fd))
                        self._clean(fd)
                    held.enter_context(locks.locked(_LOCK, shared=True, wait=self.waits(), at=fd))
            if self.workshop is not self:
                with optional():
                    held.enter_context(self.workshop.in_use(joining=joining))
            yield

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Keep `alone` of other processes waiting while this one only looks; nobody else waits for that.

        Raises:
            BusyError: someone who is alone was waited for as long as `wait` says.
            StoreError: the store is not there.
        """
        with ExitStack() as held, self._reached():
            if self.local is None:
                self._storage.check()
            else:
                with self._local.below.folder() as fd, suppress(FileNotFoundError):  # of a read-only one without locks
                    held.enter_context(locks.locked(_LOCK, shared=True, wait=self.waits(), at=fd))
            yield

    def _clean(self, fd: int) -> None:
        """Remove, while nobody is at work, what processes that were killed were at, and whose builds may still write.

        Args:
            fd: of the store's directory.
        """
        if self.is_exclusive and locks.is_free(_LOCK, at=fd):
            below = self._local.below
            with suppress(OSError):
                for name in below.names(_WORK):
                    if re.fullmatch(STAGED, name):
                        below.remove_folder(f"{_WORK}/{name}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody uses the store, and keep others waiting. A remote store knows no such thing.

        Others are kept waiting at the gate for some two seconds, and then let pass for one, so that nobody waits for
        someone who himself waits for a process that may have been stopped.

        Raises:
            BusyError: they were waited for as long as `wait` says.
        """
        with ExitStack() as held:
            if isinstance(self._storage, Local):
                with self._reached(), self._storage.below.folder() as fd:
                    wait = self.waits()
                    while not self._have_left(fd, held, wait):
                        time.sleep(_OPEN)
            yield

    def _have_left(self, fd: int, held: ExitStack, wait: Wait) -> bool:
        """Keep others out for a while; whether those that were in have left, and then nobody comes in any more."""
        with ExitStack() as entering:
            entering.enter_context(locks.locked(_GATE, wait=wait, at=fd))
            lock = entering.enter_context(locks.lock_file(_LOCK, at=fd))
            until = time.monotonic() + _CLOSED
            wait.poll(lambda: locks.taken(lock) or time.monotonic() > until, lambda: holders([os.fstat(lock).st_ino]))
            if not locks.taken(lock):  # which is no question to who has it
                return False
            held.push(entering.pop_all())
            return True

    @contextmanager
    def turn(self, key: str, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep others waiting that want to build the same, of a remote store on other machines too.

        Machines may have the same turn after all, if one of them cannot reach the store for half a minute or two find
        at once that a third one has died (see `leases.held`): then both build, and there is one object in the end.

        Args:
            key: of what is built.
            waiting: is called again and again meanwhile, and may raise to give up.

        Raises:
            BusyError: they were waited for as long as `wait` says.
        """
        with ExitStack() as held:
            if isinstance(self._storage, Local):
                with self._reached(), self._storage.below.folder("locks", make=True) as fd:
                    # Some keys share a lock, so that there is no end of files; their builds only wait for each other.
                    held.enter_context(locks.locked(Path(key[:2]), wait=self.waits(waiting), at=fd))
            if self.cache is not None:
                with optional():
                    held.enter_context(self.cache.turn(key, waiting=waiting))
            if isinstance(self._storage, Remote):
                with self._reached():
                    held.enter_context(leases.held(self._storage, f"locks/{key}", wait=self.waits(waiting)))
            yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A directory for files that are going to be objects, removed at the end."""
        with self._reached():
            directory = Path(tempfile.mkdtemp(dir=self._work(), prefix=STAGING))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def check_room(self, size: int) -> None:
        """
        Raises:
            StoreError: there is no room for so many bytes where artifacts are built.
        """
        with self._reached():
            shortage = files.shortage(self._work(), size)
        if shortage:
            raise StoreError(f"{self}: {shortage}; make room, with `cosyjit gc` perhaps, or name another store")

    def _work(self) -> Path:
        """Where files are put that are going to be objects, in the workshop if that can be written to."""
        if self.workshop is self:
            return self._work_below()
        with suppress(OSError):
            if self.workshop.is_exclusive:
                directory = self.workshop._work_below()  # noqa: SLF001  (of the same class)
                if os.access(directory, os.W_OK):
                    return directory
        return Path(tempfile.gettempdir())

    def _work_below(self) -> Path:
        with self._local.below.folder(_WORK, make=True):
            return self._local.root / _WORK


@contextmanager
def optional() -> Iterator[None]:
    """Do without a place, such as this user's own, that cannot be had; others are waited for there too."""
    try:
        yield
    except BusyError:
        raise
    except StoreError:
        pass
