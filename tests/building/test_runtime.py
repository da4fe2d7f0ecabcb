"""The zips as their consumer uses them: in a process that has torch and the files, and no trace of this package."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import torch
from torch import Tensor

from cosyjit import export
from cosyjit.families import PRECISIONS
from tests.support import runtime
from tests.support.checkpoints import eager, opened

pytestmark = pytest.mark.slow

SHAPES: Final = {
    "cosyvoice": {"text": (1, 17, 32), "tokens": (1, 23, 32), "prompt": (1, 19, 64), "steps": (1, 12, 64)},
    "cosyvoice2": {"tokens": (1, 26, 512), "context": (1, 3, 512)},
}
"""The inputs of each family. 26 frames are one more than a chunk of the stream."""

TOLERANCES: Final = {"fp32": 2e-5, "fp16": 0.03, "bf16": 0.2, "int8": 0.3}
"""Of outputs with a variance of 1."""

every_family = pytest.mark.parametrize("family", runtime.FAMILIES)
every_mode = pytest.mark.parametrize("title", runtime.MODES)


class Answer(NamedTuple):
    """What the consumer found in each mode, which modules it had, and what the eager encoders give."""

    found: dict[str, dict[str, Tensor]]
    modules: list[str]
    expected: dict[str, Tensor]


@pytest.fixture(scope="module")
def answers(tiny: Path, tiny2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """All targets of both families, built, published and used."""
    directories = {"cosyvoice": tiny, "cosyvoice2": tiny2}
    roots = {family: tmp_path_factory.mktemp(family) for family in directories}
    processes = {family: consume(family, directory, roots[family]) for family, directory in directories.items()}
    answers = {}
    for family, process in processes.items():
        _, complaints = process.communicate()
        assert process.returncode == 0, complaints
        answer = torch.load(roots[family] / "outputs.pt", weights_only=True)
        answers[family] = Answer(**answer, expected=by_eager_encoders(family, directories[family]))
    return answers


def inputs(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES[family].items()}


def consume(family: str, directory: Path, root: Path) -> "subprocess.Popen[str]":
    """Export a model directory and start its consumer, in an empty directory and without this one's environment."""
    parts = [part for part in opened(directory).family.components if part.kind == "zip" and not part.on_request]
    precisions = dict.fromkeys(name for part in parts for name in part.tolerances)
    names = [part.name for part in parts]
    outcomes = export(directory, components=names, precisions=list(precisions), publish=root / "zips")
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    torch.save(inputs(family), root / "inputs.pt")
    (root / "empty").mkdir()
    program = Path(runtime.__file__).absolute()
    return subprocess.Popen(
        [sys.executable, "-I", program, family, root / "zips", root / "inputs.pt", root / "outputs.pt"],
        cwd=root / "empty",
        env={"PATH": os.defpath, "OMP_NUM_THREADS": "1"},
        text=True,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def by_eager_encoders(family: str, directory: Path) -> dict[str, Tensor]:
    """What the float32 encoders give for the same calls."""
    names, calls = runtime.FAMILIES[family]
    with torch.inference_mode():
        return dict(calls({name: eager(directory, name) for name in names}, inputs(family)))


@every_family
def test_the_consumer_has_no_trace_of_the_package(family: str, answers: dict[str, Answer]) -> None:
    assert "torch.jit" in answers[family].modules
    assert [name for name in answers[family].modules if "cosyjit" in name or "yaml" in name] == []


@every_mode
@every_family
def test_each_call_gives_what_the_eager_encoder_gives(family: str, title: str, answers: dict[str, Answer]) -> None:
    found, expected = answers[family].found[title], answers[family].expected
    tolerance = TOLERANCES[runtime.MODES[title].precision]
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.isfinite().all(), name
        if expected[name].dtype == torch.bool:
            assert torch.equal(tensor, expected[name]), name
        else:
            torch.testing.assert_close(tensor.float(), expected[name], rtol=0, atol=tolerance)


@every_mode
@every_family
def test_each_result_is_of_the_type_that_the_runtime_counts_on(
    family: str, title: str, answers: dict[str, Answer]
) -> None:
    mode = runtime.MODES[title]
    weights = getattr(torch, PRECISIONS[mode.precision].dtype)
    wanted = {"ys": torch.float32 if mode.autocast else weights, "att_cache": weights, "mask": torch.bool}
    for name, tensor in answers[family].found[title].items():
        assert tensor.dtype == wanted[name.split()[-1]], name


def test_streaming_and_context_change_what_the_consumer_gets(answers: dict[str, Answer]) -> None:
    found = answers["cosyvoice2"].found["fp32"]
    whole, ended, stream = (found[f"{name} ys"] for name in ("whole", "end of stream", "stream"))
    assert (whole - ended).abs().max() > 100 * TOLERANCES["fp32"]
    assert (stream - ended).abs().max() > 100 * TOLERANCES["fp32"]


def test_the_attention_cache_grows_by_each_chunk(answers: dict[str, Answer]) -> None:
    caches = [tensor for name, tensor in answers["cosyvoice"].found["fp16"].items() if name.endswith("att_cache")]
    assert [cache.size(2) for cache in caches] == list(range(19, 32))
    for before, after in pairwise(caches):
        assert torch.equal(after[:, :, : before.size(2)], before)
