"""Exports whose builds are killed, or fail to write, at the steps of what torch's own code writes."""

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cosyjit import Store, export
from cosyjit.operations.gc import gc
from cosyjit.operations.verify import verify_store
from tests.robustness.crashing import UNAVAILABLE, Observed
from tests.support.processes import CONSOLE_SCRIPT, ROOT, children, ended, shown, snapshot, spawn, wait_for

pytestmark = pytest.mark.stress

STRIDE: Final = 3
"""One in so many steps, and the first and last ones."""

KILLED_BUILD: Final = "the build is killed"
KILLED_EXPORT: Final = "the export is killed"
UNWRITABLE: Final = {"input/output error", "no space left"}


@pytest.fixture(scope="module")
def attempts(tiny2: Path) -> list[Observed]:
    """What became of exports, one after the other: the first unhindered, then hindered ones, and others after them."""
    memory = Path("/dev/shm")  # noqa: S108  (quicker than a disk)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        command = sys.executable, "-m", "tests.robustness.crashing_builds", tiny2, folder, str(STRIDE)
        process = spawn(*command, cwd=ROOT)
        out, err = process.communicate(timeout=1800)
    if process.returncode == UNAVAILABLE:
        pytest.skip("this system lets no process watch the system calls of another one")
    assert process.returncode == 0, err
    return [Observed(**json.loads(line)[0]) for line in out.splitlines()]


@pytest.fixture
def hindered(attempts: list[Observed]) -> list[Observed]:
    """The attempts before the one that finished the work."""
    return attempts[1 : [each.scenario for each in attempts].index("finished")]


def of(attempts: list[Observed], *faults: str) -> Iterator[Observed]:
    yield from (each for each in attempts if each.scenario.partition(",")[0] in faults)


def test_a_hindered_export_shows_what_was_there_and_stores_nothing_half(hindered: list[Observed]) -> None:
    assert {each.how for each in of(hindered, KILLED_EXPORT)} == {"killed"}
    assert all(each.kind for each in hindered if each.how != "killed")
    before = hindered[0].shown
    assert len(before) == 3
    assert [(each.scenario, each.at) for each in hindered if each.shown != before or each.faults] == []


def test_what_a_build_that_ended_early_left_is_removed_at_once(hindered: list[Observed]) -> None:
    # Of an export that was killed, the next one removes it: each attempt but the first follows on such a one.
    assert [(each.scenario, each.at, each.left) for each in hindered if each.how != "killed" and each.left] == []
    assert any(each.left for each in of(hindered, KILLED_EXPORT))


def test_a_build_that_is_killed_is_an_error_that_says_so(hindered: list[Observed]) -> None:
    expected = "the build process was killed by SIGKILL; the system may be out of memory"
    assert {each.how for each in of(hindered, KILLED_BUILD)} == {expected}


def test_a_build_that_cannot_write_is_an_error_in_one_line_that_names_the_place(hindered: list[Observed]) -> None:
    place = r"/[^ ]+/store/tmp/[^ ]+/flow\.encoder\.fp32"
    raised = rf"{place}: cannot be written to \([^\n]+\); make room, or mend the disk"
    aborted = rf"the build process was killed by SIGABRT; the disk of {place} may be full"
    found = [each.how for each in of(hindered, *UNWRITABLE)]
    assert len(found) >= 6
    assert [how for how in found if not re.fullmatch(f"{raised}|{aborted}", how)] == []


def test_the_next_export_comes_through_and_nothing_is_left(attempts: list[Observed]) -> None:
    unhindered, finished = attempts[0], next(of(attempts, "finished"))
    assert (unhindered.how, finished.how) == ("through", "through")
    assert finished.shown == finished.after == unhindered.shown
    assert finished.history == [[2, None], [1, None]]
    assert finished.left == []


def test_a_zip_that_is_written_in_pieces_is_the_same(attempts: list[Observed]) -> None:
    short = list(of(attempts, "short write"))
    assert short
    assert {each.how for each in short} == {"through"}
    assert [each.at for each in short if each.shown != attempts[0].shown or not each.struck] == []


def test_a_command_that_is_killed_at_any_moment_leaves_nothing_but_what_the_next_one_takes_up(
    tiny2: Path, home: Path, store: Store, tmp_path: Path
) -> None:
    names = {"flow.encoder.fp32.zip", "flow.encoder.fp16.zip"}
    (tmp_path / "flow.encoder.fp32.zip").write_bytes(b"another exporter's")
    before = shown(tmp_path)
    seen = set()
    for moment in range(100):  # until one is through before it is killed
        process = spawn(CONSOLE_SCRIPT, "export", tiny2, "--component", "flow.encoder", "--publish", tmp_path)
        time.sleep(0.2 * 1.3**moment)
        below = children(process.pid)
        process.kill()
        _, err = process.communicate()
        wait_for(lambda below=below: all(map(ended, below)))  # type: ignore[misc]
        seen.add(process.returncode)
        assert (process.returncode, err) in {(-signal.SIGKILL, ""), (0, "")}
        assert not Path(store.root).exists() or verify_store(store) == []
        if process.returncode == 0:
            break
        assert shown(tmp_path) == before or shown(tmp_path).keys() == names
    assert seen == {-signal.SIGKILL, 0}
    assert shown(tmp_path).keys() == names
    gc(store, older_than=0, delete=True)
    left = [path for path in snapshot(home) if {"tmp", "memory"} & {*Path(path).parts[:-1]} or path.endswith(".tmp")]
    assert left == [".cache/cosyjit/locks/memory/lock"]
    again = export(tiny2, components=["flow.encoder"], publish=tmp_path)
    assert [each.state for each in again] == ["cached", "cached"]
