"""Runs what writes to stores and directories, killed or hindered at each of its steps, and tells what that left.

A program, `python -m tests.crashing SCENARIO FAULT FOLDER`: each attempt is a fork of it, so it imports little.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from cosyjit import audit, gc, publication, publish, record, sets
from cosyjit.errors import BuildError, CosyjitError
from cosyjit.files import TEMPORARY
from cosyjit.fingerprint import Fingerprint
from cosyjit.publication import Published
from cosyjit.record import Record
from cosyjit.store import Store

Fault = Literal["killed", "killed twice", "input/output error", "no space left"]
State = dict[str, Any]

_TO: Final = {"os.rename", "os.link", "os.symlink"}
"""Events of the interpreter's audit that tell two paths, what is changed as the second one."""

_OF: Final = {"os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
"""Those that tell one path, and the folder it is in at the end."""

_TAKES_ROOM: Final = {"open", "write", "copy", "os.mkdir", "os.symlink", "os.link"}


def keep(store: Store, content: bytes) -> Published:
    """Put an artifact and its record into a store, as a build does."""
    made = _record(content)
    with store.staging() as work:
        file = work / "artifact"
        try:
            file.write_bytes(content)
        except OSError as error:
            raise BuildError(f"not built ({error.strerror})") from None
        store.add(file, made.sha256)
        record.save(store, made)
    return kept(content)


def kept(content: bytes) -> Published:
    """What `keep` gives."""
    made = _record(content)
    return Published(made.sha256, len(content), made.fingerprint.key)


def _record(content: bytes) -> Record:
    sha256 = hashlib.sha256(content).hexdigest()
    fingerprint = Fingerprint({}, {"class": "Encoder", "options": {"of": sha256}}, "fp32", "cpu", {}, 1, "2")
    return Record(
        "name.zip",
        sha256,
        fingerprint,
        "encoder",
        "/model",
        (),
        record.now(),
        record.now(),
        {"bytes": len(content)},
        versions={},
    )


class Place(NamedTuple):
    """A store, and a directory to publish into."""

    folder: Path

    @property
    def store(self) -> Store:
        """Opened anew, as another process would."""
        return Store(self.folder / "store")

    @property
    def directory(self) -> Path:
        return self.folder / "model"

    def export(self, contents: Mapping[str, bytes]) -> None:
        """Make artifacts and publish them."""
        store = self.store
        with store.in_use():
            artifacts = {name: keep(store, content) for name, content in contents.items()}
            publish.publish(store, self.directory, artifacts, "/model")

    def publish(self, contents: Mapping[str, bytes]) -> None:
        """Publish artifacts that are there."""
        store = self.store
        with store.in_use():
            publish.publish(
                store, self.directory, {name: kept(content) for name, content in contents.items()}, "/model"
            )


OLD: Final = {"a.zip": b"old a", "b.zip": b"old b"}
NEW: Final = {"a.zip": b"new a"}
BOTH_NEW: Final = {"a.zip": b"new a", "b.zip": b"new b"}
THREE: Final = {**OLD, "c.zip": b"old c"}


class Scenario(NamedTuple):
    """What is there, and what is done then."""

    prepare: Callable[[Place], None]
    run: Callable[[Place], None]


def _published(place: Place) -> None:
    place.export(OLD)


def _kept(place: Place) -> None:
    place.directory.mkdir()
    for content in BOTH_NEW.values():
        keep(place.store, content)


def _foreign(place: Place) -> None:
    _kept(place)
    (place.directory / "a.zip").write_bytes(b"old a")
    (place.directory / "theirs").write_bytes(b"old b")
    (place.directory / "b.zip").symlink_to("theirs")


def _twice_published(place: Place) -> None:
    place.export(OLD)
    place.export({"b.zip": b"new b", "c.zip": b"new c"})


def _damaged(place: Place) -> None:
    place.export(THREE)
    with (place.directory / "a.zip").open("r+b") as file:
        file.write(b"ALIEN")
    (place.directory / "other").write_bytes(b"alien b")
    (place.directory / "other").replace(place.directory / "b.zip")
    with (place.directory / sets.MANIFEST).open("ab") as file:
        file.write(b"\n\n")
    (place.directory / "c.zip").unlink()


def _littered(place: Place) -> None:
    for number in range(3):
        place.export({name: content + b"%d" % number for name, content in OLD.items()})
    keep(place.store, b"made, and never published")
    (place.folder / "store" / "tmp" / "cosyjit-left").mkdir(parents=True)
    (place.folder / "store" / "tmp" / "cosyjit-left" / "half").write_bytes(b"ha")
    (place.folder / "store" / "records" / f".{'0' * 32}{TEMPORARY}").write_bytes(b"{")


SCENARIOS: Final = {
    "publish": Scenario(_published, lambda place: place.export(NEW)),
    "publish over foreign files": Scenario(_foreign, lambda place: place.publish(BOTH_NEW)),
    "publish first": Scenario(_kept, lambda place: place.publish(NEW)),
    "roll back": Scenario(_twice_published, lambda place: _roll_back(place, 1)),
    "mend": Scenario(_damaged, lambda place: place.publish(THREE)),
    "collect": Scenario(_littered, lambda place: _ignore(gc.collect(place.store, keep=1, older_than=0, remove=True))),
}


def _roll_back(place: Place, number: int) -> None:
    store = place.store
    with store.in_use():
        publish.rollback(store, place.directory, number)


def _ignore(_: object) -> None:
    pass


# Faults.


class _Steps:
    """Counts the changes that this process makes to files; at one of them, kills it or lets the change fail.

    The digests that are remembered are left out: they may be lost at any time, and are written as documents are.
    """

    def __init__(self, fault: Fault, at: int) -> None:
        self._fault, self._at = fault, at
        self._only = {"killed twice": {"os.rename"}, "no space left": _TAKES_ROOM}.get(fault)
        self.taken = 0
        self.struck = ""

    def due(self, kind: str, path: str) -> bool:
        """Take a step; whether it is the one."""
        if (self._only is not None and kind not in self._only) or "/store/digests" in path:
            return False
        if self._fault == "killed twice" and "/model/" not in path:
            return False
        self.taken += 1
        if self.taken < self._at or (self.taken > self._at and self._fault != "no space left"):
            return False
        self.struck = self.struck or path
        return True

    def strike(self) -> None:
        if self._fault.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        number = errno.ENOSPC if self._fault == "no space left" else errno.EIO
        raise OSError(number, os.strerror(number))

    def step(self, kind: str, path: str) -> None:
        if self.due(kind, path):
            self.strike()

    def watch(self) -> None:
        """Step before each change from now on, and stop half-way through what is written."""
        sys.addaudithook(self._hook())  # sees all changes of names, and cannot be removed: this process ends soon
        steps, fsync, copy_file_range, path_open = self, os.fsync, os.copy_file_range, Path.open

        def synced(fd: int) -> None:
            steps.step("fsync", _name(fd))
            fsync(fd)

        def copied(source: int, target: int, count: int) -> int:
            if steps.due("copy", _name(target)):
                copy_file_range(source, target, count // 2)
                steps.strike()
            return copy_file_range(source, target, count)

        class Raw(io.FileIO):
            def write(self, content: Any, /) -> int:
                if steps.due("write", _name(self.fileno())):
                    super().write(memoryview(content)[: len(content) // 2])
                    steps.strike()
                return super().write(content)

        def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if "b" in mode and set(mode) & set("wxa"):
                return io.BufferedWriter(Raw(path, mode.replace("b", "")))
            return path_open(path, mode, *arguments, **options)

        for owner, name, wrapped in (
            (os, "fsync", synced),
            (os, "copy_file_range", copied),
            (Path, "open", opened),
        ):
            setattr(owner, name, wrapped)

    def _hook(self) -> Callable[[str, tuple[Any, ...]], None]:
        def audited(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.step(event, str(arguments[0]))
            elif event in _TO:
                self.step(event, os.fspath(arguments[1]))
            elif event in _OF:
                within = _name(arguments[-1]) if arguments[-1] >= 0 else ""  # as `shutil.rmtree` names them
                self.step(event, os.path.join(within, arguments[0]))  # noqa: PTH118

        return audited


def _name(fd: int) -> str:
    """The path of an open file."""
    return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115  (as text)


class Ended(NamedTuple):
    """How an attempt ended: "killed", "through", or the message and kind of its error.

    Attributes:
        steps: how many were taken.
        struck: the file whose change was the one that failed.
    """

    how: str
    kind: str
    steps: int
    struck: str = ""


def _attempt(work: Callable[[], None], fault: Fault, at: int) -> Ended:
    """Do some work in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(work, _Steps(fault, at), writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        answer = told.read()
    os.waitpid(pid, 0)
    return Ended(*json.loads(answer)) if answer else Ended("killed", "", at)


def _child(work: Callable[[], None], steps: _Steps, answer: int) -> None:
    how, kind = "through", ""
    try:
        steps.watch()
        work()
    except CosyjitError as error:
        how, kind = str(error), type(error).__name__
    except BaseException:  # noqa: BLE001  (whatever it is, it is told)
        how, kind = traceback.format_exc(), "crash"
    finally:
        os.write(answer, json.dumps([how, kind, steps.taken, steps.struck]).encode())
        os._exit(0)


# What is left.


def state(place: Place) -> State:
    """What a reader of the directory sees: contents by name, and what the manifest says."""
    found: State = {}
    for path in sorted(place.directory.iterdir()):
        if path.exists() and not path.name.startswith("."):
            content = path.read_bytes().decode()
            manifest = path.name == sets.MANIFEST
            found[path.name] = (
                {n: a["sha256"] for n, a in json.loads(content)["artifacts"].items()} if manifest else content
            )
    return found


def left(place: Place) -> list[str]:
    """Files of the store and of the directory that nothing refers to."""
    store = place.store
    chain = publish.history(store, place.directory)
    published = [artifact for each in chain for artifact in each.artifacts.values()]
    wanted = {
        *(publication.name_of(each.identity) for each in chain),
        *(record.name_of(each.fingerprint) for each in published),
        *(f"objects/{each.sha256[:2]}/{each.sha256}" for each in published),
    }
    kept = {entry.name for entry in store.entries() if entry.name.split("/")[0] not in {"digests", "heads"}}
    own = place.directory / ".cosyjit"
    shown = {
        "current",
        f"sets/{chain[0].identity}/{sets.MANIFEST}",
        *(f"sets/{chain[0].identity}/{name}" for name in chain[0].artifacts),
        *(f"files/{artifact.sha256}" for artifact in chain[0].artifacts.values()),
    }
    inside = {str(path.relative_to(own)) for path in own.rglob("*") if path.is_symlink() or not path.is_dir()}
    empty = {str(path.relative_to(own)) for path in own.glob("*/*") if path.is_dir() and not any(path.iterdir())}
    loose = [str(path) for path in _everything(place) if path.name.endswith(TEMPORARY) or not path.exists()]
    return sorted({*(kept - wanted - {"gate", "lock"}), *(inside - shown), *empty, *loose})


def _everything(place: Place) -> Iterator[Path]:
    yield from place.directory.rglob("*")
    yield from (place.folder / "store").rglob("*")


@dataclass
class Observed:
    """What became of an attempt.

    Attributes:
        at: the step or steps at which it was hindered.
        how, kind, struck: as in `Ended`.
        shown: by the directory then.
        faults: that an audit of the store found then.
        again: how another attempt ended, with nothing in its way.
        after: what the directory showed then.
        history: the numbers of the publications then, and of those that they restore.
        left: what nothing refers to, after a collection.
    """

    at: list[int]
    how: str
    kind: str
    struck: str
    shown: State
    faults: list[str]
    again: str = ""
    after: State | None = None
    history: list[tuple[int, int | None]] | None = None
    left: list[str] | None = None


def observe(scenario: Scenario, fault: Fault, folder: Path) -> Iterator[Observed]:
    """Attempt a scenario, hindered at one step after the other, until it comes through; the last is that one."""
    place, prepared = Place(folder / "place"), folder / "prepared"
    place.folder.mkdir()
    scenario.prepare(place)
    shutil.copytree(place.folder, prepared, symlinks=True)
    yield Observed([], "", "", "", state(place), [])
    at = [1]
    while True:
        shutil.rmtree(place.folder)
        shutil.copytree(prepared, place.folder, symlinks=True)
        observed, ended = _observe(scenario, fault, place, at)
        yield observed
        if ended.how != "through" or ended.steps >= at[-1]:  # an error may have been dealt with
            at = [*at[:-1], at[-1] + 1] if len(at) == 2 or fault != "killed twice" else [*at, 1]
        elif len(at) == 2:
            at = [at[0] + 1]
        else:
            return


def _observe(scenario: Scenario, fault: Fault, place: Place, at: list[int]) -> tuple[Observed, Ended]:
    for number in at:
        ended = _attempt(lambda: scenario.run(place), fault, number)
    faults = [f"{each.name}: {each.problem}" for each in audit.audit_store(place.store)]
    observed = Observed(at, ended.how, ended.kind, ended.struck, state(place), faults)
    try:
        scenario.run(place)
        observed.again = "through"
        observed.after = state(place)
        observed.history = [(each.number, each.restores) for each in publish.history(place.store, place.directory)]
        gc.collect(place.store, older_than=0, remove=True)
        observed.left = left(place)
        if state(place) != observed.after:
            observed.left.append("the collection changed what is shown")
    except Exception:  # noqa: BLE001  (whatever it is, it is told)
        observed.again = traceback.format_exc()
    return observed, ended


def main(scenario: str, fault: Fault, folder: str) -> None:
    # Waiting for a clock to move on, and for the disk, is most of the time that the steps take. A process that is
    # killed takes with it nothing that it has written, and no file here is written twice within a tick of the clock.
    time.sleep = _ignore
    os.fsync = _ignore  # type: ignore[assignment]
    for observed in observe(SCENARIOS[scenario], fault, Path(folder)):
        sys.stdout.write(json.dumps(vars(observed)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
