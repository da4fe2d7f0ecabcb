"""From an artifact, a digest or a fingerprint to the record of what it was made from."""

import re
import struct
import zlib
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit import documents
from cosyjit.errors import RecordError, SelectionError, SignatureError, line
from cosyjit.fs.files import absolute, sha256_of, sha256_of_folder
from cosyjit.provenance import record
from cosyjit.provenance.fingerprint import key_of
from cosyjit.provenance.record import Record
from cosyjit.store.store import Store
from cosyjit.weights import zip_reader
from cosyjit.weights.formats import UnsupportedFormError

_LARGEST: Final = 1 << 20
"""In bytes, of what an artifact says of itself; a published encoder's says 2,000."""

_MOST_FILES: Final = 100
"""A folder with so many files is no artifact."""


class Trace(NamedTuple):
    """What is known of an artifact.

    Attributes:
        record: that of its fingerprint; None if the store has none.
        short_form: what the file says of itself, where a file was asked about.
        sha256: the digest of that file.
    """

    record: Record | None
    short_form: dict[str, Any] | None = None
    sha256: str | None = None

    @property
    def same_bytes(self) -> bool:
        """Whether the file asked about, if one was, is the one that the record names."""
        return self.sha256 is None or (self.record is not None and self.record.sha256 == self.sha256)


def trace(store: Store, reference: str) -> Trace:
    """What an artifact was made from.

    Args:
        reference: the path of an artifact, a zip or a folder; its SHA-256, or the key of its fingerprint.

    Raises:
        StoreError: there is no store, and it is no file that was asked about.
        SelectionError: the store knows no such digest or fingerprint, and there is no such file.
        SignatureError: it has not the signature that the store requires.
        RecordError: the file is none of cosyjit's artifacts, or a record is damaged or of a later version.
    """
    path = absolute(Path(reference))
    if not _is_file(path):
        found = _find(store, _digest_of_folder(path) or reference)
        if found is None:
            raise SelectionError(
                f"{reference}: is no artifact, and no SHA-256 or fingerprint that {store} has a record of"
            )
        return Trace(found)
    said = _short_form(path)
    found = record.load(store, said["fingerprint"])
    if found is None and store.trusted is not None:
        raise SignatureError(f"{path}: has no record in {store}, and {store.trusted.path} requires a signature")
    return Trace(found, said, _sha256(path))


def _digest_of_folder(path: Path) -> str | None:
    """What a folder with a few files would be known by; None if there is none."""
    try:
        files = list(islice(path.iterdir(), _MOST_FILES)) if path.is_dir() else []
        if not files or len(files) == _MOST_FILES or not all(each.is_file() for each in files):
            return None
        return sha256_of_folder({each.name: _sha256(each) for each in files})
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
    found = record.load(store, reference)
    if found is not None:
        return found
    for entry in store.entries("records"):
        if reference.encode() in record.statement_in(store.read(entry.name) or b""):
            found = record.load(store, documents.stem(entry.name))
            if found is not None and found.sha256 == reference:
                return found
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError as error:
        raise RecordError(
            f"{path}: cannot be read ({error.strerror}); let this user read it, or run as one who may"
        ) from None
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return False


def _said(path: Path) -> bytes:
    """The document that a zip holds on itself; no more of its directory is read than that of an artifact could have."""
    with path.open("rb") as file:
        wanted = f"extra/{record.SHORT_FORM}"
        member = zip_reader.members(file).get(wanted)
        if member is None:
            raise ValueError(f"it has no member {wanted}")
        return zip_reader.content(file, member, _LARGEST)


def _short_form(path: Path) -> dict[str, Any]:
    """What an artifact says of itself: schema, fingerprint and parts."""
    try:
        document = documents.read(_said(path), str(path))
    except RecordError:
        raise
    except (OSError, ValueError, UnsupportedFormError, struct.error, zlib.error) as error:
        raise RecordError(
            f"{path}: is no artifact of cosyjit ({line(error).partition(';')[0]}); name one that it has built"
        ) from None
    if key_of(document.get("parts", {})) != document.get("fingerprint"):
        raise documents.damaged_error(str(path), "the fingerprint is not that of its parts")
    return document
