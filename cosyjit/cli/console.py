"""Console output: results on standard output, the rest on standard error.

All text passes through `cosyjit.text.plain` here, or through it into a table's cell.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from cosyjit import pipeline
from cosyjit.cli.flags import OBJECT
from cosyjit.errors import OutputError
from cosyjit.planning.target import Target
from cosyjit.reports.tables import UNCUT
from cosyjit.text import log_lines, plain

_LOG: Final = logging.getLogger("cosyjit")

_errors: Final = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False, markup=False)


def is_quiet() -> bool:
    """Whether only errors are shown, and what a program has asked for."""
    return not _LOG.isEnabledFor(logging.INFO)


def show(*things: Table | str, errors: Iterable[str] = ()) -> None:
    """Print tables and lines of text to standard output, with an empty line below each table that is not the last.

    Nothing is cut: a line that is longer than the terminal is wide is wrapped by the terminal.

    Args:
        errors: which of the lines tell what is wrong; if this is to be quiet, they alone are shown, on standard error.

    Raises:
        OutputError: standard output cannot be written to.
    """
    if is_quiet():
        for each in errors:
            tell(each)
        return
    with _written() as console:
        console.width = UNCUT
        for number, thing in enumerate(things, 1):
            if isinstance(thing, str):
                console.print(plain(thing), soft_wrap=True)
                continue
            with console.capture() as capture:
                console.print(thing)
            for row in map(Text.from_ansi, capture.get().splitlines()):
                row.rstrip()  # of the spaces after the last column
                console.print(row, soft_wrap=True)
            if number < len(things):
                console.print()


def show_json(document: str) -> None:
    """Print a JSON document, which is ASCII, to standard output.

    Raises:
        OutputError: standard output cannot be written to.
    """
    OBJECT.is_printed = True
    show_script(document)


def show_script(text: str) -> None:
    """Print a text that a program reads to standard output, as it is.

    Raises:
        OutputError: standard output cannot be written to.
    """
    with _written() as console:
        console.print(text, soft_wrap=True)


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
    """Draw on a terminal what is worked on, what has failed, how many targets are done, and which wait.

    The callback takes a target and the name of its stage.
    """
    tasks: dict[Target, TaskID] = {}
    is_drawn = _errors.is_interactive and _errors.file.isatty() and not is_quiet()
    with _Stages(console=_errors, transient=True, expand=True, disable=not is_drawn) as bar:

        def draw(target: Target, stage: str) -> None:
            if target not in tasks:
                tasks[target] = bar.add_task(target.name, start=False, visible=False, stage=stage)
            bar.enter(tasks[target], stage)

        yield draw


class _Stages(Progress):
    """A row for each target that is worked on or has failed, and below them a line on all targets."""

    def __init__(self, *, console: Console, transient: bool, expand: bool, disable: bool) -> None:
        super().__init__(
            SpinnerColumn("line", finished_text=Text("x", "red")),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TextColumn(
                "{task.fields[stage]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            transient=transient,
            expand=expand,
            disable=disable,
        )

    def enter(self, number: TaskID, stage: str) -> None:
        """Let a target enter a stage."""
        is_over = _is_done(stage) or _has_failed(stage)
        self.update(
            number,
            stage=plain(stage),
            total=1,
            completed=int(is_over),
            visible=stage != _WAITING and not _is_done(stage),
        )
        if stage != _WAITING:
            self.start_task(number)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn."""
        yield self.make_tasks_table(self.tasks)
        yield Text(_progress_line(self.tasks), no_wrap=True, overflow="ellipsis")


_WAITING: Final = "waiting"


def _is_done(stage: str) -> bool:
    return stage in {"built", "cached"}


def _has_failed(stage: str) -> bool:
    return stage.startswith("failed")


def _progress_line(tasks: Sequence[Task]) -> str:
    """How many targets of how many are done, and which wait, as in "1 of 3 done; waiting: llm.llm.fp32"."""
    if not tasks:
        return "planning"
    stages = [each.fields["stage"] for each in tasks]
    failed = sum(map(_has_failed, stages))
    waiting = [each.description for each in tasks if each.fields["stage"] == _WAITING]
    return "".join(
        (
            f"{sum(map(_is_done, stages))} of {len(tasks)} done",
            f", {failed} failed" if failed else "",
            f"; waiting: {', '.join(waiting)}" if waiting else "",
        )
    )


class ConsoleHandler(logging.Handler):
    """Shows cosyjit's log on standard error, such as that something is downloaded.

    A record of the debug log has several lines; those after the first are indented.
    """

    def emit(self, record: logging.LogRecord) -> None:
        first, *others = log_lines(record)
        tell(first)
        for other in others:
            _errors.print(f"    {other}")
