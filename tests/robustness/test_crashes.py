"""Processes that are killed, or fail to write, at each step of what they do to stores and directories."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.robustness.crashing import FAULTS, UNAVAILABLE, Observed
from tests.robustness.scenarios import ONE, SCENARIOS
from tests.support.processes import ROOT, spawn

KILLS: Final = ("killed", "killed twice")
COMMON_ERRORS: Final = ("input/output error", "no space left", "permission denied")
ERRORS: Final = tuple(fault for fault in FAULTS if fault not in {*KILLS, "short write"})


class Run(NamedTuple):
    """A scenario that was hindered again and again.

    Attributes:
        name: of the scenario.
        before: what was there.
        kinds: of steps that it has.
        attempts: how they ended; the last one came through.
    """

    name: str
    before: Observed
    kinds: list[str]
    attempts: list[Observed]

    @property
    def after(self) -> dict[str, object]:
        return self.attempts[-1].shown


Runs = Mapping[str, list[Run]]
"""By what hinders them."""


Job = tuple[Sequence[str], Sequence[str]]
"""Faults, and scenarios that each of them happens to."""

RunAll = Callable[[str, Sequence[Job]], Runs]


@pytest.fixture(scope="module")
def run_all(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunAll]:
    """Does jobs side by side: the faults happen at some steps, or at every step."""
    memory = Path("/dev/shm")  # noqa: S108  (quicker than a disk, for so many small files)
    other = tmp_path_factory.mktemp("other")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield partial(_run_all, tiny, Path(folder), other)


def _run_all(source: Path, base: Path, other: Path, steps: str, jobs: Sequence[Job]) -> Runs:
    def run(job: Job) -> str:
        folders = tempfile.mkdtemp(dir=base), tempfile.mkdtemp(dir=other)
        arguments = source, *folders, steps, *map(",".join, job)
        with spawn(sys.executable, "-m", "tests.robustness.crashing", *arguments, cwd=ROOT) as process:
            out, err = process.communicate(timeout=1200)
        if process.returncode == UNAVAILABLE:
            pytest.skip("this system lets no process watch the system calls of another one")
        assert (process.returncode, err) == (0, "")
        return out

    found: dict[str, list[Run]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for out in pool.map(run, jobs):
            for line in out.splitlines():
                observed, fault, kinds = json.loads(line)
                if fault:
                    runs = found.setdefault(fault, [])
                    runs.append(Run(observed["scenario"], Observed(**observed), kinds, []))
                else:
                    runs[-1].attempts.append(Observed(**observed))
    return found


@pytest.fixture(scope="module")
def some_steps(run_all: RunAll) -> Runs:
    """Most faults at each kind of step, of whichever scenario comes first."""
    return run_all("some", [(faults, [*SCENARIOS]) for faults in ((*KILLS, "short write"), COMMON_ERRORS)])


@pytest.fixture(scope="module")
def every_step(run_all: RunAll) -> Runs:
    """All faults at all steps of each scenario."""
    return run_all("every", [([*FAULTS], [name]) for name in reversed([*SCENARIOS])])


def steps_of(faults: Sequence[str]) -> pytest.MarkDecorator:
    """Runs a test for each fault, with a sample of the steps, and with every step."""
    common = [fault for fault in faults if fault in {*COMMON_ERRORS, *KILLS, "short write"}]
    some = [pytest.param("some_steps", fault, id=f"some_steps, {fault}", marks=pytest.mark.slow) for fault in common]
    every = [pytest.param("every_step", fault, id=f"every_step, {fault}", marks=pytest.mark.stress) for fault in faults]
    return pytest.mark.parametrize(("steps", "fault"), [*some, *every])


@pytest.fixture
def runs(request: pytest.FixtureRequest, steps: str, fault: str) -> list[Run]:
    """What became of each scenario under a fault."""
    found: Runs = request.getfixturevalue(steps)
    return found[fault]


def each(runs: list[Run]) -> Iterator[tuple[Run, Observed]]:
    yield from ((run, attempt) for run in runs for attempt in run.attempts)


@steps_of([*FAULTS])
def test_each_scenario_is_hindered_and_comes_through_in_the_end(runs: list[Run], steps: str, fault: str) -> None:
    assert [run.name for run in runs if run.attempts[-1].how != "through" or run.attempts[-1].struck] == []
    if fault == "killed twice":
        assert min(len(run.attempts) for run in runs) >= 3  # where few names are given, few pairs are to be had
    elif steps == "every_step":
        assert [run.name for run in runs if len(run.attempts) <= len(run.kinds)] == []
    else:
        struck = {kind for _, attempt in each(runs) for kind in attempt.kinds}
        assert struck == {kind for run in runs for kind in run.kinds}


@steps_of(KILLS)
def test_who_is_killed_says_nothing(runs: list[Run]) -> None:
    assert {attempt.how for _, attempt in each(runs) if attempt.struck} == {"killed"}


@steps_of([*FAULTS])
def test_a_directory_shows_one_whole_set_wherever_the_work_ends(runs: list[Run]) -> None:
    for run, attempt in each(runs):
        where = run.name, attempt.at, attempt.struck
        if SCENARIOS[run.name].mends[0]:  # what is damaged becomes whole name by name, and none is missing on the way
            for name in run.before.shown:
                assert attempt.shown.get(name) in (run.before.shown[name], run.after[name]), (*where, name)
            more = attempt.shown.keys() - run.before.shown.keys() - run.after.keys()
            assert all(name.endswith(".tmp") for name in more), where  # no outdated plan, which a runtime would use
        else:
            assert attempt.shown in (run.before.shown, run.after), where


@steps_of([*FAULTS])
def test_a_store_holds_only_whole_documents_and_what_they_name_wherever_the_work_ends(runs: list[Run]) -> None:
    for run, attempt in each(runs):
        # An object that is damaged at first may be set aside, and then it is missing.
        known = {_object(fault) for fault in run.before.faults}
        assert {_object(fault) for fault in attempt.faults} <= known, (run.name, attempt.at, attempt.struck)


def _object(fault: str) -> str:
    return ([fault.partition(":")[0], *re.findall("[0-9a-f]{64}", fault)])[-1]


@steps_of([*FAULTS])
def test_what_ended_early_can_be_done_again(runs: list[Run]) -> None:
    for run, attempt in each(runs):
        assert attempt.again == "through", (run.name, attempt.at, attempt.again)
        assert attempt.after == run.after, (run.name, attempt.at)
        expected = SCENARIOS[run.name].history
        if run.name.startswith("roll back") and attempt.shown == run.after:
            expected = [(4, 1), *expected]  # it was done already, and then once more
        if run.name == "mend over a plan" and len(attempt.history or []) == 1:
            expected = ONE  # the plan had gone, and so there was nothing to tell of it
        assert [tuple(pair) for pair in attempt.history or []] == expected, (run.name, attempt.at)


@steps_of([*FAULTS])
def test_nothing_is_left_of_what_ended_early_once_it_is_collected(runs: list[Run]) -> None:
    assert [(run.name, attempt.at, attempt.left) for run, attempt in each(runs) if attempt.left] == []


@steps_of(ERRORS)
def test_a_failure_is_an_error_in_one_line_that_names_the_place(runs: list[Run], fault: str) -> None:
    for run, attempt in each(runs):
        if not attempt.kind:
            continue
        where = run.name, attempt.struck, attempt.how
        assert attempt.kind in {"OutputError", "StoreError", "BuildError"}, where
        assert re.fullmatch(r"/[^:]*/(store|model|cosyjit/cache)(/[^:]*)?: [^\n]+ \([^\n]+\); [^\n]+", attempt.how), (
            where
        )
        if not FAULTS[fault].lasting:
            places = ("model",) if "/place/model/" in f"{attempt.struck}/" else ("store", "home/.cache/cosyjit/cache")
            assert any(f"/place/{place}" in attempt.how for place in places), where


@steps_of([fault for fault in ERRORS if not FAULTS[fault].lasting])
def test_digests_that_cannot_be_remembered_cost_time_only(runs: list[Run]) -> None:
    found = {(run.name, attempt.how) for run, attempt in each(runs) if "/digests" in attempt.struck}
    assert {how for name, how in found if name != "collect"} == {"through"}


@steps_of(["short write"])
def test_what_is_written_in_two_goes_is_whole(runs: list[Run]) -> None:
    assert {attempt.how for _, attempt in each(runs)} == {"through"}
