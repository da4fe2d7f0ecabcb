"""Every golden vector of the estimators, computed by ONNX Runtime from the files of every form that can."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

from cosyjit.estimators.solver import Estimate, solve
from cosyjit.onnx.forms import FORMS
from tests.encoders.vectors import frames
from tests.estimators.vectors import CALLS, INSTANCES, OUTPUTS, SOLVED, Inputs, filled, inputs
from tests.support.onnx_files import case_of, run
from tests.support.tiers import sampled

Written = Callable[[str, str], Path]

TOLERANCE: Final = 2e-5
SOLVED_TOLERANCE: Final = 5e-5
HALF_TOLERANCE: Final = 1e-2, 1e-2
"""The largest absolute error of half precision, relative to a root mean square of 1: of a call, and of the solver."""

FULL: Final = [form.name for form in FORMS.values() if form.dtype == "float32"]
HALF: Final = [form.name for form in FORMS.values() if form.dtype == "float16"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Gives the file of an instance of the vectors in a form, which is written once."""

    @cache
    def write(name: str, form: str) -> Path:
        directory = tmp_path_factory.mktemp("golden")
        case = case_of(directory, INSTANCES[name].class_name, INSTANCES[name].options)
        case.write(case.model(form), directory / "made.onnx")
        return directory / "made.onnx"

    return write


def can(name: str, case: str, form: str) -> bool:
    """Whether a form has the batch and the attention of a case. A single row can be put twice."""
    described = INSTANCES[name].cases[case]
    rows = len(described.get("lens", [0, 0]))
    return FORMS[form].streaming == described.get("streaming", False) and (rows <= 2 or FORMS[form].dynamic_batch)


def test_every_vector_is_tried() -> None:
    tried = {f"{name}/{case}" for name, case in CALLS + SOLVED if any(can(name, case, form) for form in FULL)}
    assert tried == OUTPUTS.keys()


def fed(name: str, case: str, form: str) -> tuple[dict[str, Tensor], int]:
    """The inputs of a call by their names, with as many rows as the form takes; and how many are the vector's."""
    given = inputs(INSTANCES[name], case)._asdict()
    rows = given["x"].size(0)
    twice = rows == 1 and not FORMS[form].dynamic_batch
    return {key: torch.cat([each, each]) if twice else each for key, each in given.items()}, rows


@pytest.mark.parametrize(
    ("name", "case", "form"), [(*call, form) for call in CALLS for form in FULL if can(*call, form)]
)
def test_a_call(name: str, case: str, form: str, written: Written) -> None:
    path = written(name, form)
    given, rows = fed(name, case, form)
    torch.testing.assert_close(run(path, given)[:rows], OUTPUTS[f"{name}/{case}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("name", "case", "form"), sampled(((*call, form) for call in CALLS for form in HALF if can(*call, form)), 4)
)
def test_a_call_in_half_precision(name: str, case: str, form: str, written: Written) -> None:
    # The vectors are of inputs that are not rounded; the eager network, which is equal to them, takes rounded ones.
    path = written(name, form)
    given, rows = fed(name, case, form)
    estimator = filled(INSTANCES[name].class_name, INSTANCES[name].options)
    rounded = [each.half().float() for each in given.values()]
    expected = estimator(*rounded, streaming=FORMS[form].streaming)
    torch.testing.assert_close(run(path, given)[:rows], expected[:rows], atol=HALF_TOLERANCE[0], rtol=0)


@pytest.mark.parametrize(
    ("name", "case", "form"), sampled(((*each, form) for each in SOLVED for form in FORMS if can(*each, form)), 3)
)
def test_the_solver_around_it(name: str, case: str, form: str, written: Written) -> None:
    instance, key = INSTANCES[name], f"{name}/{case}"
    described, channels = instance.cases[case], instance.channels
    path = written(name, form)
    z, mu, cond = (frames(f"{key}.{each}", (1, channels, described["T"])) for each in ("z", "mu", "cond"))
    spks = frames(f"{key}.spks", (1, channels))

    def solved(estimate: Estimate) -> Tensor:
        return solve(estimate, z, mu, spks, cond, steps=described["steps"], cfg_rate=described["cfg_rate"])

    def exported(*given: Tensor) -> Tensor:
        return run(path, Inputs(*given)._asdict())

    def rounding(*given: Tensor) -> Tensor:
        estimator = filled(instance.class_name, instance.options)
        return estimator(*(each.half().float() for each in given), streaming=FORMS[form].streaming)

    if FORMS[form].dtype == "float32":
        torch.testing.assert_close(solved(exported), OUTPUTS[key], atol=SOLVED_TOLERANCE, rtol=0)
    else:
        torch.testing.assert_close(solved(exported), solved(rounding), atol=HALF_TOLERANCE[1], rtol=0)
