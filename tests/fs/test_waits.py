"""Waits for other processes: said after two seconds, bounded where that is asked, short behind who waits himself."""

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from cosyjit import Store, plan
from cosyjit.errors import BusyError
from cosyjit.fs.waits import Wait, holders
from cosyjit.operations import gc
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store import leases
from cosyjit.store.backends import Remote, storage
from tests.support.processes import CONSOLE_SCRIPT, said, spawn, start, wait_for, waits_for_a_lock
from tests.support.s3 import Service
from tests.support.stores import put_planned, show

if TYPE_CHECKING:
    import subprocess

    from cosyjit import Planned

ONE: Final = ["--component", "flow.encoder", "--precision", "fp16"]

HOLD: Final = """
import sys
from pathlib import Path
from cosyjit.publishing.layout import Layout
from cosyjit.store.store import Store
what, where, *others = sys.argv[1:]
held = Layout(Path(where)).writing() if what == "writing" else getattr(Store(where), what)(*others)
with held:
    print("held", flush=True)
    input()
"""


@contextmanager
def held(what: str, where: object, *others: str, stopped: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds something, and is stopped perhaps."""
    with start(HOLD, what, where, *others) as process:
        assert said(process) == "held"
        if stopped:
            process.send_signal(signal.SIGSTOP)
            wait_for(lambda: state(process.pid) == "T")
        try:
            yield process
        finally:
            process.kill()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def named(process: "subprocess.Popen[str]", more: str = "") -> str:
    """How a process is told of, as a regular expression."""
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    host = re.escape(socket.gethostname())
    return rf"process {process.pid} on {host} \(.+\), running since {since}{more}"


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """A command's exit status and what it said."""
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def test_a_holder_that_was_missed_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that goes from hand to hand is at times not listed; what the kernel lists cannot be arranged."""
    (tmp_path / "file").touch()
    listed = iter([[], [], [(os.getpid(), (tmp_path / "file").stat().st_ino)]])
    monkeypatch.setattr("cosyjit.fs.waits._locks", lambda: next(listed))
    assert holders([(tmp_path / "file").stat().st_ino]) == ""


@pytest.mark.slow
def test_a_wait_is_told_and_bounded(store: Store, tmp_path: Path) -> None:
    """By a collector behind an export that was stopped: what it waits for, and that it gave up, in a line each."""
    show(store, tmp_path / "out", b"one")
    with held("in_use", store.root, stopped=True) as exporter:
        status, err = ended(spawn(CONSOLE_SCRIPT, "gc", "--delete", "--wait", "3"))
    told, failed = err.splitlines()
    who = named(exporter, ", which is stopped")
    assert re.fullmatch(rf"cosyjit: {re.escape(store.root)}: waits for {who}", told)
    expected = (
        rf"cosyjit: {re.escape(store.root)}: is in use by {who}, and was waited for 3 s; "
        "run again later, or let it wait longer with --wait or COSYJIT_WAIT"
    )
    assert re.fullmatch(expected, failed)
    assert status == 2


@pytest.mark.slow
def test_an_export_does_not_wait_for_a_collector_that_waits_itself(
    store: Store, tiny2: Path, planned: "tuple[Planned, ...]", tmp_path: Path
) -> None:
    put_planned(store, planned)
    with held("in_use", store.root, stopped=True), spawn(CONSOLE_SCRIPT, "gc", "--delete") as collector:
        wait_for(lambda: waits_for_a_lock(collector.pid))
        exporter = spawn(CONSOLE_SCRIPT, "export", tiny2, *ONE, "--publish", tmp_path / "out")
        assert ended(exporter)[0] == 0
        assert collector.poll() is None
        collector.kill()


@pytest.mark.slow
def test_nobody_waits_for_who_only_looks(
    store: Store, tiny2: Path, planned: "tuple[Planned, ...]", tmp_path: Path
) -> None:
    put_planned(store, planned)
    with held("looked_at", store.root, stopped=True):
        assert ended(spawn(CONSOLE_SCRIPT, "export", tiny2, *ONE, "--publish", tmp_path / "out", "--wait", "0"))[0] == 0
        assert ended(spawn(CONSOLE_SCRIPT, "gc", "--wait", "0"))[0] == 0
    with held("in_use", store.root, stopped=True):
        assert ended(spawn(CONSOLE_SCRIPT, "gc", "--wait", "0"))[0] == 0


@pytest.mark.slow
def test_who_looks_is_waited_for_by_who_removes(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "out", b"one")
    with held("looked_at", store.root), pytest.raises(BusyError):
        gc.gc(Store(store.root, wait=0), delete=True)
    with held("exclusive", store.root) as other, pytest.raises(BusyError, match=named(other)):
        gc.gc(Store(store.root, wait=0.5))


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["0", "2.5"])
def test_what_someone_else_builds_is_waited_for_as_long_as_asked(
    wait: str, store: Store, tiny2: Path, planned: "tuple[Planned, ...]"
) -> None:
    (one,) = planned
    with held("build_lock", store.root, one.target.fingerprint.key, stopped=True) as builder:
        status, err = ended(spawn(CONSOLE_SCRIPT, "export", tiny2, *ONE, "--wait", wait, "--json"))
    assert status == 1
    waited = [line for line in err.splitlines() if line.startswith("cosyjit: ")]
    assert len(waited) == (wait != "0")
    assert all(re.search(named(builder), line) for line in waited)


@pytest.mark.slow
def test_who_publishes_into_the_same_directory_is_waited_for_as_long_as_asked(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    show(store, out, b"one")
    show(store, out, b"two")
    before = PublishedDirectory(out, store).history()
    with held("writing", out, stopped=True) as other:
        status, err = ended(spawn(CONSOLE_SCRIPT, "rollback", out, "--wait", "2.5"))
        told, failed = err.splitlines()
        assert (status, re.search(named(other), told) is not None) == (2, True)
        assert failed.startswith(f"cosyjit: {out}: is in use by process {other.pid} on ")
    assert PublishedDirectory(out, store).history() == before


@pytest.mark.slow
def test_the_environment_bounds_waits_too(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    show(store, tmp_path / "out", b"one")
    monkeypatch.setenv("COSYJIT_WAIT", "0.1")
    with held("in_use", store.root):
        status, err = ended(spawn(CONSOLE_SCRIPT, "gc", "--delete"))
    assert (status, "was waited for 0.1 s" in err) == (2, True)


@pytest.mark.parametrize("wait", ["-1", "nan"])
def test_what_is_no_time_is_refused(wait: str) -> None:
    status, err = ended(spawn(CONSOLE_SCRIPT, "gc", f"--wait={wait}"))
    assert (status, err) == (2, f"cosyjit: --wait {wait}: is not a time to wait; give a number of seconds, 0 or more\n")


@pytest.mark.slow
def test_a_machine_says_in_its_lease_who_it_is(s3: Service) -> None:
    url, key = s3.url(), "ab" * 16
    place = storage(url)
    assert isinstance(place, Remote)
    with held("build_lock", url, key) as builder, pytest.raises(BusyError) as error, Store(url, wait=0).build_lock(key):
        pass
    # Of processes of one machine that use a remote store the lock in the workshop comes first.
    assert re.search(named(builder), str(error.value))
    with leases.held(place, "locks/cd"), pytest.raises(BusyError) as error, held_too(place, "locks/cd"):
        pass
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00"
    assert re.search(rf"is in use by process {os.getpid()} on \S+, since {since}, and was waited", str(error.value))


def test_an_earlier_versions_lease_is_waited_for_as_well(s3: Service) -> None:
    place = storage(s3.url())
    assert isinstance(place, Remote)
    place.write("locks/ab", b"0123456789abcdef 7\n")
    with pytest.raises(BusyError, match="is in use by a process of another machine"), held_too(place, "locks/ab"):
        pass


def held_too(place: Remote, name: str) -> AbstractContextManager[None]:
    """A lease that nobody else is waited for."""
    return leases.held(place, name, wait=Wait("x", 0))


def test_other_work_of_the_same_process_is_no_reason_to_give_up(store: Store) -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with store.build_lock("ab" * 16):
            entered.set()
            leave.wait(600)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(600)
    done: list[str] = []

    def wait() -> None:
        with Store(store.root, wait=0).build_lock("ab" * 16):
            done.append("entered")

    second = threading.Thread(target=wait)
    second.start()
    second.join(0.5)
    assert (second.is_alive(), done) == (True, [])
    leave.set()
    second.join(600)
    thread.join(600)
    assert done == ["entered"]


def test_a_file_that_nobody_of_this_machine_holds_is_held_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert holders([(tmp_path / "file").stat().st_ino]) == (
        "a process that cannot be seen from here, of another container or machine"
    )


@pytest.fixture
def planned(tiny2: Path, store: Store) -> "tuple[Planned, ...]":

    return plan(tiny2, ["flow.encoder"], ["fp16"], store=store)


@pytest.mark.slow
def test_an_export_waits_for_its_directory_as_long_as_asked(
    store: Store, tiny2: Path, planned: "tuple[Planned, ...]", tmp_path: Path
) -> None:
    put_planned(store, planned)
    out = tmp_path / "out"
    show(store, out, b"one")
    with held("writing", out, stopped=True) as other:
        status, err = ended(spawn(CONSOLE_SCRIPT, "export", tiny2, *ONE, "--publish", out, "--wait", "0.5"))
    assert status == 2
    assert err.startswith(f"cosyjit: {out}: is in use by process {other.pid} on ")


@pytest.mark.slow
def test_an_export_that_is_ended_waits_for_nobody(
    store: Store, tiny2: Path, planned: "tuple[Planned, ...]", tmp_path: Path
) -> None:
    (one,) = planned
    out = tmp_path / "out"
    show(store, out, b"one")
    with held("build_lock", store.root, one.target.fingerprint.key, stopped=True):
        exporter = spawn(CONSOLE_SCRIPT, "export", tiny2, *ONE, "--publish", out)
        wait_for(lambda: waits_for_a_lock(exporter.pid))
        with held("writing", out, stopped=True):
            exporter.send_signal(signal.SIGTERM)
            assert ended(exporter)[0] == 143
