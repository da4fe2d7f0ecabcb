"""Records: standard statements that come back whole, or are refused."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosyjit import documents
from cosyjit.documents import now
from cosyjit.errors import LaterSchemaError, RecordError
from cosyjit.fs.hashing import sha256_of_folder
from cosyjit.provenance import record
from cosyjit.provenance.fingerprint import Fingerprint
from cosyjit.provenance.record import Material, Record
from cosyjit.store.store import Store
from cosyjit.weights.tensor_digests import TensorDigest
from tests.support.processes import start
from tests.support.stores import VERSIONS, fingerprint, record_of, unique_url

DIGEST = "0123456789abcdef" * 4


def statement(**others: Any) -> dict[str, Any]:
    """A record as JSON has it."""
    return dict(json.loads(documents.dump(record_of(DIGEST, **others).statement)))


def test_a_record_is_an_in_toto_statement() -> None:
    """Field names and values from https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md."""
    found = statement()
    assert found.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    assert found["subject"] == [{"name": "llm.llm.fp32.zip", "digest": {"sha256": DIGEST}}]


def test_its_predicate_is_slsa_provenance() -> None:
    """Field names from https://slsa.dev/spec/v1.0/provenance#schema; those of other makers have a prefix."""
    predicate = statement(run={"flow_run": "f", "task_run": "t"})["predicate"]
    definition, details = predicate["buildDefinition"], predicate["runDetails"]
    assert {key for key in predicate if not key.startswith("cosyjit_")} == {"buildDefinition", "runDetails"}
    assert definition.keys() == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    assert re.fullmatch(r"[a-z]+:\S+", definition["buildType"])
    assert definition["externalParameters"] == {
        "source": "/models/a",
        "component": "llm.llm",
        "precision": "fp32",
        "device": "cpu",
    }
    assert definition["internalParameters"]["fingerprint"] == fingerprint().key
    assert definition["internalParameters"]["parts"] == fingerprint().parts
    assert definition["resolvedDependencies"] == [
        {"name": "llm.pt", "uri": "file:///models/a/llm.pt", "digest": {"sha256": "1" * 64}}
    ]
    assert details.keys() == {"builder", "metadata"}
    assert details["builder"].keys() == {"id", "version"}
    assert re.fullmatch(r"[a-z]+:\S+", details["builder"]["id"])
    assert details["builder"]["version"] == VERSIONS
    metadata = details["metadata"]
    assert {key for key in metadata if not key.startswith("cosyjit_")} == {"invocationId", "startedOn", "finishedOn"}
    assert metadata["invocationId"] == "f/t"
    assert metadata["cosyjit_run"] == {"flow_run": "f", "task_run": "t"}
    assert metadata["cosyjit_figures"] == {"bytes": 5, "weight_bytes": 4, "seconds": 0.25}
    for moment in (metadata["startedOn"], metadata["finishedOn"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)


def test_a_record_of_no_run_names_none() -> None:
    metadata = statement()["predicate"]["runDetails"]["metadata"]
    assert "invocationId" not in metadata
    assert metadata["cosyjit_run"] == {}


def test_the_time_is_universal_and_has_milliseconds() -> None:
    moments = [now() for _ in range(3)]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment) for moment in moments)
    assert moments == sorted(moments)
    assert datetime.fromisoformat(moments[0].replace("Z", "+00:00")).utcoffset() is not None


def test_versions_are_those_of_what_builds() -> None:
    versions = record.current_versions()
    assert versions.keys() == {"cosyjit", "torch", "python"}
    assert all(versions.values())


ODD = st.text(max_size=6) | st.sampled_from(["\udc80name", "a\nb", "", "é声", "\u2028", "\x00", "\\", '"', "../.."])
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ODD,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ODD, inner, max_size=2),
    max_leaves=5,
)
COUNTS = st.integers(0, documents.LARGEST - 1)
NUMBERS = st.integers(-documents.LARGEST + 1, documents.LARGEST - 1) | st.floats(-9e18, 9e18)
OBJECTS = st.dictionaries(ODD, JSON, max_size=3)
TENSORS = st.builds(TensorDigest, ODD, st.lists(COUNTS, max_size=3).map(tuple), ODD)
FINGERPRINTS = st.builds(
    Fingerprint,
    tensors=st.dictionaries(ODD, TENSORS, max_size=3),
    config=st.fixed_dictionaries({"class": ODD, "options": OBJECTS}, optional={"overrides": OBJECTS}),
    precision=ODD,
    device=ODD,
    recipe=OBJECTS,
    encoders=COUNTS,
    torch=ODD,
)
RECORDS = st.builds(
    Record,
    name=ODD,
    sha256=HEX,
    fingerprint=FINGERPRINTS,
    component=ODD,
    source=ODD,
    materials=st.lists(st.builds(Material, ODD, ODD, HEX), max_size=3).map(tuple),
    started=ODD,
    finished=ODD,
    figures=st.dictionaries(ODD, NUMBERS, max_size=2).map(lambda more: {**more, "bytes": 5}),
    run=st.dictionaries(ODD, ODD, max_size=2),
    versions=st.dictionaries(ODD, ODD, max_size=2),
)


@given(RECORDS)
@settings(max_examples=60, deadline=None)
def test_a_record_comes_back_whatever_its_texts_are(made: Record) -> None:
    content = documents.with_checksum(made.statement)
    assert content.isascii()
    back = record.parse(content, "here")
    assert back == made
    assert back.fingerprint.key == made.fingerprint.key
    assert documents.with_checksum(back.statement) == content


def test_a_record_is_kept_under_its_fingerprint() -> None:
    store = Store(unique_url())
    made = record_of(DIGEST)
    assert record.load(store, made.fingerprint.key) is None
    record.save(store, made)
    assert [entry.name for entry in store.entries()] == [f"records/{made.fingerprint.key}.json"]
    assert record.load(store, made.fingerprint.key) == made


def refused(content: bytes) -> RecordError:
    """The error for a record of this content, which is one line that names it."""
    store, key = Store(unique_url()), fingerprint().key
    store.write(record.name_of(key), content)
    with pytest.raises(RecordError) as error:
        record.load(store, key)
    message = str(error.value)
    assert message.startswith(f"{store.root}/records/{key}.json: is ")
    assert len(message.splitlines()) == 1
    assert store.read(record.name_of(key)) == content
    return error.value


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"[]", b"{}", b'{"predicate": []}', b'{"predicate": {}}'], ids=repr
)
def test_what_is_no_record_is_refused(content: bytes) -> None:
    assert type(refused(content)) is RecordError


def test_a_record_that_was_cut_short_is_refused() -> None:
    content = documents.with_checksum(record_of(DIGEST).statement)
    for size in range(0, len(content) - 2, 37):
        assert type(refused(content[:size])) is RecordError


def test_another_fingerprints_record_is_refused() -> None:
    error = refused(documents.with_checksum(record_of(DIGEST, "other").statement))
    assert "another fingerprint's" in str(error)


Place = tuple[str | int, ...]


def places(value: Any, before: Place = ()) -> list[Place]:
    """The ways to all that is in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in items for place in [(*before, key), *places(each, (*before, key))]]


def changed(document: Any, place: Place, change: Callable[[Any], Any]) -> bytes:
    """A document with something else at a place, or without it where the change gives None."""
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = change(inner[place[-1]])
    if inner[place[-1]] is None:
        del inner[place[-1]]
    return documents.with_checksum(document)


INTERNAL: Place = ("predicate", "buildDefinition", "internalParameters")


def is_part(place: Place) -> bool:
    """Whether a place is among what the fingerprint is taken over."""
    return place[:3] == INTERNAL and len(place) > 3


@pytest.mark.parametrize("place", [place for place in places(statement()) if is_part(place)], ids=str)
def test_parts_that_were_tampered_with_are_refused(place: Place) -> None:
    def other(value: Any) -> Any:
        if isinstance(value, str):
            return f"{value}x"
        if isinstance(value, int | float):
            return value + 1
        return {**value, "x": 1} if isinstance(value, dict) else [*value, 1]

    assert type(refused(changed(statement(), place, other))) is RecordError


def is_needed(place: Place) -> bool:
    """Whether a place has to be there: no entry of a table or list of any length."""
    return place[-1] not in {"_type", "predicateType", "buildType", "id", "parts"} and not (
        {"parts", "tensors", "version", "cosyjit_figures"} & set(place[:-1])
        or place[-2:-1] == ("resolvedDependencies",)
    )


@pytest.mark.parametrize("place", [place for place in places(statement()) if is_needed(place)], ids=str)
def test_a_record_that_lacks_something_is_refused(place: Place) -> None:
    assert type(refused(changed(statement(), place, lambda _: None))) is RecordError


def is_text_or_table(place: Place) -> bool:
    """Whether a place has a text or a table that is made use of, beside the parts."""
    used = {"subject", "externalParameters", "resolvedDependencies", "metadata", "version"}
    return bool(used & set(place)) and "cosyjit_figures" not in place[:-1] and place[-1] != "invocationId"


@pytest.mark.parametrize("place", [place for place in places(statement()) if is_text_or_table(place)], ids=str)
def test_a_record_with_something_of_another_type_is_refused(place: Place) -> None:
    values: list[Any] = [5, True, [1], [[]], "text"]
    for value in values:
        content = changed(statement(), place, partial(unless_of_a_kind, value))
        assert content == documents.with_checksum(statement()) or type(refused(content)) is RecordError


def unless_of_a_kind(value: Any, old: Any) -> Any:
    return old if type(old) is type(value) else value


@pytest.mark.parametrize("digest", ["", "0" * 63, "../" * 21 + "a", "0" * 63 + "/", "G" * 64], ids=len)
def test_a_record_of_an_object_with_no_digest_is_refused(digest: str) -> None:
    found = statement()
    found["subject"][0]["digest"]["sha256"] = digest
    assert type(refused(documents.with_checksum(found))) is RecordError


def test_a_statement_of_another_kind_is_refused() -> None:
    for name in ("_type", "predicateType"):
        assert type(refused(documents.with_checksum({**statement(), name: "https://example.com/v9"}))) is RecordError


OTHERS: list[tuple[Place, Any]] = [
    ((*INTERNAL, "parts", "tensors", "count"), 2.0),
    ((*INTERNAL, "tensors", "step"), {"int64": 0, "": 0, "0" * 32: 0}),
    ((*INTERNAL, "tensors", "step"), ["int64", {}, "0" * 32]),
    (("predicate", "cosyjit_schema"), True),
    (("predicate", "cosyjit_schema"), 1.0),
]


@pytest.mark.parametrize(("place", "value"), OTHERS, ids=str)
def test_what_python_holds_equal_and_json_does_not_is_refused(place: Place, value: Any) -> None:
    assert type(refused(changed(statement(), place, lambda _: value))) is RecordError


def test_what_is_written_otherwise_than_it_was_sealed_is_refused() -> None:
    content = documents.with_checksum(record_of(DIGEST).statement)
    for other in (content.replace(b": ", b":", 1), content.replace(b"\n", b"\n\n", 1), content + b" ", b" " + content):
        assert type(refused(other)) is RecordError


def test_the_objects_of_a_record_are_those_that_it_names() -> None:
    store = Store(unique_url())
    files = {"a": "1" * 64, "b": "2" * 64}
    zip_, folder = record_of(DIGEST), record_of(sha256_of_folder(files), "folder", name="vllm", files=files)
    for made in (zip_, folder):
        assert record.objects(store, made.fingerprint.key) is None
        record.save(store, made)
        assert record.objects(store, made.fingerprint.key) == made.objects
    content = store.read(record.name_of(zip_.fingerprint.key)) or b""
    store.write(record.name_of(folder.fingerprint.key), content)
    with pytest.raises(RecordError, match="another fingerprint's"):
        record.objects(store, folder.fingerprint.key)
    store.write(record.name_of(zip_.fingerprint.key), content[:-9])
    with pytest.raises(RecordError, match="is damaged"):
        record.objects(store, zip_.fingerprint.key)


def test_a_later_schema_is_told_apart_whatever_else_it_has() -> None:
    found = statement()
    found["predicate"] = {"cosyjit_schema": 2, "everything": "else"}
    error = refused(documents.with_checksum(found))
    assert type(error) is LaterSchemaError
    assert str(error).endswith("is of schema 2, and this cosyjit reads up to 1; upgrade cosyjit")


def test_the_embedded_provenance_has_the_parts_and_no_time_path_or_run() -> None:
    made = fingerprint()
    form = record.embedded_provenance(made)
    assert json.loads(form) == {"fingerprint": made.key, "parts": made.parts, "schema": documents.SCHEMA}
    found: Mapping[str, Any] = json.loads(form)
    assert found["parts"].keys() == {"tensors", "config", "precision", "device", "recipe", "encoders", "torch"}


@given(FINGERPRINTS, FINGERPRINTS)
@settings(max_examples=40, deadline=None)
def test_embedded_provenance_is_equal_where_fingerprints_are(one: Fingerprint, other: Fingerprint) -> None:
    again = Fingerprint(
        dict(reversed(list(one.tensors.items()))),
        dict(reversed(list(one.config.items()))),
        one.precision,
        one.device,
        dict(reversed(list(one.recipe.items()))),
        one.encoders,
        one.torch,
    )
    assert record.embedded_provenance(one) == record.embedded_provenance(again)
    assert (record.embedded_provenance(one) == record.embedded_provenance(other)) == (one.key == other.key)


READ_ONE = """
import sys
from cosyjit.provenance import record
from cosyjit.store.store import Store
store = Store(sys.argv[1])
record.load(store, sys.argv[2])  # with whatever is imported for it
opened = []
sys.addaudithook(lambda event, arguments: opened.append(f"{event} {arguments[0]}") if event in (
    "open", "os.scandir", "os.listdir") and not isinstance(arguments[0], int) else None)
found = record.load(store, sys.argv[2])
assert found.fingerprint.key == sys.argv[2]
print(*opened, sep="\\n")
"""


@pytest.mark.slow
def test_to_read_one_of_a_thousand_records_opens_that_one(tmp_path: Path) -> None:
    content = documents.with_checksum(record_of(DIGEST).statement)
    (tmp_path / "records").mkdir()
    for number in range(999):
        (tmp_path / "records" / f"{number:032x}.json").write_bytes(content)
    record.save(Store(tmp_path), record_of(DIGEST))
    key = fingerprint().key
    with start(READ_ONE, tmp_path, key) as reader:
        out, err = reader.communicate(timeout=600)
    assert (out.splitlines(), err) == ([f"open {tmp_path}", "open records", f"open {key}.json"], "")
