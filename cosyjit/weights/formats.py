"""Recognizes, by its first bytes, a file that is not of the expected format, so that a message can name it."""

import re
from typing import Final

BEGINNING: Final = 1024
"""How many bytes `mistaken_for` needs."""

_ARCHIVES: Final = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
}
_TAR: Final = slice(257, 262)
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_PAGE: Final = re.compile(rb"\s*<(!doctype\s+html|html|head|body|\?xml|error)\b", re.IGNORECASE)


class UnsupportedFormError(Exception):
    """A file that may be sound, in a form that is not supported. The text says what it is, and what to do."""


def unlike_saved(what: str) -> UnsupportedFormError:
    """The error of a file that `torch.save` would not have written, though some reader may read it.

    Args:
        what: in words, where the file differs.
    """
    hint = "copy or download it again, or load it and save it again with torch.save"
    return UnsupportedFormError(f"is not as torch.save writes it ({what}); {hint}")


def mistaken_for(beginning: bytes) -> str | None:
    """In words, what a file is that is not of the expected format, and what to do; None if it is not recognized.

    Args:
        beginning: the first `BEGINNING` bytes of the file, or all of a shorter one.
    """
    text = beginning.removeprefix(b"\xef\xbb\xbf")
    if not beginning:
        return "is empty; copy or download it again"
    if text.startswith(_POINTER):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download it again"
    if _PAGE.match(text):
        return "is a web page, not the file itself; download it again, and log in first if its site asks for that"
    archive = next((kind for start, kind in _ARCHIVES.items() if beginning.startswith(start)), None)
    if beginning[_TAR] == b"ustar":
        archive = "a tar archive"
    return None if archive is None else f"is {archive}; unpack it, and put the file that it holds in its place"
