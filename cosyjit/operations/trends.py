"""How the measurements of a directory's artifacts changed from publication to publication."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from cosyjit.errors import RecordError
from cosyjit.provenance import record
from cosyjit.provenance.record import Record
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


def trends(directory: PublishedDirectory, last: int = LAST, *, known: Sequence[Record] = ()) -> dict[str, list[Point]]:
    """The measurements of artifacts in the last publications, by file name, the earliest first.

    Artifacts without a record are left out.

    Args:
        directory: where they are published.
        last: how many publications there are at most.
        known: records of the store that need not be read again.

    Raises:
        PublicationError: nothing was published there that the directory or the store knows of.
        StoreError: the store cannot be read.
    """
    found: dict[str, list[Point]] = {}
    measured: dict[str, Mapping[str, float] | None] = {each.fingerprint.key: each.figures for each in known}
    for publication in reversed(directory.history(last)):
        for name, artifact in publication.artifacts.items():
            key = artifact.fingerprint
            if key not in measured:
                measured[key] = _figures(directory.store, key)
            figures = measured[key]
            if figures is not None:
                found.setdefault(name, []).append(Point(publication.number, figures))
    return found


def _figures(store: Store, key: str) -> Mapping[str, float] | None:
    try:
        found = record.load(store, key)
    except RecordError:
        return None
    return None if found is None else found.figures
