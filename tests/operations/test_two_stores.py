"""One directory that is published into from two stores: each store has what it records."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from cosyjit.errors import OutputError, SignatureError, StoreError
from cosyjit.fs import files
from cosyjit.operations import gc
from cosyjit.operations.verify import verify_directory, verify_store
from cosyjit.provenance import record
from cosyjit.publishing import layout, publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.layout import Layout
from cosyjit.publishing.publication import Publication
from cosyjit.store.store import Store, object_name
from tests.support.files import sha256
from tests.support.keys import pair
from tests.support.processes import Run, shown, snapshot, start
from tests.support.stores import files_of, object_path, put, unique_url

FP32: Final = "llm.llm.fp32.zip"
INT8: Final = "llm.llm.int8.zip"
OLD: Final = {"config.json": b"old config", "model.safetensors": b"old model"}
NEW: Final = {"config.json": b"new config", "model.safetensors": b"new model"}


def show(store: Store, directory: Path, zips: Mapping[str, bytes], folder: Mapping[str, bytes] = {}) -> Publication:
    with store.in_use():
        artifacts = {name: put(store, content) for name, content in zips.items()}
        if folder:
            artifacts["vllm"] = put(store, folder)
        return PublishedDirectory(directory, store).publish(artifacts, "/models/a")


def test_a_second_store_has_what_the_directory_shows_from_the_first(tiny: Path, tmp_path: Path, run: Run) -> None:
    out, one, two = (tmp_path / name for name in ("out", "one", "two"))
    shared = ["export", tiny, "--component", "llm.llm", "--publish", out]
    assert run(*shared, "--precision", "fp32", "--store", one).status == 0
    assert run(*shared, "--precision", "int8", "--store", two).status == 0
    assert run("verify", two) == (0, "Nothing is wrong\n", "")
    assert run("status", out, "--store", two).status == 0
    before = shown(out)
    assert set(before) == {FP32, INT8}
    (out / FP32).write_bytes(b"another exporter's")
    shutil.rmtree(one)
    assert run(*shared, "--precision", "int8", "--store", two).status == 0
    assert shown(out) == before
    # Of a zip without a record there is what it says of itself.
    assert "of no record in this store" in run("lineage", out / FP32, "--store", two).out


def test_what_is_kept_from_another_store_is_collected_restored_and_gone_back_to(
    first: Store, second: Store, directory: Path
) -> None:
    show(first, directory, {FP32: b"1"}, OLD)
    show(second, directory, {INT8: b"2"})
    assert second.objects() == {sha256(each) for each in (b"1", b"2", *OLD.values())}
    assert verify_store(second) == []
    show(second, directory, {FP32: b"3"}, NEW)
    gc.gc(second, older_than=0, delete=True)
    assert verify_store(second) == []
    PublishedDirectory(directory, second).rollback()
    assert shown(directory) == {FP32: b"1", INT8: b"2"}
    assert shown(directory / "vllm") == OLD
    gc.gc(second, keep=1, older_than=0, delete=True)
    assert verify_store(second) == verify_directory(directory, store=second) == []


def test_a_store_that_has_lost_what_a_directory_shows_has_it_again_after_an_export(
    first: Store, second: Store, directory: Path
) -> None:
    show(first, directory, {FP32: b"1"})
    published = show(second, directory, {INT8: b"2"})
    second.remove(object_name(sha256(b"1")))
    assert [each.problem for each in verify_store(second)] == [f"object {sha256(b'1')} missing"]
    assert show(second, directory, {INT8: b"2"}) == published
    assert verify_store(second) == []


def test_a_rollback_brings_back_into_the_store_what_the_directory_still_shows(
    first: Store, second: Store, directory: Path
) -> None:
    show(first, directory, {FP32: b"1"})
    show(second, directory, {INT8: b"2"})
    show(second, directory, {INT8: b"3"})
    second.remove(object_name(sha256(b"1")))
    PublishedDirectory(directory, second).rollback()
    assert shown(directory) == {FP32: b"1", INT8: b"2"}
    assert verify_store(second) == []


@pytest.mark.parametrize("lose", [lambda path: path.write_bytes(b"other"), lambda path: path.resolve().unlink()])
def test_what_neither_the_store_nor_the_directory_has_is_named_with_its_component(
    lose: Callable[[Path], object], first: Store, second: Store, directory: Path
) -> None:
    show(first, directory, {FP32: b"1"})
    lose(directory / FP32)
    before = snapshot(directory)
    message = (
        f"{directory / FP32}: is not as it was published, and {second} has no object {sha256(b'1')}; export it again "
        f"with this store, --component llm.llm --precision fp32, or remove {directory / FP32}"
    )
    for call in (
        lambda: show(second, directory, {INT8: b"2"}),
        lambda: PublishedDirectory(directory, second).check_kept([INT8]),
    ):
        with pytest.raises(StoreError) as error:
            call()
        assert str(error.value) == message
    assert snapshot(directory) == before
    assert not any(second.entries("publications"))
    PublishedDirectory(directory, second).check_kept([FP32])
    (directory / FP32).unlink()
    assert set(show(second, directory, {INT8: b"2"}).artifacts) == {INT8}


def test_a_folder_that_neither_has_is_named_with_its_component(first: Store, second: Store, directory: Path) -> None:
    show(first, directory, {}, OLD)
    (directory / "vllm" / "config.json").write_bytes(b"other")
    with pytest.raises(StoreError, match=r"/vllm/config\.json: .* --component llm\.vllm, or remove .*/vllm$"):
        show(second, directory, {INT8: b"2"})


def test_a_file_that_changes_while_it_is_copied_into_a_store_is_no_object(
    first: Store, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Store(tmp_path / "second")
    show(first, directory, {FP32: b"1"})
    staging = second.staging

    def rewritten() -> object:
        (directory / FP32).write_bytes(b"2")
        return staging()

    monkeypatch.setattr(second, "staging", rewritten)
    published = PublishedDirectory(directory, second)
    live = published.require_live()
    with pytest.raises(StoreError, match="was changed while it was copied into"):
        published._copy_into_store(live.artifacts)
    assert second.objects() == set()


def test_what_is_kept_from_another_store_has_no_signature(first: Store, tmp_path: Path, directory: Path) -> None:
    keys = pair(tmp_path)
    show(first, directory, {FP32: b"1"})
    both = Store(tmp_path / "second", sign=keys.private, require=keys.public)
    with pytest.raises(SignatureError, match=f"is missing, and {keys.public} requires a signature for {FP32}"):
        show(both, directory, {INT8: b"2"})
    assert set(shown(directory)) == {FP32}


def test_what_a_bucket_has_a_record_of_and_loses_it_is_still_gone_back_to(directory: Path) -> None:
    store = Store(unique_url())
    published = show(store, directory, {FP32: b"1"})
    show(store, directory, {FP32: b"2"})
    store.remove(record.name_of(published.artifacts[FP32].fingerprint))
    PublishedDirectory(directory, store).rollback()
    assert shown(directory) == {FP32: b"1"}


# Copies of a directory, links and all.


def copied(directory: Path, how: str) -> Path:
    """A copy in which every link has become a file or a folder."""
    copy = directory.with_name("copy")
    if how == "cp -rL":
        subprocess.run(["cp", "-rL", directory, copy], check=True)  # noqa: S607
    else:  # a download, or a list of what is wanted
        shutil.copytree(directory, copy, ignore=shutil.ignore_patterns(".cosyjit"))
    return copy


@pytest.fixture(params=["cp -rL", "without .cosyjit"])
def copy(request: pytest.FixtureRequest, first: Store, directory: Path) -> Path:
    show(first, directory, {FP32: b"1"}, OLD)
    show(first, directory, {INT8: b"2"})
    made = copied(directory, request.param)
    assert not any(path.is_symlink() for path in made.rglob("*"))
    return made


def is_as_published(directory: Path, *names: str) -> bool:
    """Whether names are links into a set, and nothing is left beside them."""
    state = directory / ".cosyjit"
    links = all((directory / name).readlink() == Path(".cosyjit/current", name) for name in names)
    found = {path.name for path in directory.iterdir()} == {".cosyjit", "cosyjit.json", *names}
    return links and found and len(list((state / "sets").iterdir())) == 1 and (state / "current").is_symlink()


def test_a_copy_shows_what_it_did_and_knows_its_history(copy: Path, first: Store) -> None:
    assert [each.number for each in PublishedDirectory(copy, first).history()] == [2, 1]
    assert {each.condition for each in PublishedDirectory(copy, first).check()[1]} == {"intact"}
    PublishedDirectory(copy, first).rollback()
    assert shown(copy) == {FP32: b"1"}
    assert shown(copy / "vllm") == OLD
    assert is_as_published(copy, FP32, "vllm")


def test_going_back_takes_away_from_a_copy_what_was_not_there_then(first: Store, directory: Path) -> None:
    show(first, directory, {FP32: b"1"})
    show(first, directory, {INT8: b"2"}, OLD)
    copy = copied(directory, "cp -rL")
    (copy / "mine.zip").write_bytes(b"mine")
    PublishedDirectory(copy, first).rollback()
    assert shown(copy) == {FP32: b"1", "mine.zip": b"mine"}
    (copy / "mine.zip").unlink()
    assert is_as_published(copy, FP32)


def test_a_copy_is_taken_over_by_an_export_from_any_store(copy: Path, second: Store) -> None:
    show(second, copy, {FP32: b"3"}, NEW)
    assert shown(copy) == {FP32: b"3", INT8: b"2"}
    assert shown(copy / "vllm") == NEW
    assert is_as_published(copy, FP32, INT8, "vllm")
    assert verify_store(second) == []


def test_a_copy_that_is_exported_as_it_is_becomes_a_set_again(copy: Path, first: Store) -> None:
    before = PublishedDirectory(copy, first).require_live()
    assert show(first, copy, {INT8: b"2"}) == before
    assert shown(copy / "vllm") == OLD
    assert is_as_published(copy, FP32, INT8, "vllm")
    assert [each.number for each in PublishedDirectory(copy, first).history()] == [2, 1]


def test_the_folder_of_a_copy_stays_where_other_names_are_exported(copy: Path, second: Store) -> None:
    assert set(show(second, copy, {INT8: b"4"}).artifacts) == {FP32, INT8, "vllm"}
    assert shown(copy / "vllm") == OLD
    assert is_as_published(copy, FP32, INT8, "vllm")


def test_the_folder_alone_is_known_by_what_is_going_to_be_published(first: Store, directory: Path) -> None:
    """As of the same model on another machine, where nobody knows of any publication."""
    (directory / "vllm").mkdir()
    for name, content in OLD.items():
        (directory / "vllm" / name).write_bytes(content)
    show(first, directory, {}, OLD)
    assert is_as_published(directory, "vllm")


def test_the_folder_alone_is_known_by_the_history_of_the_store(first: Store, directory: Path) -> None:
    show(first, directory, {}, OLD)
    show(first, directory, {}, NEW)
    for name in ("cosyjit.json", "vllm"):
        (directory / name).unlink()
    shutil.rmtree(directory / ".cosyjit")
    (directory / "vllm").mkdir()
    for name, content in OLD.items():
        (directory / "vllm" / name).write_bytes(content)
    show(first, directory, {}, NEW)
    assert shown(directory / "vllm") == NEW
    assert is_as_published(directory, "vllm")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_bytes(b"mine"),
        lambda folder: (folder / "notes.txt").write_bytes(b"mine"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "deep").mkdir(),
        lambda folder: os.mkfifo(folder / "pipe"),
    ],
    ids=["changed", "more", "less", "a folder in it", "a pipe in it"],
)
def test_a_folder_of_a_copy_in_which_anything_was_changed_is_not_taken_over(
    change: Callable[[Path], object], copy: Path, first: Store
) -> None:
    change(copy / "vllm")
    before = sorted(copy.rglob("*"))
    with pytest.raises(OutputError, match=r"/vllm: was not written by cosyjit; .* --replace"):
        show(first, copy, {}, NEW)
    assert [path for path in before if not path.exists()] == []


def test_a_manifest_that_names_other_files_makes_no_folder_cosyjits(first: Store, directory: Path) -> None:
    show(first, directory, {}, NEW)
    manifest = (directory / "cosyjit.json").read_bytes()
    theirs = directory.with_name("theirs")
    (theirs / "vllm").mkdir(parents=True)
    for name, content in OLD.items():
        (theirs / "vllm" / name).write_bytes(content)
    (theirs / "cosyjit.json").write_bytes(manifest)
    with pytest.raises(OutputError, match="was not written by cosyjit"):
        show(first, theirs, {}, NEW)
    assert shown(theirs / "vllm") == OLD


@pytest.mark.slow
def test_a_copied_model_directory_is_exported_as_the_first(tiny2: Path, tmp_path: Path, run: Run) -> None:
    model = Path(shutil.copytree(tiny2, tmp_path / "model"))
    assert run("export", model).status == 0
    copy = copied(model, "cp -rL")
    planned = json.loads(run("plan", copy, "--json").out)
    assert planned["obstacles"] == []
    assert run("export", copy).status == 0
    assert run("status", copy).status == 0
    assert (copy / "vllm").readlink() == Path(".cosyjit/current/vllm")
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in model.iterdir())
    other = tmp_path / "store"
    again = Path(shutil.copytree(model, tmp_path / "again"))
    assert run("export", again, "--store", other).status == 0
    assert run("verify", other).status == 0


# A reader of a directory that is taken over.


def test_the_folder_of_a_copy_is_there_at_any_time_while_it_is_taken_over(
    copy: Path, first: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, bytes]] = []

    def watch(where: object, name: str) -> None:
        original = getattr(where, name)

        def watched(*arguments: object) -> None:
            original(*arguments)
            seen.append({each: (copy / "vllm" / each).read_bytes() for each in OLD})

        monkeypatch.setattr(where, name, watched)

    watch(Layout, "_lead_to")
    watch(layout, "_exchange")
    watch(files, "replace_symlink")
    show(first, copy, {}, NEW)
    assert [each for each in seen if each not in (OLD, NEW)] == []
    assert seen[-1] == NEW
    assert seen[0] == OLD


@pytest.mark.stress
def test_who_is_killed_while_a_copy_is_taken_over_leaves_one_whole_set(first: Store, directory: Path) -> None:
    show(first, directory, {FP32: b"1"}, OLD)
    code = """
import shutil, sys
from functools import partial
from pathlib import Path
from cosyjit.publishing import layout
from cosyjit.store.store import Store
from tests.support.processes import shown
from tests.support.processes import die_at, forked
from tests.operations.test_two_stores import FP32, NEW, OLD, copied, is_as_published, show

directory, store, step = Path(sys.argv[1]), Store(sys.argv[2]), 0
layout._GRACE = 0  # nobody reads meanwhile

def take_over(copy, step):
    die_at(step)
    show(store, copy, {FP32: b"2"}, NEW)

while True:
    copy = copied(directory, "cp -rL")
    killed = forked(partial(take_over, copy, step)) < 0
    assert shown(copy / "vllm") in (OLD, NEW), step
    assert shown(copy) in ({FP32: b"1"}, {FP32: b"2"}), step
    show(store, copy, {FP32: b"2"}, NEW)
    assert (shown(copy), shown(copy / "vllm")) == ({FP32: b"2"}, NEW), step
    assert is_as_published(copy, FP32, "vllm"), step
    if not killed:
        break
    shutil.rmtree(copy)
    step += 1
print(step)
"""
    with start(code, directory, first.root) as process:
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert int(out) > 20


def test_a_publication_that_only_a_directory_has_keeps_its_objects_in_the_store(
    copy: Path, first: Store, directory: Path
) -> None:
    show(first, copy, {INT8: b"2"})
    show(first, directory, {FP32: b"5", INT8: b"6"}, NEW)
    gc.gc(first, keep=1, older_than=0, delete=True)
    assert verify_store(first) == []
    assert {sha256(b"1"), sha256(b"2")} <= first.objects()
    assert publication.head(first, copy) == PublishedDirectory(copy, first).require_live()
    assert all(object_path(first, sha256(each)).is_file() for each in OLD.values())
    assert files_of(first)
