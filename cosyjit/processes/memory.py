"""How much memory the builds of this machine may take at a time, across processes.

Each build reserves memory with a file that it holds the lock of, so that a killed process frees its reservation. One
build is always admitted, however much it needs.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from cosyjit.fs import files, locks
from cosyjit.fs.waits import Wait, holders
from cosyjit.processes import groups

SHARE: Final = 0.75
"""The part of a machine's memory that builds may take by default."""

_LIMITS: Final = {"cgroup2": "memory.max", "cgroup": "memory.limit_in_bytes"}
"""The files that say how much memory a control group may take, by the type of file system: version 2, and version 1."""


def installed(root: Path = Path("/")) -> int:
    """The memory of this machine in bytes, or the limit of this process's control groups if that is lower.

    Limits of the groups above count as well.

    Args:
        root: where /proc and the file systems of control groups are.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """The limits of the control groups that this process is in, in bytes."""
    for kind, place in groups.directories("memory", root):
        with suppress(OSError, ValueError):  # the topmost group has no limit; "max" is none
            yield int((place / _LIMITS[kind]).read_text(encoding="ascii"))


def reservations_directory() -> Path:
    """Where the builds of this user on this machine reserve memory, whatever their stores are."""
    try:
        return Path(files.DEFAULT_ROOT).expanduser() / "locks" / "memory"
    except RuntimeError:  # there is no home
        return Path(tempfile.gettempdir()) / f"cosyjit-{os.getuid()}"


def tidy(directory: Path) -> None:
    """Remove the reservations of killed processes now, rather than at the next build."""
    with suppress(OSError):  # mostly there is no such directory
        files.check_private(directory)
        with locks.locked(directory / "lock"):
            list(_reservations(directory))


@contextmanager
def reserved(directory: Path, size: int, limit: int | None = None, *, wait: Wait | None = None) -> Iterator[None]:
    """Wait until other builds leave enough memory, and reserve it for the duration of the block.

    Args:
        directory: where the builds of this machine reserve memory.
        size: what this build needs, in bytes.
        limit: what all builds together may take, in bytes; three quarters of the machine's memory for None.
        wait: how to wait for other processes; as long as it takes for None.

    Raises:
        BusyError: other processes did not leave enough within that time.
    """
    wait = wait or Wait("memory")
    limit = limit or int(SHARE * installed())
    with ExitStack() as held:
        with suppress(OSError):  # nothing can be written there: nobody has to wait
            files.make_private(directory)
            wait.poll(
                lambda: _admitted(directory, size, limit, held),
                lambda: holders(each.stat().st_ino for each in directory.glob("*.*")),
            )
        yield


def _admitted(directory: Path, size: int, limit: int, held: ExitStack) -> bool:
    with locks.locked(directory / "lock"):
        reserved_sizes = list(_reservations(directory))
        if reserved_sizes and sum(reserved_sizes) + size > limit:
            return False
        reservation = directory / f"{uuid.uuid4().hex}.{size}"
        held.callback(_remove, reservation)
        held.enter_context(locks.locked(reservation))
        return True


def _reservations(directory: Path) -> Iterator[int]:
    """The sizes of the reservations, in bytes; those of killed processes are removed on the way."""
    for reservation in directory.glob("*.*"):
        if locks.is_free(reservation):
            _remove(reservation)
        else:
            yield int(reservation.suffix.removeprefix("."))


def _remove(reservation: Path) -> None:
    with suppress(OSError):  # nobody holds it, so that the next process which looks removes it
        reservation.unlink(missing_ok=True)
