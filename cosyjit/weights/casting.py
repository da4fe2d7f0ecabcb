"""Casts the tensors of a weights file to a precision, a few megabytes at a time. It needs torch, which builds have."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from cosyjit.errors import CheckpointError, VerificationError
from cosyjit.families import Precision
from cosyjit.fs import files
from cosyjit.weights.fit import PLAIN, Reading, read_as
from cosyjit.weights.tensors import StoredTensor
from cosyjit.weights.weights_file import changed_error, numbers, opened

_NUMBERS: Final = 1 << 20
"""The most numbers of a block."""


@contextmanager
def located(
    path: Path, shapes: Mapping[str, tuple[int, ...]], reading: Reading = PLAIN
) -> Iterator[tuple[BinaryIO, list[StoredTensor]]]:
    """A file with the numbers of planned tensors, and the place of each in that file.

    Args:
        path: the weights file.
        shapes: those of the tensors, by their names in the reading.
        reading: how the names in the weights file are read.

    Raises:
        CheckpointError: the weights file cannot be read, or was changed after it was planned.
    """
    with opened(path) as file:
        contents, entries = read_as(file, path, reading)
        places = []
        for name, shape in shapes.items():
            stored = entries.get(name)
            if not isinstance(stored, StoredTensor) or stored.shape != shape or "float" not in stored.dtype:
                raise changed_error(path, "after it was planned")
            places.append(stored)
        with numbers(file, path, contents, places) as source:
            yield source, places


class Caster:
    """Reads tensors of a weights file in blocks and casts them, in the same few megabytes of memory for all.

    Numbers are rounded to nearest, ties to even, by way of float32, as torch rounds them.

    Attributes:
        underflows: how many numbers have underflowed to 0 so far.
    """

    def __init__(self, file: BinaryIO, path: Path, precision: Precision) -> None:
        self.underflows = 0
        self._file, self._path, self._precision = file, path, precision
        self._dtype: torch.dtype = getattr(torch, precision.dtype)
        self._read = bytearray(_NUMBERS * torch.float64.itemsize)
        self._cast = bytearray(_NUMBERS * self._dtype.itemsize)

    def filled(self, value: float, count: int) -> Iterator[memoryview]:
        """One number `count` times, cast, as bytes. It may be infinite. A block is valid until the next."""
        out = torch.frombuffer(self._cast, dtype=self._dtype).fill_(value)
        for at in range(0, count, _NUMBERS):
            yield memoryview(self._cast)[: min(_NUMBERS, count - at) * out.itemsize]

    def blocks(self, name: str, tensor: StoredTensor) -> Iterator[memoryview]:
        """The cast numbers of a tensor of floats in row-major order, as bytes. A block is valid until the next.

        Raises:
            CheckpointError: the file cannot be read, or was cut short.
            VerificationError: numbers are NaN or infinite, or become so.
        """
        for block in self._numbers(tensor):
            out = torch.frombuffer(self._cast, dtype=self._dtype, count=block.numel())
            out.copy_(block)
            self._check(name, block, out)
            yield memoryview(self._cast)[: out.nbytes]

    def _numbers(self, tensor: StoredTensor) -> Iterator[Tensor]:
        dtype: torch.dtype = getattr(torch, tensor.dtype)
        if not tensor.contiguous:
            # It is read whole, since the next number may be anywhere in it.
            content = bytearray(tensor.extent)
            self._fill(memoryview(content), tensor.start)
            whole = torch.frombuffer(content, dtype=dtype).as_strided(tensor.shape, tensor.stride)
            yield from whole.flatten().split(_NUMBERS)
            return
        step = _NUMBERS * tensor.item_size
        for at in range(0, tensor.size, step):
            size = min(step, tensor.size - at)
            self._fill(memoryview(self._read)[:size], tensor.start + at)
            yield torch.frombuffer(self._read, dtype=dtype, count=size // tensor.item_size)

    def _fill(self, buffer: memoryview, at: int) -> None:
        try:
            whole = files.fill(self._file.fileno(), buffer, at)
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be read ({error.strerror}); copy it again") from None
        if not whole:
            raise changed_error(self._path)

    def _check(self, name: str, before: Tensor, after: Tensor) -> None:
        # If the sum is finite, all numbers are; to check each of them takes ten times as long.
        if not after.sum().isfinite() and not after.isfinite().all():
            if not before.isfinite().all():
                raise VerificationError(
                    f"{self._path}: {name} has numbers that are NaN or infinite; "
                    "export a checkpoint whose weights are sound"
                )
            raise VerificationError(
                f"{self._path}: {name} has numbers that overflow in {self._precision.dtype}; {self._precision.hint}"
            )
        # To look for a zero takes a third of the time of counting them.
        if after.dtype != before.dtype and after.numel() and not after.abs().amin():
            self.underflows += int(before.count_nonzero()) - int(after.count_nonzero())
