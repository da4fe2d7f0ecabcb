"""What a store is and whether it can be used, found out without leaving anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cosyjit import Store
from cosyjit.doctor.finding import Finding, look
from cosyjit.doctor.stores import probes
from tests.operations.test_looking import everything
from tests.support.s3 import Answer, Service
from tests.support.stores import add, put, unique_url


def found(store: str | Path | None) -> dict[str, Finding]:
    """What is found of a store, by name."""
    return {each.name: each for each in look(probes(None if store is None else str(store))) if each.part == "store"}


def values(store: str | Path | None) -> dict[str, Any]:
    return {name: each.value for name, each in found(store).items()}


def test_a_store_with_artifacts_is_counted(store: Store, home: Path) -> None:
    put(store, b"artifact")
    add(store, b"another")
    before = everything(home)
    told = found(store.root)
    assert everything(home) == before
    assert {each.state for each in told.values()} <= {"ok", "note"}
    assert told["place"].value == "~/.cache/cosyjit"
    assert (told["there"].value, told["writable"].value) == (True, True)
    assert (told["objects"].value, told["size"].value, told["records"].value) == (2, 15, 1)
    assert told["digests in"].value == "~/.cache/cosyjit/digests"
    assert told["digests of its files"].value in {"remembered", "taken each time"}
    assert told["file system"].value
    assert told["free"].value > 0


def test_looking_for_a_store_that_is_not_there_makes_none(home: Path) -> None:
    home.mkdir()
    told = found(None)
    assert everything(home) == {}
    assert (told["there"].value, told["there"].state) == (False, "note")
    assert (told["writable"].value, told["objects"].value) == (True, 0)


def test_a_store_that_others_can_write_to_is_noted(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    assert found(tmp_path / "store")["private"].state == "note"


BROKEN: dict[str, tuple[Callable[[Path], str], str]] = {
    "unknown scheme": (lambda _: "nosuch://bucket/x", "nosuch://bucket/x: is not a store ("),
    "password": (lambda _: "s3://me:pw@bucket/x", "s3://bucket/x: is not a store (a password in its URL"),
    "NUL": (lambda _: "a\0b", "a\\x00b: is not a store (a NUL in its name"),
    "a file": (lambda path: str(path / "file"), "/file: cannot be read or written (Not a directory)"),
    "below a file": (lambda path: str(path / "file" / "x"), "/file/x: cannot be read or written (Not a directory)"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_store_that_cannot_be_one_is_wrong_and_said_once(how: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place, says = BROKEN[how]
    wrong = [each for each in found(place(tmp_path)).values() if each.state == "wrong"]
    assert len(wrong) == 1
    assert says in wrong[0].advice


def test_other_files_in_the_place_of_a_store_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert found(tmp_path)["there"] == Finding(
        "store", "there", False, "note", "there is none yet; the first export makes it"
    )


def test_a_store_in_memory_is_looked_at_and_not_written_to() -> None:
    told = found(unique_url())
    assert (told["there"].value, told["writable"].value, told["writable"].state) == (False, None, "ok")
    assert "digests of its files" not in told


@pytest.mark.slow
def test_a_bucket_is_tried_and_nothing_is_left_in_it(s3: Service) -> None:
    store = Store(s3.url())
    bucket = store.root.removeprefix("s3://").partition("/")[0]
    assert values(store.root)["there"] is False
    put(store, b"artifact")
    s3.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    before = [each["Key"] for each in s3.client.list_object_versions(Bucket=bucket)["Versions"]]
    told = found(store.root)
    assert (told["there"].value, told["writable"].value) == (True, True)
    assert (told["objects"].value, told["size"].value, told["records"].value) == (1, 8, 1)
    after = s3.client.list_object_versions(Bucket=bucket)
    assert [each["Key"] for each in after["Versions"]] == before
    assert "DeleteMarkers" not in after
    assert s3.uploads(store.root) == []


@pytest.mark.slow
def test_a_bucket_that_does_not_exist_or_refuses_is_wrong(s3: Service) -> None:
    (told,) = (each for each in found("s3://no-such-bucket/x").values() if each.state == "wrong")
    assert "there is no such bucket" in told.advice
    url = s3.url()
    put(Store(url), b"artifact")
    with s3.proxied(lambda method, _: Answer(403, "AccessDenied") if method == "POST" else None):
        told = found(url)["writable"]
    assert (told.value, told.state) == (False, "wrong")
    assert "AccessDenied" in told.advice
