"""Calls in processes of their own: what comes back, however they end, and what is left when somebody is killed."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from cosyjit.errors import BuildError, ResourceError, TensorMismatchError, trace
from cosyjit.processes import worker
from tests.support import processes
from tests.support.processes import CONSOLE_SCRIPT, children, ended, servers, start, wait_for


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that call; they outnumber the processors."""
    with ThreadPoolExecutor(32) as executor:
        yield executor


@pytest.fixture
def waiting(pool: ThreadPoolExecutor, tmp_path: Path) -> Iterator[tuple["Future[str]", int, Path]]:
    """A call that runs until a path exists: its future, its process, and the path, which the fixture makes at last."""
    path = tmp_path / "go"
    future = pool.submit(worker.run, processes.wait_until_exists, path)
    yield future, _pid_in(path.with_suffix(".pid")), path
    path.touch()


def _pid_in(path: Path) -> int:
    return int(wait_for(lambda: path.read_text() if path.exists() else None))


@pytest.mark.parametrize("value", [None, 0, "text", ("a", [1.5]), b"x" * 20_000_000, Path("/nowhere")], ids=type)
def test_what_a_call_returns_is_what_it_was_given(value: object) -> None:
    assert worker.run(processes.give, value) == value


def test_an_exception_comes_back_as_itself_with_the_traceback_of_the_call_as_its_cause() -> None:
    with pytest.raises(ValueError, match=r"^no such moon$") as caught:
        worker.run(processes.raise_value_error, "no such moon")
    cause = str(caught.value.__cause__)
    assert "Traceback (most recent call last)" in cause
    assert "processes.py" in cause
    assert "in raise_value_error" in cause


def test_the_trace_of_an_error_has_what_it_was_raised_from_in_its_process() -> None:
    with pytest.raises(BuildError) as caught:
        worker.run(processes.raise_translated)
    shown = trace(caught.value)
    assert "ValueError: no such moon\n" in shown
    assert "in raise_translated" in shown
    assert shown.endswith("cosyjit.errors.BuildError: try another")


def test_an_error_of_the_project_keeps_its_fields() -> None:
    with pytest.raises(TensorMismatchError) as caught:
        worker.run(processes.raise_mismatch)
    assert caught.value.missing == ["a"]
    assert caught.value.misshapen == ["c ((1,) instead of (2,))"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (processes.raise_two_arguments, "TwoArgumentsError: the moon is full"),
        (processes.raise_locked, "LockedError: no entry"),
    ],
)
def test_an_exception_that_cannot_travel_becomes_a_build_error_that_says_the_same(
    function: Callable[..., object], message: str
) -> None:
    with pytest.raises(BuildError) as caught:
        worker.run(function)
    assert str(caught.value) == message
    assert f"in {function.__name__}" in str(caught.value.__cause__)


def test_a_result_that_cannot_travel_is_a_build_error() -> None:
    with pytest.raises(BuildError):
        worker.run(processes.give_lock)


def test_progress_arrives_in_order_and_before_the_result() -> None:
    stages = [f"stage {number}" for number in range(200)]
    told: list[str] = []
    assert worker.run(processes.tell, stages, progress=told.append) == len(stages)
    assert told == stages


@pytest.mark.parametrize("error", [ValueError("mine"), BrokenPipeError("mine"), EOFError("mine")], ids=type)
def test_an_error_of_the_progress_callback_reaches_the_caller_unchanged(error: Exception) -> None:
    def refuse(_: str) -> None:
        raise error

    with pytest.raises(type(error), match=r"^mine$"):
        worker.run(processes.tell, ["a", "b"], progress=refuse)
    assert worker.run(processes.give, 1) == 1


@pytest.mark.parametrize(
    ("function", "argument", "says"),
    [
        (processes.end_by_signal, signal.SIGKILL, "SIGKILL"),
        (processes.end_by_signal, signal.SIGSEGV, "SIGSEGV"),
        (processes.end_by_exit, 3, "exit status 3"),
    ],
)
def test_a_process_that_ends_without_an_answer_fails_its_call_alone(
    waiting: tuple["Future[str]", int, Path], function: Callable[..., object], argument: int, says: str
) -> None:
    other, _, path = waiting
    with pytest.raises(BuildError, match=says):
        worker.run(function, argument)
    assert not other.done()
    path.touch()
    assert other.result(60) == "waited"


def test_calls_from_many_threads_get_their_own_answers_from_processes_of_their_own(pool: ThreadPoolExecutor) -> None:
    payloads = [f"{number}" * 10_000 for number in range(40)]
    answers = list(pool.map(lambda payload: worker.run(processes.give_with_pid, payload), payloads))
    assert [payload for payload, _ in answers] == payloads
    assert len({os.getpid(), *(pid for _, pid in answers)}) == 41


def test_what_a_call_leaves_in_a_module_is_not_seen_by_the_next() -> None:
    assert worker.run(processes.remember, "first") == ["first"]
    assert worker.run(processes.remember, "second") == ["second"]


def test_torch_computes_with_its_threads_in_every_process(pool: ThreadPoolExecutor) -> None:
    size = 400
    rows = range(size)
    expected = sum((size * i + k) * (size * k + i) for i in rows for k in rows) / size**4
    for found in pool.map(lambda _: worker.run(processes.matrix_product, size), range(4)):
        assert found == pytest.approx(expected)


@pytest.mark.slow
def test_the_caller_keeps_no_open_files_of_calls_that_are_done() -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    worker.run(processes.give, 0)
    before = count()
    for number in range(50):
        assert worker.run(processes.give, number) == number
    assert count() == before


def test_the_server_keeps_no_open_files_of_calls_that_are_done() -> None:
    def count() -> int:
        return len(list(Path(f"/proc/{server}/fd").iterdir()))

    worker.run(processes.give, 0)
    (server,) = servers(os.getpid())
    wait_for(lambda: not children(server))
    worker.run(processes.give, 0)
    before = count()
    for number in range(20):
        worker.run(processes.give, number)
    # It closes its end of a call once the process of the call is reaped, which may be after the answer.
    wait_for(lambda: count() <= before)


def test_stop_ends_the_running_calls_and_the_next_call_works(waiting: tuple["Future[str]", int, Path]) -> None:
    running, pid, _ = waiting
    (server,) = servers(os.getpid())
    worker.stop()
    with pytest.raises(BuildError):
        running.result(60)
    wait_for(lambda: ended(pid) and ended(server))
    assert worker.run(processes.give, "again") == "again"


@pytest.mark.slow
def test_stop_amid_calls_raises_nothing_but_build_errors_in_them(pool: ThreadPoolExecutor) -> None:
    stopped = threading.Event()

    def call_on() -> Exception | None:
        for number in itertools.count():
            try:
                assert worker.run(processes.give, number) == number
            except Exception as error:  # noqa: BLE001  (whatever it is, it is looked at below)
                return error
            if stopped.is_set():
                return None
        return None

    worker.run(processes.give, 0)
    begun = [pool.submit(call_on) for _ in range(8)]
    wait_for(lambda: children(servers(os.getpid())[0]))
    worker.stop()
    stopped.set()
    errors = [error for future in begun if (error := future.result(60)) is not None]
    assert [error for error in errors if not isinstance(error, BuildError)] == []


def test_prepare_starts_the_server_once_and_the_next_call_uses_it() -> None:
    worker.stop()
    assert servers(os.getpid()) == []
    worker.prepare()
    (server,) = wait_for(lambda: servers(os.getpid()))  # it has a command line a moment after it is started
    worker.prepare()
    assert worker.run(processes.give, 1) == 1
    assert servers(os.getpid()) == [server]


@pytest.mark.slow
def test_a_server_that_was_killed_before_a_call_is_started_again() -> None:
    worker.prepare()
    (server,) = wait_for(lambda: servers(os.getpid()))  # it has a command line a moment after it is started
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: ended(server))
    worker.prepare()
    assert worker.run(processes.give, 1) == 1
    assert servers(os.getpid()) != [server]


@pytest.mark.slow
def test_a_killed_server_costs_the_calls_under_way_and_no_more(waiting: tuple["Future[str]", int, Path]) -> None:
    running, _, path = waiting
    (server,) = servers(os.getpid())
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: ended(server))
    path.touch()
    with contextlib.suppress(BuildError):
        assert running.result(60) == "waited"
    assert worker.run(processes.give, "again") == "again"
    assert servers(os.getpid()) != [server]


WAIT = """
import sys
from pathlib import Path
from cosyjit.processes import worker
from tests.support import processes as calls
worker.run(calls.wait_until_exists, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_server_and_calls_end_when_the_caller_is_killed(tmp_path: Path) -> None:
    with start(WAIT, tmp_path / "never") as caller:
        call = _pid_in(tmp_path / "never.pid")
        below = children(caller.pid)
        assert call in below
        assert set(servers(caller.pid)) < set(below)
        caller.kill()
    wait_for(lambda: all(map(ended, below)))


@pytest.mark.slow
def test_a_server_that_still_starts_ends_when_the_caller_is_killed(tmp_path: Path) -> None:
    with start(WAIT, tmp_path / "never") as caller:
        below = wait_for(lambda: servers(caller.pid))
        caller.kill()
    wait_for(lambda: all(map(ended, below)))
    assert not (tmp_path / "never.pid").exists() or ended(_pid_in(tmp_path / "never.pid"))


def test_a_caller_gets_clean_output_imports_no_torch_and_leaves_no_process() -> None:
    code = """
import os
import sys
from cosyjit.processes import worker
from tests.support import processes as calls
print(worker.run(calls.shout), "torch" in sys.modules, *calls.servers(os.getpid()))
"""
    with start(code) as caller:
        out, err = caller.communicate(timeout=600)
    answer, imported, server = out.split()
    assert (answer, imported) == ("answer", "False")
    assert sorted(err.splitlines()) == ["printed by the call", "written by the call"]
    wait_for(lambda: ended(int(server)))


def test_a_server_that_cannot_be_started_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    worker.stop()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    for call in (worker.prepare, lambda: worker.run(processes.give, 1)):
        with pytest.raises(ResourceError, match=r"'/nowhere/python': the build server cannot be started \(No such"):
            call()


@pytest.mark.slow
def test_a_scope_that_is_left_by_an_error_cancels_its_own_calls_and_lets_none_begin(
    waiting: tuple["Future[str]", int, Path], pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    other, other_pid, path = waiting
    scope = worker.CancelScope()
    never = tmp_path / "never"

    def work() -> None:
        with scope:
            assert _pid_in(never.with_suffix(".pid")) != other_pid
            raise ZeroDivisionError

    own = pool.submit(worker.run, processes.wait_until_exists, never, scope=scope)
    with pytest.raises(ZeroDivisionError):
        work()
    with pytest.raises(BuildError, match=r"^stopped"):
        own.result(60)
    assert ended(_pid_in(never.with_suffix(".pid")))  # by the time at which its call raises
    with pytest.raises(BuildError, match=r"^stopped"):
        worker.run(processes.give, 2, scope=scope)
    assert not ended(other_pid)
    path.touch()
    assert other.result(60) == "waited"


def test_a_scope_that_is_left_without_an_error_cancels_nothing() -> None:
    with worker.CancelScope() as scope:
        assert worker.run(processes.give, 1, scope=scope) == 1
    assert worker.run(processes.give, 2, scope=scope) == 2


@pytest.mark.slow
def test_calls_that_are_cancelled_while_the_server_starts_end_before_it_has_started(pool: ThreadPoolExecutor) -> None:
    worker.stop()
    scope = worker.CancelScope()
    running = pool.submit(worker.run, processes.wait_until_exists, Path("/nowhere"), scope=scope)
    (server,) = wait_for(lambda: servers(os.getpid()))
    os.kill(server, signal.SIGSTOP)  # as if it took a long time
    try:
        scope.cancel()
        with pytest.raises(BuildError, match=r"^stopped"):
            running.result(60)
    finally:
        os.kill(server, signal.SIGCONT)
    assert worker.run(processes.give, 1) == 1
    assert servers(os.getpid()) == [server]


def test_the_process_of_a_call_has_ended_when_an_error_of_the_callers_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "never"

    def refuse(_: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        worker.run(processes.wait_until_exists, path, progress=refuse)
    assert ended(_pid_in(path.with_suffix(".pid")))


def test_scopes_that_are_cancelled_amid_many_calls_leave_no_process_and_no_file(pool: ThreadPoolExecutor) -> None:
    def call_on(scope: worker.CancelScope) -> None:
        for number in itertools.count():
            assert worker.run(processes.give, number, scope=scope) == number

    worker.run(processes.give, 0)
    (server,) = servers(os.getpid())
    before = len(list(Path(f"/proc/{server}/fd").iterdir()))
    for _ in range(5):
        scopes = [worker.CancelScope() for _ in range(2)]
        begun = [pool.submit(call_on, scope) for scope in scopes for _ in range(4)]
        wait_for(lambda: children(server))
        for scope in scopes:
            scope.cancel()
        assert {str(future.exception(60)) for future in begun} == {"stopped: what it was part of has ended"}
    wait_for(lambda: not children(server))
    worker.run(processes.give, 0)
    wait_for(lambda: len(list(Path(f"/proc/{server}/fd").iterdir())) <= before)
    assert servers(os.getpid()) == [server]


@pytest.mark.slow
# What opentelemetry-instrument puts there starts threads, with which the server could not fork.
def test_the_server_does_not_run_what_customizes_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "sitecustomize.py").write_text(f"open({str(ran)!r}, 'a').write('once')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "from cosyjit.processes import worker; from tests.support.processes import give; print(worker.run(give, 1))"
    with start(code) as process:
        assert process.communicate(timeout=600) == ("1\n", "")
    assert ran.read_text() == "once"


@pytest.mark.slow
# README's own install brings no numpy; which of the commands' processes torch warns in depends on its release.
def test_no_command_tells_that_numpy_is_not_installed(tmp_path: Path) -> None:
    package = tmp_path / "path" / "numpy" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("raise ModuleNotFoundError(\"No module named 'numpy'\")")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path")}
    one = ["--component", "flow.encoder", "--precision", "fp16", "--store", "store"]
    for command in (["synth", "model"], ["plan", "model", *one], ["export", "model", *one]):
        told = subprocess.run(
            [CONSOLE_SCRIPT, *command], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
        assert "Warning" not in told.stderr
    warned = subprocess.run(
        [sys.executable, "-c", "import torch; torch.nn.Linear(1, 1)"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Failed to initialize NumPy: No module named 'numpy'" in warned.stderr, "torch no longer warns"
