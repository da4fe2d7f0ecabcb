"""Stores with something in them, and what tests look at there: nothing is built, any bytes will do as an artifact."""

import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from cosyjit import Planned
from cosyjit.documents import now
from cosyjit.fs.hashing import sha256_of_folder
from cosyjit.planning import plan as planning
from cosyjit.provenance import latest, record
from cosyjit.provenance.fingerprint import Fingerprint
from cosyjit.provenance.record import Material, Record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import Store, object_name
from cosyjit.weights.tensor_digests import TensorDigest
from tests.support.files import sha256

Content = bytes | Mapping[str, bytes]
"""Of an artifact: a file, or a folder with files by their names."""

NAME: Final = "llm.llm.fp32.zip"
FIGURES: Final = {"bytes": 5, "weight_bytes": 4, "seconds": 0.25}
VERSIONS: Final = {"cosyjit": "1", "torch": "2", "python": "3"}


def object_path(store: Store, digest: str) -> Path:
    """The file that has an object in a store of this machine."""
    assert store.local is not None
    return store.local / object_name(digest)


def record_path(store: Store, key: str) -> Path:
    """The file that has a record in a store of this machine, by the key of its fingerprint."""
    assert store.local is not None
    return store.local / record.name_of(key)


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
        "figures": FIGURES,
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


def artifact_of(content: Content, **others: Any) -> Published:
    """What `put` gives, of an artifact that need not be in any store."""
    return _published(_record(content, **others))


def put(
    store: Store, content: Content, write: Callable[[Path, bytes], object] = Path.write_bytes, **others: Any
) -> Published:
    """Put an artifact and its record into a store, as a build does.

    Args:
        store: where to.
        content: of the artifact; it stands for what that was made from.
        write: how a file is written before the store takes it.
        others: parts of the record that are to be other ones.
    """
    made = _record(content, **others)
    with store.staging() as work:
        for each in [content] if isinstance(content, bytes) else content.values():
            write(work / "artifact", each)
            store.add(work / "artifact", sha256(each))
        record.save(store, made)
    return _published(made)


def put_planned(store: Store, planned: Iterable[Planned], **changes: Any) -> dict[str, Published]:
    """Let a store have what targets come to, and what they were last exported with; gives what would be published.

    Args:
        store: where to.
        planned: the targets.
        changes: other parts of the fingerprints than the targets have now.
    """
    found = {}
    with store.in_use():
        for target in (each.target for each in planned):
            then = replace(target, fingerprint=replace(target.fingerprint, **changes))
            content = f"the artifact of {then.fingerprint.key}".encode()
            found[then.file_name] = put(
                store,
                content,
                name=then.file_name,
                fingerprint=then.fingerprint,
                component=then.component.name,
                source=then.source.pinned,
                materials=(),
                started=now(),
                finished=now(),
                figures={"bytes": len(content), "weight_bytes": then.weight_bytes, "seconds": 0.1},
            )
            planning.remember(store, then)
    return found


def _record(content: Content, **others: Any) -> Record:
    if isinstance(content, bytes):
        return record_of(sha256(content), content, **{"figures": {**FIGURES, "bytes": len(content)}, **others})
    digests = {name: sha256(each) for name, each in content.items()}
    figures = {**FIGURES, "bytes": sum(map(len, content.values()))}
    folder = {"name": "vllm", "component": "llm.vllm", "files": digests, "figures": figures}
    return record_of(sha256_of_folder(digests), content, **{**folder, **others})


def _published(made: Record) -> Published:
    return Published(made.sha256, int(made.figures["bytes"]), made.fingerprint.key, made.files)


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
        *(object_name(digest) for each in published.artifacts.values() for digest in each.objects),
    }


def write_latest(store: Store, target: str, key: str) -> str:
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
        all(object_path(store, digest).is_file() for digest in each.objects)
        and all(sha256(object_path(store, digest).read_bytes()) == digest for digest in each.objects)
        and (kept := record.load(store, each.fingerprint)) is not None
        and kept.sha256 == each.sha256
        for each in published.artifacts.values()
    )


def fetched(store: Store, digest: str, path: Path) -> bytes:
    """An object's bytes, as `Store.fetch` copies them."""
    with path.open("wb") as file:
        store.fetch(digest, file)
    return path.read_bytes()


def unique_url() -> str:
    """Of a store in this process's memory."""
    return f"memory://{uuid.uuid4().hex}"


def elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Store:
    """A store as another machine has it, which knows nothing of it yet; its home is below a directory."""
    monkeypatch.setenv("HOME", str(directory / uuid.uuid4().hex))
    return Store(store.root)


def litter(store: Store) -> list[Path]:
    """What work in hand has left in a store of this machine."""
    assert store.local is not None
    return list(store.local.glob("tmp/*"))


def unreferenced(directory: Path) -> set[str]:
    """What stands below a directory's `.cosyjit` and nobody sees."""
    state = directory / ".cosyjit"
    if not (state / "current").is_symlink():
        return {str(path) for path in state.rglob("*")}
    shown = (state / "current").resolve()
    used = {state / "current", state / "sets", state / "files", shown, *shown.iterdir()}
    used |= {path.resolve() for path in shown.iterdir()}
    return {str(path) for path in state.rglob("*")} - {str(path) for path in used}


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
