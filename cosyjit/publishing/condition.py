"""The condition of published files."""

import os
from pathlib import Path
from typing import NamedTuple

from cosyjit.errors import FileChangedError
from cosyjit.fs import files, hashing
from cosyjit.fs.digests import Digests
from cosyjit.publishing.publication import Published
from cosyjit.store.store import Condition


class Checked(NamedTuple):
    """A published name, of an artifact or the manifest, and the condition of its file or folder."""

    name: str
    condition: Condition


def condition_of(path: Path, sha256: str, digests: Digests, *, reread: bool = False) -> Condition:
    """The condition of a file that ought to have a digest.

    Args:
        reread: read the file even if it is the one that was read before.
    """
    try:
        path = Path(os.path.realpath(path, strict=True))
        if reread:
            with files.plain(path) as file:
                found = hashing.sha256_of(file)
        else:
            found = digests.sha256(path)
    except FileNotFoundError:
        return "missing"
    except (OSError, FileChangedError):  # not a file, not readable, or being written to
        return "damaged"
    return "intact" if found == sha256 else "damaged"


def condition_of_artifact(
    directory: Path, name: str, artifact: Published, digests: Digests, *, reread: bool = False
) -> Condition:
    """The condition of an artifact under its name in a directory.

    Args:
        reread: see `condition_of`.
    """
    members = artifact.members(name)
    found = {condition_of(directory / path, digest, digests, reread=reread) for path, digest in members.items()}
    if artifact.files is not None and _count(directory / name) > len(members):
        return "damaged"  # whoever reads the folder would read what was added
    return "missing" if found == {"missing"} else "intact" if found == {"intact"} else "damaged"


def is_copy(path: Path, artifact: Published, digests: Digests) -> bool:
    """Whether a path is not a link, and is the file of an artifact, or a folder with exactly its files."""
    if not is_real(path):
        return False
    if artifact.files is None:
        return condition_of(path, artifact.sha256, digests) == "intact"
    try:
        names = {each.name for each in path.iterdir()}
    except OSError:  # not a folder, or one that cannot be read
        return False
    found = (condition_of(path / name, each, digests) for name, each in artifact.files.items())
    return names == artifact.files.keys() and all(each == "intact" for each in found)


def is_real(path: Path) -> bool:
    """Whether there is something at a path itself, and not a link."""
    return os.path.lexists(path) and not path.is_symlink()


def _count(folder: Path) -> int:
    """How many files a folder has; 0 if it cannot be read."""
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return 0
