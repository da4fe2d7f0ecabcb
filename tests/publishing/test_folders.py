"""Folders among what a directory shows: swapped as a whole, looked after as files are, and never put over others'."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from cosyjit.documents import now
from cosyjit.errors import OutputError, RecordError, StoreError
from cosyjit.operations import gc
from cosyjit.operations.verify import verify_directory, verify_store
from cosyjit.provenance import record
from cosyjit.publishing import layout
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.layout import Layout
from cosyjit.publishing.publication import Publication, Published, parse
from cosyjit.store.store import Store, object_name
from tests.support.files import sha256
from tests.support.processes import snapshot, wait_for
from tests.support.stores import age, exporting, object_path, put, unique_url

OLD: Final = {"config.json": b"old config", "model.safetensors": b"old model", "generation_config.json": b"same"}
NEW: Final = {"config.json": b"new config", "model.safetensors": b"new model", "generation_config.json": b"same"}
THEIRS: Final = {"config.json": b"their config", "model.safetensors": b"their model", "extra.json": b"theirs"}


def show(
    store: Store, directory: Path, contents: Mapping[str, bytes] | None = OLD, *, replace: bool = False, **zips: bytes
) -> Publication:
    """Publish a folder and zips of one letter; or zips alone."""
    with store.in_use():
        artifacts = {f"{name}.zip": put(store, content) for name, content in zips.items()}
        if contents is not None:
            artifacts["vllm"] = put(store, contents)
        return PublishedDirectory(directory, store).publish(artifacts, "/models/a", replace=replace)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put_theirs(directory: Path) -> Path:
    """What another exporter has written under the folder's name."""
    folder = directory / "vllm"
    folder.mkdir()
    for name, content in THEIRS.items():
        (folder / name).write_bytes(content)
    return folder


def conditions(store: Store, directory: Path) -> dict[str, str]:
    return {each.name: each.condition for each in PublishedDirectory(directory, store).check()[1]}


# What is shown.


def test_a_folder_is_a_link_through_the_one_that_is_switched(store: Store, directory: Path) -> None:
    published = show(store, directory, a=b"zip")
    assert (directory / "vllm").readlink() == Path(".cosyjit/current/vllm")
    assert read(directory / "vllm") == OLD
    assert (directory / "a.zip").read_bytes() == b"zip"
    for name, content in OLD.items():
        assert (directory / "vllm" / name).readlink() == Path("../../../files", sha256(content))
    assert parse((directory / "cosyjit.json").read_bytes(), "") == published


def test_what_a_folder_is_known_by_is_the_digest_of_its_list_of_digests(store: Store, directory: Path) -> None:
    lines = "".join(f"{hashlib.sha256(OLD[name]).hexdigest()}  {name}\n" for name in sorted(OLD))
    assert show(store, directory).artifacts["vllm"].sha256 == sha256(lines.encode())


def test_a_publication_with_a_folder_comes_back_whole(store: Store, directory: Path) -> None:
    published = show(store, directory, a=b"zip")
    found = parse(published.content, "here")
    assert found == published
    assert found.artifacts["vllm"].files == {name: sha256(content) for name, content in OLD.items()}


@pytest.mark.parametrize("name", ["../config.json", "a/b", ".hidden", "", "-rf", "a\n", "vllm/", "/etc/passwd"])
def test_a_file_of_a_folder_whose_name_leads_elsewhere_is_refused(name: str, store: Store) -> None:
    files = {name: "1" * 64}
    digest = hashlib.sha256(f"{'1' * 64}  {name}\n".encode()).hexdigest()
    forged = Publication(1, now(), "/models/a", {"vllm": Published(digest, 1, "2" * 32, files)})
    with pytest.raises(RecordError, match=r"here: is damaged \(ValueError: .* instead of "):
        parse(forged.content, "here")
    made = record.load(store, put(store, OLD).fingerprint)
    assert made is not None
    key = made.fingerprint.key
    made = record.Record(**{**vars(made), "sha256": digest, "files": files})
    record.save(store, made)
    with pytest.raises(RecordError, match="is damaged"):
        record.load(store, key)


@pytest.mark.parametrize("name", ["vllm.zip", "VLLM", "vllm.1", "../vllm", ".cosyjit", ""])
def test_a_folder_of_another_form_of_name_is_refused(name: str, store: Store) -> None:
    forged = Publication(1, now(), "/models/a", {name: put(store, OLD)})
    with pytest.raises(RecordError, match="instead of"):
        parse(forged.content, "here")


def test_a_folder_whose_digest_is_not_that_of_its_files_is_refused(store: Store) -> None:
    made = put(store, OLD)
    forged = Publication(1, now(), "/models/a", {"vllm": made._replace(sha256="0" * 64)})
    with pytest.raises(RecordError, match="the digest of a folder is not that of its files"):
        parse(forged.content, "here")


def test_a_reader_who_has_opened_a_folder_sees_one_set_of_files(store: Store, directory: Path) -> None:
    show(store, directory)
    seen: set[tuple[bytes, bytes]] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            folder = os.open(directory / "vllm", os.O_RDONLY | os.O_DIRECTORY)
            try:
                with os.fdopen(os.open("config.json", os.O_RDONLY, dir_fd=folder), "rb") as config:
                    first = config.read()
                with os.fdopen(os.open("model.safetensors", os.O_RDONLY, dir_fd=folder), "rb") as model:
                    seen.add((first, model.read()))
            finally:
                os.close(folder)

    reader = threading.Thread(target=look)
    reader.start()
    for contents in (NEW, OLD, NEW, OLD):
        show(store, directory, contents)
    done.set()
    reader.join()
    assert seen <= {(each["config.json"], each["model.safetensors"]) for each in (OLD, NEW)}
    assert len(seen) == 2


def test_a_folder_stays_where_other_names_are_exported(store: Store, directory: Path) -> None:
    show(store, directory, a=b"zip")
    show(store, directory, None, a=b"other zip")
    assert (read(directory / "vllm"), (directory / "a.zip").read_bytes()) == (OLD, b"other zip")


def test_a_folder_that_was_taken_away_is_not_wanted_back(store: Store, directory: Path) -> None:
    show(store, directory, a=b"zip")
    (directory / "vllm").unlink()
    assert set(show(store, directory, None, a=b"other zip").artifacts) == {"a.zip"}
    assert not (directory / "vllm").exists()


def test_going_back_shows_and_takes_away_a_folder(store: Store, directory: Path) -> None:
    show(store, directory, None, a=b"zip")
    show(store, directory)
    PublishedDirectory(directory, store).rollback(1)
    assert not os.path.lexists(directory / "vllm")
    assert (directory / "a.zip").read_bytes() == b"zip"
    show(store, directory, NEW)
    PublishedDirectory(directory, store).rollback(2)
    assert read(directory / "vllm") == OLD
    assert set(conditions(store, directory).values()) == {"intact"}


def test_links_into_the_store_may_be_shown_in_a_folder(store: Store, directory: Path) -> None:
    artifact = put(store, OLD)
    with store.in_use():
        PublishedDirectory(directory, store).publish({"vllm": artifact}, "/models/a", link=True)
        for name, content in OLD.items():
            assert (directory / "vllm" / name).samefile(object_path(store, sha256(content)))
        assert PublishedDirectory(directory, store).publish({"vllm": artifact}, "/models/a").number == 1
    for name, content in OLD.items():
        assert not (directory / "vllm" / name).samefile(object_path(store, sha256(content)))
    assert read(directory / "vllm") == OLD


# What is damaged.


def _spoil(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.write(b"ALIEN")


def _replace(folder: Path) -> None:
    (folder / "other").write_bytes(b"ALIEN")
    (folder / "other").replace(folder / "model.safetensors")


def _take(folder: Path) -> None:
    (folder / "config.json").unlink()


def _add(folder: Path) -> None:
    (folder / "model-00001.safetensors").write_bytes(b"ALIEN")


def _add_folder(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "file").write_bytes(b"ALIEN")


def _add_link(folder: Path) -> None:
    (folder / "more").symlink_to("/")


def _lead_elsewhere(folder: Path) -> None:
    folder = folder.resolve()
    shutil.copytree(folder, folder.with_name("copy"))
    _spoil(folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.symlink_to("copy")


@pytest.mark.parametrize("damage", [_spoil, _replace, _take, _add, _add_folder, _add_link, _lead_elsewhere])
def test_what_is_damaged_of_a_folder_is_seen_and_mended(
    damage: Callable[[Path], None], store: Store, directory: Path
) -> None:
    published = show(store, directory, a=b"zip")
    damage(directory / "vllm")
    assert conditions(store, directory) == {"a.zip": "intact", "vllm": "damaged", "cosyjit.json": "intact"}
    assert verify_directory(directory, store=store) == [(str(directory / "vllm"), "damaged")]
    assert show(store, directory, a=b"zip") == published
    assert read(directory / "vllm") == OLD
    assert set(conditions(store, directory).values()) == {"intact"}
    assert not (directory / "vllm").resolve().is_symlink()


def test_a_folder_whose_files_are_all_gone_is_missing(store: Store, directory: Path) -> None:
    published = show(store, directory)
    shutil.rmtree((directory / "vllm").resolve())
    assert conditions(store, directory)["vllm"] == "missing"
    assert show(store, directory) == published
    assert read(directory / "vllm") == OLD


@pytest.mark.parametrize("name", OLD)
def test_a_lack_of_any_file_in_the_store_keeps_a_folder_from_being_shown(
    name: str, store: Store, directory: Path
) -> None:
    show(store, directory, NEW)
    before = snapshot(directory)
    artifact = put(store, OLD)
    lost = object_path(store, sha256(OLD[name]))
    lost.unlink()
    (directory / ".cosyjit" / "files" / lost.name).unlink(missing_ok=True)  # which may be one of both folders
    with store.in_use(), pytest.raises(StoreError, match=f"object {lost.name} is missing; export its checkpoint again"):
        PublishedDirectory(directory, store).publish({"vllm": artifact}, "/models/a")
    PublishedDirectory(directory, store).discard_staged()
    before.pop(f".cosyjit/files/{lost.name}", None)
    assert snapshot(directory) == before


@pytest.mark.parametrize("name", OLD)
def test_a_folder_of_which_the_store_has_lost_a_file_since_it_was_brought_is_not_shown(
    name: str, directory: Path
) -> None:
    store = Store(unique_url())
    artifact = put(store, OLD)
    PublishedDirectory(directory, store).stage(artifact)
    lost = object_name(sha256(OLD[name]))
    store.remove(lost)
    with store.in_use(), pytest.raises(StoreError, match=f"{lost}: is missing; export its checkpoint again"):
        PublishedDirectory(directory, store).publish({"vllm": artifact}, "/models/a")
    assert not os.path.lexists(directory / "vllm")


def test_an_audit_of_a_store_names_each_file_that_is_missing(store: Store, directory: Path) -> None:
    published = show(store, directory)
    digest = sha256(OLD["config.json"])
    object_path(store, digest).unlink()
    key = published.artifacts["vllm"].fingerprint
    assert verify_store(store) == [
        (record.name_of(key), f"object {digest} missing"),
        (f"publications/{published.identity}.json", f"object {digest} missing"),
    ]


# What is collected.


def test_a_collection_keeps_all_files_of_a_folder_that_is_in_reach(store: Store, directory: Path) -> None:
    show(store, directory, OLD)
    show(store, directory, NEW)
    age(store, 1000)
    assert not {entry.name for entry in gc.gc(store, older_than=0, delete=True)} & {
        object_name(sha256(each)) for each in {*OLD.values(), *NEW.values()}
    }
    PublishedDirectory(directory, store).rollback()
    assert read(directory / "vllm") == OLD


def test_a_collection_takes_all_files_of_one_that_is_not_but_for_those_that_others_have(
    store: Store, directory: Path
) -> None:
    show(store, directory, OLD)
    show(store, directory, NEW)
    gc.gc(store, keep=1, older_than=0, delete=True)
    assert store.objects() == {sha256(content) for content in NEW.values()}
    assert verify_store(store) == []


def test_a_collection_keeps_the_files_of_a_folder_that_is_shown_and_has_lost_its_record(
    store: Store, directory: Path
) -> None:
    published = show(store, directory)
    store.remove(record.name_of(published.artifacts["vllm"].fingerprint))
    gc.gc(store, older_than=0, delete=True)
    assert store.objects() == {sha256(content) for content in OLD.values()}


def test_a_collection_keeps_the_files_of_a_folder_that_has_a_record(store: Store) -> None:
    put(store, OLD)
    age(store, 1000, *(object_name(sha256(each)) for each in OLD.values()))
    assert gc.gc(store, older_than=500, delete=True) == []
    assert store.objects() == {sha256(content) for content in OLD.values()}


# What others have put there.


def _directory(path: Path) -> None:
    put_theirs(path.parent)


def _link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _file(path: Path) -> None:
    path.write_bytes(b"their notes")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.fixture(params=[False, True], ids=["never published", "published before"])
def directory_to_occupy(request: pytest.FixtureRequest, store: Store, directory: Path) -> Path:
    if request.param:
        show(store, directory, a=b"zip")
        (directory / "vllm").unlink()
    return directory


@pytest.fixture(params=[_directory, _link, _dangling, _file, _pipe])
def occupied(request: pytest.FixtureRequest, directory_to_occupy: Path) -> Path:
    """A directory in which others have put something where the folder is to be shown."""
    request.param(directory_to_occupy / "vllm")
    return directory_to_occupy


def test_what_others_have_put_there_is_not_overwritten(occupied: Path, store: Store) -> None:
    before = directory_of(occupied)
    with pytest.raises(OutputError) as error:
        show(store, occupied, NEW, a=b"new zip")
    assert str(error.value).startswith(f"{occupied / 'vllm'}: was not written by cosyjit; ")
    assert "--replace" in str(error.value)
    assert directory_of(occupied) == before
    with pytest.raises(OutputError, match="--replace"), exporting(PublishedDirectory(occupied, store), names=["vllm/"]):
        raise AssertionError("the work is begun")


def directory_of(directory: Path) -> list[tuple[str, int, int]]:
    """All that is in a directory but for what is cosyjit's own: names, inodes and types."""
    found = [path for path in directory.rglob("*") if ".cosyjit" not in path.relative_to(directory).parts]
    return sorted((str(path), path.lstat().st_ino, path.lstat().st_mode) for path in found)


@pytest.mark.slow
def test_what_others_have_put_there_is_kept_aside_if_it_is_asked_for(occupied: Path, store: Store) -> None:
    before = (occupied / "vllm").lstat()
    show(store, occupied, NEW, replace=True, a=b"new zip")
    assert read(occupied / "vllm") == NEW
    aside = (occupied / "vllm.1").lstat()
    assert (aside.st_ino, aside.st_mode) == (before.st_ino, before.st_mode)
    assert set(conditions(store, occupied).values()) == {"intact"}


def test_a_second_one_is_put_beside_the_first(store: Store, directory: Path) -> None:
    put_theirs(directory)
    show(store, directory, OLD, replace=True)
    (directory / "vllm").unlink()
    put_theirs(directory)
    (directory / "vllm" / "config.json").write_bytes(b"their second")
    (directory / "vllm.3").touch()
    show(store, directory, NEW, replace=True)
    assert read(directory / "vllm.1") == THEIRS
    assert read(directory / "vllm.2") == {**THEIRS, "config.json": b"their second"}
    assert read(directory / "vllm") == NEW
    show(store, directory, OLD, replace=True)  # of ours nothing is kept aside
    assert sorted(path.name for path in directory.glob("vllm*")) == ["vllm", "vllm.1", "vllm.2", "vllm.3"]


def test_a_folder_and_zips_of_others_are_taken_over_at_once(store: Store, directory: Path) -> None:
    put_theirs(directory)
    (directory / "a.zip").write_bytes(b"their zip")
    show(store, directory, NEW, replace=True, a=b"zip")
    assert (read(directory / "vllm"), (directory / "a.zip").read_bytes()) == (NEW, b"zip")
    assert read(directory / "vllm.1") == THEIRS


def test_a_folder_that_others_put_in_place_of_ours_is_theirs_where_it_is_not_exported(
    store: Store, directory: Path
) -> None:
    show(store, directory, OLD, a=b"zip")
    (directory / "vllm").unlink()
    put_theirs(directory)
    assert set(show(store, directory, None, a=b"other zip").artifacts) == {"a.zip"}
    assert read(directory / "vllm") == THEIRS
    assert set(conditions(store, directory).values()) == {"intact"}


def test_a_folder_is_there_at_any_time_while_it_is_replaced(store: Store, directory: Path) -> None:
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        last = False
        while not last:
            last = done.is_set()  # on a busy machine nothing may have been looked at since
            seen.add((directory / "vllm" / "config.json").read_bytes())
            seen.add((directory / "a.zip").read_bytes())
        seen.add(b"done")

    put_theirs(directory)
    (directory / "a.zip").write_bytes(b"their zip")
    reader = threading.Thread(target=look)
    reader.start()
    wait_for(lambda: len(seen) == 2)
    show(store, directory, NEW, replace=True, a=b"zip")
    done.set()
    reader.join()
    assert seen == {b"their config", b"new config", b"their zip", b"zip", b"done"}


# Who is killed amid it.


def test_an_exchange_that_was_killed_leaves_nothing(store: Store, directory: Path) -> None:
    show(store, directory, OLD)
    (directory / "vllm").unlink()
    put_theirs(directory)
    (directory / "vllm.1").symlink_to(".cosyjit/current/vllm")
    (directory / "vllm.2").symlink_to("elsewhere/vllm")
    show(store, directory, NEW, replace=True)
    assert read(directory / "vllm") == NEW
    assert read(directory / "vllm.1") == THEIRS
    (directory / "vllm.4").symlink_to(".cosyjit/current/vllm")
    Layout(directory).clean()
    assert sorted(path.name for path in directory.glob("vllm.*")) == ["vllm.1", "vllm.2"]


def test_what_was_being_linked_in_a_folder_when_a_process_was_killed_is_mended(store: Store, directory: Path) -> None:
    published = show(store, directory)
    (directory / "vllm" / f".{'0' * 32}.tmp").symlink_to("../../../files/x")
    assert show(store, directory) == published
    assert read(directory / "vllm") == OLD


def test_a_folder_is_shown_further_while_a_zip_of_others_is_taken_over(store: Store, directory: Path) -> None:
    show(store, directory, OLD, a=b"zip")
    (directory / "a.zip").unlink()
    (directory / "a.zip").write_bytes(b"their zip")
    folder = (directory / "vllm").resolve()
    os.mkfifo(folder / "pipe")
    (folder / "deep" / "deeper").mkdir(parents=True)
    seen: list[dict[str, bytes]] = []
    lead_to = Layout._lead_to

    def watch(self: Layout, name: str) -> None:
        lead_to(self, name)
        seen.append({each: (self.path / "vllm" / each).read_bytes() for each in OLD})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layout, "_lead_to", watch)
        show(store, directory, None, a=b"new zip")
    assert seen == [OLD, OLD]
    assert read(directory / "vllm") == OLD
    assert (directory / "a.zip").read_bytes() == b"new zip"


@pytest.mark.parametrize(
    "library", [SimpleNamespace(renameat2=lambda *_: -1), SimpleNamespace()], ids=["refuses", "has no call"]
)
def test_where_the_system_cannot_exchange_names_a_folder_is_put_aside_all_the_same(
    library: object, store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_LIBC", library)
    put_theirs(directory)
    show(store, directory, NEW, replace=True)
    assert (read(directory / "vllm"), read(directory / "vllm.1")) == (NEW, THEIRS)
    assert sorted(path.name for path in directory.glob("vllm*")) == ["vllm", "vllm.1"]


def test_a_store_in_a_bucket_has_folders_too(directory: Path) -> None:
    store = Store(unique_url())
    for contents in (OLD, NEW):
        show(store, directory, contents)
    PublishedDirectory(directory, store).rollback()
    assert read(directory / "vllm") == OLD
    assert verify_store(store) == verify_directory(directory, store=store) == []
    assert store.objects() == {sha256(content) for content in {*OLD.values(), *NEW.values()}}
    store.remove(object_name(sha256(OLD["config.json"])))
    assert {each.problem for each in verify_store(store)} == {f"object {sha256(OLD['config.json'])} missing"}
