"""What commands cost over a large store: time, and memory at the peak, each in a process of its own.

    python -m benchmarks.store DIRECTORY [RECORDS] [PUBLICATIONS]

The store has so many records, each of the size of a tiny checkpoint's, with an object of a few bytes, so that the
digests of objects count for little. Half of them are a month old. One directory has so many publications, another one
has ten. `plan` and `export` find nothing changed; they take turns with the same over a store that has nothing else.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from rich.console import Console
from rich.table import Table

from cosyjit import Publication, Published, Record, pipeline
from cosyjit.documents import now, stem
from cosyjit.fs.identity import Identity
from cosyjit.processes import worker
from cosyjit.processes.processors import processors
from cosyjit.provenance import latest, record
from cosyjit.publishing import publication
from cosyjit.store.store import Store, object_name
from cosyjit.synth.synth import synth

COMPONENT: Final = "flow.encoder"
ONE: Final = ("--component", COMPONENT, "--precision", "fp16")
ROUNDS: Final = 5
FEW: Final = 10
"""The publications of a short history, of which each round goes back by one."""

SHARE: Final = 1000
"""How many records a process makes at a time."""

NAMES: Final = tuple(f"{number}.zip" for number in range(6))
MONTH: Final = 30 * 86_400.0

_COMMAND: Final = """
import atexit, sys
from pathlib import Path

def note():
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    Path(sys.argv[1]).write_text(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))

atexit.register(note)
from cosyjit.cli.app import main
main(sys.argv[2:])
"""


class Cost(NamedTuple):
    """Of a process: seconds, those of processors, and bytes of memory at its peak."""

    seconds: float
    processor: float
    memory: int


def cost(work: Path, *arguments: object) -> Cost:
    """What a command of cosyjit costs, with the start of Python."""
    command = [sys.executable, "-c", _COMMAND, str(work / "peak"), *map(str, arguments)]
    begun, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - begun, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(seconds, processor, 1024 * int((work / "peak").read_text(encoding="ascii")))


def _export(source: Path, root: Path, shown: Path) -> None:
    pipeline.export(source, components=[COMPONENT], precisions=["fp16"], store=Store(root), publish=shown)
    worker.stop()


def _artifact(pattern: Record, number: int) -> tuple[bytes, Record]:
    """An artifact of another fingerprint, and its record."""
    content = b"artifact %d" % number
    name, tensor = next(iter(pattern.fingerprint.tensors.items()))
    tensors = {**pattern.fingerprint.tensors, name: tensor._replace(digest=f"{number:032x}")}
    made = replace(
        pattern,
        sha256=sha256(content).hexdigest(),
        fingerprint=replace(pattern.fingerprint, tensors=tensors),
        figures={**pattern.figures, "bytes": len(content)},
    )
    return content, made


def _add(store: Store, pattern: Record, numbers: Sequence[int]) -> list[Published]:
    """Put artifacts and their records into a local store; every other one is made to be old."""
    found = []
    with _unsynced():
        for number in numbers:
            content, made = _artifact(pattern, number)
            key = made.fingerprint.key
            paths = [Path(store.root, name) for name in (object_name(made.sha256), record.name_of(key))]
            store.write(object_name(made.sha256), content)
            record.save(store, made)
            if number % 2:
                for path in paths:
                    os.utime(path, times=(time.time() - MONTH,) * 2)
            store.digests.remember_sha256(paths[0], made.sha256, Identity.of(paths[0]))
            if not number % 10:
                latest.write(store, f"/models/{number}", COMPONENT, key)
            found.append(Published(made.sha256, len(content), key))
    return found


@contextmanager
def _unsynced() -> Iterator[None]:
    """Bring nothing to the disk meanwhile: it is thrown away."""
    fsync = os.fsync
    os.fsync = lambda fd: None  # noqa: ARG005
    try:
        yield
    finally:
        os.fsync = fsync


def _only_record(store: Store) -> Record:
    (entry,) = store.entries("records")
    found = record.load(store, stem(entry.name))
    if found is None:
        raise SystemExit(f"{store}/{entry.name}: is gone")
    return found


def fill(store: Store, pattern: Record, records: int) -> list[Published]:
    """Give a local store so many artifacts and records, of the size of another one."""
    shares = [range(records)[at : at + SHARE] for at in range(0, records, SHARE)]
    with ProcessPoolExecutor(processors()) as pool:
        calls = [pool.submit(_add, store, pattern, share) for share in shares]
        return [each for call in calls for each in call.result()]


def show(store: Store, directory: Path, made: Sequence[Published], count: int) -> None:
    """Give a directory so many publications, each with one other artifact than the one before."""
    directory.mkdir()
    artifacts = dict(zip(NAMES, made, strict=False))
    before: Publication | None = None
    with _unsynced():
        for number in range(count):
            artifacts[NAMES[number % len(NAMES)]] = made[number % len(made)]
            previous = before.identity if before else None
            before = Publication(number + 1, now(), "/models/a", dict(artifacts), previous)
            publication.save(store, before, directory, shown=True)


def keys(directory: Path) -> tuple[Path, Path]:
    """The files of a new private key and of its public half."""
    private, public = directory / "key.pem", directory / "key.pub.pem"
    key = Ed25519PrivateKey.generate()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def reading(work: Path, store: Store, records: int, *options: object) -> Table:
    """Collections and verifications; the last one removes half of the records."""
    table = Table(f"{records:,} records", "s", "processor, s", "ms a record", "peak, MB", title_justify="left")
    for command in (["gc"], ["verify", *options], ["gc", "--delete"]):
        found = cost(work, *command, "--store", store)
        words = " ".join(str(each) for each in command if not isinstance(each, Path))
        each = f"{1000 * found.seconds / records:.2f}"
        memory = f"{found.memory / 1e6:.0f}"
        table.add_row(words, f"{found.seconds:.1f}", f"{found.processor:.1f}", each, memory)
    return table


def unchanged(work: Path, source: Path, stores: Sequence[Path]) -> Table:
    """Plans and exports over a store with nothing else, and over a large one."""
    table = Table("nothing changed", "empty store, s", "large store, s", "ratio", title_justify="left")
    for command in ("plan", "export"):
        ways = [
            (command, source, *ONE, "--store", store, "--publish", work / f"shown-{store.name}") for store in stores
        ]
        seconds = _in_turn([lambda way=way: cost(work, *way).seconds for way in ways])  # type: ignore[misc]
        table.add_row(command, *_ratio(seconds))
    return table


def histories(work: Path, store: Store, directories: Sequence[Path], count: int) -> Table:
    """What a short history takes, and a long one."""
    table = Table("publications", f"{FEW}, s", f"{count:,}, s", "ratio", title_justify="left")
    for command in (["history", "--last", "20"], ["rollback"]):
        ways = [[*command, directory, "--store", store] for directory in directories]
        seconds = _in_turn([lambda way=way: cost(work, *way).seconds for way in ways])  # type: ignore[misc]
        table.add_row(" ".join(command), *_ratio(seconds))
    return table


def _in_turn(ways: Sequence[Callable[[], float]]) -> list[list[float]]:
    """The seconds of each way, in rounds, after one that does not count."""
    rounds = [[way() for way in ways] for _ in range(ROUNDS + 1)][1:]
    return [list(each) for each in zip(*rounds, strict=True)]


def _ratio(seconds: Sequence[Sequence[float]]) -> Iterator[str]:
    few, many = seconds
    yield from (f"{statistics.median(each):.2f}" for each in seconds)
    yield f"{statistics.median(b / a for a, b in zip(few, many, strict=True)):.2f}"


def main(directory: Path, records: int, publications: int) -> None:
    """Make the stores, take the figures and print them."""
    work = directory / "large"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    source = synth(work / "CosyVoice-tiny", "cosyvoice")
    stores = [work / "empty", work / "large"]
    for store in stores:
        _export(source, store, work / f"shown-{store.name}")
    private, public = keys(work)
    pattern = _only_record(Store(work / "empty"))
    fill(Store(work / "signed", sign=private), pattern, records)
    made = fill(Store(work / "large"), pattern, records)
    for name, count in (("few", FEW), ("many", publications)):
        show(Store(work / "large"), work / name, made, count)
    os.sync()
    console = Console(highlight=False)
    console.print(unchanged(work, source, stores))
    console.print(histories(work, Store(work / "large"), [work / "few", work / "many"], publications))
    console.print(reading(work, Store(work / "large"), records))
    console.print(reading(work, Store(work / "signed"), records, "--require-signature", public))
    shutil.rmtree(work)


if __name__ == "__main__":
    _RECORDS, _PUBLICATIONS = (int(each) for each in (*sys.argv[2:], "100000", "10000")[:2])
    main(Path(sys.argv[1]), _RECORDS, _PUBLICATIONS)
