"""The command line as a process of its own: the command `cosyjit`, and `python -m cosyjit`.

Signals are taken from the first moment on, before anything else is imported, until the process has ended: the first one
ends what is under way, and those after it change nothing. What is open is closed before the process ends, which may
take a moment; SIGQUIT ends it without that.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # that of typing, whose import takes longer than all before the first signal can be taken
if TYPE_CHECKING:
    from collections.abc import Callable
    from sys import UnraisableHookArgs
    from threading import ExceptHookArgs
    from types import FrameType
    from typing import Final, NoReturn, TextIO

_FAILED: Final = 1
"""The exit status where the system did not give what it should."""

_BAD_INPUT: Final = 2
"""The exit status where something cannot be read or written."""

_ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

_AGAIN: Final = 0.02
"""In s, after which a signal is raised again that was lost in a destructor or in code that passes over everything."""

_STANDARD: Final = 3
"""How many files are a process's standard streams: those of the first numbers."""


class _Ended(SystemExit):
    """Ends what is under way, and says so when it is dropped: libraries have places that catch everything."""

    def __init__(self, dropped: Callable[[], None]) -> None:
        super().__init__()
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped()


class _Signals:
    """Lets the first signal raise SystemExit until the command has ended, and passes over all others.

    Attributes:
        received: the first signal; None as long as there is none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._passed_over = False
        self._is_over = False

    def listen(self) -> None:
        """Take signals from now on, but for those that whoever started the process has ignored, as `nohup` does."""
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._end)
        signal.signal(signal.SIGALRM, self._end)
        sys.unraisablehook = self._unraised

    def pass_over(self) -> None:
        """Let no signal change anything from now on, to the very end of the process."""
        self._passed_over = self._is_over = True
        for number in (*_ENDING, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)

    def _end(self, number: int, _: FrameType | None) -> None:
        if self._passed_over:
            return
        self._passed_over = True
        if number != signal.SIGALRM:
            self.received = signal.Signals(number)
        raise _Ended(self._raise_again)

    def _raise_again(self) -> None:
        if not self._is_over:
            self._passed_over = False
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)

    def _unraised(self, error: UnraisableHookArgs) -> None:
        """Say nothing of what was raised in a destructor, out of which nothing comes, if it will be raised again."""
        if not isinstance(error.exc_value, _Ended) and _lack(error.exc_value) is None:
            sys.__unraisablehook__(error)


def main() -> NoReturn:
    """Run the command line and end the process; what came between is one line on standard error."""
    signals = _Signals()
    signals.listen()
    ended: BaseException = SystemExit()
    try:
        try:
            _run(signals)
        finally:
            signals.pass_over()
    except BaseException as error:  # noqa: BLE001  (this is where the process ends)
        ended = error
    _give_up_unwritten()
    if signals.received is not None:
        _end("Interrupted", f"ended by {signals.received.name}; {_changes()}", 128 + signals.received)
    lack, fault = _lack(ended), _fault(ended)
    if lack is None and fault is None:
        if not isinstance(ended, SystemExit):
            _answer("InternalError", repr(ended), _FAILED)
        raise ended
    _log_cause(ended)
    if lack is not None:
        _end("ResourceError", lack, _FAILED)
    _end("OSError", fault or "", _status(_BAD_INPUT))


def _run(signals: _Signals) -> None:
    _open_streams()
    import threading  # noqa: PLC0415  (signals are taken before anything is imported)

    threading.excepthook = _thread_ended
    from cosyjit.cli import app  # noqa: PLC0415
    from cosyjit.processes import worker  # noqa: PLC0415

    try:
        app.main(is_ending=lambda: signals.received is not None)
    finally:
        worker.stop()  # here, and not as Python ends, for here a signal is taken as it should be


def _open_streams() -> None:
    """Keep the numbers of standard streams from files that are opened later, and let all names be written to them.

    A terminal with another encoding than UTF-8 does not have all printable characters: those are escaped.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < _STANDARD:
        os.set_inheritable(number, True)
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _give_up_unwritten() -> None:
    """Let Python not find out once more, as it ends, that what is left for a standard stream cannot be written."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        if stream is not None and not _is_flushed(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _is_flushed(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return False
    return True


def _fault(ended: BaseException) -> str | None:
    """In a line, what cannot be read or written, and what to do; None if an error is of another kind."""
    if not isinstance(ended, OSError):
        return None
    from cosyjit.processes.limits import has_directory  # noqa: PLC0415  (as above)

    if ended.filename is None and not has_directory():
        return "the working directory is gone; change to one that is there, and run again"
    what = "" if ended.filename is None else f"{os.fsdecode(ended.filename)}: "
    return f"{what}cannot be read or written ({ended.strerror or ended}); mend that, or name another, and run again"


def _lack(error: BaseException | None) -> str | None:
    from cosyjit.processes.limits import lack  # noqa: PLC0415  (signals are taken before this is imported)

    return None if error is None else lack(error)


def _log_cause(error: BaseException) -> None:
    from contextlib import suppress  # noqa: PLC0415  (as above)

    with suppress(Exception):  # there may be no memory for it, or nothing to write it to
        from cosyjit.errors import log_cause  # noqa: PLC0415  (as above)

        log_cause(error)


def _thread_ended(error: ExceptHookArgs) -> None:
    """Say nothing of a thread that lacked something: who waits for it, or the exit status, says it."""
    from threading import __excepthook__ as tell  # noqa: PLC0415

    if _lack(error.exc_value) is None:
        tell(error)


def _changes() -> str:
    from cosyjit.processes.interrupts import changes  # noqa: PLC0415  (as above)

    return changes()


def _status(status: int) -> int:
    from cosyjit.cli.flags import status_of_error  # noqa: PLC0415  (as above)

    return status_of_error(sys.argv[1:], status)


def _end(kind: str, line: str, status: int) -> NoReturn:
    """End the process with a line on standard error, and an object on standard output where that is due."""
    _answer(kind, line, status)
    _say(line)
    sys.exit(status)


def _answer(kind: str, line: str, status: int) -> None:
    from contextlib import suppress  # noqa: PLC0415  (as above)

    with suppress(Exception):  # as for the log; the exit status says it as well
        from cosyjit.cli.flags import is_json_due  # noqa: PLC0415  (as above)
        from cosyjit.reports.error import document  # noqa: PLC0415  (as above)

        if is_json_due(sys.argv[1:]):
            os.write(1, f"{document(kind, line, status)}\n".encode("ascii"))


def _say(line: str) -> None:
    from contextlib import suppress  # noqa: PLC0415  (as above)

    with suppress(OSError):  # the exit status says it as well
        os.write(2, f"cosyjit: {line}\n".encode(errors="backslashreplace"))


if __name__ == "__main__":
    main()
