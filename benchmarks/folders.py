"""What writing the folders of a full-size language model costs, beside writing as many bytes.

    python -m benchmarks.folders DIRECTORY [ROUNDS]

Each takes its turn in a process of its own, which has imported torch already, and ends with fsync; the figures are
medians over the rounds. The weights file is read from the page cache, and once more after it was dropped from it.
Peak memory is what the process has resident at most, less what it has after the import of torch.
"""

import os
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import costs
from cosyjit.families import COSYVOICE2_HF, COSYVOICE2_VLLM, PRECISIONS, Component, Precision
from cosyjit.folders.content import Content, numbers
from cosyjit.fs.files import remove
from cosyjit.planning.inputs import folder_need
from cosyjit.processes import worker
from cosyjit.synth.synth import synth
from cosyjit.weights.fit import PLAIN, read_as
from cosyjit.weights.weights_file import opened


def _clear(out: Path) -> Path:
    remove(out)
    out.mkdir(parents=True)
    os.sync()
    return out


def _drop(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _round(folder: Content, weights: Path, out: Path, precision: Precision) -> dict[str, costs.Cost]:
    call = (folder, weights, _clear(out), precision)
    result = {"write": worker.run(costs.write, *call), "verify": worker.run(costs.verify, *call)}
    _clear(out)
    _drop(weights)
    result["write, dropped"] = worker.run(costs.write, *call)
    result["plain"] = worker.run(costs.plain, numbers(folder) * precision.item_size, _clear(out))
    _clear(out)
    return result


def main(directory: Path, count: int) -> None:
    """Make the stand-in if it is not there, run the rounds, print the figures."""
    source = directory / "CosyVoice2-full"
    if not source.is_dir():
        synth(source, "cosyvoice2", "full")
    for component in (COSYVOICE2_VLLM, COSYVOICE2_HF):
        _measure(component, source, directory / "out", count)


def _measure(component: Component, source: Path, out: Path, count: int) -> None:
    weights = source / "llm.pt"
    with opened(weights) as file:
        _, entries = read_as(file, weights, PLAIN)
    folder = folder_need(component, source).plan(weights, entries)
    table = Table(title=f"{component.name}: medians of {count} rounds", title_justify="left")
    for heading in ("", "GB", "s", "of plain", "peak memory, MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in component.tolerances:
        rounds = [_round(folder, weights, out, PRECISIONS[name]) for _ in range(count)]
        for part in rounds[0]:
            table.add_row(
                f"{part} {name}",
                f"{numbers(folder) * PRECISIONS[name].item_size / 1e9:.2f}",
                f"{statistics.median(each[part].seconds for each in rounds):.2f}",
                f"{statistics.median(each[part].seconds / each['plain'].seconds for each in rounds):.2f}",
                f"{max(each[part].memory for each in rounds) / 1e6:.0f}",
            )
    remove(out)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)  # noqa: PLR2004
