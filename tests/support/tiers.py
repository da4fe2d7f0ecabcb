"""Which cases of a test run in which tier."""

from collections.abc import Iterable
from itertools import cycle

import pytest


def sampled(cases: Iterable[object], every: int) -> list[object]:
    """Cases of a test of which one of so many is tried always, and the others are slow.

    Args:
        cases: values, or tuples of values.
        every: how many cases one stands for.
    """
    slow = cycle([False, *[True] * (every - 1)])
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) if later else case
        for case, later in zip(cases, slow, strict=False)
    ]
