"""What is to be exported, and what of it the store has already: without torch, where nothing has changed."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from cosyjit.errors import BuildError, InputError, LaterSchemaError, RecordError, SignatureError, StoreError
from cosyjit.families import PRECISIONS, Component, Precision, select
from cosyjit.fs.identity import Identity
from cosyjit.planning.inputs import Inputs, read_inputs
from cosyjit.processes import worker
from cosyjit.provenance import latest, record
from cosyjit.provenance.fingerprint import Fingerprint, differences, fingerprint
from cosyjit.provenance.record import Record
from cosyjit.publishing import layout
from cosyjit.sources.checkpoint import open_checkpoint
from cosyjit.sources.source import Source, open_source
from cosyjit.store.store import FORMS, Store
from cosyjit.weights.fit import PLAIN, EncoderNeed, Reading, check
from cosyjit.weights.weights_file import changed_error

_MEMORY_FACTOR: Final = 2.2
_MEMORY_BASE: Final = 600_000_000
"""Measured of full-size components with torch 2.13: at most 2.1 times the float32 weights and 0.57 GB, mapped files
counted as well."""

_FOLDER_MEMORY: Final = 900_000_000
"""What writing a folder and reading it back takes, torch included, whatever its size."""

_MISSING: Final = "record missing"

_LOG: Final = logging.getLogger("cosyjit")


@dataclass(frozen=True)
class Target:
    """One component at one precision for one kind of device: one artifact.

    Attributes:
        source: where the checkpoint is from.
        component: what is exported.
        options: those of its encoder, as the configuration gives them.
        precision: the type of its weights.
        fingerprint: all that decides its bytes.
        weights: what the file with its weights was when the fingerprint was taken.
        reading: how the names of tensors in that file are read.
        configs: the SHA-256 of the configurations when they were read, by their names in the model directory.
        device: the kind of device that the graph is optimized on; the artifact loads on others as well.
    """

    source: Source
    component: Component
    options: Mapping[str, Any] = field(hash=False)
    precision: Precision
    fingerprint: Fingerprint = field(hash=False)
    weights: Identity
    configs: Mapping[str, str] = field(hash=False)
    reading: Reading = PLAIN
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.component.name}.{self.precision.name}"

    @property
    def file_name(self) -> str:
        """The name by which the runtime finds the artifact."""
        return self.component.file_name(self.precision.name)

    @property
    def weights_file(self) -> Path:
        return self.source.directory / self.source.weights(self.component.weights)

    def is_unchanged(self) -> bool:
        """Whether the weights file is still the one that the fingerprint was taken of."""
        try:
            return Identity.of(self.weights_file) == self.weights
        except OSError:
            return False

    def check_unchanged(self) -> None:
        """
        Raises:
            CheckpointError: the weights file is not the one any more that the fingerprint was taken of.
        """
        if not self.is_unchanged():
            raise changed_error(self.weights_file, "after it was planned")

    def check_fit(self) -> None:
        """See that the weights are those that the encoder needs.

        Raises:
            UnsupportedOptionError: an option is unknown, missing, or of a value that is not supported.
            CheckpointError: tensors are missing, unknown, or of another shape or type.
        """
        need = EncoderNeed.of(self.component, self.options, self.source.config)
        prefix = self.component.prefix
        entries = {f"{prefix}{name}": each for name, each in self.fingerprint.tensors.items()}
        check(self.weights_file, entries, need, self.reading)

    @property
    def weight_bytes(self) -> int:
        """What the weights take, and so, nearly, the artifact."""
        return sum(self.precision.size(name, each.shape) for name, each in self.fingerprint.tensors.items())

    @property
    def memory_bytes(self) -> int:
        """What building and verifying it may take, in one process after the other."""
        if self.component.kind == "vllm":
            return _FOLDER_MEMORY
        float32 = sum(PRECISIONS["fp32"].size(name, each.shape) for name, each in self.fingerprint.tensors.items())
        return int(_MEMORY_FACTOR * float32) + _MEMORY_BASE

    @property
    def least_bytes(self) -> int:
        """The same if of equal weights one is kept."""
        names = {each: name for name, each in self.fingerprint.tensors.items()}
        return sum(self.precision.size(name, each.shape) for each, name in names.items())


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
) -> tuple[Planned, ...]:
    """The targets of a model directory, each with what an export would do; all of it is seen to fit.

    Nothing is built, and torch is not imported. Of files that have not changed since the last time, none is read.

    Args:
        source: a model directory, or a ModelScope id: then what is not at hand of it is downloaded.
        components: names of components; for None all that the family has, but for those on request.
        precisions: names of precisions; for None those that each component has by default, fp32 and fp16 of zips.
        store: where artifacts are kept; that of this user for None.
        force: find nothing fresh.
        exporting: begin with what an export needs besides, such as torch in another process and the digests of the
            files.

    Raises:
        InputError: something is wrong with the directory, its configuration or weights, or with the store, or there
            is nothing to export.
    """
    store = store or Store()
    ready = worker.prepare if exporting else None
    planned = compare(source, components, precisions, store=store, force=force, ready=ready)
    wanted = [each.target for each in planned if each.record is None]
    if wanted and exporting:
        store.digests.begin_sha256({each.source.file(each.weights_file.name): None for each in wanted})
    for target in {each.component: each for each in wanted if each.component.kind == "zip"}.values():
        target.check_fit()
    for path, reading in dict.fromkeys((each.target.weights_file, each.target.reading) for each in planned):
        if not reading.is_plain:
            _LOG.info("%s: its tensors stand %s, and are read from there", path, reading)
    return planned


def check_apart(store: Store, *directories: str | Path | None) -> None:
    """Make sure, before anything is written, that a store is not mixed with a model, or with what is published.

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
    ready: Callable[[], None] | None = None,
) -> tuple[Planned, ...]:
    """As `plan`, but without a look at whether weights and options fit.

    Args:
        ready: see `find_targets`.
    """
    opened = open_source(source)
    check_apart(store, opened.directory)
    targets = find_targets(opened, components, precisions, store=store, ready=ready)
    return tuple(compare_one(store, target, force=force) for target in targets)


def find_targets(
    source: str | Path | Source,
    components: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    *,
    store: Store,
    ready: Callable[[], None] | None = None,
) -> tuple[Target, ...]:
    """The targets of a model directory, with their fingerprints; the store only remembers digests.

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
    )


def compare_one(store: Store, target: Target, *, force: bool = False) -> Planned:
    """What an export would do with one target."""
    if force:
        return Planned(target, "stale", ("forced",))
    key = target.fingerprint.key
    found, problem = _load(store, key)
    if found is not None:
        condition = store.worst(found.objects)
        if condition != "whole":
            return Planned(target, "stale", (f"object {condition}",))
        if store.signer and store.signer.keyid not in found.signed_by:
            return Planned(target, "stale", ("not signed with this key",))
        if store.renew(record.name_of(key)):
            return Planned(target, "fresh", record=found)
    before = latest.read(store, _reference(target))
    if before == key or problem != _MISSING:
        return Planned(target, "stale", (problem,))
    return Planned(target, *_since(store, before, target.fingerprint))


def _since(store: Store, before: str | None, now: Fingerprint) -> tuple[Literal["stale", "new"], tuple[str, ...]]:
    """What has changed since the record that a target was last exported with."""
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
    target.source.obtain([target.weights_file.name, *target.component.configs])
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
    """Let the next plan compare a target with what it is now."""
    if not store.read_only:
        latest.write(store, target.source.name, _kind(target), target.fingerprint.key)


def _reference(target: Target) -> str:
    return latest.name_of(target.source.name, _kind(target))


def _kind(target: Target) -> str:
    return f"{target.name} {target.device}"
