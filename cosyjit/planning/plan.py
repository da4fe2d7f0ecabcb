"""What an export has to do: the targets of a model directory, compared with the store. Does not import torch."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from cosyjit.errors import BuildError, InputError, LaterSchemaError, RecordError, SignatureError, StoreError
from cosyjit.families import Component, Precision
from cosyjit.planning.inputs import Inputs, read_inputs
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.provenance import latest, record
from cosyjit.provenance.fingerprint import Fingerprint, differences, fingerprint
from cosyjit.provenance.record import Record
from cosyjit.publishing import layout
from cosyjit.selection import select
from cosyjit.sources.checkpoint import open_checkpoint
from cosyjit.sources.source import Source, open_source
from cosyjit.store.store import FORMS, Store

_MISSING: Final = "record missing"

_LOG: Final = logging.getLogger("cosyjit")


@dataclass(frozen=True)
class Planned:
    """A target, and what an export would do with it.

    Attributes:
        state: "fresh" if the store has its artifact; else "stale" if it was exported before, or "new".
        reasons: why it is not fresh, against what the target was last exported with.
        record: that of its artifact, if it is fresh.
    """

    target: Target
    state: Literal["fresh", "stale", "new"]
    reasons: tuple[str, ...] = ()
    record: Record | None = None


def plan(
    source: str | Path,
    components: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    *,
    store: Store | None = None,
    force: bool = False,
    exporting: bool = False,
    build: bool = True,
) -> tuple[Planned, ...]:
    """The targets of a model directory, each with what an export would do; all of it is seen to fit.

    Nothing is built, and torch is not imported. Of files that have not changed since the last time, none is read:
    their digests are remembered in the store's folder digests/, which is a cache. Nothing else of the store is changed.

    Args:
        source: a model directory, or an id on a hub: then what is not at hand of it is downloaded.
        components: names of components, or patterns such as "llm.*"; for None all that the family has, but for those
            on request; "all" for those as well.
        precisions: names of precisions, or patterns; for None those that each component has by default, fp32 and fp16
            of zips; "all" for all that it has or, where they share one name, the default.
        store: where artifacts are kept; that of this user for None.
        force: treat all targets as stale.
        exporting: begin an export: set damaged objects aside, renew what a bucket has of the targets (see
            `compare_one`), and make ready torch in another process, and the digests of the files.
        build: whether that export builds, so that these are needed.

    Raises:
        InputError: something is wrong with the directory, its configuration or weights, or with the store, or there
            is nothing to export.
    """
    store = store or Store()
    ready = worker.prepare if exporting and build else None
    planned = compare(source, components, precisions, store=store, force=force, exporting=exporting, ready=ready)
    wanted = [each.target for each in planned if each.record is None]
    if wanted and ready:
        store.digests.begin_sha256({each.source.file(each.weights_file.name): None for each in wanted})
    for target in {each.component: each for each in wanted if not each.component.is_folder}.values():
        target.check_fit()
    for path, reading in dict.fromkeys((each.target.weights_file, each.target.reading) for each in planned):
        if not reading.is_plain:
            _LOG.info("%s: its tensors stand %s, and are read from there", path, reading)
    return planned


def check_apart(store: Store, *directories: str | Path | None) -> None:
    """Raise an error if a store would be mixed with a model directory or a published one; nothing is written.

    Args:
        directories: model directories, and those to publish into; what is not a path of this machine is passed over.

    Raises:
        StoreError: the store is such a directory, or in its folder `.cosyjit`, or the directory is among its files.
    """
    if store.local is None:
        return
    root = Path(os.path.realpath(store.local))
    for given in (each for each in directories if each is not None):
        with suppress(ValueError):  # a NUL in it, which is told of where it is opened
            path = Path(os.path.realpath(os.path.expanduser(given)))  # noqa: PTH111  (which raises nothing)
            inside = path / layout.STATE in (root, *root.parents)
            if inside or path == root:
                place = f"in {path / layout.STATE}, which is" if inside else "a model's directory, or one that is"
                raise StoreError(
                    f"{store}: is {place} published into; name another store, "
                    "to which `cosyjit copy-store` brings what this one has"
                )
            if any(root / folder in (path, *path.parents) for folder in FORMS):
                raise StoreError(f"{path}: is among the files of the store {store}; name another directory")


def compare(
    source: str | Path,
    components: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    *,
    store: Store,
    force: bool = False,
    exporting: bool = False,
    ready: Callable[[], None] | None = None,
) -> tuple[Planned, ...]:
    """Like `plan`, but does not check whether weights and options fit; for `ready` see `find_targets`."""
    opened = open_source(source)
    check_apart(store, opened.directory)
    targets = find_targets(opened, components, precisions, store=store, ready=ready)
    return tuple(compare_one(store, target, force=force, exporting=exporting) for target in targets)


def find_targets(
    source: str | Path | Source,
    components: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    *,
    store: Store,
    ready: Callable[[], None] | None = None,
) -> tuple[Target, ...]:
    """The targets of a model directory, with their fingerprints; the store is used only to cache digests.

    Args:
        source, components, precisions: see `plan`; or a source that is open already.
        ready: is called as soon as it is likely that there will be something to build.

    Raises:
        InputError: see `plan`.
    """
    checkpoint = open_checkpoint(source if isinstance(source, Source) else open_source(source))
    selected = select(checkpoint.family, components, precisions)
    checkpoint.check_nodes(part for part, _ in selected)
    inputs = read_inputs(checkpoint, (part for part, _ in selected), store.digests, ready)
    return tuple(_target(checkpoint.source, part, precision, inputs[part]) for part, precision in selected)


def _target(source: Source, part: Component, precision: Precision, made_from: Inputs) -> Target:
    return Target(
        source,
        part,
        made_from.options,
        precision,
        fingerprint(part, made_from.options, precision, Target.device, made_from.tensors),
        made_from.weights,
        made_from.configs,
        made_from.reading,
        made_from.more,
    )


def compare_one(store: Store, target: Target, *, force: bool = False, exporting: bool = False) -> Planned:
    """What an export would do with one target.

    Args:
        store, target, force: see `plan`.
        exporting: the caller is going to rely on what is found: a damaged object is set aside, and what a bucket has is
            renewed, so that no other machine collects it. Otherwise nothing of the store is changed.
    """
    if force:
        return Planned(target, "stale", ("forced",))
    key = target.fingerprint.key
    found, problem = _load(store, key)
    if found is not None:
        check = store.check_all_or_set_aside if exporting else store.condition_of_all
        condition = check(found.objects)
        if condition != "intact":
            return Planned(target, "stale", (f"object {condition}",))
        if store.signer and store.signer.keyid not in found.signed_by:
            return Planned(target, "stale", ("not signed with this key",))
        if not exporting or store.renew(record.name_of(key)):
            return Planned(target, "fresh", record=found)
    before = latest.read(store, _reference(target))
    if before == key or problem != _MISSING:
        return Planned(target, "stale", (problem,))
    return Planned(target, *_since(store, before, target.fingerprint))


def _since(store: Store, before: str | None, now: Fingerprint) -> tuple[Literal["stale", "new"], tuple[str, ...]]:
    """What has changed since the record of the last export of a target."""
    try:
        known = _load(store, before)[0] if before else None
    except LaterSchemaError:
        return "stale", ("its last record is a later version's",)
    except SignatureError:
        return "stale", ("its last record has no signature that is required",)
    if known is None:
        return ("stale", ("its last record is missing",)) if before else ("new", ())
    return "stale", tuple(differences(known.fingerprint, now))


def _load(store: Store, key: str) -> tuple[Record | None, str]:
    """The record of a fingerprint, or why there is none.

    A damaged one is left where it is: only who has the turn to build knows that no other process has replaced it since.
    """
    try:
        return record.load(store, key), _MISSING
    except LaterSchemaError:
        raise
    except SignatureError:
        if store.signer is None:
            raise
        return None, "record has no signature that is required"  # it is written anew with one; others may use this one
    except RecordError:
        return None, "record damaged"


def localize(target: Target, store: Store) -> Target:
    """A target as this machine has it: the same, where its files are the ones that it was planned with.

    Files of the same content that are others, such as those of another machine, or touched ones, will do.

    Raises:
        BuildError: what is built here is not what was planned, such as with another torch.
        CheckpointError: the content is another.
        InputError: see `plan`.
    """
    part = target.component
    tensors = {f"{part.prefix}{name}": each for name, each in target.fingerprint.tensors.items()}
    here = fingerprint(part, target.options, target.precision, target.device, tensors)
    if here.key != target.fingerprint.key:
        reasons = "; ".join(differences(target.fingerprint, here))
        raise BuildError(f"{target.name}: was planned by another installation ({reasons}); install the same everywhere")
    target.source.obtain(target.source.files(part))
    if target.is_unchanged():
        return target
    try:
        (found,) = find_targets(target.source, [target.component.name], [target.precision.name], store=store)
    except InputError:
        target.check_unchanged()  # that is the reason
        raise
    if found.fingerprint.key != target.fingerprint.key:
        target.check_unchanged()
    return replace(target, source=found.source, weights=found.weights, configs=found.configs, reading=found.reading)


def remember(store: Store, target: Target) -> None:
    """Store the fingerprint of a target as that of its last export, for the next plan to compare with."""
    latest.write(store, target.source.name, _kind(target), target.fingerprint.key)


def _reference(target: Target) -> str:
    return latest.name_of(target.source.name, _kind(target))


def _kind(target: Target) -> str:
    return f"{target.name} {target.device}"
