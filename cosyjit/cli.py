"""The command line: parse, call, print."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cosyjit import __version__, pipeline, report
from cosyjit.errors import BuildError, CosyjitError
from cosyjit.pipeline import Target

FAILED = 1
"""The exit status when a target could not be built."""

BAD_INPUT = 2
"""The exit status when what was given cannot be exported as it is."""

INTERRUPTED = 130
TERMINATED = 143
"""The exit statuses after Ctrl-C and SIGTERM, as shells have them."""

_errors = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

app = App(
    name="cosyjit",
    help="TorchScript artifacts of CosyVoice's encoders.",
    version=__version__,
)


def _output() -> Console:
    return Console(soft_wrap=True, highlight=False, emoji=False)


@app.command
def export(
    source: Annotated[Path, Parameter(name=["--source", "--model-dir", "--model_dir"])],
    *,
    component: Annotated[list[str] | None, Parameter(negative="")] = None,
    precision: Annotated[list[str] | None, Parameter(negative="")] = None,
    publish: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Build the zips of a model directory and publish them.

    Exits with 0 if all is well, 1 if a target failed, 2 if the input cannot be exported.

    Parameters
    ----------
    source
        A model directory: cosyvoice.yaml or cosyvoice2.yaml with its weights files.
    component
        What to export, such as llm.text_encoder; may be repeated. All components by default.
    precision
        fp32, fp16 or bf16; may be repeated. fp32 and fp16 by default.
    publish
        Where to put the zips. Beside the checkpoint by default.
    json
        Print one JSON object and nothing else.
    """
    with _progress() as progress:
        outcomes = pipeline.export(
            source, components=component, precisions=precision, directory=publish, progress=progress
        )
    if json:
        print(report.as_json(outcomes))
    else:
        console = _output()
        console.print(report.table(outcomes))
        console.print("\n".join(report.closing(outcomes)), markup=False)
    return FAILED if any(outcome.state == "failed" for outcome in outcomes) else 0


@app.command
def synth(
    directory: Path,
    *,
    family: str = "cosyvoice",
    size: str = "tiny",
    seed: int = 0,
) -> int:
    """Write a complete model directory with random weights, for trying things out.

    Parameters
    ----------
    directory
        Where to write it.
    family
        cosyvoice or cosyvoice2.
    size
        tiny, or full for the published sizes.
    seed
        Other seeds give other weights.
    """
    from cosyjit.synth import synth as write

    _output().print(str(write(directory, family, size, seed)), markup=False)
    return 0


@contextmanager
def _progress() -> Iterator[pipeline.Progress]:
    """Draws on a terminal, for each target, the stage it is in; the callback is told of stages."""
    tasks: dict[Target, TaskID] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_errors, transient=True, disable=not _errors.is_terminal) as bar:

        def show(target: Target, stage: str) -> None:
            if target not in tasks:
                tasks[target] = bar.add_task(target.name, total=1, stage=stage)
            bar.update(tasks[target], stage=stage, completed=int(stage == "built"))

        yield show


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; each error that is the input's becomes one line on standard error."""
    # As for Ctrl-C: what is under way is ended, and what is half written is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        status: Any = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (CosyjitError, CycloptsError) as error:
        _errors.print(f"cosyjit: {' '.join(str(error).split())}", markup=False)
        status = FAILED if isinstance(error, BuildError) else BAD_INPUT
    sys.exit(status)
