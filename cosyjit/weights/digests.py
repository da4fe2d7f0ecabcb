"""Digests of files and of the tensors in them, taken at memory speed and remembered by the file's identity.

Files are read and not mapped: a mapped file that someone cuts short kills the process which looks at it.
"""

import itertools
import json
import math
import operator
import os
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, Literal, NamedTuple

import xxhash

from cosyjit.errors import CheckpointError
from cosyjit.fs.files import fill, plain, sha256_of
from cosyjit.fs.identity import Identity, settle
from cosyjit.fs.roots import Root
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

_LARGEST: Final = 64 << 20
"""In bytes, what is remembered of a file at most."""

_SEALED: Final = b"cosyjit digests 3\n"

_ONE_AT_A_TIME: Final = threading.Lock()
"""Held while a file's SHA-256 is taken: several builds that ask for it at once wait for the same answer."""

_ONE_IN_ORDER: Final = threading.Lock()
"""Held while the numbers of a tensor are put in order, so that several large ones are not in memory at once."""


@cache
def _start() -> str:
    """What tells this start of the machine from others; where that cannot be told, this process from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116  (a Path for each of a hundred thousand takes longer than the rest)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False  # it may well be there
    return False


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


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


class Digests:
    """The digests of files, remembered in a directory. What cannot be remembered there is taken again each time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._root, self._folder = Root(directory.parent), directory.name

    def known(self, path: Path, prefixes: Collection[str] = ("",), needs: Sequence[Need] = ()) -> bool:
        """Whether `tensors` of a weights file would give what is remembered."""
        return self._recall_tensors(path, prefixes, needs) is not None

    def tensors(
        self,
        paths: Iterable[Path],
        prefixes: Collection[str] = ("",),
        needs: Mapping[Path, Sequence[Need]] = MappingProxyType({}),
    ) -> dict[Path, Weights]:
        """The tensors of weights files; an entry that is no tensor has the name of its type and no numbers.

        Args:
            paths: the files.
            prefixes: what the names of those tensors start with that are wanted; others are not read.
            needs: what components need of the files, by which it is chosen how the names in them are read.

        Raises:
            CheckpointError: a file is missing, damaged or more than tensors, or was changed while it was read.
            InputError: see `cosyjit.weights.fit.choose`.
        """
        found = {path: self._recall_tensors(path, prefixes, needs.get(path, ())) for path in paths}
        with ExitStack() as files:
            unknown = [path for path, weights in found.items() if weights is None]
            begun = _begin({path: files.enter_context(opened(path)) for path in unknown}, prefixes, needs)
            _hash([(each, files.enter_context(each.numbers())) for each in begun])
            read = {each.path: self._finish(each) for each in begun}
        return {path: weights or read[path] for path, weights in found.items()}

    def _recall_tensors(self, path: Path, prefixes: Collection[str], needs: Sequence[Need]) -> Weights | None:
        try:
            identity = Identity.of(path)
        except OSError:
            return None  # whoever opens it will say so
        remembered = self._recall(_kind(prefixes), path, identity)
        found = _weights_of(identity, remembered)
        # Names that fit as they stand are read so, whatever else fits; other readings are for what was needed then.
        is_for_them = found is not None and (found.reading.is_plain or remembered["needs"] == _key(needs))
        return found if found and is_for_them and fits(path, found.tensors, needs) else None

    def _finish(self, read: "_Reading") -> Weights:
        _check_unchanged(read.path, read.file.fileno(), read.identity)
        tensors = {name: _described(entry, read.digests.get(name, "")) for name, entry in read.entries.items()}
        if read.settled:
            remembered = {"reading": read.reading, "needs": read.needs, "tensors": tensors}
            self._remember(read.kind, read.path, read.identity, remembered)
        return Weights(read.identity, tensors, read.reading)

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file, in hex.

        Raises:
            OSError: it cannot be read.
            CheckpointError: it was changed while it was read.
        """
        with plain(path) as file:
            return self.sha256_of(file, path)

    def sha256_of(self, file: FileIO, path: Path) -> str:
        """As `sha256`, of a file that is open already, unbuffered, and remembered by its path."""
        if remembered := self._recall_sha256(file, path):
            return remembered
        with _ONE_AT_A_TIME:
            if remembered := self._recall_sha256(file, path):
                return remembered
            identity = Identity.of(file.fileno())
            (settled,) = settle([file.fileno()])
            file.seek(0)
            digest = sha256_of(file)
            _check_unchanged(path, file.fileno(), identity)
        if settled:
            self._remember("sha256", path, identity, digest)
        return digest

    def begin_sha256(self, paths: Iterable[Path]) -> None:
        """Take the SHA-256 of files while the caller does something else; `sha256` waits for it."""

        def work() -> None:
            for path in paths:
                with suppress(OSError, CheckpointError):  # whoever wants to know will be told
                    self.sha256(path)

        threading.Thread(target=work, daemon=True).start()

    def remember_sha256(self, path: Path, sha256: str, before: Identity | None, *, until_restart: bool = False) -> None:
        """Remember the SHA-256 of a file that was given a name, if nothing else has happened to it.

        Args:
            before: the file then, see `Identity.written`; for None nothing is remembered.
            until_restart: forget it when the machine is started again, before which it may not have reached the disk.
        """
        with suppress(OSError):  # it was moved on already
            identity = Identity.of(path)
            if before and identity[:3] == before[:3]:  # all but the time of change
                self._remember(f"sha256 {_start()}" if until_restart else "sha256", path, identity, sha256)

    def _recall_sha256(self, file: FileIO, path: Path) -> str | None:
        identity = Identity.of(file.fileno())
        found = self._recall("sha256", path, identity) or self._recall(f"sha256 {_start()}", path, identity)
        return found if isinstance(found, str) else None

    def tidy(self) -> None:
        """Forget the digests of files that are gone."""
        with suppress(OSError):  # a directory that cannot be written to costs time only
            for path in self.of_missing():
                self._root.remove(f"{self._folder}/{path.name}")

    def of_missing(self, going: Collection[str] = ()) -> Iterator[Path]:
        """Where digests are remembered of files that are gone, or whose paths are among those that are going to be."""
        names: list[str] = []
        with suppress(OSError):  # of a directory that cannot be looked into nothing is said
            names = [name for name, _ in self._root.walk(self._folder) if name.endswith(".json")]
        for name in names:
            entry = self._read(name)
            if entry is None or entry["path"] in going or _is_missing(entry["path"]):
                yield self._root.path / name

    def _recall(self, kind: str, path: Path, identity: Identity) -> Any:
        entry = self._read(self._memory(kind, path))
        if entry is None or (entry["path"], entry["identity"]) != (str(path), list(identity)):
            return None
        return entry["value"]

    def _remember(self, kind: str, path: Path, identity: Identity, value: Any) -> None:
        entry = json.dumps({"path": str(path), "identity": identity, "value": value}).encode()
        # A directory that cannot be written to costs time only.
        with suppress(OSError), self._root.replacing(self._memory(kind, path)) as file:
            file.write(_seal(entry) + entry)

    def _memory(self, kind: str, path: Path) -> str:
        return f"{self._folder}/{xxhash.xxh3_128_hexdigest(kind.encode() + b' ' + os.fsencode(path))}.json"

    def _read(self, name: str) -> dict[str, Any] | None:
        """What is remembered in a file; None if there is none, or it is damaged or another version's."""
        with suppress(OSError, ValueError, RecursionError):
            seal, _, entry = self._root.read(name, _LARGEST).partition(b"\n")
            found = json.loads(entry) if seal + b"\n" == _seal(entry) else None
            if isinstance(found, dict) and found.keys() == {"path", "identity", "value"}:
                return found if isinstance(found["path"], str) else None
        return None


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


def _seal(entry: bytes) -> bytes:
    """What stands before a memory's entry: a damaged one would be believed."""
    return xxhash.xxh3_128_hexdigest(_SEALED + entry).encode() + b"\n"


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


def _check_unchanged(path: Path, fd: int, identity: Identity) -> None:
    with suppress(OSError):
        if Identity.of(fd) == identity == Identity.of(path):
            return
    raise changed_error(path)
