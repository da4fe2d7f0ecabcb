"""A store that is copied to another place, with all that was published from it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from cosyjit import copy_store, documents, history
from cosyjit.errors import StoreError, StoreUnavailableError
from cosyjit.operations import gc
from cosyjit.operations.verify import verify_store
from cosyjit.provenance import latest, record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import Store, object_name
from tests.support.checkpoints import retrain
from tests.support.files import flip, sha256
from tests.support.keys import pair
from tests.support.processes import CONSOLE_SCRIPT, Run, finished, shown, spawn, start
from tests.support.s3 import Answer, Service
from tests.support.stores import files_of, object_path, put, show, unique_url, write_latest

ONE: Final = ("--component", "flow.encoder", "--precision", "fp16")
OLD: Final = {"config.json": b"old config", "model.safetensors": b"old model"}


def fill(store: Store, folder: Path) -> None:
    """Let a store have two directories with histories, a folder, what nothing refers to, and a machine's own."""
    for name, last in (("one", 3), ("two", 2)):
        for number in range(last):
            made = show(store, folder / name, b"%s %d" % (name.encode(), number), b"same")
            write_latest(store, name, made.artifacts["0.zip"].fingerprint)
    with store.in_use():
        PublishedDirectory(folder / "one", store).publish({"vllm": put(store, OLD)}, "/models/a")
    put(store, b"never published")
    store.write(f"damaged/objects.00.{'0' * 64}.00000000", b"damaged")


def contents(store: Store) -> dict[str, bytes]:
    """All that a copy has to have, by names."""
    return {name: store.read(name) or b"" for name in files_of(store) if not name.startswith("damaged/")}


def names_nothing_missing(store: Store) -> bool:
    """Whether a store has all that anything in it names."""
    there = files_of(store)
    for entry in store.entries("latest"):
        key = latest.read(store, entry.name)
        assert key is not None
        assert record.name_of(key) in there
    return verify_store(store) == []


def problems(done: Any) -> dict[str, str]:
    return {each.name: each.problem for each in done.left_out}


# What is copied.


def test_all_is_copied_byte_for_byte_and_not_twice(first: Store, second: Store, tmp_path: Path) -> None:
    fill(first, tmp_path)
    before = contents(first)
    done = copy_store(first, second)
    assert contents(second) == before == contents(first)
    assert {each.name: each.size for each in done.copied} == {name: len(each) for name, each in before.items()}
    assert (done.present, done.left_out) == ((), ())
    assert names_nothing_missing(second)
    again = copy_store(first, second)
    assert (again.copied, sorted(again.present), again.left_out) == ((), sorted(before), ())
    assert contents(second) == before
    for name in ("one", "two"):
        assert history(tmp_path / name, store=second) == history(tmp_path / name, store=first)
    PublishedDirectory(tmp_path / "one", second).rollback(1)
    assert shown(tmp_path / "one") == {"0.zip": b"one 0", "1.zip": b"same"}


@pytest.mark.slow
def test_a_store_goes_into_a_bucket_and_back_with_its_history(
    tiny2: Path, tmp_path: Path, run: Run, s3: Service, copy_of: Callable[[Path], Path]
) -> None:
    model, keys = copy_of(tiny2), pair(tmp_path)
    home, bucket, back = tmp_path / "home", s3.url(), tmp_path / "back"
    for _ in range(2):
        assert run("export", model, *ONE, "--store", home, "--sign", keys.private).status == 0
        retrain(model, "flow.pt", "encoder.")
    assert run("export", model, "--component", "llm.vllm", "--store", home, "--sign", keys.private).status == 0
    known = run("history", model, "--store", home, "--json").out
    now = shown(model)

    assert run("copy-store", home, bucket).status == 0
    shutil.rmtree(home)
    assert run("history", model, "--store", bucket, "--json").out == known
    assert run("verify", bucket, "--require-signature", keys.public) == (0, "Nothing is wrong\n", "")
    assert run("rollback", model, "--to", "1", "--store", bucket, "--require-signature", keys.public).status == 0
    assert shown(model) != now
    assert run("rollback", model, "--to", "3", "--store", bucket).status == 0
    assert shown(model) == now

    ran = run("copy-store", bucket, back)
    assert ran.status == 0
    assert " copied, " in ran.out
    assert run("verify", back, "--require-signature", keys.public).status == 0
    assert (
        json.loads(run("history", model, "--store", back, "--json").out)["publications"][2:]
        == json.loads(known)["publications"]
    )
    assert json.loads(run("copy-store", bucket, back, "--json").out)["copied"] == []
    assert run("status", model, "--store", back).status == 1  # the model was changed since


def test_a_copy_leaves_no_copies_in_this_machines_cache(first: Store, tmp_path: Path, home: Path) -> None:
    fill(first, tmp_path)
    remote = Store(unique_url())
    copy_store(first, remote)
    copy_store(remote, Store(tmp_path / "back"))
    assert not (home / ".cache" / "cosyjit" / "cache" / "objects").exists()


@pytest.mark.slow
def test_who_is_killed_at_any_moment_leaves_nothing_that_names_what_is_not_there(tmp_path: Path) -> None:
    """And goes on where it was when it is run again."""
    fill(Store(tmp_path / "first"), tmp_path)
    code = """
import sys
from functools import partial
from pathlib import Path
from cosyjit import Store, copy_store
from tests.support.processes import die_at, forked
from tests.operations.test_copy_store import contents, names_nothing_missing

folder = Path(sys.argv[1])
first, step = Store(folder / "first"), 0

def copy(step, to):
    die_at(step, {"os.rename"})
    copy_store(first, Store(to))

while forked(partial(copy, step, folder / f"to {step}")) < 0:
    to = Store(folder / f"to {step}")
    assert names_nothing_missing(to), step
    if step % 5 == 0:
        copy_store(first, to)
        assert contents(to) == contents(first), step
        assert not list(Path(to.root, "tmp").iterdir())
    step += 1
assert contents(Store(folder / f"to {step}")) == contents(first)
print(step)
"""
    with start(code, tmp_path) as process:
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert int(out) >= len(contents(Store(tmp_path / "first")))  # a step for each file, at least


# What is left out.


@pytest.mark.slow
def test_what_is_damaged_is_left_out_with_all_that_names_it(first: Store, second: Store, tmp_path: Path) -> None:
    fill(first, tmp_path)
    lost, cut = put(first, b"lost"), put(first, b"cut")
    made = show(first, tmp_path / "three", b"lost")
    write_latest(first, "lost", lost.fingerprint)
    flip(object_path(first, lost.sha256))
    first.write(record.name_of(cut.fingerprint), b"{}")
    torn = show(first, tmp_path / "four", b"torn")
    first.write(publication.name_of(torn.identity), torn.content + b" ")
    before = {name: first.read(name) for name in files_of(first)}
    done = copy_store(first, second)
    assert {name: first.read(name) for name in files_of(first)} == before
    found = problems(done)
    three, four = (publication._head(tmp_path / name) for name in ("three", "four"))
    assert "is damaged; export its checkpoint again" in found.pop(object_name(lost.sha256))
    assert "is damaged (" in found.pop(record.name_of(cut.fingerprint))
    assert found == {
        record.name_of(lost.fingerprint): f"names {object_name(lost.sha256)}, which is not in {second}",
        latest.name_of("/models/a", "lost"): f"names {record.name_of(lost.fingerprint)}, which is not in {second}",
        publication.name_of(made.identity): f"names {object_name(lost.sha256)}, which is not in {second}",
        three: f"names {publication.name_of(made.identity)}, which is not in {second}",
        publication.name_of(torn.identity): "is of other content than its name says",
        four: f"names {publication.name_of(torn.identity)}, which is not in {second}",
    }
    assert names_nothing_missing(second)
    assert history(tmp_path / "one", store=second) == history(tmp_path / "one", store=first)


def test_the_command_names_what_is_left_out(first: Store, tmp_path: Path, run: Run) -> None:
    made = put(first, b"lost")
    put(first, b"kept")
    flip(object_path(first, made.sha256))
    to = tmp_path / "to"
    ran = run("copy-store", first.root, to)
    assert (ran.status, ran.err) == (1, "")
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"{object_name(made.sha256)}: ")
    assert lines[1] == f"{record.name_of(made.fingerprint)}: names {lines[0].partition(':')[0]}, which is not in {to}"
    assert lines[2].startswith("2 files copied, ")
    assert lines[2].endswith("; 0 were there already, 2 left out")


@pytest.mark.slow
def test_documents_of_a_later_version_are_left_out_and_named(first: Store, second: Store, tmp_path: Path) -> None:
    fill(first, tmp_path)
    made = put(first, b"later")
    head = publication._head(tmp_path / "later")
    first.write(record.name_of(made.fingerprint), documents.dump({"predicate": {"cosyjit_schema": 2}}))
    first.write(head, documents.dump({"schema": 2}))
    found = problems(copy_store(first, second))
    assert found.keys() == {record.name_of(made.fingerprint), head}
    assert all("is of schema 2, and this cosyjit reads up to 1; upgrade cosyjit" in each for each in found.values())


def test_strangers_files_are_named_and_left(first: Store, second: Store) -> None:
    put(first, b"kept")
    first.write("objects/README", b"mine")
    first.write("records/notes.json", b"mine")
    assert problems(copy_store(first, second)).keys() == {"objects/README", "records/notes.json"}


# What is there already.


def test_a_record_that_is_there_stays_and_one_that_is_damaged_is_replaced(
    first: Store, second: Store, tmp_path: Path
) -> None:
    keys = pair(tmp_path)
    signing = Store(first.root, sign=keys.private)
    one, two = put(signing, b"one"), put(signing, b"two")
    put(second, b"one")
    second.write(record.name_of(two.fingerprint), b"{}")
    there = second.read(record.name_of(one.fingerprint))
    assert problems(copy_store(first, second)) == {
        record.name_of(one.fingerprint): f"{second} has another record of it, which stays"
    }
    assert second.read(record.name_of(one.fingerprint)) == there
    assert second.read(record.name_of(two.fingerprint)) == first.read(record.name_of(two.fingerprint))
    assert [entry.name.startswith("damaged/records.") for entry in second.entries("damaged")] == [True]


def test_a_damaged_object_that_is_there_is_copied_anew(first: Store, tmp_path: Path) -> None:
    second = Store(tmp_path / "second")
    fill(first, tmp_path)
    copy_store(first, second)
    flip(object_path(second, sha256(b"one 1")))
    assert [each.name for each in copy_store(first, second).copied] == [object_name(sha256(b"one 1"))]
    assert names_nothing_missing(second)


def test_a_directory_goes_on_from_whichever_store_was_used_last(first: Store, second: Store, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    show(first, directory, b"1")
    copy_store(first, second)
    show(first, directory, b"2")
    assert problems(copy_store(first, second)) == {}
    assert history(directory, store=second) == history(directory, store=first)
    show(second, directory, b"3")
    last = second.read(publication._head(directory))
    assert problems(copy_store(first, second)) == {}
    assert second.read(publication._head(directory)) == last
    assert problems(copy_store(second, first)) == {}
    assert history(directory, store=second) == history(directory, store=first)
    assert [each.number for each in history(directory, store=first)] == [3, 2, 1]


def test_another_history_of_the_same_directory_is_not_overwritten(first: Store, second: Store, tmp_path: Path) -> None:
    """As of another machine with a directory of the same path."""
    directory = tmp_path / "model"
    show(first, directory, b"ours")
    shutil.rmtree(directory)
    theirs = show(second, directory, b"theirs")
    name = publication._head(directory)
    there = second.read(name)
    assert problems(copy_store(first, second)) == {
        name: (
            f"{second} has another publication of {directory}, which stays; go on from that, "
            f"or remove {second}/{name}, and run again"
        )
    }
    assert second.read(name) == there
    assert publication.head(second, directory) == theirs
    assert names_nothing_missing(second)
    second.remove(name)
    assert problems(copy_store(first, second)) == {}


def test_a_publication_that_was_not_shown_yet_is_said_to_be_once_it_was(
    first: Store, second: Store, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    made = show(first, directory, b"1")
    publication.save(first, made, directory, shown=False)
    copy_store(first, second)
    assert publication.head(second, directory) is None
    publication.save(first, made, directory, shown=True)
    copy_store(first, second)
    assert publication.head(second, directory) == made
    publication.save(first, made, directory, shown=False)
    assert problems(copy_store(first, second)) == {}
    assert publication.head(second, directory) == made


def test_what_a_copy_relies_on_in_a_bucket_is_not_collected(first: Store, tmp_path: Path) -> None:
    second = Store(unique_url())
    fill(first, tmp_path)
    copy_store(first, second)
    assert gc.gc(second, older_than=0, delete=True) == []
    assert names_nothing_missing(second)


# What is refused.


def test_what_is_no_store_or_the_same_is_refused_and_nothing_made(first: Store, tmp_path: Path, run: Run) -> None:
    missing = tmp_path / "missing"
    assert run("copy-store", missing, tmp_path / "to") == (
        2,
        "",
        f"cosyjit: {missing}: holds nothing; name a store that something was exported to\n",
    )
    put(first, b"1")
    (tmp_path / "link").symlink_to(first.root)
    for same in (first.root, tmp_path / "link"):
        ran = run("copy-store", first.root, same)
        assert (ran.status, ran.err) == (
            2,
            f"cosyjit: {same}: is the store itself, or one of the two is in the other; name another place\n",
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "link"]


def test_a_place_that_cannot_be_written_to_is_named_in_a_line(first: Store, tmp_path: Path, run: Run) -> None:
    put(first, b"1")
    (tmp_path / "file").write_text("")
    ran = run("copy-store", first.root, tmp_path / "file")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"cosyjit: {tmp_path / 'file'}: cannot be read or written (")


def test_a_store_that_cannot_be_locked_is_copied_as_it_stands(first: Store, tmp_path: Path) -> None:
    """As one on a disk that is mounted to be read."""
    put(first, b"1")
    for name in ("gate", "lock"):
        Path(first.root, name).unlink(missing_ok=True)
        Path(first.root, name).mkdir()
    assert len(copy_store(first, Store(tmp_path / "to")).copied) == 2


@pytest.mark.slow
def test_a_bucket_that_breaks_off_ends_it_in_a_line_and_it_goes_on_later(
    first: Store, tmp_path: Path, s3: Service
) -> None:
    url = s3.url()
    fill(first, tmp_path)
    copy_store(first, Store(url))
    to = Store(tmp_path / "to")
    broken: list[str] = []

    def refuse(method: str, path: str) -> Answer | None:
        if method == "GET" and f"/{object_name(sha256(b'one 1'))}" in path:
            broken.append(path)
            return Answer(503, "SlowDown")
        return None

    with s3.proxied(refuse), pytest.raises(StoreUnavailableError, match="cannot be reached now"):
        copy_store(Store(url), to)
    assert broken
    assert names_nothing_missing(to)
    assert problems(copy_store(Store(url), to)) == {}
    assert contents(to) == contents(first)


def test_the_installed_command_says_how_much_it_has_copied(first: Store, tmp_path: Path) -> None:
    made = put(first, b"12345")
    size = 5 + len(first.read(record.name_of(made.fingerprint)) or b"")
    ran = finished(spawn(CONSOLE_SCRIPT, "copy-store", first.root, tmp_path / "to"))
    assert ran == (0, f"2 files copied, {size / 1000:.1f} kB; 0 were there already, 0 left out\n", "")


# Stores that would mix with something else.


@pytest.mark.parametrize("command", ["plan", "export"])
@pytest.mark.parametrize("place", ["", ".cosyjit", ".cosyjit/store", "../link"])
def test_a_store_in_a_models_place_is_refused_before_anything_is_written(
    command: str, place: str, tiny2: Path, copy_of: Callable[[Path], Path], run: Run
) -> None:
    model = copy_of(tiny2)
    (model.parent / "link").symlink_to(model)
    before = sorted(model.rglob("*"))
    ran = run(command, model, *ONE, "--store", model / place)
    assert (ran.status, ran.out) == (2, "")
    assert "published into; name another store, to which `cosyjit copy-store` brings what this one has" in ran.err
    assert sorted(model.rglob("*")) == before


@pytest.mark.parametrize(
    ("publish", "store"), [("out", "out"), ("out", "out/.cosyjit/x"), ("store/objects/x", "store")]
)
def test_a_store_in_the_place_that_is_published_into_is_refused(
    publish: str, store: str, tiny2: Path, tmp_path: Path, run: Run
) -> None:
    arguments = (tiny2, *ONE, "--publish", tmp_path / publish, "--store", tmp_path / store)
    ran = run("export", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert not (tmp_path / publish).exists()
    assert not (tmp_path / store).exists()
    found = json.loads(run("plan", *arguments, "--json").out)["obstacles"]
    assert ran.err == f"cosyjit: {found[0]}\n"


@pytest.mark.slow
def test_a_store_in_a_folder_of_its_own_below_a_model_is_none_of_its_files(
    tiny2: Path, copy_of: Callable[[Path], Path], run: Run
) -> None:
    model = copy_of(tiny2)
    assert run("export", model, *ONE, "--store", model / "store").status == 0
    assert run("verify", model / "store").status == 0


def test_a_store_that_is_mixed_with_a_directory_is_copied_out_of_it(first: Store, tmp_path: Path, run: Run) -> None:
    show(first, Path(first.root), b"1")
    assert run("copy-store", first.root, tmp_path / "apart").status == 0
    assert names_nothing_missing(Store(tmp_path / "apart"))
    with pytest.raises(StoreError):
        copy_store(Store(tmp_path / "nothing"), first)
