"""What a program gets of a command: one JSON object on standard output, also of an error, and an exit status.

Errors come before the options are parsed and after the process has lost its memory, so only small modules are imported.
"""

import json
from collections.abc import Sequence
from typing import Final

USAGE: Final = "UsageError"
"""The kind of an error in the options or arguments of a command."""

_FAILED: Final = 1

_NO: Final = {"false", "no", "n", "f", "0"}


class Answer:
    """The object of the command that this process runs.

    Attributes:
        given: whether it was printed, or begun to be.
    """

    def __init__(self) -> None:
        self.given = False


ANSWER: Final = Answer()


def is_due(arguments: Sequence[str]) -> bool:
    """Whether a command is to print an object that it has not printed yet."""
    return _has(arguments, "--json") and not ANSWER.given


def error(kind: str, message: str, status: int) -> str:
    """One object, `{"error": {...}}`, in ASCII.

    Args:
        kind: the name of the error's class in `cosyjit.errors`, or that of another kind.
        message: the line that stands on standard error.
        status: the exit status.
    """
    return json.dumps({"error": {"kind": kind, "message": message, "status": status}}, indent=2)


def status_of_error(arguments: Sequence[str], status: int) -> int:
    """The exit status of a command with an error: 1 of any where the status itself is asked what is to be done."""
    return _FAILED if _has(arguments, "--exit-code") else status


def _has(arguments: Sequence[str], flag: str) -> bool:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any(
        name == flag and value.lower() not in _NO for name, _, value in (each.partition("=") for each in options)
    )
