"""Files that say what they were made from: archives, ONNX files, or what one of cosyjit's has to say."""

import io
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

from cosyjit import documents
from cosyjit.provenance import record
from cosyjit.provenance.fingerprint import canonical, key_of
from cosyjit.provenance.lineage import lineage
from cosyjit.reports import as_json, tables
from cosyjit.store.store import Store
from tests.fuzz._showing import show
from tests.support.mutations import mutator
from tests.support.stores import fingerprint


def _archive(said: bytes, name: str = f"model/extra/{record.EMBEDDED_NAME}") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr(zipfile.ZipInfo(name), said)
    return stream.getvalue()


def _onnx(said: bytes) -> bytes:
    """The metadata of an ONNX file, behind its version and a graph."""
    entry = b"".join(bytes([number << 3 | 2]) + _length(part) + part for number, part in ((1, _NAME), (2, said)))
    return b"\x08\x08" + b"\x3a\x03abc" + b"\x72" + _length(entry) + entry


def _length(content: bytes) -> bytes:
    return bytes([len(content) & 0x7F | 0x80, len(content) >> 7 & 0x7F | 0x80, len(content) >> 14])


_NAME: Final = record.EMBEDDED_NAME.encode()
_SAID: Final = record.embedded_provenance(fingerprint())
_DIRECTORY: Final = Path(tempfile.mkdtemp())
_STORE: Final = Store(_DIRECTORY / "store")
SEEDS: Final = [_SAID, _archive(_SAID), _archive(_SAID, "extra/cosyjit.json"), _onnx(_SAID)]


def read(content: bytes) -> None:
    path = _DIRECTORY / "a.zip"
    path.write_bytes(_archive(content) if content.startswith(b"{") else content)
    found = lineage(path, store=_STORE)
    show(*tables.lineage_lines(found))
    as_json.lineage(found).encode("ascii")


def _rekeyed(document: dict[str, Any]) -> bytes:
    """What a zip says, its fingerprint that of the parts."""
    return canonical({**document, "fingerprint": key_of(document["parts"])})


_mutate_said: Final = mutator([_SAID], documents.dump, _rekeyed)


def mutate(content: bytes, size: int, seed: int) -> bytes:
    if content.startswith(b"{"):
        return _mutate_said(content, size, seed)
    chance = random.Random(seed)  # noqa: S311  (the same each time)
    changed = bytearray(content or SEEDS[1])
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(changed[: chance.choice((size, size, size, chance.randrange(len(changed))))])
