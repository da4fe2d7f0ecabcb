"""Reads a weights file without torch, and without running anything in it.

A stranger may have written the file. Reading its index takes at most 0.3 GB and some seconds, whatever it says. How
much is read of its tensors is bounded by its size.
"""

import bisect
import io
import json
import os
import stat
import string
import struct
import sys
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from cosyjit.errors import CheckpointError
from cosyjit.fs import files
from cosyjit.text import one_line, plain
from cosyjit.weights import safetensors, torch_files
from cosyjit.weights.formats import BEGINNING, UnsupportedFormError, mistaken_for
from cosyjit.weights.pickle_reader import ForbiddenError
from cosyjit.weights.tensors import Contents, StoredTensor
from cosyjit.weights.zip_reader import Member, blocks

SAFETENSORS: Final = ".safetensors"
"""The suffix of files of that format."""

_CONVERTER: Final = "zero_to_fp32.py"
"""The program that DeepSpeed leaves beside its checkpoints, which makes one file of them."""

_DEEPSPEED: Final = "_model_states.pt"
"""The end of the names of DeepSpeed's files with weights."""

_MOST_READ: Final = 8
"""How many times the file's size its tensors may have together. Tied weights are read once for each name."""

_LARGEST_APART: Final = 1 << 30
"""The largest extent of a tensor that is not contiguous, in bytes, since it is put in order in memory."""

_MOST_ROWS: Final = 1 << 20
"""The most rows of all tensors that are not contiguous together; to put these in order takes some seconds."""

_SHORTEST_TEXT: Final = 8
"""In bytes, since a few bytes of a file that was cut short may be printable by chance."""

_BLOCK: Final = 1 << 20
_LONGEST: Final = 200
"""How many characters messages quote of a file."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A weights file, opened.

    Raises:
        CheckpointError: it is missing, is a directory, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_regular(path, os.fstat(fd).st_mode)
            file = os.fdopen(fd, "rb", buffering=0)
        except BaseException:
            os.close(fd)
            raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: does not exist; put the weights file beside the configuration") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    with file:
        yield file


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise _directory(path)
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: is a pipe or a device; put the weights file there")


def _directory(path: Path) -> CheckpointError:
    """The error of a directory in place of a weights file, such as training with DeepSpeed leaves."""
    names = {entry.name for entry in path.iterdir()}
    if not any(name == _CONVERTER or name.endswith(_DEEPSPEED) for name in names):
        return CheckpointError(f"{path}: is a directory; put the weights file there")
    return CheckpointError(
        f"{path}: is a directory that DeepSpeed saved; make one file of it with {_CONVERTER}, the converter that "
        "DeepSpeed leaves in it or in the directory above it, and put that file in its place"
    )


def changed_error(path: Path, when: str = "while it was read") -> CheckpointError:
    """The error of a weights file that was changed during an export."""
    return CheckpointError(f"{path}: was changed {when}; run again when it is complete")


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable")


def _unsupported(path: Path, error: UnsupportedFormError) -> CheckpointError:
    return CheckpointError(f"{path}: {_brief(str(error), 1000)}")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = _brief(str(error)) or type(error).__name__
    return CheckpointError(f"{path}: is damaged ({reason}); copy or download it again, or save it again")


def read_contents(file: BinaryIO, path: Path) -> Contents:
    """The index of a weights file. No byte of its tensors is read.

    The format is that of torch, since 1.6 or before. A file with the suffix of safetensors has that format.

    Args:
        file: the file, opened.
        path: the file, as messages name it.

    Raises:
        CheckpointError: the file is empty or damaged, could run code, or does not hold a dictionary of tensors.
    """
    try:
        return _read_contents(file, path)
    except UnsupportedFormError as error:
        raise _unsupported(path, error) from None
    except ForbiddenError as error:
        problem = f"holds more than tensors, which loading could run as code ({_brief(error.name)})"
        raise CheckpointError(f"{path}: {problem}; {_hint(error, path)}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except Exception as error:  # noqa: BLE001  (a damaged file makes the readers raise almost anything)
        raise _damaged(path, error) from None


def _read_contents(file: BinaryIO, path: Path) -> Contents:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    beginning = file.read(BEGINNING)
    is_safetensors = safetensors.is_begun(beginning, size)
    if not is_safetensors and (mistaken := mistaken_for(beginning)):
        raise UnsupportedFormError(mistaken)
    is_archive = beginning.startswith(b"PK\3\4")
    if path.suffix == SAFETENSORS and not is_safetensors and (is_archive or beginning.startswith(b"\x80\x02")):
        raise UnsupportedFormError(f"is a file of torch.save; name it {path.with_suffix('.pt').name}")
    if path.suffix == SAFETENSORS:
        file.seek(0)
        return Contents(safetensors.read_index(file, size))
    if is_archive:
        return torch_files.read_archive(file, _quoted(path))
    if beginning.startswith(b"\x80"):
        return torch_files.read_legacy(file)
    if is_safetensors:
        raise UnsupportedFormError(f"is a safetensors file; name it {path.with_suffix(SAFETENSORS).name}")
    if (text := _text(beginning)) is not None:
        raise UnsupportedFormError(f"is a text, not weights ({text}); download it again")
    raise ValueError("it does not begin as a file of torch.save does")


def _text(beginning: bytes) -> str | None:
    """The beginning of a file that is a text; None if it is not one."""
    text = beginning[:_LONGEST].decode("latin-1")
    is_text = len(text) >= _SHORTEST_TEXT and all(char in string.printable for char in text)
    return _brief(text, 60) if is_text else None


def _hint(error: ForbiddenError, path: Path) -> str:
    module, _, name = error.name.rpartition(".")
    if error.whole and name[:1].isupper() and module.partition(".")[0] not in sys.stdlib_module_names:
        lines = torch_files.saving(_quoted(path), "torch.load", ", weights_only=False")
        return f"if it is a whole module and you trust its maker, {lines}"
    return "save it as a flat state dictionary"


def _quoted(path: Path) -> str:
    """A path as Python writes it, in double quotes."""
    return json.dumps(str(path), ensure_ascii=False)


def _brief(text: str, longest: int = _LONGEST) -> str:
    """The beginning of a text that may be a stranger's, in one line that a terminal can show."""
    return plain(one_line(text, longest))


@contextmanager
def numbers(file: BinaryIO, path: Path, contents: Contents, tensors: Collection[StoredTensor]) -> Iterator[BinaryIO]:
    """A file that has the bytes of tensors at their `StoredTensor.start`.

    It is the weights file itself, unless the tensors are deflated. Then it is an unnamed temporary file, which takes as
    much room as the storages of these tensors.

    Args:
        file: the weights file, opened.
        path: the file, as messages name it.
        contents: from `read_contents`.
        tensors: the tensors that are to be read.

    Raises:
        CheckpointError: they take more than the file's size allows, or are damaged; or there is no room for them.
    """
    size = os.fstat(file.fileno()).st_size
    wanted = _packed(contents, tensors, size)
    total = sum(member.size for member in wanted.values())
    if total > _MOST_READ * size:
        raise CheckpointError(
            f"{path}: is deflated, and its tensors take {total} bytes, more than {_MOST_READ} times its {size}; "
            "load it and save it again with torch.save"
        )
    _check_cost(path, tensors, size)
    if not wanted:
        yield file
        return
    with _temporary(path) as inflated:
        _inflate(file, path, wanted, inflated)
        for tensor in tensors:
            if tensor.start < size:
                _copy(file, path, tensor, inflated)
        yield inflated


def _check_cost(path: Path, tensors: Collection[StoredTensor], size: int) -> None:
    """Check that reading tensors does not take more than the file's size allows."""
    apart = [tensor for tensor in tensors if not tensor.contiguous]
    problem = None
    if any(max(tensor.size, tensor.extent) > _LARGEST_APART for tensor in apart):
        problem = f"has a tensor of more than {_LARGEST_APART} bytes that is not contiguous"
    elif sum(tensor.size for tensor in tensors) + sum(tensor.extent for tensor in apart) > _MOST_READ * size:
        problem = f"has tensors that take more than {_MOST_READ} times its {size} bytes"
    elif sum(tensor.rows for tensor in apart) > _MOST_ROWS:
        problem = "has tensors that are not contiguous, in too many rows"
    if problem:
        raise CheckpointError(f"{path}: {problem}; save it again with tensor.contiguous().clone() of each tensor")


def _packed(contents: Contents, tensors: Collection[StoredTensor], size: int) -> dict[int, Member]:
    """The deflated storages that tensors are in, by their offsets."""
    places = sorted(contents.packed)
    deflated = [tensor for tensor in tensors if tensor.start >= size and tensor.size]
    used = {places[bisect.bisect(places, tensor.start) - 1] for tensor in deflated}
    return {place: contents.packed[place] for place in used}


def _inflate(file: BinaryIO, path: Path, wanted: Mapping[int, Member], inflated: BinaryIO) -> None:
    """Write the contents of deflated storages to their offsets."""
    for place, member in wanted.items():
        at = place
        try:
            for block in blocks(file, member):
                _write(inflated, path, block, at)
                at += len(block)
        except UnsupportedFormError as error:
            raise _unsupported(path, error) from None
        except (ValueError, zlib.error, struct.error) as error:
            raise _damaged(path, error) from None
        except OSError as error:
            raise _unreadable(path, error) from None


def _copy(file: BinaryIO, path: Path, tensor: StoredTensor, inflated: BinaryIO) -> None:
    buffer = memoryview(bytearray(min(tensor.extent, _BLOCK)))
    for at in range(tensor.start, tensor.start + tensor.extent, _BLOCK):
        block = buffer[: tensor.start + tensor.extent - at]
        if not files.fill(file.fileno(), block, at):
            raise changed_error(path)
        _write(inflated, path, block, at)


def _write(inflated: BinaryIO, path: Path, block: bytes | memoryview, at: int) -> None:
    try:
        while block:
            size = os.pwrite(inflated.fileno(), block, at)
            block, at = block[size:], at + size
    except OSError as error:
        raise _no_room(path, error) from None


def _temporary(path: Path) -> BinaryIO:
    try:
        return tempfile.TemporaryFile(buffering=0)
    except OSError as error:
        raise _no_room(path, error) from None


def _no_room(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: is deflated, and cannot be inflated among temporary files ({error.strerror}); "
        "set TMPDIR to a directory with room, or load it and save it again with torch.save"
    )
