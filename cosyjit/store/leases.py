"""Leases: locks between machines that share a storage.

A lease is a file that only one machine can create. Its owner rewrites it every few seconds. If it stays the same for a
period, its owner is dead. The waiting machine measures that by its own clock: clocks need not agree.
"""

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from io import UnsupportedOperation
from typing import Final

from cosyjit.fs.waits import Wait
from cosyjit.store.backends import Remote

_LONGEST: Final = 300
"""How much of a lease is shown, in bytes."""

PERIOD: Final = 30.0
"""In s, how long a lease stays the same before its owner counts as dead; an owner rewrites it six times as often."""


@contextmanager
def held(storage: Remote, name: str, period: float = PERIOD, *, wait: Wait | None = None) -> Iterator[None]:
    """Wait until nobody else holds a lease, and hold it.

    A lease saves work that would be done twice. It does not exclude others for sure: two machines that find an owner
    dead at the same moment may both go on, and an owner that cannot reach the storage for a whole period loses it. On a
    file system where two can create the same file, nobody waits.

    Args:
        storage: what the machines share.
        name: of the file.
        period: as `PERIOD`, the same for all who want this lease.
        wait: how to wait for others; None for as long as it takes.

    Raises:
        BusyError: another machine held it for as long as `wait` allows.
        OSError: the storage cannot be read or written.
    """
    lease = _Lease(storage, name, period)
    with suppress(UnsupportedOperation):
        lease.take(wait or Wait(name))
    if not lease.taken:
        yield
        return
    renewing = threading.Thread(target=lease.renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        lease.given_up.set()
        renewing.join(period)  # or a renewal under way could write it once more
        with suppress(OSError):  # then it runs out
            lease.give_up()


class _Lease:
    def __init__(self, storage: Remote, name: str, period: float) -> None:
        self._storage, self._name, self._period = storage, name, period
        self._owner = uuid.uuid4().hex
        self._process = f"process {os.getpid()} on {socket.gethostname()}, since {_now()}"
        self._renewals = 0
        self.taken = False
        self.given_up = threading.Event()

    def take(self, wait: Wait) -> None:
        while not self._create():
            self._wait(wait)
        self.taken = True

    def _create(self) -> bool:
        try:
            self._storage.create(self._name, self._content())
        except FileExistsError:
            return self._is_own()  # if the answer to a request is lost, it is sent again
        return True

    def _wait(self, wait: Wait) -> None:
        """Wait until there is no lease, or its owner is dead."""
        last = self._read()
        since = time.monotonic()
        pause = self._period / 300
        while last is not None and time.monotonic() - since < self._period:
            wait(partial(_owner_of, last))
            time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  (so that not all come at once)
            pause = min(1.5 * pause, self._period / 20)
            found = self._read()
            if found != last:
                last, since = found, time.monotonic()
        if last is not None:
            self._storage.remove(self._name)

    def renew(self) -> None:
        """Rewrite the lease from time to time, until it is given up or has another owner."""
        while not self.given_up.wait(self._period / 6):
            with suppress(OSError):  # the next time will do
                if not self._is_own():
                    return
                self._renewals += 1
                self._storage.write(self._name, self._content())

    def give_up(self) -> None:
        if self._is_own():
            self._storage.remove(self._name)

    def _content(self) -> bytes:
        return f"{self._owner} {self._renewals} {self._process}\n".encode()

    def _read(self) -> bytes | None:
        try:
            return self._storage.read(self._name)
        except FileNotFoundError:
            return None

    def _is_own(self) -> bool:
        return (self._read() or b"").startswith(self._owner.encode())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(" ", "seconds")


def _owner_of(lease: bytes) -> str:
    """In words, the owner of a lease, as it says itself; leases of earlier versions do not say."""
    _, _, *said = lease[:_LONGEST].decode("utf-8", "replace").rstrip("\n").split(" ", 2)
    return "".join(said) or "a process of another machine"
