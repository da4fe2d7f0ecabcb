"""From a zip, a digest or a fingerprint to what it was made from, and never out of the store."""

import json
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from cosyjit import documents
from cosyjit.errors import InputError, LaterSchemaError, RecordError, SelectionError
from cosyjit.provenance import record
from cosyjit.provenance.lineage import Lineage, lineage
from cosyjit.provenance.record import Record
from cosyjit.store.store import Store
from tests.support.files import sha256
from tests.support.processes import snapshot
from tests.support.stores import fingerprint, record_of


def archive(path: Path, embedded_provenance: bytes, member: str = "archive/extra/cosyjit.json") -> Path:
    """A zip as TorchScript lays it out."""
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("archive/data.pkl", b"data")
        zipped.writestr(member, embedded_provenance)
    return path


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return archive(tmp_path / "llm.llm.fp32.zip", record.embedded_provenance(fingerprint()))


@pytest.fixture
def made(artifact: Path, store: Store) -> Record:
    """The record of the artifact, among others."""
    for seed in range(3):
        record.save(store, record_of(sha256(b"%d" % seed), seed))
    found = record_of(sha256(artifact.read_bytes()))
    record.save(store, found)
    return found


def test_an_artifact_is_traced_by_its_path_digest_or_fingerprint(artifact: Path, made: Record, store: Store) -> None:
    digest = sha256(artifact.read_bytes())
    by_path = lineage(str(artifact), store=store)
    assert by_path == Lineage(made, json.loads(record.embedded_provenance(fingerprint())), digest)
    assert by_path.same_bytes
    for reference in (digest, fingerprint().key):
        found = lineage(reference, store=store)
        assert found == Lineage(made)
        assert found.same_bytes


def test_a_path_may_be_relative_or_in_the_home_directory(
    artifact: Path, made: Record, store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(artifact.parent)
    (home / "mine.zip").write_bytes(artifact.read_bytes())
    for reference in (artifact.name, "~/mine.zip"):
        assert lineage(reference, store=store).record == made


def test_a_stray_artifact_says_what_it_was_made_from(artifact: Path, store: Store) -> None:
    found = lineage(str(artifact), store=store)
    assert found.record is None
    assert found.embedded == {"fingerprint": fingerprint().key, "parts": fingerprint().parts, "schema": 1}
    assert not found.same_bytes


@pytest.mark.usefixtures("made")
def test_an_artifact_whose_bytes_were_changed_is_traced_and_told_apart(artifact: Path, store: Store) -> None:
    with zipfile.ZipFile(artifact, "a") as zipped:
        zipped.writestr("archive/more", b"more")
    found = lineage(str(artifact), store=store)
    assert found.record is not None
    assert not found.same_bytes


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)], ids=repr)
def test_a_file_that_is_no_artifact_is_refused_in_one_line(content: bytes, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file.zip"
    path.write_bytes(content)
    with pytest.raises(RecordError) as error:
        lineage(str(path), store=store)
    assert str(error.value).startswith(f"{path}: is not an artifact of cosyjit (")
    assert len(str(error.value).splitlines()) == 1


FORM = json.loads(record.embedded_provenance(fingerprint()))


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"[]",
        b"{}",
        b"nothing",
        json.dumps({**FORM, "fingerprint": "0" * 32}).encode(),
        json.dumps({**FORM, "fingerprint": "../../x"}).encode(),
        json.dumps({**FORM, "parts": {**FORM["parts"], "torch": "1"}}).encode(),
        json.dumps({**FORM, "parts": 5}).encode(),
        json.dumps({**FORM, "fingerprint": None}).encode(),
        json.dumps({**FORM, "schema": "1"}).encode(),
    ],
    ids=lambda form: repr(form[:6]),
)
def test_embedded_provenance_that_was_tampered_with_is_refused_in_one_line(
    form: bytes, store: Store, tmp_path: Path
) -> None:
    path = archive(tmp_path / "a.zip", form)
    with pytest.raises(RecordError) as error:
        lineage(str(path), store=store)
    assert not isinstance(error.value, LaterSchemaError)
    assert str(error.value).startswith(f"{path}: is ")
    assert len(str(error.value).splitlines()) == 1


def test_a_later_versions_artifact_asks_for_an_upgrade(store: Store, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", json.dumps({"schema": 2, "else": 1}).encode())
    with pytest.raises(LaterSchemaError, match="upgrade cosyjit"):
        lineage(str(path), store=store)


@pytest.mark.parametrize(
    "member", ["cosyjit.json", "extra/cosyjit.json", "archive/extra/other.json", "a/b/extra/cosyjit.json"]
)
def test_a_zip_without_embedded_provenance_in_its_place_is_refused(member: str, store: Store, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", record.embedded_provenance(fingerprint()), member)
    with pytest.raises(RecordError, match="is not an artifact of cosyjit"):
        lineage(str(path), store=store)


@pytest.mark.slow
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_an_artifact_damaged_at_any_byte_is_an_artifact_still_or_refused(
    method: int, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as zipped:
        zipped.writestr("archive/extra/cosyjit.json", record.embedded_provenance(fingerprint()))
    content = path.read_bytes()
    outcomes = set()
    for at in range(len(content)):
        for flip in (0x01, 0xFF):
            path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            try:
                outcomes.add(lineage(str(path), store=store).same_bytes)
            except RecordError as error:
                outcomes.add(str(error).startswith(str(path)))
    assert outcomes <= {True, False}
    assert True in outcomes


def test_a_record_that_is_damaged_is_said_to_be(artifact: Path, store: Store) -> None:
    name = record.name_of(fingerprint().key)
    store.write(name, b"nothing")
    for reference in (str(artifact), fingerprint().key):
        with pytest.raises(RecordError) as error:
            lineage(reference, store=store)
        assert str(error.value).startswith(f"{store.root}/{name}: is damaged (")
    store.write(name, documents.dump({"predicate": {"cosyjit_schema": 2}}))
    with pytest.raises(LaterSchemaError):
        lineage(fingerprint().key, store=store)


@pytest.mark.usefixtures("made")
def test_another_record_that_is_damaged_is_in_nobodys_way(store: Store, artifact: Path) -> None:
    digest = sha256(artifact.read_bytes())
    store.write(f"records/{'0' * 32}.json", b"nothing " + digest.encode())
    assert lineage(digest, store=store).same_bytes


REFERENCES = [
    "",
    ".",
    "..",
    "/",
    "0" * 32,
    "0" * 64,
    "a",
    "llm.llm",
    "../secret",
    "../../.cache/cosyjit/secret",
    "..%2fsecret",
    "/etc/hostname/x",
    "a/../../secret",
    "a\0b",
    "\0",
    "声" * 20,
    "\udc80",
    "f" * 300,
    "f" * 5000,
    "x/" * 3000,
    "a\nb",
    "*",
]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: repr(reference[:20]))
def test_what_stands_for_nothing_is_refused_in_one_line_and_nothing_is_read_elsewhere(
    reference: str, store: Store, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record.save(Store(home / ".cache"), record_of(sha256(b"secret"), "secret"))  # beside the store, as if in it
    (home / ".cache" / "cosyjit" / "secret.json").write_bytes(documents.with_checksum(record_of("0" * 64).statement))
    before = snapshot(home)
    with pytest.raises(InputError) as error:
        lineage(reference, store=store)
    assert len(str(error.value).splitlines()) == 1
    if "\0" in reference:
        assert "is not a path (a NUL in its name)" in str(error.value)
    else:
        assert type(error.value) is SelectionError
        is_directory = reference in {"", ".", "..", "/"}
        says = "a directory, and not the folder of" if is_directory else "not an artifact, and not a SHA-256 or"
        assert f": is {says} " in str(error.value)
    assert snapshot(home) == before


@pytest.mark.slow
def test_an_archive_that_says_too_much_of_itself_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/extra/cosyjit.json", b" " * (200 << 20))
    tracemalloc.start()
    with pytest.raises(
        RecordError, match=r"has 209715200 bytes in a/extra/cosyjit\.json, more than the 1048576 that are read.; name"
    ):
        lineage(str(path), store=store)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.slow
def test_an_archive_of_very_many_members_is_refused_in_little_memory(store: Store, tmp_path: Path) -> None:
    path = archive(tmp_path / "many.zip", record.embedded_provenance(fingerprint()))
    content = path.read_bytes()
    *_, size, start, _ = struct.unpack("<4s4H2IH", content[-22:])
    more = 300_000
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", *(0,) * 9, 9, *(0,) * 6) + b"archive/x"
    directory = content[start : start + size] + entry * more
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, more + 2, more + 2, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(content[:start] + directory + end64 + locator + end)
    with zipfile.ZipFile(path) as many:
        assert len(many.namelist()) == more + 2
    tracemalloc.start()
    with pytest.raises(
        RecordError, match=f"is not an artifact of cosyjit .has a directory of {len(directory)} bytes, more"
    ):
        lineage(str(path), store=store)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
