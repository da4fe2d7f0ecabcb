"""Signals: those that wait until a step is over, and what a command that was ended by one has changed until then."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_CHANGES: Final = ["nothing was changed"]
"""What is so if a signal ends the process now: one text."""


def note_changes(what: str) -> None:
    """Say what will be so if a signal ends this process from now on; called before each first change of a kind.

    Args:
        what: part of a sentence, such as "what was copied is kept; run it again, and it goes on".
    """
    _CHANGES[0] = what


def changes() -> str:
    """What is so if a signal ends this process now, in words."""
    return _CHANGES[0]


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
