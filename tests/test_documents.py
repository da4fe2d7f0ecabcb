"""JSON documents: what is written comes back, and what is none is refused in one line."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosyjit import documents
from cosyjit.errors import LaterSchemaError, RecordError

ODD = st.text(st.characters() | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(ODD, VALUES, max_size=4))
def test_a_document_comes_back_from_lines_of_ascii(document: dict[str, Any]) -> None:
    content = documents.dump(document)
    assert content.isascii()
    assert content.endswith(b"}\n")
    assert documents.load(content, "here") == document


@given(st.dictionaries(ODD, VALUES, min_size=1, max_size=4).filter(lambda document: "checksum" not in document))
def test_a_document_comes_back_without_its_checksum(document: dict[str, Any]) -> None:
    content = documents.with_checksum(document)
    assert documents.without_checksum(documents.load(content, "here"), content, "here") == document


def test_a_document_without_a_checksum_is_refused() -> None:
    content = documents.dump({"a": 1})
    with pytest.raises(RecordError) as error:
        documents.without_checksum(documents.load(content, "here"), content, "here")
    assert str(error.value) == (
        "here: is damaged (its checksum is missing or does not match); remove it, and export again"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"a": 1',
        b"nothing",
        b'{"a": "\xff"}',
        b"\x00",
        b"\xff\xfe",
        b"{}{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
        b"[]",
        b"5",
        b"null",
        b'"text\\nand more"',
    ],
    ids=lambda content: repr(content[:8]),
)
def test_what_is_no_json_object_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(RecordError) as error:
        documents.load(content, "/store/records/a.json")
    assert not isinstance(error.value, LaterSchemaError)
    message = str(error.value)
    assert message.startswith("/store/records/a.json: is damaged (")
    assert message.endswith("); remove it, and export again")
    assert len(message.splitlines()) == 1
    assert len(message) < 300


def test_this_schema_is_read_and_a_later_one_asks_for_an_upgrade() -> None:
    documents.check_schema(documents.SCHEMA, "here")
    with pytest.raises(LaterSchemaError) as error:
        documents.check_schema(documents.SCHEMA + 1, "here")
    assert str(error.value) == "here: is of schema 2, and this cosyjit reads up to 1; upgrade cosyjit"


@pytest.mark.parametrize("schema", [None, "1", 1.5, [1], {}, True, 0, -1], ids=repr)
def test_what_is_no_schema_number_is_damage(schema: object) -> None:
    with pytest.raises(RecordError) as error:
        documents.check_schema(schema, "here")
    assert not isinstance(error.value, LaterSchemaError)
    assert str(error.value).startswith("here: is damaged (")


@given(st.text())
def test_messages_are_one_line_whatever_they_quote(text: str) -> None:
    message = str(documents.damaged_error(text, text))
    assert len(message.splitlines()) <= 1
    assert json.dumps("is damaged")[1:-1] in message
