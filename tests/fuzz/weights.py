"""Weights files: archives whose members, headers, directories and pickles are changed, and put together again."""

import contextlib
import io
import os
import random
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cosyjit.encoders.parameters import Parameter
from cosyjit.errors import CheckpointError
from cosyjit.families import FAMILIES
from cosyjit.weights.fit import EncoderNeed, check, choose
from cosyjit.weights.tensor_digests import _hash_batch
from cosyjit.weights.tensors import StoredTensor, entries_of
from cosyjit.weights.weights_file import _MOST_READ, numbers, read_contents
from tests.fuzz import pickles
from tests.support.hostile_weights import LARGE, VERSION, End, Part, archive

_PATH: Final = Path("llm.pt")
_STORAGES: Final = (Part(b"archive/data/0", bytes(range(24))), Part(b"archive/data/1", b"half"))
_ORDER: Final = Part(b"archive/byteorder", b"little")


def _file(pickled: bytes, end: End | None = None, **options: Any) -> bytes:
    parts = (Part(b"archive/data.pkl", pickled), _ORDER, *_STORAGES, VERSION)
    return archive([replace(part, **options) for part in parts], end)


SEEDS: Final[Sequence[bytes]] = [
    *map(_file, pickles.SEEDS),
    _file(pickles.SEEDS[0], End(wide=True)),
    _file(pickles.SEEDS[3], End(wide=True), wide=True, flags=0x808, header_size=0, padding=b"FB\4\0ZZZZ"),
]

_NAMES: Final = (
    *(b"archive/data.pkl", b"archive/DATA.pkl", b"b/data.pkl", b"data.pkl", b"archive/", b"archive/constants.pkl"),
    *(b"archive/byteorder", b"archive/data/0", b"archive/data/1", b"archive/\x1b[2J", b"archive/\0", b"archive/\xff"),
)
_SIZES: Final = (0, 1, 22, 23, 24, 25, 56, 1 << 31, LARGE - 1, LARGE, 1 << 32, 2**63 - 1, 2**64 - 1)
_SMALL: Final = tuple(size for size in _SIZES if size <= LARGE)


_NEED: Final = EncoderNeed(FAMILIES[0].components[1], {"llm.a": Parameter((2, 3))})


def read(content: bytes, path: Path = _PATH) -> None:
    """The digests of all tensors, which have to be within the file, and no more than it warrants."""
    with os.fdopen(os.memfd_create("weights"), "r+b", buffering=0) as file:
        file.write(content)
        contents = read_contents(file, path)
        with contextlib.suppress(CheckpointError):
            reading = choose(path, contents.state, [_NEED])
            entries = reading.of(contents.state)
            check(path, entries, _NEED, reading)
            assert isinstance(entries["llm.a"], StoredTensor)
        found = [(name, each) for name, each in entries_of(contents.state).items() if isinstance(each, StoredTensor)]
        with numbers(file, path, contents, [entry for _, entry in found]) as opened:
            size = os.fstat(opened.fileno()).st_size
            assert all(0 <= entry.start <= entry.start + entry.extent <= size for _, entry in found)
            assert sum(entry.size for _, entry in found) <= _MOST_READ * len(content)
            digests = dict(_hash_batch(path, opened.fileno(), found, memoryview(bytearray(1 << 10))))
        assert digests.keys() == dict(found).keys()


def mutate(content: bytes, size: int, seed: int) -> bytes:
    """A weights file whose pickle or archive is another, or both; now and then with some wrong bytes besides."""
    chance = random.Random(seed)  # noqa: S311  (no secret)
    parts = _parts(content)
    if chance.random() < 0.7:
        parts = [_with_pickle(part, size, chance) if part.name.endswith(b"/data.pkl") else part for part in parts]
    if chance.random() < 0.2:
        parts = [_deflated(part) for part in parts]
    end = End(wide=chance.random() < 0.3)
    if chance.random() < 0.4:
        parts = _others(parts, chance)
    if chance.random() < 0.1:
        end = replace(end, **_one(_ENDS, chance))
    changed = bytearray(archive(parts, end, *(chance.choice((b"", b"", b"", b"PK\5\6", b"\0")) for _ in range(2))))
    for _ in range(chance.choice((0, 0, 0, 0, 1, 4))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _parts(content: bytes) -> list[Part]:
    """The members of an archive, or those of a sound one if it is too damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            names = file.namelist()[:20]
            return [Part(name.encode("utf-8", "replace"), file.read(name)) for name in names] or [_ORDER]
    except Exception:  # noqa: BLE001  (damage makes it raise almost anything)
        return [Part(b"archive/data.pkl", pickles.SEEDS[0]), *_STORAGES]


def _deflated(part: Part) -> Part:
    packed = zlib.compress(part.content, wbits=-zlib.MAX_WBITS)
    size, crc = len(part.content), zlib.crc32(part.content)
    return replace(part, content=packed, method=8, size=size, packed=len(packed), crc=crc)


def _with_pickle(part: Part, size: int, chance: random.Random) -> Part:
    return replace(part, content=pickles.mutate(part.content, size, chance.randrange(1 << 32)))


def _others(parts: list[Part], chance: random.Random) -> list[Part]:
    """The members with one that is changed, left out, or there twice."""
    at = chance.randrange(len(parts))
    one = replace(parts[at], **_one(_OPTIONS, chance))
    return chance.choice((parts[:at], [*parts[:at], one], [*parts, one])) + chance.choice((parts[at:], parts[at + 1 :]))


def _one(options: dict[str, Sequence[Any]], chance: random.Random) -> dict[str, Any]:
    name = chance.choice(list(options))
    return {name: chance.choice(options[name]), **({"wide": True} if name in {"size", "offset"} else {})}


_OPTIONS: Final[dict[str, Sequence[Any]]] = {
    "name": _NAMES,
    "header_name": _NAMES,
    "content": (b"", b"big", b"little", bytes(24), bytes(25), bytes(4096)),
    "signature": (b"PK\1\2", b"PK\5\6"),
    "flags": (1, 8, 0x20, 0x800, 0xFFFF),
    "method": (8, 99),
    "size": _SIZES,
    "packed": _SMALL,
    "header_size": _SMALL,
    "offset": _SIZES,
    "padding": (b"\0", bytes(200)),
    "fields": (b"\1\0\x18\0" + b"\xff" * 24, b"\1\0\4\0aaaa", b"\1", b"\1\0\x08\0" + bytes(8)),
    "disk": (1, 0xFFFF),
}
_ENDS: Final[dict[str, Sequence[Any]]] = {
    "entries": (0, 1, 2, 0xFFFF),
    "size": _SMALL,
    "start": _SMALL,
    "disk": (1, 0xFFFF),
    "comment": (b"comment", End().of(0, 0, 0)),
    "wide_start": _SIZES,
    "place": _SIZES,
    "disks": (0, 2),
}
