"""What has to hold of whatever a hub lists, for the targets that read what hubs answer."""

import json
import os
from collections.abc import Mapping
from typing import Any

from cosyjit.sources import snapshots
from cosyjit.sources.hub import Listing, Model
from cosyjit.sources.snapshots import Snapshot


def check(model: Model, found: Listing) -> None:
    """See that a listing has files of need alone, that none leads out of its place, and that all can be shown."""
    snapshot = Snapshot(model, found.revision, found.endpoint, found.files)
    root = os.path.realpath(snapshots._root(model))
    for each in snapshot.files:
        assert each.name in snapshots.NAMES
        for path in (snapshot.directory, snapshot.path(each.name), snapshots._incoming(model, each)):
            assert os.path.realpath(path).startswith(f"{root}/"), path
        assert f"{snapshot} {each} {snapshot.uri(each.name)}".isprintable()
    snapshots._check_room(snapshot, snapshot.files)


def answer(document: Mapping[str, Any]) -> bytes:
    """An answer with a document."""
    return json.dumps(document).encode()
