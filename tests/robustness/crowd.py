"""Many processes at work in one store and a few directories, some of them killed, and what must be true afterwards.

A program, `python -m tests.robustness.crowd FOLDER STORE SECONDS PROCESSES`: the processes are forks of it, so it
imports no torch. FOLDER has the checkpoints that real exports take, as `checkpoints/*`. It prints a report in JSON
(`Report`).
"""

import contextlib
import faulthandler
import functools
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import cosyjit
from cosyjit.cli import app
from cosyjit.errors import PublicationError, StoreError
from cosyjit.operations import gc
from cosyjit.operations.verify import verify_directory, verify_store
from cosyjit.provenance import graphs, latest, record
from cosyjit.publishing import layout
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Publication
from cosyjit.store import leases
from cosyjit.store.store import Store
from tests.support.files import sha256
from tests.support.stores import add, artifact_of, exporting, names_of, put

DEADLINE: Final = 600.0
"""In s, after which what one process does counts as stuck: its threads are written down, and it ends."""

LEASE: Final = 3.0
"""In s, the period of leases in place of the usual one: each that is killed would hold others up for that long."""

GRACE: Final = 60.0
"""In s, how long a remote store keeps what is young, in place of a day. In half of it each export has to be through."""

NAMES: Final = [f"{letter}.zip" for letter in "abcd"]
"""What each made-up set has; any of it in one of `_VARIANTS` forms."""

_VARIANTS: Final = 12
_LENGTH: Final = 20_000

_ROLES: Final = (
    *("export", "read", "export", "collect", "real", "roll back", "verify", "export"),
    *("export", "litter", "export", "collect", "export", "roll back", "export", "export"),
)
"""What the processes do, by their number: with more than these, again from the front."""

_LATE: Final = "there is no publication"
_LATE_REMOTE: Final = f"{_LATE}|is missing; export its checkpoint again to build it anew"
"""What a rollback says that comes too late; only of a remote store something may go while it is in use."""


def content(name: str, variant: int) -> bytes:
    """An artifact by which one sees whether it is whole, and whose it is."""
    return f"{name} {variant};".encode().ljust(_LENGTH, b".")


class Crowd(NamedTuple):
    """Where it all happens."""

    folder: Path
    root: str

    @property
    def store(self) -> Store:
        return Store(self.root)

    @property
    def remote(self) -> bool:
        """Whether it is slow: then there is less to collect, and fewer processes are killed."""
        return "://" in self.root

    @property
    def keep(self) -> int:
        """How many publications of each directory the collections keep."""
        return 5 if self.remote else 30

    @property
    def killed_each(self) -> float:
        """In s, how often a process is killed."""
        return 1.5 if self.remote else 0.4

    @property
    def directories(self) -> list[Path]:
        """Those for made-up artifacts; the second one is a copy of the first."""
        return [self.folder / name for name in ("model", "copy", "c", "d", "e", "f")]

    @property
    def real(self) -> Path:
        """Where real exports go."""
        return self.folder / "real"

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").iterdir())

    @property
    def homes(self) -> list[Path]:
        """Each is a machine's, of those that share a remote store."""
        return [self.folder / "homes" / name for name in "ab"]

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def stop(self) -> Path:
        """A file that tells all to come to an end."""
        return self.folder / "stop"

    def prepare(self) -> None:
        """Publish a first set in each directory."""
        self.logs.mkdir()
        first, copy, *others = self.directories
        store = self.store
        with store.in_use():
            for directory in (first, first, *others):
                made = {name: put(store, content(name, random.randrange(_VARIANTS))) for name in NAMES}  # noqa: S311
                PublishedDirectory(directory, store).publish(made, "/model")
            shown = PublishedDirectory(first, store).require_live()
            shutil.copytree(first, copy, symlinks=True)
            PublishedDirectory(copy, store).publish(shown.artifacts, shown.source)  # so that the store knows of it


class Member:
    """One process: does again and again what its role is, and notes what came of it."""

    def __init__(self, crowd: Crowd, number: int, role: str) -> None:
        self._crowd = crowd
        self._random = random.Random(number)  # noqa: S311  (nothing secret)
        self._role = role
        self._log = os.open(crowd.logs / f"{number}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._stacks = (crowd.logs / f"{number}.stacks").open("w")
        self._seen: dict[Path, int] = {}
        os.environ["HOME"] = str(self._random.choice(crowd.homes))
        self._store = crowd.store

    def run(self) -> None:
        acts: Mapping[str, Callable[[], dict[str, Any] | None]] = {
            "export": self._export,
            "read": self._read,
            "collect": self._collect,
            "roll back": self._roll_back,
            "real": self._real,
            "litter": self._litter,
            "verify": self._verify,
        }
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        while True:
            faulthandler.dump_traceback_later(DEADLINE, file=self._stacks, exit=True)
            begun = time.monotonic()
            note = {"act": self._role, **self._outcome(acts[self._role])}
            self._note({**note, "seconds": round(time.monotonic() - begun, 3)})
            if self._crowd.stop.exists():
                break
        faulthandler.cancel_dump_traceback_later()

    def _outcome(self, act: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        try:
            return act() or {}
        except (PublicationError, StoreError) as error:
            expected = _LATE_REMOTE if self._crowd.remote else _LATE
            late = self._role == "roll back" and re.search(expected, str(error))
            return {"late" if late else "failed": traceback.format_exc()}
        except Exception:  # noqa: BLE001  (whatever it is, it is told)
            return {"failed": traceback.format_exc()}

    def _note(self, note: dict[str, Any]) -> None:
        os.write(self._log, json.dumps(note).encode() + b"\n")  # in one piece, however soon the process is killed

    def _publication(self, directory: Path, made: Publication) -> dict[str, Any]:
        return {
            "directory": directory.name,
            "number": made.number,
            "identity": made.identity,
            "previous": made.previous,
        }

    def _any(self) -> Path:
        return self._random.choice(self._crowd.directories)

    def _export(self) -> dict[str, Any]:
        """As `cosyjit.pipeline` does, but that nothing has to be built."""
        store, directory = self._store, self._any()
        wanted = {name: content(name, self._random.randrange(_VARIANTS)) for name in self._some(NAMES)}
        with store.in_use(), exporting(PublishedDirectory(directory, store)):
            for name, each in wanted.items():
                with store.build_lock(artifact_of(each).fingerprint):
                    if not _has(store, each):
                        put(store, each)
                latest.write(store, "/model", name, artifact_of(each).fingerprint)
                PublishedDirectory(directory, store).stage(artifact_of(each))
            artifacts = {name: artifact_of(each) for name, each in wanted.items()}
            made = PublishedDirectory(directory, store).publish(artifacts, "/model")
        return self._publication(directory, made)

    def _some(self, names: list[str]) -> list[str]:
        return self._random.sample(names, self._random.randint(1, len(names)))

    def _real(self) -> dict[str, Any]:
        checkpoint = self._random.choice(self._crowd.checkpoints)
        if self._random.random() < 0.5:
            export = functools.partial(cosyjit.export, checkpoint, publish=self._crowd.real, store=self._store)
            (made,) = export(components=["flow.encoder"], precisions=["fp32"])
            return {"failed": made.error} if made.error else {made.state: 1}
        options = ("--precision", "fp16", "--publish", self._crowd.real, "--store", self._crowd.root, "--json")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                app.main(["export", str(checkpoint), *map(str, options)])
            except SystemExit as ended:
                if ended.code:
                    return {"failed": f"status {ended.code}: {out.getvalue()}"}
        return {json.loads(out.getvalue())["targets"][0]["state"]: 1}

    def _litter(self) -> None:
        """Leave what a collection is there for."""
        store = self._store
        mark = f"{self._random.random()}".encode()
        with store.in_use():
            add(store, b"no record" + mark)
            made = put(store, b"not published" + mark)
            latest.write(store, "/model", f"litter {self._random.randrange(50)}", made.fingerprint)
        time.sleep(0.05)

    def _roll_back(self) -> dict[str, Any]:
        store, directory = self._store, self._any()
        last = PublishedDirectory(directory, store).require_live().number
        number = self._random.choice([None, max(1, last - self._random.randrange(self._crowd.keep + 3))])
        return self._publication(directory, PublishedDirectory(directory, store).rollback(number))

    def _collect(self) -> dict[str, Any]:
        older_than = self._random.choice([0.0, 0.0, 2.0])
        found = gc.gc(self._store, keep=self._crowd.keep, older_than=older_than, delete=self._random.random() < 0.8)
        time.sleep(self._random.random() * 4)
        return {"collected": len([entry for entry in found if "digests/" not in entry.name])}

    def _verify(self) -> dict[str, Any]:
        store = self._store
        time.sleep(self._random.random())
        faults = [*verify_store(store), *verify_directory(self._any(), store=store)]
        return {"failed": "\n".join(f"{each.name}: {each.problem}" for each in faults)} if faults else {}

    def _read(self) -> dict[str, Any]:
        """Look at a directory as a runtime does, and at one set as a whole."""
        directory = self._any()
        for name in NAMES:
            found = (directory / name).read_bytes()
            if not any(found == content(name, variant) for variant in range(_VARIANTS)):
                return {"failed": f"{directory / name}: {found[:80]!r}, {len(found)} bytes"}
        looked = _look(directory)
        if looked is None:
            return {"replaced": 1}
        if looked < self._seen.get(directory, 0):
            return {"failed": f"{directory}: publication {looked} after {self._seen[directory]}"}
        self._seen[directory] = looked
        time.sleep(0.01)
        return {}


def _has(store: Store, artifact: bytes) -> bool:
    """As `planning.compare_one` asks."""
    found = record.load(store, artifact_of(artifact).fingerprint)
    whole = found is not None and store.check_or_set_aside(found.sha256) == "intact"
    return whole and store.renew(record.name_of(artifact_of(artifact).fingerprint))


def _look(directory: Path) -> int | None:
    """The number of the publication that a directory shows, all of which is whole; None if it was gone meanwhile."""
    link = directory / ".cosyjit" / "current"
    seen = link.readlink()
    shown = link.parent / seen
    try:
        manifest = json.loads((shown / layout.MANIFEST).read_bytes())
        digests = {
            path: digest
            for name, each in manifest["artifacts"].items()
            for path, digest in ({name: each["sha256"]} if "files" not in each else _below(name, each["files"])).items()
        }
        contents = {path: (shown / path).read_bytes() for path in digests}
    except FileNotFoundError:
        if link.readlink() == seen:
            raise
        return None
    for path, digest in digests.items():
        if sha256(contents[path]) != digest:
            raise ValueError(f"{shown / path}: is not what its set's manifest says")
    return int(manifest["number"])


def _below(name: str, files: Mapping[str, str]) -> dict[str, str]:
    """The digests of a folder's files, by their paths beside it."""
    return {f"{name}/{file}": digest for file, digest in files.items()}


@dataclass
class Report:
    """What became of a crowd.

    Attributes:
        acts: how many times each was done, and what came of some: "real: cached", "roll back: late".
        seconds: how long the slowest of each took.
        killed: how many processes were.
        wrong: whatever must not be, in words.
        published: the number of the last publication of each directory.
        unnoted: how many publications their makers were killed after, before they could note them.
    """

    acts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    killed: int = 0
    wrong: list[str] = field(default_factory=list)
    published: dict[str, int] = field(default_factory=dict)
    unnoted: int = 0


class Runner:
    """Starts the processes, kills some and starts others in their place, and ends them all."""

    def __init__(self, crowd: Crowd, processes: int) -> None:
        self._crowd = crowd
        self._running: dict[int, int] = {}
        self._roles = [_ROLES[number % len(_ROLES)] for number in range(processes)]
        self._begun = 0
        self._doomed: set[int] = set()
        self.report = Report()

    def run(self, seconds: float) -> None:
        for slot in range(len(self._roles)):
            self._start(slot)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._crowd.killed_each)
            pid = random.choice([pid for pid, slot in self._running.items() if self._roles[slot] != "read"])  # noqa: S311
            self._doomed.add(pid)
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            self.report.killed += 1
            self._reap()
        self._crowd.stop.touch()
        end = time.monotonic() + DEADLINE + 10
        while self._running and time.monotonic() < end:
            time.sleep(0.05)
            self._reap(again=False)
        self._end()

    def _start(self, slot: int) -> None:
        number = len(self._roles) * self._begun + slot
        self._begun += 1
        pid = os.fork()
        if not pid:
            status = 1
            try:
                Member(self._crowd, number, self._roles[slot]).run()
                status = 0
            except BaseException:  # noqa: BLE001  (standard error is looked at)
                traceback.print_exc()
            finally:
                os._exit(status)
        self._running[pid] = slot

    def _reap(self, *, again: bool = True) -> None:
        for pid, slot in list(self._running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self._running[pid]
            code = os.waitstatus_to_exitcode(status)
            if code and not (code == -signal.SIGKILL and pid in self._doomed):
                self.report.wrong.append(f"a process of role {self._roles[slot]} ended with {code}")
            if again:
                self._start(slot)

    def _end(self) -> None:
        for pid, slot in self._running.items():
            self.report.wrong.append(f"a process of role {self._roles[slot]} did not end")
            os.kill(pid, signal.SIGUSR1)
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# What must be true afterwards.


class Noted(NamedTuple):
    """A publication as its maker has noted it."""

    directory: str
    number: int
    identity: str
    previous: str | None


def check(crowd: Crowd, report: Report) -> None:
    notes = [json.loads(line) for path in sorted(crowd.logs.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    _count(notes, report)
    report.wrong += [f"stuck:\n{text}" for path in crowd.logs.glob("*.stacks") if (text := path.read_text())]
    noted = {Noted(*(note[name] for name in Noted._fields)) for note in notes if "identity" in note}
    report.wrong += _wrong(crowd, noted, report)
    if report.unnoted > report.killed:
        report.wrong.append(f"{report.unnoted} publications were noted by nobody, and {report.killed} processes killed")


def _count(notes: Iterable[dict[str, Any]], report: Report) -> None:
    acts: Counter[str] = Counter()
    for note in notes:
        act = note["act"]
        acts[act] += 1
        for name in ("late", "built", "cached", "replaced", "collected"):
            if name in note:
                acts[f"{act}: {name}"] += note[name] if isinstance(note[name], int) else 1
        if "failed" in note:
            report.wrong.append(f"{act}: {note['failed']}")
        report.seconds[act] = max(note["seconds"], report.seconds.get(act, 0.0))
    report.acts = dict(sorted(acts.items()))


def _wrong(crowd: Crowd, noted: set[Noted], report: Report) -> Iterator[str]:
    store = crowd.store
    for home in crowd.homes:
        os.environ["HOME"] = str(home)
        with crowd.store.in_use():  # which removes what killed processes had in hand
            pass
    shown = {}
    for directory in [*crowd.directories, *([crowd.real] if crowd.real.exists() else [])]:
        chain = PublishedDirectory(directory, store).history()
        shown[directory] = chain[0]
        report.published[directory.name] = chain[0].number
        of_it = {each for each in noted if each.directory == directory.name}
        yield from _wrong_history(directory, chain, of_it, report)
        names = {entry.name for entry in store.entries()}
        for each in chain:
            yield from (f"{name}: is missing, of publication {each.number}" for name in names_of(each) - names)
        PublishedDirectory(directory, store).discard_staged()  # what was brought by processes that were killed
        yield from (f"{each.name}: {each.problem}" for each in verify_directory(directory, store=store))
    yield from (f"{each.name}: {each.problem}" for each in verify_store(store))
    yield from _left(crowd, store, shown)


def _wrong_history(where: Path, chain: list[Publication], noted: set[Noted], report: Report) -> Iterator[str]:
    numbers = [each.number for each in chain]
    if numbers != list(range(chain[0].number, chain[-1].number - 1, -1)):
        yield f"{where}: the numbers are {numbers}"
    identities = {each.number: each.identity for each in chain}
    artifacts = {each.number: each.artifacts for each in chain}
    for each in chain:
        if each.restores is not None and artifacts.get(each.restores, each.artifacts) != each.artifacts:
            yield f"{where}: publication {each.number} is not what {each.restores} was"
    by_number = {each.number: each for each in noted}
    if len(by_number) != len(noted):
        yield f"{where}: a number was given twice: {sorted(noted)}"
    for number, note in by_number.items():
        if number >= numbers[-1] and identities.get(number) != note.identity:
            yield f"{where}: publication {number} was made and is not there"
        if number - 1 in by_number and note.previous != by_number[number - 1].identity:
            yield f"{where}: publication {number} does not follow {number - 1}"
    if by_number:
        report.unnoted += len(set(range(min(by_number), numbers[0] + 1)) - set(by_number))


def _left(crowd: Crowd, store: Store, shown: Mapping[Path, Publication]) -> Iterator[str]:
    """What a collection does not find, or takes though it is needed."""
    Store.grace = 0.0
    time.sleep(1.1)  # times in buckets are in whole seconds
    gc.gc(store, keep=1, older_than=0, delete=True)
    yield from (f"{entry.name}: was left by the collection before" for entry in gc.gc(store, keep=1, older_than=0))
    needed = set().union(*map(names_of, shown.values()))
    found = {entry.name for entry in [*store.entries(), *store.unfinished()]}
    yield from (f"{name}: is missing" for name in sorted(needed - found))
    known = {each.fingerprint for published in shown.values() for each in published.artifacts.values()}
    heads = {entry.name for entry in store.entries("heads")}
    references = {entry.name for entry in store.entries("latest") if latest.read(store, entry.name) in known}
    references |= {entry.name for entry in store.entries("graphs") if graphs.artifact(store, entry.name) in known}
    own = ("gate", "lock", *(("digests/", "locks/") if store.local else ()))
    more = found - needed - heads - references
    yield from (f"{name}: nothing needs it" for name in sorted(more) if not name.startswith(own))
    yield from (f"{path}: was left" for path in crowd.folder.rglob(".*.tmp"))
    yield from (f"{path}: was left" for path in crowd.folder.rglob("tmp/cosyjit-*"))
    for directory, publication_ in shown.items():
        state = directory / ".cosyjit"
        files = {path.name for path in (state / "files").iterdir()}
        if {path.name for path in (state / "sets").iterdir()} != {publication_.identity} or files != {
            digest for each in publication_.artifacts.values() for digest in each.objects
        }:
            yield f"{state}: has more or less than what is shown"
        yield from (f"{each.name}: {each.problem}" for each in verify_directory(directory, store=store))


def main(folder: str, root: str, seconds: str, processes: str) -> None:
    crowd = Crowd(Path(folder), root)
    if crowd.remote:
        importlib.import_module("s3fs")  # once, for all
        Store.grace = GRACE
        leases.held = functools.partial(leases.held, period=LEASE)
    pid = os.fork()  # so that those which are forked later have no thread of a client's
    if not pid:
        crowd.prepare()
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the first sets were not published")
    runner = Runner(crowd, int(processes))
    runner.run(float(seconds))
    check(crowd, runner.report)
    sys.stdout.write(json.dumps(vars(runner.report)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
