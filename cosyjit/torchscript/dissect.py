"""Takes a proven zip apart into its graph and the weights; writes zips of a graph, and compares them.

A graph is of use only if the constants in it are weights, each by itself. Freezing merges constants that are equal, and
may compute others from weights: then the graph would follow from the weights as well.
"""

import ctypes
import io
import itertools
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import torch
from torch import Tensor

from cosyjit.torchscript.graph import CHECKSUM_BYTES, ID_DIGITS, MARK, Gap, Graph
from cosyjit.torchscript.load import is_row_major
from cosyjit.torchscript.structure import is_symmetric, placeholder_index
from cosyjit.weights import zip_reader
from cosyjit.weights.formats import UnsupportedFormError
from cosyjit.weights.zip_reader import Member

_ENTRY: Final = struct.Struct("<4s12xI8x3H12x")
"""An entry of an archive's directory: its signature, the checksum of the member, and the lengths of three texts."""

_ENTRY_CHECKSUM: Final = 16
_DESCRIPTOR: Final = struct.Struct("<4sI")

_PAIR: Final = torch.int32
"""The type of two numbers of a half precision."""

_BLOCK: Final = 1 << 20
"""How much is compared at a time, in bytes: little enough for the processor's cache."""


def graph_of(path: Path, reference: io.BytesIO, weights: Mapping[str, Tensor], provenance: bytes) -> Graph | None:
    """The graph of a zip that has been proven; None if others than its weights are among its constants, or equal ones.

    Args:
        path: the zip.
        reference: the archive of the same encoder with placeholders, in the order of the weights.
        weights: the cast weights of the encoder, by their names in it.
        provenance: what is embedded in the zip.
    """
    names = _names(path, reference, weights)
    if names is None or not are_apart(weights):
        return None
    with path.open("rb") as file:
        graph = _cut(file, names)
    return graph if graph is not None and is_filled(path, graph, weights, provenance) else None


def are_apart(weights: Mapping[str, Tensor]) -> bool:
    """Whether freezing keeps all of some weights, and of their transposes, which it makes: no two weights have the same
    numbers, in whatever order or sign of zero, and none is its own transpose.
    """
    if any(map(is_symmetric, weights.values())):
        return False
    alike: dict[tuple[int, float, float], list[Tensor]] = {}
    for weight in (each for each in weights.values() if each.is_floating_point() and each.numel()):
        least, largest = torch.aminmax(weight)  # by far the fastest that does not depend on the order
        alike.setdefault((weight.numel(), least.item(), largest.item()), []).append(weight)
    for group in (each for each in alike.values() if len(each) > 1):
        sums = [_sum_of_bits(weight) for weight in group]
        if any(
            sums[first] == sums[second] and torch.equal(_sorted(group[first]), _sorted(group[second]))
            for first, second in itertools.combinations(range(len(group)), 2)
        ):
            return False
    return True


def _sum_of_bits(weight: Tensor) -> int:
    """The sum of numbers as integers without their signs: the same for the same numbers, whatever their order."""
    flat = weight.flatten()
    if flat.itemsize == _PAIR.itemsize // 2 and flat.numel() % 2 == 0:
        # Two at a time, in a quarter of the time: the remainder is the same whichever of the two a number is.
        return int((flat.view(_PAIR) & 0x7FFF7FFF).sum()) % 0xFFFF
    bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.itemsize])
    return int((bits & torch.iinfo(bits.dtype).max).sum())


def _sorted(weight: Tensor) -> Tensor:
    return weight.flatten().sort().values


def fill(path: Path, graph: Graph, weights: Mapping[str, Tensor], provenance: bytes) -> bool:
    """Write the zip of a graph with weights, if they fit it and are what scripting would keep.

    Args:
        path: a new file; what is written of it is for nobody if they do not fit.
        graph: of zips of the same class, options, methods and precision.
        weights: the cast weights of the encoder, by their names in it.
        provenance: what is embedded in the zip.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        if not are_apart(weights):
            return False
        with path.open("wb", buffering=0) as file:
            for piece in graph.contents(_buffers(weights), provenance):
                left = memoryview(piece)
                while left:
                    left = left[file.write(left) :]
    except ValueError:
        return False
    return True


def is_filled(path: Path, graph: Graph, weights: Mapping[str, Tensor], provenance: bytes) -> bool:
    """Whether a file is the zip of a graph with weights, byte by byte: see `fill`."""
    try:
        with path.open("rb") as file:
            for piece in graph.contents(_buffers(weights), provenance):
                view = memoryview(piece)
                for at in range(0, len(view), _BLOCK):
                    block = bytes(view[at : at + _BLOCK])
                    if file.read(len(block)) != block:
                        return False
            return not file.read(1)
    except ValueError:
        return False


def _buffers(weights: Mapping[str, Tensor]) -> dict[str, memoryview]:
    """The bytes of tensors, without a copy: the tensors have to outlive them. Strided ones are left out."""
    return {name: _buffer(each) for name, each in weights.items() if each.numel() and is_row_major(each)}


def _buffer(tensor: Tensor) -> memoryview:
    # Without numpy, torch does not have a way to this.
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


# Which weight is where.


class _Storage(NamedTuple):
    """The numbers of a constant in an archive: the name of their type, the member with them, and how many."""

    type: str
    member: str
    numbers: int


class _Constant(NamedTuple):
    """A constant of an archive: where its numbers are, and how."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Constants(pickle.Unpickler):
    """Reads the constants of an archive that this package has had written, and nothing else that a pickle can name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _Constant(storage, offset, size, stride)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name.endswith("Storage"):
            return name
        raise ValueError(f"{module}.{name} among the constants")

    def persistent_load(self, identity: Any) -> _Storage:
        _, kind, member, _, numbers = identity
        return _Storage(kind, member, numbers)


def _constants(archive: zipfile.ZipFile) -> tuple[_Constant, ...]:
    with archive.open("archive/constants.pkl") as file:
        read: tuple[_Constant, ...] = _Constants(file).load()
    return read


def _names(path: Path, reference: io.BytesIO, weights: Mapping[str, Tensor]) -> dict[str, str] | None:
    """The names of weights by the members with their numbers; None if a constant is not a weight."""
    known = list(weights)
    names: dict[str, str] = {}
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(reference) as placeholders:
        for ours, theirs in zip(_constants(archive), _constants(placeholders), strict=True):
            if not ours.storage.numbers:
                continue
            identified = placeholder_index(_tensor(placeholders, theirs))
            if identified is None:
                return None
            member = f"constants/{ours.storage.member}"
            if names.setdefault(member, known[identified[0]]) != known[identified[0]]:
                return None
    return names


def _tensor(archive: zipfile.ZipFile, constant: _Constant) -> Tensor:
    """A constant of an archive of placeholders."""
    content = bytearray(archive.read(f"archive/constants/{constant.storage.member}"))
    dtype = getattr(torch, constant.storage.type.removesuffix("Storage").lower())
    return torch.frombuffer(content, dtype=dtype).as_strided(constant.size, constant.stride, constant.offset)


def _cut(file: BinaryIO, names: Mapping[str, str]) -> Graph | None:
    """The graph of an archive, whose members with given names below its folder are weights."""
    try:
        members = sorted(zip_reader.members(file).items(), key=lambda each: each[1].header)
        gaps = [gap for name, member in members if member.size for gap in _gaps(file, name, member, names)]
        cut = {gap.name for _, gap in gaps if gap.kind == "checksum"}
        gaps += _directory(file, max(member.end for _, member in members), cut)
    except (UnsupportedFormError, ValueError, struct.error):
        return None
    own, graph, at = [], [], 0
    for start, gap in gaps:
        own.append(_read(file, at, start - at))
        graph.append(gap._replace(before=sum(map(len, own))))
        at = start + gap.size
    return Graph(b"".join([*own, _read(file, at)]), tuple(graph))


def _gaps(file: BinaryIO, name: str, member: Member, names: Mapping[str, str]) -> Iterator[tuple[int, Gap]]:
    """The gaps of a member that is not empty, with their offsets in the file."""
    start, size = zip_reader.extent(file, member)
    end = start + size
    checksum = Gap(0, "checksum", member.name, CHECKSUM_BYTES)
    if _DESCRIPTOR.unpack(_read(file, end, _DESCRIPTOR.size)) != (MARK, member.sum):
        raise ValueError(f"{name} has no checksum behind it")
    if name in names:
        gap = Gap(0, "weight", names[name], size)
    elif name.startswith("extra/"):
        gap = Gap(0, "provenance", name, size)
    elif name == ".data/serialization_id":
        gap = Gap(0, "id", _read(file, start, size - ID_DIGITS).decode("ascii"), size)
    elif name.startswith("constants/"):
        raise ValueError(f"{name} is not a weight")
    else:
        yield end, Gap(0, "known", str(member.sum), 0)
        return
    yield from ((start, gap), (end + len(MARK), checksum))


def _directory(file: BinaryIO, start: int, members: set[str]) -> Iterator[tuple[int, Gap]]:
    """The gaps of the directory, where the checksums of members stand again."""
    directory, at = _read(file, start), 0
    while directory.startswith(b"PK\1\2", at):
        _, _, name, extra, comment = _ENTRY.unpack_from(directory, at)
        names = at + _ENTRY.size
        member = directory[names : names + name].decode()
        if member in members:
            yield start + at + _ENTRY_CHECKSUM, Gap(0, "checksum", member, CHECKSUM_BYTES)
        at = names + name + extra + comment


def _read(file: BinaryIO, start: int, size: int = -1) -> bytes:
    file.seek(start)
    return file.read(size)
