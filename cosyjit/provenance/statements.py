"""The in-toto statements of a store (https://in-toto.io/Statement/v1), with a checksum; in an envelope if signed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from cosyjit import documents
from cosyjit.errors import RecordError
from cosyjit.provenance.fingerprint import canonical
from cosyjit.store import signing
from cosyjit.store.signing import Envelope, Signer, TrustedKeys

TYPE: Final = "https://in-toto.io/Statement/v1"


def content(statement: dict[str, Any], signer: Signer | None) -> bytes:
    """The content of the file of a statement, signed if there is a key."""
    document = signer.sign(canonical(statement)).document if signer else statement
    return documents.with_checksum(document)


def opened(content: bytes, where: str, trusted: TrustedKeys | None) -> tuple[dict[str, Any], Envelope | None]:
    """The statement in a file, and the envelope around it, if there is one.

    Args:
        content: the content of the file.
        where: the beginning of messages.
        trusted: the keys of which one must have signed it; for None, a signature is not required.

    Raises:
        LaterSchemaError, SignatureError, RecordError: a later version wrote it, none of the keys signed it, or it is
            damaged. Missing entries are the errors that `reading` translates.
    """
    stored = documents.load(content, where)
    envelope = signing.Envelope.parse(stored) if signing.is_envelope(stored) else None
    document = documents.load(envelope.payload, where) if envelope else stored
    documents.check_schema(document["predicate"]["cosyjit_schema"], where)
    content_of_file = documents.without_checksum(stored, content, where)
    if trusted is not None:
        trusted.check(envelope, where)
    if envelope is None:
        return content_of_file, None
    _check_as_written(envelope, content_of_file, document)
    return document, envelope


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Translate errors of the block, such as missing entries or wrong types, into RecordError."""
    try:
        yield
    except RecordError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise documents.damaged_error(where, f"{type(error).__name__}: {error}") from None


def _check_as_written(envelope: Envelope, content_of_file: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    if (envelope.document, envelope.payload) != (content_of_file, canonical(document)):
        raise ValueError("not as cosyjit writes it")


def in_content(content: bytes) -> bytes:
    """The text of the statement in a file, unchecked; any other content is returned unchanged."""
    try:
        document = json.loads(content)
        return signing.Envelope.parse(document).payload if signing.is_envelope(document) else content
    except (LookupError, TypeError, ValueError, RecursionError):
        return content
