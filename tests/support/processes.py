"""What tests call in worker processes, and how they watch processes and directories."""

import logging
import os
import resource
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeVar

from cosyjit.errors import BuildError, TensorMismatchError
from cosyjit.processes.worker import Progress

if TYPE_CHECKING:
    import pytest

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
CONSOLE_SCRIPT: Final = Path(sysconfig.get_path("scripts"), "cosyjit")

_seen: Final[list[str]] = []


class TwoArgumentsError(Exception):
    """Pickles, and does not come back: `Exception` hands its constructor one argument of the two."""

    def __init__(self, thing: str, problem: str) -> None:
        super().__init__(f"{thing} is {problem}")


class LockedError(Exception):
    """Does not pickle: it holds a lock."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


def give(value: T, progress: Progress) -> T:  # noqa: ARG001
    return value


def give_with_pid(value: T, progress: Progress) -> tuple[T, int]:  # noqa: ARG001
    return value, os.getpid()


def remember(word: str, progress: Progress) -> list[str]:  # noqa: ARG001
    """All the words that this process was given."""
    _seen.append(word)
    return _seen


def tell(stages: list[str], progress: Progress) -> int:
    for stage in stages:
        progress(stage)
    return len(stages)


def raise_value_error(message: str, progress: Progress) -> NoReturn:  # noqa: ARG001
    raise ValueError(message)


def raise_mismatch(progress: Progress) -> NoReturn:  # noqa: ARG001
    raise TensorMismatchError("llm.pt: llm.llm", ["a"], ["b"], ["c ((1,) instead of (2,))"])


def raise_two_arguments(progress: Progress) -> NoReturn:  # noqa: ARG001
    raise TwoArgumentsError("the moon", "full")


def raise_locked(progress: Progress) -> NoReturn:  # noqa: ARG001
    raise LockedError("no entry")


def give_lock(progress: Progress) -> object:  # noqa: ARG001
    return threading.Lock()


def end_by_signal(number: int, progress: Progress) -> NoReturn:  # noqa: ARG001
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)
    raise AssertionError("unreachable")


def end_by_exit(status: int, progress: Progress) -> NoReturn:  # noqa: ARG001
    os._exit(status)


def matrix_product(size: int, progress: Progress) -> float:  # noqa: ARG001
    """The trace of a product that a pool of threads computes."""
    import torch  # noqa: PLC0415  (most calls, and the processes that only watch, do without)

    torch.set_num_threads(2)
    matrix = torch.arange(size * size, dtype=torch.float64).reshape(size, size) / size**2
    return float((matrix @ matrix).trace())


def shout(progress: Progress) -> str:  # noqa: ARG001
    """Writes to standard output in the two ways there are."""
    print("printed by the call")  # noqa: T201
    os.write(1, b"written by the call\n")
    return "answer"


def wait_until_exists(path: Path, progress: Progress) -> str:
    """Ends once a path exists; its own process id stands in the file `<path>.pid` meanwhile."""
    path.with_suffix(".pid").write_text(str(os.getpid()))
    progress("waiting")
    wait_for(path.exists)
    return "waited"


def wait_for(condition: Callable[[], T | None], seconds: float = 300) -> T:
    """Poll until a condition gives something true, and return that; first often, and then less often."""
    deadline = time.monotonic() + seconds
    pause = 0.005
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} did not come true within {seconds} s")
        time.sleep(pause)
        pause = min(1.1 * pause, 0.1)
    return result


def children(pid: int) -> list[int]:
    """The processes below this one, those of its own children included, that have not ended."""
    parents = _parents()
    found = [pid]
    for above in found:
        found += [child for child, parent in parents.items() if parent == above]
    return found[1:]


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits to be reaped by whoever should."""
    return pid not in _parents()


def servers(pid: int) -> list[int]:
    """The build servers, not the builds, that a process has started."""
    direct = [child for child, parent in _parents().items() if parent == pid]
    return [child for child in direct if b"cosyjit.processes.worker" in (_read(Path(f"/proc/{child}/cmdline")) or b"")]


def builds(pid: int) -> list[int]:
    """The processes of the calls that a process has under way."""
    return [child for server in servers(pid) for child in children(server)]


def _parents() -> dict[int, int]:
    """The parent of each process that has not ended. Not by psutil: each call would wait for its import."""
    stats = {int(path.name): _read(path / "stat") for path in Path("/proc").iterdir() if path.name.isdecimal()}
    fields = {pid: stat.rpartition(b")")[2].split() for pid, stat in stats.items() if stat}
    return {pid: int(parent) for pid, (state, parent, *_) in fields.items() if state not in (b"Z", b"X")}


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None


class _Process(subprocess.Popen[str]):
    """A process that is killed when the block which it is the context of fails, and not waited for for ever."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


def start(code: str, *arguments: object, cwd: Path = ROOT) -> "subprocess.Popen[str]":
    """Start Python on some code that finds this project's tests; the pipes are text."""
    return _Process(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


RESERVE: Final = """
import sys
from pathlib import Path
from cosyjit.processes.memory import reserved
with reserved(Path(sys.argv[1]), int(sys.argv[2]), 100):
    print("in", flush=True)
    input()
"""
"""For `start`: reserves so many bytes in a directory of reservations, says so, and waits for an answer."""


class Ran(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


Run = Callable[..., Ran]
"""Runs a command with its arguments; see the fixture `run`."""


def run_here(capsys: "pytest.CaptureFixture[str]", *arguments: object) -> Ran:
    """Runs the command line in this process, whose build server all tests share."""
    from cosyjit.cli.app import main  # noqa: PLC0415  (calls do without)

    capsys.readouterr()
    logger = logging.getLogger("cosyjit")
    handlers, level = logger.handlers, logger.level
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended_with:
        return Ran(int(ended_with.code or 0), *capsys.readouterr())
    finally:  # or it would go on printing what other tests tell
        logger.handlers = handlers
        logger.setLevel(level)
    raise AssertionError("the command line did not exit")


def spawn(*command: object, cwd: Path | None = None) -> "subprocess.Popen[str]":
    """Starts a command as a shell would, its output in pipes."""
    environment = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "PYTHONPATH"}}
    return _Process(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process: "subprocess.Popen[str]") -> Ran:
    """What a started command comes to."""
    with process:
        try:
            out, err = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{process.args!r} does not end; it has said {process.communicate()}") from None
        return Ran(process.returncode, out, err)


def snapshot(directory: Path) -> dict[str, bytes | None]:
    """All that is in a directory: paths to contents of files, targets of links, and None for directories."""
    return {str(path.relative_to(directory)): _content(path) for path in sorted(directory.rglob("*"))}


def shown(directory: Path) -> dict[str, bytes]:
    """What a user of a directory sees in it: the files' contents by name, links followed, without cosyjit's own."""
    names = [path for path in directory.iterdir() if not path.name.startswith(".") and path.name != "cosyjit.json"]
    return {path.name: path.read_bytes() for path in sorted(names) if path.is_file()}


def _content(path: Path) -> bytes | None:
    if path.is_symlink():
        return b"-> " + bytes(path.readlink())
    return None if path.is_dir() else path.read_bytes()


STEPS: Final = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "shutil.rmtree"}
"""The audit events of what changes a directory."""


def die_at(step: int, events: Collection[str] = frozenset(STEPS)) -> None:
    """Let this process be killed right before a change that it makes to a directory, by its number from 0."""
    left = [step]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in events or (event == "open" and not _writes(arguments)):
            return
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    sys.addaudithook(watch)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, _, flags = arguments
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def forked(work: Callable[[], object]) -> int:
    """Do something in a process of its own, and wait for that: minus its signal if it was killed, else its status.

    For processes of one thread, which tests start for it.
    """
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def peak() -> int:
    """The most memory that this process has had, in bytes. `getrusage` would count that of the one which started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def said(process: "subprocess.Popen[str]") -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().removesuffix("\n")


def waits_for_a_lock(pid: int) -> bool:
    """Whether a process has opened the file of a lock that others hold."""
    lines = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    held = {line[5].rpartition(":")[2]: line[4] for line in lines}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            inode, own = str(fd.stat().st_ino), "lock:" in Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text()
            if inode in held and not own:
                return True
    return False


def unexpected(err: str) -> list[str]:
    """What a command has written to standard error, but for what it waits for, which a busy machine makes it say."""
    return [line for line in err.splitlines() if ": waits for process " not in line]


def raise_translated(progress: Progress) -> NoReturn:
    try:
        raise_value_error("no such moon", progress)
    except ValueError:
        raise BuildError("try another") from None
