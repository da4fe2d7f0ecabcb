"""The tensors of a `.pt` file and where their bytes are, read without torch and without running anything.

A file of `torch.save` is a zip archive of stored members: `data.pkl` describes the tensors, and each `data/N` holds the
bytes of one storage. It may come from a stranger: to read its index takes at most 0.3 GB and some seconds, whatever it
says, and what is to be read of its tensors after that is bounded by its size.
"""

import io
import math
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from cosyjit.archives import Member, content, extent, members
from cosyjit.errors import CheckpointError
from cosyjit.pickles import ForbiddenError, Globals, loads

ITEM_SIZES: Final[Mapping[str, int]] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""The types that tensors can have, by torch's names, and the bytes of a number."""

_STORAGES: Final = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

_QUANTIZED_STORAGES: Final = {"QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32"}
_SIZES: Final = {**ITEM_SIZES, "qint8": 1, "quint8": 1, "qint32": 4}

_OTHER_TYPES: Final = (
    *("uint16", "uint32", "uint64", "complex32", "per_tensor_affine", "per_channel_affine"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_OTHER_TENSORS: Final = ("tensor_v3", "qtensor", "sparse_tensor", "meta_tensor_no_storage")

_LARGEST_PICKLE: Final = 2 << 20
"""In bytes; what it describes may take a hundred times that. A state dictionary of 1,500 tensors has one of 0.2 MB."""

_MOST_DIMENSIONS: Final = 64
"""As many as torch can compute with."""

_LARGEST_NUMBER: Final = (1 << 63) - 1
"""Torch's largest size, step, and count of a tensor's numbers."""

_LONGEST_NAME: Final = 200
"""In characters. Those of published tensors have at most 70."""

_MOST_READ: Final = 8
"""How many times the file's size its tensors may take together. Tied weights are read once for each of their names."""

_LARGEST_APART: Final = 1 << 30
"""In bytes, from the first to behind the last: tensors that are not contiguous are put in order in memory."""

_MOST_ROWS: Final = 1 << 22
"""In how many rows at most the tensors that are not contiguous are put in order together; some seconds' work."""

_LONGEST_REASON: Final = 200
"""In characters, of what messages quote of a file."""


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: torch's name of its type.
        shape, stride: as torch has them, in numbers.
        start: where in the file its first number is, in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int

    @property
    def item_size(self) -> int:
        return ITEM_SIZES[self.dtype]

    @property
    def bytes(self) -> int:
        """What its numbers take, one after the other."""
        return math.prod(self.shape) * self.item_size

    @property
    def extent(self) -> int:
        """The bytes in the file from its first number to behind its last."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.item_size

    @property
    def contiguous(self) -> bool:
        """Whether its numbers stand one after the other in the file."""
        if 0 in self.shape:
            return True
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    @property
    def rows(self) -> int:
        """Of how many rows along its longest axis it consists."""
        return math.prod(self.shape) // max(self.shape, default=1)


class Other(NamedTuple):
    """An entry that is no tensor, such as the count of epochs that training leaves; the name of its type."""

    kind: str


Index = dict[str, StoredTensor | Other]
"""The entries of a weights file by name, in its order."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A weights file, opened.

    Raises:
        CheckpointError: it is missing, or cannot be read.
    """
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # to open a pipe is to wait for its writer
            raise CheckpointError(f"{path}: is a pipe or a device; put the weights file there")
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: does not exist; put the weights file beside the configuration") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    with file:
        yield file


def changed(path: Path) -> CheckpointError:
    """The error of a weights file that is not what it was."""
    return CheckpointError(f"{path}: was changed while it was read; run again when it is complete")


def read_index(file: BinaryIO, path: Path) -> Index:
    """The entries of a weights file; of its tensors, no byte is read.

    Args:
        file: the file, opened.
        path: what messages call it.

    Raises:
        CheckpointError: the file is empty or damaged, would run code, or holds no dictionary of tensors.
    """
    try:
        return _read_index(file, path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    except Exception as error:  # noqa: BLE001  (a damaged file makes the unpickler raise almost anything)
        raise _damaged(path, _brief(str(error)) or type(error).__name__) from None


def _read_index(file: BinaryIO, path: Path) -> Index:
    size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise CheckpointError(f"{path}: is empty; copy or download it again")
    found = members(file)
    if "constants.pkl" in found:
        raise CheckpointError(f"{path}: is a TorchScript archive; save the model's state dictionary")
    if "byteorder" in found and (order := content(file, found["byteorder"], _LARGEST_PICKLE)) != b"little":
        raise ValueError(f"byte order {order[:20]!r}")
    try:
        state = loads(content(file, found["data.pkl"], _LARGEST_PICKLE), _KNOWN, _Storages(file, found).of)
    except ForbiddenError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, which loading could run as code ({_brief(str(error))}); "
            "save it as a flat state dictionary"
        ) from None
    if type(state) is not dict:
        kind = "Tensor" if isinstance(state, StoredTensor) else type(state).__name__
        raise CheckpointError(f"{path}: holds a {kind}; save it as a flat state dictionary")
    index = {_checked(name): _entry(value) for name, value in state.items() if isinstance(name, str)}
    _check_cost([entry for entry in index.values() if isinstance(entry, StoredTensor)], size)
    return index


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: is damaged, or no zip file of torch.save ({reason}); copy or download it again, or save it again"
    )


def _brief(text: str) -> str:
    """The beginning of a text that may be a stranger's, in one line that a terminal can show."""
    shown = " ".join(text[:_LONGEST_REASON].split())
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)
    return shown + "…" * (len(text) > _LONGEST_REASON)


def _checked(name: str) -> str:
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"an entry whose name is no printable text of at most {_LONGEST_NAME} characters: {name}")
    return name


def _entry(value: Any) -> StoredTensor | Other:
    return value if isinstance(value, StoredTensor | Other) else Other(type(value).__name__)


def _check_cost(tensors: Sequence[StoredTensor], size: int) -> None:
    """See that to read all tensors takes no more than a file of this size may ask for."""
    apart = [tensor for tensor in tensors if not tensor.contiguous]
    if any(max(tensor.bytes, tensor.extent) > _LARGEST_APART for tensor in apart):
        raise ValueError(f"a tensor of more than {_LARGEST_APART} bytes is not contiguous")
    if sum(tensor.bytes for tensor in tensors) + sum(tensor.extent for tensor in apart) > _MOST_READ * size:
        raise ValueError(f"its tensors take more than {_MOST_READ} times its {size} bytes")
    if sum(tensor.rows for tensor in apart) > _MOST_ROWS:
        raise ValueError("its tensors are not contiguous, in too many rows")


class _Storage(NamedTuple):
    """The numbers that tensors share: their type, where they begin, and how many bytes there are."""

    dtype: str
    start: int
    bytes: int


class _Storages:
    """The storages of a file, each of one type and size, as torch has them."""

    def __init__(self, file: BinaryIO, found: Mapping[str, Member]) -> None:
        self._file = file
        self._members = found
        self._known: dict[str, _Storage] = {}

    def of(self, pid: Any) -> _Storage:
        """The storage that a pickle refers to."""
        kind, dtype, key, _, numbers = pid
        if not (type(dtype) is type(key) is str and type(numbers) is int) or kind != "storage":
            raise TypeError("a storage that is none")
        if key not in self._known:
            self._known[key] = self._found(dtype, key, numbers)
        storage = self._known[key]
        if (dtype, numbers * _SIZES[dtype]) != (storage.dtype, storage.bytes):
            raise ValueError(f"storage {key} is of two types or sizes")
        return storage

    def _found(self, dtype: str, key: str, numbers: int) -> _Storage:
        start, size = extent(self._file, self._members[f"data/{key}"])
        if numbers * _SIZES[dtype] != size:
            raise ValueError(f"storage {key} has {size} bytes, others than it should")
        return _Storage(dtype, start, size)


def _rebuild_tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    _gradient: bool,
    _hooks: object,
    lazily: object = None,
) -> StoredTensor | Other:
    if type(storage) is not _Storage:
        raise TypeError("a tensor of no storage")
    if storage.dtype not in ITEM_SIZES:
        return _rebuild_other()
    if not type(shape) is type(stride) is tuple or not len(shape) == len(stride) <= _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of no shape, or of more than {_MOST_DIMENSIONS} dimensions")
    if not all(type(number) is int and 0 <= number <= _LARGEST_NUMBER for number in (offset, *shape, *stride)):
        raise ValueError("a tensor whose sizes, steps and offset are no numbers of torch")
    if lazily:  # conjugated or negated, which torch does when it reads the numbers
        raise ValueError("a tensor to be changed as it is read")
    if 0 in shape:
        if math.prod(size or 1 for size in shape) > _LARGEST_NUMBER:
            raise ValueError(f"a tensor of shape {shape} is too large for torch")
        return StoredTensor(storage.dtype, shape, stride, storage.start)
    tensor = StoredTensor(storage.dtype, shape, stride, storage.start + offset * ITEM_SIZES[storage.dtype])
    if tensor.start + tensor.extent > storage.start + storage.bytes:
        raise ValueError(f"a tensor of shape {shape} ends behind its storage")
    if tensor.bytes > storage.bytes:
        raise ValueError(f"a tensor of shape {shape} repeats its numbers")
    return tensor


def _rebuild_dictionary() -> dict[str, Any]:
    return {}


def _rebuild_other(*_: object) -> Other:
    return Other("Tensor")


def _rebuild_parameter(tensor: StoredTensor | Other, *_: object) -> StoredTensor | Other:
    return tensor


_KNOWN: Final[Globals] = {
    ("collections", "OrderedDict"): _rebuild_dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    # What makes tensors of other kinds: none of a component's, but they may stand beside them.
    ("torch.storage", "UntypedStorage"): "uint8",
    **{("torch", name): dtype for name, dtype in _QUANTIZED_STORAGES.items()},
    **{("torch", name): _rebuild_other for name in ("Size", "device", *ITEM_SIZES, *_OTHER_TYPES)},
    **{("torch._utils", f"_rebuild_{name}"): _rebuild_other for name in _OTHER_TENSORS},
    ("torch.serialization", "_get_layout"): _rebuild_other,
}
