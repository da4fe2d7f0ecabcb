"""Many at once: exports, rollbacks, readers and collections in one store, while some of them are killed."""

import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import cosyjit
from cosyjit import Store
from cosyjit.documents import now
from cosyjit.errors import StoreError
from cosyjit.fs.digests import Digests
from cosyjit.operations import gc
from cosyjit.operations.verify import verify_store
from cosyjit.planning import plan as planning
from cosyjit.provenance import record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Publication
from cosyjit.store.backends import Entry
from cosyjit.store.store import object_name
from cosyjit.synth.synth import synth
from tests.robustness.crowd import GRACE, Report
from tests.support.processes import ROOT, spawn, start, unexpected
from tests.support.s3 import Answer, Service
from tests.support.stores import names_of, put, put_planned, show

FLOW: Final = ["flow.encoder"]
FEW: Final = (4.0, 8)
MANY: Final = (120.0, 32)
"""Seconds, and processes."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of model directories."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed in range(3):
        synth(folder / str(seed), "cosyvoice2", "tiny", seed=seed)
    return folder


@pytest.fixture
def folder(checkpoints: Path) -> Iterator[Path]:
    """Where a crowd is at work."""
    memory = Path("/dev/shm")  # noqa: S108  (quicker than a disk, for so many small files)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        shutil.copytree(checkpoints, Path(path, "checkpoints"))
        yield Path(path)


def crowded(folder: Path, root: str, seconds: float, processes: int) -> Report:
    """What became of a crowd; it sees to its end by itself."""
    with spawn(sys.executable, "-m", "tests.robustness.crowd", folder, root, seconds, processes, cwd=ROOT) as process:
        out, err = process.communicate()
    assert (process.returncode, unexpected(err)) == (0, [])
    report = Report(**json.loads(out))
    print(json.dumps(vars(report)))  # noqa: T201  (shown when something is wrong)
    return report


@pytest.mark.parametrize(
    "size",
    [pytest.param(FEW, marks=pytest.mark.slow), pytest.param(MANY, marks=pytest.mark.stress)],
    ids=["few", "many"],
)
def test_a_crowd_in_a_local_store_loses_nothing_and_leaves_nothing(folder: Path, size: tuple[float, int]) -> None:
    report = crowded(folder, str(folder / "store"), *size)
    assert report.wrong == []
    assert report.acts.keys() >= {"export", "read", "collect", "real", "roll back", "verify"}


@pytest.mark.stress
def test_a_crowd_in_a_bucket_loses_nothing_and_leaves_nothing(folder: Path, s3: Service) -> None:
    report = crowded(folder, s3.url(), *MANY)
    if report.wrong and max(report.seconds.values()) > GRACE / 2:
        pytest.skip("exports on this machine take longer than the grace that collections give them here")
    assert report.wrong == []
    assert report.acts.keys() >= {"export", "read", "collect", "real", "roll back", "verify"}


# What is taken from a bucket while another machine collects it, at the worst of moments.


def age(s3: Service, store: Store) -> None:
    """Have all that is in a bucket be older than what a collection keeps for being young.

    Nothing here waits for a clock: on a busy machine what was just renewed would be old again before it is looked at.
    """
    s3.age(store.root, 2 * store.grace)


def opened(url: str) -> Store:
    """A store that has reached for its server already, and goes on asking that one."""
    store = Store(url)
    store.entries("heads")
    return store


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Store], Store]:
    """Gives a store as another machine has it, with copies of its own."""

    def open_there(store: Store) -> Store:
        with monkeypatch.context() as patched:
            patched.setenv("HOME", str(tmp_path / "other"))
            return opened(store.root)

    return open_there


def collect(store: Store) -> set[str]:
    """The names of what nothing in reach needs, and is removed now."""
    return {entry.name for entry in gc.gc(store, keep=1, older_than=0, delete=True)}


class At:
    """Does something once, before the first such request for what has this in its name goes on to the server.

    Attributes:
        came: what came of it, once it is done.
    """

    def __init__(self, method: str, name: str, act: Callable[[], object]) -> None:
        self._method, self._name, self._act = method, name, act
        self._due = threading.Lock()
        self.came: list[Any] = []

    def __call__(self, method: str, path: str) -> None:
        if method == self._method and self._name in path and self._due.acquire(blocking=False):
            self.came.append(self._act())


def is_whole(store: Store, directory: Path) -> bool:
    """Whether a store has all of what a directory shows, and lacks nothing that it names."""
    names = {entry.name for entry in store.entries()}
    return names_of(PublishedDirectory(directory, store).require_live()) <= names and verify_store(store) == []


class Superseded:
    """A bucket with the artifact of a target, shown once and not any more: a collection would take it."""

    def __init__(self, url: str, checkpoint: Path, directory: Path) -> None:
        self.store = opened(url)
        planned = planning.plan(checkpoint, FLOW, ["fp16"], store=self.store)
        self.directory = directory
        self.published = self._show(put_planned(self.store, planned))
        self._show(put_planned(self.store, planned, torch="1"))
        (artifact,) = self.published.artifacts.values()
        self.names = {
            "publication": publication.name_of(self.published.identity),
            "record": record.name_of(artifact.fingerprint),
            "object": object_name(artifact.sha256),
            "head": "/heads/",
        }

    def _show(self, artifacts: dict[str, publication.Published]) -> Publication:
        return PublishedDirectory(self.directory, self.store).publish(artifacts, "/model")


def test_what_an_export_takes_from_a_bucket_while_it_is_collected_stays(
    s3: Service, tiny2: Path, tmp_path: Path
) -> None:
    moments = [("GET", "head"), ("HEAD", "record")]
    places = {each: Superseded(s3.url(), tiny2, tmp_path / " ".join(each)) for each in moments}
    for moment, place in places.items():
        age(s3, place.store)
        directory = tmp_path / " ".join((*moment, "new"))

        export = partial(
            cosyjit.export, tiny2, components=FLOW, precisions=["fp16"], publish=directory, store=place.store
        )
        exported = At(moment[0], place.names[moment[1]], export)
        with s3.proxied(exported):
            taken = collect(Store(place.store.root))
        assert [each.state for (each,) in exported.came] == ["cached"], moment
        assert taken & set(place.names.values()) == {place.names["publication"]}, moment
        assert is_whole(place.store, directory), moment


def test_what_the_plan_of_an_export_finds_in_a_bucket_while_it_is_collected_stays(
    s3: Service, tiny2: Path, tmp_path: Path
) -> None:
    place = Superseded(s3.url(), tiny2, tmp_path / "out")
    age(s3, place.store)
    plan = partial(planning.plan, tiny2, FLOW, ["fp16"], store=place.store, exporting=True)
    planned = At("HEAD", place.names["record"], plan)
    with s3.proxied(planned):
        taken = collect(Store(place.store.root))
    assert [each.state for (each,) in planned.came] == ["fresh"]
    assert taken & set(place.names.values()) == {place.names["publication"]}


def test_what_is_collected_between_the_plan_of_an_export_and_its_end_is_nothing_that_it_needs(
    s3: Service, tiny2: Path, tmp_path: Path, other: Callable[[Store], Store]
) -> None:
    place = Superseded(s3.url(), tiny2, tmp_path / "out")
    collecting = other(place.store)
    age(s3, place.store)
    planned = At("GET", "/latest/", lambda: collect(collecting))
    with s3.proxied(planned):
        store = Store(place.store.root)
        (outcome,) = cosyjit.export(tiny2, components=FLOW, precisions=["fp16"], publish=tmp_path / "new", store=store)
    (taken,) = planned.came
    assert taken & set(place.names.values()) == {place.names["publication"]}
    assert outcome.state == "cached"
    assert is_whole(place.store, tmp_path / "new")


def test_what_a_rollback_takes_from_a_bucket_while_it_is_collected_stays(
    s3: Service, tiny2: Path, tmp_path: Path
) -> None:
    place = Superseded(s3.url(), tiny2, tmp_path / "out")
    age(s3, place.store)
    with s3.proxied(
        At("DELETE", "/publications/", lambda: PublishedDirectory(place.directory, place.store).rollback(1))
    ):
        assert place.names["publication"] in collect(Store(place.store.root))
    assert PublishedDirectory(place.directory, place.store).require_live().restores == 1
    assert is_whole(place.store, place.directory)


def test_a_rollback_to_what_is_just_being_collected_is_refused(
    s3: Service, tiny2: Path, tmp_path: Path, other: Callable[[Store], Store]
) -> None:
    place = Superseded(s3.url(), tiny2, tmp_path / "out")
    collecting = other(place.store)
    age(s3, place.store)
    with s3.proxied(At("HEAD", place.names["object"], lambda: collect(collecting))):
        message = f"/{place.names['object']}: is missing; export its checkpoint again to build it anew"
        with pytest.raises(StoreError, match=message):
            PublishedDirectory(place.directory, Store(place.store.root)).rollback(1)
    assert PublishedDirectory(place.directory, place.store).require_live().number == 2
    assert is_whole(place.store, place.directory)


def test_what_a_copy_of_a_directory_shows_stays_as_soon_as_something_is_exported_into_it(
    s3: Service, tiny2: Path, tmp_path: Path
) -> None:
    place = Superseded(s3.url(), tiny2, tmp_path / "out")
    PublishedDirectory(place.directory, place.store).rollback(1)
    copy = Path(shutil.copytree(place.directory, tmp_path / "copy", symlinks=True))
    shown = PublishedDirectory(copy, place.store).require_live()
    PublishedDirectory(place.directory, place.store).rollback(2)
    age(s3, place.store)

    def export() -> None:
        assert PublishedDirectory(copy, place.store).publish(shown.artifacts, shown.source) == shown

    with s3.proxied(At("HEAD", "/publications/", export)):
        taken = collect(Store(place.store.root))
    assert place.names["publication"] in taken
    assert not taken & names_of(shown)
    assert is_whole(place.store, copy)


def test_what_is_renewed_between_the_last_look_and_the_removal_is_lost_and_missed(
    s3: Service, tiny2: Path, tmp_path: Path
) -> None:
    place = Superseded(s3.url(), tiny2, tmp_path / "out")
    age(s3, place.store)
    add = put_planned  # the record is gone before the object, and is made anew

    def export() -> None:
        planned = planning.plan(tiny2, FLOW, ["fp16"], store=place.store)
        PublishedDirectory(tmp_path / "new", place.store).publish(add(place.store, planned), "/model")

    with s3.proxied(At("DELETE", place.names["object"], export)):
        collect(Store(place.store.root))
    assert not is_whole(place.store, tmp_path / "new")
    (planned,) = planning.plan(tiny2, FLOW, ["fp16"], store=place.store)
    assert (planned.state, planned.reasons) == ("stale", ("object missing",))


def test_two_machines_collect_one_bucket_at_a_time(s3: Service, tiny2: Path, tmp_path: Path) -> None:
    place = Superseded(s3.url(), tiny2, tmp_path / "out")
    age(s3, place.store)
    taken: set[str] = set()
    with s3.proxied(At("GET", place.names["publication"], lambda: taken.update(collect(place.store)))):
        collect(Store(place.store.root))
    assert place.names["object"] in taken
    assert is_whole(place.store, place.directory)


def test_only_what_was_not_renewed_for_half_the_grace_is_renewed(s3: Service) -> None:
    store = opened(s3.url())
    store.write("records/a", b"content")
    asked: list[str] = []
    with s3.proxied(lambda method, _: asked.append(method)):
        watched = Store(store.root)
        s3.age(store.root, store.grace * 0.6)
        assert watched.renew("records/a")
        assert asked.count("PUT") == 1
        s3.age(store.root, store.grace * 0.4)
        assert watched.renew("records/a")
        assert asked.count("PUT") == 1
    assert store.read("records/a") == b"content"
    assert not store.renew("records/b")


def test_who_may_only_read_a_bucket_renews_nothing(s3: Service) -> None:
    store = opened(s3.url())
    store.write("records/a", b"content")
    age(s3, store)
    with s3.proxied(lambda method, _: Answer(403, "AccessDenied") if method == "PUT" else None):
        assert Store(store.root).renew("records/a")


# What is verified while others are at work.


class Busy(Store):
    """A store in which something happens each time before and after a folder is listed."""

    def __init__(self, root: Path, folder: str, act: Callable[[], object]) -> None:
        super().__init__(root)
        self._folder, self._act = folder, act

    def entries(self, folder: str = "") -> list[Entry]:
        if folder != self._folder:
            return super().entries(folder)
        self._act()
        found = super().entries(folder)
        self._act()
        return found


@pytest.mark.parametrize("folder", ["objects", "records", "publications", "heads"])
def test_what_exports_bring_and_collections_take_while_a_store_is_verified_is_no_fault(
    folder: str, store: Store, tmp_path: Path
) -> None:
    made: list[Publication] = []

    def publish_one() -> None:
        number = len(made) + 1
        artifacts = {"0.zip": put(store, b"%d" % number), "1.zip": put(store, b"shared")}
        last = made[-1].identity if made else None
        made.append(Publication(number, now(), "/models/a", artifacts, last))
        publication.save(store, made[-1], tmp_path / "a", shown=True)

    def work() -> None:
        publish_one()
        put(store, b"not published %d" % len(made))
        if len(made) % 3:
            collect(store)

    for _ in range(3):
        work()
        assert verify_store(Busy(tmp_path / store.root, folder, work)) == []


def test_what_a_verification_finds_missing_for_good_is_a_fault(store: Store, tmp_path: Path) -> None:
    (gone,) = show(store, tmp_path / "a", b"one").artifacts.values()
    store.remove(object_name(gone.sha256))
    problem = f"object {gone.sha256} missing"
    assert [each.problem for each in verify_store(Busy(tmp_path / store.root, "objects", list))] == [problem] * 2


class Publishing(Digests):
    """Digests of files, at the first of which something is published."""

    def __init__(self, directory: Path, act: Callable[[], object]) -> None:
        super().__init__(directory)
        self._acts = [act]

    def sha256(self, path: Path) -> str:
        if self._acts:
            self._acts.pop()()
        return super().sha256(path)


def test_a_look_at_a_directory_is_at_one_publication_of_it(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "a", b"one", b"two")
    looking = Store(store.root)
    looking.digests = Publishing(store.digests.directory, lambda: show(store, tmp_path / "a", b"three", b"two"))
    published, found = PublishedDirectory(tmp_path / "a", looking).check()
    assert published.number == 2
    assert {each.condition for each in found} == {"intact"}


# What others leave and take right now.


ENTER = """
import sys
from pathlib import Path
from cosyjit.store.store import Store
left = Path(sys.argv[1], "tmp", "cosyjit-leftover")
left.mkdir(parents=True)
def build(event, arguments):
    if event == "os.rmdir" and not list(left.iterdir()):
        (left / "half").touch()
sys.addaudithook(build)
with Store(sys.argv[1]).in_use():
    print(*left.iterdir())
"""


def test_what_the_builds_of_a_killed_process_still_write_keeps_nobody_out(tmp_path: Path) -> None:
    with start(ENTER, tmp_path / "store") as process:
        out, err = process.communicate()
    assert (out, err) == (f"{tmp_path}/store/tmp/cosyjit-leftover/half\n", "")


WRITE = """
import sys
from pathlib import Path
from cosyjit.publishing.layout import Layout
state = Path(sys.argv[1], ".cosyjit")
left = [state.rmdir]
def remove(event, arguments):
    if event == "open" and str(arguments[0]) == str(state) and left:
        left.pop()()
sys.addaudithook(remove)
with Layout(state.parent).writing():
    print(len(left), state.is_dir())
"""


def test_a_folder_that_another_process_removes_right_before_it_is_opened_is_made_again(tmp_path: Path) -> None:
    with start(WRITE, tmp_path) as process:
        out, err = process.communicate()
    assert (out, err) == ("0 True\n", "")
