"""Every golden vector of the estimators, and what the vectors would show of a fault."""

from functools import partial
from typing import Final

import pytest
import torch

from cosyjit.estimators.solver import solve
from tests.encoders.vectors import frames
from tests.estimators.vectors import CALLS, INSTANCES, OUTPUTS, SOLVED, filled, inputs

TOLERANCE: Final = 2e-5
SOLVED_TOLERANCE: Final = 5e-5


def test_every_vector_is_tried() -> None:
    assert {f"{name}/{case}" for name, case in CALLS + SOLVED} == OUTPUTS.keys()
    assert len(OUTPUTS) == 34


@pytest.mark.parametrize(("name", "case"), CALLS)
def test_a_call(name: str, case: str) -> None:
    instance = INSTANCES[name]
    estimator = filled(instance.class_name, instance.options)
    y = estimator(*inputs(instance, case), streaming=instance.cases[case].get("streaming", False))
    torch.testing.assert_close(y, OUTPUTS[f"{name}/{case}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "case"), SOLVED)
def test_the_solver_around_it(name: str, case: str) -> None:
    instance = INSTANCES[name]
    described, key, channels = instance.cases[case], f"{name}/{case}", instance.channels
    estimator = filled(instance.class_name, instance.options)
    z, mu, cond = (frames(f"{key}.{each}", (1, channels, described["T"])) for each in ("z", "mu", "cond"))
    x = solve(
        partial(estimator, streaming=described.get("streaming", False)),
        *(z, mu, frames(f"{key}.spks", (1, channels)), cond),
        steps=described["steps"],
        cfg_rate=described["cfg_rate"],
    )
    torch.testing.assert_close(x, OUTPUTS[key], atol=SOLVED_TOLERANCE, rtol=0)
