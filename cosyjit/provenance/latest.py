"""References from targets to the fingerprints of their last exports, with which plans compare."""

import os

import xxhash

from cosyjit import documents
from cosyjit.errors import LaterSchemaError, RecordError
from cosyjit.store.store import Store


def name_of(source: str, target: str) -> str:
    """The name, in a store, of the reference of a target.

    Args:
        source: the model directory.
        target: its component, precision and device.
    """
    digest = xxhash.xxh3_128_hexdigest(os.fsencode(f"{source}\n{target}"))
    return f"latest/{digest}.json"


def read(store: Store, name: str) -> str | None:
    """The key of the fingerprint that a reference names; None if it is missing, damaged or another target's.

    Raises:
        LaterSchemaError: a later version of cosyjit wrote it.
    """
    try:
        content = store.read(name)
        if content is None:
            return None
        document = documents.read_with_checksum(content, f"{store}/{name}")
        if name_of(document["source"], document["target"]) != name:
            return None
        return documents.digest(document["fingerprint"], 32)
    except LaterSchemaError:
        raise
    except (RecordError, LookupError, ValueError):
        return None


def write(store: Store, source: str, target: str, key: str) -> None:
    """Make the reference of a target name a fingerprint, by its key; a store that can only be read stays as it is."""
    name = name_of(source, target)
    if read(store, name) != key:
        document = {"schema": documents.SCHEMA, "source": source, "target": target, "fingerprint": key}
        store.write_if_allowed(name, documents.with_checksum(document))
