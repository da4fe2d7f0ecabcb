"""Writes a folder from a weights file, and verifies the folder; both stream, whatever the model's size."""

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from cosyjit.errors import VerificationError
from cosyjit.families import Precision
from cosyjit.folders.content import MODEL, Content, Filled, Rows, Tensor
from cosyjit.processes.worker import Progress
from cosyjit.weights import safetensors
from cosyjit.weights.casting import Caster, located
from cosyjit.weights.fit import PLAIN, Reading
from cosyjit.weights.safetensors import UNSOUND
from cosyjit.weights.tensors import StoredTensor


class _Digest:
    """A SHA-256 that is computed in its own thread, while the caller makes the next block."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._digest = hashlib.sha256()
        self._pool = pool
        self._pending: deque[Future[None]] = deque()

    def update(self, block: memoryview | bytes | bytearray) -> None:
        """Add a block, which must not change any more."""
        self._pending.append(self._pool.submit(self._digest.update, block))
        if len(self._pending) > 1:  # no more than two blocks are in memory
            self._pending.popleft().result()

    def hex(self) -> str:
        for future in self._pending:
            future.result()
        return self._digest.hexdigest()


@contextmanager
def _digesting() -> Iterator[_Digest]:
    with ThreadPoolExecutor(1) as pool:
        yield _Digest(pool)


def write(
    folder: Content, weights: Path, directory: Path, precision: Precision, progress: Progress, reading: Reading = PLAIN
) -> int:
    """Write a folder. Equal inputs give equal bytes. The files are not flushed to disk.

    Args:
        folder: the planned content, from the rules of its kind.
        weights: the file with the tensors.
        directory: an empty directory.
        precision: that of the tensors.
        progress: receives "write", and how many numbers underflow, if any do.
        reading: how the names in the weights file are read.

    Returns:
        How many numbers underflow to 0 in the cast.

    Raises:
        CheckpointError: the weights file cannot be read, or was changed after it was planned.
        VerificationError: numbers are NaN or infinite, or become so at this precision.
        OSError: the directory cannot be written to.
    """
    progress("write")
    with _located(folder, weights, reading) as (source, places), (directory / MODEL).open("xb", buffering=0) as file:
        caster = Caster(source, weights, precision)
        shapes = {tensor.name: tensor.shape for tensor in folder.tensors}
        _write(file, memoryview(safetensors.head(shapes, precision.dtype)))
        for tensor in folder.tensors:
            for piece in tensor.pieces:
                for block in _blocks(caster, tensor, piece, places):
                    _write(file, block)
    for name, content in folder.texts(precision).items():
        with (directory / name).open("xb") as text:
            text.write(content)
    if caster.underflows:
        progress(f"cast: {caster.underflows:,} numbers become 0")
    return caster.underflows


@contextmanager
def _located(folder: Content, weights: Path, reading: Reading) -> Iterator[tuple[BinaryIO, dict[str, StoredTensor]]]:
    """A file with the numbers that a folder is made from, and where each of the tensors is in that file."""
    with located(weights, folder.shapes, reading) as (file, places):
        yield file, dict(zip(folder.shapes, places, strict=True))


def _blocks(
    caster: Caster, tensor: Tensor, piece: Rows | Filled, places: Mapping[str, StoredTensor]
) -> Iterator[memoryview]:
    """The numbers of a piece of a tensor, cast."""
    if isinstance(piece, Filled):
        return caster.filled(piece.value, piece.rows * math.prod(tensor.shape[1:]))
    return caster.blocks(piece.source, places[piece.source].cut(piece.first, piece.rows))


def _write(file: FileIO, block: memoryview) -> None:
    written = 0
    while written < len(block):
        written += file.write(block[written:])


def verify(
    folder: Content, weights: Path, directory: Path, precision: Precision, progress: Progress, reading: Reading = PLAIN
) -> dict[str, str]:
    """Read a folder back, and compare all of it with its inputs.

    Each tensor has to be the cast of its source, bit for bit. The configurations have to be those that the rules derive
    from the base model's. The folder may not have other files.

    Args:
        folder, weights, precision, reading: the inputs that it was written from.
        directory: the folder.
        progress: receives "verify".

    Returns:
        The SHA-256 of each file, by its name.

    Raises:
        CheckpointError: as `write`.
        VerificationError: the folder is not what it should be, or its weights are not sound.
        OSError: it cannot be read.
    """
    progress("verify")
    texts = folder.texts(precision)
    _check_names(directory, {MODEL, *texts})
    digests = {MODEL: _verify_model(folder, weights, directory / MODEL, precision, reading)}
    for name, content in texts.items():
        with (directory / name).open("rb") as file:
            if file.read(len(content) + 1) != content:
                raise VerificationError(f"{directory / name}: is not what was planned; {UNSOUND}")
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def _check_names(directory: Path, wanted: set[str]) -> None:
    with os.scandir(directory) as entries:
        regular = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    if regular != dict.fromkeys(wanted, True):
        names = ", ".join(sorted(regular)) or "nothing"
        raise VerificationError(f"{directory}: holds {names}, not the files {', '.join(sorted(wanted))}; {UNSOUND}")


def _verify_model(folder: Content, weights: Path, path: Path, precision: Precision, reading: Reading) -> str:
    """Compare a file of tensors with their sources. Returns its SHA-256."""
    source_and_places = _located(folder, weights, reading)
    with source_and_places as (source, places), _digesting() as digest, path.open("rb", buffering=0) as file:
        head, entries = safetensors.read_head(file, os.fstat(file.fileno()).st_size)
        _check_entries(path, entries, folder.tensors, precision)
        digest.update(head)
        caster = Caster(source, weights, precision)
        for tensor in folder.tensors:
            for piece in tensor.pieces:
                for expected in _blocks(caster, tensor, piece, places):
                    block = _read(file, len(expected))
                    if block != expected:
                        raise VerificationError(f"{path}: {tensor.name} is not {_words(piece, weights)}; {UNSOUND}")
                    digest.update(block)
        return digest.hex()


def _words(piece: Rows | Filled, weights: Path) -> str:
    if isinstance(piece, Filled):
        return f"{piece.value:g} where it should be"
    return f"the cast of {piece.source} in {weights}"


def _check_entries(
    path: Path, entries: Mapping[str, safetensors.Entry], wanted: Iterable[Tensor], precision: Precision
) -> None:
    code = safetensors.TYPES[precision.dtype]
    actual = [(name, entry.dtype, entry.shape) for name, entry in entries.items()]
    if actual != [(tensor.name, code, tensor.shape) for tensor in wanted]:
        raise VerificationError(f"{path}: its tensors are not those that were planned; {UNSOUND}")


def _read(file: FileIO, size: int) -> bytearray:
    """The next `size` bytes, or fewer at the end of the file."""
    block = bytearray(size)
    view = memoryview(block)
    done = 0
    while done < size and (got := file.readinto(view[done:])):
        done += got
    return block if done == size else block[:done]
