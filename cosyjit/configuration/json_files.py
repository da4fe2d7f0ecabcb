"""Reads the files of JSON that strangers wrote, as inert data of bounded size."""

import json
from pathlib import Path
from typing import Any

from cosyjit.documents import refuse_constant
from cosyjit.errors import ConfigError
from cosyjit.fs import files
from cosyjit.weights.formats import BEGINNING, mistaken_for


def content(path: Path, most: int) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        most: the most bytes that it may have.

    Raises:
        ConfigError: it is not a file of that size, is recognized as something else, or cannot be read.
    """
    try:
        found = files.beginning(path, most)
    except files.NotAFileError:
        raise ConfigError(f"{path}: is not a file; copy or download it again") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: does not exist; copy or download it again") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    if mistaken := mistaken_for(found[:BEGINNING]):
        raise ConfigError(f"{path}: {mistaken}")
    if len(found) > most:
        raise ConfigError(f"{path}: has more than {most:,} bytes; copy or download it again")
    return found


def parsed(content: bytes, path: Path) -> dict[str, Any]:
    """The object that JSON describes.

    Args:
        content: the JSON.
        path: the file, as messages name it.

    Raises:
        ConfigError: it is not JSON, or is not an object.
    """
    try:
        document = json.loads(content, parse_constant=refuse_constant)
        json.dumps(document, allow_nan=False)  # folders get a copy, and JSON has no such number as 1e999
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error}); copy or download it again") from None
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise ConfigError(f"{path}: holds a {kind} instead of an object; copy or download it again")
    return document
