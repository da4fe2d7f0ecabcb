"""Calls in processes of their own, without the seconds in which each would import torch.

A server process imports torch once and forks one child for each call. The child does the call and ends: its memory is
given back, TorchScript's process-wide state is fresh each time, and when it is killed only this call fails. The server
never runs torch itself and has a single thread, so that forking it is safe. When the process that started it ends, in
whatever way, it ends its children and itself. When a caller gives up a call, it kills the child of that call.

All calls of a process share one server. A `CancelScope` holds the calls of one export and cancels no others.

`multiprocessing`'s fork server is not used because each of its children imports the caller's main module, which for a
Prefect run is Prefect.
"""

import atexit
import contextlib
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar, final

from cosyjit.errors import BuildError, CosyjitError, ResourceError, line, trace
from cosyjit.processes import limits

Progress = Callable[[str], None]
"""Called with the name of each stage when the stage begins."""

T = TypeVar("T")

_SERVER_ENDED: Final = "the build server ended; see its output above, and run again"


def run(
    function: Callable[..., T],
    *args: Any,
    progress: Progress | None = None,
    into: os.PathLike[str] | None = None,
    scope: "CancelScope | None" = None,
) -> T:
    """Call `function(*args, progress=...)` in a process of its own and wait for what it returns.

    Safe to call from several threads at once. The function and its arguments are pickled, so the function must be one
    of a module; its result or error is pickled, too. If the wait ends with an error, such as Ctrl-C or one of
    `progress`, the process is killed before the error goes on.

    Args:
        progress: called with the name of each stage that the function reports.
        into: where the function writes files, for the message: torch aborts when it cannot write.
        scope: cancels the call together with others; None if nobody but the caller ends it.

    Raises:
        BuildError: the process ended without an answer, and the message says how; or the scope is cancelled.
        ResourceError: no process can be started for it.
    """
    scope = scope or CancelScope()
    message = pickle.dumps((function, args))
    scope.check()
    ours, theirs = socket.socketpair()
    with ours, Connection(os.dup(ours.fileno())) as connection:
        with theirs:
            server = _SERVER.submit(theirs)
        call = _Call(ours, connection, server, scope)
        with scope.entered(call):
            call.send(message)
            kind, value = call.receive()
            while kind == "progress":
                if progress is not None:
                    progress(value)
                kind, value = call.receive()
    if kind == "raised":
        raise value.error from value
    if kind == "ended":
        scope.check()
        raise BuildError(f"the build process {_exit_reason(value, into)}")
    return value


def prepare() -> None:
    """Start the server, so that it imports torch while the caller does something else."""
    _SERVER.prepare()


def stop() -> None:
    """End the server and all calls that are running; they raise BuildError. The next call starts it anew."""
    _SERVER.stop()


@final
class CancelScope:
    """The calls of one export, to be cancelled together; those of other exports go on.

    As a context manager it cancels its calls when the block is left by an error, Ctrl-C included, so that none of them
    outlives it. No call begins in a cancelled scope, for other threads may be about to make one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[_Call] = []
        self._cancelled = False

    def __enter__(self) -> "CancelScope":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.cancel()

    def check(self) -> None:
        """Make sure that calls may begin.

        Raises:
            BuildError: the scope is cancelled.
        """
        if self._cancelled:
            raise BuildError("stopped: what it was part of has ended")

    def cancel(self) -> None:
        """Kill the processes of all calls; the calls raise BuildError once these are gone."""
        with self._lock:
            self._cancelled = True
            for call in self._calls:
                call.give_up()

    @contextlib.contextmanager
    def entered(self, call: "_Call") -> Iterator[None]:
        """Have a call cancelled with the scope, and kill its process if the block is left by an error.

        Raises:
            BuildError: the scope is cancelled.
        """
        with self._lock:
            self.check()
            self._calls.append(call)
        try:
            yield
        except BaseException:
            call.give_up()
            call.wait()
            raise
        finally:
            with self._lock:
                self._calls.remove(call)


class _Call(NamedTuple):
    """A call under way, as its caller sees it."""

    socket: socket.socket
    connection: Connection
    server: "_Server"
    scope: CancelScope

    def send(self, message: bytes) -> None:
        try:
            self.connection.send_bytes(message)
        except OSError:
            raise self._failure() from None

    def receive(self) -> tuple[str, Any]:
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            raise self._failure() from None
        return kind, value

    def _failure(self) -> CosyjitError:
        self.scope.check()
        return self.server.failure()

    def give_up(self) -> None:
        """Tell the server to kill the process, or not to start it; safe to call from any thread."""
        with contextlib.suppress(OSError):  # the other side is gone
            self.socket.shutdown(socket.SHUT_WR)
            if not self.server.is_ready:  # it will see this before it starts the process; nobody has to wait for that
                self.socket.shutdown(socket.SHUT_RD)

    def wait(self) -> None:
        """Wait until the process has ended; then the server closes the other side."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.connection.recv_bytes()


class _Raised(Exception):  # noqa: N818  (shown as the cause of the error it carries)
    """An error of a call, and its traceback there."""

    def __init__(self, error: Exception, trace: str) -> None:
        super().__init__(error, trace)
        self.error, self.trace = error, trace

    def __str__(self) -> str:
        return f"\n{self.trace}"


def _cannot_start(reason: str) -> str:
    return f"{sys.executable!r}: the build server cannot be started ({reason}); mend that, and run again"


def _exit_reason(status: int, into: os.PathLike[str] | None) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended without an answer, exit status {code}; see its output above"
    disk = f"; the disk of {os.fspath(into)} may be full" if into else ""
    hints = {signal.SIGKILL: "; the system may be out of memory", signal.SIGABRT: disk}
    died_of = signal.Signals(-code)
    return f"was killed by {died_of.name}{hints.get(died_of, '')}"


_MAIN: Final = """
import sys
fd, errors, *sys.path = sys.argv[1:]
from cosyjit.processes.worker import serve
serve(int(fd), int(errors))
"""
"""What the server runs. It takes over the caller's `sys.path`, because that of `python -c` begins with the working
directory, which may belong to a stranger. PYTHONPATH is not for it: a `sitecustomize` found by that, such as the one of
`opentelemetry-instrument`, would start threads in it."""


_ENVIRONMENT: Final = {
    # numpy, which torch imports where it is installed, would start the threads of its OpenBLAS.
    "OPENBLAS_NUM_THREADS": "1",
    # torch asks for large pages of memory where the system has them: that saved 2 and 15 % of the time of exports.
    "THP_MEM_ALLOC_ENABLE": "1",
    # torch's C++ writes errors only; each process would warn that quantization is going to change.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


class _Server(NamedTuple):
    """A server that was started.

    Attributes:
        control: the connection to it; the server ends when this is closed.
        said: the file that its output goes to until it is ready, after a line break; empty from then on.
    """

    process: subprocess.Popen[bytes]
    control: socket.socket
    said: BinaryIO

    @property
    def is_ready(self) -> bool:
        """Whether it has imported torch, and takes calls."""
        try:
            return os.fstat(self.said.fileno()).st_size == 0
        except (ValueError, OSError):  # it was ended
            return False

    def failure(self) -> CosyjitError:
        """Why it has ended: without being told to, it does so only if it could not be started or was killed."""
        code = self.process.wait()
        try:
            self.said.seek(0)
            said = self.said.read().decode(errors="replace")
        except ValueError:  # it was ended, and what it said is gone
            said = ""
        if not said:
            return BuildError(_SERVER_ENDED)
        ended = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        reason = ([ended] + [each for each in said.splitlines() if each.strip()])[-1]
        return ResourceError(limits.lack_in(said) or _cannot_start(reason))

    def end(self) -> None:
        """End the server and its children, and wait until they have ended."""
        self.control.close()
        self.process.terminate()  # while it imports torch it does not see that the connection is closed
        self.process.wait()
        self.said.close()


class _Servers:
    """The server of this process. It is started at the first call, and again after it has died."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._running: _Server | None = None
        self._pid = 0

    def submit(self, call: socket.socket) -> _Server:
        """Hand one end of a call's connection to the server."""
        with self._lock:
            server = self.prepare()
            try:
                socket.send_fds(server.control, [b"c"], [call.fileno()])
            except OSError:
                raise server.failure() from None
            return server

    def prepare(self) -> _Server:
        """Start the server unless it runs."""
        with self._lock:
            if self._running is None or self._running.process.poll() is not None:
                self.stop()
                self._running = self._start()
            return self._running

    def _start(self) -> _Server:
        with ExitStack() as held, ExitStack() as passed:
            try:
                ours, theirs = map(held.enter_context, socket.socketpair())
                passed.enter_context(theirs)
                said = held.enter_context(os.fdopen(os.memfd_create("said"), "rb"))
                os.write(said.fileno(), b"\n")
                errors = os.dup(2)
                passed.callback(os.close, errors)
                # A session of its own: Ctrl-C at a terminal is for the caller to handle, who then ends the server.
                process = subprocess.Popen(
                    [sys.executable, "-c", _MAIN, str(theirs.fileno()), str(errors), *sys.path],
                    pass_fds=[theirs.fileno(), errors],
                    cwd=None if limits.has_directory() else "/",
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    env={name: os.environ[name] for name in os.environ if name != "PYTHONPATH"} | _ENVIRONMENT,
                    start_new_session=True,
                )
            except (OSError, MemoryError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                raise ResourceError(limits.lack(error) or _cannot_start(reason or line(error))) from None
            held.pop_all()
        self._pid = os.getpid()
        return _Server(process, ours, said)

    def stop(self) -> None:
        """End the server and its children."""
        with self._lock:
            if self._running is not None and self._pid == os.getpid():  # not in a fork of the process that started it
                self._running.end()
            self._running = None


_SERVER: Final = _Servers()
atexit.register(_SERVER.stop)


def set_environment() -> None:
    """Set the environment that this process imports torch in, which is that of the build server.

    With threads, numpy's OpenBLAS may wait for ever where memory is short.
    """
    os.environ.update(_ENVIRONMENT)


def ignore_missing_numpy() -> None:
    """Ignore torch's warning that numpy is not installed: nothing that this package does with torch uses it.

    This holds for the whole process. Call it before torch is imported: some releases of torch warn when they are
    imported, others at the first operation on a tensor.
    """
    warnings.filterwarnings("ignore", "Failed to initialize NumPy: No module named 'numpy'", UserWarning)


def leave_lost_directory() -> None:
    """Change the working directory if it is gone: MKL ends a process that imports torch in such a directory."""
    if not limits.has_directory():
        os.chdir("/")


def serve(fd: int, errors: int) -> None:
    """Be the server: fork a child for each connection that comes in over `fd`, until the other side closes it.

    Args:
        fd: of the connection to the caller.
        errors: where the server writes once it is ready. Its output before that goes to the caller, which shows why
            the server cannot be started.
    """
    gc.disable()
    ignore_missing_numpy()
    for name in ("torch", "cosyjit.folders.folder", "cosyjit.torchscript.gate", "cosyjit.torchscript.load"):
        importlib.import_module(name)  # once, for all the children
    _speak(errors)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from now on it sees that the connection is closed
    gc.freeze()  # none of this is garbage: spare the children the look, and the copies of pages that it makes
    control = socket.socket(fileno=fd)
    running: dict[int, int] = {}  # the processes of the calls, by the files of their connections
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        # One event at a time: what is done about it may close the file of another one.
        ready, _ = poll.poll()[0]
        if ready == wake:
            os.read(wake, 4096)
            _reap(running, poll)
        elif ready in running:
            poll.unregister(ready)
            os.kill(running[ready], signal.SIGKILL)
        else:
            message, fds, _, _ = socket.recv_fds(control, 1, 1)
            if not message:
                _kill(running)
                return
            _begin(fds[0], running, poll)


def _speak(errors: int) -> None:
    """Send the output to where the caller's goes from now on, beginning with what was held back, such as warnings."""
    sys.stderr.flush()
    said = os.pread(2, os.fstat(2).st_size, 1)
    os.ftruncate(2, 0)
    for number in (1, 2):
        os.dup2(errors, number)
    os.close(errors)
    with contextlib.suppress(OSError):  # nobody can read it
        os.write(2, said)


def _begin(fd: int, running: dict[int, int], poll: "select.poll") -> None:
    """Fork a child for the call that comes over a connection, unless the caller has given it up by now."""
    poll.register(fd, select.POLLRDHUP)
    if any(each == fd for each, _ in poll.poll(0)):
        poll.unregister(fd)
        os.close(fd)
        return
    pid = os.fork()
    if pid == 0:
        for other in running:  # or their callers would not see them closed
            os.close(other)
        _answer(fd)
    running[fd] = pid


def _reap(running: dict[int, int], poll: "select.poll") -> None:
    """Send the exit status of each child that has ended to its caller, which listens only if it has no answer."""
    for fd, pid in list(running.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del running[fd]
            with contextlib.suppress(KeyError):  # the caller has given it up
                poll.unregister(fd)
            with Connection(fd) as connection, contextlib.suppress(OSError):
                connection.send(("ended", status))


def _kill(running: dict[int, int]) -> None:
    for pid in running.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _answer(fd: int) -> None:
    """Make the call that comes over a connection, in a forked child, and end."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    gc.enable()
    with Connection(fd) as connection:
        try:
            function, args = pickle.loads(connection.recv_bytes())  # noqa: S301  (from the process that started us)
            answer = "returned", function(*args, progress=lambda stage: connection.send(("progress", stage)))
        except Exception as error:  # noqa: BLE001  (raised again by the caller)
            answer = "raised", _Raised(_portable(error), trace(error))
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # the caller may have given up
            connection.send(answer)
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """The error itself, or one with the same text if it reports a lack or cannot be pickled."""
    lack = limits.lack(error)
    if lack is not None and not isinstance(error, CosyjitError):
        return BuildError(lack)
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001  (a constructor of any kind)
        return BuildError(f"{type(error).__name__}: {error}")
    return error
