"""Whether what a directory shows is undamaged, and what its source would give now."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cosyjit import Status, Store, plan, status
from cosyjit.errors import PublicationError
from cosyjit.operations.verify import verify_directory
from cosyjit.planning.plan import compare
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.plans import OlderPlan
from tests.support.checkpoints import retrain, rewrite
from tests.support.files import flip
from tests.support.modelscope import MODEL, Hub
from tests.support.processes import Run, shown, snapshot
from tests.support.stores import object_path, put_planned, record_path

Copy = Callable[[Path], Path]

ZIP = "flow.encoder.fp16.zip"


@pytest.fixture
def source(tiny: Path, copy_of: Copy) -> Path:
    """A model directory of the test's own."""
    return copy_of(tiny)


@pytest.fixture
def directory(source: Path, store: Store, tmp_path: Path) -> Path:
    """Where all components of a model directory are published."""
    path = tmp_path / "published"
    path.mkdir()
    PublishedDirectory(path, store).publish(
        put_planned(store, compare(source, precisions=["fp16"], store=store)), str(source)
    )
    return path


def conditions(found: Status) -> dict[str, str]:
    return {each.name: each.condition for each in found.names}


def states(found: Status) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {each.name: (each.state, each.reasons) for each in found.names}


def others(found: Status) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The names that are not current."""
    return {name: state for name, state in states(found).items() if state != ("current", ())}


def test_what_was_published_is_whole_and_current(source: Path, directory: Path, store: Store) -> None:
    before = snapshot(directory)
    found = status(directory, store=store)
    assert found.well
    assert found.manifest == "intact"
    assert (
        set(conditions(found))
        == {each.target.file_name for each in compare(source, precisions=["fp16"], store=store)}
        == set(shown(directory))
    )
    assert set(conditions(found).values()) == {"intact"}
    assert others(found) == {}
    assert (found.publication.number, found.publication.source) == (1, str(source))
    assert snapshot(directory) == before


def overwrite_as_another_exporter_does(path: Path) -> None:
    with path.open("wb") as file:  # through the link
        file.write(b"another exporter's")


def replace_by_a_file(path: Path) -> None:
    path.with_name("new").write_bytes(b"another exporter's")
    path.with_name("new").replace(path)


def replace_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


@pytest.mark.parametrize(
    ("damage", "condition"),
    [
        (overwrite_as_another_exporter_does, "damaged"),
        (replace_by_a_file, "damaged"),
        (lambda path: flip(path.resolve()), "damaged"),
        (lambda path: os.truncate(path, 3), "damaged"),
        (os.unlink, "missing"),
        (lambda path: path.resolve().unlink(), "missing"),
        (replace_by_a_link, "missing"),
    ],
    ids=["overwritten", "replaced", "flipped", "cut", "removed", "file removed", "link"],
)
def test_a_published_file_that_is_not_what_it_was_is_seen_and_mended_from_the_store(
    source: Path, directory: Path, store: Store, damage: Callable[[Path], object], condition: str
) -> None:
    before = shown(directory)
    assert status(directory, store=store).well  # and its digests are remembered
    damage(directory / ZIP)
    found = status(directory, store=store)
    assert not found.well
    assert conditions(found) == {**dict.fromkeys(before, "intact"), ZIP: condition}
    assert (others(found), found.manifest) == ({}, "intact")
    assert [(fault.name, fault.problem) for fault in verify_directory(directory, store=store)] == [
        (str(directory / ZIP), condition)
    ]
    PublishedDirectory(directory, store).publish(found.publication.artifacts, str(source))
    assert status(directory, store=store).well
    assert shown(directory) == before


@pytest.mark.parametrize(
    ("damage", "condition"),
    [
        (os.unlink, "missing"),
        (lambda path: path.write_text("{}"), "damaged"),
        (lambda path: path.write_text(path.read_text().replace('"number": 1', '"number": 7')), "damaged"),
        (lambda path: path.write_text("no JSON"), "damaged"),
    ],
    ids=["removed", "emptied", "edited", "no JSON"],
)
def test_a_manifest_that_is_not_what_it_was_is_seen_and_the_store_knows_better(
    directory: Path, store: Store, damage: Callable[[Path], object], condition: str
) -> None:
    before = status(directory, store=store)
    damage(directory / "cosyjit.json")
    found = status(directory, store=store)
    assert (found.manifest, found.well) == (condition, False)
    assert (found.publication, found.names) == (before.publication, before.names)
    assert [fault.name for fault in verify_directory(directory, store=store)] == [str(directory / "cosyjit.json")]


def test_retrained_weights_make_what_was_published_from_them_stale(source: Path, directory: Path, store: Store) -> None:
    count = retrain(source, "llm.pt", "llm.")
    found = status(directory, store=store)
    assert not found.well
    assert set(conditions(found).values()) == {"intact"}
    assert others(found).keys() == {"llm.llm.fp16.zip"}
    for state, (reason,) in others(found).values():
        assert state == "stale"
        assert reason.startswith(f"{count} of {count} tensors changed: ")


def test_another_option_makes_what_was_published_stale_even_if_it_does_not_fit(
    source: Path, directory: Path, store: Store
) -> None:
    rewrite(source, "num_blocks: 3", "num_blocks: 4")
    stale = ("stale", ("num_blocks 3 -> 4",))
    assert others(status(directory, store=store)) == {"llm.llm.fp16.zip": stale}


def test_without_its_record_a_stale_artifact_has_no_better_reason(source: Path, directory: Path, store: Store) -> None:
    retrain(source, "flow.pt", "encoder.")
    for artifact in status(directory, store=store).publication.artifacts.values():
        record_path(store, artifact.fingerprint).unlink()
    assert set(others(status(directory, store=store)).values()) == {("stale", ("record missing",))}


def test_a_source_that_is_gone_cannot_be_compared_with(source: Path, directory: Path, store: Store) -> None:
    shutil.rmtree(source)
    found = status(directory, store=store)
    assert not found.well
    assert set(conditions(found).values()) == {"intact"}
    ((state, (reason,)),) = set(states(found).values())
    assert state == "unknown"
    assert reason.startswith(f"{source}: does not exist")


def test_a_part_of_a_source_is_compared_with_that_part_alone(source: Path, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.mkdir()
    PublishedDirectory(path, store).publish(
        put_planned(store, compare(source, ["flow.encoder"], ["bf16"], store=store)), str(source)
    )
    (source / "llm.pt").unlink()
    found = status(path, store=store)
    assert states(found) == {"flow.encoder.bf16.zip": ("current", ())}
    assert found.well


def test_status_changes_nothing_though_the_store_is_damaged(directory: Path, store: Store) -> None:
    published = status(directory, store=store).publication
    first, second, *_ = published.artifacts.values()
    flip(object_path(store, first.sha256))
    record_path(store, second.fingerprint).write_text("no JSON")
    assert store.local is not None
    before = {name: content for name, content in snapshot(store.local).items() if not name.startswith("digests")}
    assert status(directory, store=store).well  # what is shown is as it was
    assert {
        name: content for name, content in snapshot(store.local).items() if not name.startswith("digests")
    } == before


def test_nothing_published_is_an_error_that_names_directory_and_store(tmp_path: Path, store: Store) -> None:
    with pytest.raises(PublicationError, match=f"^{tmp_path}: nothing is published here from {store}"):
        status(tmp_path, store=store)
    with pytest.raises(PublicationError, match="nothing is published here"):
        status(tmp_path / "nowhere", store=store)


def test_without_its_store_what_is_shown_is_looked_at_and_its_source_is_not_opened(
    source: Path, directory: Path, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert store.local is not None
    rewrite(source, "num_blocks: 3", "num_blocks: 4")
    for other in (Store(tmp_path / "file"), Store(tmp_path / "none")):
        found = status(directory, store=other)
        assert set(conditions(found).values()) == {"intact"}
        ((state, (reason,)),) = set(states(found).values())
        assert (state, found.compared_with) == ("unknown", None)
        assert reason.startswith(f"{other}")
    assert "give the directory and the store as they were when it was exported, or export into it" in reason


def test_a_record_of_a_later_version_does_not_hide_that_all_is_well(directory: Path, store: Store) -> None:
    for artifact in status(directory, store=store).publication.artifacts.values():
        path = record_path(store, artifact.fingerprint)
        path.write_text(path.read_text().replace('"cosyjit_schema": 1', '"cosyjit_schema": 2'))
    assert status(directory, store=store).well


def test_what_a_name_does_not_need_does_not_count_for_it(source: Path, directory: Path, store: Store) -> None:
    (source / "flow.pt").write_bytes(b"damaged")
    found = states(status(directory, store=store))
    assert {name: state for name, (state, _) in found.items() if name.startswith("llm.")} == dict.fromkeys(
        (name for name in found if name.startswith("llm.")), "current"
    )
    flow = [each for name, each in found.items() if name.startswith("flow.")]
    assert [state for state, _ in flow] == ["unknown"] * len(flow)
    assert all(f"{source}/flow.pt: " in reason for _, (reason,) in flow)


# A hub is asked by those who want it to be, and never for what a directory of strangers names.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.use(monkeypatch)
        yield hub


def published(source: str, store: Store, directory: Path) -> Path:
    """Where the flow's encoder of a source is published, without a build."""
    directory.mkdir()
    planned = plan(source, ["flow.encoder"], ["fp16"], store=store)
    PublishedDirectory(directory, store).publish(put_planned(store, planned), planned[0].target.source.name)
    return directory


def test_an_id_is_compared_with_as_this_machine_knows_it_and_the_hub_is_asked_if_wanted(
    hub: Hub, source: Path, store: Store, tmp_path: Path
) -> None:
    first = hub.publish(MODEL, {path.name: path for path in source.iterdir()})
    path = published(MODEL, store, tmp_path / "out")
    retrain(source, "flow.pt", "encoder.")
    second = hub.publish(MODEL, {"flow.pt": source / "flow.pt"})
    hub.requests.clear()

    found = status(path, store=store)
    assert (found.well, found.compared_with) == (True, f"{MODEL}@{first}")
    assert hub.requests == []

    asked = status(path, store=store, check_source=True)
    ((state, (reason,)),) = states(asked).values()
    assert (state, asked.compared_with) == ("unknown", f"{MODEL}@{second}")
    assert reason.startswith(f"{MODEL}@{second}: flow.pt of this revision is not on this machine yet; export {MODEL}")
    assert {each.kind for each in hub.requests} == {"listing"}

    plan(MODEL, ["flow.encoder"], store=store)  # which downloads it
    hub.requests.clear()
    ((state, _),) = states(status(path, store=store)).values()
    assert (state, hub.requests) == ("stale", [])


def test_an_id_that_this_machine_has_nothing_of_is_unknown_with_the_way_out(
    hub: Hub, source: Path, store: Store, tmp_path: Path, home: Path
) -> None:
    hub.publish(MODEL, {path.name: path for path in source.iterdir()})
    path = published(MODEL, store, tmp_path / "out")
    shutil.rmtree(home / ".cache" / "cosyjit" / "modelscope")
    hub.requests.clear()
    assert set(states(status(path, store=store)).values()) == {
        ("unknown", (f"{MODEL}: no commit of it is on this machine; export {MODEL} again",))
    }
    assert hub.requests == []


@pytest.mark.parametrize("named", ["hub", "directory"])
@pytest.mark.parametrize("check_source", [False, True])
def test_a_manifest_that_the_store_does_not_know_names_a_source_that_is_not_opened(
    named: str, check_source: bool, hub: Hub, source: Path, store: Store, tmp_path: Path
) -> None:
    hub.publish(MODEL, {path.name: path for path in source.iterdir()})
    path = published(MODEL if named == "hub" else str(source), Store(tmp_path / "strangers"), tmp_path / "out")
    published(str(source), store, tmp_path / "own")  # the store is in use, for another directory
    hub.requests.clear()

    found = status(path, store=store, check_source=check_source)
    assert (found.well, found.manifest, found.compared_with) == (False, "intact", None)
    assert found.publication.source == (MODEL if named == "hub" else str(source))
    ((state, (reason,)),) = states(found).values()
    assert state == "unknown"
    assert reason.startswith(f"{store} does not know this as published here, and so its source is not opened; ")
    assert hub.requests == []


def test_another_publication_in_the_place_of_ones_own_is_not_believed(
    hub: Hub, source: Path, store: Store, tmp_path: Path
) -> None:
    hub.publish(MODEL, {path.name: path for path in source.iterdir()})
    path = published(str(source), store, tmp_path / "out")
    assert status(path, store=store).well
    shutil.rmtree(path)
    published(MODEL, Store(tmp_path / "strangers"), path)
    hub.requests.clear()
    found = status(path, store=store, check_source=True)
    assert (found.publication.source, found.compared_with, found.well) == (MODEL, None, False)
    assert hub.requests == []


def test_an_earlier_set_of_the_same_directory_is_still_ones_own_and_a_copy_elsewhere_is_not(
    source: Path, store: Store, tmp_path: Path
) -> None:
    path = published(str(source), store, tmp_path / "out")
    shutil.copytree(path, tmp_path / "copy", symlinks=True)
    rewrite(source, "dropout_rate: 0.1", "dropout_rate: 0.2")
    PublishedDirectory(path, store).publish(
        put_planned(store, plan(source, ["flow.encoder"], ["fp16"], store=store)), str(source)
    )
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "copy", path, symlinks=True)
    ((state, reasons),) = states(status(path, store=store)).values()
    assert (state, reasons[0]) == ("stale", "dropout_rate 0.1 -> 0.2")
    assert status(tmp_path / "copy", store=store).compared_with is None


def test_a_plan_that_is_older_than_its_file_is_told(tiny: Path, store: Store, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "published"
    path.mkdir()
    PublishedDirectory(path, store).publish(
        put_planned(store, compare(tiny, ["flow.decoder.estimator"], store=store)), str(tiny)
    )
    plan_file = path / "flow.decoder.estimator.fp16.mygpu.plan"
    plan_file.write_bytes(b"plan")
    assert run("status", path).status == 0
    os.utime(plan_file, (1, 1))
    found = status(path, store=store)
    assert (found.well, found.older_plans) == (False, (OlderPlan(plan_file.name, "flow.decoder.estimator.fp32.onnx"),))
    ran = run("status", path)
    assert (ran.status, ran.err) == (1, "")
    assert ran.out.splitlines()[-1].startswith(f"{plan_file.name} is older than flow.decoder.estimator.fp32.onnx, and ")
    assert json.loads(run("status", path, "--json").out)["older_plans"] == [found.older_plans[0]._asdict()]
    plan_file.unlink()
    assert run("status", path).status == 0
