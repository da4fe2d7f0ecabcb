"""What the arguments of a command ask for whatever becomes of it: the form of its errors, and their exit status.

It is known before the options are parsed, and when the process has no memory left: only small modules are imported.
"""

from collections.abc import Sequence
from typing import Final

_FAILED: Final = 1

_NO: Final = {"false", "no", "n", "f", "0"}


class _Object:
    """The one JSON object of a command.

    Attributes:
        is_printed: whether it was printed, or begun to be.
    """

    is_printed = False


OBJECT: Final = _Object()
"""That of the command which this process runs."""


def is_json_due(arguments: Sequence[str]) -> bool:
    """Whether a command is to print an object that it has not printed yet."""
    return _has(arguments, "--json") and not OBJECT.is_printed


def status_of_error(arguments: Sequence[str], status: int) -> int:
    """The exit status of a command with an error: 1 of any where the status itself is asked what is to be done."""
    return _FAILED if _has(arguments, "--exit-code") else status


def _has(arguments: Sequence[str], flag: str) -> bool:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any(
        name.replace("_", "-") == flag and value.lower() not in _NO  # as cyclopts takes them
        for name, _, value in (each.partition("=") for each in options)
    )
