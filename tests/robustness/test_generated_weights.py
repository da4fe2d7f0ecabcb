"""Weights files from a generator, beside what torch makes of them: the same, or there is a reason that is known."""

import collections
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from cosyjit.errors import CheckpointError
from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.tensors import StoredTensor
from cosyjit.weights.weights_file import numbers, opened, read_contents
from tests.support.generated_weights import QUIRKS, Case, case
from tests.support.torch_reader import DEEPEST, Answer, Described, Reader, numbers_of
from tests.support.weights_index import tensor_of

_LARGE: Final = 1 << 20
"""In bytes; the numbers of larger tensors, which are expanded, are not looked at."""

_PASSED_OVER: Final = "a tensor that is passed over, and that torch cannot make"

MORE_IS_READ: Final = {
    "an instruction that torch's reader of plain data lacks": ("Unsupported operand",),
    "a name whose value is passed over": tuple(
        f"Unsupported global: GLOBAL {name}" for name in ("collections.d", "pathlib.", "builtins")
    ),
    "a member that is not of weights": (
        *(
            "file meta-data for version: ",
            "file meta-data for .",
            "failed reading file version: ",
            'Expected hasRecord("version")',
        ),
        *("zip archive: unsupported encryption", "zip archive: invalid header", "invalid literal for int()"),
        *("zip archive: unsupported multidisk", "Couldn't parse the version", "UnicodeDecodeError: "),  # of that text
    ),
    "attributes of what has none": ("Can only build Tensor", "'NoneType' object is not iterable"),
    "a gradient of whole numbers, or in place": (
        *(
            "Only Tensors of floating point and complex dtype can",
            "only Tensors of floating point and complex dtype can",
        ),
        "a leaf Variable that requires grad is being used in an in-place operation",
    ),
    _PASSED_OVER: (
        *("Creation of quantized tensor", "sparse_dim", "isComplexType", "Dimension specified as 0"),
        *("indices and values must have", "Variable data has to be a tensor", "Trying to resize storage"),
        *("storage has wrong byte size", "Storage size calculation overflowed"),
        *("numel: integer multiplication overflow", "can't allocate memory"),
    ),
    "bytes without a type in a file from before torch 1.6": ("UntypedStorage' has no attribute 'dtype'",),
}
"""What of cosyjit's reading torch does not take, and what torch says of it."""

LESS_IS_READ: Final = {
    "unlike what torch.save writes": r"is not as torch\.save writes it \(.*\); copy or download it again, or load it ",
    "of another byte order": r"is from a machine of another byte order; load it, and save it again",
    "behind the end": r"has a comment or other bytes behind its end; zip it again without them",
    "storages within storages": r"has storages within storages, as torch before 0\.4 wrote them; load it, and save ",
    "another protocol": r"has a pickle of another protocol than 2 to 5; load it, and save it again",
    "TorchScript": r"is a TorchScript archive; save its state dictionary",
    "a dictionary of Python 2": r"has a dictionary as Python 2 wrote it; load it, and save it again",
    "a checksum": r"has a member whose bytes are not those of its checksum \(.*\); copy or download it again",
    "an old type of tensors": r"holds more than tensors, .*\(torch\.\w+Tensor\); save it as a flat state dictionary",
    "too much to put in order": r"has (a tensor|tensors) (of more than|that) .*; save it again with tensor\.contiguous",
    "too much to inflate": r"is deflated, and its tensors take .*; load it and save it again",
}
"""What of torch's reading cosyjit does not take, and the line that says so."""

OTHER_TENSORS: Final = {"other types", "quantized", "sparse", "metadata", "attributes", "rebuilders", "damage"}
"""The liberties of files that may have tensors which are passed over."""

PASSED_OVER: Final = {"Tensor of another type", "Tensor, changed by its attributes"}
"""Tensors of kinds that torch makes plain ones of."""


@pytest.fixture(scope="module")
def torch_reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.end()


class Compared(NamedTuple):
    """Who read a file, and why not or what differs; "" for what is as it should be."""

    readers: str
    problem: str


def read(path: Path) -> Answer:
    """What cosyjit makes of a file; an error is the line that it says, without the name of the file."""
    try:
        with opened(path) as file:
            contents = read_contents(file, path)
            entries = list(_entries(contents.state, []))
            tensors = [each for _, each in entries if isinstance(each, StoredTensor) and each.size <= _LARGE]
            with numbers(file, path, contents, tensors) as inflated:
                return Answer([(keys, _described(inflated.fileno(), each)) for keys, each in entries], None)
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
        return Answer(None, message.removeprefix(f"{path}: "))


def _entries(state: Mapping[Any, Any], keys: list[str]) -> Iterator[tuple[list[str], Any]]:
    for key, value in state.items():
        if type(key) is str:
            path = [*keys, key]
            yield path, value
            if type(value) is dict and len(path) < DEEPEST:
                yield from _entries(value, path)


def _described(file: int, entry: Any) -> Described:
    if isinstance(entry, Other):
        return entry.kind
    if not isinstance(entry, StoredTensor):
        return type(entry).__name__
    if entry.size > _LARGE:
        return entry.dtype, list(entry.shape), list(entry.stride), ""
    tensor = tensor_of(os.pread(file, entry.extent, entry.start), entry._replace(start=0))
    return entry.dtype, list(entry.shape), list(entry.stride), numbers_of(tensor)


def compare(made: Case, ours: Answer, theirs: Answer) -> Compared:
    if ours.error is not None and theirs.error is not None:
        return Compared("neither", "")
    if theirs.error is not None:
        kinds = [kind for kind, words in MORE_IS_READ.items() if any(each in theirs.error for each in words)]
        known = bool(kinds) and (kinds != [_PASSED_OVER] or bool(made.quirks & OTHER_TENSORS))
        return Compared("cosyjit", "" if known else f"torch says {theirs.error}")
    if ours.error is not None:
        known = any(re.match(pattern, ours.error) for pattern in LESS_IS_READ.values())
        return Compared("torch", "" if known else f"cosyjit says {ours.error}")
    return Compared("both", _difference(ours.entries or [], theirs.entries or []))


def _difference(ours: list[tuple[list[str], Described]], theirs: list[tuple[list[str], Described]]) -> str:
    names = [keys for keys, _ in ours], [keys for keys, _ in theirs]
    if names[0] != names[1]:
        return f"the names are {names[0]}, and to torch {names[1]}"
    found = (
        f"{keys}: {one}, and to torch {other}"
        for (keys, one), (_, other) in zip(ours, theirs, strict=True)
        if not _is_same(one, other)
    )
    return next(found, "")


def _is_same(ours: Described, theirs: Described) -> bool:
    if isinstance(ours, tuple):
        return ours == theirs
    if isinstance(theirs, tuple):
        return ours in PASSED_OVER
    return (ours == "dict") == (theirs == "dict") and ours.startswith("Tensor,") <= theirs.startswith("Tensor")


def compared(seeds: range, reader: Reader, counts: "collections.Counter[str]") -> dict[int, str]:
    """The seeds whose files are not read as they should be, and what is wrong of each."""
    wrong = {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "llm.pt")
        for seed in seeds:
            made = case(seed)
            path.write_bytes(made.content)
            found = compare(made, read(path), reader.read(path))
            counts[found.readers] += 1
            if found.problem:
                wrong[seed] = found.problem
    return wrong


def check(seeds: range, reader: Reader) -> None:
    counts: collections.Counter[str] = collections.Counter()
    assert compared(seeds, reader, counts) == {}
    assert counts["both"] > 0.3 * len(seeds)  # or there was little to compare


@pytest.mark.slow
def test_generated_files_are_read_as_torch_reads_them(torch_reader: Reader) -> None:
    check(range(400), torch_reader)


@pytest.mark.stress
@pytest.mark.parametrize("first", range(1000, 7000, 1000))
def test_many_generated_files_are_read_as_torch_reads_them(first: int, torch_reader: Reader) -> None:
    check(range(first, first + 1000), torch_reader)


def test_each_liberty_is_taken_often_and_a_seed_gives_the_same_file_again() -> None:
    cases = [case(seed) for seed in range(1000)]
    taken = collections.Counter(quirk for each in cases for quirk in each.quirks)
    assert min(taken[quirk] for quirk in QUIRKS) >= 10
    assert len({each.content for each in cases}) > 900
    assert [case(each.seed) for each in cases] == cases
