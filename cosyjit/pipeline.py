"""From a model directory to the zips that the runtime reads: plan, build what the store has not, store, publish.

Whatever needs torch runs in processes of its own (`cosyjit.processes.worker`); the caller's does not import it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from cosyjit.building.build import build
from cosyjit.documents import now
from cosyjit.errors import InputError, ResourceError, SignatureError, StoreError, line, log_cause
from cosyjit.fs.files import absolute
from cosyjit.fs.waits import Wait
from cosyjit.planning.plan import Planned, Target, check_apart, compare_one, localize, plan, remember
from cosyjit.processes import worker
from cosyjit.processes.memory import reservations_directory, reserved
from cosyjit.processes.slots import Slots
from cosyjit.provenance import record
from cosyjit.provenance.record import Material, Record
from cosyjit.publishing import layout, publish
from cosyjit.publishing.publication import Published
from cosyjit.store.store import Store
from cosyjit.weights.digests import processors

_SLOTS: Final = Slots(processors())
"""One for each processor: this process builds no more at a time, whichever exports ask."""


@dataclass(frozen=True)
class Outcome:
    """What became of a target.

    Attributes:
        state: "cached" if the store had its artifact.
        reasons: why it was built; see `Planned`.
        record: that of its artifact; None if there is none.
        seconds: what that took, publishing apart.
        path: where the artifact is published; None if it is not.
        error: why it failed, in a line; None if it did not.
    """

    target: Target
    state: Literal["built", "cached", "failed"]
    reasons: tuple[str, ...] = ()
    record: Record | None = None
    seconds: float = 0.0
    path: Path | None = None
    error: str | None = None


Progress = Callable[[Target, str], None]
"""Is told each target and the name of the stage that it enters: load, script, save, verify, built; or cached.

Where numbers become 0 in a cast, "cast: …" says how many."""


def make(
    planned: Planned,
    store: Store,
    directory: Path | None,
    *,
    link: bool = False,
    memory: int | None = None,
    progress: worker.Progress | None = None,
    run: Mapping[str, str] | None = None,
    scope: worker.CancelScope | None = None,
) -> Outcome:
    """See to it that the store has a target's artifact, and bring it to where it will be published.

    Args:
        planned: from `plan`, perhaps on another machine.
        store: entered with `Store.in_use`.
        directory: entered with `publish.opened`; None where it is another machine's, and `conclude` is to bring it.
        link: see `publish.publish`.
        memory: what builds may take of this machine's at a time, in bytes; three quarters for None.
        progress: is told the name of each stage.
        run: the identifiers of the run that this is part of, for the record.
        scope: cancels this together with the rest of its export; None if nothing does.

    Raises:
        SignatureError: it has to be built, and there is no key for the signature that the store requires; or the store
            has a signed record of another artifact, which one without a signature does not replace.
        InputError: the model directory has changed since it was planned, or the store or the directory cannot be
            written to.
        BuildError: the process that built it was killed, or the scope is cancelled.
    """
    scope = scope or worker.CancelScope()
    begun = time.perf_counter()
    target = planned.target
    found = planned.record
    if found is None:
        with _SLOTS.taken(scope), store.turn(target.fingerprint.key, waiting=scope.check):
            if "forced" not in planned.reasons:
                found = compare_one(store, target).record  # another process may have built it while we waited
            state: Literal["built", "cached"] = "cached" if found else "built"
            if found is None:
                _check_signer([target], store)
                wait = Wait("memory", store.wait, scope.check)
                with reserved(reservations_directory(), target.memory_bytes, memory, wait=wait):
                    found = _make(localize(target, store), store, progress, run or {}, scope)
    else:
        state = "cached"
    if state == "cached" and progress is not None:
        progress("cached")
    remember(store, target)
    try:
        if directory is None:
            with Path(os.devnull).open("wb") as nowhere:  # whoever publishes it is to find it whole
                for digest in found.objects:
                    store.fetch(digest, nowhere)
        else:
            publish.bring(store, directory, _published(target, found), link=link)
    except StoreError:
        if state == "built" or store.worst(found.objects) == "whole":
            raise
        # The object is not what it seemed when it was planned: built after all.
        again = Planned(target, "stale", ("object missing or damaged",))
        return make(again, store, directory, link=link, memory=memory, progress=progress, run=run, scope=scope)
    return Outcome(target, state, planned.reasons, found, time.perf_counter() - begun)


def _make(
    target: Target,
    store: Store,
    progress: worker.Progress | None,
    run: Mapping[str, str],
    scope: worker.CancelScope,
) -> Record:
    """Build a target, and put it and its record into a store."""
    started = now()
    with ThreadPoolExecutor(1) as pool, store.staging() as work:
        materials = pool.submit(_materials, target, store)
        artifact = build(target, work, progress, scope)
        made = Record(
            name=target.file_name,
            sha256=artifact.sha256,
            files=artifact.files,
            fingerprint=target.fingerprint,
            component=target.component.name,
            source=target.source.pinned,
            materials=materials.result(),
            started=started,
            finished=now(),
            figures={
                "bytes": artifact.bytes,
                "weight_bytes": target.weight_bytes,
                "seconds": round(artifact.seconds, 3),
                **artifact.figures,
            },
            run=run,
        )
        for path, digest in artifact.objects.items():
            store.add(path, digest)
        return record.save(store, made)


def _materials(target: Target, store: Store) -> tuple[Material, ...]:
    source, weights = target.source, target.weights_file.name
    digest = store.digests.sha256(source.file(weights))
    target.check_unchanged()
    configs = (Material(name, source.uri(name), each) for name, each in target.configs.items())
    return *configs, Material(weights, source.uri(weights), digest, str(target.reading))


def _published(target: Target, made: Record) -> Published:
    return Published(made.sha256, made.bytes, target.fingerprint.key, made.files)


def workers() -> int:
    """How many targets are worth working on at a time: while some are built, others are copied."""
    return 2 * processors()


class Pending(Protocol):
    """Work under way, such as a `concurrent.futures.Future`."""

    def result(self) -> Outcome:
        """Wait for the outcome, or raise what the work raised."""


def begin(planned: Sequence[Planned], submit: Callable[[Planned], Pending]) -> dict[Target, Pending]:
    """Start the work on each target, the largest first."""
    return {each.target: submit(each) for each in sorted(planned, key=lambda each: -each.target.weight_bytes)}


def gather(planned: Sequence[Planned], pending: Mapping[Target, Pending]) -> list[Outcome]:
    """Wait for the work on all targets, whichever fail; the outcomes in the order of the plan."""
    return [_outcome(each.target, pending[each.target]) for each in planned]


def _outcome(target: Target, pending: Pending) -> Outcome:
    try:
        return pending.result()
    except ResourceError:  # which is no target's
        raise
    except Exception as error:  # noqa: BLE001  (one target's failure is not the others')
        log_cause(error)
        return Outcome(target, "failed", error=line(error))


def publication_directory(planned: Sequence[Planned], directory: str | Path | None) -> Path:
    """Where artifacts go: the directory given, or the home of the source: for a model directory, itself."""
    return planned[0].target.source.home if directory is None else absolute(Path(directory))


@contextmanager
def ready(planned: Sequence[Planned], store: Store, directory: Path, *, replace_others: bool = False) -> Iterator[None]:
    """Make sure, before the work, that there is room for it; and end it with an error, what it left is removed.

    Args:
        replace_others: see `publish.publish`.

    Raises:
        SignatureError: something is to be built, and there is no key for the signature that the store requires; or
            something else that the directory shows has none.
        StoreError: the store has no room for what is to be built.
        OutputError: the directory cannot be written to, has no room for that, or has something else in its place.
    """
    for error in _refusals(planned, store, directory):
        raise error
    needs, own, ways = _needs(planned, directory), _copies(planned, store, directory), _ways(planned)
    with publish.opened(directory, *needs, replace=replace_others, own=own, ways=ways, wait=store.wait):
        yield


def obstacles(
    planned: Sequence[Planned],
    directory: str | Path | None = None,
    *,
    store: Store | None = None,
    replace_others: bool = False,
) -> tuple[InputError, ...]:
    """What `export` would refuse to publish a plan for, such as a folder of others where it is to be shown.

    Nothing is written. What only a write can tell, such as that a directory is read-only, is not among it.

    Args:
        planned: from `plan`.
        directory, store, replace_others: see `export`.

    Returns:
        The errors, of which `export` would raise the first; none if nothing is in the way.
    """
    directory, store = publication_directory(planned, directory), store or Store()
    refusals = tuple(_refusals(planned, store, directory))
    needs, own, ways = _needs(planned, directory), _copies(planned, store, directory), _ways(planned)
    return (*refusals, *publish.obstacles(directory, *needs, replace=replace_others, own=own, ways=ways))


def _refusals(planned: Sequence[Planned], store: Store, directory: Path) -> Iterator[InputError]:
    """What stands in the way of a plan in the store, or with signatures."""
    names = {each.target.file_name for each in planned}
    new = [each.target for each in planned if each.record is None]
    size = sum(each.weight_bytes for each in new)
    checks: list[Callable[[], None]] = [
        lambda: _check_writable(new, store),
        lambda: _check_signer(new, store),
        lambda: check_apart(store, directory),
        lambda: publish.check_others(store, directory, names),
        lambda: store.check_room(size) if size else None,
    ]
    yield from filter(None, map(_refusal, checks))


def _refusal(check: Callable[[], None]) -> InputError | None:
    try:
        check()
    except InputError as error:
        return error
    return None


def _needs(planned: Sequence[Planned], directory: Path) -> tuple[int, list[str]]:
    """How many bytes will be copied into a directory, and what will be shown there, folders with a slash at the end."""
    reused = [each.record for each in planned if each.record]
    size = sum(each.target.weight_bytes for each in planned if each.record is None)
    brought = (all(os.path.lexists(layout.file(directory, one)) for one in each.objects) for each in reused)
    size += sum(each.bytes for each, there in zip(reused, brought, strict=True) if not there)
    return size, [each.target.file_name + "/" * (each.target.component.kind == "vllm") for each in planned]


def _copies(planned: Sequence[Planned], store: Store, directory: Path) -> frozenset[str]:
    """The folders that stand where others are to be shown and are cosyjit's own, copied with all links."""
    folders = {each.target.file_name for each in planned if each.target.component.kind == "vllm"}
    reused = {each.target.file_name: _published(each.target, each.record) for each in planned if each.record}
    return publish.copies(store, directory, folders, reused)


def _ways(planned: Sequence[Planned]) -> dict[str, str]:
    """How what stands in the way of a folder can be left alone: by exporting the other components."""
    parts = dict.fromkeys(each.target.component for each in planned)
    found = {}
    for part in parts:
        others = " ".join(f"--component {each.name}" for each in parts if each != part)
        if part.published and others:
            found[part.published] = f"with {others}, which leaves it alone"
    return found


def _check_writable(targets: Sequence[Target], store: Store) -> None:
    if targets and store.read_only:
        names = ", ".join(each.name for each in targets)
        raise StoreError(f"{store}: is read-only, and {names} would be built into it; name another store")


def _check_signer(targets: Sequence[Target], store: Store) -> None:
    """Make sure that what is going to be built can be signed, if it has to be."""
    if targets and store.trusted and not store.signer:
        raise SignatureError(
            f"{', '.join(each.name for each in targets)}: would be built, and {store.trusted.path} requires a "
            "signature; export where that key is, with --sign"
        )


def conclude(
    outcomes: Sequence[Outcome], store: Store, directory: Path, *, link: bool = False, replace_others: bool = False
) -> list[Outcome]:
    """Publish a set of artifacts if all of it is there; else leave what is published as it is.

    Raises:
        OutputError, StoreError: see `publish.publish`.
    """
    if any(each.record is None for each in outcomes):
        publish.discard(directory)
        return list(outcomes)
    artifacts = {each.target.file_name: _published(each.target, each.record) for each in outcomes if each.record}
    name = outcomes[0].target.source.name
    publish.publish(store, directory, artifacts, name, link=link, replace=replace_others)
    return [replace(each, path=directory / each.target.file_name) for each in outcomes]


def export(
    source: str | Path,
    *,
    components: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    directory: str | Path | None = None,
    store: Store | None = None,
    force: bool = False,
    link: bool = False,
    replace_others: bool = False,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Plan, build what is not in the store, and publish, with as many builds at a time as there are processors.

    The set is published only if all of it is there.

    Args:
        source, components, precisions, store, force: see `plan`.
        directory: where to publish; the model directory for None.
        link: see `publish.publish`.
        replace_others: whether what others have put where a folder is to be published is put aside, and not an error.
        memory: see `make`.
        progress: is told of stages, from several threads.

    Returns:
        What became of each target, in the order of `plan`.

    Raises:
        InputError: the source, the store or the directory is not fit for it; what was published is as it was.
    """
    store = store or Store()
    check_apart(store, source, directory)
    with store.in_use():
        planned = plan(source, components, precisions, store=store, force=force, exporting=True)
        directory = publication_directory(planned, directory)
        with ready(planned, store, directory, replace_others=replace_others):
            outcomes = _make_all(planned, store, directory, link=link, memory=memory, progress=progress)
            return conclude(outcomes, store, directory, link=link, replace_others=replace_others)


def _make_all(
    planned: Sequence[Planned],
    store: Store,
    directory: Path,
    *,
    link: bool,
    memory: int | None,
    progress: Progress | None,
) -> list[Outcome]:
    def submit(each: Planned) -> Pending:
        told = _bound(progress, each.target)
        return pool.submit(make, each, store, directory, link=link, memory=memory, progress=told, scope=scope)

    with ThreadPoolExecutor(workers()) as pool, worker.CancelScope() as scope:
        try:
            return gather(planned, begin(planned, submit))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _bound(progress: Progress | None, target: Target) -> worker.Progress | None:
    return None if progress is None else lambda stage: progress(target, stage)
