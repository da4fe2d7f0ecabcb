"""JSON documents with a schema number, as stores and publications have them.

Publications are named by the digest of their content. Every other document of a store carries a checksum, which shows
accidental changes of the file. Signatures (`cosyjit.store.signing`) show those that were made on purpose.
"""

import hashlib
import json
import re
from datetime import datetime, timezone
from typing import Any, Final

from cosyjit.errors import LaterSchemaError, RecordError

SCHEMA: Final = 1
"""The schema of records, publications and heads. A version that writes another form raises it."""

MEMBER: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}"
"""The form of the name of a file in a folder that is an artifact. It cannot be a path."""

_CHECKSUM: Final = "checksum"
_END: Final = b"\n}\n"
_CHECKSUM_LENGTH: Final = len(f',\n "{_CHECKSUM}": "{"0" * 64}"')

_DEEPEST: Final = 100
"""How deep lists and objects may be nested. cosyjit writes 20 levels; Python cannot write a thousand."""

LARGEST: Final = 1 << 63
"""Every number in a document is smaller: sizes in bytes, counts, seconds, and what is computed from them."""


def now() -> str:
    """The current time in the form of RFC 3339, in UTC with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dump(document: dict[str, Any]) -> bytes:
    """A document as a file's content."""
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def is_complete(content: bytes) -> bool:
    """Whether a content ends as every document does, so that it was not cut short."""
    return content.endswith(_END)


def with_checksum(document: dict[str, Any]) -> bytes:
    """A document as a file's content, with the SHA-256 of the content without it as the last member.

    Args:
        document: has at least one member.
    """
    return _with_checksum(dump(document).removesuffix(_END))


def _with_checksum(content: bytes) -> bytes:
    """A document's content with its checksum; it is given without its end."""
    checksum = hashlib.sha256(content + _END).hexdigest()
    return content + f',\n "{_CHECKSUM}": "{checksum}"'.encode("ascii") + _END


def without_checksum(document: dict[str, Any], content: bytes, where: str) -> dict[str, Any]:
    """The document without its checksum, which is verified.

    The checksum is computed over the bytes of the file: writing the document anew would take ten times as long as
    reading it, and a store has many.

    Args:
        document: from `load` or `read`, of a schema that this version knows: a later one may have another checksum.
        content: the file's content.
        where: the beginning of the error's message.

    Raises:
        RecordError: the content is not what was written.
    """
    if _with_checksum(content[: -_CHECKSUM_LENGTH - len(_END)]) != content:
        raise damaged_error(where, "its checksum is missing or does not match")
    return {name: value for name, value in document.items() if name != _CHECKSUM}


def load(content: bytes, where: str) -> dict[str, Any]:
    """The object that a file's content describes.

    Raises:
        RecordError: it is not a JSON object; the message begins with `where`.
    """
    try:
        document = json.loads(content, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise damaged_error(where, str(error)) from None
    if not isinstance(document, dict):
        raise damaged_error(where, "not an object")
    if _is_deep(document):
        raise damaged_error(where, f"lists and objects are nested more than {_DEEPEST} deep")
    return document


def _is_deep(document: dict[str, Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        nested = [value for value in level if isinstance(value, dict | list)]
        level = [item for value in nested for item in (value.values() if isinstance(value, dict) else value)]
    return bool(level)


def read(content: bytes, where: str) -> dict[str, Any]:
    """Load a document that has its schema number at the top.

    Raises:
        LaterSchemaError: a later version of cosyjit wrote it.
        RecordError: it is damaged.
    """
    document = load(content, where)
    check_schema(document.get("schema"), where)
    return document


def read_with_checksum(content: bytes, where: str) -> dict[str, Any]:
    """Read a document that has a checksum; the document is returned without it."""
    return without_checksum(read(content, where), content, where)


def stem(name: str) -> str:
    """The fingerprint or digest that a document in a store is named after."""
    return name.rpartition("/")[2].removesuffix(".json")


def check_schema(schema: object, where: str) -> None:
    """Check that this version reads documents of a schema.

    Raises:
        LaterSchemaError: the schema is later than this version's.
        RecordError: the value is not a schema number.
    """
    if type(schema) is not int or schema < 1:
        raise damaged_error(where, "no schema number")
    if schema > SCHEMA:
        raise LaterSchemaError(
            f"{where}: is of schema {schema}, and this cosyjit reads up to {SCHEMA}; upgrade cosyjit"
        )


def digest(value: object, digits: int) -> str:
    """Check that a value is a digest with a number of hexadecimal digits, so that it cannot be a path.

    Raises:
        ValueError: it is not.
    """
    return text(value, f"[0-9a-f]{{{digits}}}")


def text(value: object, pattern: str | None = None) -> str:
    """Check that a value is a string; without a pattern, of any form.

    Raises:
        ValueError: it is not a string, or does not match the pattern.
    """
    if not isinstance(value, str) or (pattern is not None and not re.fullmatch(pattern, value)):
        raise ValueError(f"{value!r} instead of {pattern or 'a string'}")
    return value


def count(value: object) -> int:
    """Check that a value is a count: an integer that is not negative.

    Raises:
        ValueError: it is not.
    """
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ValueError(f"{str(value)[:100]!r} instead of a count")
    return value


def number(value: object) -> int | float:
    """Check that a value is a number.

    Raises:
        TypeError: it is not, or it is too large.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not -LARGEST < value < LARGEST:
        raise TypeError(f"{str(value)[:100]!r} is not a number")
    return value


def damaged_error(where: str, reason: str) -> RecordError:
    """The error of a document that was changed or cut short."""
    return RecordError(f"{where}: is damaged ({reason}); remove it, and export again")


def refuse_constant(constant: str) -> Any:
    """Refuse NaN and Infinity, which Python's `json` reads and JSON does not have.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{constant} is not a JSON number")
