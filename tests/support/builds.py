"""Artifacts of real builds, each of which is made once for all the tests of a process."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cosyjit import Store, export
from cosyjit.planning import plan as planning
from cosyjit.provenance import record


class Builds:
    """A store of its own, of which others are given copies.

    Attributes:
        store: with all that was built, and its graphs; not to be changed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.store = Store(folder / "store")

    def stock(
        self,
        store: Store,
        directory: Path,
        components: Sequence[str] | None = None,
        precisions: Sequence[str] | None = None,
    ) -> None:
        """Let a store have what an export of a model directory would build: what was built before is copied.

        The next export finds all of it in the store, and publishes it.
        """
        into = self._folder / uuid.uuid4().hex
        with store.in_use(), store.staging() as work:
            for each in export(directory, components=components, precisions=precisions, store=self.store, publish=into):
                assert each.record is not None, each.error
                for digest in (each.record.files or {"": each.record.sha256}).values():
                    with (work / digest).open("wb") as file:
                        self.store.fetch(digest, file)
                    store.add(work / digest, digest)
                materials = tuple(one._replace(uri=(directory / one.name).as_uri()) for one in each.record.materials)
                record.save(store, replace(each.record, source=each.target.source.pinned, materials=materials))
                planning.remember(store, each.target)
