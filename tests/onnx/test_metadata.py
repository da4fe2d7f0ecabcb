"""The metadata of an ONNX file, found without its graph: in what `onnx` writes, and in what anyone may have written."""

import io
import random
from contextlib import suppress
from pathlib import Path
from typing import Final

import onnx
import pytest
from onnx import TensorProto, helper

from cosyjit.errors import RecordError
from cosyjit.onnx.metadata import BEGINNING, metadata
from cosyjit.provenance.lineage import lineage
from cosyjit.store.store import Store

NAME: Final = "cosyjit.json"


def model(**entries: str) -> onnx.ModelProto:
    """A model with a weight of 40 KB, and entries of metadata."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [10_000])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [10_000])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [10_000], bytes(40_000), raw=True)
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "graph", [value], [out], [weight])
    made = helper.make_model(graph, producer_name="x", doc_string="text")
    helper.set_model_props(made, entries)
    return made


def found(content: bytes, name: str = NAME, largest: int = 1000) -> bytes:
    return metadata(io.BytesIO(content), name, largest)


def says(content: bytes, largest: int = 1000) -> str:
    with pytest.raises(ValueError, match=r"^it ") as error:
        found(content, largest=largest)
    assert type(error.value) is ValueError
    return str(error.value)


def test_an_entry_is_found_wherever_it_is() -> None:
    entries = {"a": "1", NAME: "content \u20ac", "b": "", "": "nothing"}
    content = model(**entries).SerializeToString()
    assert content.startswith(BEGINNING)
    first = onnx.ModelProto(ir_version=8)
    helper.set_model_props(first, entries)
    for each in (content, first.SerializeToString() + content, content + first.SerializeToString()):
        for name, value in entries.items():
            assert found(each, name) == value.encode()


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.count += len(content)
        return content


def test_the_graph_is_not_read() -> None:
    file = Counting(model(**{NAME: "content"}).SerializeToString())
    assert metadata(file, NAME, 1000) == b"content"
    assert file.count < 200


def test_what_has_no_such_entry_says_so() -> None:
    missing = f"it has no metadata {NAME}"
    assert says(b"") == says(model().SerializeToString()) == says(model(a=NAME).SerializeToString()) == missing
    assert says(model(**{NAME: "x" * 2000}).SerializeToString()) == missing
    without_value = bytes([14 << 3 | 2, 14, 1 << 3 | 2, 12, *NAME.encode()])
    assert says(without_value) == missing


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x08", "it is cut short"),
        (b"\x08\x80", "it is cut short"),
        (b"\x72\x05\x0a", "it is cut short"),
        (b"\x72\x02\x0a\x05", "it is cut short"),
        (b"\x09\0\0\0", "it is cut short"),
        (b"\x0b", "it has a field of kind 3"),
        (b"\x08" + b"\xff" * 11, "it has a number of more than ten bytes"),
        (b"\x72" + b"\xff" * 9 + b"\x7f", "it is cut short"),
        (b"\x08\x01" * 1001, "it has more than 1,000 fields"),
        (b"\x72\xd2\x0f" + b"\x08\x01" * 1001, "it has more than 1,000 fields"),
    ],
)
def test_what_is_not_such_a_message_is_refused(content: bytes, problem: str) -> None:
    assert says(content, 5000) == problem


def test_any_change_of_any_byte_gives_an_entry_or_is_refused() -> None:
    content = model(a="1", **{NAME: "content"}).SerializeToString()
    places = [*range(200), *range(len(content) - 200, len(content))]
    chance = random.Random(0)  # noqa: S311  (the same each time)
    for place in places:
        for byte in (0, 0x7F, 0x80, 0xFF, chance.randrange(256)):
            changed = bytearray(content)
            changed[place] = byte
            with suppress(ValueError):
                assert len(found(bytes(changed))) <= len(content)


@pytest.mark.parametrize("content", [b"\x08\x08", model(a="b").SerializeToString(), b"\x08" + b"\xff" * 100])
def test_a_file_that_others_have_made_is_not_an_artifact(content: bytes, tmp_path: Path, store: Store) -> None:
    path = tmp_path / "flow.decoder.estimator.fp32.onnx"
    path.write_bytes(content)
    with pytest.raises(RecordError) as error:
        lineage(path, store=store)
    assert str(error.value).startswith(f"{path}: is not an artifact of cosyjit (it ")
    assert str(error.value).endswith("; name a zip, an ONNX file or a folder that cosyjit has built")
