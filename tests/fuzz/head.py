"""Which publication a directory shows last, as a store has it."""

import json
import tempfile
from pathlib import Path
from typing import Final

from cosyjit import documents
from cosyjit.fs import files
from cosyjit.publishing import publication
from cosyjit.store.store import Store
from tests.support.mutations import mutator, resealed

SEEDS: Final = [
    documents.with_checksum(
        {"directory": directory, "publication": "a" * 64, "shown": True, "schema": documents.SCHEMA}
    )
    for directory in ("/models/a", "/models/\ud800")
]
_STORE: Final = Store(Path(tempfile.mkdtemp()))


def read(content: bytes) -> None:
    assert _STORE.local is not None
    file = _STORE.local / _name(content)
    files.make_directory(file.parent)
    file.write_bytes(content)
    try:
        for found in publication.heads(_STORE):
            str(found.directory).encode()
            publication.head(_STORE, found.directory)
    finally:
        file.unlink()


def _name(content: bytes) -> str:
    """That of the head of the directory of which the content says that it is."""
    try:
        return publication._head(Path(json.loads(content)["directory"]))
    except Exception:  # noqa: BLE001  (whatever the content is)
        return publication._head(Path("/models/a"))


mutate = mutator(SEEDS, documents.dump, resealed)
