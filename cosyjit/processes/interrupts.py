"""Signals that wait until a step is over that must not be interrupted."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred() -> Iterator[None]:
    """Handle signals only after the block; of several, only the first.

    torch's C++ ends the process if Python raises an exception while torch is imported or writes a file.
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
