"""JSON documents with a schema number, as stores and publications have them.

Publications are named by the digest of their content. What else a store has carries its own: a checksum, by which any
change of the file shows that was not made on purpose. Against those that are, there are signatures
(`cosyjit.store.signing`).
"""

import hashlib
import json
import re
from datetime import datetime, timezone
from typing import Any, Final

from cosyjit.errors import LaterSchemaError, RecordError

SCHEMA: Final = 1
"""Of records, publications and heads. A later version that writes something else raises it."""


MEMBER: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}"
"""The form of the name of a file in a folder that is an artifact: no path."""

_SEAL: Final = "checksum"
_END: Final = b"\n}\n"
_SEAL_LENGTH: Final = len(f',\n "{_SEAL}": "{"0" * 64}"')

_DEEPEST: Final = 100
"""How many lists and objects may stand in one another. cosyjit writes 20; of a thousand, Python cannot write one."""

LARGEST: Final = 1 << 63
"""The numbers of documents are smaller: sizes in bytes, counts, seconds, and what is computed and shown of them."""


def now() -> str:
    """The time, as RFC 3339 has it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dump(document: dict[str, Any]) -> bytes:
    """A document as a file's content."""
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def is_complete(content: bytes) -> bool:
    """Whether a content ends as those of all documents do; none does that is a document's beginning."""
    return content.endswith(_END)


def seal(document: dict[str, Any]) -> bytes:
    """A document of at least one member as a file's content, with the SHA-256 of what it would be without."""
    return _sealed(dump(document).removesuffix(_END))


def _sealed(content: bytes) -> bytes:
    """The content of a document, given without its end, with a last member that is its checksum."""
    checksum = hashlib.sha256(content + _END).hexdigest()
    return content + f',\n "{_SEAL}": "{checksum}"'.encode("ascii") + _END


def unseal(document: dict[str, Any], content: bytes, where: str) -> dict[str, Any]:
    """What was sealed.

    The checksum is taken of the bytes as they stand: writing the document anew would take ten times as long as reading
    it, and a store has many.

    Args:
        document: from `load` or `read`, of a schema that this version knows: a later one may be sealed otherwise.
        content: the file's.

    Raises:
        RecordError: a byte of it is another than was written; the message begins with `where`.
    """
    if _sealed(content[: -_SEAL_LENGTH - len(_END)]) != content:
        raise damaged(where, "its checksum is missing, or another's")
    return {name: value for name, value in document.items() if name != _SEAL}


def load(content: bytes, where: str) -> dict[str, Any]:
    """The object that a file's content describes.

    Raises:
        RecordError: it is no JSON object; the message begins with `where`.
    """
    try:
        document = json.loads(content, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise damaged(where, str(error)) from None
    if not isinstance(document, dict):
        raise damaged(where, "no object")
    if _is_deep(document):
        raise damaged(where, f"more than {_DEEPEST} lists and objects stand in one another")
    return document


def _is_deep(document: dict[str, Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [one for each in inside for one in each]
    return bool(level)


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


def text(value: object, pattern: str | None = None) -> str:
    """A string, of any form for None.

    Raises:
        ValueError: it is none, or has not the form.
    """
    if not isinstance(value, str) or (pattern is not None and not re.fullmatch(pattern, value)):
        raise ValueError(f"{value!r} in place of {pattern or 'a string'}")
    return value


def count(value: object) -> int:
    """A number of things.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ValueError(f"{str(value)[:100]!r} in place of a number of things")
    return value


def damaged(where: str, reason: str) -> RecordError:
    """The error of a document that is not what it should be."""
    return RecordError(f"{where}: is damaged ({reason}); remove it, and export again")


def no_number(constant: str) -> Any:
    """What NaN and Infinity are, which Python's `json` takes and JSON has not.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{constant} is no number of JSON")
