"""Stores with something in them, without a build: any bytes will do as an artifact."""

import hashlib
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from cosyjit.fs.hashing import sha256_of_folder
from cosyjit.provenance import latest, record
from cosyjit.provenance.fingerprint import Fingerprint
from cosyjit.provenance.record import Material, Record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import Store
from cosyjit.weights.tensor_digests import TensorDigest

if TYPE_CHECKING:
    import subprocess

NAME: Final = "llm.llm.fp32.zip"
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (the other device that most machines have)
VERSIONS: Final = {"cosyjit": "1", "torch": "2", "python": "3"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def object_of(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"


def location(store: Store, digest: str) -> Path:
    """Where a local store keeps an object."""
    assert store.local is not None
    return store.local / object_of(digest)


def fingerprint(seed: object = "") -> Fingerprint:
    """A fingerprint; other seeds give other ones."""
    return Fingerprint(
        tensors={
            "embed.weight": TensorDigest("float32", (3, 4), sha256(repr(seed).encode())[:32]),
            "step": TensorDigest("int64", (), "0" * 32),
        },
        config={"class": "encoder.Encoder", "options": {"linear_units": 2048, "dropout_rate": 0.1}},
        precision="fp32",
        device="cpu",
        recipe={"methods": ["forward"], "stages": ["script"]},
        encoders=1,
        torch="2.13.0",
    )


def record_of(digest: str, seed: object = "", **others: Any) -> Record:
    """A record of an artifact."""
    values: dict[str, Any] = {
        "name": NAME,
        "sha256": digest,
        "fingerprint": fingerprint(seed),
        "component": "llm.llm",
        "source": "/models/a",
        "materials": (Material("llm.pt", "file:///models/a/llm.pt", "1" * 64),),
        "started": "2026-01-02T03:04:05.678Z",
        "finished": "2026-01-02T03:04:06.789Z",
        "figures": {"bytes": 5, "weight_bytes": 4, "seconds": 0.25},
        "versions": VERSIONS,
    }
    return Record(**{**values, **others})


def add(store: Store, content: bytes) -> str:
    """Put an object into a store as a build does; its digest."""
    digest = sha256(content)
    with store.staging() as work:
        (work / "artifact").write_bytes(content)
        store.add(work / "artifact", digest)
    return digest


def put(store: Store, content: bytes) -> Published:
    """Put an artifact and its record into a store; the content stands for what it was made from."""
    digest = add(store, content)
    made = record_of(digest, content)
    record.save(store, made)
    return Published(digest, len(content), made.fingerprint.key)


def put_folder(store: Store, contents: Mapping[str, bytes]) -> Published:
    """The same of a folder of files."""
    digests = {name: add(store, content) for name, content in contents.items()}
    digest = sha256_of_folder(digests)
    made = record_of(digest, contents, name="vllm", component="llm.vllm", files=digests)
    record.save(store, made)
    return Published(digest, sum(map(len, contents.values())), made.fingerprint.key, digests)


def show(store: Store, directory: Path, *contents: bytes) -> Publication:
    """Put artifacts into a store and publish them in a directory, as 0.zip, 1.zip and so on."""
    directory.mkdir(exist_ok=True)
    artifacts = {f"{index}.zip": put(store, content) for index, content in enumerate(contents)}
    return PublishedDirectory(directory, store).publish(artifacts, "/models/a")


def names_of(published: Publication) -> set[str]:
    """The names, in a store, of all that a publication needs."""
    return {
        publication.name_of(published.identity),
        *(record.name_of(each.fingerprint) for each in published.artifacts.values()),
        *(object_of(digest) for each in published.artifacts.values() for digest in each.objects),
    }


def lead(store: Store, target: str, key: str) -> str:
    """Write a reference to a fingerprint; its name."""
    latest.write(store, "/models/a", target, key)
    return latest.name_of("/models/a", target)


def files_of(store: Store) -> set[str]:
    """The names of what a store has, without this machine's."""
    own = ("tmp/", "digests/", "locks/", "cache/", "gate", "lock")
    return {entry.name for entry in store.entries() if not entry.name.startswith(own)}


def age(store: Store, seconds: float, *names: str) -> None:
    """Let files of a store, all for no names, be older by so much."""
    assert store.local is not None
    for name in names or [entry.name for entry in store.entries()]:
        path = store.local / name
        changed = path.stat().st_mtime - seconds
        os.utime(path, (changed, changed))


def is_whole(store: Store, published: Publication) -> bool:
    """Whether all that a publication needs is in a local store, and as it should be; read by nobody's memory."""
    found = publication.load(store, published.identity)
    return found == published and all(
        all(location(store, digest).is_file() for digest in each.objects)
        and all(sha256(location(store, digest).read_bytes()) == digest for digest in each.objects)
        and (kept := record.load(store, each.fingerprint)) is not None
        and kept.sha256 == each.sha256
        for each in published.artifacts.values()
    )


def fetched(store: Store, digest: str, path: Path) -> bytes:
    """An object's bytes, as `Store.fetch` copies them."""
    with path.open("wb") as file:
        store.fetch(digest, file)
    return path.read_bytes()


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


def unique_url() -> str:
    """Of a store in this process's memory."""
    return f"memory://{uuid.uuid4().hex}"


def elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Store:
    """A store as another machine has it, which knows nothing of it yet; its home is below a directory."""
    monkeypatch.setenv("HOME", str(directory / uuid.uuid4().hex))
    return Store(store.root)


@contextmanager
def other_device(directory: Path) -> Iterator[Path]:
    """A directory on another device than this one, removed in the end."""
    if not _MEMORY.is_dir() or _MEMORY.stat().st_dev == directory.stat().st_dev:
        pytest.skip("there is one device only")
    with tempfile.TemporaryDirectory(dir=_MEMORY) as path:
        yield Path(path)


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


@contextmanager
def exporting(directory: PublishedDirectory, size: int = 0, names: Collection[str] = ()) -> Iterator[None]:
    """Have the block publish as an export does: looked at before, and what was staged is removed if it fails."""
    for error in directory.obstacles(size, names):
        raise error
    directory.prepare()
    try:
        yield
    except BaseException:
        directory.discard_staged()
        raise
