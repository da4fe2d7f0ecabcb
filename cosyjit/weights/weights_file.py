"""A weights file, read without torch and without running anything.

It may come from a stranger: to read its index takes at most 0.3 GB and some seconds, whatever it says, and what is to
be read of its tensors after that is bounded by its size.
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
"""What the name of a file of that format ends with."""

_CONVERTER: Final = "zero_to_fp32.py"
"""What DeepSpeed leaves beside its checkpoints, to make one file of them."""

_DEEPSPEED: Final = "_model_states.pt"
"""How the names of its files end that hold weights."""

_MOST_READ: Final = 8
"""How many times the file's size its tensors may take together. Tied weights are read once for each of their names."""

_LARGEST_APART: Final = 1 << 30
"""In bytes, from the first to behind the last: tensors that are not contiguous are put in order in memory."""

_MOST_ROWS: Final = 1 << 20
"""In how many rows at most the tensors that are not contiguous are put in order together; some seconds' work."""

_SHORTEST_TEXT: Final = 8
"""In bytes; the beginning of a file that was cut short may be printable, too."""

_BLOCK: Final = 1 << 20
_LONGEST: Final = 200
"""In characters, of what messages quote of a file."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A weights file, opened.

    Raises:
        CheckpointError: it is missing, is a directory, or cannot be read.
    """
    try:
        # Without waiting: to open a pipe is to wait for its writer.
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
    """The error of a directory where a weights file belongs, such as training with DeepSpeed leaves."""
    names = {each.name for each in path.iterdir()}
    if not any(name == _CONVERTER or name.endswith(_DEEPSPEED) for name in names):
        return CheckpointError(f"{path}: is a directory; put the weights file there")
    return CheckpointError(
        f"{path}: is a directory that DeepSpeed saved; make one file of it with {_CONVERTER}, the converter that "
        "DeepSpeed leaves in it or in the directory above it, and put that file in its place"
    )


def changed(path: Path, when: str = "while it was read") -> CheckpointError:
    """The error of a weights file that is not what it was."""
    return CheckpointError(f"{path}: was changed {when}; run again when it is complete")


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable")


def _unsupported(path: Path, error: UnsupportedFormError) -> CheckpointError:
    return CheckpointError(f"{path}: {_brief(str(error), 1000)}")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = _brief(str(error)) or type(error).__name__
    return CheckpointError(f"{path}: is damaged ({reason}); copy or download it again, or save it again")


def read_contents(file: BinaryIO, path: Path) -> Contents:
    """The entries of a weights file; of its tensors, no byte is read.

    The form is that of torch's archives or, without one, of torch before 1.6; of a file named so, of safetensors.

    Args:
        file: the file, opened.
        path: what messages call it.

    Raises:
        CheckpointError: the file is empty or damaged, would run code, or holds no dictionary of tensors.
    """
    try:
        return _read_contents(file, path)
    except UnsupportedFormError as error:
        raise _unsupported(path, error) from None
    except ForbiddenError as error:
        problem = f"holds more than tensors, which loading could run as code ({_brief(error.name)})"
        raise CheckpointError(f"{path}: {problem}; {_way_out(error, path)}") from None
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
    """What a file says that is a text; None if it is not."""
    text = beginning[:_LONGEST].decode("latin-1")
    is_text = len(text) >= _SHORTEST_TEXT and all(each in string.printable for each in text)
    return _brief(text, 60) if is_text else None


def _way_out(error: ForbiddenError, path: Path) -> str:
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
    """A file that has the bytes of tensors where `StoredTensor.start` says.

    It is the weights file itself, unless tensors in that are deflated: then one without a name in the directory for
    temporary files, which takes as much room as the storages of these tensors.

    Args:
        file: the weights file, opened.
        path: what messages call it.
        contents: from `read_contents`.
        tensors: those that are wanted.

    Raises:
        CheckpointError: they take more than a file of this size may ask for, or are damaged; or there is no room.
    """
    size = os.fstat(file.fileno()).st_size
    wanted = _packed(contents, tensors, size)
    total = sum(member.bytes for member in wanted.values())
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
    """See that to read tensors takes no more than a file of this size may ask for."""
    apart = [tensor for tensor in tensors if not tensor.contiguous]
    problem = None
    if any(max(tensor.bytes, tensor.extent) > _LARGEST_APART for tensor in apart):
        problem = f"has a tensor of more than {_LARGEST_APART} bytes that is not contiguous"
    elif sum(tensor.bytes for tensor in tensors) + sum(tensor.extent for tensor in apart) > _MOST_READ * size:
        problem = f"has tensors that take more than {_MOST_READ} times its {size} bytes"
    elif sum(tensor.rows for tensor in apart) > _MOST_ROWS:
        problem = "has tensors that are not contiguous, in too many rows"
    if problem:
        raise CheckpointError(f"{path}: {problem}; save it again with tensor.contiguous().clone() of each tensor")


def _packed(contents: Contents, tensors: Collection[StoredTensor], size: int) -> dict[int, Member]:
    """The deflated storages that tensors are in, by their places."""
    places = sorted(contents.packed)
    found = {places[bisect.bisect(places, each.start) - 1] for each in tensors if each.start >= size and each.bytes}
    return {place: contents.packed[place] for place in found}


def _inflate(file: BinaryIO, path: Path, wanted: Mapping[int, Member], inflated: BinaryIO) -> None:
    """Write what deflated storages hold to their places."""
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
            raise changed(path)
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
