"""The tensors of a `.pt` file and where their bytes are, read without torch and without running anything.

A file of `torch.save` is a zip archive of stored members: `data.pkl` describes the tensors, and each `data/N` holds the
bytes of one storage.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

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

_OTHER_TYPES: Final = (
    *("uint16", "uint32", "uint64", "complex32", "per_tensor_affine", "per_channel_affine"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_OTHER_TENSORS: Final = ("tensor_v3", "qtensor", "sparse_tensor", "meta_tensor_no_storage")

_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_LARGEST_PICKLE: Final = 64 << 20
"""A state dictionary of 1,500 tensors has a pickle of 0.2 MB."""


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
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: does not exist; put the weights file beside the configuration") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    with file:
        yield file


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
        raise _damaged(path, " ".join(str(error).split()) or type(error).__name__) from None


def _read_index(file: BinaryIO, path: Path) -> Index:
    size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise CheckpointError(f"{path}: is empty; copy or download it again")
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "constants.pkl" in members:
        raise CheckpointError(f"{path}: is a TorchScript archive; save the model's state dictionary")
    if "byteorder" in members and (order := _read(file, members["byteorder"], size)) != b"little":
        raise _damaged(path, f"byte order {order[:20]!r}")
    pickled = _read(file, members["data.pkl"], size)
    try:
        state = loads(
            pickled, _KNOWN, lambda pid: _storage(pid, lambda key: _extent(file, members[f"data/{key}"], size))
        )
    except ForbiddenError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, which loading could run as code ({error}); "
            "save it as a flat state dictionary"
        ) from None
    if not isinstance(state, dict):
        kind = "Tensor" if isinstance(state, StoredTensor) else type(state).__name__
        raise CheckpointError(f"{path}: holds a {kind}; save it as a flat state dictionary")
    return {name: _entry(value) for name, value in state.items() if isinstance(name, str)}


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: is damaged, or no zip file of torch.save ({reason}); copy or download it again, or save it again"
    )


def _read(file: BinaryIO, member: zipfile.ZipInfo, size: int) -> bytes:
    start, length = _extent(file, member, size)
    if length > _LARGEST_PICKLE:
        raise ValueError(f"{member.filename} has {length} bytes")
    file.seek(start)
    return file.read(length)


def _extent(file: BinaryIO, member: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """Where the bytes of an archive's member begin in the file, and how many there are."""
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise ValueError(f"{member.filename} is compressed")
    file.seek(member.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = member.header_offset + _LOCAL_HEADER.size + name + extra
    if signature != b"PK\x03\x04" or start + member.file_size > size:
        raise ValueError(f"{member.filename} is cut short")
    return start, member.file_size


def _entry(value: Any) -> StoredTensor | Other:
    return value if isinstance(value, StoredTensor | Other) else Other(type(value).__name__)


class _Storage(NamedTuple):
    """The numbers that tensors share: their type, where they begin, and how many bytes there are."""

    dtype: str
    start: int
    bytes: int


def _storage(pid: Any, extent: Callable[[str], tuple[int, int]]) -> _Storage:
    kind, dtype, key, _, numbers = pid
    if not (type(dtype) is type(key) is str and type(numbers) is int):
        raise TypeError("a storage that is none")
    start, size = extent(key)
    if kind != "storage" or numbers < 0 or numbers * ITEM_SIZES[dtype] > size:
        raise ValueError(f"storage {key} is cut short")
    return _Storage(dtype, start, numbers * ITEM_SIZES[dtype])


def _rebuild_tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    _gradient: bool,
    _hooks: object,
    lazily: object = None,
) -> StoredTensor:
    numbers = (offset, *shape, *stride)
    if (
        not type(shape) is type(stride) is tuple
        or not all(type(number) is int and number >= 0 for number in numbers)
        or len(shape) != len(stride)
    ):
        raise ValueError(f"a tensor of shape {shape}, stride {stride} and offset {offset}")
    if lazily:  # conjugated or negated, which torch does when it reads the numbers
        raise ValueError(f"a tensor to be changed as it is read: {lazily}")
    if 0 in shape:
        return StoredTensor(storage.dtype, shape, stride, storage.start)
    tensor = StoredTensor(storage.dtype, shape, stride, storage.start + offset * ITEM_SIZES[storage.dtype])
    if tensor.start + tensor.extent > storage.start + storage.bytes:
        raise ValueError(f"a tensor of shape {shape} ends behind its storage")
    if tensor.bytes > max(storage.bytes, 0):
        raise ValueError(f"a tensor of shape {shape} repeats its numbers")
    return tensor


def _rebuild_dictionary() -> dict[str, Any]:
    return {}


def _rebuild_other(*_: object) -> Other:
    return Other("Tensor")


def _rebuild_parameter(tensor: StoredTensor, *_: object) -> StoredTensor:
    return tensor


_KNOWN: Final[Globals] = {
    ("collections", "OrderedDict"): _rebuild_dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    # What makes tensors of other kinds: none of a component's, but they may stand beside them.
    ("torch.storage", "UntypedStorage"): "uint8",
    **{("torch", name): "uint8" for name in ("QInt8Storage", "QUInt8Storage")},
    ("torch", "QInt32Storage"): "int32",
    **{("torch", name): _rebuild_other for name in ("Size", "device", *ITEM_SIZES, *_OTHER_TYPES)},
    **{("torch._utils", f"_rebuild_{name}"): _rebuild_other for name in _OTHER_TENSORS},
    ("torch.serialization", "_get_layout"): _rebuild_other,
}
