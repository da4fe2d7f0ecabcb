"""What directories show: whole sets, mended where they are damaged, and earlier ones again."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from cosyjit.errors import CosyjitError, OutputError, PublicationError, SelectionError, StoreError
from cosyjit.fs import files
from cosyjit.operations import gc
from cosyjit.publishing import layout, publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.layout import Layout
from cosyjit.publishing.publication import Publication
from cosyjit.store.store import Store
from tests.support import processes, stores
from tests.support.files import sha256
from tests.support.processes import snapshot, start
from tests.support.stores import exporting

FIRST: Final = {"llm.llm.fp32.zip": b"llm 1", "flow.encoder.fp32.zip": b"flow 1", "flow.encoder.fp16.zip": b"half 1"}
SECOND: Final = {"llm.llm.fp32.zip": b"llm 2", "flow.encoder.fp32.zip": b"flow 2", "flow.encoder.fp16.zip": b"half 2"}
NAME: Final = "llm.llm.fp32.zip"
OTHER: Final = "flow.encoder.fp32.zip"
MANIFEST: Final = layout.MANIFEST


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory with a file of its own."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "llm.pt").write_bytes(b"weights")
    return path


def put(store: Store, directory: Path, contents: Mapping[str, bytes], *, link: bool = False) -> Publication:
    """Publish artifacts of these contents."""
    with store.in_use():
        artifacts = {name: stores.put(store, content) for name, content in contents.items()}
        return PublishedDirectory(directory, store).publish(artifacts, "/model", link=link)


def seen(directory: Path) -> dict[str, bytes]:
    """What a user sees, apart from the manifest and the model's own file."""
    return {name: content for name, content in processes.shown(directory).items() if name != "llm.pt"}


def numbers(store: Store, directory: Path) -> list[int]:
    return [each.number for each in PublishedDirectory(directory, store).history()]


def test_what_was_named_and_never_shown_is_forgotten_once_the_same_is_exported_again(
    store: Store, directory: Path
) -> None:
    live = put(store, directory, FIRST)
    named = changed(live, number=2, previous=live.identity)
    publication.save(store, named, directory, shown=False)  # as a process leaves it that is killed then
    assert put(store, directory, FIRST) == live
    assert publication.read_head(store, directory) == publication.Head(directory, live.identity, shown=True)
    gc.gc(store, older_than=0, delete=True)
    assert publication.load(store, named.identity) is None
    assert numbers(store, directory) == [1]


def faults(store: Store, directory: Path, *, again: bool = False) -> dict[str, str]:
    """The published names that are not whole."""
    _, found = PublishedDirectory(directory, store).check(reread=again)
    return {each.name: each.condition for each in found if each.condition != "intact"}


def manifest(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / MANIFEST).read_bytes()))


def one_line(kind: type[CosyjitError], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """What changes when anything is written to a directory, at any depth."""
    found = [directory, *directory.rglob("*")]
    return {str(path): (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in found}


# Publications.


def test_a_set_is_shown_under_its_names_beside_what_was_there(store: Store, directory: Path) -> None:
    published = put(store, directory, FIRST)
    assert processes.shown(directory) == {"llm.pt": b"weights", **FIRST}
    assert published == PublishedDirectory(directory, store).live()
    assert (published.number, published.previous, published.restores) == (1, None, None)
    assert {name: each["sha256"] for name, each in manifest(directory)["artifacts"].items()} == {
        name: sha256(content) for name, content in FIRST.items()
    }
    assert faults(store, directory, again=True) == {}


def test_a_directory_that_is_missing_is_made(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path / "a" / "b", FIRST)
    assert seen(tmp_path / "a" / "b") == FIRST


def test_what_a_later_publication_does_not_name_stays_in_it(store: Store, directory: Path) -> None:
    first = put(store, directory, FIRST)
    second = put(store, directory, {NAME: SECOND[NAME], "new.fp32.zip": b"new"})
    assert seen(directory) == {**FIRST, NAME: SECOND[NAME], "new.fp32.zip": b"new"}
    assert (second.number, second.previous) == (2, first.identity)
    assert numbers(store, directory) == [2, 1]


def test_publishing_what_is_shown_already_writes_nothing(store: Store, directory: Path) -> None:
    first = put(store, directory, FIRST)
    before, kept = stamps(directory), store.entries("publications") + store.entries("heads")
    assert put(store, directory, FIRST) == first
    assert put(store, directory, {NAME: FIRST[NAME]}) == first
    assert stamps(directory) == before
    assert store.entries("publications") + store.entries("heads") == kept


def test_only_the_files_that_are_shown_are_kept_in_a_directory(store: Store, directory: Path) -> None:
    for number in range(3):
        put(store, directory, {**FIRST, NAME: b"%d" % number})
    state = directory / ".cosyjit"
    published = PublishedDirectory(directory, store).live()
    assert published is not None
    assert [path.name for path in (state / "sets").iterdir()] == [published.identity]
    assert {path.name for path in (state / "files").iterdir()} == {sha256(each) for each in seen(directory).values()}


def test_one_object_under_two_names_is_one_file(store: Store, directory: Path) -> None:
    put(store, directory, {"a.zip": b"same", "b.zip": b"same"})
    assert seen(directory) == {"a.zip": b"same", "b.zip": b"same"}
    assert (directory / "a.zip").resolve() == (directory / "b.zip").resolve()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_are_as_open_as_the_umask_says(store: Store, directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        put(store, directory, FIRST)
    finally:
        os.umask(before)
    for path in (directory / ".cosyjit").rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & umask == 0
            assert path.stat().st_mode & 0o002 == 0
    assert (directory / NAME).stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_set_with_an_object_that_is_gone_is_not_shown(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    with store.in_use():
        artifacts = {name: stores.put(store, content) for name, content in SECOND.items()}
        store.remove(f"objects/{sha256(SECOND[NAME])[:2]}/{sha256(SECOND[NAME])}")
        message = one_line(StoreError, lambda: PublishedDirectory(directory, store).publish(artifacts, "/model"))
    assert f"object {sha256(SECOND[NAME])} is missing" in message
    assert seen(directory) == FIRST
    assert numbers(store, directory) == [1]


# What is damaged.


def overwrite(path: Path) -> None:
    """As another exporter does: through the link, in place."""
    path.write_bytes(b"another exporter's")


def overwrite_alike(path: Path) -> None:
    """By as many bytes, and with the time of modification of those before."""
    before = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """By a file that is renamed to it."""
    path.with_name("other").write_bytes(b"another exporter's")
    path.with_name("other").replace(path)


def link_elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("llm.pt")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def edit_and_replace(path: Path) -> None:
    """As an editor does."""
    content = path.read_bytes().replace(b'"number": 1', b'"number": 7')
    path.with_name("other").write_bytes(content)
    path.with_name("other").replace(path)


def remove_file(path: Path) -> None:
    path.resolve().unlink()


def remove_state(path: Path) -> None:
    shutil.rmtree(path.parent / ".cosyjit")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage", "condition"),
    [
        (NAME, overwrite, "damaged"),
        (NAME, overwrite_alike, "damaged"),
        (NAME, replace, "damaged"),
        (NAME, link_elsewhere, "damaged"),
        (NAME, link_to_itself, "damaged"),
        (NAME, Path.unlink, "missing"),
        (NAME, remove_file, "missing"),
        (MANIFEST, overwrite, "damaged"),
        (MANIFEST, overwrite_alike, "damaged"),
        (MANIFEST, replace, "damaged"),
        (MANIFEST, edit_and_replace, "damaged"),
        (MANIFEST, link_elsewhere, "damaged"),
        (MANIFEST, link_to_itself, "missing"),
        (MANIFEST, Path.unlink, "missing"),
        (MANIFEST, remove_file, "missing"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_is_damaged_is_seen_and_mended_by_publishing_it_again(
    store: Store, directory: Path, name: str, damage: Callable[[Path], None], condition: str
) -> None:
    first = put(store, directory, FIRST)
    before = manifest(directory)
    damage(directory / name)
    assert faults(store, directory) == {name: condition}
    assert faults(store, directory, again=True) == {name: condition}
    assert store.condition(sha256(FIRST[NAME])) == "intact"
    assert put(store, directory, FIRST) == first
    assert faults(store, directory, again=True) == {}
    assert processes.shown(directory) == {"llm.pt": b"weights", **FIRST}
    assert manifest(directory) == before
    assert numbers(store, directory) == [1]


def test_a_directory_whose_state_is_gone_is_mended(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    second = put(store, directory, SECOND)
    shutil.rmtree(directory / ".cosyjit")
    assert faults(store, directory) == dict.fromkeys([*SECOND, MANIFEST], "missing")
    assert put(store, directory, SECOND) == second
    assert faults(store, directory) == {}
    assert seen(directory) == SECOND
    assert numbers(store, directory) == [2, 1]


def test_what_is_damaged_is_mended_by_a_publication_of_other_names_as_well(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    overwrite(directory / NAME)
    put(store, directory, {"new.fp32.zip": b"new"})
    assert seen(directory) == {**FIRST, "new.fp32.zip": b"new"}
    assert faults(store, directory) == {}


def test_a_damaged_file_whose_object_is_gone_is_told_and_left(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    overwrite(directory / NAME)
    as_it_was = snapshot(directory)
    artifacts = PublishedDirectory(directory, store).history()[0].artifacts
    store.remove(f"objects/{sha256(FIRST[NAME])[:2]}/{sha256(FIRST[NAME])}")
    message = one_line(StoreError, lambda: PublishedDirectory(directory, store).publish(artifacts, "/model"))
    assert "is missing" in message
    assert snapshot(directory) == as_it_was
    assert faults(store, directory) == {NAME: "damaged"}


# What others have put there.


def test_files_and_links_of_these_names_are_replaced_and_what_links_lead_to_is_left_alone(
    store: Store, directory: Path, tmp_path: Path
) -> None:
    names = list(FIRST)
    (directory / names[0]).write_bytes(b"theirs")
    os.link(directory / names[0], tmp_path / "kept.zip")
    (directory / names[1]).symlink_to("llm.pt")
    (directory / names[2]).symlink_to("nowhere")
    (directory / MANIFEST).write_bytes(b"theirs too")
    put(store, directory, FIRST)
    assert processes.shown(directory) == {"llm.pt": b"weights", **FIRST}
    assert (tmp_path / "kept.zip").read_bytes() == b"theirs"
    assert faults(store, directory) == {}


@pytest.mark.parametrize("name", [*FIRST, MANIFEST])
@pytest.mark.parametrize("before", [True, False], ids=["published before", "new"])
def test_a_name_that_is_a_directorys_leaves_all_as_it_was(
    store: Store, directory: Path, name: str, *, before: bool
) -> None:
    if before:
        put(store, directory, FIRST)
        (directory / name).unlink()
    (directory / name).mkdir()
    (directory / name / "file").write_bytes(b"theirs")
    as_it_was = snapshot(directory)
    message = one_line(OutputError, lambda: put_opened(store, directory, SECOND))
    assert message == f"{directory / name}: is a directory; move it away, or publish into another directory"
    assert snapshot(directory) == as_it_was


def put_opened(store: Store, directory: Path, contents: Mapping[str, bytes], size: int = 0) -> Publication:
    """As an export does, which removes what it brought if it fails."""
    with exporting(PublishedDirectory(directory, store), size):
        return put(store, directory, contents)


def test_names_that_only_look_like_cosyjits_are_left_alone(store: Store, directory: Path) -> None:
    (directory / ".cosyjit-notes").write_bytes(b"mine")
    (directory / f".{uuid4().hex}.tmp").write_bytes(b"mine")
    (directory / ".link.tmp").symlink_to("nowhere")
    (directory / "old.fp32.zip").symlink_to("elsewhere/.cosyjit/current/old.fp32.zip")
    mine = snapshot(directory)
    put(store, directory, FIRST)
    put(store, directory, SECOND)
    after = snapshot(directory)
    assert {name: after.get(name) for name in mine} == mine


def test_a_link_to_a_directory_in_the_place_of_a_name_is_replaced(store: Store, directory: Path) -> None:
    (directory / "folder").mkdir()
    (directory / "folder" / "file").write_bytes(b"theirs")
    (directory / NAME).symlink_to("folder")
    put(store, directory, FIRST)
    assert seen(directory) == FIRST
    assert (directory / "folder" / "file").read_bytes() == b"theirs"


# Places.


@pytest.mark.parametrize(
    "place",
    ["model/llm.pt", "model/llm.pt/below", "/proc/nope", "/proc/nope/below", "n" * 300, f"a/{'n' * 300}"],
    ids=lambda place: place[:20],
)
def test_a_directory_that_cannot_be_is_named_in_one_line(store: Store, directory: Path, place: str) -> None:
    path = directory.parent / place
    as_it_was = snapshot(directory.parent)

    def export() -> None:
        with exporting(PublishedDirectory(path, store)):
            pytest.fail("opened")

    for call in (export, lambda: put(store, path, FIRST)):
        assert one_line(OutputError, call).startswith(f"{path}: cannot be written to (")
        assert snapshot(directory.parent) == as_it_was


def test_a_file_in_the_place_of_the_state_is_named_and_left(store: Store, directory: Path) -> None:
    (directory / ".cosyjit").write_bytes(b"mine")
    as_it_was = snapshot(directory)
    assert one_line(OutputError, lambda: put_opened(store, directory, FIRST)).startswith(f"{directory}/.cosyjit: ")
    assert snapshot(directory) == as_it_was


def test_a_set_for_which_there_is_no_room_is_refused_before_anything_is_written(store: Store, directory: Path) -> None:
    message = one_line(OutputError, lambda: put_opened(store, directory, FIRST, size=2**62))
    assert message.startswith(f"{directory}: ")
    assert "are to be written and" in message
    assert message.endswith("MB are free; make room, or publish into another directory")
    assert snapshot(directory) == {"llm.pt": b"weights"}


LIMITED = """
import resource, sys
from pathlib import Path
from cosyjit.errors import CosyjitError
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import Store
from tests.support.stores import artifact_of
from tests.support.stores import exporting
content = b"large" * 100_000
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    directory = PublishedDirectory(sys.argv[2], Store(sys.argv[1]))
    with exporting(directory):
        directory.publish({sys.argv[3]: artifact_of(content)}, "/model")
except CosyjitError as error:
    print(type(error).__name__, error)
"""


def test_a_file_that_cannot_be_written_whole_is_the_directorys_fault_and_not_the_stores(
    store: Store, directory: Path
) -> None:
    put(store, directory, FIRST)
    with store.in_use():
        stores.put(store, b"large" * 100_000)
    as_it_was = snapshot(directory)
    ran = processes.finished(start(LIMITED, store, directory, NAME))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == (
        f"OutputError {directory}: cannot be written to (File too large); publish into another directory\n"
    )
    assert snapshot(directory) == as_it_was
    assert store.condition(sha256(b"large" * 100_000)) == "intact"


def test_what_was_brought_for_a_set_that_fails_is_removed(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    as_it_was = snapshot(directory)

    def export() -> None:
        with store.in_use(), exporting(PublishedDirectory(directory, store)):
            PublishedDirectory(directory, store).stage(stores.put(store, b"brought"))
            assert (directory / ".cosyjit" / "files" / sha256(b"brought")).read_bytes() == b"brought"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        export()
    assert snapshot(directory) == as_it_was


def test_two_directories_on_one_store_have_histories_of_their_own(store: Store, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    put(store, one, FIRST)
    put(store, two, SECOND)
    put(store, one, SECOND)
    assert (numbers(store, one), numbers(store, two)) == ([2, 1], [1])
    PublishedDirectory(one, store).rollback()
    assert (seen(one), seen(two)) == (FIRST, SECOND)


def moved(directory: Path) -> Path:
    return directory.rename(directory.with_name("elsewhere"))


def copied_with_links(directory: Path) -> Path:
    return Path(shutil.copytree(directory, directory.with_name("elsewhere"), symlinks=True))


def copied_by_cp(directory: Path) -> Path:
    subprocess.run(["cp", "-r", directory, directory.with_name("elsewhere")], check=True)  # noqa: S607
    return directory.with_name("elsewhere")


@pytest.mark.parametrize("move", [moved, copied_with_links, copied_by_cp])
def test_a_directory_elsewhere_shows_what_it_did_and_knows_its_history(
    store: Store, directory: Path, move: Callable[[Path], Path]
) -> None:
    put(store, directory, FIRST)
    put(store, directory, SECOND)
    elsewhere = move(directory)
    assert seen(elsewhere) == SECOND
    assert numbers(store, elsewhere) == [2, 1]
    assert faults(store, elsewhere) == {}
    PublishedDirectory(elsewhere, store).rollback()
    assert seen(elsewhere) == FIRST
    assert numbers(store, elsewhere) == [3, 2, 1]


def test_a_copy_whose_links_have_become_files_can_be_published_into(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    elsewhere = Path(shutil.copytree(directory, directory.with_name("elsewhere")))
    assert seen(elsewhere) == FIRST
    put(store, elsewhere, SECOND)
    assert seen(elsewhere) == SECOND
    assert faults(store, elsewhere) == {}


def test_what_a_copy_shows_is_kept_once_the_same_was_published_there(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    elsewhere = copied_with_links(directory)
    put(store, elsewhere, FIRST)
    put(store, directory, SECOND)
    gc.gc(store, keep=1, older_than=0, delete=True)
    assert {name: store.condition(sha256(content)) for name, content in FIRST.items()} == dict.fromkeys(FIRST, "intact")


def test_what_was_published_from_another_store_is_kept_once_the_same_was_published_from_this(
    store: Store, directory: Path, tmp_path: Path
) -> None:
    put(Store(tmp_path / "another"), directory, FIRST)
    put(store, directory, FIRST)
    gc.gc(store, keep=1, older_than=0, delete=True)
    overwrite(directory / NAME)
    put(store, directory, {})
    assert seen(directory) == FIRST


# Links to the store.


def test_links_are_to_the_stores_own_files(store: Store, directory: Path) -> None:
    put(store, directory, FIRST, link=True)
    for name, content in FIRST.items():
        assert store.local is not None
        assert (directory / name).samefile(store.local / "objects" / sha256(content)[:2] / sha256(content))
        assert (directory / name).stat().st_mode & 0o222 == 0
    assert faults(store, directory) == {}


def test_files_in_the_place_of_links_are_the_directorys_own(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    assert {(directory / name).stat().st_nlink for name in FIRST} == {1}


def test_links_to_another_disk_are_refused_in_one_line(store: Store, directory: Path) -> None:
    memory = Path("/dev/shm")  # noqa: S108  (another file system, wherever tests run)
    elsewhere = memory / f"cosyjit-{uuid4().hex}"
    if directory.stat().st_dev == memory.stat().st_dev:
        pytest.skip("all of this machine's files are in memory")
    try:
        message = one_line(StoreError, lambda: put(store, elsewhere, FIRST, link=True))
        assert message == (
            f"{store}: no links into {elsewhere}/.cosyjit/files (Invalid cross-device link); publish without links"
        )
        put(store, elsewhere, FIRST)
        assert seen(elsewhere) == FIRST
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)


# Earlier sets.


def test_nothing_published_is_an_error_that_says_so(store: Store, directory: Path) -> None:
    for call in (
        lambda: PublishedDirectory(directory, store).history(),
        lambda: PublishedDirectory(directory, store).rollback(),
    ):
        message = one_line(PublicationError, call)
        assert message.startswith(f"{directory}: nothing is published here from {store}")
    assert PublishedDirectory(directory, store).live() is None
    assert snapshot(directory) == {"llm.pt": b"weights"}


def versions(store: Store, directory: Path, count: int) -> None:
    """Publish so many sets, number after number."""
    for number in range(1, count + 1):
        put(store, directory, {NAME: b"%d" % number, OTHER: b"other"})


def test_a_rollback_shows_the_set_before_as_a_new_publication(store: Store, directory: Path) -> None:
    put(store, directory, {NAME: b"1"})
    put(store, directory, {NAME: b"2", OTHER: b"new"})
    restored = PublishedDirectory(directory, store).rollback()
    assert (restored.number, restored.restores) == (3, 1)
    assert seen(directory) == {NAME: b"1"}
    assert not os.path.lexists(directory / OTHER)
    assert [(each.number, each.restores) for each in PublishedDirectory(directory, store).history()] == [
        (3, 1),
        (2, None),
        (1, None),
    ]
    assert faults(store, directory) == {}


def test_repeated_rollbacks_walk_back_to_the_first(store: Store, directory: Path) -> None:
    versions(store, directory, 3)
    for content in (b"2", b"1"):
        PublishedDirectory(directory, store).rollback()
        assert seen(directory)[NAME] == content
    as_it_was = snapshot(directory)
    message = one_line(PublicationError, lambda: PublishedDirectory(directory, store).rollback())
    assert message == f"{directory}: there is no publication 0; kept are 1 to 5"
    assert snapshot(directory) == as_it_was


def test_a_rollback_to_a_rollback_restores_what_that_restored(store: Store, directory: Path) -> None:
    versions(store, directory, 3)
    PublishedDirectory(directory, store).rollback(1)
    assert PublishedDirectory(directory, store).rollback(3).restores == 3
    assert seen(directory)[NAME] == b"3"
    assert PublishedDirectory(directory, store).rollback(4).restores == 1
    assert seen(directory)[NAME] == b"1"


def test_a_publication_after_a_rollback_begins_from_what_it_shows(store: Store, directory: Path) -> None:
    put(store, directory, {NAME: b"1"})
    put(store, directory, {NAME: b"2", OTHER: b"new"})
    PublishedDirectory(directory, store).rollback()
    put(store, directory, {"third.zip": b"third"})
    assert seen(directory) == {NAME: b"1", "third.zip": b"third"}
    assert numbers(store, directory) == [4, 3, 2, 1]


READ_SOME: Final = """
import sys
from pathlib import Path
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import Store
opened = set()
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, Path)) and arguments[1] in (None, "r", "rb"):
        opened.add(Path(arguments[0]).name)
sys.addaudithook(watch)
store, directory = Store(sys.argv[1]), Path(sys.argv[2])
if sys.argv[3] == "history":
    PublishedDirectory(directory, store).history(last=3)
else:
    PublishedDirectory(directory, store).rollback()
identities = {path.stem for path in Path(store.root, "publications").iterdir()}
print(len(identities & {Path(name).stem for name in opened}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["history", "rollback"])
def test_no_more_of_a_long_history_is_read_than_is_asked_for(command: str, store: Store, directory: Path) -> None:
    versions(store, directory, 12)
    with start(READ_SOME, store.root, directory, command) as reader:
        out, err = reader.communicate(timeout=600)
    assert err == ""
    assert 0 < int(out) <= 4  # in the store; the directory has its own of the current one


@pytest.mark.parametrize("last", [1, 2, 3, 100])
def test_a_history_ends_after_as_many_as_are_asked_for(last: int, store: Store, directory: Path) -> None:
    versions(store, directory, 3)
    assert [each.number for each in PublishedDirectory(directory, store).history(last)] == [3, 2, 1][:last]


@pytest.mark.parametrize("last", [0, -1])
def test_a_history_of_none_is_refused(last: int, store: Store, directory: Path) -> None:
    versions(store, directory, 1)
    message = one_line(SelectionError, lambda: PublishedDirectory(directory, store).history(last))
    assert message == f"--last {last}: give 1 or more"


@pytest.mark.parametrize("number", [-1, 0, 3, 10**30])
def test_a_rollback_to_what_never_was_is_refused(store: Store, directory: Path, number: int) -> None:
    versions(store, directory, 2)
    as_it_was = snapshot(directory)
    message = one_line(PublicationError, lambda: PublishedDirectory(directory, store).rollback(number))
    assert message == f"{directory}: there is no publication {number}; kept are 1 to 2"
    assert snapshot(directory) == as_it_was


def test_a_rollback_to_what_was_collected_is_refused(store: Store, directory: Path) -> None:
    versions(store, directory, 4)
    gc.gc(store, keep=2, older_than=0, delete=True)
    as_it_was = snapshot(directory)
    message = one_line(PublicationError, lambda: PublishedDirectory(directory, store).rollback(1))
    assert message == f"{directory}: there is no publication 1; kept are 3 to 4"
    assert snapshot(directory) == as_it_was
    PublishedDirectory(directory, store).rollback()
    assert seen(directory)[NAME] == b"3"


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_rollback_to_a_set_whose_object_is_gone_leaves_what_is_shown(store: Store, directory: Path, how: str) -> None:
    put(store, directory, FIRST)
    put(store, directory, SECOND)
    assert store.local is not None
    thing = store.local / "objects" / sha256(FIRST[OTHER])[:2] / sha256(FIRST[OTHER])
    thing.unlink()
    if how == "damaged":
        thing.write_bytes(b"other bytes")
    message = one_line(StoreError, lambda: PublishedDirectory(directory, store).rollback())
    assert f"object {sha256(FIRST[OTHER])} is {how}" in message
    assert seen(directory) == SECOND
    assert numbers(store, directory) == [2, 1]
    assert faults(store, directory) == {}


def test_a_rollback_mends_what_is_damaged(store: Store, directory: Path) -> None:
    versions(store, directory, 2)
    overwrite(directory / OTHER)  # the same file in both sets
    overwrite(directory / MANIFEST)
    PublishedDirectory(directory, store).rollback()
    assert seen(directory) == {NAME: b"1", OTHER: b"other"}
    assert faults(store, directory, again=True) == {}
    assert numbers(store, directory) == [3, 2, 1]


def test_publications_and_rollbacks_need_no_more_than_a_url(directory: Path) -> None:
    store = Store(f"memory://{uuid4().hex}/store")
    put(store, directory, FIRST)
    put(store, directory, SECOND)
    assert seen(directory) == SECOND
    overwrite(directory / NAME)
    assert faults(store, directory) == {NAME: "damaged"}
    put(store, directory, SECOND)
    assert faults(store, directory) == {}
    PublishedDirectory(directory, store).rollback()
    assert seen(directory) == FIRST
    assert [(each.number, each.restores) for each in PublishedDirectory(directory, store).history()] == [
        (3, 1),
        (2, None),
        (1, None),
    ]
    assert one_line(StoreError, lambda: put(store, directory, {NAME: b"linked"}, link=True)).endswith(
        "cannot be linked; publish without links"
    )
    assert seen(directory) == FIRST


# Readers.

READ = """
import hashlib, json, os, sys, threading
directory, allowed = sys.argv[1], json.loads(sys.argv[2])

def read(name):
    try:
        with open(os.path.join(directory, name), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None

def documents():
    content = read("cosyjit.json")
    return content, None if content is None else json.loads(content)["artifacts"]

rounds, whole, faults, stop = 0, 0, [], threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
had_manifest = False
while not stop.is_set():
    before, artifacts = documents()
    digests = {name: hashlib.sha256(read(name) or b"missing").hexdigest() for name in allowed}
    after, _ = documents()
    rounds += 1
    if rounds == 1:
        print("reading", flush=True)
    had_manifest = had_manifest or before is not None
    if had_manifest and after is None:
        faults.append("no manifest")
    faults += [f"{name}: {digest}" for name, digest in digests.items() if digest not in allowed[name]]
    if before == after:
        whole += 1
        wanted = {name: each[0] for name, each in allowed.items()} if artifacts is None else {
            name: artifacts[name]["sha256"] for name in allowed}
        if digests != wanted:
            faults.append(f"mixed: {digests} under {artifacts}")
print(json.dumps([rounds, whole, faults[:5]]))
"""


class Reader:
    """A process that reads a directory over and over, and must never find it half changed.

    Args:
        allowed: the contents that each name may have; all have the first while there is no manifest.
    """

    def __init__(self, directory: Path, allowed: Mapping[str, list[bytes]]) -> None:
        digests = {name: [sha256(content) for content in contents] for name, contents in allowed.items()}
        self._process = start(READ, directory, json.dumps(digests))
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "reading\n"

    def check(self) -> None:
        out, err = self._process.communicate("", timeout=600)
        assert err == ""
        rounds, whole, found = json.loads(out)
        assert found == []
        assert 0 < whole <= rounds


@pytest.mark.slow
def test_a_reader_finds_one_set_under_one_manifest_while_others_publish(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    reader = Reader(directory, {name: [FIRST[name], SECOND[name]] for name in FIRST})
    for number in range(12):
        put(store, directory, (SECOND, FIRST)[number % 2])
    PublishedDirectory(directory, store).rollback()
    reader.check()


def test_a_reader_finds_old_files_until_it_finds_the_set_that_replaces_them(store: Store, tmp_path: Path) -> None:
    for number in range(6):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "theirs").write_bytes(b"theirs")
        for name in list(FIRST)[1:]:
            (directory / name).write_bytes(b"theirs")
        (directory / NAME).symlink_to("theirs")
        reader = Reader(directory, {name: [b"theirs", content] for name, content in FIRST.items()})
        put(store, directory, FIRST)
        reader.check()


@pytest.mark.slow
def test_a_reader_finds_all_names_while_a_file_in_the_place_of_one_is_replaced(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    stop = threading.Event()
    missing: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            missing.update(name for name in (*FIRST, MANIFEST) if not (directory / name).exists())

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for _ in range(10):
            replace(directory / NAME)
            put(store, directory, FIRST)
        stop.set()
        reading.result(60)
    assert missing == set()


PUBLISH = """
import sys
from pathlib import Path
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import Store
from tests.support.stores import put
store, directory, names = Store(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:]
input()
for number in range(4):
    with store.in_use():
        content = f"{sys.argv[3]} {number}".encode()
        artifacts = {name: put(store, content + name.encode()) for name in names}
        PublishedDirectory(directory, store).publish(artifacts, "/model")
"""


@pytest.mark.slow
def test_publications_at_the_same_time_leave_one_whole_set_and_show_no_other(store: Store, directory: Path) -> None:
    contents = {
        name: [b"%d %d" % (who, number) + name.encode() for who in range(4) for number in range(4)] for name in FIRST
    }
    put(store, directory, {name: each[0] for name, each in contents.items()})
    publishers = [start(PUBLISH, store, directory, who, *FIRST) for who in range(4)]
    reader = Reader(directory, contents)
    for publisher in publishers:
        assert publisher.stdin is not None
        publisher.stdin.write("\n")
        publisher.stdin.flush()
    for publisher in publishers:
        ran = processes.finished(publisher)
        assert (ran.status, ran.err) == (0, "")
    reader.check()
    last = seen(directory)
    assert len({content.removesuffix(name.encode()) for name, content in last.items()}) == 1
    assert faults(store, directory) == {}
    assert numbers(store, directory) == [*range(numbers(store, directory)[0], 0, -1)]
    assert len(numbers(store, directory)) >= 16


# What is gone, and what was never shown.


def test_a_directory_that_was_made_anew_is_not_given_the_names_of_the_old_one(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    shutil.rmtree(directory)
    put(store, directory, {NAME: SECOND[NAME]})
    assert seen(directory) == {NAME: SECOND[NAME]}
    assert numbers(store, directory) == [2, 1]


def test_a_name_that_someone_took_away_is_not_given_back_by_publishing_others(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    (directory / OTHER).unlink()
    put(store, directory, {NAME: SECOND[NAME]})
    assert seen(directory) == {NAME: SECOND[NAME], "flow.encoder.fp16.zip": FIRST["flow.encoder.fp16.zip"]}


def test_the_history_outlives_a_publication_that_was_cut_off_before_it_was_shown(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(store, directory, 3)
    (directory / NAME).unlink()
    (directory / NAME).write_bytes(b"another exporter's")

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Layout, "clean", cut_off)  # after the switch to what stood here before, and to the set itself
        patch.setattr(files, "replace_symlink", _links_until(directory / NAME, files.replace_symlink))
        with pytest.raises(KeyboardInterrupt):
            put(store, directory, SECOND)
    assert numbers(store, directory) == [3, 2, 1]
    put(store, directory, SECOND)
    assert (seen(directory), numbers(store, directory)) == (SECOND, [4, 3, 2, 1])


def _links_until(path: Path, link: Callable[[str, Path], None]) -> Callable[[str, Path], None]:
    """As `replace_symlink`, until this path is to be one: an interrupt right there, which no signal surely hits."""

    def until(target: str, made: Path) -> None:
        if made == path:
            raise KeyboardInterrupt
        link(target, made)

    return until


def test_links_into_the_store_last_only_while_they_are_asked_for(store: Store, directory: Path) -> None:
    assert store.local is not None
    put(store, directory, FIRST, link=True)
    kept = store.local / "objects" / sha256(FIRST[NAME])[:2] / sha256(FIRST[NAME])
    assert (directory / NAME).samefile(kept)
    first = PublishedDirectory(directory, store).require_live()
    assert put(store, directory, FIRST) == first
    assert not (directory / NAME).samefile(kept)
    assert seen(directory) == FIRST


def test_a_copy_of_a_directory_published_again_is_said_to_be_of_its_own_source(store: Store, directory: Path) -> None:
    put(store, directory, FIRST)
    artifacts = PublishedDirectory(directory, store).require_live().artifacts
    with store.in_use():
        PublishedDirectory(directory, store).publish(artifacts, "/elsewhere")
    assert (PublishedDirectory(directory, store).require_live().source, numbers(store, directory)) == (
        "/elsewhere",
        [2, 1],
    )


def test_what_someone_puts_in_the_place_of_a_name_that_is_not_published_anew_stays(
    store: Store, tmp_path: Path
) -> None:
    """It may be another model's, that came to stand at the same path."""
    directory = tmp_path / "model"
    stores.show(store, directory, b"one", b"two")
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "1.zip").write_bytes(b"another model's")
    after = PublishedDirectory(directory, store).publish({"0.zip": stores.put(store, b"new")}, "/models/a")
    assert processes.shown(directory) == {"0.zip": b"new", "1.zip": b"another model's"}
    assert list(after.artifacts) == ["0.zip"]


def test_nothing_is_made_where_there_is_nothing_to_discard(tmp_path: Path) -> None:
    PublishedDirectory(tmp_path / "none").discard_staged()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_sets_keeps_what_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / ".cosyjit").mkdir()
    (tmp_path / ".cosyjit" / "theirs").write_bytes(b"theirs")
    PublishedDirectory(tmp_path).discard_staged()
    assert (tmp_path / ".cosyjit" / "theirs").read_bytes() == b"theirs"


@pytest.mark.parametrize("number", [2**63, 10**30])
def test_a_number_that_is_larger_than_any_is_one(number: int, store: Store, tmp_path: Path) -> None:
    stores.show(store, tmp_path / "model", b"one")
    assert len(PublishedDirectory(tmp_path / "model", store).history(number)) == 1
    assert gc.gc(store, keep=number, older_than=0) == []
