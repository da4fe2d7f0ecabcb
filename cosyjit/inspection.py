"""Whether what a directory shows is undamaged, and what its source would give now."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosyjit import publish, record
from cosyjit.checkpoint import Checkpoint, open_checkpoint
from cosyjit.errors import InputError, RecordError, StoreError
from cosyjit.fingerprint import differences
from cosyjit.planning import Target, find_targets
from cosyjit.publication import Publication, Published
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
        Shown(each.name, each.condition, *_compare(shown, each.name, targets.get(each.name), store, problem))
        for each in found
    )
    return Status(shown, names, manifest.condition)


def _targets(shown: Publication, store: Store) -> tuple[dict[str, Target], str]:
    """What the source would be exported to now, by file names; and if something is not among it, why."""
    folders = {name: each for name, each in shown.artifacts.items() if each.files is not None}
    zips = [name for name in shown.artifacts if name not in folders]
    try:
        checkpoint = open_checkpoint(reopen(shown.source, download=False))
        targets = [
            *_zips(checkpoint, zips, store),
            *(target for name, each in folders.items() for target in _folders(checkpoint, name, each, store)),
        ]
    except StoreError:
        raise
    except InputError as error:
        return {}, str(error)
    return {target.file_name: target for target in targets}, f"{shown.source} has no such target"


def _zips(checkpoint: Checkpoint, shown: Sequence[str], store: Store) -> Sequence[Target]:
    parts = _parts(checkpoint)
    names = [name.removesuffix(".zip").rpartition(".") for name in shown]
    own = [(part, precision) for part, _, precision in names if part in parts]  # others are of another source
    components, precisions = ([each[index] for each in own] for index in range(2))
    return find_targets(checkpoint.source, components, precisions, store=store) if own else ()


def _folders(checkpoint: Checkpoint, name: str, artifact: Published, store: Store) -> Sequence[Target]:
    """The target of a folder, at the precision that it was made at as far as its record is there."""
    try:
        made = record.load(store, artifact.fingerprint)
    except RecordError:
        made = None
    own = [part for part, published in _parts(checkpoint).items() if published == name]  # else it is of another source
    precisions = [made.fingerprint.precision] if made else None
    return find_targets(checkpoint.source, own, precisions, store=store) if own else ()


def _parts(checkpoint: Checkpoint) -> dict[str, str | None]:
    """The components that a source has, and what they are published as whatever their precision."""
    return {part.name: part.published for part in checkpoint.family.components if checkpoint.has(part)}


def _compare(
    shown: Publication, name: str, target: Target | None, store: Store, problem: str
) -> tuple[Literal["current", "stale", "unknown"], tuple[str, ...]]:
    key = shown.artifacts[name].fingerprint
    if target is None:
        return "unknown", (problem,)
    if target.fingerprint.key == key:
        return "current", ()
    try:
        known = record.load(store, key)
    except RecordError:
        known = None
    return "stale", tuple(differences(known.fingerprint, target.fingerprint)) if known else ("record missing",)
