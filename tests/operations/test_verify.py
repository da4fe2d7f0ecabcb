"""What reading everything again finds."""

from pathlib import Path

import pytest

from cosyjit import documents
from cosyjit.errors import PublicationError, StoreError
from cosyjit.fs.identity import Identity
from cosyjit.operations.verify import Fault, is_store, verify_directory, verify_store
from cosyjit.provenance import record
from cosyjit.publishing import publication
from cosyjit.store.store import Store, object_name
from tests.support.files import sha256
from tests.support.processes import snapshot
from tests.support.stores import add, files_of, object_path, put, show, unique_url


@pytest.fixture(params=["directory", "memory"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "store" if request.param == "directory" else unique_url())


def damage(store: Store, name: str, content: bytes = b"other bytes") -> None:
    if store.local is not None:
        (store.local / name).chmod(0o644)
    store.write(name, content)


def faults(store: Store) -> dict[str, str]:
    """What is wrong with which file; looking changes nothing."""
    before = {name: store.read(name) for name in files_of(store)}
    found = verify_store(store)
    assert {name: store.read(name) for name in files_of(store)} == before
    assert len({fault.name for fault in found}) == len(found)
    return {fault.name: fault.problem for fault in found}


def test_a_store_with_nothing_wrong_has_no_faults(kept: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store; name the one that was exported into"):
        faults(kept)
    for content in (b"one", b"two"):
        show(kept, tmp_path / "a", content, b"shared")
    add(kept, b"orphan")
    assert faults(kept) == {}


def test_each_thing_that_is_wrong_is_listed(kept: Store, tmp_path: Path) -> None:
    old, last = show(kept, tmp_path / "a", b"one"), show(kept, tmp_path / "b", b"two")
    damaged, missing, unreadable, later = (put(kept, content) for content in (b"3", b"4", b"5", b"6"))
    damage(kept, object_name(damaged.sha256))
    kept.remove(object_name(missing.sha256))
    kept.write(record.name_of(unreadable.fingerprint), b"nothing")
    kept.write(record.name_of(later.fingerprint), documents.dump({"predicate": {"cosyjit_schema": 2}}))
    kept.write(publication.name_of(old.identity), last.content)
    kept.remove(publication.name_of(last.identity))
    found = faults(kept)
    assert found.keys() == {
        object_name(damaged.sha256),
        *(record.name_of(each.fingerprint) for each in (missing, unreadable, later)),
        publication.name_of(old.identity),
        publication.name_of(last.identity),
    }
    assert found[object_name(damaged.sha256)] == "damaged"
    assert found[record.name_of(missing.fingerprint)] == f"object {missing.sha256} missing"
    assert "is damaged (" in found[record.name_of(unreadable.fingerprint)]
    assert "upgrade cosyjit" in found[record.name_of(later.fingerprint)]
    assert found[publication.name_of(old.identity)].startswith("damaged")
    assert found[publication.name_of(last.identity)] == f"missing, the last of {tmp_path / 'b'}"
    assert all(len(problem.splitlines()) == 1 for problem in found.values())


def test_a_publication_whose_object_and_record_are_gone_is_listed(kept: Store, tmp_path: Path) -> None:
    shown = show(kept, tmp_path / "a", b"one")
    (artifact,) = shown.artifacts.values()
    kept.remove(record.name_of(artifact.fingerprint))
    kept.remove(object_name(artifact.sha256))
    assert publication.name_of(shown.identity) in faults(kept)


def test_a_damaged_head_is_listed_and_ends_nothing(kept: Store, tmp_path: Path) -> None:
    show(kept, tmp_path / "a", b"one")
    last = show(kept, tmp_path / "b", b"two")
    first, *_ = sorted(entry.name for entry in kept.entries("heads"))
    kept.write(first, b"nothing")
    kept.remove(publication.name_of(last.identity))
    found = faults(kept)
    assert any("is damaged (" in problem for problem in found.values())


def test_what_many_directories_showed_last_and_is_missing_is_listed(kept: Store, tmp_path: Path) -> None:
    shown = [show(kept, tmp_path / str(number), b"%d" % number) for number in range(5)]
    for each in shown[1:]:
        kept.remove(publication.name_of(each.identity))
    assert faults(kept) == {
        publication.name_of(each.identity): f"missing, the last of {tmp_path / str(number)}"
        for number, each in enumerate(shown)
        if number
    }


@pytest.mark.parametrize("name", ["objects/README", f"objects/zz/{'0' * 64}", "objects/ab/.nfs0001"])
def test_a_file_that_is_no_object_does_not_end_the_reading(name: str, kept: Store) -> None:
    damaged = put(kept, b"one")
    damage(kept, object_name(damaged.sha256))
    kept.write(name, b"stray")
    assert object_name(damaged.sha256) in faults(kept)


def test_what_is_being_written_is_passed_over(kept: Store) -> None:
    put(kept, b"one")
    for folder in ("objects/ab", "records", "publications", "heads", "latest"):
        kept.write(f"{folder}/.x.0123.tmp", b"half")
    assert faults(kept) == {}


def test_a_store_that_cannot_be_read_is_not_well(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be read or written"):
        verify_store(Store(tmp_path / "file"))


def test_files_of_a_directory_are_read_even_if_they_look_unchanged(store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "a"
    show(store, directory, b"one", b"two", b"three")
    assert verify_directory(directory, store=store) == []
    (directory / "0.zip").resolve().write_bytes(b"ONE")
    (directory / "1.zip").unlink()
    (directory / "cosyjit.json").resolve().write_bytes(b"{}")
    before = snapshot(tmp_path)
    assert verify_directory(directory, store=store) == [
        Fault(str(directory / "0.zip"), "damaged"),
        Fault(str(directory / "1.zip"), "missing"),
        Fault(str(directory / "cosyjit.json"), "damaged"),
    ]
    assert snapshot(tmp_path) == before


def test_a_directory_that_shows_nothing_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(PublicationError, match="nothing is published here"):
        verify_directory(tmp_path, store=store)
    assert snapshot(tmp_path) == {}


def test_an_object_is_read_even_if_it_is_remembered(store: Store) -> None:
    digest = add(store, b"one")
    path = object_path(store, digest)
    path.chmod(0o644)
    path.write_bytes(b"ONE")
    # A disk that turns bits over leaves the times as they are.
    store.digests.remember_sha256(path, digest, Identity.of(path))
    assert store.condition(digest) == "intact"
    assert faults(store) == {object_name(sha256(b"one")): "damaged"}


@pytest.mark.parametrize("folder", ["objects", "records", "publications"])
def test_a_directory_that_shows_something_is_no_store_whatever_else_is_in_it(folder: str, tmp_path: Path) -> None:
    show(Store(tmp_path / "store"), tmp_path / "out", b"one")
    (tmp_path / "out" / folder).mkdir()
    assert not is_store(str(tmp_path / "out"))
    assert is_store(str(tmp_path / "store"))
