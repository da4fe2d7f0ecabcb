"""How the measurements of a directory's artifacts changed from publication to publication."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from cosyjit.errors import RecordError
from cosyjit.provenance import record
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import Store

LAST: Final = 10
"""How many publications a trend has at most."""


class Point(NamedTuple):
    """An artifact in a publication.

    Attributes:
        publication: its number.
        figures: what was measured of the artifact.
    """

    publication: int
    figures: Mapping[str, float]


def trends(directory: PublishedDirectory, last: int = LAST) -> dict[str, list[Point]]:
    """The measurements of artifacts in the last publications, by file name, the earliest first.

    Artifacts without a record are left out.

    Raises:
        PublicationError: nothing was published there that the directory or the store knows of.
        StoreError: the store cannot be read.
    """
    found: dict[str, list[Point]] = {}
    known: dict[str, Mapping[str, float] | None] = {}
    for publication in reversed(directory.history(last)):
        for name, artifact in publication.artifacts.items():
            key = artifact.fingerprint
            if key not in known:
                known[key] = _figures(directory.store, key)
            figures = known[key]
            if figures is not None:
                found.setdefault(name, []).append(Point(publication.number, figures))
    return found


def _figures(store: Store, key: str) -> Mapping[str, float] | None:
    try:
        found = record.load(store, key)
    except RecordError:
        return None
    return None if found is None else found.figures
