"""Answers to a command, of one source or of several."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from rich.table import Table

from cosyjit.cli.console import show, show_json, tell
from cosyjit.errors import BuildError, CosyjitError, ResourceError, log_cause
from cosyjit.reports import as_json
from cosyjit.reports.error import document
from cosyjit.text import one_line, plain

FAILED: Final = 1
"""The exit status when a target could not be built, or the system lacks what the build needs."""

BAD_INPUT: Final = 2
"""The exit status when the input cannot be exported as it is."""

TO_BUILD: Final = 2
"""The exit status of `plan --exit-code` when something is to be built."""


class Answer(NamedTuple):
    """What a command says of one source.

    Attributes:
        document: as JSON.
        shown: as tables and lines.
        status: the exit status.
        errors: which of the lines tell what is wrong.
    """

    document: str
    shown: tuple[Table | str, ...]
    status: int = 0
    errors: Sequence[str] = ()


def exit_status(error: BaseException) -> int:
    """The exit status of a command that ends with an error."""
    return FAILED if isinstance(error, BuildError | ResourceError) else BAD_INPUT


def error_document(error: BaseException, status: int) -> str:
    """An error as JSON: of the kind of its class, or "UsageError" if options or arguments are not those known."""
    kind = type(error).__name__ if isinstance(error, CosyjitError) else "UsageError"
    return document(kind, one_line(str(error)), status)


def show_answers(
    kind: str, names: Sequence[str], answer: Callable[[str], Answer], *, json: bool, detailed: bool = False
) -> int:
    """Show what a command says of each of some sources. Of several, an error of one does not stop the others.

    Args:
        kind: what they are, in one word, as JSON names them.
        names: as they were given.
        answer: gives the answer of one of them.
        json: whether to print one JSON object: of a single source, its own.
        detailed: whether the exit status says what is to be done: 2 is no error then, and 1 is one.

    Returns:
        The exit status: the largest of them, or 1 of an error where it is detailed.

    Raises:
        CosyjitError: that of a single source.
    """
    if len(names) == 1:
        only = answer(names[0])
        if json:
            show_json(only.document)
        else:
            show(*only.shown, errors=only.errors)
        return only.status
    statuses, documents = [], []
    for name in names:
        found = _answer_or_error(name, answer)
        if isinstance(found, Answer):
            statuses.append(found.status)
            documents.append((name, found.document))
            if not json:
                show(name, *found.shown, errors=found.errors)
        else:
            text = one_line(str(found))
            statuses.append(FAILED if detailed else exit_status(found))
            documents.append((name, error_document(found, statuses[-1])))
            tell(text if text.startswith(plain(name)) else f"{name}: {text}")
    if json:
        show_json(as_json.several(kind, documents))
    return FAILED if detailed and FAILED in statuses else max(statuses)


def _answer_or_error(name: str, answer: Callable[[str], Answer]) -> Answer | CosyjitError:
    try:
        return answer(name)
    except CosyjitError as error:
        log_cause(error)
        return error
