"""Checks that the tensors of a weights file fit components, and chooses how the names in the file are read.

Training wraps what it saves: names get a prefix such as `module.` or `_orig_mod.`, and the tensors a key such as
`state_dict` or `model`. Names are read unchanged if they fit so; otherwise in the one other reading that fits.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from cosyjit.encoders import parameters as encoders
from cosyjit.encoders.parameters import Parameter
from cosyjit.errors import CheckpointError, InputError, TensorMismatchError, UnsupportedOptionError
from cosyjit.estimators import parameters as estimators
from cosyjit.families import Component
from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.tensors import ITEM_SIZES, Contents, Entries, entries_of
from cosyjit.weights.weights_file import SAFETENSORS, changed_error, read_contents

_PARAMETERS: Final = {"zip": encoders.parameters, "onnx": estimators.parameters_of_file}
"""By `Component.kind`, what gives the parameters of a network."""

_DEEPEST: Final = 3
"""How many dictionaries may enclose that of the tensors."""

_LONGEST_NAME: Final = 300
"""In characters. Published names have at most 70; longer names than this are not searched for a prefix."""

_SHOWN: Final = 3
"""How many readings a message gives."""

_MOST: Final = 16
"""How many readings that have all names are checked. Where there are more, the file is taken to be ambiguous."""


class Described(Protocol):
    """The type and shape of an entry of a weights file. Entries that are equal have the same numbers."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


Known = Mapping[str, Described | Other]
"""Entries by name, as the file or its digests describe them."""


class Need(Protocol):
    """The tensors that a component needs from a weights file."""

    @property
    def names(self) -> Iterable[str]:
        """The names of the tensors that it needs in any case."""

    @property
    def key(self) -> str:
        """A text that differs for different needs."""

    def check(self, path: Path, entries: Known) -> None:
        """Check that the entries of a file fit.

        Raises:
            InputError: they do not.
        """


class Reading(NamedTuple):
    """How the names of a weights file are read.

    Attributes:
        nesting: the names of the dictionaries, from the outermost, that lead to the tensors.
        prefix: the beginning of the tensors' names there, which is dropped.
    """

    nesting: tuple[str, ...] = ()
    prefix: str = ""

    def __str__(self) -> str:
        words = [f"under {' / '.join(map(_quoted, self.nesting))}"] if self.nesting else []
        return " and ".join([*words, f"behind {_quoted(self.prefix)}"] if self.prefix else words)

    @property
    def is_plain(self) -> bool:
        """Whether names are read unchanged."""
        return self == PLAIN

    def of(self, state: Mapping[Any, Any]) -> Entries:
        """The entries by the names of this reading; names without the prefix stay.

        Raises:
            LookupError: the nesting does not exist, or two tensors would get one name.
        """
        for name in self.nesting:
            state = state[name]
            if type(state) is not dict:
                raise KeyError(name)
        entries = entries_of(state)
        size = len(self.prefix)
        renamed = {name[size:]: entry for name, entry in entries.items() if name.startswith(self.prefix)}
        others = {name: entry for name, entry in entries.items() if not name.startswith(self.prefix)}
        if any(_is_tensor(others[name]) and _is_tensor(renamed[name]) for name in renamed.keys() & others.keys()):
            raise KeyError(self.prefix)
        return {**others, **renamed}

    def rewriting(self, path: Path) -> str:
        """In words, the command that writes another file, whose names are read unchanged."""
        file = _quoted(str(path))
        state = "".join(f"[{_quoted(name)}]" for name in self.nesting)
        items = f"{{k.removeprefix({_quoted(self.prefix)}): v for k, v in state{state}.items()}}"
        saved = items if self.prefix else f"state{state}"
        if path.suffix == SAFETENSORS:
            module, load = "from safetensors.torch import load_file, save_file", f"load_file({file})"
            save = "save_file"
        else:  # safe, since the file was found to hold data alone
            module, load = "import torch", f'torch.load({file}, map_location="cpu", weights_only=False)'
            save = "torch.save"
        code = f'{module}; state = {load}; {save}({saved}, {file} + ".new")'
        return f"python -c {shlex.quote(code)} writes {path.name}.new without that"


PLAIN: Final = Reading()
"""Names are read unchanged."""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def read_as(file: BinaryIO, path: Path, reading: Reading) -> tuple[Contents, Entries]:
    """The contents of a weights file, and its entries by the names of a reading that was chosen for it.

    Raises:
        CheckpointError: as `read_contents`; or the file was changed since the reading was chosen.
    """
    contents = read_contents(file, path)
    try:
        return contents, reading.of(contents.state)
    except LookupError:
        raise changed_error(path, "after it was planned") from None


def fits(path: Path, entries: Known, needs: Iterable[Need]) -> bool:
    """Whether entries fit all components."""
    with suppress(InputError):
        for need in needs:
            need.check(path, entries)
        return True
    return False


def choose(path: Path, state: Mapping[Any, Any], needs: Sequence[Need]) -> Reading:
    """Choose how the names of a weights file are read: so that all components fit, or else most of their names exist.

    Args:
        path: the file, as messages name it.
        state: the dictionary in it, from `read_contents`.
        needs: those of the components that are made from it.

    Raises:
        CheckpointError: the unchanged names do not fit, and several other readings do.
    """
    plain = entries_of(state)
    if fits(path, plain, needs):
        return PLAIN
    names = frozenset(name for need in needs for name in need.names)
    if names <= plain.keys():
        return PLAIN
    counts = _readings(state, names)
    complete = [reading for reading, count in counts.items() if count >= len(names)]
    if len(complete) > _MOST:
        fitting = complete
    else:
        fitting = [reading for reading in complete if _fits(reading, path, state, needs)]
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
    """Check that entries fit a component.

    Args:
        path: the weights file, as messages name it.
        entries: its entries by the names of the reading.
        need: that of the component.
        reading: how the names are read.

    Raises:
        InputError: they do not fit. Where names are not read unchanged, the message says how they are read.
    """
    try:
        need.check(path, entries)
    except CheckpointError as error:
        if reading.is_plain:
            raise
        raise CheckpointError(f"{error}; its names were read {reading} ({reading.rewriting(path)})") from None


def _fits(reading: Reading, path: Path, state: Mapping[Any, Any], needs: Iterable[Need]) -> bool:
    return _is_unambiguous(reading, state) and fits(path, reading.of(state), needs)


def _is_unambiguous(reading: Reading, state: Mapping[Any, Any]) -> bool:
    """Whether a reading gives each tensor a different name."""
    with suppress(LookupError):
        return bool(reading.of(state))
    return False


def _readings(state: Mapping[Any, Any], names: frozenset[str]) -> Counter[Reading]:
    """The readings other than `PLAIN`, each with the number of needed names that it gives."""
    counts: Counter[Reading] = Counter()
    for nesting, entries in _dictionaries(state):
        for name in entries:
            counts.update(Reading(nesting, prefix) for prefix in _prefixes(name, names))
    del counts[PLAIN]
    return counts


def _dictionaries(state: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Entries]]:
    """The dictionaries in a file, the outer ones first; one that occurs several times, at its first place."""
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
    """The prefixes without which a name is one that is needed; "" for a name that is needed itself."""
    if len(name) <= _LONGEST_NAME:
        at = 0
        while at >= 0:
            if name[at:] in names:
                yield name[:at]
            at = name.find(".", at) + 1 or -1


@dataclass(frozen=True)
class EncoderNeed:
    """The tensors that the encoder or estimator of a component needs: its parameters, behind the component's prefix.

    Attributes:
        names: its tensors by their names in the weights file.
    """

    component: Component
    names: Mapping[str, Parameter]

    @classmethod
    def of(cls, component: Component, options: Mapping[str, Any], config: Path) -> "EncoderNeed":
        """The need of an encoder or an estimator with options.

        Args:
            component: the component that it is of.
            options: its options in the configuration.
            config: the configuration, as messages name it.

        Raises:
            UnsupportedOptionError: an option is unknown or missing, or has an unsupported value.
        """
        try:
            known = _PARAMETERS[component.kind](component.class_name, options)
        except UnsupportedOptionError as error:
            where = f"{config}: {component.node}"
            raise UnsupportedOptionError(error.option, error.value, error.supported, where) from None
        return cls(component, {f"{component.prefix}{name}": parameter for name, parameter in known.items()})

    @property
    def key(self) -> str:
        return f"{self.component.name} {json.dumps(self.names)}"

    def check(self, path: Path, entries: Known) -> None:
        """Check that the entries with the component's prefix fit.

        Raises:
            TensorMismatchError: tensors are missing or unknown, or have another shape or type.
        """
        own = {name: entry for name, entry in entries.items() if name.startswith(self.component.prefix)}
        check_tensors(f"{path}: {self.component.name}", self.names, own)


def check_tensors(where: str, wanted: Mapping[str, Parameter], entries: Known) -> None:
    """Check that entries are the wanted tensors. Other entries that are not tensors are ignored.

    Args:
        where: the beginning of the error's message.
        wanted: the shapes and types by name.
        entries: the entries of the file.

    Raises:
        TensorMismatchError: tensors are missing or unknown, or have another shape or type.
    """
    missing = [name for name in wanted if name not in entries]
    unexpected = [name for name, entry in entries.items() if name not in wanted and _is_tensor(entry)]
    kinds = {name: (_kind(entries[name]), _shape(*parameter)) for name, parameter in wanted.items() if name in entries}
    misshapen = [f"{name} ({kind} instead of {shape})" for name, (kind, shape) in kinds.items() if kind != shape]
    if missing or unexpected or misshapen:
        raise TensorMismatchError(where, missing, unexpected, misshapen)


def _is_tensor(entry: Described | Other) -> bool:
    # The digests of what is not a plain tensor have the name of its kind as their type.
    other = entry if isinstance(entry, Other) else Other(entry.dtype)
    return other.is_tensor or other.kind in ITEM_SIZES


def _kind(entry: Described | Other) -> str:
    """The shape and type of a tensor as `_shape` gives them, or what the entry is instead."""
    if isinstance(entry, Other) or entry.dtype not in ITEM_SIZES:
        return f"not a plain tensor: {entry.kind if isinstance(entry, Other) else entry.dtype}"
    return _shape(entry.shape, "" if "float" in entry.dtype else entry.dtype)


def _shape(shape: tuple[int, ...], dtype: str) -> str:
    """In words, what is compared of a tensor: its shape, and its type unless that is a float."""
    return f"{dtype} {tuple(shape)}".lstrip()
