"""Publications as documents: named by their content, in a chain that nobody can change in the middle."""

import json
import operator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosyjit import documents
from cosyjit.errors import LaterSchemaError, RecordError
from cosyjit.fs.hashing import sha256_of_folder
from cosyjit.publishing import publication
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import Store
from tests.support.files import sha256
from tests.support.stores import unique_url

ARTIFACTS = {"a.zip": Published("0" * 64, 5, "1" * 32), "b.zip": Published("2" * 64, 7, "3" * 32)}
MADE = Publication(3, "2026-01-02T03:04:05.678Z", "/models/a", ARTIFACTS, "4" * 64, 1)

TEXT = st.text(max_size=8) | st.sampled_from(["\udc80", "a\nb", "é"])
NAMES = st.from_regex(r"[a-z][a-z.]{0,8}\.zip", fullmatch=True)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
KEYS = st.text("0123456789abcdef", min_size=32, max_size=32)
FILES = st.dictionaries(st.from_regex(r"[a-z][a-z.]{0,8}", fullmatch=True), HEX, min_size=1, max_size=4)
SIZES = st.integers(0, documents.LARGEST - 1)
ZIPS = st.dictionaries(NAMES, st.builds(Published, HEX, SIZES, KEYS, st.none()), max_size=4)
FOLDERS = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    st.builds(lambda files, size, key: Published(sha256_of_folder(files), size, key, files), FILES, SIZES, KEYS),
    max_size=2,
)
PUBLICATIONS = st.builds(
    Publication,
    number=st.integers(1, 10**6),
    published=TEXT,
    source=TEXT,
    artifacts=st.builds(operator.or_, ZIPS, FOLDERS),
    previous=st.none() | HEX,
    restores=st.none() | st.integers(1, 10**6),
)


@given(PUBLICATIONS)
@settings(deadline=None)
def test_a_publication_comes_back_with_the_same_identity(made: Publication) -> None:
    back = publication.parse(made.content, "here")
    assert back == made
    assert (back.content, back.identity) == (made.content, sha256(made.content))


def test_the_order_of_artifacts_does_not_count() -> None:
    other = Publication(3, MADE.published, MADE.source, dict(reversed(ARTIFACTS.items())), "4" * 64, 1)
    assert other.identity == MADE.identity


def refused(content: bytes) -> RecordError:
    with pytest.raises(RecordError) as error:
        publication.parse(content, "/a/cosyjit.json")
    assert str(error.value).startswith("/a/cosyjit.json: is ")
    assert len(str(error.value).splitlines()) == 1
    return error.value


def test_what_is_no_publication_is_refused() -> None:
    for content in (b"", b"[]", b"{}", b'{"schema": 1}', MADE.content[:-20]):
        assert type(refused(content)) is RecordError
    document = json.loads(MADE.content)
    for key in document:
        assert (
            type(refused(documents.dump({name: each for name, each in document.items() if name != key}))) is RecordError
        )
    error = refused(documents.dump({**document, "schema": 2}))
    assert type(error) is LaterSchemaError


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "../a.zip", ".cosyjit", ".a.zip", "a\0b", "cosyjit.json", "n" * 300], ids=repr
)
def test_artifacts_with_names_that_no_file_here_can_have_are_refused(name: str) -> None:
    document = json.loads(MADE.content)
    document["artifacts"] = {name: document["artifacts"]["a.zip"]}
    assert type(refused(documents.dump(document))) is RecordError


@pytest.mark.parametrize(
    ("key", "value"),
    [("sha256", "../../../etc/passwd"), ("sha256", 5), ("sha256", ""), ("sha256", "A" * 64), ("bytes", "5"),
     ("bytes", None), ("fingerprint", 5), ("fingerprint", "../x"), ("more", 1)],
)  # fmt: skip
def test_artifacts_with_no_digest_size_or_fingerprint_are_refused(key: str, value: object) -> None:
    document = json.loads(MADE.content)
    document["artifacts"]["a.zip"][key] = value
    assert type(refused(documents.dump(document))) is RecordError


@pytest.mark.parametrize(
    ("key", "value"),
    [("number", "x"), ("number", None), ("number", "5"), ("number", 1.5), ("previous", 5), ("previous", "../x"),
     ("restores", "1"), ("artifacts", []), ("artifacts", {"a.zip": 5}), ("published", 5), ("source", [])],
)  # fmt: skip
def test_publications_with_something_of_another_type_are_refused(key: str, value: object) -> None:
    document: dict[str, Any] = json.loads(MADE.content)
    assert type(refused(documents.dump({**document, key: value}))) is RecordError


@pytest.fixture(params=["directory", "memory"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "store" if request.param == "directory" else unique_url())


def chained(store: Store, directory: Path, count: int) -> list[Publication]:
    """Publications of a directory, the last one first."""
    made: list[Publication] = []
    for number in range(1, count + 1):
        previous = made[0].identity if made else None
        made.insert(0, Publication(number, "now", str(directory), ARTIFACTS, previous))
        publication.save(store, made[0], directory, shown=True)
    return made


def test_each_directory_has_its_chain(kept: Store) -> None:
    made = {Path(name): chained(kept, Path(name), count) for name, count in (("/a", 1), ("/a/b", 3), ("/c\udc80", 2))}
    for directory, chain in made.items():
        assert publication.head(kept, directory) == chain[0]
        assert list(publication.chain(kept, chain[0])) == chain
    assert {head.directory: head.publication for head in publication.heads(kept)} == {
        directory: chain[0].identity for directory, chain in made.items()
    }
    assert publication.head(kept, Path("/never")) is None
    assert list(publication.chain(kept, None)) == []


def test_a_chain_ends_where_the_store_does_and_reads_no_further_than_asked(kept: Store) -> None:
    made = chained(kept, Path("/a"), 5)
    kept.remove(publication.name_of(made[3].identity))
    assert list(publication.chain(kept, made[0])) == made[:3]
    assert list(islice(publication.chain(kept, made[0]), 2)) == made[:2]


def test_a_document_that_is_not_what_its_name_says_is_none(kept: Store) -> None:
    first, second = chained(kept, Path("/a"), 2)[::-1]
    for content in (second.content, b"", first.content + b" ", b"nothing"):
        kept.write(publication.name_of(first.identity), content)
        assert publication.load(kept, first.identity) is None
        assert list(publication.chain(kept, second)) == [second]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"schema": 1}', b'{"schema": 1, "directory": 5, "publication": ""}'])
def test_a_damaged_head_is_refused_in_one_line(content: bytes, kept: Store) -> None:
    chained(kept, Path("/a"), 1)
    (entry,) = kept.entries("heads")
    kept.write(entry.name, content)
    for look in (lambda: publication.head(kept, Path("/a")), lambda: list(publication.heads(kept))):
        with pytest.raises(RecordError) as error:
            look()
        assert str(error.value).startswith(f"{kept.root}/{entry.name}: is damaged (")
        assert len(str(error.value).splitlines()) == 1
    kept.write(entry.name, documents.dump({"schema": 2}))
    with pytest.raises(LaterSchemaError):
        publication.head(kept, Path("/a"))


def test_a_head_of_what_can_be_no_directory_is_damaged(kept: Store) -> None:
    directory = "/a\0b"
    document = {"directory": directory, "publication": "0" * 64, "shown": True, "schema": 1}
    kept.write(publication._head(Path(directory)), documents.with_checksum(document))
    with pytest.raises(RecordError, match="is damaged"):
        list(publication.heads(kept))
