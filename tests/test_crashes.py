"""Processes that are killed, or fail to write, at each step of what they do to stores and directories."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.calls import ROOT, finished, spawn
from tests.crashing import SCENARIOS, Fault, Observed

RUNS: Final[Mapping[Fault, Sequence[str]]] = {
    "killed": [*SCENARIOS],
    "killed twice": ["publish over foreign files"],
    "input/output error": ["publish", "publish over foreign files", "mend", "collect"],
    "no space left": ["publish", "roll back", "mend"],
}
"""Not each fault in each scenario, which would take long and tell little more."""

CASES: Final = [(scenario, fault) for fault, scenarios in RUNS.items() for scenario in scenarios]
FAILURES: Final = [case for case in CASES if not case[1].startswith("killed")]

HISTORY: Final[Mapping[str, list[tuple[int, int | None]]]] = {
    "publish": [(2, None), (1, None)],
    "publish over foreign files": [(1, None)],
    "publish first": [(1, None)],
    "roll back": [(3, 1), (2, None), (1, None)],
    "mend": [(1, None)],
    "collect": [(3, None)],
}
"""The numbers of the publications in the end, and of those that they restore."""

Runs = Mapping[tuple[str, str], tuple[Observed, list[Observed]]]


class Case(NamedTuple):
    """A scenario, what hinders it, what was there before, and how the attempts ended; the last came through."""

    scenario: str
    fault: Fault
    before: Observed
    attempts: list[Observed]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """What became of each scenario, hindered at each of its steps: first what was there, last how it came through."""
    memory = Path("/dev/shm")  # noqa: S108  (quicker than a disk, for so many small files)
    base = memory if memory.is_dir() else tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(dir=base) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        yield dict(zip(CASES, pool.map(lambda case: _run(case, Path(folder)), CASES), strict=True))


def _run(case: tuple[str, Fault], base: Path) -> tuple[Observed, list[Observed]]:
    folder = tempfile.mkdtemp(dir=base)
    status, out, err = finished(spawn(sys.executable, "-m", "tests.crashing", *case, folder, cwd=ROOT))
    assert (status, err) == (0, "")
    before, *attempts = [Observed(**json.loads(line)) for line in out.splitlines()]
    return before, attempts


@pytest.fixture(params=CASES, ids=", ".join)
def case(request: pytest.FixtureRequest, runs: Runs) -> Case:
    """A scenario, what hinders it, and what became of it."""
    scenario, fault = request.param
    return Case(scenario, fault, *runs[scenario, fault])


def test_each_scenario_is_hindered_at_many_steps_and_comes_through_in_the_end(case: Case) -> None:
    *hindered, through = case.attempts
    assert (through.how, through.kind) == ("through", "")
    assert len(hindered) >= 10
    if case.fault == "killed":
        assert {each.how for each in hindered} == {"killed"}


def test_a_directory_shows_one_whole_set_wherever_the_work_ends(case: Case) -> None:
    before, after = case.before.shown, case.attempts[-1].shown
    for each in case.attempts:
        if case.scenario == "mend":  # what is damaged becomes whole name by name, and none is missing on the way
            for name in before:
                assert each.shown.get(name) in (before[name], after[name]), (each.at, each.struck, name)
        else:
            assert each.shown in (before, after), (each.at, each.struck)


def test_a_store_holds_only_whole_documents_and_what_they_name_wherever_the_work_ends(case: Case) -> None:
    assert [(each.at, each.faults) for each in case.attempts if each.faults] == []


def test_what_ended_early_can_be_done_again(case: Case) -> None:
    after = case.attempts[-1].shown
    for each in case.attempts:
        assert each.again == "through", (each.at, each.again)
        assert each.after == after, each.at
        expected = HISTORY[case.scenario]
        if case.scenario == "roll back" and each.shown == after:
            expected = [(4, 1), *expected]  # it was done already, and then once more
        assert [tuple(pair) for pair in each.history or []] == expected, each.at


def test_nothing_is_left_of_what_ended_early_once_it_is_collected(case: Case) -> None:
    assert [(each.at, each.left) for each in case.attempts if each.left] == []


@pytest.mark.parametrize(("scenario", "fault"), FAILURES, ids=map(", ".join, FAILURES))
def test_a_failure_is_an_error_in_one_line_that_names_the_place(runs: Runs, scenario: str, fault: str) -> None:
    for each in runs[scenario, fault][1]:
        if each.kind:
            place, kind = ("model", "OutputError") if "/model" in each.struck else ("store", "StoreError")
            assert each.kind in {kind, "BuildError"}, (each.struck, each.how)
            assert len(each.how.splitlines()) == 1
            assert f"/{place}: " in each.how or each.kind == "BuildError", (each.struck, each.how)
