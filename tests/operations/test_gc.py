"""What nothing refers to goes, and what anything in reach refers to stays, whatever happens."""

import os
import shutil
import signal
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosyjit import documents
from cosyjit.documents import now
from cosyjit.errors import LaterSchemaError, RecordError, SelectionError, StoreError
from cosyjit.operations import gc
from cosyjit.provenance import latest, record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import Store, object_name
from cosyjit.weights.tensor_digests import TensorDigest
from tests.support.files import sha256
from tests.support.processes import ROOT, said, snapshot, start, wait_for, waits_for_a_lock
from tests.support.s3 import Service
from tests.support.stores import (
    add,
    age,
    fetched,
    files_of,
    fingerprint,
    is_whole,
    names_of,
    object_path,
    put,
    record_of,
    show,
    unique_url,
    write_latest,
)

DAY: Final = 86_400.0
MONTH: Final = 30 * DAY


def collected(store: Store, keep: int = 1, older_than: float = DAY) -> set[str]:
    """The names of what is removed, digests apart, after a dry run has said the same and changed nothing."""
    before = files_of(store)
    found = gc.gc(store, keep=keep, older_than=older_than)
    assert files_of(store) == before
    sizes = [entry.size for entry in found]
    assert sizes == sorted(sizes, reverse=True)
    assert gc.gc(store, keep=keep, older_than=older_than, delete=True) == found
    names = [entry.name for entry in found]
    assert len(set(names)) == len(names)
    assert not {entry.name for entry in store.entries()} & set(names)
    return {name for name in names if not name.startswith("digests/")}


def test_one_run_removes_all_there_is(store: Store, tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        show(store, tmp_path / "a", content)
    age(store, MONTH)
    assert gc.gc(store, keep=1, older_than=DAY, delete=True)
    assert gc.gc(store, keep=1, older_than=DAY) == []


def test_what_directories_show_stays_whatever_its_age(store: Store, tmp_path: Path) -> None:
    shown = [show(store, tmp_path / name, name.encode(), b"shared") for name in ("a", "b", "c")]
    add(store, b"orphan")
    age(store, 1000 * MONTH)
    assert collected(store) == {object_name(sha256(b"orphan"))}
    assert all(is_whole(store, each) for each in shown)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5])
def test_the_last_publications_of_each_directory_stay(keep: int, store: Store, tmp_path: Path) -> None:
    history = {
        name: [show(store, tmp_path / name, f"{name}{number}".encode(), b"shared") for number in range(4)]
        for name in "ab"
    }
    age(store, MONTH)
    kept = [each for made in history.values() for each in made[-keep:]]
    dropped = [each for made in history.values() for each in made[:-keep]]
    gone = set().union(set(), *map(names_of, dropped)) - set().union(*map(names_of, kept))
    assert collected(store, keep) == gone
    assert len(gone) == 3 * len(dropped)
    assert all(is_whole(store, each) for each in kept)
    assert [each.number for each in PublishedDirectory(tmp_path / "a", store).history()] == [4, 3, 2, 1][:keep]


def test_what_is_young_stays(store: Store, tmp_path: Path) -> None:
    old, young, now = (show(store, tmp_path / "a", content) for content in (b"old", b"young", b"now"))
    for published, days in ((old, 9), (young, 5)):
        age(store, days * DAY, *names_of(published))
    assert collected(store, older_than=7 * DAY) == names_of(old)
    assert is_whole(store, young)
    assert collected(store, older_than=0) == names_of(young)
    assert is_whole(store, now)


def test_a_young_publication_keeps_its_old_objects(store: Store, tmp_path: Path) -> None:
    old, _ = show(store, tmp_path / "a", b"old"), show(store, tmp_path / "a", b"new")
    age(store, MONTH)
    os.utime(Path(store.root, publication.name_of(old.identity)))
    assert collected(store) == set()
    assert is_whole(store, old)


def test_a_young_record_keeps_its_old_object(store: Store) -> None:
    made = put(store, b"built, not published")
    age(store, MONTH, object_name(made.sha256))
    assert collected(store) == set()
    age(store, MONTH)
    assert collected(store) == {object_name(made.sha256), record.name_of(made.fingerprint)}


def test_an_orphan_goes_only_when_it_is_old_enough(store: Store) -> None:
    digest = add(store, b"orphan")
    assert collected(store, older_than=7 * DAY) == set()
    age(store, 6 * DAY)
    assert collected(store, older_than=7 * DAY) == set()
    age(store, 2 * DAY, object_name(digest))
    assert collected(store, older_than=7 * DAY) == {object_name(digest)}


def test_after_a_rollback_what_it_restored_stays(store: Store, tmp_path: Path) -> None:
    one, two = show(store, tmp_path / "a", b"one"), show(store, tmp_path / "a", b"two")
    back = PublishedDirectory(tmp_path / "a", store).rollback()
    age(store, MONTH)
    assert collected(store) == {publication.name_of(one.identity), *names_of(two)}
    assert is_whole(store, back)


def test_a_directory_that_is_gone_is_in_reach_by_what_it_showed_last(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "a", b"one")
    last = show(store, tmp_path / "a", b"two")
    shutil.rmtree(tmp_path / "a")
    age(store, MONTH)
    collected(store)
    assert is_whole(store, last)


def test_what_a_directory_shows_stays_even_if_the_store_thinks_it_shows_more(store: Store, tmp_path: Path) -> None:
    shown = show(store, tmp_path / "a", b"shown")
    # A kill between the writing of a publication and its showing leaves the store one ahead.
    ahead = Publication(2, now(), "/models/a", {"0.zip": put(store, b"ahead")}, shown.identity)
    publication.save(store, ahead, tmp_path / "a", shown=False)
    age(store, MONTH)
    assert collected(store) == set()
    assert is_whole(store, shown)
    assert is_whole(store, ahead)


def test_what_a_directory_shows_stays_when_the_stores_document_of_it_is_lost(store: Store, tmp_path: Path) -> None:
    for name, damage in (("a", b"other bytes"), ("b", None)):
        shown = show(store, tmp_path / name, name.encode())
        age(store, MONTH)
        document = Path(store.root, publication.name_of(shown.identity))
        if damage is None:
            document.unlink()
            collected(store)
        else:  # what was before it would seem to be out of reach
            document.write_bytes(damage)
            with pytest.raises(RecordError, match="is damaged"):
                collected(store)
            document.write_bytes(shown.content)
        (artifact,) = shown.artifacts.values()
        assert object_path(store, artifact.sha256).exists()


def test_references_that_lead_nowhere_go(store: Store, tmp_path: Path) -> None:
    shown = show(store, tmp_path / "a", b"one")
    (artifact,) = shown.artifacts.values()
    kept, dropped = write_latest(store, "kept", artifact.fingerprint), write_latest(store, "dropped", "0" * 32)
    store.write("latest/dddddddddddddddddddddddddddddddd.json", b"nothing")
    age(store, MONTH)
    assert collected(store) == {dropped, "latest/dddddddddddddddddddddddddddddddd.json"}
    assert latest.read(store, kept) == artifact.fingerprint


def test_what_was_left_half_done_goes(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "a", b"one")
    root = Path(store.root)
    left = [
        "tmp/cosyjit-x0_y1z2w/half",
        "heads/.00000000000000000000000000000000.tmp",
        "records/.11111111111111111111111111111111.tmp",
        "objects/ab/.22222222222222222222222222222222.tmp",
        "digests/.33333333333333333333333333333333.tmp",
    ]
    for name in left:
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(b"half")
    assert not set(left) & {entry.name for entry in gc.gc(store, older_than=DAY, delete=True)}
    assert all((root / name).exists() for name in left)
    age(store, MONTH, *left)
    found = [entry.name for entry in gc.gc(store, delete=True)]
    assert sorted(name for name in found if not name.endswith(".json")) == sorted(left)
    assert not any((root / name).exists() for name in left)


def test_what_is_no_stores_file_is_left_alone(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "a", b"one")
    strange = [
        "tmp/mine.txt",
        "tmp/cosyjit-plan.txt",
        "tmp/cosyjit-notes/mine",
        "tmp/cosyjit-abcdefgh",
        "work/draft.tmp",
        "objects/o",
        f"objects/ab/{'0' * 64}",
        "records/notes.txt",
        "damaged/mine",
        "damaged/records.mine.01234567",
        f"damaged/objects.ab/{'0' * 64}.01234567",
        "objects/ab/.x.tmp",
    ]
    for name in strange:
        Path(store.root, name).parent.mkdir(exist_ok=True, parents=True)
        Path(store.root, name).write_bytes(b"mine")
    age(store, MONTH)
    collected(store)
    assert all(Path(store.root, name).read_bytes() == b"mine" for name in strange)


def test_what_is_no_plain_file_is_left_alone_whatever_its_name(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "a", b"one")
    (tmp_path / "file").write_bytes(b"mine")
    links = [object_name("0" * 64), f"records/{'0' * 32}.json", "tmp/cosyjit-x0_y1z2w/link"]
    pipe = Path(store.root, object_name("1" * 64))
    for path in (*(Path(store.root, name) for name in links), pipe):
        path.parent.mkdir(exist_ok=True, parents=True)
    for name in links:
        Path(store.root, name).symlink_to(tmp_path / "file")
    os.mkfifo(pipe)
    assert not {*links, object_name("1" * 64)} & {entry.name for entry in gc.gc(store, older_than=0, delete=True)}
    assert all(Path(store.root, name).is_symlink() for name in links)
    assert pipe.is_fifo()
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_record_whose_statement_is_not_sound_keeps_what_it_names_as_long_as_it_is_young(store: Store) -> None:
    made = put(store, b"built, not published")
    sound = store.read(record.name_of(made.fingerprint))
    assert sound is not None
    document = documents.without_checksum(documents.load(sound, "here"), sound, "here")
    store.write(record.name_of(made.fingerprint), documents.with_checksum({**document, "more": True}))
    with pytest.raises(RecordError, match="not as cosyjit writes it"):
        record.load(store, made.fingerprint)
    age(store, MONTH, object_name(made.sha256))
    assert collected(store) == set()
    age(store, MONTH)
    assert collected(store) == {object_name(made.sha256), record.name_of(made.fingerprint)}


def test_what_is_being_remembered_right_now_stays(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "a", b"one")
    path = Path(store.root, "digests", ".33333333333333333333333333333333.tmp")
    path.write_bytes(b"half")
    gc.gc(store, older_than=DAY, delete=True)
    assert path.exists()


def test_digests_of_files_that_are_gone_go(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "a", b"one")
    (tmp_path / "file").write_bytes(b"content")
    before = set(snapshot(Path(store.root, "digests")))
    store.digests.sha256(tmp_path / "file")
    (new,) = set(snapshot(Path(store.root, "digests"))) - before
    path = Path(store.root, "digests", new)
    gc.gc(store, delete=True)
    assert path.exists()
    (tmp_path / "file").unlink()
    gc.gc(store, delete=True)
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"[]", b"null", b"5", b"{}", b'{"path": 5}', b'{"path": "\\u0000"}']
)
def test_digests_that_cannot_be_read_stop_nothing(content: bytes, store: Store, tmp_path: Path) -> None:
    shown = show(store, tmp_path / "a", b"one")
    Path(store.root, "digests", f"{'0' * 32}.json").write_bytes(content)
    gc.gc(store, older_than=0, delete=True)
    assert is_whole(store, shown)


def test_a_damaged_record_stops_nothing(store: Store, tmp_path: Path) -> None:
    shown = show(store, tmp_path / "a", b"one", b"two")
    store.write(f"records/{'0' * 32}.json", b"nothing")
    store.write(record.name_of(shown.artifacts["0.zip"].fingerprint), b"nothing")
    age(store, MONTH)
    assert collected(store) == {f"records/{'0' * 32}.json"}
    assert object_path(store, shown.artifacts["0.zip"].sha256).exists()


def test_what_was_set_aside_goes_when_it_is_old(store: Store) -> None:
    digest = add(store, b"content")
    object_path(store, digest).chmod(0o644)
    object_path(store, digest).write_bytes(b"other")
    assert store.check_or_set_aside(digest) == "damaged"
    assert collected(store) == set()
    age(store, MONTH)
    (aside,) = collected(store)
    assert aside.startswith("damaged/")


def documents_of(store: Store) -> dict[str, bytes | None]:
    return {name: store.read(name) for name in files_of(store)}


LATER: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "record": (f"records/{'0' * 32}.json", {"predicate": {"cosyjit_schema": 2}}),
    "head": (f"heads/{'0' * 32}.json", {"schema": 2}),
    "reference": (f"latest/{'0' * 32}.json", {"schema": 2}),
}


@pytest.mark.parametrize("days", [0, 1000], ids=["young", "old"])
@pytest.mark.parametrize("kind", LATER)
def test_a_document_of_a_later_version_stops_all_before_anything_goes(
    kind: str, days: float, store: Store, tmp_path: Path
) -> None:
    show(store, tmp_path / "a", b"one")
    add(store, b"orphan")
    name, document = LATER[kind]
    store.write(name, documents.dump(document))
    age(store, MONTH)
    age(store, days * DAY, name)
    before = documents_of(store)
    with pytest.raises(LaterSchemaError) as error:
        gc.gc(store, keep=1, older_than=MONTH / 2 if days else 2 * MONTH, delete=True)
    assert str(error.value).endswith("is of schema 2, and this cosyjit reads up to 1; upgrade cosyjit")
    assert documents_of(store) == before


@pytest.mark.parametrize("content", [b"{}", b'{"schema": 1}', b'{"schema": 99}', b"nothing"], ids=repr)
def test_a_document_that_a_stranger_puts_into_a_directory_stops_nothing(
    content: bytes, store: Store, tmp_path: Path
) -> None:
    shown = show(store, tmp_path / "a", b"one")
    orphan = add(store, b"orphan")
    sets = tmp_path / "a" / ".cosyjit" / "sets"
    (sets / sha256(content)).mkdir()
    (sets / sha256(content) / "cosyjit.json").write_bytes(content)
    (sets.parent / "current").unlink()
    (sets.parent / "current").symlink_to(f"sets/{sha256(content)}")
    found = gc.gc(store, older_than=0, delete=True)
    assert [entry.name for entry in found if not entry.name.startswith("digests/")] == [object_name(orphan)]
    assert is_whole(store, shown)


def test_a_later_versions_publication_out_of_reach_stops_all_too(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "a", b"one")
    content = documents.dump({"schema": 2})
    store.write(publication.name_of(sha256(content)), content)
    age(store, MONTH)
    before = documents_of(store)
    with pytest.raises(LaterSchemaError):
        gc.gc(store, keep=1, older_than=0, delete=True)
    assert documents_of(store) == before


PEAK: Final = """
import sys
from cosyjit.operations.gc import gc
from cosyjit.operations.verify import verify_store
from cosyjit.store.store import Store
from tests.support.processes import peak
store = Store(sys.argv[1])
before = peak()
found = gc(store) if sys.argv[2] == "gc" else verify_store(store)
print(len(found), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["gc", "verify"])
def test_records_are_not_all_in_memory_at_once(command: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = add(store, b"shared")
    size, tensors = 0, {f"tensor {number}": TensorDigest("float32", (1,), "0" * 32) for number in range(2000)}
    for number in range(100):
        made = record_of(digest, fingerprint=replace(fingerprint(number), tensors=tensors, torch=str(number)))
        record.save(store, made)
        size += len(store.read(record.name_of(made.fingerprint.key)) or b"")
    with start(PEAK, store.root, command, cwd=ROOT) as reader:
        out, err = reader.communicate(timeout=600)
    found, more = map(int, out.split())
    assert (found, err) == (0, "")
    assert more < size / 2


@pytest.mark.parametrize("content", [b"", b"nothing", b"[]", b'{"schema": 1}', b'{"schema": 1, "directory": 5}'])
def test_a_damaged_head_stops_all_before_anything_goes(content: bytes, store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "a", b"one")
    add(store, b"orphan")
    (head,) = store.entries("heads")
    store.write(head.name, content)
    age(store, MONTH)
    before = documents_of(store)
    with pytest.raises(StoreError) as error:
        gc.gc(store, keep=1, older_than=0, delete=True)
    assert str(error.value).startswith(f"{store.root}/{head.name}: is damaged (")
    assert documents_of(store) == before


@pytest.mark.parametrize(("keep", "older_than"), [(0, 0), (-1, 5), (1, -0.1), (5, float("-inf"))])
def test_to_keep_nothing_or_what_is_not_born_is_refused(keep: int, older_than: float, store: Store) -> None:
    add(store, b"orphan")
    with pytest.raises(
        SelectionError, match=rf"^--(keep {keep}: keep 1 or more|older-than {older_than:g} s: keep files for 0 s)"
    ):
        gc.gc(store, keep=keep, older_than=older_than, delete=True)
    assert files_of(store) == {object_name(sha256(b"orphan"))}


def test_a_store_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be read or written"):
        gc.gc(Store(tmp_path / "file"), delete=True)


UNPRIVILEGED = """
import os, sys
from cosyjit.operations import gc
from cosyjit.errors import StoreError
from cosyjit.store.store import Store
if os.getuid() == 0:
    os.setuid(65534)
try:
    print(len(gc.gc(Store(sys.argv[1]), keep=1, older_than=0, delete=True)))
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("folder", ["heads", "publications", "records"])
def test_a_folder_that_must_not_be_read_stops_all_before_anything_goes(folder: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own directories are their owner's alone
        Path(place).chmod(0o755)
        store = Store(Path(place, "store"))
        shown = show(store, tmp_path / "a", b"one")
        age(store, MONTH)
        if os.getuid() == 0:
            for path in (store.local, *Path(store.root).rglob("*")):
                assert path is not None
                os.chown(path, 65534, 65534)
        Path(store.root, folder).chmod(0)
        try:
            with start(UNPRIVILEGED, store.root, cwd=ROOT) as collector:
                out, err = collector.communicate(timeout=600)
        finally:
            Path(store.root, folder).chmod(0o755)
        assert (out, err) == (
            f"{store.root}: cannot be read or written ({folder}: Permission denied); mend it, or name another store\n",
            "",
        )
        assert is_whole(store, shown)


PUBLISH = """
import sys
from pathlib import Path
from cosyjit.store.store import Store
from tests.support.stores import age, put, show
store, directory = Store(sys.argv[1]), Path(sys.argv[2])
with store.in_use():
    made = put(store, b"under way")
    age(store, 1e7)
    print("built", flush=True)
    input()
    print(show(store, directory, b"under way").identity, flush=True)
    age(store, 1e7)
"""

COLLECT = """
import sys
from cosyjit.operations import gc
from cosyjit.store.store import Store
print(*[entry.name for entry in gc.gc(Store(sys.argv[1]), keep=1, older_than=0, delete=True)])
"""


def test_a_running_export_is_waited_for_and_what_it_publishes_stays(store: Store, tmp_path: Path) -> None:
    orphan = object_name(add(store, b"orphan"))
    with start(PUBLISH, store.root, tmp_path / "a") as publisher:
        assert said(publisher) == "built"
        with start(COLLECT, store.root) as collector:
            wait_for(lambda: waits_for_a_lock(collector.pid))
            assert Path(store.root, orphan).exists()
            out, err = publisher.communicate("\n", timeout=600)
            assert (publisher.returncode, err) == (0, "")
            assert orphan in said(collector).split()
    shown = PublishedDirectory(tmp_path / "a", store).history()[0]
    assert shown.identity == out.strip()
    assert is_whole(store, shown)


KILLED = """
import resource, shutil, sys
from pathlib import Path
from cosyjit.operations import gc
from cosyjit.store.store import Store
from tests.support.processes import die_at, forked
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for step in range(1000):
    root = Path(sys.argv[2], str(step))
    shutil.copytree(sys.argv[1], root)
    def work():
        die_at(step, {"os.remove"})
        gc.gc(Store(root), keep=1, older_than=0, delete=True)
    status = forked(work)
    print(status, flush=True)
    if not status:
        break
"""


@pytest.mark.slow
def test_a_kill_at_any_removal_leaves_all_in_reach_whole_and_the_next_run_ends_the_work(
    store: Store, tmp_path: Path
) -> None:
    for content in (b"one", b"two", b"three"):
        shown = show(store, tmp_path / "a", content, b"shared")
    write_latest(store, "dropped", show(store, tmp_path / "b", b"dropped").artifacts["0.zip"].fingerprint)
    other = show(store, tmp_path / "b", b"kept")
    add(store, b"orphan")
    age(store, MONTH)
    (tmp_path / "stores").mkdir()
    with start(KILLED, store.root, tmp_path / "stores") as killer:
        out, err = killer.communicate(timeout=600)
    statuses = [int(line) for line in out.split()]
    assert err == ""
    assert statuses == [-signal.SIGKILL] * (len(statuses) - 1) + [0]
    assert len(statuses) > 10
    ends = []
    for step in range(len(statuses)):
        copied = Store(tmp_path / "stores" / str(step))
        assert is_whole(copied, shown)
        assert is_whole(copied, other)
        assert nothing_named_is_missing(copied)
        gc.gc(copied, keep=1, older_than=0, delete=True)
        assert is_whole(copied, shown)
        assert is_whole(copied, other)
        ends.append(files_of(copied))
    assert all(end == ends[-1] for end in ends)


def nothing_named_is_missing(store: Store) -> bool:
    """Whether each document has what it names: publications their records, these their objects."""
    names = files_of(store)
    published = [publication.load(store, stem) for stem in stems(names, "publications/")]
    records = [record.load(store, stem) for stem in stems(names, "records/")]
    needed = set().union(*(names_of(each) for each in published if each))
    return needed | {object_name(each.sha256) for each in records if each} <= names


def stems(names: set[str], folder: str) -> list[str]:
    return [name.removeprefix(folder).removesuffix(".json") for name in names if name.startswith(folder)]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish", "publish", "build", "orphan", "age", "collect"]),
        st.integers(0, 2),
        st.sets(st.integers(0, 5), min_size=1, max_size=3),
    ),
    max_size=14,
)


@pytest.mark.slow
@given(STEPS, st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_after_any_history_all_that_is_kept_has_what_it_names(
    steps: list[tuple[str, int, set[int]]], keep: int
) -> None:
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place, "store"))
        history: dict[Path, list[Publication]] = {}
        store.write("records/.gone.tmp", b"")
        for step, number, contents in [*steps, ("age", 2, set()), ("collect", 0, set())]:
            directory = Path(place, str(number))
            if step == "publish":
                before = history.setdefault(directory, [])
                artifacts = {f"{each}.zip": stored(store, each) for each in contents}
                last = before[-1].identity if before else None
                made = Publication(len(before) + 1, now(), "/models/a", artifacts, last)
                publication.save(store, made, directory, shown=True)
                before.append(made)
            elif step == "build":
                [stored(store, each) for each in contents]
            elif step == "orphan":
                store.write(object_name(sha256(b"%d" % number)), b"%d" % number)
            elif step == "age":
                age(store, (number + 1) * DAY)
            else:
                gc.gc(store, keep=keep, older_than=1.5 * DAY, delete=True)
            kept = [each for made in history.values() for each in made[-keep:]]
            assert all(is_whole(store, each) for each in kept)
            assert nothing_named_is_missing(store)
        assert {name for name in files_of(store) if not name.startswith("heads/")} == set().union(*map(names_of, kept))


def stored(store: Store, number: int) -> Published:
    """An artifact and its record, put there by the shortest way."""
    content = b"artifact %d" % number
    made = record_of(sha256(content), number)
    store.write(object_name(made.sha256), content)
    record.save(store, made)
    return Published(made.sha256, len(content), made.fingerprint.key)


def test_a_store_behind_a_url_keeps_what_is_younger_than_a_day(tmp_path: Path) -> None:
    store = Store(unique_url())
    shown = show(store, tmp_path / "a", b"one")
    show(store, tmp_path / "b", b"dropped")
    shown = show(store, tmp_path / "a", b"two")
    before = files_of(store)
    assert gc.gc(store, keep=1, older_than=0, delete=True) == []
    assert files_of(store) == before
    assert publication.load(store, shown.identity) == shown


def test_a_store_behind_a_url_is_collected(tmp_path: Path) -> None:
    store = Store(unique_url())
    old = show(store, tmp_path / "a", b"one", b"shared")
    new = show(store, tmp_path / "a", b"two", b"shared")
    be_older(store, MONTH)
    assert collected(store) == names_of(old) - names_of(new)
    assert names_of(new) <= files_of(store)


def be_older(store: Store, seconds: float) -> None:
    """Let all that is in a store in memory be older by so much."""
    from fsspec.implementations.memory import MemoryFileSystem  # noqa: PLC0415  (no other test looks inside)

    for path, file in MemoryFileSystem.store.items():
        if store.root.removeprefix("memory:/") in path:
            file.created -= timedelta(seconds=seconds)


def test_leases_that_dead_machines_left_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    store = Store(unique_url())
    show(store, tmp_path / "a", b"one")
    dead, living = f"locks/{'0' * 32}", f"locks/{'1' * 32}"
    store.write(dead, b"someone 5\n")
    be_older(store, MONTH)
    store.write(living, b"someone 5\n")
    store.write("locks/notes.txt", b"mine")
    assert {entry.name for entry in gc.gc(store, delete=True)} == {dead}
    assert {entry.name for entry in store.entries("locks")} == {living, "locks/notes.txt"}


def test_parts_that_killed_uploads_left_in_a_bucket_go(s3: Service) -> None:
    store = Store(s3.url())
    bucket, _, prefix = store.root.removeprefix("s3://").partition("/")
    name = object_name(sha256(b"half"))
    for key in (f"{prefix}/{name}", f"{prefix}-of-others/{name}"):
        s3.client.create_multipart_upload(Bucket=bucket, Key=key)
    assert gc.gc(store, older_than=100 * 365 * DAY, delete=True) == []
    (found,) = gc.gc(store)
    assert found.name.startswith(f"{name}?uploadId=")
    assert len(s3.uploads(store.root)) == 2
    assert gc.gc(store, delete=True) == [found]
    assert s3.uploads(store.root) == [f"{prefix}-of-others/{name}"]
    store.remove(found.name)


def test_locks_of_a_store_of_this_machine_stay(store: Store) -> None:
    with store.in_use(), store.build_lock("ab" * 16):
        add(store, b"orphan")
    age(store, MONTH)
    assert collected(store) == {object_name(sha256(b"orphan"))}
    assert Path(store.root, "locks", "ab").exists()


def test_old_copies_of_a_remote_stores_objects_go_and_can_be_had_again(tmp_path: Path) -> None:
    store = Store(unique_url())
    assert store.cache is not None
    shown = show(store, tmp_path / "a", b"old", b"young")
    old, young = (object_path(store.cache, sha256(content)) for content in (b"old", b"young"))
    age(store.cache, MONTH, object_name(sha256(b"old")))
    assert [entry.name for entry in gc.gc(store) if "/digests/" not in entry.name] == [str(old)]
    assert old.exists()
    gc.gc(store, delete=True)
    assert not old.exists()
    assert young.exists()
    assert {each.sha256 for each in shown.artifacts.values()} == store.objects()
    assert fetched(store, sha256(b"old"), tmp_path / "copy") == b"old"


def test_a_remote_store_is_collected_where_no_copies_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    store = Store(unique_url())
    show(store, tmp_path / "a", b"one")
    add(store, b"orphan")
    be_older(store, MONTH)
    assert collected(store) == {object_name(sha256(b"orphan"))}
