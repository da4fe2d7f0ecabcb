"""Reads the files of `torch.save`: the tensors that a file describes, and where the bytes of their storages are.

Since torch 1.6 such a file is a zip archive: `data.pkl` describes the tensors, and each `data/N` holds the bytes of one
storage. Before, and with `_use_new_zipfile_serialization=False`, it is a sequence:

    pickle  pickle   pickle   pickle   pickle           8 bytes  …        8 bytes  …
    magic   version  machine  tensors  storages' keys   count    numbers  count    numbers   …

The storages follow in the order of their keys, each with the count of its numbers.
"""

import io
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Final, NamedTuple

from cosyjit.weights.formats import UnsupportedFormError, unlike_saved
from cosyjit.weights.pickle_reader import MOST_ARGUMENTS, Globals, Loaded, Other, loads
from cosyjit.weights.tensors import ITEM_SIZES, LARGEST_NUMBER, MOST_DIMENSIONS, Contents, StoredTensor
from cosyjit.weights.zip_reader import Member, content, extent, members

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
    *("qint8", "quint8", "qint32", "quint4x2", "quint2x4", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
    *("float4_e2m1fn_x2", "per_tensor_symmetric", "per_channel_symmetric", "per_channel_affine_float_qparams"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)

_LARGEST_PICKLE: Final = 2 << 20
"""In bytes. Reading takes up to a hundred times that in memory. The pickle of 1,500 tensors has 0.2 MB."""

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_VERSION: Final = 1001
"""The beginning of a file that is not an archive; see `torch.serialization`."""

_COUNT: Final = struct.Struct("<q")


def read_archive(file: BinaryIO, path: str) -> Contents:
    """The entries of a zip archive of `torch.save`.

    Args:
        file: the file, opened.
        path: its path as Python writes it.

    Raises:
        UnsupportedFormError: it is TorchScript, or has another form that is not supported.
        ForbiddenError: loading it could run code.
        ValueError, struct.error, …: it is damaged.
    """
    # Torch ignores the case of names; `members` has made sure that they differ nevertheless.
    by_name = {name.lower(): member for name, member in members(file).items()}
    if "constants.pkl" in by_name:
        raise UnsupportedFormError(f"is a TorchScript archive; {saving(path, 'torch.jit.load')}")
    if "byteorder" in by_name and (order := content(file, by_name["byteorder"], _LARGEST_PICKLE)) != b"little":
        raise _other_order() if order == b"big" else ValueError(f"byte order {order[:20]!r}")
    if "data.pkl" not in by_name:
        raise UnsupportedFormError(
            "is a zip archive, not a file of torch.save; save a state dictionary with torch.save"
        )
    storages = _Archived(file, by_name)
    state = loads(content(file, by_name["data.pkl"], _LARGEST_PICKLE), _KNOWN, storages.of).value
    return Contents(_index(state), storages.packed)


def read_legacy(file: BinaryIO) -> Contents:
    """The entries of a file of `torch.save` that is not an archive; see `read_archive`."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    pickled = file.read(_LARGEST_PICKLE)
    magic = loads(pickled, _KNOWN, _no_storage)
    if magic.value != _MAGIC:
        kind = type(magic.value).__name__
        raise UnsupportedFormError(f"is a pickle of a {kind}, not a file of torch.save; save it with torch.save")
    version = loads(pickled, {}, _no_storage, magic.end)
    machine = loads(pickled, {}, _no_storage, version.end)
    if version.value != _VERSION:
        raise ValueError("its format has another version")
    if type(machine.value) is not dict or type(machine.value.get("little_endian")) is not bool:
        raise unlike_saved("it does not give the byte order of its machine")
    if not machine.value["little_endian"]:
        raise _other_order()
    # The offsets of the storages follow from their sizes, which are known once all tensors have been read.
    sizes = _Legacy({})
    state = loads(pickled, _KNOWN, sizes.of, machine.end)
    keys = loads(pickled, {}, _no_storage, state.end)
    storages = _Legacy(_places(file, size, keys, sizes.known))
    return Contents(_index(loads(pickled, _KNOWN, storages.of, machine.end).value))


def _other_order() -> UnsupportedFormError:
    return UnsupportedFormError("is from a machine of another byte order; load it, and save it again with torch.save")


def saving(path: str, load: str, options: str = "") -> str:
    """In words, the lines of Python that save the state dictionary of the module in a file.

    Args:
        path: the file's path as Python writes it.
        load: the function of torch that loads the module.
        options: further arguments of that function.
    """
    lines = (
        "import torch",
        f'm = {load}({path}, map_location="cpu"{options})',
        f'torch.save(m.state_dict(), {path} + ".new")',
    )
    return f"save its state dictionary, and put that in its place: {'; '.join(lines)}"


def _index(state: Any) -> dict[Any, Any]:
    if type(state) is not dict:
        kind = "Tensor" if isinstance(state, StoredTensor) else state.kind if isinstance(state, Other) else None
        raise UnsupportedFormError(f"holds a {kind or type(state).__name__}; save it as a flat state dictionary")
    return state


class _StorageType(NamedTuple):
    """The class of a storage: the type of its numbers, by torch's name."""

    dtype: str


class _Storage(NamedTuple):
    """The numbers that tensors share: their type, their offset in the file, and their size in bytes."""

    dtype: str
    start: int
    size: int


class _Archived:
    """The storages of an archive, each with one type and size, as torch has them.

    Attributes:
        packed: those that are deflated, by their offsets behind the file's end.
    """

    def __init__(self, file: BinaryIO, by_name: Mapping[str, Member]) -> None:
        self._file = file
        self._members = by_name
        self._known: dict[str, _Storage] = {}
        self._end = file.seek(0, io.SEEK_END)
        self.packed: dict[int, Member] = {}

    def of(self, pid: Any) -> _Storage:
        """The storage that a pickle refers to."""
        kind, of, key, _, numbers = pid
        dtype = _dtype(kind, of, key, numbers)
        if key not in self._known:
            self._known[key] = self._storage(dtype, key)
        storage = self._known[key]
        if numbers * _SIZES[dtype] != storage.size:
            raise unlike_saved(f"storage {key} has {storage.size} bytes instead of {numbers * _SIZES[dtype]}")
        if dtype != storage.dtype:
            raise unlike_saved(f"storage {key} is of two types or sizes")
        return storage

    def _storage(self, dtype: str, key: str) -> _Storage:
        member = self._members[f"data/{key}".lower()]
        start, _ = extent(self._file, member)
        if not member.is_stored:
            start = self._end = -(-self._end // _PAGE) * _PAGE
            self._end += member.size
            self.packed[start] = member
        return _Storage(dtype, start, member.size)


_PAGE: Final = 4096


class _Legacy:
    """The storages of a file that is not an archive.

    Attributes:
        known: the storages by their keys; their offsets are 0 until they are known.
    """

    def __init__(self, places: Mapping[str, int]) -> None:
        self._places = places
        self.known: dict[str, _Storage] = {}

    def of(self, pid: Any) -> _Storage:
        """The storage that a pickle refers to."""
        kind, of, key, _, numbers, view = pid
        dtype = _dtype(kind, of, key, numbers)
        if view is not None:
            raise UnsupportedFormError(
                "has storages within storages, as torch before 0.4 wrote them; load it, and save it again"
            )
        storage = _Storage(dtype, self._places.get(key, 0), numbers * _SIZES[dtype])
        if self.known.setdefault(key, storage) != storage:
            raise unlike_saved(f"storage {key} is of two types or sizes")
        return storage


def _dtype(kind: Any, of: Any, key: Any, numbers: Any) -> str:
    """The type of the numbers of a storage that a pickle refers to; the reference is checked."""
    is_counted = type(numbers) is int and 0 <= numbers <= LARGEST_NUMBER
    if not (type(of) is _StorageType and type(key) is str and is_counted) or kind != "storage":
        raise unlike_saved("a reference to a storage is malformed")
    return of.dtype


def _places(file: BinaryIO, size: int, keys: Loaded, known: Mapping[str, _Storage]) -> dict[str, int]:
    """The offsets of the numbers of storages, which follow each other to the end of the file."""
    is_list = type(keys.value) is list and all(type(key) is str for key in keys.value)
    if not is_list or sorted(keys.value) != sorted(known):
        raise unlike_saved("the keys of its storages are not those of its tensors")
    places, at = {}, keys.end
    for key in keys.value:
        file.seek(at)
        (numbers,) = _COUNT.unpack(file.read(_COUNT.size))
        if numbers * _SIZES[known[key].dtype] != known[key].size:
            raise unlike_saved(f"storage {key} has {numbers} numbers, which its tensors contradict")
        places[key] = at + _COUNT.size
        at = places[key] + known[key].size
    if at > size:
        raise ValueError("its storages are cut short")
    if at < size:
        raise unlike_saved("its storages end before its end")
    return places


def _no_storage(_: object) -> Any:
    raise ValueError("a reference to a storage where none can be")


def _rebuild_tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    _gradient: bool = False,
    _hooks: object = None,
    lazily: object = None,
) -> StoredTensor | Other:
    if type(storage) is not _Storage:
        raise TypeError("a tensor has no storage")
    if not type(shape) is type(stride) is tuple or not len(shape) == len(stride) <= MOST_DIMENSIONS:
        raise unlike_saved(f"a tensor has no shape, or more than {MOST_DIMENSIONS} dimensions")
    if not all(type(number) is int and 0 <= number <= LARGEST_NUMBER for number in (offset, *shape, *stride)):
        raise unlike_saved("the sizes, strides or offset of a tensor are not numbers of torch")
    if math.prod(size or 1 for size in shape) > LARGEST_NUMBER:
        raise ValueError(f"a tensor of shape {shape} is too large for torch")
    if storage.dtype not in ITEM_SIZES:
        return Other("Tensor, quantized")
    if lazily:
        return Other("Tensor, conjugated or negated")
    if 0 in shape:
        return StoredTensor(storage.dtype, shape, stride, 0)
    tensor = StoredTensor(storage.dtype, shape, stride, storage.start + offset * ITEM_SIZES[storage.dtype])
    if tensor.start + tensor.extent > storage.start + storage.size:
        raise unlike_saved(f"a tensor of shape {shape} ends behind its storage")
    return tensor


def _rebuild_with_attributes(function: Any, _kind: object, arguments: Any, state: Any) -> Any:
    if not any(function is known for known in _REBUILDING):
        raise unlike_saved("a tensor is not made from a tensor")
    if type(arguments) is not tuple or len(arguments) > MOST_ARGUMENTS:
        raise unlike_saved("a tensor is made from no arguments, or too many")
    tensor = function(*arguments)
    return Other("Tensor, changed by its attributes") if _changes_tensors(state) else tensor


def _rebuild_parameter(
    tensor: StoredTensor | Other | None = None, _gradient: object = None, _hooks: object = None, state: Any = None
) -> StoredTensor | Other:
    if not isinstance(tensor, StoredTensor | Other):
        raise unlike_saved("a parameter is not made from a tensor")
    return Other("Tensor, changed by its attributes") if _changes_tensors(state) else tensor


def _changes_tensors(state: Any) -> bool:
    """Whether attributes, which torch sets one by one, can give a tensor other numbers."""
    parts = state if type(state) is tuple else (state,)
    names = [name for part in parts[:2] if type(part) is dict for name in part]
    return any(type(name) is not str or name in _CHANGING or name.startswith("__") for name in names)


def _rebuild_ordered(*pairs: object) -> dict[str, Any]:
    if pairs:
        raise UnsupportedFormError("has a dictionary as Python 2 wrote it; load it, and save it again")
    return {}


def _rebuild_defaulting(_default: object = None, *pairs: object) -> dict[str, Any]:
    return _rebuild_ordered(*pairs)


def _ignored(kind: str) -> Callable[..., Other]:
    """A function that makes an ignored value of a kind from any arguments."""
    value = Other(kind)

    def make(*_: object) -> Other:
        return value

    return make


_CHANGING: Final = {"data", "imag", "names", "real"}
"""The attributes that change the numbers of a tensor when they are set."""

_OTHER_TENSORS: Final = {
    "_rebuild_tensor_v3": "Tensor of another type",
    "_rebuild_qtensor": "Tensor, quantized",
    "_rebuild_sparse_tensor": "Tensor, sparse",
    "_rebuild_meta_tensor_no_storage": "Tensor without numbers",
    "_rebuild_nested_tensor": "Tensor, nested",
    "_rebuild_device_tensor_from_numpy": "Tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "Tensor of another device",
}
_REBUILDING_OTHERS: Final = {name: _ignored(kind) for name, kind in _OTHER_TENSORS.items()}
_REBUILDING: Final = (_rebuild_tensor, _rebuild_parameter, *_REBUILDING_OTHERS.values())

_DATA: Final = {
    "builtins": ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object"),
    "collections": ("Counter", "deque"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "pathlib": ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "numpy": ("bool_", "dtype", "float32", "float64", "int32", "int64", "ndarray"),
    "numpy.core.multiarray": ("scalar",),
    "numpy._core.multiarray": ("scalar",),
    "torch": ("Size", "device", "Tensor", *ITEM_SIZES, *_OTHER_TYPES),
    "torch.nn.parameter": ("Buffer",),
    "torch.serialization": ("_get_layout",),
}
"""Classes, functions and values that may occur beside tensors. They are never called, only ignored."""

_KNOWN: Final[Globals] = {
    **{(module, name): _ignored(name) for module, names in _DATA.items() for name in names},
    **{("builtins", name): _ignored(name) for name in ("range", "set", "slice", "str", "tuple")},
    # The name of `builtins` in protocol 2.
    **{("__builtin__", name): _ignored(name) for name in (*_DATA["builtins"], "set", "slice", "str", "tuple")},
    **{("__builtin__", name): _ignored(name) for name in ("long", "unicode", "xrange")},
    ("_codecs", "encode"): _ignored("bytes"),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _ignored("ndarray") for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _ignored("ndarray") for core in ("core", "_core")},
    **{("torch._utils", name): make for name, make in _REBUILDING_OTHERS.items()},
    ("collections", "OrderedDict"): _rebuild_ordered,
    ("collections", "defaultdict"): _rebuild_defaulting,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_with_attributes,
    **{("torch", name): _StorageType(dtype) for name, dtype in (_STORAGES | _QUANTIZED_STORAGES).items()},
    ("torch.storage", "UntypedStorage"): _StorageType("uint8"),
}
