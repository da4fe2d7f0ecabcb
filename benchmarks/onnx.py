"""What the ONNX file of each full-size estimator costs, beside torch's exporter and beside writing as many bytes.

    python -m benchmarks.onnx DIRECTORY [ROUNDS]

Each takes its turn in a process of its own, which has imported torch already, and ends with fsync; the figures are
medians over the rounds. Torch's exporter traces the same network, with `dynamo=False`, where it can. Peak memory is
what the process has resident at most, less what it has after the import of torch. A call is one of ONNX Runtime over
500 frames, by its processor time on one thread.
"""

import math
import os
import statistics
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import costs, onnx_costs
from cosyjit.configuration.config import Config, Instance
from cosyjit.errors import BuildError
from cosyjit.estimators.parameters import parameters
from cosyjit.fs.files import remove
from cosyjit.processes import worker
from cosyjit.synth.synth import declare

FAMILIES: Final = ("CosyVoice", "CosyVoice2", "CosyVoice3")
FORMS: Final = ("fp32", "autocast_fp16")
FRAMES: Final = 500


def _published(name: str) -> Instance:
    """The published estimator of a family: its class and its options."""
    family = name.lower()
    return Config(declare(family, "full").config, f"{family}.yaml").instance("flow.decoder.estimator")


def _weights(path: Path, class_name: str, options: dict[str, Any]) -> Path:
    """A weights file with random numbers, made if it is not there."""
    if not path.exists():
        torch.manual_seed(0)
        tensors = {}
        for name, parameter in parameters(class_name, options).items():
            width = math.prod(parameter.shape[1:])
            tensors[f"{onnx_costs.PREFIX}{name}"] = (2 * torch.rand(parameter.shape) - 1) * (3 / width) ** 0.5
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, path)
    return path


def _round(class_name: str, options: dict[str, Any], form: str, weights: Path, out: Path) -> dict[str, costs.Cost]:
    path, size = out / f"{form}.onnx", worker.run(onnx_costs.graph, class_name, options, form).size
    remove(out)
    out.mkdir()
    os.sync()
    result = {"write": worker.run(onnx_costs.write, class_name, options, form, weights, path)}
    plain = out / "plain"
    plain.mkdir()
    os.sync()
    result["plain"] = worker.run(costs.plain, size, plain)
    if form == FORMS[0]:
        os.sync()
        with suppress(BuildError):  # it does not take each network; then there is no row of it
            result["traced"] = worker.run(onnx_costs.traced, class_name, options, weights, out / "traced.onnx")
    return result


def main(directory: Path, count: int) -> None:
    """Make the weights files if they are not there, run the rounds, print the figures."""
    table = Table(title=f"medians of {count} rounds", title_justify="left")
    for heading in ("", "nodes", "GB", "of weights", "s", "of plain", "peak memory, MB", "graph, s", "call, s"):
        table.add_column(heading, justify="right" if heading else "left")
    out = directory / "out"
    for name in FAMILIES:
        class_name, options = _published(name)
        weights = _weights(directory / f"{name}-estimator.pt", class_name, options)
        for form in FORMS:
            rounds = [_round(class_name, options, form, weights, out) for _ in range(count)]
            graph = worker.run(onnx_costs.graph, class_name, options, form)
            paths = {"write": out / f"{form}.onnx"}
            if "traced" in rounds[0]:
                paths["traced"] = out / "traced.onnx"
            calls = worker.run(onnx_costs.calls, list(paths.values()), FRAMES)
            for (part, path), call in zip(paths.items(), calls, strict=True):
                table.add_row(
                    f"{part} {name} {form}",
                    f"{worker.run(onnx_costs.nodes, path):,}",
                    f"{path.stat().st_size / 1e9:.3f}",
                    f"{path.stat().st_size / graph.size:.4f}",
                    f"{statistics.median(each[part].seconds for each in rounds):.2f}",
                    f"{statistics.median(each[part].seconds / each['plain'].seconds for each in rounds):.2f}",
                    f"{max(each[part].memory for each in rounds) / 1e6:.0f}",
                    f"{graph.seconds:.2f}" if part == "write" else "",
                    f"{call:.2f}",
                )
    remove(out)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)  # noqa: PLR2004
