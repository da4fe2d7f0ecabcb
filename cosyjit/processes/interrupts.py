"""Signals that wait until a step is over which cannot be broken off."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred() -> Iterator[None]:
    """Take signals that would raise an exception only after the block, and of several the first one.

    torch's C++ ends the process where an exception comes out of Python amid its import, or amid a file that it writes.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    own = threading.current_thread() is threading.main_thread()  # no other thread is interrupted
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM) if own else ()
    before = {each: signal.getsignal(each) for each in numbers if callable(signal.getsignal(each))}
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in received[:1]:
            signal.raise_signal(first)
