"""The records that stand beside a published set, in a directory that was downloaded from a hub.

A push copies them there as the store has them, with their signatures. Whoever can write to such a directory can write
them as well: without a signature that is required, they say no more than the files themselves.
"""

import os
from itertools import islice
from pathlib import Path
from typing import Final

from cosyjit import documents
from cosyjit.errors import LaterSchemaError, RecordError
from cosyjit.fs import files
from cosyjit.provenance import record, statements
from cosyjit.provenance.record import Record
from cosyjit.store.signing import TrustedKeys
from cosyjit.store.store import Store

FOLDER: Final = "cosyjit-records"
"""The folder of the records, beside the manifest."""

_LARGEST: Final = 16 << 20
"""In bytes, what a record is read of; that of a published language model has 100,000."""

_MOST: Final = 1_000
"""How many records are looked through for that of a folder."""


def name_of(key: str) -> str:
    """The name, in a directory, of the record of a fingerprint."""
    return f"{FOLDER}/{key}.json"


def read(directory: Path, key: str) -> bytes | None:
    """The content of the record of a fingerprint; None if there is none that can be read."""
    return files.content(directory / name_of(key), _LARGEST)


def load(directory: Path, key: str, trusted: TrustedKeys | None = None) -> Record | None:
    """The record of a fingerprint; None if there is nothing of its name.

    Args:
        directory: where the artifacts are.
        key: that of the fingerprint.
        trusted: the keys of which one must have signed it; for None, a signature is not required.

    Raises:
        LaterSchemaError, SignatureError, RecordError: as `record.parse`; or it belongs to another fingerprint, or
            cannot be read.
    """
    content = read(directory, key)
    where = str(directory / name_of(key))
    if content is None:
        if os.path.lexists(where):
            raise RecordError(f"{where}: is not a record that can be read; download it again")
        return None
    made = record.parse(content, where, trusted)
    if made.fingerprint.key != key:
        raise documents.damaged_error(where, "another fingerprint's")
    return made


def check(directory: Path, name: str, sha256: str, size: int, key: str, trusted: TrustedKeys | None = None) -> bool:
    """Whether there is a record of an artifact; without one, nothing is known of it here.

    Args:
        name: the file name that the artifact is published under.
        sha256: the digest of its bytes.
        size: the number of its bytes.
        key: that of its fingerprint.
        directory, trusted: see `load`.

    Raises:
        RecordError: as `load`; or it is the record of other bytes.
    """
    made = load(directory, key, trusted)
    if made is not None and (made.name, made.sha256, made.size) != (name, sha256, size):
        raise RecordError(f"{directory / name_of(key)}: is of {made.name}, sha256 {made.sha256}; download it again")
    return made is not None


def find(store: Store, directory: Path, name: str, sha256: str, size: int, key: str) -> bytes | None:
    """The content of the record of a published artifact: that of its store, or else the one beside it; None for none.

    Args:
        store: if it requires signatures, the record has one.
        directory: where the artifact is.
        name, sha256, size, key: see `check`.

    Raises:
        SignatureError: neither has the signature that the store requires.
        RecordError: a record is damaged, and the other is not there.
    """
    failure: RecordError | None = None
    try:
        record.check_signed(store, name, sha256, size, key)
        made = record.load(store, key)
        if made is not None and (made.name, made.sha256, made.size) == (name, sha256, size):
            return store.read(record.name_of(key))
    except LaterSchemaError:
        raise
    except RecordError as error:
        failure = error
    try:
        if check(directory, name, sha256, size, key, store.trusted):
            return read(directory, key)
    except RecordError as error:
        failure = failure if failure is not None and store.has(record.name_of(key)) else error
    if failure is not None:
        raise failure
    return None


def of_digest(directory: Path, sha256: str, trusted: TrustedKeys | None = None) -> Record | None:
    """The record of an artifact by its SHA-256; None if there is none.

    Raises:
        RecordError: as `load`.
    """
    for path in islice((directory / FOLDER).glob("*.json"), _MOST):
        if sha256.encode() in statements.in_content(files.content(path, _LARGEST) or b""):
            made = load(directory, path.stem, trusted)
            if made is not None and made.sha256 == sha256:
                return made
    return None
