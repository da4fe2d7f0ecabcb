"""Digests of the tensors in weights files, computed at memory speed and remembered by the file's identity.

Files are read and not mapped: a mapped file that someone cuts short kills the process which looks at it.
"""

import itertools
import math
import operator
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, Literal, NamedTuple

import xxhash

from cosyjit.errors import CheckpointError
from cosyjit.fs.digests import Digests
from cosyjit.fs.files import fill
from cosyjit.fs.identity import Identity, settle
from cosyjit.processes.processors import processors
from cosyjit.weights.fit import PLAIN, Need, Reading, choose, fits
from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.tensors import Contents, Entries, StoredTensor
from cosyjit.weights.weights_file import changed_error, numbers, opened, read_contents

_BUFFER: Final = 1 << 20
"""What is read at a time: it stays in a processor's second-level cache between the reading and the hashing."""

_BATCH: Final = 8 << 20
"""What a thread takes at a time, in bytes of tensors."""

_FORMATS: Final[Mapping[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""The formats of `memoryview` for words of so many bytes."""

_ONE_IN_ORDER: Final = threading.Lock()
"""Held while the numbers of a tensor are put in order, so that several large ones are not in memory at once."""


class TensorDigest(NamedTuple):
    """A tensor's type by torch's name, its shape, and the XXH3-128 of its numbers in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


class Weights(NamedTuple):
    """The tensors of a weights file, how their names were read, and what the file was then."""

    identity: Identity
    tensors: Mapping[str, TensorDigest]
    reading: Reading = PLAIN


def are_remembered(digests: Digests, path: Path, prefixes: Collection[str] = ("",), needs: Sequence[Need] = ()) -> bool:
    """Whether `read_tensors` of a weights file would give what is remembered."""
    return _recall(digests, path, prefixes, needs) is not None


def read_tensors(
    digests: Digests,
    paths: Iterable[Path],
    prefixes: Collection[str] = ("",),
    needs: Mapping[Path, Sequence[Need]] = MappingProxyType({}),
) -> dict[Path, Weights]:
    """The tensors of weights files; an entry that is not a tensor has the name of its type and no numbers.

    Args:
        digests: where they are remembered.
        paths: the files.
        prefixes: what the names of the wanted tensors start with; others are not read.
        needs: what components need of the files, by which it is chosen how the names in them are read.

    Raises:
        CheckpointError: a file is missing, damaged or more than tensors, or was changed while it was read.
        InputError: see `cosyjit.weights.fit.choose`.
    """
    remembered = {path: _recall(digests, path, prefixes, needs.get(path, ())) for path in paths}
    with ExitStack() as files:
        unknown = [path for path, weights in remembered.items() if weights is None]
        begun = _begin({path: files.enter_context(opened(path)) for path in unknown}, prefixes, needs)
        _hash([(each, files.enter_context(each.numbers())) for each in begun])
        read = {each.path: _finish(digests, each) for each in begun}
    return {path: weights or read[path] for path, weights in remembered.items()}


def _recall(digests: Digests, path: Path, prefixes: Collection[str], needs: Sequence[Need]) -> Weights | None:
    try:
        identity = Identity.of(path)
    except OSError:
        return None  # whoever opens it will say so
    remembered = digests.recall(_kind(prefixes), path, identity)
    weights = _weights_of(identity, remembered)
    # Names that fit as they stand are read so, whatever else fits; other readings are for what was needed then.
    is_for_them = weights is not None and (weights.reading.is_plain or remembered["needs"] == _key(needs))
    return weights if weights and is_for_them and fits(path, weights.tensors, needs) else None


def _finish(digests: Digests, read: "_Reading") -> Weights:
    if not read.identity.is_still(read.file.fileno(), read.path):
        raise changed_error(read.path)
    tensors = {name: _described(entry, read.digests.get(name, "")) for name, entry in read.entries.items()}
    if read.settled:
        remembered = {"reading": read.reading, "needs": read.needs, "tensors": tensors}
        digests.remember(read.kind, read.path, read.identity, remembered)
    return Weights(read.identity, tensors, read.reading)


@dataclass(frozen=True)
class _Reading:
    """A weights file while it is read: what it was at the start, what is in it, and what is remembered of it."""

    kind: str
    path: Path
    file: BinaryIO
    identity: Identity
    settled: bool
    contents: Contents
    needs: str
    reading: Reading
    entries: Entries
    digests: dict[str, str] = field(default_factory=dict)

    def numbers(self) -> AbstractContextManager[BinaryIO]:
        """A file with the bytes of the tensors where they say."""
        tensors = [entry for entry in self.entries.values() if isinstance(entry, StoredTensor)]
        return numbers(self.file, self.path, self.contents, tensors)


def _begin(
    files: Mapping[Path, BinaryIO], prefixes: Collection[str], needs: Mapping[Path, Sequence[Need]]
) -> list[_Reading]:
    """Take the identities of weights files, and read what is in those."""
    descriptors = [file.fileno() for file in files.values()]
    identities = [Identity.of(each) for each in descriptors]
    begun = []
    for (path, file), identity, settled in zip(files.items(), identities, settle(descriptors), strict=True):
        contents = read_contents(file, path)
        wanted = needs.get(path, ())
        reading = choose(path, contents.state, wanted)
        read = reading.of(contents.state)
        entries = {name: entry for name, entry in read.items() if name.startswith((*prefixes,))}
        begun.append(_Reading(_kind(prefixes), path, file, identity, settled, contents, _key(wanted), reading, entries))
    return begun


def _kind(prefixes: Collection[str]) -> str:
    """What the digests of the tensors under some prefixes are remembered as."""
    return f"tensors {' '.join(sorted(prefixes))}"


def _key(needs: Sequence[Need]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(sorted(need.key for need in needs)).encode())


def _weights_of(identity: Identity, remembered: Any) -> Weights | None:
    """The tensors that are remembered; None if anything else is."""
    with suppress(AttributeError, LookupError, TypeError, ValueError):
        nesting, prefix = remembered["reading"]
        found = remembered["tensors"].items()
        tensors = {n: TensorDigest(str(a), tuple(map(operator.index, b)), str(c)) for n, (a, b, c) in found}
        if isinstance(remembered["needs"], str):
            return Weights(identity, tensors, Reading(tuple(map(str, nesting)), str(prefix)))
    return None


def _described(entry: StoredTensor | Other, digest: str) -> TensorDigest:
    if isinstance(entry, Other):
        return TensorDigest(entry.kind, (), digest)
    return TensorDigest(entry.dtype, entry.shape, digest)


def _hash(files: Sequence[tuple[_Reading, BinaryIO]]) -> None:
    """Take the digests of all tensors of some files, on all processors; beside each, where its numbers are."""
    batches = iter([(read, opened.fileno(), batch) for read, opened in files for batch in _batches(read.entries)])

    def work(_: int) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        for read, fd, tensors in batches:  # whoever is free takes the next
            read.digests.update(_hash_batch(read.path, fd, tensors, buffer))

    with ThreadPoolExecutor(processors()) as pool:
        list(pool.map(work, range(processors())))


def _hash_batch(
    path: Path, fd: int, tensors: Sequence[tuple[str, StoredTensor]], buffer: memoryview
) -> Iterator[tuple[str, str]]:
    try:
        for name, tensor in tensors:
            hash_one = _hash_rows if tensor.contiguous else _hash_strided
            yield name, hash_one(fd, path, tensor, buffer)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); copy it again") from None


def _batches(entries: Entries) -> Iterator[list[tuple[str, StoredTensor]]]:
    """The tensors of a file in groups, which are taken by threads: to take each by itself would cost more."""
    batch: list[tuple[str, StoredTensor]] = []
    size = 0
    for name, entry in entries.items():
        if isinstance(entry, StoredTensor):
            batch.append((name, entry))
            size += entry.size
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
    yield batch


def _hash_rows(fd: int, path: Path, tensor: StoredTensor, buffer: memoryview) -> str:
    digest = xxhash.xxh3_128()
    for at in range(0, tensor.size, len(buffer)):
        block = buffer[: tensor.size - at]
        if not fill(fd, block, tensor.start + at):
            raise changed_error(path)
        digest.update(block)
    return digest.hexdigest()


def _hash_strided(fd: int, path: Path, tensor: StoredTensor, _: memoryview) -> str:
    """As `_hash_rows`, for numbers that stand in another order in the file, such as a transposed matrix.

    They are put in order in memory, of one tensor at a time: of at most 2 GB, see
    `cosyjit.weights.weights_file.numbers`.
    """
    with _ONE_IN_ORDER:
        return xxhash.xxh3_128_hexdigest(_in_order(_read_extent(fd, path, tensor), tensor))


def _read_extent(fd: int, path: Path, tensor: StoredTensor) -> bytearray:
    content = bytearray(tensor.extent)
    if not fill(fd, memoryview(content), tensor.start):
        raise changed_error(path)
    return content


def _in_order(content: bytearray, tensor: StoredTensor) -> bytearray:
    """The numbers of a tensor in row-major order; they are moved by rows along its longest axis."""
    word = math.gcd(tensor.item_size, 8)
    shape, stride = tensor.shape, tensor.stride
    if word < tensor.item_size:  # complex numbers of 16 bytes
        shape, stride = (*shape, 2), (*(2 * step for step in stride), 1)
    found = bytearray(tensor.size)
    source, target = (memoryview(each).cast(_FORMATS[word]) for each in (content, found))
    places = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    longest = max(range(len(shape)), key=shape.__getitem__)
    count, step, place = shape[longest], stride[longest], places[longest]
    for outer in itertools.product(*(range(1 if axis == longest else size) for axis, size in enumerate(shape))):
        first, to = (sum(map(operator.mul, outer, steps)) for steps in (stride, places))
        row = source[first : first + (count - 1) * step + 1 : step or 1]
        repeated = row if step else memoryview(row.tobytes() * count).cast(_FORMATS[word])
        target[to : to + (count - 1) * place + 1 : place] = repeated
    return found
