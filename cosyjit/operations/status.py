"""The status of a directory: whether its files are intact, and whether its source would give the same now.

A directory names the source of its artifacts itself, and a stranger may have written it. So the source is opened only
if the store knows the publication as one of this directory's, and a hub is asked only if the caller wants that.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosyjit.errors import InputError, RecordError, StoreError, log_cause
from cosyjit.families import Component
from cosyjit.planning.plan import find_targets
from cosyjit.planning.target import Target
from cosyjit.provenance import record
from cosyjit.provenance.fingerprint import differences
from cosyjit.provenance.record import Record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.plans import OlderPlan
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
        reasons: what has changed since, or why it cannot be told; or which component it is, of one that is published
            under another's name.
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
        older_plans: plans beside its artifacts that were made before these were published. Runtimes would use them.
    """

    publication: Publication
    names: tuple[Shown, ...]
    manifest: Condition
    compared_with: str | None = None
    older_plans: tuple[OlderPlan, ...] = ()

    @property
    def well(self) -> bool:
        """Whether all of it is intact and current, and no plan is older."""
        whole = all(each.condition == "intact" and each.state == "current" for each in self.names)
        return whole and self.manifest == "intact" and not self.older_plans


def status(directory: str | Path, *, store: Store | None = None, check_source: bool = False) -> Status:
    """Look at what a directory shows. Only remembered digests change, and only changed files are read again.

    A model directory on this machine is compared as it is now. A model of a hub is compared as it was when it was last
    planned or exported here, or as it is now if `check_source` is set. If the store does not know the publication as
    one of this directory's, its source is not opened, and its artifacts are "unknown".

    Args:
        directory: where it is published, by the path that it was exported to.
        store: the one that it was exported with; that of this user for None.
        check_source: whether a hub may be asked, with this user's token, what the source is now.

    Raises:
        PublicationError: nothing was published there with this store.
        StoreError: the store cannot be read.
    """
    published = PublishedDirectory(directory, store)
    store = published.store
    live, (*checked, manifest) = published.check()
    source = _source(live, published, ask=check_source)
    targets = dict.fromkeys(live.artifacts, source) if isinstance(source, str) else _targets(source, live, store)
    names = tuple(
        Shown(
            each.name,
            each.condition,
            *_compare(live.artifacts[each.name], targets[each.name], store),
        )
        for each in checked
    )
    pinned = None if isinstance(source, str) else source.pinned
    return Status(live, names, manifest.condition, pinned, tuple(published.older_plans(live)))


def _source(live: Publication, directory: PublishedDirectory, *, ask: bool) -> Source | str:
    """The source of the live publication, or why it is not opened."""
    try:
        if publication.is_of(directory.store, directory.path, live):
            return reopen(live.source, ask=ask)
    except InputError as error:
        log_cause(error)
        return str(error)
    return (
        f"{directory.store} does not know this as published here, and so its source is not opened; give the directory "
        "and the store as they were when it was exported, or export into it"
    )


def _targets(source: Source, shown: Publication, store: Store) -> Mapping[str, list[Target] | str]:
    """By published name, the targets of the source that have this name; or why there are none."""
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
    """Components that come from one file and can be exported together, each with its published names and precisions."""
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
    """The precisions at which a component has a name; for a folder, the one in its record, if the store has it."""
    if part.published == name and artifact.files is not None:
        made = _record(artifact, store)
        return [made.fingerprint.precision] if made else part.defaults
    return [each for each in part.tolerances if part.published is None and part.file_name(each) == name]


def _record(artifact: Published, store: Store) -> Record | None:
    """The record of a published artifact; None if it is missing or damaged."""
    try:
        return record.load(store, artifact.fingerprint)
    except RecordError:
        return None


def _compare(
    artifact: Published, targets: Sequence[Target] | str, store: Store
) -> tuple[Literal["current", "stale", "unknown"], tuple[str, ...]]:
    """Compare an artifact with what would be published under its name now."""
    if isinstance(targets, str):
        return "unknown", (targets,)
    for target in targets:
        if target.fingerprint.key == artifact.fingerprint:
            return "current", (f"as {target.component.name}",) if target.component.at else ()
    known = _record(artifact, store)
    if known is None:
        return "stale", ("record missing",)
    target = next((each for each in targets if each.component.name == known.component), targets[0])
    return "stale", tuple(differences(known.fingerprint, target.fingerprint))
