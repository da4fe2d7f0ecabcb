"""Pickles of weights files: instructions that are cut, moved, repeated, and given other numbers and names."""

import contextlib
import random
import struct
from collections.abc import Sequence
from typing import Any, Final

from cosyjit.weights.formats import UnsupportedFormError
from cosyjit.weights.pickle_reader import ForbiddenError, loads
from cosyjit.weights.torch_files import _KNOWN, _Storage, _StorageType
from tests.support.gadgets import INSTRUCTED
from tests.support.hostile_weights import SOUND, call, dictionary, named, number, pickled, row, storage, tensor, text

_ORDERED: Final = named("collections", "OrderedDict")

SEEDS: Final[Sequence[bytes]] = [
    pickled(SOUND),
    pickled(_ORDERED + b")R(" + text("a") + tensor() + text("epoch") + number(3) + b"u}" + text("_metadata") + b"}sb"),
    pickled(
        dictionary({"a": tensor((6,), (1,)), "b": call(named("torch._utils", "_rebuild_parameter"), tensor(), b"\x88")})
    ),
    pickled(
        dictionary({"a": tensor(), "b": tensor((3, 2), (1, 3)), "c": tensor((0, 2), (2, 1), 6), "d": tensor((), (), 5)})
    ),
    pickled(dictionary({"a": b"](K\1M\2\2G" + struct.pack(">d", 0.5) + b"NU\1xe", "b": row(text("é"), b"\x88\x89]")})),
    pickled(dictionary({"a": call(named("torch", "Size"), row(number(2))), "b": named("torch", "float32")})),
    *(pickled(made("/dev/null")) for made in INSTRUCTED.values()),
]

_NUMBERS: Final = (
    -1,
    0,
    1,
    2,
    6,
    63,
    64,
    65,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**60,
    2**61 - 1,
    2**63 - 1,
    2**63,
    2**2000,
)
_PARTS: Final = (
    *(bytes([code]) for code in b"(tRQ\x85\x86\x87)\x89}ubN\x88]aes.0ob\x81"),
    *(put + bytes([i]) for put in (b"q", b"h") for i in range(4)),
    *(number(each) for each in _NUMBERS),
    *(named(*name) for name in _KNOWN),
    named("os", "system"),
    *(text(name) for name in ("", "a", "llm.a", "0", "1", "storage", "float32", "\x1b[2J", "\ud800", "x" * 300)),
    row(),
    storage(),
    storage("1", 2, "HalfStorage"),
    storage(kind="ByteStorage", numbers=24),
    tensor(),
)
"""What is put between the instructions of a pickle, or in their place."""


def read(content: bytes) -> None:
    refusals = ForbiddenError, UnsupportedFormError, ValueError, TypeError, AttributeError, LookupError, struct.error
    with contextlib.suppress(*refusals):
        loads(content, _KNOWN, _referred)


def _referred(pid: Any) -> _Storage:
    kind, dtype, _, _, numbers = pid
    if kind != "storage" or type(dtype) is not _StorageType or type(numbers) is not int:
        raise TypeError(kind)
    return _Storage(dtype.dtype, 0, 24)


def mutate(content: bytes, size: int, seed: int) -> bytes:
    """A pickle with up to four changes."""
    chance = random.Random(seed)  # noqa: S311  (no secret)
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at, end = sorted(chance.randrange(2, max(3, len(changed))) for _ in range(2))
        end = min(end, at + 40)
        kind = chance.randrange(6)
        if kind == 0:
            changed[at:at] = chance.choice(_PARTS)
        elif kind == 1:
            changed[at:end] = chance.choice(_PARTS)
        elif kind == 2:
            del changed[at:end]
        elif kind == 3:
            changed[at:at] = changed[at:end] * chance.randint(1, 3)
        elif kind == 4:
            changed[at : at + 1] = bytes([chance.randrange(256)])
        else:
            _replace(changed, chance)
    return bytes(changed[:size])


def _replace(content: bytearray, chance: random.Random) -> None:
    """Give an instruction that has a number another one, or another name."""
    places = [i for i, code in enumerate(content) if code in b"KJMc"]
    if not places:
        return
    at = chance.choice(places)
    if content[at] == ord("c"):
        end = content.find(b"\n", content.find(b"\n", at) + 1) + 1
        if end > at:
            content[at:end] = named(*chance.choice(list(_KNOWN)))
    else:
        content[at : at + {ord("K"): 2, ord("M"): 3}.get(content[at], 5)] = number(chance.choice(_NUMBERS))
