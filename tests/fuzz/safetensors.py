"""Safetensors files: heads of which one value, or a few, became another."""

import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.fuzz import weights
from tests.support.mutations import change, copied

_PATH: Final = Path("llm.safetensors")
_A: Final = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
_B: Final = {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]}
_HEADS: Final[Sequence[dict[str, Any]]] = (
    {"__metadata__": {"format": "pt"}, "llm.a": _A, "b": _B},
    {"b": {**_B, "dtype": "F8_E4M3", "shape": [2]}, "module.llm.a": _A},
    {"llm.a": {**_A, "dtype": "I64", "shape": [3]}, "b": {**_B, "dtype": "F4"}},
)


def _file(head: Any, rest: bytes = bytes(26)) -> bytes:
    content = json.dumps(head).encode()
    return struct.pack("<Q", len(content)) + content + rest


SEEDS: Final = [*map(_file, _HEADS)]


def read(content: bytes) -> None:
    weights.read(content, _PATH)


def mutate(content: bytes, size: int, seed: int) -> bytes:
    """A file with another head, or another length of it, or some wrong bytes."""
    chance = random.Random(seed)  # noqa: S311  (no secret)
    try:
        (length,) = struct.unpack_from("<Q", content)
        head = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError, struct.error, OverflowError):
        head = copied(chance.choice(_HEADS))
    changed = bytearray(_file(change(head, chance), bytes(chance.choice((26, 26, 26, 0, 25, 4096)))))
    for _ in range(chance.choice((0, 0, 0, 0, 1, 4))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[:size])
