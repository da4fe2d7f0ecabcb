"""References from targets to the records that they were last exported with."""

import pytest

from cosyjit import documents
from cosyjit.provenance import latest
from cosyjit.store.store import Store
from tests.support.stores import fingerprint, unique_url

KEY = fingerprint().key


@pytest.fixture
def store() -> Store:
    return Store(unique_url())


def test_a_target_leads_to_what_was_written_last(store: Store) -> None:
    name = latest.name_of("/models/a", "llm.llm fp32 cpu")
    assert latest.read(store, name) is None
    for key in (KEY, "0" * 32, KEY):
        latest.write(store, "/models/a", "llm.llm fp32 cpu", key)
        assert latest.read(store, name) == key
    assert [entry.name for entry in store.entries()] == [name]


def test_each_target_of_each_source_has_its_own(store: Store) -> None:
    pairs = [(source, target) for source in ("/a", "/b", "/a\udc80", "/a\n") for target in ("x", "y", "é")]
    for number, (source, target) in enumerate(pairs):
        latest.write(store, source, target, f"{number:032x}")
    names = [latest.name_of(source, target) for source, target in pairs]
    assert [latest.read(store, name) for name in names] == [f"{number:032x}" for number in range(len(pairs))]
    assert len(store.entries("latest")) == len(pairs)


def test_what_leads_there_already_is_not_written_again(store: Store) -> None:
    latest.write(store, "/a", "x", KEY)
    before = store.entries()
    latest.write(store, "/a", "x", KEY)
    assert store.entries() == before


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing", b"[]", b"{}", b'{"schema": 1}', b'{"fingerprint": 5}', b'{"fingerprint": null}', b"\xff"],
    ids=repr,
)
def test_what_cannot_be_read_leads_nowhere_and_is_replaced(content: bytes, store: Store) -> None:
    name = latest.name_of("/a", "x")
    store.write(name, content)
    assert latest.read(store, name) is None
    latest.write(store, "/a", "x", KEY)
    assert latest.read(store, name) == KEY


@pytest.mark.parametrize("key", ["../../elsewhere", "/etc/passwd", "a/b", ".."])
def test_a_reference_leads_to_no_place_outside(key: str, store: Store) -> None:
    name = latest.name_of("/a", "x")
    store.write(name, documents.with_checksum({"schema": 1, "source": "/a", "target": "x", "fingerprint": key}))
    assert latest.read(store, name) is None
