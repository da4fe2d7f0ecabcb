"""Reads weights files with `torch.load(weights_only=True)`, in a process of its own with limits to time and memory.

A program, `python -m tests.support.torch_reader`: each line of its input names a file, and each line that it answers
with is an object of JSON, an `Answer`. It may die of a file, by a limit or by a fault of torch; `Reader` then starts it
anew.
"""

import json
import resource
import signal
import subprocess
import sys
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tests.support.processes import ROOT

_SECONDS: Final = 20
"""Of processor time that a file may take."""

_MEMORY: Final = 8 << 30
"""Of addresses; torch itself takes a part of it."""

_MOST_NUMBERS: Final = 1 << 16
"""Of a tensor whose numbers are looked at."""

DEEPEST: Final = 6
"""Of dictionaries in dictionaries that are looked into."""

Described: TypeAlias = "tuple[str, list[int], list[int], str] | str"
"""A plain tensor's type, shape, steps and the SHA-256 of its numbers, or the kind of any other value."""


class Answer(NamedTuple):
    """What torch makes of a file.

    Attributes:
        entries: by the keys that lead to each, if it is read and holds a dictionary; those that are not texts left out.
        error: why it is not read, otherwise; "" if it is read and holds something else.
    """

    entries: list[tuple[list[str], Described]] | None
    error: str | None


class Reader:
    """The program, for as long as it is needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> Answer:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            return Answer(None, f"the process ended with {self.end()}")
        entries, error = json.loads(line)
        return Answer(None if entries is None else [(list(keys), _thawed(value)) for keys, value in entries], error)

    def end(self) -> int | None:
        """End the program; its exit status, None if it was not needed."""
        process, self._process = self._process, None
        if process is None:
            return None
        with process:
            process.communicate()
        return process.returncode


def _thawed(value: Any) -> Described:
    return value if isinstance(value, str) else (value[0], value[1], value[2], value[3])


def numbers_of(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's numbers, one after the other; "" where they are too many."""
    if tensor.numel() > _MOST_NUMBERS:
        return ""
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    return sha256(bytes(flat.view(torch.uint8).tolist())).hexdigest()


def _described(value: object) -> Described:
    if type(value) in {Tensor, torch.nn.Parameter} and isinstance(value, Tensor):
        tensor = value.detach()
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            return "Tensor of another kind"
        dtype = str(tensor.dtype).removeprefix("torch.")
        return dtype, list(tensor.shape), list(tensor.stride()), numbers_of(tensor)
    return "Tensor of another kind" if isinstance(value, Tensor) else type(value).__name__


def _entries(state: dict[Any, Any], keys: list[str]) -> list[tuple[list[str], Described]]:
    found: list[tuple[list[str], Described]] = []
    for key, value in state.items():
        if type(key) is not str:
            continue
        path = [*keys, key]
        if type(value).__name__ in {"dict", "OrderedDict"} and len(path) < DEEPEST:
            found += [(path, "dict"), *_entries(value, path)]
        else:
            found.append((path, "dict" if type(value).__name__ == "OrderedDict" else _described(value)))
    return found


def _read(path: str) -> Answer:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or type(state).__name__ not in {"dict", "OrderedDict"}:
            return Answer(None, "")
        return Answer(_entries(state, []), None)
    except Exception as error:  # noqa: BLE001  (whatever torch raises)
        reason = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
        return Answer(None, f"{type(error).__name__}: {reason[:300]}")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    torch.set_num_threads(1)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        answer = json.dumps(_read(line.rstrip("\n")))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
