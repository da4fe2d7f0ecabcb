"""What is done to stores and directories for `tests.robustness.crashing`, and what is there before."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit import Outcome, pipeline
from cosyjit.building import zips
from cosyjit.building.artifact import Built
from cosyjit.errors import BuildError
from cosyjit.fs.files import TEMPORARY
from cosyjit.operations import gc
from cosyjit.processes import worker
from cosyjit.provenance import latest, record
from cosyjit.publishing import layout
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Published
from cosyjit.store.store import Store, object_name
from cosyjit.torchscript.graph import Graph
from cosyjit.weights.tensor_digests import read_tensors
from tests.support.files import sha256
from tests.support.stores import Content, artifact_of, put

History = list[tuple[int, int | None]]
"""The numbers of publications, the last one first, and of those that they restore."""


def keep(store: Store, content: Content) -> Published:
    """Put an artifact and its record into a store; a disk that takes no more is an error of the build, as in one."""
    return put(store, content, _write)


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise BuildError(f"{file}: not built ({error.strerror}); make room") from None


class Place(NamedTuple):
    """A store, a directory to publish into, a home and a folder for temporary files.

    Attributes:
        folder: where all of these are.
        other: a folder on another device, if there is one.
        source: a model directory, which is only read.
    """

    folder: Path
    other: Path
    source: Path

    @property
    def store(self) -> Store:
        """Opened anew, as another process would."""
        return Store(self.folder / "store")

    @property
    def directory(self) -> Path:
        return self.folder / "model"

    def object(self, content: bytes) -> Path:
        """Where the store has an artifact."""
        return self.folder / "store" / object_name(sha256(content))

    def export(self, contents: Mapping[str, Content], *, link: bool = False) -> None:
        """Make artifacts and publish them."""
        store = self.store
        with store.in_use():
            artifacts = {name: keep(store, content) for name, content in contents.items()}
            PublishedDirectory(self.directory, store).publish(artifacts, "/model", link=link)

    def publish(self, contents: Mapping[str, Content], *, replace: bool = False) -> None:
        """Publish artifacts that are there."""
        store = self.store
        with store.in_use():
            artifacts = {name: artifact_of(content) for name, content in contents.items()}
            PublishedDirectory(self.directory, store).publish(artifacts, "/model", replace=replace)

    def export_source(self) -> list[Outcome]:
        """Export an encoder of the model directory in two precisions, by builds that are played back."""
        return pipeline.export(self.source, components=["flow.encoder"], publish=self.directory, store=self.store)


OLD: Final = {"a.zip": b"old a", "b.zip": b"old b"}
NEW: Final = {"a.zip": b"new a"}
BOTH_NEW: Final = {"a.zip": b"new a", "b.zip": b"new b"}
THREE: Final = {**OLD, "c.zip": b"old c"}
EARLIER: Final = {"flow.encoder.fp16.zip": b"old a", "b.zip": b"old b"}

OLD_FOLDER: Final = {"config.json": b"old config", "generation_config.json": b"same", "model.safetensors": b"old model"}
NEW_FOLDER: Final = {"config.json": b"new config", "generation_config.json": b"same", "model.safetensors": b"new model"}
WITH_FOLDER: Final[Mapping[str, Content]] = {"a.zip": b"old a", "vllm": OLD_FOLDER}
WITH_NEW_FOLDER: Final[Mapping[str, Content]] = {"a.zip": b"new a", "vllm": NEW_FOLDER}


FILE: Final = "flow.decoder.estimator.fp32.onnx"
PLAN: Final = "flow.decoder.estimator.fp32.mygpu.plan"
OLD_FILE: Final = {FILE: b"old file", "b.zip": b"old b"}
NEW_FILE: Final = {FILE: b"new file", "b.zip": b"new b"}


def plan_of(content: bytes) -> bytes:
    """What a runtime makes of a file."""
    return b"plan of " + content


class Scenario(NamedTuple):
    """What is there, and what is done then.

    Attributes:
        history: in the end.
        mends: whether the directory, and whether the store, is damaged before.
    """

    prepare: Callable[[Place], None]
    run: Callable[[Place], object]
    history: History
    mends: tuple[bool, bool] = (False, False)


def _nothing(_: Place) -> None:
    pass


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


def _folder_published(place: Place) -> None:
    place.export(WITH_FOLDER)


def _folder_of_others(place: Place) -> None:
    place.directory.mkdir()
    for content in WITH_NEW_FOLDER.values():
        keep(place.store, content)
    (place.directory / "a.zip").write_bytes(b"old a")
    (place.directory / "vllm").mkdir()
    for name in ("config.json", "more.json"):
        (place.directory / "vllm" / name).write_bytes(f"their {name}".encode())


def _folder_after_files(place: Place) -> None:
    place.export(OLD)
    place.export({"vllm": OLD_FOLDER})


def _damaged_folder(place: Place) -> None:
    place.export(WITH_FOLDER)
    folder = (place.directory / "vllm").resolve()
    with (folder / "config.json").open("r+b") as file:
        file.write(b"ALIEN")
    (folder / "model.safetensors").unlink()
    (folder / f".{'0' * 32}{TEMPORARY}").symlink_to("nowhere")


def _plan_of_others(place: Place) -> None:
    place.directory.mkdir()
    for content in NEW_FILE.values():
        keep(place.store, content)
    (place.directory / FILE).write_bytes(b"their file")
    (place.directory / PLAN).write_bytes(plan_of(b"their file"))


def _planned_twice(place: Place) -> None:
    for contents in (OLD_FILE, NEW_FILE):
        place.export(contents)
        (place.directory / PLAN).write_bytes(plan_of(contents[FILE]))


def _planned_and_written_in_place(place: Place) -> None:
    place.export(OLD_FILE)
    (place.directory / FILE).write_bytes(b"alien file")
    (place.directory / PLAN).write_bytes(plan_of(b"alien file"))


def _twice_published(place: Place) -> None:
    place.export(OLD)
    place.export({"b.zip": b"new b", "c.zip": b"new c"})


def _linked(place: Place) -> None:
    place.export(OLD, link=True)


def _damaged(place: Place) -> None:
    place.export(THREE)
    with (place.directory / "a.zip").open("r+b") as file:
        file.write(b"ALIEN")
    (place.directory / "other").write_bytes(b"alien b")
    (place.directory / "other").replace(place.directory / "b.zip")
    with (place.directory / layout.MANIFEST).open("ab") as file:
        file.write(b"\n\n")
    (place.directory / "c.zip").unlink()


def _damaged_store(place: Place) -> None:
    place.export(OLD)
    _spoil(place.object(OLD["a.zip"]))
    place.object(OLD["b.zip"]).unlink()


def _spoil(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().swapcase())


def _elsewhere(place: Place) -> None:
    """A store that others may write to, on another device than what this user has in hand."""
    place.export(OLD)
    root = place.folder / "store"
    shutil.move(root, place.other / "store")
    root.symlink_to(place.other / "store")
    root.chmod(0o777)


def _littered(place: Place) -> None:
    for number in range(3):
        files = {name: content + b"%d" % number for name, content in OLD.items()}
        place.export({**files, "vllm": {**OLD_FOLDER, "config.json": b"config %d" % number}})
    keep(place.store, b"made, and never published")
    store = place.store
    _spoil(place.object(b"old a0"))
    store.check_or_set_aside(sha256(b"old a0"))
    latest.write(store, "/model", "a target", "0" * 32)
    store.digests.sha256(place.source / "llm.pt")
    (place.directory / "gone").write_bytes(b"gone")
    store.digests.sha256(place.directory / "gone")
    (place.directory / "gone").unlink()
    root = place.folder / "store"
    (root / "tmp" / "cosyjit-leftover" / "below").mkdir(parents=True)
    (root / "tmp" / "cosyjit-leftover" / "below" / "half").write_bytes(b"ha")
    for folder in ("records", "publications", "heads", "latest", "digests", "objects/00"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / f".{'0' * 32}{TEMPORARY}").write_bytes(b"{")


def _earlier(place: Place) -> None:
    place.export(EARLIER)
    read_tensors(place.store.digests, [place.source / "flow.pt"], ["encoder."])


def _exported(place: Place) -> None:
    place.export_source()


def _exported_and_damaged(place: Place) -> None:
    first, second = place.export_source()
    store = place.folder / "store"
    (store / record.name_of(first.target.fingerprint.key)).write_text("no record")
    assert second.record is not None
    _spoil(store / object_name(second.record.sha256))


def _exported_and_lost(place: Place) -> None:
    place.export_source()
    shutil.rmtree(place.directory)


def _export(place: Place) -> None:
    errors = [each.error for each in place.export_source() if each.error]
    if errors:
        raise BuildError(errors[0])


def _export_unbuildable(place: Place) -> None:
    """As `_export`, of what cannot be built in one of the two precisions."""
    played = worker.run
    worker.run = _failing  # type: ignore[assignment]
    try:
        errors = [each.error for each in place.export_source() if each.error]
    finally:
        worker.run = played
    if len(errors) > 1 or errors != [_REFUSAL]:
        raise BuildError(next(each for each in errors if each != _REFUSAL))


def _roll_back(place: Place) -> None:
    store = place.store
    with store.in_use():
        PublishedDirectory(place.directory, store).rollback(1)


def _collect(place: Place) -> None:
    gc.gc(place.store, keep=1, older_than=0, delete=True)


ONE: Final[History] = [(1, None)]
TWO: Final[History] = [(2, None), (1, None)]

SCENARIOS: Final[Mapping[str, Scenario]] = {
    "publish": Scenario(_published, lambda place: place.export(NEW), TWO),
    "publish over foreign files": Scenario(_foreign, lambda place: place.publish(BOTH_NEW), ONE),
    "publish first": Scenario(_kept, lambda place: place.publish(NEW), ONE),
    "use first": Scenario(_nothing, lambda place: place.export(NEW), ONE),
    "publish links": Scenario(_linked, lambda place: place.export(NEW, link=True), TWO),
    "publish from another device": Scenario(_elsewhere, lambda place: place.export(NEW), TWO),
    "roll back": Scenario(_twice_published, _roll_back, [(3, 1), *TWO]),
    "publish a folder": Scenario(_folder_published, lambda place: place.export(WITH_NEW_FOLDER), TWO),
    "publish over a folder of others": Scenario(
        _folder_of_others, lambda place: place.publish(WITH_NEW_FOLDER, replace=True), ONE
    ),
    "roll back to no folder": Scenario(_folder_after_files, _roll_back, [(3, 1), *TWO]),
    "publish over a plan of others": Scenario(_plan_of_others, lambda place: place.publish(NEW_FILE), ONE),
    "roll back over a plan": Scenario(_planned_twice, _roll_back, [(3, 1), *TWO]),
    "mend over a plan": Scenario(
        _planned_and_written_in_place, lambda place: place.publish(OLD_FILE), TWO, mends=(True, False)
    ),
    "mend a folder": Scenario(_damaged_folder, lambda place: place.publish(WITH_FOLDER), ONE, mends=(True, False)),
    "mend": Scenario(_damaged, lambda place: place.publish(THREE), ONE, mends=(True, False)),
    "mend the store": Scenario(_damaged_store, lambda place: place.export(OLD), ONE, mends=(False, True)),
    "collect": Scenario(_littered, _collect, [(3, None)]),
    "export": Scenario(_earlier, _export, TWO),
    "export first": Scenario(_nothing, _export, ONE),
    "export what cannot be built": Scenario(_earlier, _export_unbuildable, ONE),
    "export again": Scenario(_exported, _export, ONE),
    "export what was lost": Scenario(_exported_and_lost, _export, ONE),
    "export what is damaged": Scenario(_exported_and_damaged, _export, ONE, mends=(False, True)),
}


# Builds that are played back: what is real here is what the caller of a build does.

_REFUSAL: Final = "flow.encoder: is not what its encoder is; try another"


def played(function: Callable[..., object], *arguments: Any, **_: object) -> object:
    """What `worker.run` gives of the calls that export makes, and leaves."""
    if function is zips.build:
        target, graph, directory = arguments
        path = directory / "archive.zip"
        path.write_bytes(f"{target.name} {target.fingerprint.key}".encode())
        return Built(path, 0, of_graph=graph is not None)
    return ({"cosine": 1.0}, Graph(b"", ()), b"") if function is zips._verify else None


def _failing(function: Callable[..., object], *arguments: Any, **options: object) -> object:
    """The same, and one is refused."""
    if function is zips._verify and arguments[0].precision.name == "fp16":
        raise BuildError(_REFUSAL)
    return played(function, *arguments, **options)
