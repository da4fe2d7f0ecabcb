"""What became of what a directory shows."""

import os
from pathlib import Path
from typing import NamedTuple

from cosyjit.errors import FileChangedError
from cosyjit.fs import files, hashing
from cosyjit.publishing import layout
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import Condition, Store


class Finding(NamedTuple):
    """What became of a published name: its file, or the manifest."""

    name: str
    condition: Condition


def inspect(store: Store, directory: Path, published: Publication, *, again: bool = False) -> list[Finding]:
    """Look at each name of a publication in its directory.

    Args:
        again: read the files even if they are the ones that were read before.
    """
    found = [
        Finding(name, _condition_of(store, directory, name, artifact, again=again))
        for name, artifact in published.artifacts.items()
    ]
    manifest = directory / layout.MANIFEST
    if not manifest.exists():
        return [*found, Finding(layout.MANIFEST, "missing")]
    whole = files.content(manifest, len(published.content)) == published.content
    return [*found, Finding(layout.MANIFEST, "whole" if whole else "damaged")]


def _condition_of(store: Store, directory: Path, name: str, artifact: Published, *, again: bool) -> Condition:
    members = artifact.members(name)
    found = {condition(store, directory / path, digest, again=again) for path, digest in members.items()}
    if artifact.files is not None and _count(directory / name) > len(members):
        return "damaged"  # whoever reads the folder would read what was added
    return "missing" if found == {"missing"} else "whole" if found == {"whole"} else "damaged"


def _count(folder: Path) -> int:
    """How many files a folder has; 0 if it cannot be read."""
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return 0


def condition(store: Store, path: Path, digest: str, *, again: bool) -> Condition:
    try:
        path = Path(os.path.realpath(path, strict=True))
        if again:
            with files.plain(path) as file:
                found = hashing.sha256_of(file)
        else:
            found = store.digests.sha256(path)
    except FileNotFoundError:
        return "missing"
    except (OSError, FileChangedError):  # no file, not readable, or being written to
        return "damaged"
    return "whole" if found == digest else "damaged"
