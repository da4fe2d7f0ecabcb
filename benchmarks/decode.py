"""What a step of autoregressive decoding costs, and what loading an artifact takes, beside a plain one.

    python -m benchmarks.decode DIRECTORY [ROUNDS]

The full-size `llm.llm` in float32 and int8, the plain one (`benchmarks.plain`) in float32, and a yardstick take turns
in one process; the yardstick reads as many bytes as the float32 weights have, and copies the cache. A turn is a few
steps in a row, as in decoding; the figures are medians of the rounds, and ratios the medians of the rounds' ratios.
"""

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import plain_export
from benchmarks.plain import build_plain
from cosyjit import pipeline
from cosyjit.processes import worker
from cosyjit.sources.checkpoint import open_checkpoint
from cosyjit.sources.source import open_source
from cosyjit.store.store import Store
from cosyjit.synth.synth import synth

COMPONENT: Final = "llm.llm"
CACHED: Final = (64, 250, 500, 1000, 2000)
LENGTHS: Final = (64, 512)
STEPS: Final = 4

Turn = Callable[[], object]


def _artifacts(source: Path, work: Path) -> dict[str, Path]:
    """Ours and the plain one, by what they are called in the tables."""
    pipeline.export(
        source, components=[COMPONENT], precisions=["fp32", "int8"], publish=work, store=Store(work / "store")
    )
    worker.stop()
    path = work / "plain.zip"
    if not path.exists():
        checkpoint = open_checkpoint(open_source(source))
        (part,) = (each for each in checkpoint.family.components if each.name == COMPONENT)
        encoder = build_plain(part.class_name, checkpoint.options(part))
        state = torch.load(source / part.weights, map_location="cpu", weights_only=True, mmap=True)
        encoder.load_state_dict({k.removeprefix(part.prefix): v for k, v in state.items() if k.startswith(part.prefix)})
        plain_export.save(encoder, part.methods, path)
    return {"fp32": work / f"{COMPONENT}.fp32.zip", "plain": path, "int8": work / f"{COMPONENT}.int8.zip"}


def _take_turns(turns: dict[str, Turn], rounds: int) -> dict[str, list[float]]:
    """The median seconds of a step in each round, by name. Two rounds before do not count: TorchScript optimizes."""
    found: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(-2, rounds):
        for name, turn in turns.items():
            steps = []
            for _ in range(STEPS):
                begun = time.perf_counter()
                turn()
                steps.append(time.perf_counter() - begun)
            if number >= 0:
                found[name].append(statistics.median(steps))
    return found


def _ratio(found: dict[str, list[float]], above: str, below: str) -> str:
    return f"{statistics.median(a / b for a, b in zip(found[above], found[below], strict=True)):.2f}"


def _milliseconds(found: dict[str, list[float]], name: str) -> str:
    return f"{1000 * statistics.median(found[name]):.1f}"


def _step(model: Any, cache: Tensor) -> Turn:
    frame, nothing = torch.randn(1, 1, 1024), torch.zeros(0, 0, 0, 0)
    seen = torch.ones(1, 1, 1, dtype=torch.bool)
    return lambda: model.forward_chunk(
        frame, offset=cache.size(2), required_cache_size=-1, att_cache=cache, cnn_cache=nothing, att_mask=seen
    )


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _decode(models: dict[str, Any], weights: Tensor, rounds: int) -> Table:
    table = _table(
        f"a step, ms; medians of {rounds} rounds",
        *("cached frames", "fp32", "plain", "plain / fp32", "memory", "fp32 / memory", "int8", "fp32 / int8"),
    )
    for cached in CACHED:
        cache = torch.randn(14, 16, cached, 128)
        turns: dict[str, Turn] = {name: _step(model, cache) for name, model in models.items()}
        turns["memory"] = lambda cache=cache: (weights.sum(), cache.clone())  # type: ignore[misc]
        found = _take_turns(turns, rounds)
        fp32, plain, memory, int8 = (_milliseconds(found, name) for name in ("fp32", "plain", "memory", "int8"))
        gain, bound, narrow = (
            _ratio(found, *names) for names in (("plain", "fp32"), ("fp32", "memory"), ("fp32", "int8"))
        )
        table.add_row(str(cached), fp32, plain, gain, memory, bound, int8, narrow)
    return table


def _forward(models: dict[str, Any], rounds: int) -> Table:
    table = _table("forward, ms", "frames", "fp32", "plain", "plain / fp32", "int8")
    for length in LENGTHS:
        xs, lengths = torch.randn(1, length, 1024), torch.tensor([length])
        turns: dict[str, Turn] = {
            name: lambda model=model, xs=xs, n=lengths: model(xs, n)  # type: ignore[misc]
            for name, model in models.items()
        }
        found = _take_turns(turns, rounds)
        times = {name: _milliseconds(found, name) for name in models}
        table.add_row(str(length), times["fp32"], times["plain"], _ratio(found, "plain", "fp32"), times["int8"])
    return table


def _load(paths: dict[str, Path]) -> Table:
    """Each in processes of their own, three of them."""
    table = _table("size and load", "", "bytes, MB", "load, s", "memory, MB")
    for name, path in paths.items():
        runs = []
        for _ in range(3):
            command = [sys.executable, "-m", "benchmarks.decode", "--load", str(path)]
            runs.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        seconds, memory = (statistics.median(float(run[at]) for run in runs) for at in (0, 1))
        table.add_row(name, f"{path.stat().st_size / 1e6:.0f}", f"{seconds:.2f}", f"{memory / 1e6:.0f}")
    return table


def _load_here(path: Path) -> None:
    warnings.simplefilter("ignore")
    before, begun = psutil.Process().memory_info().rss, time.perf_counter()
    model = torch.jit.load(path)
    seconds = time.perf_counter() - begun
    Console().print(f"{seconds:.3f} {psutil.Process().memory_info().rss - before}")
    del model


def main(directory: Path, rounds: int) -> None:
    """Make the stand-in and the artifacts if they are not there, take turns, print the figures."""
    warnings.simplefilter("ignore")
    source, work = directory / "CosyVoice-full", directory / "decode"
    if not source.is_dir():
        synth(source, "cosyvoice", "full")
    work.mkdir(exist_ok=True)
    paths = _artifacts(source, work)
    console = Console(highlight=False, width=110)
    console.print(_load(paths))
    models = {name: torch.jit.load(path) for name, path in paths.items()}
    weights = torch.randn(paths["fp32"].stat().st_size // 4)
    with torch.inference_mode():
        console.print(_decode(models, weights, rounds))
        console.print(_forward(models, rounds))


if __name__ == "__main__":
    if sys.argv[1] == "--load":
        _load_here(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 9)  # noqa: PLR2004
