"""What builds may take of a machine's memory, whichever processes they are of."""

import os
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosyjit.errors import BuildError
from cosyjit.fs.waits import Wait
from cosyjit.processes.memory import installed, reserved, tidy
from tests.support.processes import RESERVE, ROOT, said, start, wait_for


def waits(directory: Path, size: int, limit: int = 100) -> bool:
    """Whether so much would have to be waited for."""

    class WaitedError(Exception):
        pass

    def give_up() -> None:
        raise WaitedError

    try:
        with reserved(directory, size, limit, wait=Wait("memory", check=give_up)):
            return False
    except WaitedError:
        return True


def notes(directory: Path) -> int:
    return len(list(directory.glob("*.*")))


def test_what_fits_is_let_in_and_what_does_not_waits(tmp_path: Path) -> None:
    with reserved(tmp_path, 40, 100), reserved(tmp_path, 40, 100):
        assert not waits(tmp_path, 20)
        assert waits(tmp_path, 21)
    assert not waits(tmp_path, 100)
    assert notes(tmp_path) == 0


def test_one_is_let_in_however_much_it_needs(tmp_path: Path) -> None:
    with reserved(tmp_path, 1000, 100):
        assert waits(tmp_path, 1)


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 120), min_size=1, max_size=4), limit=st.integers(1, 100))
def test_no_more_is_let_in_at_a_time_than_there_is(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("notes")
    inside: list[int] = []
    seen: list[list[int]] = []

    def build(size: int) -> None:
        with reserved(directory, size, limit):
            inside.append(size)
            seen.append(list(inside))
            inside.remove(size)

    threads = [threading.Thread(target=build, args=[size]) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == len(sizes)
    assert all(len(together) == 1 or sum(together) <= limit for together in seen)


def test_processes_wait_for_each_other_and_a_killed_one_for_nobody(tmp_path: Path) -> None:
    with start(RESERVE, tmp_path, 60, cwd=ROOT) as first, start(RESERVE, tmp_path, 40, cwd=ROOT) as second:
        assert said(first) == said(second) == "in"
        assert waits(tmp_path, 1)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert not waits(tmp_path, 60)
        assert waits(tmp_path, 61)
    assert not waits(tmp_path, 100)


def test_what_a_killed_process_noted_goes_without_a_build_and_what_a_living_one_did_stays(tmp_path: Path) -> None:
    with reserved(tmp_path, 40, 100), start(RESERVE, tmp_path, 60, cwd=ROOT) as killed:
        assert said(killed) == "in"
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert notes(tmp_path) == 2
        tidy(tmp_path)
        assert notes(tmp_path) == 1
        assert waits(tmp_path, 61)


def test_who_waits_goes_on_as_soon_as_there_is_enough(tmp_path: Path) -> None:
    with start(RESERVE, tmp_path, 60, cwd=ROOT) as first:
        assert said(first) == "in"
        with start(RESERVE, tmp_path, 60, cwd=ROOT) as second:
            wait_for((tmp_path / "lock").exists)
            assert notes(tmp_path) == 1
            assert first.stdin is not None
            first.stdin.write("\n")
            first.stdin.flush()
            assert said(second) == "in"


def test_who_waits_can_give_up(tmp_path: Path) -> None:
    def stopped() -> None:
        raise BuildError("stopped")

    with reserved(tmp_path, 60, 100):
        with pytest.raises(BuildError), reserved(tmp_path, 60, 100, wait=Wait("memory", check=stopped)):
            pass
        assert notes(tmp_path) == 1


def test_where_nothing_can_be_noted_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not waits(tmp_path / "file" / "notes", 1000)


def test_a_failure_inside_is_passed_on_and_frees_the_memory(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), reserved(tmp_path, 60, 100):
        raise OSError("disk")
    assert notes(tmp_path) == 0


def test_the_machine_has_some_memory_and_most_of_it_is_the_limit(tmp_path: Path) -> None:
    assert installed() > 1 << 28
    with reserved(tmp_path, 1):
        assert not waits(tmp_path, installed() // 2, 0)
        assert waits(tmp_path, installed(), 0)


ROOTS = "30 22 0:27 {above} /sys/fs/cgroup{point} rw,nosuid - {kind} {kind} rw{options}\n"
UNIFIED = ROOTS.format(above="/", point="", kind="cgroup2", options="")
V1 = ROOTS.format(above="{}", point="/memory", kind="cgroup", options=",memory")
OTHERS_OF_V1 = ROOTS.format(above="/", point="/cpu", kind="cgroup", options=",cpu,cpuacct")
NO_LIMIT = "9223372036854771712"

# Made up after the manual page cgroups(7) and what Docker, systemd and Slurm make, since one kernel has one of these.
TREES: dict[str, tuple[str, str, dict[str, str], int]] = {
    "version 2, the group itself": ("0::/job\n", UNIFIED, {"job/memory.max": "104857600\n"}, 104857600),
    "version 2, the lowest of the groups above": (
        "0::/a/b/c\n",
        UNIFIED,
        {"a/b/c/memory.max": "max\n", "a/b/memory.max": "5000000\n", "a/memory.max": "7000000\n"},
        5000000,
    ),
    "version 2, a container that sees its own group alone": ("0::/\n", UNIFIED, {"memory.max": "6000000\n"}, 6000000),
    "version 2, a path from outside": ("0::/../other\n", UNIFIED, {"memory.max": "6000000\n"}, 6000000),
    "version 1, the group itself": (
        "12:memory:/user.slice\n5:cpu,cpuacct:/user.slice\n0::/user.slice\n",
        OTHERS_OF_V1 + V1.format("/"),
        {"memory/user.slice/memory.limit_in_bytes": "8000000\n", "memory/memory.limit_in_bytes": NO_LIMIT},
        8000000,
    ),
    "version 1, the lowest of the groups above": (
        "3:cpuset,memory:/slurm/uid_1/job_2\n",
        V1.format("/"),
        {
            "memory/slurm/uid_1/job_2/memory.limit_in_bytes": NO_LIMIT,
            "memory/slurm/uid_1/memory.limit_in_bytes": "9000000\n",
            "memory/slurm/memory.limit_in_bytes": "9500000\n",
        },
        9000000,
    ),
    "version 1, a container whose group is mounted": (
        "4:memory:/docker/0123/inner\n",
        V1.format("/docker/0123"),
        {
            "memory/inner/memory.limit_in_bytes": NO_LIMIT,
            "memory/memory.limit_in_bytes": "4000000\n",
            "memory/docker/memory.limit_in_bytes": "1000\n",
        },
        4000000,
    ),
    "version 1 for memory, version 2 for the rest": (
        "4:memory:/job\n0::/job\n",
        V1.format("/") + ROOTS.format(above="/", point="/unified", kind="cgroup2", options=""),
        {"memory/job/memory.limit_in_bytes": "3000000\n"},
        3000000,
    ),
}


def make_tree(root: Path, groups: str, mounts: str, files: dict[str, str]) -> None:
    contents = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    contents |= {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.mark.parametrize("name", TREES)
def test_the_memory_is_no_more_than_control_groups_may_take(tmp_path: Path, name: str) -> None:
    groups, mounts, files, limit = TREES[name]
    make_tree(tmp_path, groups, mounts, files)
    assert installed(tmp_path) == limit


@pytest.mark.parametrize(
    ("groups", "mounts", "files"),
    [
        ("", "", {}),
        ("0::/\n", UNIFIED, {}),
        ("0::/job\n", UNIFIED, {"job/memory.max": "max\n"}),
        ("0::/job\n", UNIFIED, {"job/memory.max": "\n"}),
        ("4:memory:/job\n", V1.format("/"), {"memory/job/memory.limit_in_bytes": NO_LIMIT}),
        ("4:cpu:/job\n", V1.format("/"), {"memory/job/memory.limit_in_bytes": "1000\n"}),
        ("0::/job\n", UNIFIED, {"elsewhere/memory.max": "1000\n"}),
    ],
)
def test_without_a_limit_the_memory_is_the_machines(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str]
) -> None:
    make_tree(tmp_path, groups, mounts, files)
    assert installed(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
