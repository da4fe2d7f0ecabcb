"""Answers to a command, of one source or of several."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from rich.console import RenderableType

from cosyjit.cli.console import show, show_json, tell
from cosyjit.errors import BuildError, CosyjitError, ResourceError, log_cause
from cosyjit.reports import as_json
from cosyjit.text import one_line

FAILED: Final = 1
"""The exit status when a target could not be built, or the system lacks what the build needs."""

BAD_INPUT: Final = 2
"""The exit status when the input cannot be exported as it is."""


class Answer(NamedTuple):
    """What a command says of one source.

    Attributes:
        document: as JSON.
        shown: as tables and lines.
        status: the exit status.
    """

    document: str
    shown: tuple[RenderableType, ...]
    status: int = 0


def exit_status(error: BaseException) -> int:
    """The exit status of a command that ends with an error."""
    return FAILED if isinstance(error, BuildError | ResourceError) else BAD_INPUT


def show_answers(kind: str, names: Sequence[str], answer: Callable[[str], Answer], *, json: bool) -> int:
    """Show what a command says of each of some sources. Of several, an error of one does not stop the others.

    Args:
        kind: what they are, in one word, as JSON names them.
        names: as they were given.
        answer: gives the answer of one of them.
        json: whether to print one JSON object: of a single source, its own.

    Returns:
        The exit status: the largest of them.

    Raises:
        CosyjitError: that of a single source.
    """
    if len(names) == 1:
        only = answer(names[0])
        if json:
            show_json(only.document)
        else:
            show(*only.shown)
        return only.status
    statuses, documents = [], []
    for name in names:
        found = _answer_or_error(name, answer)
        if isinstance(found, Answer):
            statuses.append(found.status)
            documents.append((name, found.document))
            if not json:
                show(name, *found.shown)
        else:
            text = one_line(str(found))
            statuses.append(exit_status(found))
            documents.append((name, as_json.error(text)))
            tell(text if text.startswith(name) else f"{name}: {text}")
    if json:
        show_json(as_json.several(kind, documents))
    return max(statuses)


def _answer_or_error(name: str, answer: Callable[[str], Answer]) -> Answer | CosyjitError:
    try:
        return answer(name)
    except CosyjitError as error:
        log_cause(error)
        return error
