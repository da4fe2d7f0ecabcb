"""Where a store is, whether it can be reached, and who is at work in it."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from cosyjit import files, leases
from cosyjit.errors import StoreError, StoreUnavailableError, line
from cosyjit.services import UnavailableError
from cosyjit.storage import Local, Remote, Storage, storage

STAGING: Final = "cosyjit-"
"""What the names of directories for work in hand begin with."""


class Place:
    """A directory of this machine, or a URL with a local place of the same kind beside it.

    Attributes:
        root: the path or URL, absolute.
        cache: the local place that belongs to a remote one; None for a local one.
    """

    cache: "Place | None" = None

    def __init__(self, given: str) -> None:
        shown = re.sub("(?<=://).*@", "…@", given)  # what stands there may be a password
        try:
            self._storage: Storage = storage(given)
        except ImportError as error:
            raise StoreError(f"{shown}: needs a package that is missing; {line(error)}") from None
        except (RuntimeError, TypeError, ValueError, OSError) as error:
            raise StoreError(f"{shown}: is no store ({line(error)}); give a directory or an fsspec URL") from None
        self.root = given if self.local is None else str(self.local)

    def __str__(self) -> str:
        return self.root

    @property
    def local(self) -> Path | None:
        """The directory, if it is one of this machine's."""
        return self._storage.root if isinstance(self._storage, Local) else None

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except UnavailableError as error:
            raise StoreUnavailableError(f"{self.root}: cannot be reached now ({error}); try again later") from None
        except OSError as error:
            reason = error.strerror or line(error)
            raise StoreError(
                f"{self.root}: cannot be read or written ({reason}); mend it, or name another store"
            ) from None

    @contextmanager
    def in_use(self, *, joining: bool = False) -> Iterator[None]:
        """Keep `alone` of other processes waiting, so that nothing is collected between its writing and its naming.

        Not to be entered twice by one thread. A remote store knows no such thing; of its cache it is true.

        Args:
            joining: another process holds the store and waits for this one, which therefore passes by who wants to be
                alone: otherwise each of the three would wait for the next.

        Raises:
            StoreError: the store cannot be written to, or, a remote one, is not there.
        """
        with ExitStack() as held:
            if self.local is not None:
                with self._reached(), ExitStack() as entering:
                    files.make_directory(self.local)
                    if not joining:  # who waits to be alone is not passed by for ever
                        entering.enter_context(files.locked(self.local / "gate"))
                        if files.is_free(self.local / "lock"):
                            for left in (self.local / "tmp").glob(f"{STAGING}*"):
                                with suppress(OSError):  # of a process that was killed, whose builds may still write
                                    files.remove(left)
                    held.enter_context(files.locked(self.local / "lock", shared=True))
            else:
                with self._reached():
                    self._storage.check()
            if self.cache is not None:
                with suppress(StoreError):  # it is done without
                    held.enter_context(self.cache.in_use(joining=joining))
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody uses the store, and keep others waiting. A remote store knows no such thing."""
        with ExitStack() as held:
            if self.local is not None:
                with self._reached():
                    held.enter_context(files.locked(self.local / "gate"))
                    held.enter_context(files.locked(self.local / "lock"))
            yield

    @contextmanager
    def turn(self, key: str, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Keep others waiting that want to build the same, of a remote store on other machines too.

        Machines may have the same turn after all, if one of them cannot reach the store for half a minute or two find
        at once that a third one has died (see `leases.held`): then both build, and there is one object in the end.

        Args:
            key: of what is built.
            waiting: is called again and again meanwhile, and may raise to give up.
        """
        with ExitStack() as held:
            if self.local is not None:
                with self._reached():
                    files.make_directory(self.local / "locks")
                    # Some keys share a lock, so that there is no end of files; their builds only wait for each other.
                    held.enter_context(files.locked(self.local / "locks" / key[:2], waiting=waiting))
            if self.cache is not None:
                with suppress(StoreError):
                    held.enter_context(self.cache.turn(key, waiting=waiting))
            if isinstance(self._storage, Remote):
                with self._reached():
                    held.enter_context(leases.held(self._storage, f"locks/{key}", waiting=waiting))
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
        """Where files are put that are going to be objects. Those of a remote store its cache takes over, if it can."""
        if self.local is not None:
            return _work_below(self.local)
        with suppress(OSError):
            if self.cache is not None and self.cache.local is not None:
                directory = _work_below(self.cache.local)
                if os.access(directory, os.W_OK):
                    return directory
        return Path(tempfile.gettempdir())


def _work_below(local: Path) -> Path:
    files.make_directory(local / "tmp")
    return local / "tmp"
