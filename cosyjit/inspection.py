"""Whether what a directory shows is undamaged, and what its source would give now."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosyjit import publish, record
from cosyjit.checkpoint import Checkpoint, open_checkpoint
from cosyjit.errors import InputError, RecordError, StoreError
from cosyjit.families import Component
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
        reasons: what has changed since, or why it cannot be told; or which component it is, of one made on request.
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
    targets = _targets(shown, store)
    names = tuple(
        Shown(
            each.name,
            each.condition,
            *_compare(shown.artifacts[each.name], targets[each.name], store),
        )
        for each in found
    )
    return Status(shown, names, manifest.condition)


def _targets(shown: Publication, store: Store) -> dict[str, list[Target] | str]:
    """By each name, what the source would be exported to now, of all components that have the name; or why nothing."""
    try:
        checkpoint = open_checkpoint(reopen(shown.source, download=False))
    except StoreError:
        raise
    except InputError as error:
        return dict.fromkeys(shown.artifacts, str(error))
    found: defaultdict[str, list[Target]] = defaultdict(list)
    problems = dict.fromkeys(shown.artifacts, f"{shown.source} has no such target")
    for components, names in _groups(checkpoint, shown, store).items():
        precisions = sorted(set(names.values()))
        try:
            for target in find_targets(checkpoint.source, components, precisions, store=store):
                found[target.file_name].append(target)
        except StoreError:
            raise
        except InputError as error:  # of a file that other names do not need
            problems |= dict.fromkeys(names, str(error))
    return {name: found[name] or problems[name] for name in shown.artifacts}


def _groups(checkpoint: Checkpoint, shown: Publication, store: Store) -> dict[tuple[str, ...], dict[str, str]]:
    """Components that are made from one file and can be exported together; and names of theirs, with precisions."""
    groups: defaultdict[tuple[str, str, bool], dict[str, dict[str, str]]] = defaultdict(dict)
    for part in checkpoint.family.components:
        names = {
            name: precision
            for name, artifact in shown.artifacts.items()
            for precision in _precisions(part, name, artifact, store)
        }
        if names and checkpoint.has(part):
            groups[part.weights, part.kind, part.on_request][part.name] = names
    return {tuple(group): {k: v for names in group.values() for k, v in names.items()} for group in groups.values()}


def _precisions(part: Component, name: str, artifact: Published, store: Store) -> Sequence[str]:
    """Those at which a component has a name; of a folder that at which it was made, as far as its record is there."""
    if part.published == name and artifact.files is not None:
        made = _record(artifact, store)
        return [made.fingerprint.precision] if made else part.defaults
    return [each for each in part.tolerances if part.published is None and part.file_name(each) == name]


def _record(artifact: Published, store: Store) -> Record | None:
    """The record of a published artifact, if it is there and whole."""
    try:
        return record.load(store, artifact.fingerprint)
    except RecordError:
        return None


def _compare(
    artifact: Published, targets: Sequence[Target] | str, store: Store
) -> tuple[Literal["current", "stale", "unknown"], tuple[str, ...]]:
    """How an artifact stands to what would be published under its name now."""
    if isinstance(targets, str):
        return "unknown", (targets,)
    for target in targets:
        if target.fingerprint.key == artifact.fingerprint:
            return "current", (f"as {target.component.name}",) if target.component.on_request else ()
    known = _record(artifact, store)
    if known is None:
        return "stale", ("record missing",)
    target = next((each for each in targets if each.component.name == known.component), targets[0])
    return "stale", tuple(differences(known.fingerprint, target.fingerprint))
