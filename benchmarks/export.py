"""What a cold export of a full-size model costs, beside two yardsticks taken in the same run.

    python -m benchmarks.export DIRECTORY [ROUNDS]

The yardsticks: writing as many bytes as the export does, each file followed by fsync; and a plain exporter
(`benchmarks.plain_export`). All take turns, since machines drift; the figures are medians over the rounds. Before each
turn the files read are dropped from the page cache. Peak memory is taken in a round of its own: looking takes time.
"""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from cosyjit import pipeline
from cosyjit.fs.files import remove
from cosyjit.pipeline import Outcome
from cosyjit.processes import worker
from cosyjit.store.store import Store
from cosyjit.synth.synth import synth

STAGES = ("load", "script", "save", "verify")


@dataclass
class Memory:
    """The peak of a process tree's memory, pages shared between processes counted once.

    Attributes:
        total: proportional set size: what the processes have allocated, and what they have mapped of files.
        allocated: unique and anonymous memory alone; mapped files are the page cache's, and given back at need.
    """

    total: int = 0
    allocated: int = 0


@dataclass
class Round:
    """The figures of one round, in seconds and bytes."""

    export: float = 0.0
    write: float = 0.0
    plain: float = 0.0
    size: int = 0
    plain_size: int = 0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)


def _peak_memory(call: Callable[[], object]) -> Memory:
    """The peak of this process's tree during a call, less what it holds before."""
    done = threading.Event()
    base, peak = _tree_memory(), Memory()

    def sample() -> None:
        while not done.wait(0.05):
            now = _tree_memory()
            peak.total = max(peak.total, now.total - base.total)
            peak.allocated = max(peak.allocated, now.allocated - base.allocated)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return peak


def _tree_memory() -> Memory:
    memory = Memory()
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue  # it has ended
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
        memory.total += 1024 * sizes["Pss"]
        memory.allocated += 1024 * sizes["Pss_Anon"]
    return memory


def _make_cold(source: Path) -> None:
    """Drop a directory's files from the page cache."""
    os.sync()
    for path in source.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _write(sizes: list[int], directory: Path) -> None:
    block = os.urandom(8 << 20)
    for number, size in enumerate(sizes):
        with (directory / f"written.{number}").open("wb", buffering=0) as file:
            for at in range(0, size, len(block)):
                file.write(block[: min(len(block), size - at)])
            os.fsync(file.fileno())


def _clear(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        remove(path)
    return directory


def _export(source: Path, out: Path, progress: pipeline.Progress | None = None) -> list[Outcome]:
    """Into an empty store on the same disk."""
    try:
        return pipeline.export(source, publish=out, store=Store(out / "store"), progress=progress)
    finally:
        worker.stop()  # each export of the command line starts its own server; so does each one here


def _plain_export(source: Path, out: Path) -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.plain_export", str(source), str(out)], check=True)


def _round(source: Path, work: Path) -> Round:
    result = Round()
    entered: dict[str, list[tuple[str, float]]] = defaultdict(list)
    out = _clear(work / "out")
    _make_cold(source)
    result.export = _timed(
        lambda: _export(source, out, lambda target, stage: entered[target.name].append((stage, time.perf_counter())))
    )
    sizes = [path.stat().st_size for path in out.glob("*.zip")]
    result.size = sum(sizes)
    for name, stages in entered.items():
        ends = [at for _, at in stages[1:]]
        result.stages[name] = {stage: end - at for (stage, at), end in zip(stages, ends, strict=False)}

    _clear(out)
    result.write = _timed(lambda: _write(sizes, out))

    _clear(out)
    _make_cold(source)
    result.plain = _timed(lambda: _plain_export(source, out))
    result.plain_size = sum(path.stat().st_size for path in out.iterdir())
    _clear(out)
    return result


def _median(rounds: list[Round], figure: Callable[[Round], float]) -> float:
    return statistics.median(figure(each) for each in rounds)


def _show(rounds: list[Round], memory: Memory, plain_memory: Memory) -> None:
    console = Console(highlight=False)
    stages = Table(title="stages, s", title_justify="left")
    for heading in ("target", *STAGES):
        stages.add_column(heading, justify="left" if heading == "target" else "right")
    for name in rounds[0].stages:
        cells = [_median(rounds, lambda each, n=name, s=stage: each.stages[n][s]) for stage in STAGES]  # type: ignore[misc]
        stages.add_row(name, *(f"{cell:.2f}" for cell in cells))
    console.print(stages)

    totals = Table(title=f"medians of {len(rounds)} rounds", title_justify="left")
    for heading in ("", "s", "GB written", "peak memory, GB", "of it allocated, GB"):
        totals.add_column(heading, justify="left" if not heading else "right")
    size, plain_size = _median(rounds, lambda each: each.size), _median(rounds, lambda each: each.plain_size)
    totals.add_row(
        "cosyjit export",
        f"{_median(rounds, lambda each: each.export):.1f}",
        f"{size / 1e9:.2f}",
        f"{memory.total / 1e9:.2f}",
        f"{memory.allocated / 1e9:.2f}",
    )
    totals.add_row("write and fsync", f"{_median(rounds, lambda each: each.write):.1f}", f"{size / 1e9:.2f}", "", "")
    totals.add_row(
        "plain exporter",
        f"{_median(rounds, lambda each: each.plain):.1f}",
        f"{plain_size / 1e9:.2f}",
        f"{plain_memory.total / 1e9:.2f}",
        f"{plain_memory.allocated / 1e9:.2f}",
    )
    console.print(totals)
    console.print(
        f"against the plain exporter, round by round: {_median(rounds, lambda each: each.plain / each.export):.1f} "
        f"times as fast; against write and fsync: {_median(rounds, lambda each: each.export / each.write):.1f} "
        "times as long"
    )


def main(directory: Path, count: int) -> None:
    """Make the stand-in if it is not there, run the rounds, print the figures."""
    source, out = directory / "CosyVoice-full", directory / "out"
    if not source.is_dir():
        synth(source, "cosyvoice", "full")
    rounds = [_round(source, directory) for _ in range(count)]
    memory = _peak_memory(lambda: _export(source, _clear(out)))
    plain_memory = _peak_memory(lambda: _plain_export(source, _clear(out)))
    _clear(out)
    _show(rounds, memory, plain_memory)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)  # noqa: PLR2004
