"""How many builds run at a time in this process, in the order in which they ask."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cosyjit.processes.worker import CancelScope

_INTERVAL: Final = 0.1
"""In s, how often a waiting thread sees whether its export is cancelled."""


class Slots:
    """A fair semaphore, of which a thread stops waiting when its export is cancelled."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, scope: CancelScope) -> Iterator[None]:
        """Hold a slot; whoever asks first is served first.

        Raises:
            BuildError: the scope was cancelled in the meantime.
        """
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while not (self._free and self._waiting[0] is ticket):
                    self._changed.wait(_INTERVAL)
                    scope.check()
                self._free -= 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
