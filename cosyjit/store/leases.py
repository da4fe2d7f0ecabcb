"""Turns between machines that share a storage.

A lease is a file that only one can create. Whoever holds it writes it anew every few seconds, so that one which stays
as it is for long is a dead owner's. How long that is the waiting side takes from its own clock: those of two machines
need not agree.
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
"""How many seconds a lease stays as it is before its owner counts as dead; an owner renews it six times as often."""


@contextmanager
def held(storage: Remote, name: str, period: float = PERIOD, *, wait: Wait | None = None) -> Iterator[None]:
    """Wait until nobody else holds a lease, and hold it.

    Two that find an owner dead at the same moment may both go on, and an owner that could not reach the storage for a
    whole period is not alone any more: who holds a lease saves others work, and must not rely on being alone. On a file
    system that cannot keep two from creating a file nobody waits.

    Args:
        storage: what the machines share.
        name: of the file.
        period: as `PERIOD`, the same for all who want this lease.
        wait: how others are waited for; as long as it takes for None.

    Raises:
        BusyError: they were waited for as long as that says.
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
        """Until there is no lease, or none of a living owner."""
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
        """Every now and then, until it is given up or someone else's."""
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
    """Who holds a lease, as it says; those of earlier versions do not."""
    _, _, *said = lease[:_LONGEST].decode("utf-8", "replace").rstrip("\n").split(" ", 2)
    return "".join(said) or "a process of another machine"
