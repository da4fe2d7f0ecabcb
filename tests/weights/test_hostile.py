"""Weights files of strangers: nothing in them is run; what is refused is so in one line, in bounded time and memory."""

import contextlib
import io
import os
import re
import socket
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cosyjit import build, plan
from cosyjit.errors import CheckpointError, TensorMismatchError
from cosyjit.families import FAMILIES
from cosyjit.torchscript.load import _map, is_row_major
from cosyjit.weights.fit import EncoderNeed
from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.tensors import ITEM_SIZES, Entries, StoredTensor
from cosyjit.weights.torch_files import _STORAGES
from cosyjit.weights.weights_file import _check_cost
from tests.fuzz.weights import SEEDS, mutate
from tests.support.gadgets import INSTRUCTED, NAMED, Command
from tests.support.hostile_weights import (
    SOUND,
    VERSION,
    Part,
    archive,
    call,
    dictionary,
    named,
    number,
    parts,
    pickled,
    row,
    storage,
    tensor,
    text,
    weights,
    write_sparse,
)
from tests.support.processes import ROOT, finished, run_here, spawn
from tests.support.weights_index import PATH, assert_as_torch_loads, indexed, inflated, refused, rewritten, tensor_of

WHOLE: Final = weights(SOUND)
SMALL_PARTS: Final = parts(SOUND)


def deflated(numbers: bytes) -> bytes:
    """An archive that unpacks to a thousand times its size."""
    return rewritten(WHOLE, {"data/0": numbers}, zipfile.ZIP_DEFLATED)


OTHER_ARCHIVES: Final[dict[str, tuple[Callable[[], bytes], str]]] = {
    "two pickles": (lambda: archive([*SMALL_PARTS, SMALL_PARTS[0]]), "two members have one name"),
    "two pickles in two cases": (
        lambda: archive([*SMALL_PARTS, Part(b"archive/DATA.pkl")]),
        "two members have one name",
    ),
    "pickles in two folders": (lambda: archive([*SMALL_PARTS, Part(b"b/data.pkl")]), "two members have one name"),
    "storages in another folder": (lambda: archive([*SMALL_PARTS, Part(b"b/data/1")]), "several folders"),
    "pickle in an inner folder": (
        lambda: archive([Part(b"archive/a/data.pkl", SMALL_PARTS[0].content)]),
        "is a zip archive, not a file",
    ),
    "storage within the pickle": (
        lambda: archive([*SMALL_PARTS[:2], replace(SMALL_PARTS[2], offset=50), VERSION]),
        "cut short",
    ),
    "storage under another name": (
        lambda: archive([*SMALL_PARTS[:2], replace(SMALL_PARTS[2], header_name=b"archive/data/1"), VERSION]),
        "the header of archive/data/0 names another member",
    ),
    "archive in an archive": (
        lambda: archive([Part(b"archive/archive.zip", WHOLE)]),
        "is a zip archive, not a file of ",
    ),
    "archive behind an archive": (lambda: WHOLE + archive(SMALL_PARTS), "its directory is not at its end"),
    "pickle in front": (lambda: pickled(SOUND) + WHOLE, "a reference to a storage where none can be"),
    "script in front": (lambda: b"#!/bin/sh\nexit\n" + WHOLE, "it does not begin as a file of torch.save does"),
    "page behind": (lambda: WHOLE + b"<html></html>", "has a comment or other bytes behind its end"),
}


@pytest.mark.parametrize("name", OTHER_ARCHIVES)
def test_an_archive_that_torch_would_not_write_is_refused(name: str) -> None:
    made, reason = OTHER_ARCHIVES[name]
    refused(made(), reason)


def test_a_tar_archive_is_refused() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            file.addfile(tarfile.TarInfo(name))
    refused(buffer.getvalue(), "is a tar archive; unpack it, and put the file that it holds in its place")


@pytest.mark.parametrize("name", INSTRUCTED)
def test_what_would_run_code_is_refused_wherever_it_stands(name: str, tmp_path: Path) -> None:
    value = INSTRUCTED[name](str(tmp_path / "marker"))
    sound = tensor()
    for said in (
        value,
        dictionary({"a": value, "b": sound}),
        SOUND + value + b"b",
        tensor(more=value),
        call(value),
    ):
        refused(weights(said))
    refused(pickled(value))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", NAMED, ids=lambda name: name[:40])
def test_the_name_of_what_would_run_code_is_shown_in_one_short_line(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    message = refused(weights(dictionary({"a": call(named(module, attribute))})), "which loading could run as code (")
    assert message.isprintable()
    assert len(message) < 400


SURROGATE: Final = "llm.\ud800"
UNFIT: Final = {
    "long": "x" * 201,
    "longest": "x" * 1_000_000,
    "lines": "llm.a\nb",
    "terminal": "\x1b[2J",
    "half": SURROGATE,
}


@pytest.mark.parametrize("name", UNFIT.values(), ids=UNFIT)
def test_names_that_cannot_be_shown_are_told_in_a_line_that_can(name: str) -> None:
    entries = indexed(weights(dictionary({"llm." + name: tensor()})))
    assert list(entries) == ["llm." + name]
    with pytest.raises(TensorMismatchError) as error:
        EncoderNeed(FAMILIES[0].components[1], {}).check(Path("llm.pt"), entries)
    assert str(error.value).startswith("llm.pt: llm.llm: the tensors do not fit the configuration (1 unexpected: llm.")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


EXPONENTIAL: Final = b")" + b"q\1h\1\x86" * 64
"""A pair of twice the same pair, and so on: to show it takes 2^64 steps."""

DESCRIBED: Final = {
    "no numbers, in too many rows": tensor((0, 2**62, 4), (1, 1, 1)),
    "too many rows, without numbers": tensor((2**62, 4, 0), (0, 0, 0)),
    "no numbers, and a size that is none": tensor((0, 2**63), (1, 1)),
    "no numbers, and a step that is none": tensor((0, 1), (2**63, 1)),
    "no numbers, and an offset that is none": tensor((0, 1), (1, 1), 2**63),
    "no numbers, and a negative offset": tensor((0, 1), (1, 1), -1),
    "an offset past any file": tensor(offset=2**2000),
    "a step past any file": tensor(stride=(2**62, 1)),
    "a step that is no number of torch": tensor((1, 3), (2**63, 1)),
    "too many dimensions": tensor([1] * 65, [1] * 65),
    "a million dimensions": tensor([1] * 300_000, [1] * 300_000),
    "shape as an exponential tuple": tensor(sizes=EXPONENTIAL),
    "stride as an exponential tuple": tensor(steps=EXPONENTIAL),
    "shape of exponential tuples": tensor(sizes=EXPONENTIAL + b"h\1\x86"),
    "storage of no storage": tensor(of=text("storage")),
    "storage of a row": tensor(of=row(text("float32"), number(0), number(24))),
    "storage of a tensor": tensor(of=tensor()),
    "storage of a repeated tensor": tensor(of=tensor((6,), (0,), 5)),
    "storage of another kind of tensor": tensor(of=call(named("torch", "Size"))),
    "storage under an exponential name": tensor(
        of=row(EXPONENTIAL, named("torch", "FloatStorage"), text("0"), b"N", b"K\6") + b"Q"
    ),
    "storage of an exponential type": tensor(of=row(text("storage"), EXPONENTIAL, text("0"), b"N", b"K\6") + b"Q"),
    "storage of no type": tensor(of=row(text("storage"), text("Tensor"), text("0"), b"N", b"K\6") + b"Q"),
    "storage by an exponential key": tensor(
        of=row(text("storage"), named("torch", "FloatStorage"), EXPONENTIAL, b"N", b"K\6") + b"Q"
    ),
    "storage by a key past the folder": tensor(of=storage("../data.pkl")),
    "storage of too few parts": tensor(of=row(text("storage"), named("torch", "FloatStorage")) + b"Q"),
    "storage of too many parts": tensor(of=row(*[text("storage")] * 1000) + b"Q"),
    "storage in a storage": tensor(
        of=row(text("storage"), named("torch", "FloatStorage"), storage(), b"N", b"K\6") + b"Q"
    ),
    "storage of two types": row(tensor(), tensor(of=storage(kind="HalfStorage"))),
    "storage of two sizes": row(tensor(), tensor((2,), (1,), of=storage(numbers=2))),
    "attributes": tensor() + row(storage(), number(0), row(), row()) + b"b",
    "a parameter of nothing": call(named("torch._utils", "_rebuild_parameter")),
    "a call of a type": call(named("torch", "FloatStorage"), number(1)),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_tensor_that_is_none_of_torch_is_refused_in_one_short_line(name: str) -> None:
    message = refused(weights(dictionary({"llm.a": DESCRIBED[name]})))
    assert re.search(r"is (damaged|not as torch\.save writes it) \(|has 3000143 bytes in archive/data\.pkl, ", message)
    assert message.isprintable()
    assert len(message) < 1000


SIZES: Final = st.integers(0, 4) | st.sampled_from([2**31, 2**62, 2**63 - 1, 2**63, 2**64, -1])


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_tensor_that_the_index_takes_is_one_that_torch_maps_and_loads(data: st.DataObject) -> None:
    shape = data.draw(st.lists(SIZES, max_size=4))
    stride = data.draw(st.lists(SIZES, min_size=len(shape), max_size=len(shape)))
    kind = data.draw(st.sampled_from(sorted(_STORAGES)))
    described = tensor(shape, stride, data.draw(SIZES), storage(numbers=240 // ITEM_SIZES[_STORAGES[kind]], kind=kind))
    content = weights(dictionary({"a": described}), [b"\0\1" * 120])
    with contextlib.suppress(CheckpointError):
        (entry,) = indexed(content).values()
        assert isinstance(entry, StoredTensor)
        _check_cost(PATH, [entry], len(content))
        mapped = _map(entry, torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage())
        loaded = torch.load(io.BytesIO(content), weights_only=True)["a"]
        assert (mapped.dtype, mapped.shape, is_row_major(mapped)) == (loaded.dtype, loaded.shape, True)
        assert torch.equal(mapped, loaded)
        assert_as_torch_loads(content)


@pytest.mark.parametrize(("kind", "numbers"), [("QInt8Storage", 24), ("QUInt8Storage", 24), ("QInt32Storage", 6)])
def test_a_tensor_of_quantized_numbers_is_none_of_plain_ones(kind: str, numbers: int) -> None:
    # To torch it has another type, in whatever way it is made.
    assert indexed(weights(dictionary({"a": tensor(of=storage("0", numbers, kind))}))) == {
        "a": Other("Tensor, quantized")
    }


READ: Final = [*SEEDS[:6], *SEEDS[-2:]]
"""Those of the seeds that are no gadgets."""


def loaded(content: bytes) -> dict[object, object] | None:
    """What torch reads of a file, if it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # noqa: BLE001  (damage makes torch raise almost anything)
        return None
    return found if isinstance(found, dict) else None


@pytest.mark.parametrize("first", range(0, 2000, 500))
def test_what_the_index_and_torch_both_read_of_a_changed_file_is_the_same(first: int) -> None:
    both = 0
    for seed in range(first, first + 500):
        content = mutate(READ[seed % len(READ)], 1 << 14, seed)
        with contextlib.suppress(CheckpointError):
            index, others = indexed(content), loaded(content)
            both += bool(others)
            assert_same(inflated(content), index, others)
    assert both > 10


def assert_same(content: bytes, index: Entries, others: dict[object, object] | None) -> None:
    """That of each entry which is a tensor to both, if both read the file, all is the same, and each name is there."""
    if others is None:
        return
    assert list(index) == [name for name in others if isinstance(name, str)]
    for name, entry in index.items():
        if isinstance(entry, StoredTensor):
            found, other = tensor_of(content, entry), others[name]
            assert isinstance(other, torch.Tensor)
            assert (found.dtype, found.shape, found.stride()) == (other.dtype, other.shape, other.stride())
            assert (
                found.contiguous()
                .view(-1)
                .view(torch.uint8)
                .equal(other.detach().contiguous().view(-1).view(torch.uint8))
            )


# What would cost more than the file's size warrants.


def described(path: Path, entries: bytes, size: int) -> None:
    """A weights file with one storage, of so many zeros that take no room on the disk."""
    numbers, said = (
        Part(b"archive/data/0", size=size, wide=True),
        Part(b"archive/data.pkl", pickled(entries), wide=True),
    )
    write_sparse(path, [numbers, said], 1)


def numbers_of(size: int) -> bytes:
    return storage(numbers=size, kind="ByteStorage")


def named_often(value: bytes, names: int) -> bytes:
    """A dictionary with one value under many names."""
    entries = [text("llm.a"), value, b"q\1", *(text(f"llm.{i}") + b"h\1" for i in range(names - 1))]
    return b"}(" + b"".join(entries) + b"u"


def sharing(shape: bytes, names: int) -> bytes:
    """Tensors that share their shape, which is their stride, and all else."""
    rebuild = (
        named("torch._utils", "_rebuild_tensor_v2") + b"q\2(" + numbers_of(1) + b"q\3K\0" + shape + b"q\4h\4\x89NtR"
    )
    more = (text(f"llm.{i}") + b"h\2(h\3K\0h\4h\4\x89NtR" for i in range(names - 1))
    return b"}(" + text("llm.a") + rebuild + b"".join(more) + b"u"


TWOS: Final = 27
LARGE_NUMBER: Final = b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20)
COSTLY: Final[dict[str, tuple[int, bytes, str]]] = {
    "many names": (1 << 30, named_often(tensor((1 << 30,), (1,), of=numbers_of(1 << 30)), 10_000), "more than 8 times"),
    "nine names": (1 << 20, named_often(tensor((1 << 20,), (1,), of=numbers_of(1 << 20)), 9), "more than 8 times"),
    "few numbers far apart": (
        1 << 30,
        named_often(tensor((2,), ((1 << 30) - 1,), of=numbers_of(1 << 30)), 10_000),
        "more than 8 times",
    ),
    "too far apart": (
        (1 << 30) + 1,
        named_often(tensor((2,), (1 << 30,), of=numbers_of((1 << 30) + 1)), 1),
        "has a tensor of more than 1073741824 bytes that is not contiguous; save it again with tensor.contiguous()",
    ),
    "one number too often": (
        20 << 30,
        named_often(tensor((20 << 30,), (0,), of=numbers_of(20 << 30)), 1),
        "has a tensor of more than 1073741824 bytes that is not contiguous; save it again with tensor.contiguous()",
    ),
    "too many rows": (
        1 << TWOS,
        named_often(tensor([2] * TWOS, [1 << i for i in range(TWOS)], of=numbers_of(1 << TWOS)), 1),
        "has tensors that are not contiguous, in too many rows",
    ),
    "too many dimensions": (1, sharing(row(*[b"K\1"] * 100_000), 60_000), "or more than 64 dimensions"),
    "many pairs, again and again": (
        1,
        named("collections", "OrderedDict")
        + b"q\0]("
        + b"".join(row(number(i), b"N") for i in range(3000))
        + b"e\x85q\1]("
        + b"h\0h\1R" * 300_000
        + b"e",
        "has a dictionary as Python 2 wrote it; load it, and save it again",
    ),
    "many arguments within arguments": (
        1,
        named("torch._tensor", "_rebuild_from_type_v2")
        + b"q\0"
        + row(named("torch._utils", "_rebuild_parameter"), b"N", row(*[b")"] * 1_000_000), b"N")
        + b"q\1]("
        + b"h\0h\1R" * 150_000
        + b"e",
        "is not as torch.save writes it (a tensor is made from no arguments, or too many)",
    ),
    "a storage of more than anyone counts": (
        1,
        tensor(of=row(text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu"), LARGE_NUMBER) + b"Q"),
        "is not as torch.save writes it (a reference to a storage is malformed)",
    ),
    "too many objects": (
        1,
        b"](" + b"]" * (64 << 20) + b"e",
        "has 67108870 bytes in archive/data.pkl, more than the 2097152 that are read",
    ),
}

BOUNDED: Final = """
import resource, sys
from pathlib import Path

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from cosyjit.fs.digests import Digests
from cosyjit.weights.tensor_digests import read_tensors
from cosyjit import build, plan
from cosyjit.errors import CheckpointError

path = Path(sys.argv[1])
try:
    tensors = read_tensors(Digests(path.parent / "digests"), [path])[path].tensors
    print(len(tensors), *{tensor.digest for tensor in tensors.values()})
except CheckpointError as error:
    print(error)
"""


def bounded(path: Path) -> str:
    """What the digests of a file come to, or why it is refused, in 20 s and 1 GB."""
    ran = finished(spawn(sys.executable, "-c", BOUNDED, path, cwd=ROOT))
    assert (ran.status, ran.err) == (0, "")
    return ran.out


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTLY)
def test_what_costs_more_than_its_size_is_refused(name: str, tmp_path: Path) -> None:
    size, entries, reason = COSTLY[name]
    described(tmp_path / "llm.pt", entries, size)
    out = bounded(tmp_path / "llm.pt")
    assert out.startswith(f"{tmp_path}/llm.pt: ")
    assert reason in out
    assert out.count("\n") == 1
    assert len(out) < 500


FAIR: Final[dict[str, tuple[int, bytes, int, bytes]]] = {
    "weights tied four times": (
        100 << 20,
        named_often(tensor((100 << 20,), (1,), of=numbers_of(100 << 20)), 4),
        4,
        bytes(100 << 20),
    ),
    "a thin matrix, turned": (
        64 << 20,
        named_often(tensor((32 << 20, 2), (1, 32 << 20), of=numbers_of(64 << 20)), 1),
        1,
        bytes(64 << 20),
    ),
    "rows without numbers": (1, named_often(tensor((1 << 60, 0, 2), (7, 1, 3), of=numbers_of(1)), 1000), 1000, b""),
    "no rows": (1, named_often(tensor((0, 1 << 60), (0, 0), of=numbers_of(1)), 1000), 1000, b""),
    "all dimensions": (1 << 20, sharing(row(*[b"K\1"] * 64), 20_000), 20_000, b"\0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAIR)
def test_what_costs_no_more_than_its_size_is_read(name: str, tmp_path: Path) -> None:
    size, entries, tensors, content = FAIR[name]
    described(tmp_path / "llm.pt", entries.replace(numbers_of(1), numbers_of(size)), size)
    assert bounded(tmp_path / "llm.pt") == f"{tensors} {xxhash.xxh3_128_hexdigest(content)}\n"


# By the command line.


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def running(name: str) -> Callable[[Path], object]:
    """Writes a weights file that runs something when others read it."""
    return lambda path: path.write_bytes(weights(INSTRUCTED[name](f"{path.parent}/marker")))


REFUSED: Final[dict[str, Callable[[Path], object]]] = {
    **{name: running(name) for name in ("os.system", "a state", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "STACK_GLOBAL")},
    "a pickle beside a sound tensor": lambda path: path.write_bytes(
        weights(dictionary({"llm.a": tensor(), "epoch": INSTRUCTED["eval"](f"{path.parent}/marker")}))
    ),
    "a pickle alone": lambda path: path.write_bytes(b"\x80\4" + INSTRUCTED["exec"](f"{path.parent}/marker") + b"."),
    "a legacy file": lambda path: torch.save(
        {"llm.a": Command(f"{path.parent}/marker")}, path, _use_new_zipfile_serialization=False
    ),
    "an archive in two folders": lambda path: path.write_bytes(archive([*SMALL_PARTS, Part(b"b/data.pkl")])),
    "a bomb": lambda path: path.write_bytes(deflated(bytes(50_000_000))),
    "an archive that is far too large": lambda path: described(path, *reversed(COSTLY["many names"][:2])),
    "a shape that takes for ever to show": lambda path: path.write_bytes(
        weights(dictionary({"llm.a": DESCRIBED["shape of exponential tuples"]}))
    ),
    "a name for a terminal": lambda path: path.write_bytes(weights(dictionary({UNFIT["terminal"]: tensor()}))),
    "a name of half a character": lambda path: path.write_bytes(weights(dictionary({UNFIT["half"]: tensor()}))),
    "a name of a million characters": lambda path: path.write_bytes(weights(dictionary({UNFIT["longest"]: tensor()}))),
    "ten thousand names": lambda path: path.write_bytes(weights(named_often(tensor((0,), (1,)), 10_000))),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": listening,
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "export"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_command_refuses_it_in_one_line_and_leaves_no_trace(
    name: str, command: str, tiny: Path, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    directory = copy_of(tiny)
    (directory / "llm.pt").unlink()
    REFUSED[name](directory / "llm.pt")
    before = sorted(directory.parent.rglob("*"))
    ran = run_here(capsys, command, directory, "--component", "llm.llm")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"cosyjit: {directory}/llm.pt: ")
    assert ran.err.endswith("\n")
    assert ran.err[:-1].isprintable()
    assert len(ran.err) < 20_000
    assert sorted(directory.parent.rglob("*")) == before
    assert not list(home.rglob("*.zip"))


def test_weights_that_are_cut_short_while_they_are_built_are_said_to_have_changed(
    tiny: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    directory = copy_of(tiny)
    (planned,) = plan(directory, ["llm.llm"], ["fp32"])

    def cut(stage: str) -> None:
        if stage == "script":  # then the file is mapped, and its numbers are yet to be written
            os.truncate(directory / "llm.pt", 4096)

    with pytest.raises(
        CheckpointError, match=r"/llm\.pt: was changed after it was planned; run again when it is compl"
    ):
        build(planned.target, tmp_path, cut)


MAPPED: Final = """
import resource, sys
from pathlib import Path

from cosyjit import build, plan
from cosyjit.errors import CheckpointError
from cosyjit.encoders.parameters import Parameter
from cosyjit.families import FAMILIES
from cosyjit.weights.fit import EncoderNeed
from cosyjit.torchscript.load import map_tensors

need = EncoderNeed(FAMILIES[0].components[1], {"llm.a": Parameter((20 << 30,), "uint8")})
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
try:
    map_tensors(Path(sys.argv[1]), need)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.stress
def test_a_file_that_is_too_large_to_be_mapped_is_said_to_be(tmp_path: Path) -> None:
    described(tmp_path / "llm.pt", dictionary({"llm.a": tensor((20 << 30,), (1,), of=numbers_of(20 << 30))}), 20 << 30)
    ran = finished(spawn(sys.executable, "-c", MAPPED, tmp_path / "llm.pt", cwd=ROOT))
    size = (tmp_path / "llm.pt").stat().st_size
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"{tmp_path}/llm.pt: its {size} bytes cannot be mapped; give the process more memory")
