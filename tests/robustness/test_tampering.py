"""Any byte that someone changes, of whatever a store or a directory has, is seen before it is used."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from cosyjit import Store
from cosyjit.errors import RecordError, StoreError
from cosyjit.operations import gc
from cosyjit.provenance import latest, record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Publication
from tests.support.files import sha256
from tests.support.keys import pair
from tests.support.stores import NAME, add, fetched, fingerprint, object_path, put, record_of, show, write_latest

BITS: Final = (0x01, 0x20, 0x80)
"""Those that are turned over: 0x20 makes a capital of a letter, and another digit of a digit none."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def changed(content: bytes) -> Iterator[bytes]:
    """A content with one byte changed, each of them in turn, and with some left out or doubled."""
    for at, byte in enumerate(content):
        yield content[:at] + bytes([byte ^ BITS[at % len(BITS)]]) + content[at + 1 :]
        if not at % 7:
            yield content[:at] + content[at + 1 :]
            yield content[: at + 1] + content[at:]


def tamper(path: Path, look: Callable[[], object]) -> list[object]:
    """What a look finds at each change of a file, which is put back in the end."""
    content = path.read_bytes()
    others = dict.fromkeys(each for each in changed(content) if each != content)  # one of two equal bytes, doubled
    path.chmod(0o600)
    found: list[object] = []
    for each in others:
        path.write_bytes(each)
        found.append(look())
    path.write_bytes(content)
    assert len(found) > len(content)
    return found


def refusal_of(look: Callable[[], object]) -> Callable[[], object]:
    """A look that tells in how many lines something is refused."""

    def refused() -> object:
        try:
            return look()
        except RecordError as error:
            return len(str(error).splitlines())

    return refused


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_no_byte_of_a_record_can_be_changed(signed: bool, store: Store, tmp_path: Path) -> None:
    key = fingerprint().key
    record.save(Store(store.root, sign=pair(tmp_path).private if signed else None), record_of("0" * 64))
    path = Path(store.root, record.name_of(key))
    assert set(tamper(path, refusal_of(lambda: record.load(store, key)))) == {1}
    assert record.load(store, key) == record_of("0" * 64)


def test_no_byte_of_a_head_can_be_changed(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "out", b"one")
    (entry,) = store.entries("heads")
    for look in (lambda: [*publication.heads(store)], lambda: gc.gc(store)):
        assert set(tamper(Path(store.root, entry.name), refusal_of(look))) == {1}
    assert publication.head(store, tmp_path / "out") is not None


def test_no_byte_of_a_reference_can_be_changed(store: Store) -> None:
    name = write_latest(store, "llm.llm fp32 cpu", "0" * 32)
    found = tamper(Path(store.root, name), refusal_of(lambda: latest.read(store, name)))
    assert set(found) <= {None, 1}  # the error is that of a later version's
    assert latest.read(store, name) == "0" * 32


def test_a_document_in_anothers_place_is_not_taken_for_it(store: Store, tmp_path: Path) -> None:
    show(store, tmp_path / "out", b"one")
    (head,) = store.entries("heads")
    other = store.read(head.name)
    assert other is not None
    show(store, tmp_path / "beside", b"two")
    (beside,) = (entry for entry in store.entries("heads") if entry.name != head.name)
    store.write(beside.name, other)
    with pytest.raises(RecordError, match=f"{beside.name}: is damaged \\(another directory's\\)"):
        publication.head(store, tmp_path / "beside")
    reference = store.read(write_latest(store, "one", "0" * 32))
    assert reference is not None
    name = write_latest(store, "two", "1" * 32)
    store.write(name, reference)
    assert latest.read(store, name) is None


@pytest.fixture
def made(store: Store, tmp_path: Path) -> Publication:
    """What the directory `out` shows."""
    (tmp_path / "out").mkdir()
    return PublishedDirectory(tmp_path / "out", store).publish({NAME: put(store, b"an artifact")}, "/models/a")


def test_no_byte_of_a_publication_can_be_changed(store: Store, made: Publication) -> None:
    path = Path(store.root, publication.name_of(made.identity))
    assert set(tamper(path, lambda: publication.load(store, made.identity))) == {None}


@pytest.mark.usefixtures("made")
def test_no_byte_of_what_a_directory_shows_can_be_changed(store: Store, tmp_path: Path) -> None:
    published = PublishedDirectory(tmp_path / "out", store)
    for number, name in enumerate((NAME, "cosyjit.json")):
        found = tamper(
            (tmp_path / "out" / name).resolve(),
            lambda: tuple(each.condition for each in published.check()[1]),
        )
        assert set(found) == {("intact",) * number + ("damaged",) + ("intact",) * (1 - number)}


def test_no_byte_of_an_object_can_be_changed(store: Store, tmp_path: Path) -> None:
    content = b"an artifact"
    digest = add(store, content)
    path = object_path(store, digest)
    for number, each in enumerate(changed(content)):
        path.chmod(0o600)
        path.write_bytes(each)
        with pytest.raises(StoreError) as error:
            fetched(store, digest, tmp_path / "copy")
        assert str(error.value).startswith(f"{store.root}: object {digest} is damaged; ")
        assert not path.exists()
        assert len(list(Path(store.root, "damaged").iterdir())) == number + 1
        add(store, content)
    assert sha256(path.read_bytes()) == digest
