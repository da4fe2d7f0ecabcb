"""What exports of a full-size model cost that build something, each beside yardsticks taken in the same round.

    python -m benchmarks.export DIRECTORY [ROUNDS]

A round is the life of a checkpoint: it is exported into an empty store; `flow.pt` is retrained, and it is exported
again; all of `llm.llm` is, the text encoder is not, and it is exported again; and then another checkpoint of the family
is exported into an empty store to which only the graphs of the first one were copied.

After each export come its yardsticks: a plain exporter (`benchmarks.plain_export`), which knows no store, rebuilds
everything and compares nothing; and writing as many bytes as the export's new zips have, each file followed by fsync.
Machines drift, so the figures are medians over the rounds, and ratios the medians of the rounds' ratios. Before each
turn the files read are dropped from the page cache.

Processor seconds are those of the whole tree, and apart from them those of the processes that build and of those that
verify. Peak memory is taken in a round of its own: looking takes time.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import children
from benchmarks.children import STAGES
from cosyjit import pipeline
from cosyjit.fs.files import remove
from cosyjit.processes import worker
from cosyjit.store.store import Store
from cosyjit.synth.synth import synth


class Way(NamedTuple):
    """A kind of export.

    Attributes:
        name: in the tables.
        retrained: by weights file, the prefixes of the tensors that change before it.
        keeps: what stays of the store before it: all for None, or the folders with these names.
    """

    name: str
    retrained: dict[str, tuple[str, ...]]
    keeps: tuple[str, ...] | None


WAYS: Final = (
    Way("cold, no graphs", {}, ()),
    Way("flow.pt retrained", {"flow.pt": ("",)}, None),
    Way("llm.llm retrained", {"llm.pt": ("llm.",)}, None),
    Way("cold, with graphs", {"llm.pt": ("",), "flow.pt": ("",)}, ("graphs",)),
)
"""In the order of a round."""


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
class Cost:
    """What an export costs, in seconds and bytes.

    Attributes:
        processor: of the tree, in seconds.
        size: of the new zips.
        zips: how many are new.
        of_graphs: how many of them were written by a graph that had been proven before.
        stages: processor seconds by target and stage.
    """

    seconds: float = 0.0
    processor: float = 0.0
    size: int = 0
    zips: int = 0
    of_graphs: int = 0
    memory: Memory = field(default_factory=Memory)
    stages: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def of(self, *stages: str) -> float:
        """The processor seconds of stages of all targets."""
        return sum(seconds.get(stage, 0.0) for seconds in self.stages.values() for stage in stages)


class Turn(NamedTuple):
    """A way of export beside its yardsticks."""

    export: Cost
    plain: Cost
    write: Cost


Round = dict[str, Turn]


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


@contextmanager
def _watched(peak: Memory) -> Iterator[None]:
    """Note the peak of this process's tree meanwhile, less what it holds before."""
    done = threading.Event()
    base = _tree_memory()

    def sample() -> None:
        while not done.wait(0.05):
            now = _tree_memory()
            peak.total = max(peak.total, now.total - base.total)
            peak.allocated = max(peak.allocated, now.allocated - base.allocated)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _processor() -> float:
    """The processor seconds of this process, and of its tree that has ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _cost(call: Callable[[Cost], object], *, watch: bool) -> Cost:
    """What a call costs, with its memory and without its time if it is watched."""
    cost = Cost()
    if watch:
        with _watched(cost.memory):
            call(cost)
        return cost
    begun, before = time.perf_counter(), _processor()
    call(cost)
    cost.seconds, cost.processor = time.perf_counter() - begun, _processor() - before
    return cost


def _drop_from_cache(source: Path) -> None:
    os.sync()
    for path in source.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _export(cost: Cost, source: Path, work: Path) -> None:
    plain = worker.run

    def run(function: Callable[..., object], target: Any, *args: object, **options: Any) -> object:
        result, stages = plain(children.metered, function, target, *args, **options)
        found = cost.stages[target.name]
        for stage, seconds in stages.items():
            found[stage] = found.get(stage, 0.0) + seconds
        return result

    with patch.object(worker, "run", run):
        outcomes = pipeline.export(source, publish=work / "shown", store=Store(work / "store"))
    worker.stop()  # each export of the command line starts its own server; so does each one here
    failed = [outcome for outcome in outcomes if outcome.record is None]
    if failed:
        raise SystemExit(f"{failed[0].target.name}: {failed[0].error}")
    built = [outcome.record for outcome in outcomes if outcome.state == "built" and outcome.record]
    cost.size = sum(record.size for record in built)
    cost.zips, cost.of_graphs = len(built), sum(int(record.figures["of_graph"]) for record in built)


def _plain_export(cost: Cost, source: Path, out: Path) -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.plain_export", str(source), str(out)], check=True)
    cost.size = sum(path.stat().st_size for path in out.iterdir())


def _write(cost: Cost, size: int, out: Path) -> None:
    block = os.urandom(8 << 20)
    with (out / "written").open("wb", buffering=0) as file:
        for at in range(0, size, len(block)):
            file.write(block[: min(len(block), size - at)])
        os.fsync(file.fileno())
    cost.size = size


def _clear(directory: Path, but: Sequence[str] = ()) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.name not in but:
            remove(path)
    return directory


def _turn(way: Way, source: Path, work: Path, number: int, *, watch: bool) -> Turn:
    for name, prefixes in way.retrained.items():
        worker.run(children.retrain, source / name, prefixes, number)
    worker.stop()
    if way.keeps is not None:
        _clear(work / "shown")
        _clear(work / "store", way.keeps)
    out = work / "out"
    _drop_from_cache(source)
    export = _cost(lambda cost: _export(cost, source, work), watch=watch)
    _clear(out)
    _drop_from_cache(source)
    plain = _cost(lambda cost: _plain_export(cost, source, out), watch=watch)
    _clear(out)
    write = _cost(lambda cost: _write(cost, export.size, out), watch=watch)
    _clear(out)
    return Turn(export, plain, write)


def _round(model: Path, work: Path, number: int, *, watch: bool = False) -> Round:
    """All ways, from the model as it was before any training."""
    source = _clear(work) / "CosyVoice-full"
    shutil.copytree(model, source)
    turns = {way.name: _turn(way, source, work, number, watch=watch) for way in WAYS}
    remove(work)
    return turns


def _median(rounds: Sequence[Round], way: str, figure: Callable[[Turn], float]) -> float:
    return statistics.median(figure(each[way]) for each in rounds)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if table.columns else "left")
    return table


def _totals(rounds: Sequence[Round]) -> Table:
    headings = (
        "export, s",
        "plain exporter, s",
        "export / plain",
        "write and fsync, s",
        "export / write",
        "GB of zips",
    )
    table = _table(f"exports; medians of {len(rounds)} rounds", "", "new zips", "by graphs", *headings)
    for way in rounds[0]:
        figures: list[Callable[[Turn], float]] = [
            lambda turn: turn.export.seconds,
            lambda turn: turn.plain.seconds,
            lambda turn: turn.export.seconds / turn.plain.seconds,
            lambda turn: turn.write.seconds,
            lambda turn: turn.export.seconds / turn.write.seconds,
            lambda turn: turn.export.size / 1e9,
            lambda turn: turn.plain.size / 1e9,
        ]
        new = rounds[0][way].export
        cells = (f"{_median(rounds, way, figure):.2f}" for figure in figures)
        table.add_row(way, str(new.zips), str(new.of_graphs), *cells)
    return table


def _processors(rounds: Sequence[Round]) -> Table:
    table = _table("processor, s", "", "builds", "gates", "gates / builds", "all", "plain exporter", "all / plain")
    *build, gate = STAGES
    for way in rounds[0]:
        figures: list[Callable[[Turn], float]] = [
            lambda turn: turn.export.of(*build),
            lambda turn: turn.export.of(gate),
            lambda turn: turn.export.of(gate) / turn.export.of(*build),
            lambda turn: turn.export.processor,
            lambda turn: turn.plain.processor,
            lambda turn: turn.export.processor / turn.plain.processor,
        ]
        table.add_row(way, *(f"{_median(rounds, way, figure):.2f}" for figure in figures))
    return table


def _stages(rounds: Sequence[Round]) -> Table:
    table = _table("processor, s, by target", "", "target", *STAGES)
    for way, turn in rounds[0].items():
        for target in turn.export.stages:
            seconds = ([each[way].export.stages[target].get(stage, 0.0) for each in rounds] for stage in STAGES)
            table.add_row(way, target, *(f"{statistics.median(each):.2f}" for each in seconds))
        table.add_section()
    return table


def _memory(watched: Round) -> Table:
    table = _table("peak memory, GB", "", "export", "of it allocated", "plain exporter", "of it allocated")
    for way, turn in watched.items():
        peaks = (each for cost in (turn.export, turn.plain) for each in (cost.memory.total, cost.memory.allocated))
        table.add_row(way, *(f"{peak / 1e9:.2f}" for peak in peaks))
    return table


def main(directory: Path, count: int) -> None:
    """Make the stand-in if it is not there, run the rounds, print the figures."""
    model, work = directory / "CosyVoice-full", directory / "export"
    if not model.is_dir():
        synth(model, "cosyvoice", "full")
    console = Console(highlight=False, width=120)
    rounds = [_round(model, work, number) for number in range(count)]
    for table in (_totals(rounds), _processors(rounds), _stages(rounds)):
        console.print(table)
    console.print(_memory(_round(model, work, count, watch=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)  # noqa: PLR2004
