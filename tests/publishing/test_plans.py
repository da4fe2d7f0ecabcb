"""Plans beside published files: put aside just where their file changes, and never lost."""

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final

import pytest

from cosyjit import rollback
from cosyjit.errors import OutputError, RecordError, StoreError
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.layout import MANIFEST, Layout
from cosyjit.publishing.plans import OlderPlan
from cosyjit.publishing.publication import Publication
from cosyjit.store.store import Store
from tests.support import stores
from tests.support.processes import start

FILE: Final = "flow.decoder.estimator.fp32.onnx"
HALF: Final = "flow.decoder.estimator.autocast_fp16.onnx"
PLAN: Final = "flow.decoder.estimator.fp32.mygpu.plan"
OTHER_PLAN: Final = "flow.decoder.estimator.fp16.mygpu.plan"
HALF_PLAN: Final = "flow.decoder.estimator.autocast_fp16.0.plan"
ZIP: Final = "flow.encoder.fp32.zip"


def show(store: Store, directory: Path, contents: Mapping[str, bytes]) -> Publication:
    """Publish files of these contents."""
    with store.in_use():
        artifacts = {name: stores.put(store, content) for name, content in contents.items()}
        return PublishedDirectory(directory, store).publish(artifacts, "/model")


def plans(directory: Path) -> dict[str, bytes]:
    """The plans in a directory, those put aside as well."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if ".plan" in path.name}


@pytest.fixture
def planned(directory: Path) -> Path:
    """A directory with the file of another exporter, and the plans that a runtime made of it."""
    (directory / FILE).write_bytes(b"theirs")
    (directory / PLAN).write_bytes(b"plan of theirs")
    (directory / OTHER_PLAN).write_bytes(b"half plan of theirs")
    return directory


@pytest.fixture
def shown(store: Store, directory: Path) -> Path:
    """A directory with a published file, and a plan that a runtime made of it."""
    show(store, directory, {FILE: b"1", ZIP: b"zip"})
    (directory / PLAN).write_bytes(b"plan of 1")
    return directory


def test_the_plans_of_a_file_that_is_replaced_are_put_aside(
    planned: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    before = (planned / PLAN).lstat()
    with caplog.at_level(logging.INFO):
        made = show(store, planned, {FILE: b"ours"})
    assert plans(planned) == {f"{PLAN}.1": b"plan of theirs", f"{OTHER_PLAN}.1": b"half plan of theirs"}
    assert (planned / f"{PLAN}.1").lstat().st_ino == before.st_ino
    assert made.aside == {PLAN: f"{PLAN}.1", OTHER_PLAN: f"{OTHER_PLAN}.1"}
    assert json.loads((planned / MANIFEST).read_bytes())["aside"] == made.aside
    assert publication.load(store, made.identity) == made == PublishedDirectory(planned, store).live()
    assert [each.getMessage() for each in caplog.records] == [
        f"{planned / name}: was made from another {FILE} than is published now, and is kept as {name}.1"
        for name in (OTHER_PLAN, PLAN)
    ]


def test_where_nothing_changes_no_plan_is_touched(shown: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    before = (shown / PLAN).lstat()
    with caplog.at_level(logging.INFO):
        assert show(store, shown, {FILE: b"1", ZIP: b"zip"}).number == 1
        after = show(store, shown, {FILE: b"1", ZIP: b"zip 2"})
    assert (after.number, after.aside, caplog.records) == (2, {}, [])
    assert "aside" not in json.loads((shown / MANIFEST).read_bytes())
    assert (shown / PLAN).lstat() == before
    assert plans(shown) == {PLAN: b"plan of 1"}


def test_a_second_export_leaves_alone_what_a_runtime_has_made_since(planned: Path, store: Store) -> None:
    show(store, planned, {FILE: b"ours"})
    (planned / PLAN).write_bytes(b"plan of ours")
    assert show(store, planned, {FILE: b"ours"}).number == 1
    assert plans(planned)[PLAN] == b"plan of ours"
    show(store, planned, {FILE: b"next"})
    assert plans(planned) == {
        f"{PLAN}.1": b"plan of theirs",
        f"{OTHER_PLAN}.1": b"half plan of theirs",
        f"{PLAN}.2": b"plan of ours",
    }


@pytest.mark.parametrize("link", [False, True])
def test_a_file_of_others_with_the_same_bytes_keeps_its_plans(
    planned: Path, store: Store, tmp_path: Path, *, link: bool
) -> None:
    if link:
        (planned / FILE).rename(tmp_path / "elsewhere")
        (planned / FILE).symlink_to(tmp_path / "elsewhere")
    made = show(store, planned, {FILE: b"theirs"})
    assert made.aside == {}
    assert plans(planned) == {PLAN: b"plan of theirs", OTHER_PLAN: b"half plan of theirs"}


def test_plans_whose_file_is_missing_are_put_aside(planned: Path, store: Store) -> None:
    (planned / FILE).unlink()
    assert set(show(store, planned, {FILE: b"theirs"}).aside) == {PLAN, OTHER_PLAN}


def test_only_the_plans_of_the_file_that_changes_are_put_aside(planned: Path, store: Store) -> None:
    others = {HALF_PLAN, "flow.decoder.estimator.fp32.dynamic_batch.l20.plan", "other.plan", f"{PLAN}.1"}
    for name in others:
        (planned / name).write_bytes(name.encode())
    assert show(store, planned, {FILE: b"ours"}).aside == {PLAN: f"{PLAN}.2", OTHER_PLAN: f"{OTHER_PLAN}.1"}
    assert all(plans(planned)[name] == name.encode() for name in others)
    assert show(store, planned, {HALF: b"half"}).aside == {HALF_PLAN: f"{HALF_PLAN}.1"}


def test_without_the_file_nothing_is_done_to_plans(planned: Path, store: Store) -> None:
    assert show(store, planned, {ZIP: b"zip"}).aside == {}
    assert (planned / FILE).read_bytes() == b"theirs"
    assert set(plans(planned)) == {PLAN, OTHER_PLAN}


def test_a_rollback_does_as_an_export(shown: Path, store: Store) -> None:
    show(store, shown, {FILE: b"2"})
    (shown / PLAN).write_bytes(b"plan of 2")
    made = rollback(shown, store=store)
    assert (made.restores, made.aside) == (1, {PLAN: f"{PLAN}.2"})
    assert plans(shown) == {f"{PLAN}.1": b"plan of 1", f"{PLAN}.2": b"plan of 2"}
    (shown / PLAN).write_bytes(b"plan of 1 again")
    assert rollback(shown, to=3, store=store).aside == {}
    assert plans(shown)[PLAN] == b"plan of 1 again"


def test_a_rollback_to_before_the_file_puts_its_plans_aside(store: Store, directory: Path) -> None:
    show(store, directory, {ZIP: b"zip"})
    show(store, directory, {FILE: b"1"})
    (directory / PLAN).write_bytes(b"plan of 1")
    assert rollback(directory, store=store).aside == {PLAN: f"{PLAN}.1"}
    assert not os.path.lexists(directory / FILE)
    assert plans(directory) == {f"{PLAN}.1": b"plan of 1"}


def test_who_has_taken_the_file_away_keeps_the_plan(shown: Path, store: Store) -> None:
    (shown / FILE).unlink()
    after = show(store, shown, {ZIP: b"zip 2"})
    assert (set(after.artifacts), after.aside) == ({ZIP}, {})
    assert plans(shown) == {PLAN: b"plan of 1"}


def test_who_has_put_another_file_there_keeps_both(shown: Path, store: Store) -> None:
    (shown / FILE).unlink()
    (shown / FILE).write_bytes(b"theirs")
    after = show(store, shown, {ZIP: b"zip 2"})
    assert (set(after.artifacts), after.aside) == ({ZIP}, {})
    assert (shown / FILE).read_bytes() == b"theirs"
    assert plans(shown) == {PLAN: b"plan of 1"}


def test_a_file_that_was_missing_keeps_its_plan_and_that_it_is_older_is_told(shown: Path, store: Store) -> None:
    (shown / FILE).resolve().unlink()
    live = show(store, shown, {FILE: b"1", ZIP: b"zip"})
    assert (live.number, (shown / FILE).read_bytes()) == (1, b"1")
    assert plans(shown) == {PLAN: b"plan of 1"}
    assert PublishedDirectory(shown, store).older_plans(live) == [OlderPlan(PLAN, FILE)]


def test_a_file_that_was_written_in_place_loses_its_plan_before_it_is_mended(
    shown: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown / FILE).write_bytes(b"through the link")
    (shown / PLAN).write_bytes(b"plan of that")
    seen: list[tuple[bytes, dict[str, bytes]]] = []
    real = Store.fetch

    def fetch(self: Store, digest: str, file: BinaryIO) -> None:
        seen.append(((shown / FILE).read_bytes(), plans(shown)))
        real(self, digest, file)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "fetch", fetch)
        made = show(store, shown, {FILE: b"1", ZIP: b"zip"})
    assert seen == [(b"through the link", {f"{PLAN}.1": b"plan of that"})]
    assert (made.number, made.restores, made.aside) == (2, None, {PLAN: f"{PLAN}.1"})
    assert (shown / FILE).read_bytes() == b"1"
    assert show(store, shown, {FILE: b"1", ZIP: b"zip"}) == made
    (shown / FILE).write_bytes(b"through the link again")
    (shown / PLAN).write_bytes(b"plan of that")
    assert rollback(shown, to=1, store=store).aside == {PLAN: f"{PLAN}.2"}


def test_what_is_damaged_and_shown_is_not_mended_by_staging(shown: Path, store: Store) -> None:
    (shown / FILE).write_bytes(b"through the link")
    artifact = stores.artifact_of(b"1")
    published = PublishedDirectory(shown, store)
    published.stage(artifact)
    assert (shown / FILE).read_bytes() == b"through the link"
    (stores.object_path(store, artifact.sha256)).unlink()
    with pytest.raises(StoreError, match="missing"):
        published.stage(artifact)


def test_a_file_of_others_in_place_of_the_published_one_loses_its_plan(shown: Path, store: Store) -> None:
    (shown / FILE).unlink()
    (shown / FILE).write_bytes(b"theirs")
    made = show(store, shown, {FILE: b"1", ZIP: b"zip"})
    assert (made.number, made.aside) == (2, {PLAN: f"{PLAN}.1"})
    assert (shown / FILE).read_bytes() == b"1"
    assert show(store, shown, {FILE: b"1", ZIP: b"zip"}) == made


# What may stand there.


def _link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(b"plan")
    path.symlink_to("elsewhere")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"plan")


def _unreadable(path: Path) -> None:
    path.write_bytes(b"plan")
    path.chmod(0)


KINDS: Final[dict[str, Callable[[Path], object]]] = {
    "a link": _link,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a folder": _folder,
    "an empty file": lambda path: path.write_bytes(b""),
    "a file that nobody may read": _unreadable,
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_stands_under_the_name_of_a_plan_is_kept_as_it_is(kind: str, directory: Path, store: Store) -> None:
    KINDS[kind](directory / PLAN)
    before = (directory / PLAN).lstat()
    show(store, directory, {FILE: b"1"})
    after = (directory / f"{PLAN}.1").lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert not os.path.lexists(directory / PLAN)


def test_a_plan_that_is_being_written_is_written_to_where_it_is_kept(planned: Path, store: Store) -> None:
    with (planned / PLAN).open("wb") as file:
        file.write(b"first half, ")
        show(store, planned, {FILE: b"ours"})
        file.write(b"second half")
    assert plans(planned)[f"{PLAN}.1"] == b"first half, second half"
    assert PLAN not in plans(planned)


# What may go wrong.


def watched(monkeypatch: pytest.MonkeyPatch, then: Callable[[Layout], None]) -> list[tuple[bytes, set[str]]]:
    """What is seen at the moment before the directory switches to its set; and something is done then."""
    seen: list[tuple[bytes, set[str]]] = []
    real = Layout._lead_to

    def lead(self: Layout, name: str) -> None:
        if not name.startswith("before."):
            seen.append(
                ((self.path / FILE).read_bytes(), {each for each in plans(self.path) if each.endswith(".plan")})
            )
            then(self)
        real(self, name)

    monkeypatch.setattr(Layout, "_lead_to", lead)
    return seen


def test_the_new_file_is_never_beside_the_old_plan(
    planned: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch, lambda _: None)
    show(store, planned, {FILE: b"ours"})
    assert seen == [(b"theirs", set())]


def test_where_the_switch_fails_the_plans_are_put_back(
    shown: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Layout) -> None:
        raise OSError(28, "No space left on device")

    before = (shown / PLAN).lstat()
    with monkeypatch.context() as patched:
        watched(patched, fail)
        with pytest.raises(OutputError, match="No space left on device"):
            show(store, shown, {FILE: b"2"})
    assert ((shown / FILE).read_bytes(), plans(shown)) == (b"1", {PLAN: b"plan of 1"})
    assert (shown / PLAN).lstat().st_ino == before.st_ino
    assert show(store, shown, {FILE: b"2"}).aside == {PLAN: f"{PLAN}.1"}


def test_a_plan_that_cannot_be_put_aside_stops_the_publication_and_the_others_are_put_back(
    planned: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if self.name == PLAN:
            raise PermissionError(1, "Operation not permitted")
        return real(self, to)

    before = plans(planned)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(OutputError) as error:
            show(store, planned, {FILE: b"ours"})
    assert str(error.value) == (
        f"{planned / PLAN}: was made from another file than is published, and cannot be put aside "
        "(Operation not permitted); move it away, and run again"
    )
    assert (plans(planned), (planned / FILE).read_bytes()) == (before, b"theirs")
    assert show(store, planned, {FILE: b"ours"}).number == 1
    assert (planned / FILE).read_bytes() == b"ours"


KILLED: Final = """
import os, sys
from pathlib import Path
from cosyjit.publishing.layout import Layout
from cosyjit.store.store import Store
from tests.publishing.test_plans import show
real = Layout._lead_to
def lead(self, name):
    if name.startswith("before."):
        return real(self, name)
    if sys.argv[3] == "after":
        real(self, name)
    os.kill(os.getpid(), 9)
Layout._lead_to = lead
show(Store(sys.argv[1]), Path(sys.argv[2]), {"flow.decoder.estimator.fp32.onnx": b"2"})
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_is_killed_at_the_switch_leaves_no_plan_beside_another_file(when: str, shown: Path, store: Store) -> None:
    with start(KILLED, store.root, shown, when) as process:
        process.communicate(timeout=600)
    assert process.returncode == -9
    assert (shown / FILE).read_bytes() == (b"1" if when == "before" else b"2")
    assert plans(shown) == {f"{PLAN}.1": b"plan of 1"}
    (shown / PLAN).write_bytes(b"plan of what is there")
    show(store, shown, {FILE: b"2"})
    assert (shown / FILE).read_bytes() == b"2"
    assert plans(shown)[f"{PLAN}.1"] == b"plan of 1"
    kept = f"{PLAN}.2" if when == "before" else PLAN
    assert plans(shown)[kept] == b"plan of what is there"
    assert len(plans(shown)) == 2


def test_of_two_exports_at_once_one_puts_the_plan_aside(planned: Path, store: Store) -> None:
    barrier = threading.Barrier(2)

    def publish(_: int) -> Publication:
        barrier.wait()
        return show(store, planned, {FILE: b"ours"})

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(publish, range(2)))
    assert made[0] == made[1]
    assert plans(planned) == {f"{PLAN}.1": b"plan of theirs", f"{OTHER_PLAN}.1": b"half plan of theirs"}


# What is told of plans that came there otherwise.


def test_a_plan_that_is_older_than_its_file_is_told(shown: Path, store: Store) -> None:
    published = PublishedDirectory(shown, store)
    live = published.require_live()
    assert published.older_plans(live) == []
    os.utime(shown / PLAN, (1, 1))
    assert published.older_plans(live) == [OlderPlan(PLAN, FILE)]
    (shown / HALF_PLAN).write_bytes(b"of a file that is not published")
    os.utime(shown / HALF_PLAN, (1, 1))
    assert published.older_plans(live) == [OlderPlan(PLAN, FILE)]
    (shown / PLAN).write_bytes(b"")  # a runtime makes it anew
    os.utime(shown / PLAN, (1, 1))
    assert published.older_plans(live) == []


def test_a_plan_that_is_a_link_is_as_old_as_what_it_leads_to(shown: Path, store: Store, tmp_path: Path) -> None:
    (shown / PLAN).rename(tmp_path / "plan")
    (shown / PLAN).symlink_to(tmp_path / "plan")
    os.utime(tmp_path / "plan", (1, 1))
    published = PublishedDirectory(shown, store)
    assert published.older_plans(published.require_live()) == [OlderPlan(PLAN, FILE)]
    (tmp_path / "plan").unlink()
    assert published.older_plans(published.require_live()) == []


# The document.


def test_a_publication_with_a_path_in_place_of_a_plan_is_damaged(store: Store, directory: Path) -> None:
    made = show(store, directory, {FILE: b"1"})
    for name, kept in (("../x", "x.1"), ("x", "a/b"), ("", "x")):
        forged = Publication(1, made.published, "/model", made.artifacts, aside={name: kept})
        with pytest.raises(RecordError, match="damaged"):
            publication.parse(forged.content, "x")
    empty = made.content.replace(b'"restores": null', b'"restores": null,\n "aside": {}')
    with pytest.raises(RecordError, match="not as cosyjit writes it"):
        publication.parse(empty, "x")
