"""Exports for real, whose builds are killed or hindered while they write; see `tests.robustness.crashing`.

A program, `python -m tests.robustness.crashing_builds SOURCE FOLDER STRIDE`. It has torch imported and each attempt
is a fork of it, so that the server which forks the builds need not start anew. What an attempt leaves, the
next one finds.
"""

import errno
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import cosyjit.torchscript.gate
import cosyjit.torchscript.load  # noqa: F401  (and torch with them, once for all attempts)
from cosyjit import pipeline
from cosyjit.errors import BuildError
from cosyjit.operations import gc
from cosyjit.operations.verify import verify_store
from cosyjit.processes import worker
from cosyjit.publishing.directory import PublishedDirectory
from tests.robustness.crashing import UNAVAILABLE, Fault, Observed, Steps, attempt, left, state, tell
from tests.robustness.scenarios import EARLIER, Place
from tests.support import syscalls
from tests.support.processes import children

if TYPE_CHECKING:
    import subprocess

_ARCHIVE: Final = r"/archive\.zip$"

FAULTS: Final[Mapping[str, Fault]] = {
    "the build is killed": Fault("kill", within=_ARCHIVE),
    "the export is killed": Fault("kill the first", within=_ARCHIVE),
    "input/output error": Fault(errno.EIO, within=_ARCHIVE),
    "no space left": Fault(errno.ENOSPC, syscalls.WRITING | {"openat"}, lasting=True, within=_ARCHIVE),
}
SHORT: Final = Fault("go on", syscalls.WRITING, within=_ARCHIVE)

_STAGES: Final = ("load", "script", "save", "verify")

Progress = Callable[[object, str], None]


class _Forked:
    """A process, as `worker` knows its server."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def poll(self) -> int | None:
        return None if self._pid in children(os.getpid()) else self.wait()

    def wait(self) -> int:
        return os.waitpid(self._pid, 0)[1]

    def terminate(self) -> None:
        pass  # it sees that the connection is closed: torch was imported before


def _fork_server() -> worker._Server:
    """Start the server of the builds as a fork of this process, and not as a program that imports torch."""
    ours, theirs = socket.socketpair()
    said = os.memfd_create("said")
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.setsid()
        errors = os.dup(2)
        os.dup2(said, 2)
        worker.serve(theirs.detach(), errors)
        os._exit(0)
    theirs.close()
    worker._SERVER._pid = os.getpid()
    return worker._Server(cast("subprocess.Popen[bytes]", _Forked(pid)), ours, os.fdopen(said, "rb"))


class _Chain:
    """Attempts of one export, one after the other in one place."""

    def __init__(self, place: Place) -> None:
        self._place = place
        for folder in (place.folder, place.folder / "home", place.folder / "tmp"):
            folder.mkdir()
        os.environ["HOME"], tempfile.tempdir = str(place.folder / "home"), str(place.folder / "tmp")
        place.export(EARLIER)

    def attempt(self, name: str, fault: Fault, at: int = 0, **options: Any) -> tuple[Observed, int]:
        """Export while a fault happens to a step, or to none. Returns what became of it, and how many steps it had."""
        steps = Steps(fault, at, (self._place.folder,))
        ended = attempt(lambda: self._export(**options), steps)
        return self._look(name, at, ended.how, ended.kind, steps.struck), len(steps.kinds)

    def kill(self, name: str, stage: str) -> Observed:
        """Kill the build, or all of the export, as it enters a stage."""

        def told(_: object, entered: str) -> None:
            if entered == stage:
                whole = FAULTS[name].answer == "kill the first"
                os.kill(os.getpid() if whole else max(children(os.getpid())), signal.SIGKILL)

        return self.attempt(f"{name}, {stage}", FAULTS[name], progress=told)[0]

    def finish(self) -> Observed:
        """Export with nothing in its way, and collect."""
        observed, _ = self.attempt("finished", SHORT)
        store = self._place.store
        observed.history = [
            [each.number, each.restores] for each in PublishedDirectory(self._place.directory, store).history()
        ]
        gc.gc(store, older_than=0, delete=True)
        observed.left = left(self._place)
        observed.after = state(self._place)
        return observed

    def _export(self, **options: Any) -> None:
        worker.prepare()  # while this process has a single thread
        place = self._place
        export = partial(pipeline.export, components=["flow.encoder"], precisions=["fp32"], publish=place.directory)
        (outcome,) = export(place.source, store=place.store, **options)
        if outcome.error:
            raise BuildError(outcome.error)

    def _look(self, name: str, at: int, how: str, kind: str, struck: str) -> Observed:
        place = self._place
        there = Path(place.store.root).exists()
        faults = [f"{each.name}: {each.problem}" for each in verify_store(place.store)] if there else []
        shown = state(place)
        folders = place.folder / "store" / "tmp", place.folder / "tmp", place.directory / ".cosyjit" / "files"
        work = [str(path) for folder in folders for path in folder.glob("*") if path.name not in shown.values()]
        return Observed(name, [at], [], how, kind, struck, shown, faults, left=work)


def main(source: str, folder: str, stride: str) -> None:
    if not syscalls.available():
        sys.exit(UNAVAILABLE)
    worker._SERVER._start = _fork_server  # type: ignore[method-assign]
    place = Place(Path(folder, "one"), Path(folder, "none"), Path(source))
    first, steps = _Chain(place).attempt("unhindered", SHORT)
    tell(first)
    chain = _Chain(place._replace(folder=Path(folder, "other")))
    for at in sorted({1, 2, *range(3, steps, int(stride)), steps}):
        for name, fault in FAULTS.items():
            tell(chain.attempt(name, fault, at)[0])
    for stage in _STAGES[:: int(stride) if int(stride) < len(_STAGES) else 3]:
        for name in ("the build is killed", "the export is killed"):
            tell(chain.kill(name, stage))
    tell(chain.finish())
    for at in range(2, steps, int(stride) * 8):  # each is verified as well, which takes most of the time
        tell(chain.attempt("short write", SHORT, at, force=True)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
