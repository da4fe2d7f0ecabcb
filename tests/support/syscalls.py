"""Processes whose changes to files are asked for one by one: the kernel holds each system call until it is answered.

By a filter of seccomp's (https://docs.kernel.org/userspace-api/seccomp_filter.html), which a process sets for itself
and for all that it starts. So what C++ code writes is seen as well, and what threads and other programs do; an error
is one that a system call gave, and a short write is one.
"""

import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal, NamedTuple

Answer = Literal["go on", "half", "kill", "kill the first"] | int
"""To a call: let it be, or half of what it writes; kill its process, or that which has started all; or its error."""

_NUMBERS: Final[Mapping[str, int]] = {
    "write": 1,
    "open": 2,
    "pwrite64": 18,
    "writev": 20,
    "fsync": 74,
    "fdatasync": 75,
    "truncate": 76,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "creat": 85,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "chmod": 90,
    "fchmod": 91,
    "openat": 257,
    "mkdirat": 258,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "symlinkat": 266,
    "fchmodat": 268,
    "utimensat": 280,
    "fallocate": 285,
    "renameat2": 316,
    "copy_file_range": 326,
}
"""Those of x86-64 for the system calls that change files."""

_NAMES: Final = {number: name for name, number in _NUMBERS.items()}

FILES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "fchmod", "fallocate"), 0),
    "copy_file_range": 2,
}
"""Which argument is the open file that is changed."""

PATHS: Final[Mapping[str, tuple[int | None, int]]] = {
    **dict.fromkeys(("open", "creat", "truncate", "mkdir", "rmdir", "unlink", "chmod"), (None, 0)),
    **dict.fromkeys(("rename", "link", "symlink"), (None, 1)),
    **dict.fromkeys(("openat", "mkdirat", "unlinkat", "fchmodat", "utimensat"), (0, 1)),
    **dict.fromkeys(("renameat", "renameat2", "linkat"), (2, 3)),
    "symlinkat": (1, 2),
}
"""Which arguments are the folder, if any, and the path from there that is changed."""

_FLAGS: Final[Mapping[str, int]] = {"open": 1, "openat": 2}
"""Which argument says what a file is opened for."""

WRITING: Final = frozenset({"write", "pwrite64", "writev", "copy_file_range"})
"""The calls of which half can be done."""


class Call(NamedTuple):
    """A system call that waits for its answer: its name, the path of what it changes, and the process's thread."""

    name: str
    path: str
    thread: int


# The filter, a program of the kernel's for the inspection of packets.

_LOAD, _IF_EQUAL, _IF_ANY, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000


def _program() -> bytes:
    parts = [_instruction(_LOAD, 0)]  # the number of the call
    for name, argument in _FLAGS.items():  # only what opens for writing, of so many
        parts += [
            _instruction(_IF_EQUAL, _NUMBERS[name], skipping=4),
            _instruction(_LOAD, 16 + 8 * argument),
            _instruction(_IF_ANY, os.O_WRONLY | os.O_RDWR | os.O_CREAT, skipping=1),
            _instruction(_RETURN, _ASK),
            _instruction(_RETURN, _ALLOW),
        ]
    for name in _NUMBERS.keys() - _FLAGS.keys():
        parts += [_instruction(_IF_EQUAL, _NUMBERS[name], skipping=1), _instruction(_RETURN, _ASK)]
    return b"".join([*parts, _instruction(_RETURN, _ALLOW)])


def _instruction(code: int, value: int, skipping: int = 0) -> bytes:
    """One instruction; a comparison that fails skips so many."""
    return struct.pack("HBBI", code, 0, skipping, value)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


_SECCOMP, _PIDFD_OPEN, _PIDFD_GETFD = 317, 434, 438
_SET_FILTER, _AND_LISTEN = 1, 8
_NO_NEW_PRIVILEGES: Final = 38
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_QUESTION: Final = struct.Struct("QIIiIQ6Q")
_REPLY: Final = struct.Struct("QqiI")
_GO_ON: Final = 1
_HERE: Final = -100
"""In the place of a folder's descriptor: the working directory."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _called(*arguments: object) -> int:
    result = int(_LIBC.syscall(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return result


def _listen() -> int:
    """Set the filter for this process. Returns the descriptor by which its calls are told."""
    content = _program()
    program = _Program(len(content) // 8, content)
    _LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return _called(_SECCOMP, _SET_FILTER, _AND_LISTEN, ctypes.byref(program))


def available() -> bool:
    """Whether this system lets a process watch another one so."""
    if platform.machine() != "x86_64":
        return False
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as read:
        try:
            watch(lambda: None if os.write(writing, b"1234") == 2 else os.abort(), lambda _: "half")
        except OSError:
            return False
        finally:
            os.close(writing)
        return read.read() == b"12"


def watch(work: Callable[[], object], answer: Callable[[Call], Answer]) -> int:
    """Do some work in a fork of this process, and answer its calls until it and all that it has started have ended.

    Returns:
        The fork's wait status.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _work(work, theirs)
    theirs.close()
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    try:
        if not fds:
            raise OSError("the system has no such filter")
        _answer_all(fds[0], pid, answer)
    finally:
        status = os.waitpid(pid, 0)[1]
    return status


def _work(work: Callable[[], object], parent: socket.socket) -> None:
    try:
        listener = _listen()
        socket.send_fds(parent, [b"l"], [listener])
        os.close(listener)
        parent.close()
        work()
    finally:
        os._exit(0)


def _answer_all(listener: int, first: int, answer: Callable[[Call], Answer]) -> None:
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    try:
        while waiting.poll()[0][1] & select.POLLIN:
            with suppress(FileNotFoundError, ProcessLookupError):  # whose process was killed meanwhile
                _answer_one(listener, first, answer)
    finally:
        os.close(listener)


def _answer_one(listener: int, first: int, answer: Callable[[Call], Answer]) -> None:
    question = bytearray(_QUESTION.size)
    fcntl.ioctl(listener, _RECEIVE, question)
    identity, thread, _, number, _, _, *arguments = _QUESTION.unpack(question)
    name = _NAMES[number]
    path = _path(thread, name, arguments)
    said = "go on" if path is None else answer(Call(name, path, thread))
    if said in {"kill", "kill the first"}:
        os.kill(thread if said == "kill" else first, signal.SIGKILL)
        return
    value, error = 0, 0
    if said == "half":
        try:
            value = _half(thread, name, arguments)
        except OSError as failure:
            error = failure.errno or 0
    elif isinstance(said, int):
        error = said
    flags = _GO_ON if said == "go on" else 0
    fcntl.ioctl(listener, _SEND, _REPLY.pack(identity, value, -error, flags))


def _path(thread: int, name: str, arguments: Sequence[int]) -> str | None:
    """Of what a call changes; None if it is given none that can be, and will fail by itself."""
    try:
        if name in FILES:
            return _name(thread, arguments[FILES[name]])
        folder, path = PATHS[name]
        text = os.fsdecode(_memory(thread, arguments[path], 4096).partition(b"\0")[0])
        return os.path.join(_name(thread, _HERE if folder is None else arguments[folder]), text)  # noqa: PTH118
    except OSError:
        return None


def _name(thread: int, fd: int) -> str:
    """The path of an open file, or of the working directory."""
    number = ctypes.c_int(fd & 0xFFFFFFFF).value
    link = f"/proc/{thread}/cwd" if number == _HERE else f"/proc/{thread}/fd/{number}"
    return os.readlink(link)  # noqa: PTH115  (as text)


def _memory(thread: int, address: int, size: int) -> bytes:
    """What a process has in its memory, as far as that goes."""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:  # noqa: PTH123  (quicker, for each call)
        memory.seek(address)
        return memory.read(size)


# Half a call, done in the place of the process, with its own open files.


def _half(thread: int, name: str, arguments: Sequence[int]) -> int:
    """Do the first half of what a call is to write. Returns how many bytes that were."""
    target = _borrowed(thread, arguments[FILES[name]])
    try:
        if name == "copy_file_range":
            return _half_copy(thread, target, arguments)
        content = _content(thread, name, arguments)
        content = content[: (len(content) + 1) // 2]
        return os.pwrite(target, content, arguments[3]) if name == "pwrite64" else os.write(target, content)
    finally:
        os.close(target)


def _half_copy(thread: int, target: int, arguments: Sequence[int]) -> int:
    source = _borrowed(thread, arguments[0])
    try:
        return os.copy_file_range(source, target, (arguments[4] + 1) // 2)
    finally:
        os.close(source)


def _content(thread: int, name: str, arguments: Sequence[int]) -> bytes:
    if name != "writev":
        return _memory(thread, arguments[1], arguments[2])
    pieces = struct.iter_unpack("QQ", _memory(thread, arguments[1], 16 * arguments[2]))
    return b"".join(_memory(thread, address, size) for address, size in pieces if size)


def _borrowed(thread: int, fd: int) -> int:
    """A process's open file, with the place in it where that stands."""
    process = _called(_PIDFD_OPEN, process_of(thread), 0)
    try:
        return _called(_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)


def process_of(thread: int) -> int:
    """The process that a thread is of."""
    with open(f"/proc/{thread}/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
        return next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))
