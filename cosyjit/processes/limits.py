"""What a process lacks, in one line: memory, threads and processes, or open files.

Python, torch and the C library report it in many ways: a `MemoryError`, an `ImportError` of a library that cannot be
mapped, a `RuntimeError` of a thread. Only small modules are imported here, for there may be no memory for others.
"""

import errno
import os
from typing import Final

_MEMORY: Final = (
    "there is not enough memory; free some, raise the limit (`ulimit -v`, or that of the container), or use another "
    "machine, and run again"
)
_THREADS: Final = (
    "the system starts no more threads or processes; raise the limit of these (`ulimit -u`) or of memory (`ulimit -v`),"
    " and run again"
)
_FILES: Final = "too many files are open; raise the limit (`ulimit -n`), and run again"

_NUMBERS: Final = {
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: _THREADS,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
}

_WORDS: Final = {
    "can't start new thread": _THREADS,
    "pthread_create failed": _THREADS,
    "MemoryError": _MEMORY,
    "error return without exception set": _MEMORY,
    "returned NULL without setting an exception": _MEMORY,
    "not enough memory": _MEMORY,
    "bad_alloc": _MEMORY,
    "Memory allocation still failed": _MEMORY,
    "failed to map segment": _MEMORY,
    "cannot allocate memory": _MEMORY,
    "Cannot allocate memory": _MEMORY,
    "Too many open files": _FILES,
}
"""What libraries write, and what it means."""


def lack(error: BaseException) -> str | None:
    """What the system did not give, and what to do, in one line; None if an error has another reason.

    The causes and contexts of the error count as well: where memory is missing, the last error is often another one.
    """
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        following = following.__cause__ or following.__context__
    return next(filter(None, map(_lack, reversed(seen))), None)  # the first of them knows best


def _lack(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return _NUMBERS.get(error.errno)
    # OSError without a number is raised of libraries that cannot be loaded.
    return lack_in(str(error)) if isinstance(error, ImportError | OSError | RuntimeError | SystemError) else None


def lack_in(output: str) -> str | None:
    """What the system did not give a process, by what the process wrote; None if that says nothing of the kind."""
    return next((meaning for words, meaning in _WORDS.items() if words in output), None)


def has_directory() -> bool:
    """Whether the working directory exists."""
    try:
        return bool(os.getcwd())  # noqa: PTH109  (pathlib is one of the others)
    except OSError:
        return False
