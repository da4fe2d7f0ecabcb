"""Locks between processes: shared or exclusive, waited for, and freed by the end of a process."""

from pathlib import Path

import pytest

from cosyjit.fs import locks
from cosyjit.fs.waits import Wait
from tests.support.processes import said, start, wait_for, waits_for_a_lock

HOLD = """
import sys
from pathlib import Path
from cosyjit.fs import locks
with locks.locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    input()
"""


@pytest.mark.parametrize("first", ["shared", "alone"])
@pytest.mark.parametrize("second", ["shared", "alone"])
@pytest.mark.parametrize("end", ["return", "kill"])
def test_locks_are_shared_or_waited_for_and_freed_by_the_end(first: str, second: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert locks.is_free(path)
    with start(HOLD, path, first) as holder:
        assert said(holder) == "held"
        assert not locks.is_free(path)
        with start(HOLD, path, second) as other:
            if first == second == "shared":
                assert said(other) == "held"
            else:
                wait_for(lambda: waits_for_a_lock(other.pid))
            if end == "kill":
                holder.kill()
                holder.wait(600)
            else:
                holder.communicate("\n", timeout=600)
            assert first == second == "shared" or said(other) == "held"
            assert not locks.is_free(path)
            other.communicate("\n", timeout=600)
    assert locks.is_free(path)


def test_a_lock_is_freed_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locks.locked(tmp_path / "lock"):
        raise ZeroDivisionError
    assert locks.is_free(tmp_path / "lock")


def test_who_waits_for_a_lock_can_give_up_and_has_it_when_it_is_free(tmp_path: Path) -> None:
    class GivenUpError(Exception):
        pass

    def give_up() -> None:
        raise GivenUpError

    with locks.locked(tmp_path / "lock"):
        with pytest.raises(GivenUpError), locks.locked(tmp_path / "lock", wait=Wait("lock", check=give_up)):
            pass
        assert not locks.is_free(tmp_path / "lock")
    with locks.locked(tmp_path / "lock", wait=Wait("lock", check=give_up)), pytest.raises(GivenUpError):
        give_up()
    assert locks.is_free(tmp_path / "lock")
