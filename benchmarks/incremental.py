"""What an export costs of which little or nothing has changed, beside yardsticks taken in the same run.

    python -m benchmarks.incremental DIRECTORY [ROUNDS]

On a full-size stand-in: fingerprints against XXH3-128 over the same mapped bytes, one stream per processor; the command
line over an unchanged checkpoint; publishing against copying. All take turns; the figures are medians.
"""

import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash
from rich.console import Console
from rich.table import Table

from cosyjit import pipeline
from cosyjit.fs.digests import Digests
from cosyjit.processes import worker
from cosyjit.processes.processors import processors
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import Store
from cosyjit.synth.synth import synth
from cosyjit.weights.tensor_digests import read_tensors

_WEIGHTS = ("llm.pt", "flow.pt")
_STREAM = 4 << 20


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def _map(paths: list[Path]) -> list[memoryview]:
    maps = []
    for path in paths:
        with path.open("rb") as file:
            maps.append(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)))
    return maps


def _hash_mapped(maps: list[memoryview]) -> None:
    """One stream on each processor, over as many bytes."""
    blocks = [view[at : at + _STREAM] for view in maps for at in range(0, len(view), _STREAM)]

    def stream(number: int) -> None:
        digest = xxhash.xxh3_128()
        for block in blocks[number :: processors()]:
            digest.update(block)

    with ThreadPoolExecutor(processors()) as pool:
        list(pool.map(stream, range(processors())))


def fingerprints(source: Path, work: Path, rounds: int) -> Table:
    """The digests of all tensors, none remembered, against reading the same bytes mapped."""
    paths = [source / name for name in _WEIGHTS]
    size = sum(path.stat().st_size for path in paths)
    for path in paths:
        shutil.copyfile(path, "/dev/null")  # into the page cache
    mapped = _map(paths)
    figures: dict[str, list[float]] = {"mapped before": [], "mapped anew": [], "fingerprints": []}
    for _ in range(rounds + 1):
        figures["mapped before"].append(_timed(lambda: _hash_mapped(mapped)))
        figures["mapped anew"].append(_timed(lambda: _hash_mapped(_map(paths))))
        shutil.rmtree(work / "digests", ignore_errors=True)
        figures["fingerprints"].append(_timed(lambda: read_tensors(Digests(work / "digests"), paths)))
    table = Table("fingerprints", "s", "GB/s", "of the yardstick", title_justify="left")
    ours = _median(figures["fingerprints"][1:])
    for name, seconds in figures.items():
        median = _median(seconds[1:])  # the first maps the pages
        table.add_row(name, f"{median:.3f}", f"{size / median / 1e9:.1f}", f"{median / ours:.0%}")
    return table


def _command(*arguments: object) -> Callable[[], object]:
    command = [sys.executable, "-m", "cosyjit", *map(str, arguments)]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _add_records(store: Path, count: int) -> None:
    """More records of other fingerprints, of the usual size."""
    content = next((store / "records").glob("*.json")).read_bytes()
    for number in range(count):
        (store / "records" / f"{xxhash.xxh3_128_hexdigest(str(number).encode())}.json").write_bytes(content)


def commands(source: Path, store: Path, work: Path, rounds: int) -> Table:
    """Whole processes over an unchanged checkpoint."""
    table = Table("nothing changed", "s", "with 1,000 more records, s", title_justify="left")
    ways = {
        "cosyjit plan": _command("plan", source, "--store", store),
        "cosyjit export": _command("export", source, "--store", store, "--publish", work / "shown"),
        "python -c ''": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    }
    before = {name: [_timed(way) for _ in range(rounds)] for name, way in ways.items()}
    _add_records(store, 1000)
    os.sync()
    after = {name: [_timed(way) for _ in range(rounds)] for name, way in ways.items()}
    for name in ways:
        table.add_row(name, f"{_median(before[name]):.3f}", f"{_median(after[name]):.3f}")
    return table


def _copy(paths: list[Path], out: Path, *, sync: bool) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for path in paths:
        copy = out / path.name
        shutil.copyfile(path, copy)
        if sync:
            with copy.open("rb") as file:
                os.fsync(file.fileno())


def publishing(source: Path, root: Path, work: Path, rounds: int) -> Table:
    """All zips into an empty directory, against copying them, and copying them followed by fsync."""
    store = Store(root)
    shown = PublishedDirectory(work / "shown", store).history()[0]
    paths = [(work / "shown" / name).resolve() for name in shown.artifacts]
    ways: dict[str, Callable[[], object]] = {
        "publish": lambda: PublishedDirectory(work / "published", store).publish(shown.artifacts, str(source)),
        "copy": lambda: _copy(paths, work / "copied", sync=False),
        "copy and fsync": lambda: _copy(paths, work / "copied", sync=True),
    }
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            for left in ("published", "copied"):
                shutil.rmtree(work / left, ignore_errors=True)
            os.sync()
            figures[name].append(_timed(way))
    table = Table("publishing", "s", "publish takes", title_justify="left")
    for name, seconds in figures.items():
        ratio = _median([a / b for a, b in zip(figures["publish"], seconds, strict=True)])
        table.add_row(name, f"{_median(seconds):.2f}", f"{ratio:.2f} times")
    return table


def main(directory: Path, rounds: int) -> None:
    """Make the stand-in and its artifacts if they are not there, run the rounds, print the figures."""
    source, store, work = directory / "CosyVoice-full", directory / "store", directory / "work"
    if not source.is_dir():
        synth(source, "cosyvoice", "full")
    work.mkdir(parents=True, exist_ok=True)
    pipeline.export(source, publish=work / "shown", store=Store(store))
    worker.stop()
    console = Console(highlight=False)
    console.print(fingerprints(source, work, rounds))
    console.print(publishing(source, store, work, rounds))
    console.print(commands(source, store, work, rounds))
    for left in (work, store):
        shutil.rmtree(left)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)  # noqa: PLR2004
