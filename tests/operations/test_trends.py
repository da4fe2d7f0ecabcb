"""How figures went from publication to publication."""

from pathlib import Path

from cosyjit.operations.trends import Point, trends
from cosyjit.provenance import record
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Published
from cosyjit.store.store import Store
from tests.support import stores


def put(store: Store, content: bytes, **figures: float) -> Published:
    return stores.put(store, content, figures={"bytes": len(content), "weight_bytes": 1, "seconds": 1, **figures})


def test_the_figures_of_each_artifact_come_in_the_order_of_the_publications(store: Store, tmp_path: Path) -> None:
    a, b, other = put(store, b"a", step_seconds=0.5), put(store, b"bb"), put(store, b"ccc", step_seconds=0.25)
    PublishedDirectory(tmp_path, store).publish({"a.zip": a}, "/models/a")
    PublishedDirectory(tmp_path, store).publish({"b.zip": b}, "/models/a")
    PublishedDirectory(tmp_path, store).publish({"a.zip": other}, "/models/a")

    found = trends(PublishedDirectory(tmp_path, store))

    assert {name: [point.publication for point in points] for name, points in found.items()} == {
        "a.zip": [1, 2, 3],
        "b.zip": [2, 3],
    }
    assert [point.figures["step_seconds"] for point in found["a.zip"]] == [0.5, 0.5, 0.25]
    assert [point.figures["bytes"] for point in found["b.zip"]] == [2, 2]


def test_no_more_than_the_last_are_looked_at(store: Store, tmp_path: Path) -> None:
    for number in range(5):
        PublishedDirectory(tmp_path, store).publish({"a.zip": put(store, str(number).encode())}, "/models/a")
    assert [point.publication for point in trends(PublishedDirectory(tmp_path, store), last=2)["a.zip"]] == [4, 5]


def test_what_has_no_record_or_a_damaged_one_is_left_out(store: Store, tmp_path: Path) -> None:
    a, b, c = put(store, b"a"), put(store, b"b"), put(store, b"c")
    PublishedDirectory(tmp_path, store).publish({"a.zip": a, "b.zip": b, "c.zip": c}, "/models/a")
    store.remove(record.name_of(a.fingerprint))
    store.write(record.name_of(b.fingerprint), b"{}")
    found = trends(PublishedDirectory(tmp_path, store))
    assert found == {"c.zip": [Point(1, {"bytes": 1, "weight_bytes": 1, "seconds": 1})]}


def test_a_record_that_is_known_is_not_read_again(store: Store, tmp_path: Path) -> None:
    a = put(store, b"a")
    PublishedDirectory(tmp_path, store).publish({"a.zip": a}, "/models/a")
    known = record.load(store, a.fingerprint)
    assert known is not None
    store.write(record.name_of(a.fingerprint), b"{}")
    directory = PublishedDirectory(tmp_path, store)
    assert trends(directory) == {}
    assert trends(directory, known=[known]) == {"a.zip": [Point(1, known.figures)]}
