"""Where the tensors of real `torch.save` files are, and which files are refused."""

import collections
import contextlib
import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cosyjit.errors import CheckpointError
from cosyjit.torchscript.script import deprecations_ignored
from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.tensors import ITEM_SIZES, StoredTensor
from cosyjit.weights.weights_file import opened
from tests.support.gadgets import PICKLED
from tests.support.hostile_weights import dictionary, named, tensor, weights
from tests.support.weights_index import PATH, assert_as_torch_loads, indexed, indexed_file, refused, rewritten, saved

DTYPES: Final = [getattr(torch, name) for name in ITEM_SIZES]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_type_of_number_is_found(dtype: torch.dtype) -> None:
    numbers = (torch.arange(6) - 2).to(dtype).reshape(2, 3)
    index = assert_as_torch_loads(saved({"a": numbers, "b": numbers.clone().t(), "c": numbers[0, 0].clone()}))
    assert {entry.dtype for entry in index.values() if isinstance(entry, StoredTensor)} == {
        str(dtype).removeprefix("torch.")
    }


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(5.0),
        torch.empty(0),
        torch.empty(0, 3),
        torch.empty(3, 0, 2).transpose(0, 2),
        torch.ones(1, 1, 1),
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0)[5:17],
        torch.arange(24.0).reshape(4, 6)[1:3, 2:5],
        torch.arange(24.0)[::5],
        torch.arange(24.0)[3],
        torch.arange(24.0).as_strided((2, 3), (0, 1), 2),
        torch.arange(24.0).as_strided((4, 4), (1, 1)),
        torch.arange(24.0)[7:7],
        torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t()),
        torch.nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False),
        torch.ones(3, requires_grad=True),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} {tensor.stride()} {tensor.storage_offset()}",
)
def test_each_form_of_tensor_is_found(tensor: Tensor) -> None:
    assert_as_torch_loads(saved({"a": tensor}))


@given(st.data())
@settings(max_examples=50)
def test_any_cut_and_permutation_is_found(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    tensor = torch.arange(torch.Size(shape).numel()).to(data.draw(st.sampled_from(DTYPES))).reshape(shape)
    for axis, size in enumerate(shape):
        start = data.draw(st.integers(0, size))
        tensor = tensor.narrow(axis, start, data.draw(st.integers(0, size - start)))
    assert_as_torch_loads(saved({"a": tensor.permute(data.draw(st.permutations(range(len(shape)))))}))


def test_tensors_that_share_their_numbers_are_found_in_one_place() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    index = assert_as_torch_loads(saved({"a": whole, "tied": whole, "row": whole[1], "turned": whole.t()}))
    a, tied, row, turned = (entry for entry in index.values() if isinstance(entry, StoredTensor))
    assert a.start == tied.start == turned.start == row.start - 16


def test_a_state_dictionary_with_versions_of_its_modules_is_one() -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    assert isinstance(state, collections.OrderedDict)
    assert hasattr(state, "_metadata")
    assert "1.num_batches_tracked" in assert_as_torch_loads(saved(state))


def test_a_file_of_many_tensors_is_read() -> None:
    assert len(assert_as_torch_loads(saved({f"layer.{i}.weight": torch.full((2,), i) for i in range(700)}))) == 700


@pytest.mark.parametrize("model", ["tiny", "tiny2"])
def test_the_files_of_a_model_are_read(model: str, request: pytest.FixtureRequest) -> None:
    for path in request.getfixturevalue(model).glob("*.pt"):
        assert indexed_file(path) == assert_as_torch_loads(path.read_bytes())


def test_entries_that_are_no_tensors_have_the_names_of_their_types() -> None:
    state = {"epoch": 3, "best": 1.5, "tag": "x", "nothing": None, "nested": {"a": torch.ones(2)}, "row": [1], 7: 1}
    kinds = {"epoch": "int", "best": "float", "tag": "str", "nothing": "NoneType", "nested": "dict", "row": "list"}
    assert indexed(saved(state)) == {name: Other(kind) for name, kind in kinds.items()}


# torch marks what is conjugated to be conjugated, or negated, when it is loaded: the file holds the other numbers.
CONJUGATED: Final = torch.complex(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])).conj()


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "Tensor, sparse"),
        (torch.empty(2, device="meta"), "Tensor without numbers"),
        (CONJUGATED, "Tensor, conjugated or negated"),
        (CONJUGATED.imag, "Tensor, conjugated or negated"),
    ],
    ids=["sparse", "without numbers", "conjugated", "negated"],
)
def test_tensors_without_plain_numbers_are_passed_over(tensor: Tensor, kind: str) -> None:
    index = indexed(saved({"a": tensor, "b": torch.ones(2)}))
    assert index["a"] == Other(kind)
    assert Other(kind).is_tensor
    assert isinstance(index["b"], StoredTensor)


# What is refused.


WHOLE: Final = saved({"a": torch.arange(6.0).reshape(2, 3)})
with zipfile.ZipFile(io.BytesIO(WHOLE)) as _archive:
    PICKLE: Final = _archive.read("archive/data.pkl")


def described(old: bytes, new: bytes) -> bytes:
    """A file of a 2 x 3 tensor whose pickle says something else of it."""
    assert PICKLE.count(old) == 1
    return rewritten(WHOLE, {"data.pkl": PICKLE.replace(old, new)})


def test_an_archive_written_by_others_is_read() -> None:
    assert_as_torch_loads(rewritten(WHOLE, {}))
    assert_as_torch_loads(rewritten(WHOLE, {"byteorder": b"little", "more": b"anything"}))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_are_compressed_as_torch_does_not_read_are_refused(method: int) -> None:
    refused(rewritten(WHOLE, {}, method), f"has members that are compressed by method {method} (archive/")


def test_a_parameter_that_is_made_by_its_class_is_a_tensor() -> None:
    made = named("torch.nn.parameter", "Parameter") + tensor() + b"\x85"
    for instruction in (b"R", b"\x81"):
        assert_as_torch_loads(weights(dictionary({"a": made + instruction})))


def test_big_byte_order_is_refused() -> None:
    refused(
        rewritten(WHOLE, {"byteorder": b"big"}),
        "is from a machine of another byte order; load it, and save it again with torch.save",
    )


@pytest.mark.parametrize("size", [0, 20, 23, 25, 28])
def test_a_storage_that_is_not_as_long_as_its_description_is_refused(size: int) -> None:
    refused(rewritten(WHOLE, {"data/0": bytes(size)}), f"storage 0 has {size} bytes instead of ")


def test_a_storage_that_is_missing_is_refused() -> None:
    refused(described(b"X\1\0\0\x000", b"X\1\0\0\x001"), "is damaged")


class Said(NamedTuple):
    """A part of the pickle of a 2 x 3 tensor, and what stands there instead."""

    part: bytes
    instead: bytes


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def longest(value: int) -> bytes:
    return b"\x8a\xff" + value.to_bytes(255, "little", signed=True)


def broken(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


SHAPE: Final = b"K\2K\3\x86"
OFFSET: Final = b"QK\0"
STRIDE: Final = b"K\3K\1\x86"
NUMBERS: Final = b"K\6t"
SAID: Final = {
    "taller": Said(SHAPE, b"K\3K\3\x86"),
    "far larger": Said(SHAPE, integer(2**31 - 1) + integer(2**31 - 1) + b"\x86"),
    "larger than any memory": Said(SHAPE, longest(2**2000) + b"K\3\x86"),
    "negative size": Said(SHAPE, integer(-2) + b"K\3\x86"),
    "negative sizes": Said(SHAPE, integer(-2) + integer(-3) + b"\x86"),
    "later": Said(OFFSET, b"QK\1"),
    "behind its storage": Said(OFFSET, b"Q" + integer(2**31 - 1)),
    "before its storage": Said(OFFSET, b"Q" + integer(-1)),
    "longer steps": Said(STRIDE, b"K\4K\1\x86"),
    "backwards": Said(STRIDE, integer(-3) + b"K\1\x86"),
    "fewer steps than sizes": Said(STRIDE, b"K\3\x85"),
    "more steps than sizes": Said(STRIDE, b"K\3K\1K\1\x87"),
    "storage past the member": Said(NUMBERS, b"K\7t"),
    "storage past any file": Said(NUMBERS, longest(2**2000) + b"t"),
    "storage of less than nothing": Said(NUMBERS, integer(-6) + b"t"),
    "storage of another kind": Said(b"storageq", b"storbgeq"),
    "size as text": Said(SHAPE, b"U\x012K\3\x86"),
    "size as a broken number": Said(SHAPE, broken(2.0) + b"K\3\x86"),
    "size as a truth": Said(SHAPE, b"\x88K\3\x86"),
    "offset as a broken number": Said(OFFSET, b"Q" + broken(0.0)),
    "offset as no number": Said(OFFSET, b"Q" + broken(float("nan"))),
    "step as no number": Said(STRIDE, broken(float("nan")) + b"K\1\x86"),
    "storage of no number": Said(NUMBERS, broken(float("nan")) + b"t"),
    "shape as a list": Said(SHAPE, b"]K\2aK\3a"),
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_a_tensor_that_the_file_does_not_hold_is_refused(said: Said) -> None:
    refused(described(said.part, said.instead), "is not as torch.save writes it (")


def test_sizes_of_the_archive_past_the_file_are_refused() -> None:
    content = bytearray(WHOLE)
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
        central = archive.start_dir
    at = content.index(b"archive/data/0", central) - 46
    assert content[at : at + 4] == b"PK\x01\x02"
    struct.pack_into("<II", content, at + 20, len(content), len(content))
    refused(bytes(content), "archive/data/0 is cut short")


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_a_pickle_too_large_for_any_checkpoint_is_not_read(name: str) -> None:
    refused(
        rewritten(WHOLE, {name: bytes((2 << 20) + 1)}),
        f"has 2097153 bytes in archive/{name}, more than the 2097152 that are read; save ",
    )


def test_a_torchscript_archive_is_refused() -> None:
    class Scripted(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    buffer = io.BytesIO()
    with deprecations_ignored():
        torch.jit.save(torch.jit.script(Scripted()), buffer)
    load = f'import torch; m = torch.jit.load("{PATH}", map_location="cpu"); '
    lines = load + f'torch.save(m.state_dict(), "{PATH}" + ".new")'
    way_out = f"save its state dictionary, and put that in its place: {lines}"
    assert refused(buffer.getvalue()) == f"{PATH}: is a TorchScript archive; {way_out}"


@pytest.mark.parametrize("gadget", PICKLED)
def test_what_would_run_code_is_refused(gadget: Callable[[str], object], tmp_path: Path) -> None:
    refused(saved({"a": torch.ones(2), "b": gadget(str(tmp_path / "marker"))}), "which loading could run as code (")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("value", "kind"), [([torch.ones(2)], "list"), (torch.ones(2), "Tensor"), (None, "NoneType"), (5, "int")]
)
def test_what_is_no_dictionary_is_named(value: object, kind: str) -> None:
    assert refused(saved(value)) == f"{PATH}: holds a {kind}; save it as a flat state dictionary"


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn], ids=str)
def test_a_tensor_of_another_type_of_number_does_not_keep_the_others_from_being_read(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = indexed(saved({"a": torch.ones(3).to(dtype), "b": torch.ones(2)}))
    assert isinstance(index["a"], Other)
    assert isinstance(index["b"], StoredTensor)


def test_a_file_that_is_missing_or_cannot_be_read_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "llm.pt"
    with pytest.raises(CheckpointError, match=r"llm\.pt: does not exist; put the weights file beside"), opened(path):
        pass
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"llm\.pt: is a directory; put the weights file there"), opened(path):
        pass


SMALL: Final = saved({"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(1, dtype=torch.bool)})


def assert_sound(content: bytes) -> None:
    """Whatever comes out lies within the file; or it is a CheckpointError of one line."""
    with contextlib.suppress(CheckpointError):
        for entry in indexed(content).values():
            assert isinstance(entry, Other) or 0 <= entry.start <= entry.start + entry.extent <= len(content)
            assert isinstance(entry, Other) or entry.size <= len(content)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flip_anywhere_raises_nothing_else(flip: int) -> None:
    content = bytearray(SMALL)
    for i in range(len(content)):
        content[i] ^= flip
        assert_sound(bytes(content))
        content[i] ^= flip


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_to_the_description_raises_nothing_else(data: st.DataObject) -> None:
    content = bytearray(PICKLE)
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255) | st.sampled_from(PICKLE))
    assert_sound(rewritten(WHOLE, {"data.pkl": bytes(content)}))


def test_a_file_cut_anywhere_is_refused() -> None:
    for length in range(0, len(SMALL), 7):
        refused(SMALL[:length])
