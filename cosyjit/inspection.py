"""Whether what a directory shows is undamaged, and what its source would give now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosyjit import publish, record
from cosyjit.checkpoint import Checkpoint, open_checkpoint
from cosyjit.errors import InputError, RecordError, StoreError
from cosyjit.fingerprint import differences
from cosyjit.planning import Target, find_targets
from cosyjit.publication import Publication, Published
from cosyjit.record import Record
from cosyjit.source import reopen
from cosyjit.store import Condition, Store


@dataclass(frozen=True)
class Shown:
    """A published name.

    Attributes:
        condition: of its file.
        state: "current" if its source would give the same now; "unknown" if that cannot be told.
        reasons: what has changed since, or why it cannot be told.
    """

    name: str
    condition: Condition
    state: Literal["current", "stale", "unknown"]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """What a directory shows.

    Attributes:
        publication: the one that it shows, or showed when it was last whole.
        names: its artifacts.
        manifest: the condition of the document beside them.
    """

    publication: Publication
    names: tuple[Shown, ...]
    manifest: Condition

    @property
    def well(self) -> bool:
        """Whether all of it is undamaged, and what the source would give now."""
        whole = all(each.condition == "whole" and each.state == "current" for each in self.names)
        return whole and self.manifest == "whole"


def status(directory: Path, store: Store) -> Status:
    """Look at what a directory shows. Nothing is changed, and nothing that has not changed is read.

    Raises:
        PublicationError: nothing was published there with this store.
        StoreError: the store cannot be read.
    """
    shown, (*found, manifest) = publish.look(store, directory)
    targets, problem = _targets(shown, store)
    names = tuple(
        Shown(
            each.name,
            each.condition,
            *_compare(shown.artifacts[each.name], targets.get(each.name, ()), store, problem),
        )
        for each in found
    )
    return Status(shown, names, manifest.condition)


def _targets(shown: Publication, store: Store) -> tuple[dict[str, list[Target]], str]:
    """What the source would be exported to now, by file names; and if something is not among it, why."""
    folders = {name: each for name, each in shown.artifacts.items() if each.files is not None}
    zips = [name for name in shown.artifacts if name not in folders]
    found: dict[str, list[Target]] = {}
    try:
        checkpoint = open_checkpoint(reopen(shown.source, download=False))
        for target in (
            *_zips(checkpoint, zips, store),
            *(target for name, each in folders.items() for target in _folders(checkpoint, name, each, store)),
        ):
            found.setdefault(target.file_name, []).append(target)
    except StoreError:
        raise
    except InputError as error:
        return {}, str(error)
    return found, f"{shown.source} has no such target"


def _zips(checkpoint: Checkpoint, shown: Sequence[str], store: Store) -> Iterator[Target]:
    """The targets of zips; of one name, of all the components that are published under it."""
    for part in checkpoint.family.components:
        precisions = [name for name in part.tolerances if part.file_name(name) in shown]
        if precisions and checkpoint.has(part):
            yield from find_targets(checkpoint.source, [part.name], precisions, store=store)


def _folders(checkpoint: Checkpoint, name: str, artifact: Published, store: Store) -> Sequence[Target]:
    """The target of a folder, at the precision that it was made at as far as its record is there."""
    made = _record(artifact, store)
    own = [part.name for part in checkpoint.family.components if part.published == name and checkpoint.has(part)]
    precisions = [made.fingerprint.precision] if made else None
    return find_targets(checkpoint.source, own, precisions, store=store) if own else ()


def _record(artifact: Published, store: Store) -> Record | None:
    """The record of a published artifact, if it is there and whole."""
    try:
        return record.load(store, artifact.fingerprint)
    except RecordError:
        return None


def _compare(
    artifact: Published, targets: Sequence[Target], store: Store, problem: str
) -> tuple[Literal["current", "stale", "unknown"], tuple[str, ...]]:
    """How an artifact stands to what would be published under its name now."""
    if not targets:
        return "unknown", (problem,)
    if any(target.fingerprint.key == artifact.fingerprint for target in targets):
        return "current", ()
    known = _record(artifact, store)
    if known is None:
        return "stale", ("record missing",)
    target = next((each for each in targets if each.component.name == known.component), targets[0])
    return "stale", tuple(differences(known.fingerprint, target.fingerprint))
