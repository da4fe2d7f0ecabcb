"""Descriptions of what was downloaded of models."""

import json
import os
from pathlib import Path
from typing import Final

from cosyjit import documents
from cosyjit.fs import files
from cosyjit.sources import snapshots
from cosyjit.sources.hub import Model
from cosyjit.sources.source import Source
from tests.support.mutations import mutator

_MODEL: Final = Model("iic/CosyVoice-300M")
_FILES: Final = [
    {"name": name, "size": 5, "sha256": digit * 64, "revision": "c" * 40}
    for name, digit in (("cosyvoice.yaml", "0"), ("llm.pt", "1"))
]
SEEDS: Final = [
    documents.dump(
        {
            "schema": documents.SCHEMA,
            "model": _MODEL.id,
            "revision": "c" * 40,
            "endpoint": "https://www.modelscope.cn",
            "number": 1,
            "resolved": "2026-01-02T03:04:05+00:00",
            "files": _FILES,
        }
    )
]


def read(content: bytes) -> None:
    file = _place(content)
    files.make_directory(file.parent)
    file.write_bytes(content)
    try:
        for known in snapshots._known(_MODEL):
            _use(known.snapshot)
    finally:
        file.unlink()


def _use(snapshot: snapshots.Snapshot) -> None:
    root = os.path.realpath(snapshots._root(snapshot.model))
    for each in snapshot.files:
        source = Source(snapshot.directory, snapshot.directory / each.name, snapshot)
        for path in (
            source.directory,
            source.home,
            source.file(each.name),
            source.config,
            snapshots._incoming(snapshot.model, each),
        ):
            assert os.path.realpath(path).startswith(f"{root}/"), path
        assert source.uri(each.name).isprintable()
        assert source.pinned.isprintable()
    snapshots._check_room(snapshot, snapshot.files)


def _place(content: bytes) -> Path:
    """Where the description is of the commit that it says it is of, as far as there is such a place."""
    kept = snapshots.home(_MODEL) / "snapshots"
    try:
        commit = json.loads(content)["revision"]
        path = snapshots.Snapshot(_MODEL, commit, "", ()).directory / snapshots.DOCUMENT
        os.fsencode(path)
    except Exception:  # noqa: BLE001  (whatever the content is)
        path = kept / ("c" * 40) / snapshots.DOCUMENT
    return path if path.parent.parent == kept and len(path.parent.name) < 256 else kept / "c" / snapshots.DOCUMENT


mutate = mutator(SEEDS, documents.dump)
