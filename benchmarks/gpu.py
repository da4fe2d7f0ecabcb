"""What zips compute on a GPU, and what their calls take there, beside plain zips and the card's memory.

    python -m benchmarks.gpu DIRECTORY [ROUNDS]

Exports a full-size stand-in with the torch that is there, ours and the plain way (`benchmarks.plain_export`), and loads
both on the GPU: in float32, in half precision with half inputs, and in half precision with float32 inputs under
autocast, which is how the public runtime calls them. Each is compared, in the calls of the gate, with the eager float32
encoder on the GPU. A step of decoding and `forward` are timed with CUDA events, after calls that do not count, since
TorchScript optimizes in them; ours and the plain one take turns, and the figures are medians of the rounds. The
profiler counts the kernels of a call.

The yardstick of a step is the time in which the weights and the cache can be read, at the bandwidth that a large copy
on the card has. float32 is computed as such: nothing is rounded to TF32.
"""

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from cosyjit import pipeline
from cosyjit.families import Component
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.store.store import Store
from cosyjit.synth.synth import synth
from cosyjit.torchscript.calls import STEP, Call, Labelled, calls, random_cache
from cosyjit.torchscript.gate import has_arithmetic
from cosyjit.torchscript.load import load_encoder
from cosyjit.torchscript.script import cast

CACHED: Final = (64, 250, 500, 1000, 2000)
LENGTHS: Final = (64, 512)
WARM_UP: Final = 10
STEPS: Final = 20
WAYS: Final = ("ours", "plain")
COPIED: Final = 1 << 30

Turn = Callable[[], object]
T = TypeVar("T")


class Mode(NamedTuple):
    """A way to call a zip: its name, the precision of the zip, the type of the inputs, and whether autocast is on."""

    name: str
    precision: str
    inputs: torch.dtype
    autocast: bool = False

    def on(self, device: torch.device) -> Any:
        """A context in which to call the zip."""
        return torch.autocast(device.type, torch.float16) if self.autocast else nullcontext()


MODES: Final = (
    Mode("fp32", "fp32", torch.float32),
    Mode("fp16", "fp16", torch.float16),
    Mode("fp16, autocast", "fp16", torch.float32, autocast=True),
)


class Artifacts(NamedTuple):
    """A component, its float32 encoder, its zips by way and precision, and the bytes of its weights by precision."""

    component: Component
    encoder: nn.Module
    paths: Mapping[tuple[str, str], Path]
    weight_bytes: Mapping[str, int]


class Error(NamedTuple):
    """The largest errors of calls: absolute, and relative, as norms of the difference and of the encoder's outputs."""

    absolute: float = 0.0
    relative: float = 0.0


# The zips.


def artifacts(source: Path, work: Path, device: torch.device) -> list[Artifacts]:
    """Export a model directory in both ways; gives the zips by component, and the encoders on a device."""
    ours = work / "ours"
    outcomes = pipeline.export(source, precisions=["fp32", "fp16"], publish=ours, store=Store(work / "store"))
    worker.stop()
    subprocess.run([sys.executable, "-m", "benchmarks.plain_export", str(source), str(work / "plain")], check=True)
    grouped: dict[str, list[Target]] = {}
    for outcome in outcomes:
        if outcome.record is None:
            raise SystemExit(f"{outcome.target.name}: {outcome.error}")
        grouped.setdefault(outcome.target.component.name, []).append(outcome.target)
    return [_artifacts(targets, work, device) for targets in grouped.values()]


def _artifacts(targets: Sequence[Target], work: Path, device: torch.device) -> Artifacts:
    target = targets[0]
    encoder, tensors = load_encoder(target.source, target.component, target.options, target.reading)
    encoder.load_state_dict(cast(tensors, torch.float32), assign=True)
    paths = {(way, each.precision.name): work / way / each.file_name for each in targets for way in WAYS}
    weight_bytes = {each.precision.name: each.weight_bytes for each in targets}
    return Artifacts(target.component, encoder.to(device), paths, weight_bytes)


def load(made: Artifacts, device: torch.device) -> dict[tuple[str, str], Any]:
    """The zips of a component on a device, by way and precision."""
    return {key: torch.jit.load(str(path), map_location=device) for key, path in made.paths.items()}


# What they compute.


class _OnDevice:
    """A model on a device, called with tensors of the CPU; its outputs are brought back."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._call(self.model, *args, **options)

    def forward_chunk(self, *args: Any, **options: Any) -> Any:
        return self._call(self.model.forward_chunk, *args, **options)

    def _call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        outputs = method(*map(self._moved, args), **{name: self._moved(each) for name, each in options.items()})
        return tuple(output.cpu() for output in outputs)

    def _moved(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value


def compare(made: Artifacts, models: Mapping[tuple[str, str], Any], device: torch.device) -> list[list[str]]:
    """The errors of zips on a device against the encoder there: the rows of `error_table`."""
    native = device.type == "cuda" or has_arithmetic(torch.float16)  # else each sequence would take minutes
    named = list(calls(made.encoder, made.component.methods, "branches" if native else "few", real=native))
    encoder = _OnDevice(made.encoder, device)
    expected = [list(call.run(encoder, torch.float32)) for call in named]
    rows = []
    for mode in MODES:
        cells = []
        for way in WAYS:
            model = _OnDevice(models[way, mode.precision], device)
            error, failure = attempt(partial(_error, named, expected, model, mode, device))
            cells.append(_scientific(error) if error else failure)
        tolerance = made.component.tolerances[mode.precision]
        tolerated = _scientific(Error(tolerance.absolute, tolerance.relative))
        rows.append([made.component.name, mode.name, *cells, tolerated])
    return rows


def _scientific(error: Error) -> str:
    return f"{error.absolute:.1e}, {error.relative:.1e}"


def _error(
    named: Sequence[Call], expected: Sequence[list[Labelled]], model: Any, mode: Mode, device: torch.device
) -> Error:
    error = Error()
    for call, theirs in zip(named, expected, strict=True):
        with mode.on(device):
            ours = list(call.run(model, mode.inputs))
        error = largest(error, ours, theirs)
    return error


def largest(error: Error, ours: Sequence[Labelled], theirs: Sequence[Labelled]) -> Error:
    """The errors of a call's outputs, or those given where they are larger.

    Raises:
        ValueError: outputs have another shape, flags differ, or numbers are NaN or infinite.
    """
    for (label, our), (_, their) in zip(ours, theirs, strict=True):
        if our.shape != their.shape or (their.dtype == torch.bool and not torch.equal(our, their)):
            raise ValueError(f"{label} differs from the encoder's")
        if not our.isfinite().all():
            raise ValueError(f"{label} has numbers that are NaN or infinite")
        if their.dtype != torch.bool and their.numel():
            difference, norm = our.double() - their.double(), float(their.double().norm())
            relative = float(difference.norm()) / norm if norm else float(difference.any())
            error = Error(max(error.absolute, float(difference.abs().max())), max(error.relative, relative))
    return error


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """What a call gives, or the last line of its error: one zip that fails is a result, and does not end the run."""
    try:
        return call(), ""
    except (RuntimeError, ValueError) as error:
        return None, f"fails: {str(error).strip().splitlines()[-1]}"


# What they take.


def step(model: Any, encoder: Any, mode: Mode, cached: int, device: torch.device) -> Turn:
    """A step of decoding behind so many frames."""
    size = encoder.get_submodule("embed.out.0").in_features
    narrow = torch.float16 if mode.precision == "fp16" else torch.float32
    cache = random_cache(encoder, cached, narrow).contiguous().to(device)
    frame = torch.randn(1, 1, size, device=device, dtype=mode.inputs)
    nothing, seen = torch.zeros(0, 0, 0, 0, device=device), torch.ones(1, 1, 1, dtype=torch.bool, device=device)

    def run() -> object:
        with mode.on(device):
            return model.forward_chunk(
                frame, offset=cached, required_cache_size=-1, att_cache=cache, cnn_cache=nothing, att_mask=seen
            )

    return run


def forward(model: Any, encoder: Any, mode: Mode, frames: int, device: torch.device) -> Turn:
    """`forward` over so many frames."""
    size = encoder.get_submodule("embed.out.0").in_features
    xs = torch.randn(1, frames, size, device=device, dtype=mode.inputs)
    lengths = torch.tensor([frames], device=device)

    def run() -> object:
        with mode.on(device):
            return model(xs, lengths)

    return run


def elapsed(turn: Turn, device: torch.device) -> float:
    """The seconds of a call, the mean of some in a row: by the events of a GPU, or the clock of a CPU."""
    if device.type == "cpu":
        begun = time.perf_counter()
        for _ in range(STEPS):
            turn()
        return (time.perf_counter() - begun) / STEPS
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(STEPS):
        turn()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / STEPS


def take_turns(turns: Mapping[str, Turn], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """The seconds of each call, in rounds; before, each is called some times that do not count."""
    for turn in turns.values():
        for _ in range(WARM_UP):
            turn()
    found: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            found[name].append(elapsed(turn, device))
    return found


def kernels(turn: Turn, device: torch.device) -> int:
    """How many kernels a call runs on a device, copies and fills of memory included; none on a CPU."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        turn()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return sum(event.device_type.name == "CUDA" and not event.is_user_annotation for event in profile.events())


def bandwidth(device: torch.device, size: int) -> float:
    """The bytes that a device reads and writes a second, in a copy of so many bytes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ((seconds, *more),) = take_turns({"copy": lambda: target.copy_(source)}, 5, device).values()
    return 2 * size / statistics.median([seconds, *more])


# The tables.


def table(title: str, *headings: str) -> Table:
    """A table whose columns are numbers, but for the first two."""
    made = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        made.add_column(heading, justify="right" if number > 1 else "left")
    return made


class Cells(NamedTuple):
    """A row's figures: seconds and kernels by way; a way that fails has none, and why is in `failure`."""

    seconds: Mapping[str, list[float]]
    kernels: Mapping[str, int]
    failure: str = ""

    def row(self) -> list[str]:
        """Milliseconds of ours and of the plain one, how many times the latter ours is as fast, kernels, failure."""
        times = [f"{1000 * statistics.median(self.seconds[way]):.3f}" if way in self.seconds else "" for way in WAYS]
        ratio = ""
        if all(way in self.seconds for way in WAYS):
            ours, plain = (self.seconds[way] for way in WAYS)
            ratio = f"{statistics.median(b / a for a, b in zip(ours, plain, strict=True)):.2f}"
        return [*times, ratio, *(str(self.kernels.get(way, "")) for way in WAYS)]


def measured(turns: Mapping[str, Turn], rounds: int, device: torch.device) -> Cells:
    """The figures of ours and the plain one, in turn."""
    failures = {way: attempt(turn)[1] for way, turn in turns.items()}
    sound = {way: turn for way, turn in turns.items() if not failures[way]}
    seconds = take_turns(sound, rounds, device)
    return Cells(
        seconds,
        {way: kernels(turn, device) for way, turn in sound.items()},
        "; ".join(f"{way} {why}" for way, why in failures.items() if why),
    )


def error_table(rows: Sequence[Sequence[str]]) -> Table:
    """The errors by component, mode and way, and the tolerances of the gate."""
    title = "largest absolute and relative error against the eager float32 encoder"
    made = table(title, "", "mode", *WAYS, "tolerated by the gate")
    for row in rows:
        made.add_row(*row)
    return made


_TIMES: Final = ("ours, ms", "plain, ms", "plain / ours", "kernels", "plain's")


def step_table(
    made: Artifacts, models: Mapping[tuple[str, str], Any], rounds: int, device: torch.device, speed: float
) -> Table:
    """Steps of a component behind more and more frames, beside reading as many bytes at so many a second."""
    shown = table(f"a step of {made.component.name}", "mode", "cached", *_TIMES, "read, ms", "ours / read", "fails")
    for mode in MODES:
        for cached in CACHED:
            turns = {way: step(models[way, mode.precision], made.encoder, mode, cached, device) for way in WAYS}
            cells = measured(turns, rounds, device)
            width = 2 if mode.precision == "fp16" else 4
            size = made.weight_bytes[mode.precision] + width * random_cache(made.encoder, cached, torch.float32).numel()
            ours = statistics.median(cells.seconds["ours"]) if "ours" in cells.seconds else None
            ratio = "" if ours is None else f"{ours * speed / size:.2f}"
            shown.add_row(mode.name, str(cached), *cells.row(), f"{1000 * size / speed:.3f}", ratio, cells.failure)
        shown.add_section()
    return shown


def forward_table(made: Artifacts, models: Mapping[tuple[str, str], Any], rounds: int, device: torch.device) -> Table:
    """`forward` of a component."""
    shown = table(f"forward of {made.component.name}", "mode", "frames", *_TIMES, "fails")
    for mode in MODES:
        for frames in LENGTHS:
            turns = {way: forward(models[way, mode.precision], made.encoder, mode, frames, device) for way in WAYS}
            cells = measured(turns, rounds, device)
            shown.add_row(mode.name, str(frames), *cells.row(), cells.failure)
    return shown


def figures(source: Path, work: Path, rounds: int, device: torch.device, console: Console) -> None:
    """Export a model directory, and print all tables."""
    warnings.simplefilter("ignore")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    errors: list[list[str]] = []
    speed = bandwidth(device, COPIED)
    console.print(f"torch {torch.__version__}; a copy on the device reads and writes {speed / 1e9:,.0f} GB/s")
    for made in artifacts(source, work, device):
        models = load(made, device)
        with torch.inference_mode():
            errors += compare(made, models, device)
            if STEP in made.component.methods:
                console.print(step_table(made, models, rounds, device, speed))
            console.print(forward_table(made, models, rounds, device))
    console.print(error_table(errors))


def main(directory: Path, rounds: int) -> None:
    """Make the stand-in if it is not there, and print its figures on the first GPU."""
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU with CUDA; run this on a machine that has one")
    source, work = directory / "CosyVoice-full", directory / "gpu"
    if not source.is_dir():
        synth(source, "cosyvoice", "full")
    work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda", 0)
    console = Console(highlight=False, width=160)
    console.print(torch.cuda.get_device_name(device))
    figures(source, work, rounds, device, console)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)  # noqa: PLR2004
