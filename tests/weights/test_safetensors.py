"""The head of safetensors files: what is written is what the format's own library reads, and what is not is refused."""

import io
import json
import struct
from pathlib import Path
from typing import Any, Final

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from cosyjit.errors import VerificationError
from cosyjit.weights.safetensors import TYPES, Entry, head, read_head

SHAPES: Final = {"b.weight": (2, 3), "a": (5,), "ö": (1, 1, 1), "scalar": ()}
NUMBERS: Final = 6 + 5 + 1 + 1


def packed(text: bytes, tensors: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + tensors


def padded(text: bytes) -> bytes:
    return text + b" " * (-len(text) % 8)


def described(**tensors: Any) -> bytes:
    return padded(json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode())


def read(content: bytes, path: Path) -> tuple[bytes, dict[str, Entry]]:
    path.write_bytes(content)
    with path.open("rb") as file:
        return read_head(file, len(content))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_formats_own_library_reads_what_is_written(dtype: str, tmp_path: Path) -> None:
    numbers = torch.arange(NUMBERS).to(getattr(torch, dtype))
    path = tmp_path / "model.safetensors"
    path.write_bytes(head(SHAPES, dtype) + bytes(numbers.view(torch.uint8).tolist()))
    found = safetensors.torch.load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == SHAPES
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in SHAPES]), numbers, rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@given(st.dictionaries(st.text(max_size=20), st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=9))
def test_a_head_takes_a_multiple_of_eight_bytes_and_is_read_back(shapes: dict[str, tuple[int, ...]]) -> None:
    shapes.pop("__metadata__", None)
    found = head(shapes, "bfloat16")
    assert len(found) % 8 == 0
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    content = found + bytes(2 * numbers)
    assert safetensors.torch.load(content).keys() == shapes.keys()
    text, entries = read_head(io.BytesIO(content), len(content))
    assert text == found
    assert list({name: entry.shape for name, entry in entries.items()}.items()) == list(shapes.items())
    assert {entry.dtype for entry in entries.values()} <= {"BF16"}


ONE: Final = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

DAMAGED: Final = {
    "nothing": b"",
    "half a length": b"\x08\0\0",
    "no head": struct.pack("<Q", 8),
    "a head longer than the file": struct.pack("<Q", 1 << 62) + b"{}",
    "no JSON": packed(b"{notjson"),
    "no object": packed(b"[1,2,3] "),
    "a space first": packed(b" " + described()[:-1]),
    "no multiple of eight": packed(described(a=ONE).rstrip(), bytes(8)),
    "no metadata": packed(b"{}      "),
    "other metadata": packed(b'{"__metadata__":{"format":"tf"}}'),
    "a name twice": packed(padded(described(a=ONE).replace(b'"a"', b'"a": {}, "a"')), bytes(8)),
    "an unknown type": packed(described(a={**ONE, "dtype": "F64"}), bytes(8)),
    "a type that is none": packed(described(a={**ONE, "dtype": ["F32"]}), bytes(8)),
    "a negative size": packed(described(a={**ONE, "shape": [-1, -2]}), bytes(8)),
    "a size that is a float": packed(described(a={**ONE, "shape": [2.0]}), bytes(8)),
    "a shape that is none": packed(described(a={**ONE, "shape": 2}), bytes(8)),
    "offsets that are none": packed(described(a={**ONE, "data_offsets": [0]}), bytes(8)),
    "a tensor that is none": packed(described(a=7), bytes(8)),
    "a field more": packed(described(a={**ONE, "more": 1}), bytes(8)),
    "a field less": packed(described(a={"dtype": "F32", "shape": [2]}), bytes(8)),
    "a tensor too short": packed(described(a={**ONE, "data_offsets": [0, 4]}), bytes(4)),
    "a start behind the first byte": packed(described(a={**ONE, "data_offsets": [4, 8]}), bytes(8)),
    "a gap": packed(described(a={**ONE, "data_offsets": [8, 16]}), bytes(16)),
    "an overlap": packed(described(a=ONE, b={**ONE, "data_offsets": [4, 12]}), bytes(12)),
    "the other order": packed(described(b={**ONE, "data_offsets": [8, 16]}, a=ONE), bytes(16)),
    "a byte too few": packed(described(a=ONE), bytes(7)),
    "a byte too many": packed(described(a=ONE), bytes(9)),
    "a number of thousands of digits": packed(
        padded(described(a=ONE).replace(b"[2]", b"[%s]" % (b"9" * 5000))), bytes(8)
    ),
    "nesting without end": packed(b"{" + b'"a":[' * 50_000),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_head_that_is_not_well_formed_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(VerificationError) as error:
        read(content, path)
    message = str(error.value)
    assert message.startswith(f"{path}: is not a whole safetensors file (")
    assert message.endswith("; this is a fault of cosyjit or of the disk: export again, and report it if it stays")
    assert len(message.splitlines()) == 1


def test_the_same_head_without_the_damage_is_read(tmp_path: Path) -> None:
    text, entries = read(packed(described(a=ONE), bytes(8)), tmp_path / "model.safetensors")
    assert entries == {"a": Entry("F32", (2,), 0, 8)}
    assert text == packed(described(a=ONE))
