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
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple

import xxhash

from cosyjit.errors import CheckpointError
from cosyjit.files import replacing, sha256_of
from cosyjit.identity import Identity
from cosyjit.tensors import Index, Other, StoredTensor, opened, read_index

_BUFFER: Final = 1 << 20
"""What is read at a time: it stays in a processor's second-level cache between the reading and the hashing."""

_BATCH: Final = 8 << 20
"""What a thread takes at a time, in bytes of tensors."""

_FORMATS: Final[Mapping[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""The formats of `memoryview` for words of so many bytes."""

_SEALED: Final = b"cosyjit digests 1\n"

_ONE_AT_A_TIME: Final = threading.Lock()
"""Held while a file's SHA-256 is taken: several builds that ask for it at once wait for the same answer."""


@cache
def _start() -> str:
    """What tells this start of the machine from others; where that cannot be told, this process from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex


def _is_missing(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:
        return False  # it may well be there


class TensorDigest(NamedTuple):
    """A tensor's type by torch's name, its shape, and the XXH3-128 of its numbers in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


class Weights(NamedTuple):
    """The tensors of a weights file, and what the file was when they were read."""

    identity: Identity
    tensors: Mapping[str, TensorDigest]


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


class Digests:
    """The digests of files, remembered in a directory. What cannot be remembered there is taken again each time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def known(self, path: Path, prefixes: Collection[str] = ("",)) -> bool:
        """Whether `tensors` of a weights file would give what is remembered."""
        return self._recall_tensors(path, prefixes) is not None

    def tensors(self, paths: Iterable[Path], prefixes: Collection[str] = ("",)) -> dict[Path, Weights]:
        """The tensors of weights files; an entry that is no tensor has the name of its type and no numbers.

        Args:
            paths: the files.
            prefixes: what the names of those tensors start with that are wanted; others are not read.

        Raises:
            CheckpointError: a file is missing, damaged or more than tensors, or was changed while it was read.
        """
        found = {path: self._recall_tensors(path, prefixes) for path in paths}
        with ExitStack() as files:
            unknown = [path for path, weights in found.items() if weights is None]
            begun = [self._begin(path, files.enter_context(opened(path)), prefixes) for path in unknown]
            _hash(begun)
            read = {each.path: self._finish(each) for each in begun}
        return {path: weights or read[path] for path, weights in found.items()}

    def _recall_tensors(self, path: Path, prefixes: Collection[str]) -> Weights | None:
        try:
            identity = Identity.of(path)
        except OSError:
            return None  # whoever opens it will say so
        remembered = self._recall(_kind(prefixes), path, identity)
        return None if remembered is None else Weights(identity, _tensors_of(remembered))

    def _begin(self, path: Path, file: BinaryIO, prefixes: Collection[str]) -> "_Reading":
        identity = Identity.of(file.fileno())
        settled = identity.settled()
        index = {name: entry for name, entry in read_index(file, path).items() if name.startswith((*prefixes,))}
        return _Reading(_kind(prefixes), path, file, identity, settled, index)

    def _finish(self, read: "_Reading") -> Weights:
        _check_unchanged(read.path, read.file.fileno(), read.identity)
        tensors = {name: _described(entry, read.digests.get(name, "")) for name, entry in read.index.items()}
        if read.settled:
            self._remember(read.kind, read.path, read.identity, tensors)
        return Weights(read.identity, tensors)

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file, in hex.

        Raises:
            OSError: it cannot be read.
            CheckpointError: it was changed while it was read.
        """
        if remembered := self._recall_sha256(path):
            return remembered
        with _ONE_AT_A_TIME, path.open("rb", buffering=0) as file:
            if remembered := self._recall_sha256(path):
                return remembered
            identity = Identity.of(file.fileno())
            settled = identity.settled()
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

    def remember_sha256(self, path: Path, sha256: str, *, until_restart: bool = False) -> None:
        """Remember the SHA-256 of a file that has just been written as a whole, or moved, and read on the way.

        Args:
            until_restart: forget it when the machine is started again, before which it may not have reached the disk.
        """
        with suppress(OSError):  # it was moved on already
            identity = Identity.of(path)
            if identity.settled():
                self._remember(f"sha256 {_start()}" if until_restart else "sha256", path, identity, sha256)

    def _recall_sha256(self, path: Path) -> str | None:
        identity = Identity.of(path)
        found = self._recall("sha256", path, identity) or self._recall(f"sha256 {_start()}", path, identity)
        return None if found is None else str(found)

    def of_missing(self, going: Collection[Path] = ()) -> Iterator[Path]:
        """Where digests are remembered of files that are gone, or among those that are going to be."""
        for memory in self.directory.glob("*.json"):
            entry = _read_memory(memory)
            if entry is None or Path(entry["path"]) in going or _is_missing(Path(entry["path"])):
                yield memory

    def _recall(self, kind: str, path: Path, identity: Identity) -> Any:
        entry = _read_memory(self._memory(kind, path))
        if entry is None or (entry["path"], entry["identity"]) != (str(path), list(identity)):
            return None
        return entry["value"]

    def _remember(self, kind: str, path: Path, identity: Identity, value: Any) -> None:
        entry = json.dumps({"path": str(path), "identity": identity, "value": value}).encode()
        with suppress(OSError):  # a directory that cannot be written to costs time only
            self.directory.mkdir(parents=True, exist_ok=True)
            with replacing(self._memory(kind, path)) as file:
                file.write(_seal(entry) + entry)

    def _memory(self, kind: str, path: Path) -> Path:
        return self.directory / f"{xxhash.xxh3_128_hexdigest(kind.encode() + b' ' + os.fsencode(path))}.json"


@dataclass(frozen=True)
class _Reading:
    """A weights file while it is read: what it was at the start, what is in it, and what is remembered of it."""

    kind: str
    path: Path
    file: BinaryIO
    identity: Identity
    settled: bool
    index: Index
    digests: dict[str, str] = field(default_factory=dict)


def _kind(prefixes: Collection[str]) -> str:
    """What the digests of the tensors under some prefixes are remembered as."""
    return f"tensors {' '.join(sorted(prefixes))}"


def _seal(entry: bytes) -> bytes:
    """What stands before a memory's entry: a damaged one would be believed."""
    return xxhash.xxh3_128_hexdigest(_SEALED + entry).encode() + b"\n"


def _read_memory(memory: Path) -> dict[str, Any] | None:
    """What is remembered in a file; None if there is none, or it is damaged or another version's."""
    try:
        seal, _, entry = memory.read_bytes().partition(b"\n")
    except OSError:
        return None
    if seal + b"\n" != _seal(entry):
        return None
    found: dict[str, Any] = json.loads(entry)
    return found


def _tensors_of(remembered: Mapping[str, Any]) -> dict[str, TensorDigest]:
    return {name: TensorDigest(dtype, tuple(shape), digest) for name, (dtype, shape, digest) in remembered.items()}


def _described(entry: StoredTensor | Other, digest: str) -> TensorDigest:
    if isinstance(entry, Other):
        return TensorDigest(entry.kind, (), digest)
    return TensorDigest(entry.dtype, entry.shape, digest)


def _hash(files: Sequence[_Reading]) -> None:
    """Take the digests of all tensors of some files, on all processors."""
    batches = iter([batch for read in files for batch in _batches(read)])

    def work(_: int) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        for read, tensors in batches:  # whoever is free takes the next
            read.digests.update(_hash_batch(read, tensors, buffer))

    with ThreadPoolExecutor(processors()) as pool:
        list(pool.map(work, range(processors())))


def _hash_batch(
    read: _Reading, tensors: Sequence[tuple[str, StoredTensor]], buffer: memoryview
) -> Iterator[tuple[str, str]]:
    try:
        for name, tensor in tensors:
            hash_one = _hash_rows if tensor.contiguous else _hash_strided
            yield name, hash_one(read.file.fileno(), read.path, tensor, buffer)
    except OSError as error:
        raise CheckpointError(f"{read.path}: cannot be read ({error.strerror}); copy it again") from None


def _batches(read: _Reading) -> Iterator[tuple[_Reading, list[tuple[str, StoredTensor]]]]:
    """The tensors of a file in groups, which are taken by threads: to take each by itself would cost more."""
    batch: list[tuple[str, StoredTensor]] = []
    size = 0
    for name, entry in read.index.items():
        if isinstance(entry, StoredTensor):
            batch.append((name, entry))
            size += entry.bytes
            if size >= _BATCH:
                yield read, batch
                batch, size = [], 0
    yield read, batch


def _hash_rows(fd: int, path: Path, tensor: StoredTensor, buffer: memoryview) -> str:
    digest = xxhash.xxh3_128()
    at, end = tensor.start, tensor.start + tensor.bytes
    while at < end:
        size = os.preadv(fd, [buffer[: min(len(buffer), end - at)]], at)
        if not size:
            raise _changed(path)
        digest.update(buffer[:size])
        at += size
    return digest.hexdigest()


def _hash_strided(fd: int, path: Path, tensor: StoredTensor, _: memoryview) -> str:
    """As `_hash_rows`, for numbers that stand in another order in the file, such as a transposed matrix."""
    content = bytearray(tensor.extent)
    at = 0
    while at < len(content):
        size = os.preadv(fd, [memoryview(content)[at : at + (1 << 30)]], tensor.start + at)
        if not size:
            raise _changed(path)
        at += size
    word = math.gcd(tensor.item_size, 8)
    numbers = memoryview(content).cast(_FORMATS[word])
    shape, stride = tensor.shape, tensor.stride
    if word < tensor.item_size:  # complex numbers of 16 bytes
        shape, stride = (*shape, 2), (*(2 * step for step in stride), 1)
    digest = xxhash.xxh3_128()
    for outer in itertools.product(*map(range, shape[:-1])):
        first = sum(map(operator.mul, outer, stride))
        row = numbers[first : first + (shape[-1] - 1) * stride[-1] + 1 : stride[-1] or 1].tobytes()
        digest.update(row if stride[-1] else row * shape[-1])
    return digest.hexdigest()


def _check_unchanged(path: Path, fd: int, identity: Identity) -> None:
    with suppress(OSError):
        if Identity.of(fd) == identity == Identity.of(path):
            return
    raise _changed(path)


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: was changed while it was read; run again when it is complete")
