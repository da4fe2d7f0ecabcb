"""What stands on a terminal: results on standard output, the rest on standard error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cosyjit import pipeline
from cosyjit.errors import OutputError
from cosyjit.planning import Target

errors: Final = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def show(*things: RenderableType) -> None:
    """On standard output: text as it is, tables as wide as a terminal is, or as they need where there is none.

    Raises:
        OutputError: it cannot be written to.
    """
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 300
    try:
        for thing in things:
            console.print(thing, markup=False, soft_wrap=isinstance(thing, str))
    except OSError as error:
        raise OutputError(
            f"standard output: cannot be written to ({error.strerror}); what was done is done, run again to see it"
        ) from None


@contextmanager
def stages() -> Iterator[pipeline.Progress]:
    """Draws on a terminal, for each target, the stage it is in; the callback is told of stages."""
    tasks: dict[Target, TaskID] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:

        def draw(target: Target, stage: str) -> None:
            if target not in tasks:
                tasks[target] = bar.add_task(target.name, total=1, stage=stage)
            bar.update(tasks[target], stage=stage, completed=int(stage in {"built", "cached"}))

        yield draw


class Told(logging.Handler):
    """Shows what cosyjit tells of itself, such as that something is downloaded, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(f"cosyjit: {record.getMessage()}", markup=False)
