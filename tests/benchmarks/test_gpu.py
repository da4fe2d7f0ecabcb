"""What of `benchmarks.gpu` a CPU can do."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import gpu
from benchmarks.gpu import Cells, Error
from tests.support.processes import ROOT


@pytest.mark.slow
def test_where_no_gpu_is_one_line_says_so_and_nothing_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", str(tmp_path / "bench")],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    line = f"torch {torch.__version__} sees no GPU with CUDA; run this on a machine that has one\n"
    assert (done.returncode, done.stderr, done.stdout) == (1, line, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_all_figures_of_a_tiny_model_come_out_on_a_cpu(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "CACHED", (8, 30))
    monkeypatch.setattr(gpu, "LENGTHS", (5,))
    monkeypatch.setattr(gpu, "COPIED", 1 << 20)
    monkeypatch.setattr(gpu, "WARM_UP", 2)
    monkeypatch.setattr(gpu, "STEPS", 2)
    shown = io.StringIO()
    gpu.figures(tiny, tmp_path, 1, torch.device("cpu"), Console(file=shown, width=200))
    text = shown.getvalue()
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    steps = [row for row in rows if len(row) == 10]
    errors = [row for row in rows if len(row) == 5]
    forwards = [row for row in rows if len(row) == 8]
    assert (len(steps), len(forwards), len(errors)) == (3 * 2, 3 * 3, 3 * 3), text
    for row in [*steps, *forwards]:
        assert all(float(cell) > 0 for cell in row[2:5]), row
        assert [cell.strip() for cell in row[5:7]] == ["0", "0"], row
        assert not row[-1].strip()
    for _, mode, ours, plain, tolerated in errors:
        bound = [float(each) for each in tolerated.split(",")]
        for cell in (ours, plain):
            found = [float(each) for each in cell.split(",")]
            assert found[1] <= bound[1], (mode, cell, tolerated)


@pytest.mark.parametrize(
    ("ours", "says"),
    [
        (torch.zeros(2, 3), "ys differs"),
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.tensor([1.0, float("inf")]), "NaN or infinite"),
    ],
)
def test_outputs_that_cannot_be_compared_are_named(ours: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        gpu.largest(Error(), [("ys", ours)], [("ys", torch.ones(2))])


def test_errors_are_the_largest_of_all_outputs() -> None:
    expected = [("a", torch.tensor([3.0, 4.0])), ("b", torch.tensor([1.0, 1.0])), ("mask", torch.tensor([True]))]
    ours = [("a", torch.tensor([3.0, 4.5])), ("b", torch.tensor([1.0, 1.0])), ("mask", torch.tensor([True]))]
    assert gpu.largest(Error(relative=0.05), ours, expected) == Error(0.5, 0.1)
    with pytest.raises(ValueError, match="mask differs"):
        gpu.largest(Error(), [*ours[:2], ("mask", torch.tensor([False]))], expected)


def test_a_zip_that_fails_leaves_its_cells_empty_and_says_why() -> None:
    def fails() -> None:
        raise RuntimeError("the trace\nno kernel for it")

    cells = gpu.measured({"ours": lambda: 1, "plain": fails}, 1, torch.device("cpu"))
    assert cells.failure == "plain fails: no kernel for it"
    assert list(cells.seconds) == list(cells.kernels) == ["ours"]
    assert cells.row()[1:3] == ["", ""]
    assert cells.row()[4] == ""


def test_a_row_has_milliseconds_and_the_median_of_the_rounds_ratios() -> None:
    cells = Cells({"ours": [0.001, 0.002, 0.004], "plain": [0.004, 0.004, 0.004]}, {"ours": 3, "plain": 5})
    assert cells.row() == ["2.000", "4.000", "2.00", "3", "5"]
