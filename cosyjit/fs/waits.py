"""Waiting for other processes: never in silence, and no longer than asked.

The holder of a file's lock is read from /proc/locks, see proc_locks(5). So no process has to write that down, and one
that was killed leaves nothing. Processes of other containers and machines are not listed there.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from cosyjit.errors import BusyError

_PAUSE: Final = 0.1
"""In s, the longest pause between two looks."""

_SILENT: Final = 2.0
"""In s, how long a wait is silent."""

_LOOKS: Final = 10
"""How often no holder is found before it is said not to be seen: a lock that goes from hand to hand can be missed."""

_SHOWN: Final = 3
"""How many processes a message names."""

_LONGEST: Final = 80
"""How much of a process's command line a message shows, in characters."""

_LOG: Final = logging.getLogger("cosyjit")


class Wait:
    """One wait for other processes: to be called repeatedly until it is over.

    Args:
        what: what is waited for, which messages begin with.
        most: how long at most, in s; None for as long as it takes.
        check: is called each time, and may raise to give up.
    """

    def __init__(self, what: object, most: float | None = None, check: Callable[[], None] = lambda: None) -> None:
        self._what, self._most, self._check = what, most, check
        self._begun = time.monotonic()
        self._told = False

    def __call__(self, holders: Callable[[], str]) -> None:
        """Say once who is waited for, if the wait is no longer short, and end it if it is too long.

        Args:
            holders: says in words who is waited for; "" if that is this process itself.

        Raises:
            BusyError: it took too long.
        """
        self._check()
        waited = time.monotonic() - self._begun
        too_long = self._most is not None and waited >= self._most
        if not too_long and (self._told or waited < _SILENT):
            return
        who = holders()
        if who and too_long:
            raise BusyError(
                f"{self._what}: is in use by {who}, and was waited for {self._most:g} s; "
                "run again later, or let it wait longer with --wait or COSYJIT_WAIT"
            )
        if who and not self._told:
            self._told = True
            _LOG.info("%s: waits for %s", self._what, who)

    def poll(self, is_over: Callable[[], bool], holders: Callable[[], str]) -> None:
        """Look repeatedly whether it is over, first often and then less often.

        Raises:
            BusyError: it took too long.
        """
        pause = _PAUSE / 64
        while not is_over():
            self(holders)
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE)


def holders(inodes: Iterable[int]) -> str:
    """In words, the processes of this machine that hold locks of files with these inodes; "" if only this one does."""
    wanted = set(inodes)
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE / 2)
        pids = {pid for pid, inode in _locks() if inode in wanted}
        if pids:
            break
    if pids == {os.getpid()}:
        return ""
    found = [_described(pid) for pid in sorted(pids - {os.getpid()})]
    if not found:
        return "a process that cannot be seen from here, of another container or machine"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _locks() -> Iterator[tuple[int, int]]:
    """Processes, and the inode of a file that each holds the lock of."""
    with suppress(OSError, ValueError, LookupError):
        for entry in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            # "1: FLOCK  ADVISORY  WRITE 4711 fe:00:2146788 0 EOF"; "->" in the second place is one that waits.
            fields = entry.split()
            if fields[1] != "->":
                yield int(fields[4]), int(fields[5].rpartition(":")[2])


def _described(pid: int) -> str:
    """A process in words: its number, host, command line, start, and whether it is stopped."""
    words, stopped = "", ""
    with suppress(OSError, ValueError, LookupError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ").strip()
        shown = command if len(command) <= _LONGEST else f"{command[:_LONGEST]}…"
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = status.rpartition(")")[2].split()  # after the name, which may contain anything
        since = datetime.fromtimestamp(_booted() + int(fields[18]) / os.sysconf("SC_CLK_TCK"))  # noqa: DTZ006
        stopped = ", which is stopped" if state in {"T", "t"} else ""
        words = f" ({shown}), running since {since.isoformat(' ', 'seconds')}"
    return f"process {pid} on {socket.gethostname()}{words}{stopped}"


def _booted() -> int:
    """When the machine was started, in s since 1970."""
    lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    return next(int(each.split()[1]) for each in lines if each.startswith("btime "))
