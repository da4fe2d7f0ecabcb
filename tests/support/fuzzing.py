"""Fuzzing: `python -m tests.support.fuzzing TARGET [flags of libFuzzer]` reads what nobody wrote.

A target is a module of `tests/fuzz`, or any by its full name, with

    SEEDS    contents to begin with: Sequence[bytes]
    read     reads one as the product does: Callable[[bytes], object]
    mutate   where bytes that change at random would not get past the parser: a change that knows the format, of a
             content, to so many bytes at most, by a seed: Callable[[bytes, int, int], bytes]

Reading may give anything, or raise a `CosyjitError` of one printable line. Whatever else comes out of it is a finding,
and so is what it does: starting a process, connecting to another machine, writing outside the directory of temporary
files, importing a package that reading the seeds did not, taking a quarter of a GB. A finding ends the program with a
status other than 0, and the input stands in its output. Bounds are libFuzzer's: -timeout in s, -rss_limit_mb,
-malloc_limit_mb; -runs says how many inputs there are, and with a -seed they are the same each time.
"""

import contextlib
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import atheris

_BOUNDS: Final = (
    "-timeout=10",
    "-rss_limit_mb=2048",
    "-malloc_limit_mb=1024",
    "-max_len=16384",
    "-verbosity=0",
    "-reload=0",
)
"""What holds unless a flag says otherwise."""

_PLAIN_ONE_IN: Final = 8
"""How many inputs there are for one that libFuzzer itself has changed, where a target knows how to."""

_FAST: Final = next((each for each in ("/dev/shm",) if os.access(each, os.W_OK)), None)  # noqa: S108  (where there is it)
"""Files in memory: each input may be one."""

_MEMORY: Final = 256 << 10
"""How many KB the process may come to need for a single content."""

_FORBIDDEN: Final = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "pty.", "ctypes.")
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Watch:
    """Python's own account of what is done while a content is read."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._known = {name.partition(".")[0] for name in sys.modules} | {"faulthandler"}  # that of atheris's alarm
        self._seen: list[str] = []
        self._on = False
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Raises at the end what was done that must not be, for a reader may have caught what was raised amid it."""
        self._seen, self._on = [], True
        needed = _most_memory()
        try:
            yield
        finally:
            self._on = False
            if self._seen or _most_memory() > needed + _MEMORY:
                raise AssertionError(self._seen or f"{_most_memory()} KB of memory")

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and self._is_forbidden(event, arguments):
            self._on = False  # what follows from it is no finding of its own
            self._seen.append(f"{event} {arguments!r}")
            raise AssertionError(self._seen)

    def _is_forbidden(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "import":
            return str(arguments[0]).partition(".")[0] not in self._known
        if event == "open":
            path, _, flags = arguments
            return bool(flags & _WRITING) and not (isinstance(path, int) or self._is_inside(os.fsdecode(path)))
        if event == "socket.connect":
            return "127.0.0.1" not in repr(arguments[1])
        return event.startswith(_FORBIDDEN)

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)  # the directory itself is opened for a file without a name
        return real == self._directory or real.startswith((f"{self._directory}/", "/dev/null"))


def _most_memory() -> int:
    """What this process has needed so far, in KB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: Sequence[str]) -> None:
    """Fuzz a target, until a flag or a finding ends the process."""
    name, *flags = arguments
    directory = os.environ["HOME"] = tempfile.tempdir = os.path.realpath(tempfile.mkdtemp(dir=_FAST))
    _remove_at_the_end(directory)
    with atheris.instrument_imports(include=["cosyjit"]):
        target = importlib.import_module(name if "." in name else f"tests.fuzz.{name}")
        read = _reader(target)
    seeds = Path(directory, "seeds")
    seeds.mkdir()
    for number, seed in enumerate(target.SEEDS):
        read(seed)  # whatever is imported late is imported now
        seeds.joinpath(f"{number:04}").write_bytes(seed)
    watch = _Watch(directory)

    def run(content: bytes) -> None:
        try:
            with watch.on():
                read(content)
        except BaseException:
            sys.stderr.write(f"{name} was given {content!r}\n")
            raise

    mutator = {"custom_mutator": _mutator(target)} if hasattr(target, "mutate") else {}
    atheris.Setup([sys.argv[0], *_BOUNDS, f"-artifact_prefix={directory}/", *flags, str(seeds)], run, **mutator)
    atheris.Fuzz()


def _remove_at_the_end(directory: str) -> None:
    """Let another process wait for the end of this one, in which Python has no part, and remove a directory."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(writing)
        os.read(reading, 1)
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)
    os.close(reading)


def _reader(target: ModuleType) -> Callable[[bytes], None]:
    from cosyjit.errors import CosyjitError  # noqa: PLC0415  (what was imported before is not looked into)

    def read(content: bytes) -> None:
        try:
            target.read(content)
        except CosyjitError as error:
            message = str(error)
            if not message.isprintable():
                raise AssertionError(f"no printable line: {message!r}") from error

    return read


def _mutator(target: ModuleType) -> Callable[[bytes, int, int], bytes]:
    def mutate(content: bytes, size: int, seed: int) -> bytes:
        if seed % _PLAIN_ONE_IN == 0:
            return bytes(atheris.Mutate(content, size))
        changed: bytes = target.mutate(content, size, seed)
        return changed[:size]

    return mutate


if __name__ == "__main__":
    main(sys.argv[1:])
