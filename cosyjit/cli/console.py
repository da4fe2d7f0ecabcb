"""Console output: results on standard output, the rest on standard error.

All text passes through `cosyjit.text.plain` here, or through it into a table's cell.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cosyjit import pipeline
from cosyjit.errors import OutputError
from cosyjit.planning.target import Target
from cosyjit.text import log_lines, plain

_errors: Final = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False, markup=False)


def show(*things: RenderableType) -> None:
    """Print texts, one line each, and tables to standard output.

    Tables are as wide as the terminal, or as wide as they need to be if there is none.

    Raises:
        OutputError: standard output cannot be written to.
    """
    with _written() as console:
        if not console.is_terminal:
            console.width = 300
        for thing in things:
            console.print(plain(thing) if isinstance(thing, str) else thing, soft_wrap=isinstance(thing, str))


def show_json(document: str) -> None:
    """Print a JSON document, which is ASCII, to standard output.

    Raises:
        OutputError: standard output cannot be written to.
    """
    with _written() as console:
        console.print(document, soft_wrap=True)


@contextmanager
def _written() -> Iterator[Console]:
    try:
        yield Console(highlight=False, emoji=False, markup=False)
    except OSError as error:
        raise OutputError(
            f"standard output: cannot be written to ({error.strerror}); what was done is done, run again to see it"
        ) from None


def tell(text: str) -> None:
    """Print a line to standard error."""
    _errors.print(f"cosyjit: {plain(text)}")


@contextmanager
def stages() -> Iterator[pipeline.Progress]:
    """Draw the stage of each target on a terminal; the callback takes a target and the name of its stage."""
    tasks: dict[Target, TaskID] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[stage]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_errors, transient=True, disable=not _errors.is_terminal) as bar:

        def draw(target: Target, stage: str) -> None:
            if target not in tasks:
                tasks[target] = bar.add_task(target.name, total=1, stage=stage)
            bar.update(tasks[target], stage=plain(stage), completed=int(stage in {"built", "cached"}))

        yield draw


class ConsoleHandler(logging.Handler):
    """Shows cosyjit's log on standard error, such as that something is downloaded.

    A record of the debug log has several lines; those after the first are indented.
    """

    def emit(self, record: logging.LogRecord) -> None:
        first, *others = log_lines(record)
        tell(first)
        for other in others:
            _errors.print(f"    {other}")
