"""JSON documents with a schema number, as stores and publications have them.

Publications are named by the digest of their content. What else a store has carries its own: a checksum, by which any
change of the file shows that was not made on purpose. Against those that are, there are signatures (`cosyjit.signing`).
"""

import hashlib
import json
import re
from typing import Any, Final

from cosyjit.errors import LaterSchemaError, RecordError

SCHEMA: Final = 1
"""Of records, publications and heads. A later version that writes something else raises it."""


MEMBER: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}"
"""The form of the name of a file in a folder that is an artifact: no path."""

_SEAL: Final = "checksum"


def dump(document: dict[str, Any]) -> bytes:
    """A document as a file's content."""
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def is_complete(content: bytes) -> bool:
    """Whether a content ends as those of all documents do; none does that is a document's beginning."""
    return content.endswith(b"\n}\n")


def seal(document: dict[str, Any]) -> bytes:
    """A document as a file's content, with the SHA-256 of what it would be without."""
    return dump({**document, _SEAL: hashlib.sha256(dump(document)).hexdigest()})


def unseal(document: dict[str, Any], content: bytes, where: str) -> dict[str, Any]:
    """What was sealed.

    Args:
        document: from `load` or `read`, of a schema that this version knows: a later one may be sealed otherwise.
        content: the file's.

    Raises:
        RecordError: a byte of it is another than was written; the message begins with `where`.
    """
    sealed = {name: value for name, value in document.items() if name != _SEAL}
    if seal(sealed) != content:
        raise damaged(where, "its checksum is missing, or another's")
    return sealed


def load(content: bytes, where: str) -> dict[str, Any]:
    """The object that a file's content describes.

    Raises:
        RecordError: it is no JSON object; the message begins with `where`.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(where, str(error)) from None
    if not isinstance(document, dict):
        raise damaged(where, "no object")
    return document


def read(content: bytes, where: str) -> dict[str, Any]:
    """As `load`, for a document that has its schema number at the top.

    Raises:
        LaterSchemaError: a later version has written it.
        RecordError: it is damaged.
    """
    document = load(content, where)
    check_schema(document.get("schema"), where)
    return document


def read_sealed(content: bytes, where: str) -> dict[str, Any]:
    """As `read`, for a document that was sealed; without its seal."""
    return unseal(read(content, where), content, where)


def stem(name: str) -> str:
    """What a document in a store is named for: a fingerprint, or a digest."""
    return name.rpartition("/")[2].removesuffix(".json")


def check_schema(schema: object, where: str) -> None:
    """
    Raises:
        LaterSchemaError: it is later than this version's.
        RecordError: it is no schema number.
    """
    if type(schema) is not int or schema < 1:
        raise damaged(where, "no schema number")
    if schema > SCHEMA:
        raise LaterSchemaError(
            f"{where}: is of schema {schema}, and this cosyjit reads up to {SCHEMA}; upgrade cosyjit"
        )


def digest(value: object, digits: int) -> str:
    """A digest of so many hexadecimal digits, and so no path.

    Raises:
        ValueError: it is none.
    """
    return text(value, f"[0-9a-f]{{{digits}}}")


def text(value: object, pattern: str = "(?s).*") -> str:
    """A string that has a form.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{value!r} in place of {pattern}")
    return value


def damaged(where: str, reason: str) -> RecordError:
    """The error of a document that is not what it should be."""
    return RecordError(f"{where}: is damaged ({reason}); remove it, and export again")
