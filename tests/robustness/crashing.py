"""Runs what writes to stores and directories, killed or hindered at each of its steps, and tells what that left.

A program, `python -m tests.robustness.crashing SOURCE FOLDER OTHER STEPS FAULTS SCENARIOS`, with commas between names:
each attempt is a fork of it, so it imports little. A step is a system call that changes a file below one of its
folders.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit.errors import CosyjitError
from cosyjit.fs.files import TEMPORARY
from cosyjit.operations import gc
from cosyjit.operations.verify import verify_store
from cosyjit.processes import worker
from cosyjit.provenance import graphs, latest, record
from cosyjit.publishing import layout, publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import object_name
from tests.robustness.scenarios import FILE, PLAN, SCENARIOS, Place, plan_of, played
from tests.support import syscalls
from tests.support.syscalls import Answer, Call

State = dict[str, Any]
Step = int | str
"""The number of a step, counted from 1, or its kind: then the first of that kind is meant."""


# Faults.

_BY_NAME: Final = frozenset(syscalls.PATHS)
_MAKING: Final = frozenset({"open", "openat", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat"})
_TAKING_ROOM: Final = syscalls.WRITING | _MAKING


_VARIABLE: Final = re.compile(
    r"(?<=cosyjit-)[^/]+|[0-9a-f]{8,}|(?<=objects[/.]|..locks/)[0-9a-f]{2}(?=[/.]|$)|[^/]+(?=\.zip)"
)
"""Of a path, what does not matter for what is done with it, or differs from one attempt to the next."""


class Fault(NamedTuple):
    """What happens to a step; of one that writes, half is done before.

    Attributes:
        calls: which it happens to.
        lasting: whether it happens to all after that.
        within: a pattern of the paths, from the place on, that it happens to.
        times: how many attempts it happens to, one after the other.
    """

    answer: Answer
    calls: frozenset[str] = _BY_NAME | frozenset(syscalls.FILES)
    lasting: bool = False
    within: str = ""
    times: int = 1

    def concerns(self, call: str, path: str) -> bool:
        """Whether it may happen to a call of a path, from the place on."""
        return call in self.calls and re.search(self.within, path) is not None


FAULTS: Final[Mapping[str, Fault]] = {
    "killed": Fault("kill"),
    "killed twice": Fault("kill", frozenset({"rename"}), within="^model/", times=2),
    "input/output error": Fault(errno.EIO),
    "no space left": Fault(errno.ENOSPC, _TAKING_ROOM, lasting=True),
    "quota exceeded": Fault(errno.EDQUOT, _TAKING_ROOM),
    "permission denied": Fault(errno.EACCES, _BY_NAME),
    "read-only": Fault(errno.EROFS, _BY_NAME, lasting=True),
    "short write": Fault("go on", syscalls.WRITING),
}


@dataclass
class Steps:
    """Counts the steps of some work, and lets a fault happen to one of them.

    Attributes:
        at: the step that it happens to; None for none.
        folders: where a change is a step.
        kinds: of the steps so far.
        struck: the file whose change was the first to fail, and `kind`, of what kind that was.
    """

    fault: Fault
    at: Step | None
    folders: tuple[Path, ...]
    kinds: list[str] = field(default_factory=list)
    struck: str = ""
    kind: str = ""
    _halved: tuple[str, int] = ("", 0)

    def answer(self, call: Call) -> Answer:
        if self._goes_on(call):
            self._halved = ("", 0)
            return self.fault.answer
        kind = self._kind(call)
        if kind is None:
            return "go on"
        self.kinds.append(kind)
        if not (self.struck and self.fault.lasting):
            if self.struck or self.at not in (kind, len(self.kinds)):
                return "go on"
            self.struck, self.kind = call.path, kind
            if call.name in syscalls.WRITING:
                self._halved = call.path, syscalls.process_of(call.thread)
                return "half"
        return self.fault.answer

    def _goes_on(self, call: Call) -> bool:
        """Whether this is the next that a process does after half of what it was to write."""
        path, process = self._halved
        if not path or syscalls.process_of(call.thread) != process:
            return False
        return isinstance(self.fault.answer, str) or (call.name in syscalls.WRITING and call.path == path)

    def _kind(self, call: Call) -> str | None:
        """A step's kind: the call, and the path without what differs from one attempt to the next."""
        folder = next((folder for folder in self.folders if call.path.startswith(f"{folder}/")), None)
        if folder is None:
            return None
        path = call.path.removeprefix(f"{folder}/")
        return f"{call.name} {_VARIABLE.sub('#', path)}" if self.fault.concerns(call.name, path) else None


class Ended(NamedTuple):
    """How an attempt ended: "killed", "through", or the message and kind of its error."""

    how: str
    kind: str


def attempt(work: Callable[[], object], steps: Steps) -> Ended:
    """Do some work in a process of its own."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as told:
        syscalls.watch(lambda: os.write(writing, json.dumps(_end(work)).encode()), steps.answer)
        os.close(writing)
        answer = told.read()
    return Ended(*json.loads(answer)) if answer else Ended("killed", "")


def _end(work: Callable[[], object]) -> Ended:
    try:
        work()
    except CosyjitError as error:
        return Ended(str(error), type(error).__name__)
    except BaseException:  # noqa: BLE001  (whatever it is, it is told)
        return Ended(traceback.format_exc(), "crash")
    return Ended("through", "")


# What is left.


def state(place: Place) -> State:
    """What a reader of the directory sees: digests by name, and those that the manifest says.

    Of folders that are others', and of plans, wherever they are, it has those of the files.
    """
    found: State = {}
    for path in sorted(place.directory.iterdir()) if place.directory.exists() else []:
        if path.name.startswith(PLAN):
            content = path.read_bytes()
            found["others"] = sorted([*found.get("others", []), hashlib.sha256(content).hexdigest()])
            if path.name == PLAN and content != plan_of((place.directory / FILE).read_bytes()):
                found[path.name] = "outdated"
        elif path.is_dir() and not path.name.startswith("."):
            digests = {
                each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in path.iterdir() if each.exists()
            }
            if not path.is_symlink():
                found["others"] = sorted([*found.get("others", []), *digests.values()])
            if not re.fullmatch(r".*\.\d+", path.name):
                found |= {f"{path.name}/{name}": digest for name, digest in digests.items()}
        elif path.exists() and not path.name.startswith("."):
            content = path.read_bytes()
            found[path.name] = (
                {name: each["sha256"] for name, each in json.loads(content)["artifacts"].items()}
                if path.name == layout.MANIFEST
                else hashlib.sha256(content).hexdigest()
            )
    return found


def left(place: Place) -> list[str]:
    """Files of the store, the directory and the machine that nothing refers to."""
    store = place.store
    chain = PublishedDirectory(place.directory, store).history()
    published = [artifact for each in chain for artifact in each.artifacts.values()]
    keys = {artifact.fingerprint for artifact in published}
    entries = {entry.name for entry in store.entries()}
    wanted = {
        *(publication.name_of(each.identity) for each in chain),
        *map(record.name_of, keys),
        *(object_name(digest) for each in published for digest in each.objects),
        *(name for name in entries if name.startswith("latest/") and latest.read(store, name) in keys),
        *(name for name in entries if name.startswith("graphs/") and graphs.artifact(store, name) in keys),
        *(name for name in entries if re.fullmatch(r"gate|lock|locks/..|(heads|digests)/.*", name)),
    }
    artifacts = chain[0].artifacts
    own = place.directory / ".cosyjit"
    shown = {
        "current",
        f"sets/{chain[0].identity}/{layout.MANIFEST}",
        *(f"sets/{chain[0].identity}/{path}" for name, each in artifacts.items() for path in each.members(name)),
        *(f"files/{digest}" for each in artifacts.values() for digest in each.objects),
    }
    inside = {str(path.relative_to(own)) for path in own.rglob("*") if path.is_symlink() or not path.is_dir()}
    empty = {str(path.relative_to(own)) for path in own.glob("*/*") if path.is_dir() and not any(path.iterdir())}
    loose = [str(path) for path in _everything(place) if path.name.endswith(TEMPORARY) or not path.exists()]
    machine = [path for name in ("home", "tmp") for path in (place.folder / name).rglob("*") if not path.is_dir()]
    forgotten = map(str, store.digests.of_missing())
    kept = r".*/(memory/lock|cosyjit/cache/(gate|lock)|cosyjit/digests/[^/]*)"  # of which some are forgotten, see above
    notes = [str(path) for path in machine if not re.fullmatch(kept, str(path))]
    return sorted({*(entries - wanted), *(inside - shown), *empty, *loose, *forgotten, *notes})


def _everything(place: Place) -> Iterator[Path]:
    for folder in (place.directory, place.folder / "store", place.other):
        yield from folder.rglob("*")


@dataclass
class Observed:
    """What became of an attempt.

    Attributes:
        scenario: that was attempted.
        at: the step or steps at which it was hindered, and `kinds`, what kinds those are.
        how, kind, struck: as in `Ended` and `Steps`.
        shown: by the directory then.
        faults: that an audit of the store found then.
        again: how another attempt ended, with nothing in its way.
        after: what the directory showed then.
        history: the publications then.
        left: what nothing refers to, after a collection, and what an audit finds then.
    """

    scenario: str
    at: list[Step]
    kinds: list[str]
    how: str
    kind: str
    struck: str
    shown: State
    faults: list[str]
    again: str = ""
    after: State | None = None
    history: list[list[int | None]] | None = None
    left: list[str] | None = None


class Observer:
    """Attempts a scenario again and again.

    Attributes:
        kinds: of the steps that it has.
    """

    def __init__(self, name: str, place: Place) -> None:
        self._name, self._place = name, place
        self._scenario = SCENARIOS[name]
        self._folders = place.folder, place.other
        for folder in (*self._folders, place.folder / "home", place.folder / "tmp"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        self._scenario.prepare(place)
        for folder in self._folders:
            prepared = folder.with_name(f"prepared {folder.name}")
            shutil.rmtree(prepared, ignore_errors=True)
            folder.rename(prepared)
        self._restore()
        self._fault = FAULTS["killed"]
        self.kinds = list(dict.fromkeys(self._attempt(None)[0].kinds))
        self._restore()

    def _restore(self) -> None:
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(folder.with_name(f"prepared {folder.name}"), folder, symlinks=True)

    def before(self) -> Observed:
        """What is there."""
        return self._look([], [], Ended("", ""), "")

    def attempts(self, fault: Fault, wanted: list[Step] | None) -> Iterator[Observed]:
        """Attempts that are hindered at the wanted steps, or at one after the other; the last comes through."""
        self._fault = fault
        if fault.times > 1:
            yield from self._pairs(sparse=wanted is not None)
            return
        for step in range(1, sys.maxsize) if wanted is None else [*wanted, sys.maxsize]:
            observed = self._observe([step])
            yield observed
            if wanted is None and not observed.struck:
                return

    def _pairs(self, *, sparse: bool) -> Iterator[Observed]:
        for first in range(1, sys.maxsize):
            for second in range(1, sys.maxsize, 4 if sparse else 1):
                observed = self._observe([first, second])
                yield observed
                if not observed.struck:
                    break
            if not observed.kinds:
                return

    def _observe(self, at: list[Step]) -> Observed:
        kinds = []
        for step in at:
            steps, ended = self._attempt(step)
            if not steps.struck:
                break
            kinds.append(steps.kind)
        observed = self._look(at, kinds, ended, steps.struck)
        try:
            self._finish(observed)
        except Exception:  # noqa: BLE001  (whatever it is, it is told)
            observed.again = traceback.format_exc()
        self._restore()
        return observed

    def _attempt(self, step: Step | None) -> tuple[Steps, Ended]:
        steps = Steps(self._fault, step, self._folders)
        return steps, attempt(lambda: self._scenario.run(self._place), steps)

    def _look(self, at: list[Step], kinds: list[str], ended: Ended, struck: str) -> Observed:
        return Observed(self._name, at, kinds, *ended, struck, state(self._place), self._faults())

    def _faults(self) -> list[str]:
        store = self._place.store
        if store.local is None or not store.local.exists():
            return []
        return [f"{each.name}: {each.problem}" for each in verify_store(store)]

    def _finish(self, observed: Observed) -> None:
        self._scenario.run(self._place)
        observed.again = "through"
        observed.after = state(self._place)
        chain = PublishedDirectory(self._place.directory, self._place.store).history()
        observed.history = [[each.number, each.restores] for each in chain]
        gc.gc(self._place.store, older_than=0, delete=True)
        observed.left = left(self._place) + self._faults()
        if state(self._place) != observed.after:
            observed.left.append("the collection changed what is shown")


UNAVAILABLE: Final = 77
"""The exit status where the system lets no process watch another one."""


def main(source: str, folder: str, other: str, steps: str, faults: str, scenarios: str) -> None:
    if not syscalls.available():
        sys.exit(UNAVAILABLE)
    time.sleep = partial(_shortly, time.sleep)
    worker.run = played  # type: ignore[assignment]
    worker.prepare = lambda: None
    place = Place(Path(folder, "place"), Path(other, "other"), Path(source))
    os.environ["HOME"], tempfile.tempdir = str(place.folder / "home"), str(place.folder / "tmp")
    struck: set[tuple[str, str]] = set()
    for name in scenarios.split(","):
        observer = Observer(name, place)
        for fault in faults.split(","):
            kinds = [kind for kind in observer.kinds if FAULTS[fault].concerns(*kind.split(" ", 1))]
            wanted = None if steps == "every" else _some(fault, kinds, struck)
            if kinds and wanted != []:
                tell(observer.before(), fault, kinds)
                for observed in observer.attempts(FAULTS[fault], wanted):
                    tell(observed)


def _some(fault: str, kinds: Sequence[str], struck: set[tuple[str, str]]) -> list[Step]:
    """The kinds of steps that a fault has not happened to yet, or one of the others."""
    new = [kind for kind in kinds if (fault, kind) not in struck]
    struck |= {(fault, kind) for kind in new}
    if not new and FAULTS[fault].times > 1:
        return []
    return [*(new or kinds[len(kinds) // 2 :][:1])]


def _shortly(sleep: Callable[[float], None], seconds: float) -> None:
    """Waiting for a clock to move on is most of the time that the steps take, and nobody else is at work here."""
    sleep(min(seconds, 0.001))


def tell(observed: Observed, fault: str = "", kinds: Sequence[str] = ()) -> None:
    """Print an observation; the first of some tells what the others will be of."""
    sys.stdout.write(json.dumps([vars(observed), fault, kinds]) + "\n")
    sys.stdout.flush()  # or a fork that ends in an orderly way tells it as well


if __name__ == "__main__":
    main(*sys.argv[1:])
