"""The planned content of a folder: of which rows of a weights file its tensors consist, and the texts beside them."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from cosyjit.configuration.base_model import Qwen2Config
from cosyjit.families import Component, Precision
from cosyjit.folders.language_model import needed_names
from cosyjit.weights.fit import Known

MODEL: Final = "model.safetensors"

TYPES: Final = ("torch_dtype", "dtype")
"""The names of the weights' type in `config.json`; they depend on the version of transformers."""


class Rows(NamedTuple):
    """Rows of a tensor in the weights file, cast; of a vector, numbers."""

    source: str
    first: int
    rows: int


class Filled(NamedTuple):
    """Rows of which each number is the same."""

    value: float
    rows: int


class Tensor(Protocol):
    """A tensor of a folder, which consists of pieces from its first row to its last."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def pieces(self) -> Sequence[Rows | Filled]: ...


class Content(Protocol):
    """What a folder is to hold.

    Attributes:
        tensors: those of `model.safetensors`, in the order of their bytes.
        shapes: those of the tensors that they are made from, by their names in the weights file.
        options: the values that decide the folder's bytes besides tensors and precision, as JSON has them.
    """

    @property
    def tensors(self) -> Sequence[Tensor]: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...

    def texts(self, precision: Precision) -> dict[str, bytes]:
        """The contents of the other files, by their names."""


@dataclass(frozen=True)
class FolderNeed:
    """What a folder is made from: tensors of a weights file, and the files that describe the base model.

    Attributes:
        component: that of the folder.
        base: the configuration of the base model.
        plan: gives the folder of a weights file with entries.
        configs: the SHA-256 of the files, by their names in the model directory.
        key: a text that differs for different needs.
    """

    component: Component
    base: Qwen2Config
    plan: Callable[[Path, Known], Content] = field(compare=False)
    configs: Mapping[str, str] = field(hash=False)
    key: str

    @property
    def names(self) -> Iterable[str]:
        return needed_names(self.component, self.base)

    def check(self, path: Path, entries: Known) -> None:
        """Check that the folder can be planned.

        Raises:
            InputError: as `plan`.
        """
        self.plan(path, entries)


def numbers(folder: Content) -> int:
    """How many numbers the tensors of a folder have."""
    return sum(math.prod(tensor.shape) for tensor in folder.tensors)


def with_types(base: Qwen2Config, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of a folder, with a place for the type of its weights where the base model's has one."""
    types = [name for name in TYPES if name in base.config] or [TYPES[0]]
    return {**config, **dict.fromkeys(types, "that of the precision")}


def typed(config: Mapping[str, Any], precision: Precision) -> dict[str, Any]:
    """A configuration with the type of a precision."""
    return {**config, **{name: precision.dtype for name in TYPES if name in config}}


def as_text(values: Mapping[str, Any]) -> bytes:
    """JSON in the form that transformers writes."""
    return json.dumps(values, indent=2, sort_keys=True).encode() + b"\n"
