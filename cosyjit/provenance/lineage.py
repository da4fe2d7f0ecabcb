"""Finds the record of an artifact, of a digest, or of a fingerprint."""

import os
import re
import struct
import zlib
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit import documents
from cosyjit.errors import RecordError, SelectionError, SignatureError, line
from cosyjit.fs.files import absolute
from cosyjit.fs.hashing import sha256_of, sha256_of_folder
from cosyjit.onnx.metadata import BEGINNING, metadata
from cosyjit.provenance import beside, record, statements
from cosyjit.provenance.fingerprint import key_of
from cosyjit.provenance.record import Record
from cosyjit.store.store import Store
from cosyjit.weights import zip_reader
from cosyjit.weights.formats import UnsupportedFormError

_LARGEST: Final = 1 << 20
"""The most bytes of embedded provenance; that of a published encoder has 2,000."""

_ARTIFACTS: Final = "name a zip, an ONNX file or a folder that cosyjit has built"

_MOST_FILES: Final = 100
"""A folder with this many files is not an artifact."""


class Lineage(NamedTuple):
    """What is known of an artifact.

    Attributes:
        record: that of its fingerprint; None if the store does not have one.
        embedded: the provenance embedded in the file; None if the reference was not a file.
        sha256: the digest of the file; None if the reference was not a file.
    """

    record: Record | None
    embedded: dict[str, Any] | None = None
    sha256: str | None = None

    @property
    def same_bytes(self) -> bool:
        """Whether the file has the bytes that the record names; true if the reference was not a file."""
        return self.sha256 is None or (self.record is not None and self.record.sha256 == self.sha256)


def lineage(artifact: str | Path, *, store: Store | None = None) -> Lineage:
    """Find out what an artifact was made from: by its record in the store, or else by the one that stands beside it.

    Args:
        artifact: the path of an artifact, a zip, a folder or an ONNX file; its SHA-256; or the key of its fingerprint.
        store: the one that has its record; that of this user for None.

    Raises:
        StoreError: there is no store, and the reference is not a file.
        SelectionError: the store does not have a record of the digest or fingerprint, and there is no such file.
        SignatureError: the record lacks the signature that the store requires.
        RecordError: the file is not an artifact of cosyjit; or a record is damaged, or a later version wrote it.
    """
    store, path = store or Store(), absolute(Path(artifact))
    if not _is_file(path):
        digest = _digest_of_folder(path)
        other = None if digest is None else beside.of_digest(path.parent, digest, store.trusted)
        recorded = (other if other and not store.is_there() else _find(store, digest or str(artifact))) or other
        if recorded is None:
            raise SelectionError(f"{artifact}: {_problem(path, store)}; {_ARTIFACTS}")
        return Lineage(recorded)
    embedded = _embedded(path)
    key = embedded["fingerprint"]
    recorded = record.load(store, key) or beside.load(path.parent, key, store.trusted)
    if recorded is None and store.trusted is not None:
        raise SignatureError(f"{path}: has no record in {store}, and {store.trusted.path} requires a signature")
    return Lineage(recorded, embedded, _sha256(path))


def _problem(path: Path, store: Store) -> str:
    """Why a reference that is not a file has no record."""
    if os.path.isdir(path):  # noqa: PTH112  (which raises nothing)
        return f"is a directory, and not the folder of an artifact that {store} has a record of"
    return f"is not an artifact, and not a SHA-256 or fingerprint that {store} has a record of"


def _digest_of_folder(path: Path) -> str | None:
    """The digest of a folder with a few files; None if the path is not one."""
    try:
        files = list(islice(path.iterdir(), _MOST_FILES)) if path.is_dir() else []
        if not files or len(files) == _MOST_FILES or not all(file.is_file() for file in files):
            return None
        return sha256_of_folder({file.name: _sha256(file) for file in files})
    except (OSError, ValueError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file)


def _find(store: Store, reference: str) -> Record | None:
    """The record of a fingerprint, or of an artifact's SHA-256; None if there is none."""
    if not re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", reference):
        return None
    store.check_there()
    recorded = record.load(store, reference)
    if recorded is not None:
        return recorded
    for entry in store.entries("records"):
        if reference.encode() in statements.in_content(store.read(entry.name) or b""):
            recorded = record.load(store, documents.stem(entry.name))
            if recorded is not None and recorded.sha256 == reference:
                return recorded
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError as error:
        raise RecordError(
            f"{path}: cannot be read ({error.strerror}); let this user read it, or run as one who may"
        ) from None
    except (OSError, ValueError):  # the name is too long, or has a NUL
        return False


def _embedded_content(path: Path) -> bytes:
    """The bytes of the provenance in a zip or an ONNX file.

    The directory of a zip is read only if it is as small as that of an artifact.
    """
    with path.open("rb") as file:
        if file.read(len(BEGINNING)) == BEGINNING:
            return metadata(file, record.EMBEDDED_NAME, _LARGEST)
        if path.suffix == ".onnx":
            raise ValueError("it does not begin as an ONNX file does")
        name = f"extra/{record.EMBEDDED_NAME}"
        member = zip_reader.members(file).get(name)
        if member is None:
            raise ValueError(f"it has no member {name}")
        return zip_reader.content(file, member, _LARGEST)


def _embedded(path: Path) -> dict[str, Any]:
    """The provenance embedded in a file: schema, fingerprint and parts."""
    try:
        document = documents.read(_embedded_content(path), str(path))
    except RecordError:
        raise
    except (OSError, ValueError, UnsupportedFormError, struct.error, zlib.error) as error:
        raise RecordError(
            f"{path}: is not an artifact of cosyjit ({line(error).partition(';')[0]}); {_ARTIFACTS}"
        ) from None
    if key_of(document.get("parts", {})) != document.get("fingerprint"):
        raise documents.damaged_error(str(path), "the fingerprint is not that of its parts")
    return document
