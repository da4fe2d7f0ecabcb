"""What is remembered of files' digests."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any, Final

from cosyjit.fs import files
from cosyjit.fs.digests import Digests, _checksum
from cosyjit.fs.identity import Identity
from cosyjit.weights.tensor_digests import _kind, are_remembered, read_tensors
from tests.support.mutations import mutator

_FILE: Final = Path(tempfile.mkdtemp(), "llm.pt")
_FILE.write_bytes(b"not read, for something is remembered of it")
_MEMORIES: Final = Digests(_FILE.parent / "digests")
_MEMORIES.directory.mkdir()


def _sealed(value: Any) -> bytes:
    entry = json.dumps(value).encode()
    return _checksum(entry) + entry


def _entry(value: Any) -> dict[str, Any]:
    return {"path": str(_FILE), "identity": Identity.of(_FILE), "value": value}


SEEDS: Final = [
    _sealed(_entry("0" * 64)),
    _sealed(_entry({"a": ("float32", (3, 4), "0" * 32), "b": ("int64", (), "1" * 32)})),
]


def read(content: bytes) -> None:
    for kind in ("sha256", _kind([""])):
        (_MEMORIES.directory.parent / _MEMORIES._name(kind, _FILE)).write_bytes(content)
    list(_MEMORIES.of_missing())
    with files.plain(_FILE) as file:
        assert isinstance(_MEMORIES._recall_sha256(file, _FILE), str | None)
    if are_remembered(_MEMORIES, _FILE):
        (weights,) = read_tensors(_MEMORIES, [_FILE]).values()
        assert all(math.prod(each.shape) is not None for each in weights.tensors.values())


def _of_this_file(document: dict[str, Any]) -> bytes:
    return _sealed({**document, "path": str(_FILE), "identity": Identity.of(_FILE)})


_mutate: Final = mutator([seed.partition(b"\n")[2] for seed in SEEDS], _sealed, _of_this_file)


def mutate(content: bytes, size: int, seed: int) -> bytes:
    return _mutate(content.partition(b"\n")[2], size, seed)
