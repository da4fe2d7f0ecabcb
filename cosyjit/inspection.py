"""Whether what a directory shows is undamaged, and what its source would give now."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosyjit import publish, record
from cosyjit.errors import InputError, RecordError, SelectionError, StoreError
from cosyjit.families import FAMILIES
from cosyjit.fingerprint import differences
from cosyjit.planning import Target, find_targets
from cosyjit.publication import Publication, Published
from cosyjit.source import Source, reopen
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
        source = reopen(shown.source, download=False)
        targets = [
            *(_zips(source, zips, store) if zips else ()),
            *(target for name, each in folders.items() for target in _folders(source, name, each, store)),
        ]
    except StoreError:
        raise
    except InputError as error:
        return {}, str(error)
    return {target.file_name: target for target in targets}, f"{shown.source} has no such target"


def _zips(source: Source, shown: Sequence[str], store: Store) -> Sequence[Target]:
    names = [name.removesuffix(".zip").rpartition(".") for name in shown]
    precisions = [name[2] for name in names]
    try:
        return find_targets(source, [name[0] for name in names], precisions, store=store)
    except SelectionError:  # some are of another source
        return find_targets(source, precisions=precisions, store=store)


def _folders(source: Source, name: str, artifact: Published, store: Store) -> Sequence[Target]:
    """The target of a folder, at the precision that it was made at as far as its record is there."""
    try:
        made = record.load(store, artifact.fingerprint)
    except RecordError:
        made = None
    parts = {part.name for family in FAMILIES for part in family.components if part.published == name}
    try:
        return find_targets(source, sorted(parts), [made.fingerprint.precision] if made else None, store=store)
    except SelectionError:  # it is of another source
        return ()


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
