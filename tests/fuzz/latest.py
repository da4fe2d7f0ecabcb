"""Which record a target was last exported with, as a store has it."""

import json
import tempfile
from pathlib import Path
from typing import Final

from cosyjit import documents
from cosyjit.fs import files
from cosyjit.provenance import latest
from cosyjit.store.store import Store
from tests.support.mutations import mutator, resealed

_DOCUMENT: Final = {"schema": documents.SCHEMA, "source": "/models/a", "target": "llm.llm", "fingerprint": "0" * 32}
SEEDS: Final = [documents.with_checksum(_DOCUMENT)]
_STORE: Final = Store(Path(tempfile.mkdtemp()))


def read(content: bytes) -> None:
    assert _STORE.local is not None
    name = _name(content)
    file = _STORE.local / name
    files.make_directory(file.parent)
    file.write_bytes(content)
    try:
        found = latest.read(_STORE, name)
        assert found is None or len(found) == 32
    finally:
        file.unlink()


def _name(content: bytes) -> str:
    """That of the target of which the reference says that it is."""
    try:
        document = json.loads(content)
        return latest.name_of(document["source"], document["target"])
    except Exception:  # noqa: BLE001  (whatever the content is)
        return latest.name_of("/models/a", "llm.llm")


mutate = mutator(SEEDS, documents.dump, resealed)
