"""Weights files of torch before 1.6: five pickles and the storages behind them, each part changed by itself."""

import pickle
import random
import struct
from collections.abc import Sequence
from typing import Final

from tests.fuzz import pickles, weights
from tests.support.hostile_weights import dictionary, named, number, pickled, row, tensor, text

_START: Final = (
    pickle.dumps(0x1950A86A20F9469CFC6C, 2),
    pickle.dumps(1001, 2),
    pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, 2),
)
_KEYS: Final = pickle.dumps(["0", "1"], 2)
_STORAGES: Final = struct.pack("<q", 6) + bytes(range(24)) + struct.pack("<q", 2) + b"half"


def _storage(key: str, numbers: int, kind: str, view: bytes = b"N") -> bytes:
    return row(text("storage"), named("torch", kind), text(key), text("cpu"), number(numbers), view) + b"Q"


_FIRST: Final = tensor(of=_storage("0", 6, "FloatStorage"))
_SECOND: Final = tensor((2,), (1,), of=_storage("1", 2, "HalfStorage"))

SEEDS: Final[Sequence[bytes]] = [
    b"".join((*_START, pickled(state), _KEYS, _STORAGES))
    for state in (
        dictionary({"llm.a": _FIRST, "b": _SECOND}),
        dictionary({"state_dict": dictionary({"module.llm.a": _FIRST}), "b": _SECOND, "epoch": number(3)}),
        dictionary({"llm.a": _FIRST, "b": _SECOND, "c": _storage("0", 6, "FloatStorage", row(text("v"), number(0)))}),
    )
]

read = weights.read


def mutate(content: bytes, size: int, seed: int) -> bytes:
    """A file of which one pickle is another, or its storages; now and then with some wrong bytes besides."""
    chance = random.Random(seed)  # noqa: S311  (no secret)
    parts = [*_START, _state(content), _KEYS, _STORAGES]
    at = chance.choice((0, 1, 2, 3, 3, 3, 3, 4, 5))
    parts[at] = pickles.mutate(parts[at], size, chance.randrange(1 << 32))
    changed = bytearray(b"".join(parts))
    for _ in range(chance.choice((0, 0, 0, 1, 4))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[:size])


def _state(content: bytes) -> bytes:
    """The pickle with the tensors, or that of a sound file if there is none."""
    start = sum(map(len, _START))
    end = content.rfind(_KEYS)
    return content[start:end] if end > start else pickled(dictionary({"llm.a": _FIRST, "b": _SECOND}))
