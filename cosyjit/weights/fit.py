"""Whether the tensors of a weights file are those that components need, and how its names are read so that they are.

Training wraps what it saves: names behind `module.` or `_orig_mod.`, tensors under `state_dict` or `model`. Names are
read as they stand wherever they fit so; else in the one other way in which they do.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from cosyjit.encoders.parameters import Parameter, parameters
from cosyjit.errors import CheckpointError, InputError, TensorMismatchError, UnsupportedOptionError
from cosyjit.families import Component
from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.tensors import ITEM_SIZES, Contents, Entries, entries_of
from cosyjit.weights.weights_file import SAFETENSORS, changed, read_contents

_DEEPEST: Final = 3
"""How many dictionaries may stand around that of the tensors."""

_LONGEST_NAME: Final = 300
"""In characters. Those of published tensors have at most 70; a longer one is not looked at for a prefix."""

_SHOWN: Final = 3
"""How many readings a message gives."""

_MOST: Final = 16
"""How many readings that have all names are looked at; of more, more than one may well fit."""


class Described(Protocol):
    """What is known of an entry of a weights file; entries that are equal have the same numbers."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


Known = Mapping[str, Described | Other]
"""Entries by name: as a file has them, or by their digests."""


class Need(Protocol):
    """What a component needs of a weights file."""

    @property
    def names(self) -> Iterable[str]:
        """The names of tensors that it needs in any case.

        Raises:
            ConfigError: that cannot be told.
        """

    @property
    def key(self) -> str:
        """What tells it from others."""

    def check(self, path: Path, entries: Known) -> None:
        """
        Raises:
            InputError: the entries of the file do not fit.
        """


class Reading(NamedTuple):
    """How the names of a weights file are read.

    Attributes:
        nesting: the names of the dictionaries, one in the other, that lead to the tensors.
        prefix: what the names of the tensors begin with there, and are read without.
    """

    nesting: tuple[str, ...] = ()
    prefix: str = ""

    def __str__(self) -> str:
        words = [f"under {' / '.join(map(_quoted, self.nesting))}"] if self.nesting else []
        return " and ".join([*words, f"behind {_quoted(self.prefix)}"] if self.prefix else words)

    @property
    def is_plain(self) -> bool:
        """Whether names are read as they stand."""
        return self == PLAIN

    def of(self, state: Mapping[Any, Any]) -> Entries:
        """The entries by the names that are read; those without the prefix keep theirs.

        Raises:
            LookupError: there is no such dictionary, or two tensors would have one name.
        """
        for name in self.nesting:
            state = state[name]
            if type(state) is not dict:
                raise KeyError(name)
        entries = entries_of(state)
        size = len(self.prefix)
        found = {name[size:]: entry for name, entry in entries.items() if name.startswith(self.prefix)}
        others = {name: entry for name, entry in entries.items() if not name.startswith(self.prefix)}
        if any(_is_tensor(others[name]) and _is_tensor(found[name]) for name in found.keys() & others.keys()):
            raise KeyError(self.prefix)
        return {**others, **found}

    def rewriting(self, path: Path) -> str:
        """In words, the command that writes another file, whose names are read as they stand."""
        file = _quoted(str(path))
        state = "".join(f"[{_quoted(name)}]" for name in self.nesting)
        items = f"{{k.removeprefix({_quoted(self.prefix)}): v for k, v in state{state}.items()}}"
        saved = items if self.prefix else f"state{state}"
        if path.suffix == SAFETENSORS:
            module, load = "from safetensors.torch import load_file, save_file", f"load_file({file})"
            save = "save_file"
        else:  # what reading found in it is data alone
            module, load = "import torch", f'torch.load({file}, map_location="cpu", weights_only=False)'
            save = "torch.save"
        code = f'{module}; state = {load}; {save}({saved}, {file} + ".new")'
        return f"python -c {shlex.quote(code)} writes {path.name}.new without that"


PLAIN: Final = Reading()
"""Names are read as they stand."""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def read_as(file: BinaryIO, path: Path, reading: Reading) -> tuple[Contents, Entries]:
    """The contents of a weights file whose names were chosen to be read in a way, and its entries by these.

    Raises:
        CheckpointError: see `read_contents`; or it is not the file any more that it was then.
    """
    contents = read_contents(file, path)
    try:
        return contents, reading.of(contents.state)
    except LookupError:
        raise changed(path, "after it was planned") from None


def fits(path: Path, entries: Known, needs: Iterable[Need]) -> bool:
    """Whether entries are all that components need."""
    with suppress(InputError):
        for need in needs:
            need.check(path, entries)
        return True
    return False


def choose(path: Path, state: Mapping[Any, Any], needs: Sequence[Need]) -> Reading:
    """The way in which the names of a weights file are to be read: that in which all fits, or else most is there.

    Args:
        path: what messages call it.
        state: the dictionary that it holds, from `read_contents`.
        needs: those of the components that are wanted of it.

    Raises:
        CheckpointError: they fit as they stand in none, and in several others.
        ConfigError: see `Need.names`.
    """
    plain = entries_of(state)
    if fits(path, plain, needs):
        return PLAIN
    names = frozenset(name for need in needs for name in need.names)
    if names <= plain.keys():
        return PLAIN
    counts = _readings(state, names)
    whole = [each for each, count in counts.items() if count >= len(names)]
    fitting = whole if len(whole) > _MOST else [each for each in whole if _fits(each, path, state, needs)]
    if len(fitting) > 1:
        raise CheckpointError(
            f"{path}: has fitting tensors {'; '.join(map(str, fitting[:_SHOWN]))}{'; …' * (len(fitting) > _SHOWN)}; "
            f"keep one of these ({fitting[0].rewriting(path)})"
        )
    if fitting:
        return fitting[0]
    best = max(counts, key=lambda reading: counts[reading], default=PLAIN)
    return best if counts[best] > sum(name in plain for name in names) and _is_unambiguous(best, state) else PLAIN


def check(path: Path, entries: Known, need: Need, reading: Reading) -> None:
    """See that entries are what a component needs.

    Args:
        path: what messages call the weights file.
        entries: what it holds by the names that are read.
        reading: how they are read.

    Raises:
        InputError: they do not fit. Where names are not read as they stand, the message says so.
    """
    try:
        need.check(path, entries)
    except CheckpointError as error:
        if reading.is_plain:
            raise
        raise CheckpointError(f"{error}; its names stand {reading} ({reading.rewriting(path)})") from None


def _fits(reading: Reading, path: Path, state: Mapping[Any, Any], needs: Iterable[Need]) -> bool:
    return _is_unambiguous(reading, state) and fits(path, reading.of(state), needs)


def _is_unambiguous(reading: Reading, state: Mapping[Any, Any]) -> bool:
    """Whether each tensor has a name of its own in a reading."""
    with suppress(LookupError):
        return bool(reading.of(state))
    return False


def _readings(state: Mapping[Any, Any], names: frozenset[str]) -> Counter[Reading]:
    """The ways to read names other than as they stand, each with how many of the names that are needed it gives."""
    found: Counter[Reading] = Counter()
    for nesting, entries in _dictionaries(state):
        for name in entries:
            found.update(Reading(nesting, prefix) for prefix in _prefixes(name, names))
    del found[PLAIN]
    return found


def _dictionaries(state: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Entries]]:
    """The dictionaries in a file, those further out first; one that stands in several places, at the first."""
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), state)]
    seen = {id(state)}
    for _ in range(_DEEPEST + 1):
        inner: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = []
        for nesting, dictionary in level:
            yield nesting, entries_of(dictionary)
            for name, value in dictionary.items():
                is_inner = type(value) is dict and id(value) not in seen
                if is_inner and isinstance(name, str) and len(name) <= _LONGEST_NAME:
                    seen.add(id(value))
                    inner.append(((*nesting, name), value))
        level = inner


def _prefixes(name: str, names: frozenset[str]) -> Iterator[str]:
    """What a name that is needed stands behind in a name; "" for one that is needed itself."""
    if len(name) <= _LONGEST_NAME:
        at = 0
        while at >= 0:
            if name[at:] in names:
                yield name[:at]
            at = name.find(".", at) + 1 or -1


@dataclass(frozen=True)
class EncoderNeed:
    """What the encoder of a component needs: its parameters, under the component's prefix.

    Attributes:
        names: its tensors by their names in the weights file.
    """

    component: Component
    names: Mapping[str, Parameter]

    @classmethod
    def of(cls, component: Component, options: Mapping[str, Any], config: Path) -> "EncoderNeed":
        """
        Args:
            options: those of the encoder in the configuration.
            config: what messages call that.

        Raises:
            UnsupportedOptionError: an option that is unknown, missing, or of a value that is not supported.
        """
        try:
            found = parameters(component.class_name, options)
        except UnsupportedOptionError as error:
            where = f"{config}: {component.node}"
            raise UnsupportedOptionError(error.option, error.value, error.supported, where) from None
        return cls(component, {f"{component.prefix}{name}": parameter for name, parameter in found.items()})

    @property
    def key(self) -> str:
        return f"{self.component.name} {json.dumps(self.names)}"

    def check(self, path: Path, entries: Known) -> None:
        """
        Raises:
            TensorMismatchError: tensors are missing, unknown, or of another shape or type.
        """
        own = {name: entry for name, entry in entries.items() if name.startswith(self.component.prefix)}
        check_tensors(f"{path}: {self.component.name}", self.names, own)


def check_tensors(where: str, wanted: Mapping[str, Parameter], entries: Known) -> None:
    """See that entries are the tensors that are wanted; what are no tensors beside them does not count.

    Args:
        where: what messages begin with.
        wanted: the shapes and types by name.
        entries: what there is.

    Raises:
        TensorMismatchError: tensors are missing, unknown, or of another shape or type.
    """
    missing = [name for name in wanted if name not in entries]
    unexpected = [name for name, entry in entries.items() if name not in wanted and _is_tensor(entry)]
    kinds = {name: (_kind(entries[name]), _shape(*parameter)) for name, parameter in wanted.items() if name in entries}
    misshapen = [f"{name} ({kind} instead of {shape})" for name, (kind, shape) in kinds.items() if kind != shape]
    if missing or unexpected or misshapen:
        raise TensorMismatchError(where, missing, unexpected, misshapen)


def _is_tensor(entry: Described | Other) -> bool:
    # Among digests, what is not a plain tensor has the name of its kind as its type.
    other = entry if isinstance(entry, Other) else Other(entry.dtype)
    return other.is_tensor or other.kind in ITEM_SIZES


def _kind(entry: Described | Other) -> str:
    """The shape and type of a tensor as `_shape` gives it, or what an entry is instead."""
    if isinstance(entry, Other) or entry.dtype not in ITEM_SIZES:
        return f"not a plain tensor: {entry.kind if isinstance(entry, Other) else entry.dtype}"
    return _shape(entry.shape, "" if "float" in entry.dtype else entry.dtype)


def _shape(shape: tuple[int, ...], dtype: str) -> str:
    """What of a tensor has to be as wanted, in words: its shape, and its type unless that is a float."""
    return f"{dtype} {tuple(shape)}".lstrip()
