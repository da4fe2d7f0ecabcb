"""Whether what a directory shows is undamaged, and what its source would give now."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosyjit import publish, record
from cosyjit.errors import InputError, RecordError, SelectionError, StoreError
from cosyjit.fingerprint import differences
from cosyjit.planning import Target, find_targets
from cosyjit.publication import Publication
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
    names = [name.removesuffix(".zip").rpartition(".") for name in shown.artifacts]
    precisions = [name[2] for name in names]
    try:
        source = reopen(shown.source, download=False)
        try:
            targets = find_targets(source, [name[0] for name in names], precisions, store=store)
        except SelectionError:  # some are of another source
            targets = find_targets(source, precisions=precisions, store=store)
    except StoreError:
        raise
    except InputError as error:
        return {}, str(error)
    return {target.file_name: target for target in targets}, f"{shown.source} has no such target"


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
