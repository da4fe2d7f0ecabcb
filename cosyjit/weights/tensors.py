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
"""The types that tensors can have, by torch's names, and the bytes of a number."""

MOST_DIMENSIONS: Final = 64
"""As many as torch can compute with."""

LARGEST_NUMBER: Final = (1 << 63) - 1
"""Torch's largest size, step, and count of a tensor's numbers."""


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: torch's name of its type.
        shape, stride: as torch has them, in numbers.
        start: where in the file its first number is, in bytes; 0 if it has none.
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


Entry: TypeAlias = StoredTensor | Other

Entries: TypeAlias = dict[str, Entry]
"""The entries of one dictionary of tensors by name, in its order."""


class Contents(NamedTuple):
    """What a weights file holds.

    Attributes:
        state: the dictionary in it: tensors, values that are passed over, and other values, dictionaries among them.
        packed: storages that are deflated, by the places behind the file's end which the tensors in them have.
    """

    state: Mapping[Any, Any]
    packed: Mapping[int, Member] = {}


def entries_of(state: Mapping[Any, Any]) -> Entries:
    """The entries of a dictionary that have names; values that are not tensors as what they are."""
    return {name: _entry(value) for name, value in state.items() if isinstance(name, str)}


def _entry(value: Any) -> Entry:
    return value if isinstance(value, StoredTensor | Other) else Other(type(value).__name__.removeprefix("_"))
