"""The command as a process: signals at any moment, and a system that gives or takes less than is asked of it."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from cosyjit import export
from cosyjit.processes import limits
from cosyjit.processes.interrupts import deferred
from cosyjit.store.store import Store
from tests.support.processes import CONSOLE_SCRIPT, Ran, children, ended, finished, snapshot, spawn, wait_for

Copy = Callable[[Path], Path]

ONE = ("--component", "flow.encoder", "--precision", "fp16")

# What takes a while, and starts something; what is over at once; and what imports torch itself.
COMMANDS: dict[str, Sequence[str]] = {
    "export": ("export", "{}", *ONE, "--force"),
    "plan": ("plan", "{}"),
    "verify": ("verify",),
    "gc": ("gc", "--delete", "--older-than", "0s"),
    "synth": ("synth", "new"),
    "status": ("status", "{}"),
}

TWICE = [
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGINT, signal.SIGTERM),
    (signal.SIGTERM, signal.SIGINT),
    (signal.SIGHUP, signal.SIGHUP),
]

pytestmark = pytest.mark.slow  # each test starts processes


def slow(*values: str) -> list[ParameterSet]:
    """Parameters of the second tier."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def listens(pid: int) -> bool:
    """Whether a command takes signals by now; until then Python itself does, which is starting."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGALRM - 1))


def signalled(cwd: Path, command: Sequence[str], sent: Sequence[signal.Signals], after: float) -> tuple[Ran, list[int]]:
    """What becomes of a command to which signals are sent, the first after a time in s; and what it had started."""
    process = spawn(CONSOLE_SCRIPT, *command, cwd=cwd)
    wait_for(lambda: listens(process.pid) or process.poll() is not None)
    time.sleep(after)
    below = children(process.pid)
    for each in sent:
        process.send_signal(each)
        time.sleep(0.001)
    return finished(process), below


def assert_ended(ran: Ran, first: signal.Signals) -> None:
    if ran.status in {0, 1}:  # it was done before
        assert ran.err == ""
    else:
        # Of signals that wait at one moment the system delivers that of the lowest number first.
        assert (ran.status, ran.err.count("\n")) in {(128 + first, 1), (128 + signal.SIGINT, 1)}
        assert ran.err.startswith("cosyjit: ended by SIG")
        assert re.search("; .*(nothing was changed|run it again|is a whole set)", ran.err)


@pytest.fixture
def published(tiny: Path, copy_of: Copy, stock: Callable[..., None]) -> Path:
    """A model directory with a publication."""
    directory = copy_of(tiny)
    one = ["flow.encoder"], ["fp16"]
    stock(directory, *one)
    assert [each.error for each in export(directory, components=one[0], precisions=one[1])] == [None]
    return directory


@pytest.mark.slow
def test_a_second_signal_changes_nothing_while_an_export_is_ended(published: Path, store: Store) -> None:
    assert store.local is not None
    before = snapshot(published)
    for number, sent in enumerate(TWICE):
        process = spawn(CONSOLE_SCRIPT, "export", published, *ONE, "--force")
        wait_for(lambda pid=process.pid: children(pid))  # type: ignore[misc]
        time.sleep(0.5 * number)  # while its server imports torch, and while it builds
        below = children(process.pid)
        for each in sent:
            process.send_signal(each)
        ran = finished(process)
        assert_ended(ran, sent[0])
        wait_for(lambda pids=below: all(map(ended, pids)))  # type: ignore[misc]
        assert snapshot(published) == before
        assert list((store.local / "tmp").iterdir()) == []


@pytest.mark.stress
@pytest.mark.parametrize("name", COMMANDS)
def test_signals_at_any_moment_end_a_command_in_one_line(published: Path, name: str) -> None:
    chance = random.Random(name)  # noqa: S311
    command = [each.replace("{}", str(published)) for each in COMMANDS[name]]
    longest, times = (5, 10) if name in {"export", "synth"} else (0.6, 20)
    for number in range(times):
        sent = TWICE[number % len(TWICE)]
        ran, below = signalled(published.parent, command, sent, chance.uniform(0, longest))
        assert_ended(ran, sent[0])
        wait_for(lambda pids=below: all(map(ended, pids)))  # type: ignore[misc]
        shutil.rmtree(published.parent / "new", ignore_errors=True)
    assert finished(spawn(CONSOLE_SCRIPT, "verify", published)).status == 0


LOST = {
    "an error instead": """
from ruamel.yaml.comments import CommentedMap
def then(*_):  # ruamel.yaml calls this where it catches everything
    signal.raise_signal(signal.SIGTERM)
CommentedMap.yaml_set_ctag = then
""",
    "nothing instead": """
from cosyjit.planning import plan
def then(*_, **__):
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGTERM)
    while True:
        time.sleep(1)
plan.plan = then
""",
    "a destructor": """
from cosyjit.planning import plan
class Destroyed:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
def then(*_, **__):
    Destroyed()
    while True:
        time.sleep(1)
plan.plan = then
""",
}


@pytest.mark.parametrize("place", LOST.values(), ids=LOST)
def test_a_signal_at_a_place_out_of_which_no_exception_comes_ends_a_command_all_the_same(
    tiny: Path, place: str
) -> None:
    program = f"import contextlib, signal, time\n{place}\nfrom cosyjit.__main__ import main\nmain()"
    ran = finished(spawn(sys.executable, "-c", program, "plan", tiny))
    assert ran.status == 128 + signal.SIGTERM
    assert_ended(ran, signal.SIGTERM)
    assert ran.out == ""


def test_a_signal_that_is_ignored_from_the_start_stays_ignored(tiny: Path) -> None:
    ignoring = "import os, signal, sys; signal.signal(1, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    process = spawn(sys.executable, "-c", ignoring, CONSOLE_SCRIPT, "plan", tiny)
    wait_for(lambda: listens(process.pid) or process.poll() is not None)
    process.send_signal(signal.SIGHUP)
    assert finished(process).status == 0


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_deferred_signals_come_after_the_block_and_ignored_ones_not_at_all(handler: signal.Handlers) -> None:
    seen: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("taken")), signal.signal(signal.SIGHUP, handler)
    try:
        with deferred():
            assert signal.getsignal(signal.SIGHUP) is handler
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            seen.append("done")
        assert seen == ["done", "taken"]
    finally:
        for number, each in zip((signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(number, each)


def bounded(limit: str, size: int, *command: object, cwd: Path) -> Ran:
    """What becomes of a command under a limit of the system's."""
    return finished(spawn("prlimit", f"--{limit}={size}", CONSOLE_SCRIPT, *command, cwd=cwd))


MEMORY = "there is not enough memory; free some, raise the limit"
THREADS = "the system starts no more threads or processes; raise the limit"


@pytest.mark.stress
@pytest.mark.parametrize("megabytes", [50, 200, 400, 500, 600, 700, 1500])
def test_a_lack_of_memory_is_one_line(published: Path, megabytes: int) -> None:
    before = snapshot(published)
    zipped = next(published.glob("*.zip"))
    for command in (
        ["export", published, "--force"],
        ["plan", published],
        ["verify"],
        ["verify", published],
        ["lineage", zipped],
        ["synth", "new"],
    ):
        ran = bounded("as", megabytes * 1_000_000, *command, cwd=published.parent)
        assert (ran.status, ran.err) == (0, "") or is_lack(ran) or is_loaders(ran), (command, ran)
        if ran.status and command[0] == "export":
            assert snapshot(published) == before


def is_loaders(ran: Ran) -> bool:
    """Whether the loader of libraries has ended `synth`, which loads torch itself; nobody can catch that."""
    return (ran.status, ran.err) == (127, "cannot allocate memory for thread-local data: ABORT\n")


def is_lack(ran: Ran) -> bool:
    return (
        ran.status == 1
        and ran.out == ""
        and ran.err.count("\n") == 1
        and ran.err.startswith((f"cosyjit: {MEMORY}", f"cosyjit: {THREADS}"))
    )


@pytest.mark.parametrize("command", ["export", "synth"])
def test_where_torch_has_no_memory_to_be_loaded_it_is_one_line(tiny: Path, tmp_path: Path, command: str) -> None:
    arguments: dict[str, list[object]] = {"export": [tiny, "--publish", tmp_path / "new"], "synth": [tmp_path / "new"]}
    ran = bounded("as", 400_000_000, command, *arguments[command], cwd=tmp_path)
    assert is_lack(ran), ran
    assert not list(tmp_path.glob("new/*"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory: you tried"), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
        (OSError("/lib/libtorch_global_deps.so: failed to map segment from shared object"), "memory"),
        (OSError(12, "Cannot allocate memory"), "memory"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "threads"),
        (OSError(24, "Too many open files"), "files"),
    ],
    ids=str,
)
def test_what_libraries_say_of_a_lack_is_understood(error: Exception, says: str) -> None:
    assert says in (limits.lack(error) or "")
    last = SystemError("error return without exception set")  # which C code raises over another one
    last.__context__ = error
    assert limits.lack(last) == limits.lack(error)


@pytest.mark.parametrize("error", [ValueError("memory"), OSError(2, "No such file"), ImportError("no module")], ids=str)
def test_other_errors_are_no_lack(error: Exception) -> None:
    assert limits.lack(error) is None


# What a user may not read. Tests may run as root, who may read everything unless he does without that right.

UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner") if os.geteuid() == 0 else ()


def may_do_without_rights() -> bool:
    try:
        return not UNPRIVILEGED or finished(spawn(*UNPRIVILEGED, "true")).status == 0
    except FileNotFoundError:
        return False


NEEDS_SETPRIV = pytest.mark.skipif(
    not may_do_without_rights(), reason="root cannot do without his rights here: needs setpriv"
)


# The command again and again, each time as a fork of a process that has imported it.
EACH_IN_TURN = """
import json, os, sys, tempfile
import cosyjit.cli.app
from cosyjit.__main__ import main
for command in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if not pid:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["cosyjit", *command]
            main()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = [(file.seek(0), file.read())[1] for file in (out, err)]
        print(json.dumps([status, *said]), flush=True)
"""


@NEEDS_SETPRIV
@pytest.mark.parametrize(
    "unreadable",
    [".", ".cosyjit", ".cosyjit/sets", ".cosyjit/files", "store", "store/objects", "store/records"],
)
def test_what_may_not_be_read_is_named_in_one_line(published: Path, home: Path, unreadable: str) -> None:
    store = home / ".cache" / "cosyjit"
    places = {"store": store, "store/objects": store / "objects", "store/records": store / "records"}
    path = places.get(unreadable, published / unreadable)
    commands: list[list[object]] = [
        ["status", published],
        ["verify", published],
        ["verify"],
        ["history", published],
        ["rollback", published],
        ["gc"],
        ["plan", published],
        ["export", published, *ONE],
        ["lineage", next(published.glob("*.zip"))],
    ]
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        ran = finished(spawn(*UNPRIVILEGED, sys.executable, "-c", EACH_IN_TURN, json.dumps(commands, default=str)))
    finally:
        path.chmod(mode)
    assert (ran.status, ran.err) == (0, "")
    found = [Ran(*json.loads(line)) for line in ran.out.splitlines()]
    assert len(found) == len(commands)
    refused = [each for each in found if each.status == 2]
    assert len(refused) >= 2
    for each in refused:
        assert (each.out, each.err.count("\n")) == ("", 1)
        assert str(published) in each.err or str(store) in each.err
        assert "; " in each.err
    assert [each.err for each in found if each.status != 2 and each.err] == []


# Odd means, all possible.

LOOKING = {"plan": ("plan", "{}", "--json"), "status": ("status", "{}"), "verify": ("verify",), "gc": ("gc",)}


def in_shell(line: str, *arguments: object, cwd: Path | None = None) -> Ran:
    """What becomes of a line of the shell, in which $@ is the command and its arguments."""
    return finished(spawn("sh", "-c", line, "sh", *arguments, cwd=cwd))


@pytest.mark.parametrize("name", LOOKING)
def test_a_standard_output_that_is_full_is_said_in_one_line(published: Path, name: str) -> None:
    command = [each.replace("{}", str(published)) for each in LOOKING[name]]
    ran = in_shell('"$@" >/dev/full', CONSOLE_SCRIPT, *command)
    assert ran.status == 2
    assert ran.err.startswith("cosyjit: standard output: cannot be written to (No space left on device); what was done")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("closing", [*slow("<&-", ">&-", "2>&-"), "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_change_nothing_but_what_is_seen(published: Path, closing: str) -> None:
    shown = published / "flow.encoder.fp16.zip"
    before = shown.read_bytes()
    assert in_shell(f'"$@" {closing}', CONSOLE_SCRIPT, "export", published, *ONE, "--force").status == 0
    assert shown.read_bytes() == before
    refused = in_shell(f'"$@" {closing}', CONSOLE_SCRIPT, "export", published / "nowhere")
    assert refused.status == 2 or "/dev/full" in closing
    assert "Traceback" not in refused.err
    assert finished(spawn(CONSOLE_SCRIPT, "verify")).status == 0  # nothing was written into a file of the store's


def test_a_reader_that_goes_away_is_nobodys_fault(published: Path) -> None:
    ran = in_shell('{ "$@"; } | true', CONSOLE_SCRIPT, "plan", published)
    assert ran.err == ""


@pytest.mark.parametrize("command", [["plan", "."], ["export", "model"], ["status", "."], ["synth", "new"]])
def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "gone").mkdir()
    ran = in_shell('rmdir ../gone && exec "$@"', CONSOLE_SCRIPT, *command, cwd=tmp_path / "gone")
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("cosyjit: ")


@pytest.mark.parametrize("name", ["plan", *slow("status", "verify", "gc")])
@pytest.mark.parametrize(
    "environment", ["-u HOME", "HOME=/proc/nowhere", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LANG=C"]
)
def test_an_odd_environment_changes_no_more_than_where_the_store_is(
    published: Path, store: Store, name: str, environment: str
) -> None:
    odd = published.rename(published.with_name("Модель \udcff"))
    command = [each.replace("{}", str(odd)) for each in LOOKING[name]]
    ran = in_shell(f'env {environment} "$@"', CONSOLE_SCRIPT, *command, "--store", store.root)
    assert "Traceback" not in ran.err
    assert ran.err.count("\n") == (0 if ran.status in {0, 1} else 1)


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("nofile=12", r"too many files are open|Too many open files"),  # whichever needs the one too many
        ("nproc=1", re.escape(THREADS)),
        ("fsize=0", "File too large"),
    ],
)
def test_other_limits_are_one_line(published: Path, limit: str, says: str) -> None:
    before = snapshot(published)
    ran = in_shell(f'prlimit --{limit} "$@"', CONSOLE_SCRIPT, "export", published, *ONE, "--force")
    if ran.status == 0:  # of processes root has as many as he wants
        assert (limit, os.geteuid()) == ("nproc=1", 0)
    else:
        assert ran.err.count("\n") <= 1
        assert "Traceback" not in ran.err
        assert re.search(says, ran.err + ran.out)
        assert snapshot(published) == before


@NEEDS_SETPRIV
def test_a_umask_that_takes_all_is_one_line_or_none(tiny: Path, tmp_path: Path) -> None:
    ran = in_shell('umask 777; exec "$@"', *UNPRIVILEGED, CONSOLE_SCRIPT, "synth", tmp_path / "new")
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    ran = in_shell(
        'umask 777; exec "$@"', *UNPRIVILEGED, CONSOLE_SCRIPT, "export", tiny, "--publish", tmp_path / "zips"
    )
    assert ran.status == 2
    assert ran.err.count("\n") == 1
