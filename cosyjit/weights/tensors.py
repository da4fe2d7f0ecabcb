"""The entries of a weights file: its tensors, and where the bytes of each are, whatever form the file has."""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.zip_reader import Member

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
"""The types that tensors can have, by torch's names, and the size of a number in bytes."""

MOST_DIMENSIONS: Final = 64
"""The most that torch computes with."""

LARGEST_NUMBER: Final = (1 << 63) - 1
"""The largest size, stride and number of elements that torch has."""


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: its type, by torch's name.
        shape, stride: as torch has them, in numbers.
        start: the offset of its first number in the file, in bytes; 0 if it is empty.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int

    @property
    def item_size(self) -> int:
        return ITEM_SIZES[self.dtype]

    @property
    def size(self) -> int:
        """The bytes of its numbers, stored one after the other."""
        return math.prod(self.shape) * self.item_size

    @property
    def extent(self) -> int:
        """The bytes in the file from its first number to the end of its last."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.item_size

    @property
    def contiguous(self) -> bool:
        """Whether the file has its numbers one after the other."""
        if 0 in self.shape:
            return True
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    def cut(self, first: int, count: int) -> "StoredTensor":
        """Its part along the first axis: `count` indices from `first` on, which it has."""
        start = self.start + first * self.stride[0] * self.item_size
        return self._replace(shape=(count, *self.shape[1:]), start=start)

    @property
    def rows(self) -> int:
        """The number of rows along its longest axis."""
        return math.prod(self.shape) // max(self.shape, default=1)


Entry: TypeAlias = StoredTensor | Other

Entries: TypeAlias = dict[str, Entry]
"""The entries of one dictionary of tensors by name, in its order."""


class Contents(NamedTuple):
    """The content of a weights file.

    Attributes:
        state: the dictionary in it: tensors, values that are ignored, and other values, such as dictionaries.
        packed: storages that are deflated, by their offsets. The offsets lie behind the file's end, and the tensors in
            these storages have theirs there.
    """

    state: Mapping[Any, Any]
    packed: Mapping[int, Member] = {}


def entries_of(state: Mapping[Any, Any]) -> Entries:
    """The entries of a dictionary whose keys are names; a value that is not a tensor becomes an `Other`."""
    return {name: _entry(value) for name, value in state.items() if isinstance(name, str)}


def _entry(value: Any) -> Entry:
    return value if isinstance(value, StoredTensor | Other) else Other(type(value).__name__.removeprefix("_"))
