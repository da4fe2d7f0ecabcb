"""Whether what a directory shows is undamaged, and what its source would give now.

A directory says itself where its artifacts are from, and may be a stranger's. A source is opened only if the store
knows the publication as one of this directory's, and a hub is asked only if the caller wants that.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosyjit.errors import InputError, RecordError, StoreError, log_cause
from cosyjit.families import Component
from cosyjit.planning.plan import Target, find_targets
from cosyjit.provenance import record
from cosyjit.provenance.fingerprint import differences
from cosyjit.provenance.record import Record
from cosyjit.publishing import publication, publish
from cosyjit.publishing.publication import Publication, Published
from cosyjit.sources.checkpoint import Checkpoint, open_checkpoint
from cosyjit.sources.source import Source, reopen
from cosyjit.store.store import Condition, Store


@dataclass(frozen=True)
class Shown:
    """A published name.

    Attributes:
        condition: of its file.
        state: "current" if its source would give the same; "unknown" if that cannot be told.
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
        compared_with: what its source is: a directory, or an id at a commit; None if it was not opened.
    """

    publication: Publication
    names: tuple[Shown, ...]
    manifest: Condition
    compared_with: str | None = None

    @property
    def well(self) -> bool:
        """Whether all of it is undamaged, and what the source would give."""
        whole = all(each.condition == "whole" and each.state == "current" for each in self.names)
        return whole and self.manifest == "whole"


def status(directory: Path, store: Store, *, check_source: bool = False) -> Status:
    """Look at what a directory shows. Nothing is changed, and nothing that has not changed is read.

    A source that is a directory of this machine is compared with as it is. One that is a model of a hub is compared
    with as it was when it was last planned or exported here, and as it is now if `check_source` is set. No source is
    opened of a publication that the store does not know as one of this directory's: its artifacts are "unknown".

    Args:
        directory: where it is published, by the path that it was exported to.
        store: the one that it was exported with.
        check_source: whether a hub may be asked, with this user's token, what the source is now.

    Raises:
        PublicationError: nothing was published there with this store.
        StoreError: the store cannot be read.
    """
    shown, (*found, manifest) = publish.look(store, directory)
    source = _source(shown, directory, store, ask=check_source)
    targets = dict.fromkeys(shown.artifacts, source) if isinstance(source, str) else _targets(source, shown, store)
    names = tuple(
        Shown(
            each.name,
            each.condition,
            *_compare(shown.artifacts[each.name], targets[each.name], store),
        )
        for each in found
    )
    return Status(shown, names, manifest.condition, None if isinstance(source, str) else source.pinned)


def _source(shown: Publication, directory: Path, store: Store, *, ask: bool) -> Source | str:
    """The source of what is shown, or why it is not opened."""
    try:
        if publication.is_of(store, directory, shown):
            return reopen(shown.source, ask=ask)
    except InputError as error:
        log_cause(error)
        return str(error)
    return (
        f"{store} does not know this as published here, and so its source is not opened; give the directory and the "
        "store as they were when it was exported, or export into it"
    )


def _targets(source: Source, shown: Publication, store: Store) -> Mapping[str, list[Target] | str]:
    """By each name, what the source would be exported to, of all components that have the name; or why nothing."""
    try:
        checkpoint = open_checkpoint(source)
    except InputError as error:
        log_cause(error)
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
            log_cause(error)
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
