"""The export: plan, build what the store does not have, store, publish.

Whatever needs torch runs in processes of its own (`cosyjit.processes.worker`); the caller's does not import it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, Protocol

from cosyjit.building.build import build
from cosyjit.building.packages import check_packages
from cosyjit.documents import now
from cosyjit.errors import InputError, OutputError, ResourceError, SignatureError, StoreError, line, log_cause
from cosyjit.fs.waits import Wait
from cosyjit.planning.plan import Planned, check_apart, compare_one, localize, plan, remember
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.processes.interrupts import note_changes
from cosyjit.processes.memory import reservations_directory, reserved
from cosyjit.processes.processors import processors
from cosyjit.processes.slots import Slots
from cosyjit.provenance import graphs, record
from cosyjit.provenance.record import Material, Record
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.plans import OutdatedPlan
from cosyjit.publishing.publication import Published
from cosyjit.store.store import Store
from cosyjit.torchscript.graph import Graph

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
"""Is told each target and the name of the stage that it enters: waiting; load, script, save, verify, built; or cached.

All targets wait before the first of them is worked on. Where numbers become 0 in a cast, "cast: …" says how many; and
where a target fails, "failed: …" why."""


def make(
    planned: Planned,
    store: Store,
    directory: PublishedDirectory | None,
    *,
    link: bool = False,
    memory: int | None = None,
    progress: worker.Progress | None = None,
    run: Mapping[str, str] | None = None,
    scope: worker.CancelScope | None = None,
) -> Outcome:
    """Make sure that the store has a target's artifact, and stage it where it will be published.

    Args:
        planned: from `plan`, perhaps on another machine.
        store: entered with `Store.in_use`.
        directory: where it will be published; None if that is another machine's, which stages it when it publishes.
        link: see `PublishedDirectory.publish`.
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
        with _SLOTS.taken(scope), store.build_lock(target.fingerprint.key, waiting=scope.check):
            if "forced" not in planned.reasons:
                found = compare_one(store, target, exporting=True).record  # another may have built it meanwhile
            state: Literal["built", "cached"] = "cached" if found else "built"
            if found is None:
                _check_signer([target], store)
                wait = Wait("memory", store.wait, scope.check)
                with reserved(reservations_directory(), target.memory_bytes, memory, wait=wait):
                    graph = None if "forced" in planned.reasons else graphs.load(store, target.fingerprint)
                    found = _make(localize(target, store), store, graph, progress, run or {}, scope)
    else:
        state = "cached"
    if state == "cached" and progress is not None:
        progress("cached")
    remember(store, target)
    try:
        if directory is None:
            with Path(os.devnull).open("wb") as nowhere:  # to check it: the publishing machine must find it intact
                for digest in found.objects:
                    store.fetch(digest, nowhere)
        else:
            directory.stage(_published(target, found), link=link)
    except StoreError:
        if state == "built" or store.check_all_or_set_aside(found.objects) == "intact":
            raise
        # The object was intact when it was planned, and is not now: build it.
        again = Planned(target, "stale", ("object missing or damaged",))
        return make(again, store, directory, link=link, memory=memory, progress=progress, run=run, scope=scope)
    return Outcome(target, state, planned.reasons, found, time.perf_counter() - begun)


def _make(
    target: Target,
    store: Store,
    graph: Graph | None,
    progress: worker.Progress | None,
    run: Mapping[str, str],
    scope: worker.CancelScope,
) -> Record:
    """Build a target, and put it, its record and its graph into a store."""
    started = now()
    with ThreadPoolExecutor(1) as pool, store.staging() as work:
        materials = pool.submit(_materials, target, store)
        artifact = build(target, work, progress, scope, graph)
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
                "bytes": artifact.size,
                "weight_bytes": target.weight_bytes,
                "seconds": round(artifact.seconds, 3),
                **artifact.figures,
            },
            run=run,
        )
        for path, digest in artifact.objects.items():
            store.add(path, digest)
        saved = record.save(store, made)
        if artifact.graph is not None:
            graphs.save(store, target.fingerprint, artifact.graph)
        return saved


def _materials(target: Target, store: Store) -> tuple[Material, ...]:
    source, weights = target.source, target.weights_file.name
    digest = store.digests.sha256(source.file(weights))
    target.check_unchanged()
    configs = (Material(name, source.uri(name), each) for name, each in target.configs.items())
    return *configs, Material(weights, source.uri(weights), digest, str(target.reading))


def _published(target: Target, made: Record) -> Published:
    return Published(made.sha256, made.size, target.fingerprint.key, made.files)


def workers() -> int:
    """How many targets to work on at a time: while some are built, others are copied."""
    return 2 * processors()


class Pending(Protocol):
    """Work under way, such as a `concurrent.futures.Future`."""

    def result(self) -> Outcome:
        """Wait for the outcome, or raise what the work raised."""


class Export:
    """One export of one source, in three steps: `plan`, `begin`, `finish`.

    A context manager within which all three are called, once and in this order, and within `Store.in_use` of its
    store. If it is left before the set is published, what was staged is removed.

    Attributes:
        store: where the artifacts are kept.
        planned: what is to be done, once it is planned.
        directory: where the set is published, once that is known.
    """

    planned: tuple[Planned, ...] = ()
    directory: PublishedDirectory

    def __init__(
        self,
        source: str | Path,
        components: Sequence[str] | None = None,
        precisions: Sequence[str] | None = None,
        *,
        publish: str | Path | None = None,
        store: Store,
        force: bool = False,
        link: bool = False,
        replace: bool = False,
    ) -> None:
        """Prepare an export; nothing is read or written.

        Args:
            source, components, precisions, publish, store, force, link, replace: see `export`.
        """
        self.store: Final = store
        self._wanted: Final = source, components, precisions
        self._publish, self._force, self._link, self._replace = publish, force, link, replace
        self._pending: dict[Target, Pending] = {}
        self._outcomes: list[Outcome] = []
        self._staging = False

    def __enter__(self) -> "Export":  # noqa: PYI034  (typing has no Self on Python 3.10)
        return self

    def __exit__(self, *_: object) -> None:
        if self._staging:
            with suppress(OutputError):
                self.directory.discard_staged()

    def plan(self) -> tuple[Planned, ...]:
        """Find out what is to be done.

        Raises:
            InputError: see `export`.
        """
        source, components, precisions = self._wanted
        self.planned = plan(source, components, precisions, store=self.store, force=self._force, exporting=True)
        self.directory = publication_directory(self.planned, self._publish, self.store)
        return self.planned

    def begin(self, submit: Callable[[Planned], Pending]) -> None:
        """See that the results will fit, and start the work on each target.

        The largest of each component come first, so that what its network gives is known when others are verified.

        Args:
            submit: starts `make` for a target, and gives what waits for it.

        Raises:
            SelectionError: something is to be built, and a package for it is missing.
            SignatureError: something is to be built, and there is no key for the signature that the store requires; or
                something else that the directory shows does not have one.
            StoreError: the store has no room for what is to be built.
            OutputError: the directory cannot be written to, has no room for that, or has something else in its place.
            RuntimeError: it is not planned, or has begun already.
        """
        if not self.planned or self._pending:
            raise RuntimeError("an export begins once, after it is planned")
        for error in _obstacles(self.planned, self.directory, replace=self._replace, exporting=True):
            raise error
        note_changes("what was published is as it was, and what was built is kept; run it again, and it goes on")
        self.directory.prepare()
        self._staging = True
        by_size = sorted(self.planned, key=lambda each: -each.target.weight_bytes)
        largest = {each.target.component: each for each in reversed(by_size)}
        ordered = sorted(by_size, key=lambda each: largest[each.target.component] is not each)
        self._pending = {each.target: submit(each) for each in ordered}

    def finish(self) -> list[Outcome]:
        """Wait for the work on all targets, whichever fail, and publish the set if all of it is there.

        It may be called again after an error of publishing that passes.

        Returns:
            What became of each target, in the order of the plan.

        Raises:
            OutputError, StoreError: see `PublishedDirectory.publish`.
            RuntimeError: it has not begun.
        """
        if not self._pending:
            raise RuntimeError("an export is finished after it has begun")
        self._outcomes = self._outcomes or [_outcome(each.target, self._pending[each.target]) for each in self.planned]
        if any(each.record is None for each in self._outcomes):
            self.directory.discard_staged()
        else:
            self._outcomes = self._published(self._outcomes)
        self._staging = False
        return self._outcomes

    def _published(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        artifacts = {each.target.file_name: _published(each.target, each.record) for each in outcomes if each.record}
        source = outcomes[0].target.source.name
        self.directory.publish(artifacts, source, link=self._link, replace=self._replace)
        return [replace(each, path=self.directory.path / each.target.file_name) for each in outcomes]


def _outcome(target: Target, pending: Pending) -> Outcome:
    try:
        return pending.result()
    except ResourceError:  # which does not concern one target alone
        raise
    except Exception as error:  # noqa: BLE001  (one target's failure is not the others')
        log_cause(error)
        return Outcome(target, "failed", error=line(error))


def publication_directory(planned: Sequence[Planned], publish: str | Path | None, store: Store) -> PublishedDirectory:
    """Where a plan is published: in the directory given, or the home of the source: for a model directory, itself."""
    return PublishedDirectory(planned[0].target.source.home if publish is None else publish, store)


def obstacles(
    planned: Sequence[Planned],
    *,
    publish: str | Path | None = None,
    store: Store | None = None,
    replace: bool = False,
) -> tuple[InputError, ...]:
    """The errors that `export` would end with for a plan, such as a folder of others in the place of its own.

    Nothing is written, so errors that only a write can cause, such as a read-only directory, are not found.

    Args:
        planned: from `plan`.
        publish, store, replace: see `export`.

    Returns:
        The errors; `export` would raise the first one. None of an empty plan.
    """
    if not planned:
        return ()
    return tuple(_obstacles(planned, publication_directory(planned, publish, store or Store()), replace=replace))


def outdated_plans(
    planned: Sequence[Planned], *, publish: str | Path | None = None, store: Store | None = None
) -> tuple[OutdatedPlan, ...]:
    """The TensorRT plans that `export` would put aside, since it changes the files that runtimes made them from.

    What is built anew is taken to differ from what is published, unless it has the same fingerprint. Nothing is
    written, and the names under which plans would be kept are those that are free now.

    Args:
        planned: from `plan`.
        publish, store: see `export`.

    Returns:
        The plans; none where `obstacles` has a reason why they cannot be told.
    """
    if not planned:
        return ()
    with suppress(InputError):
        return _outdated_plans(planned, publication_directory(planned, publish, store or Store()))
    return ()


def _outdated_plans(planned: Sequence[Planned], directory: PublishedDirectory) -> tuple[OutdatedPlan, ...]:
    live = directory.live()
    shown = {each.fingerprint: each.sha256 for each in live.artifacts.values()} if live else {}
    artifacts = {
        each.target.file_name: each.record.sha256 if each.record else shown.get(each.target.fingerprint.key)
        for each in planned
    }
    return tuple(directory.outdated_plans(live, artifacts))


def _obstacles(
    planned: Sequence[Planned], directory: PublishedDirectory, *, replace: bool, exporting: bool = False
) -> Iterator[InputError]:
    """What is in the way of a plan: in the installation, in the store, with signatures, and then in the directory."""
    store = directory.store
    names = [each.target.file_name for each in planned]
    new = [each.target for each in planned if each.record is None]
    reused = {each.target: each.record for each in planned if each.record}
    size = sum(each.weight_bytes for each in new)
    kinds = {each.component.kind: each for each in reversed(new)}
    checks: list[Callable[[], None]] = [
        *(partial(check_packages, each) for each in kinds.values()),
        lambda: _check_writable(new, store),
        lambda: _check_signer(new, store),
        lambda: check_apart(store, directory.path),
        lambda: directory.check_kept(names, exporting=exporting),
        lambda: store.check_room(size) if size else None,
    ]
    yield from filter(None, map(_refusal, checks))
    copied = size + sum(each.size for each in reused.values() if not directory.is_staged(each))
    folders = {each.target.file_name for each in planned if each.target.component.is_folder}
    own = directory.copies(folders, {target.file_name: _published(target, each) for target, each in reused.items()})
    marked = [f"{name}/" if name in folders else name for name in names]
    yield from directory.obstacles(copied, marked, replace=replace, own=own, hints=_hints(planned))
    try:
        _outdated_plans(planned, directory)
    except OutputError as error:
        yield error
    except StoreError:  # which was said of what the directory shows
        pass


def _refusal(check: Callable[[], None]) -> InputError | None:
    try:
        check()
    except InputError as error:
        return error
    return None


def _hints(planned: Sequence[Planned]) -> dict[str, str]:
    """By the name of a folder, the options of an export that leaves alone what is in its place."""
    parts = dict.fromkeys(each.target.component for each in planned)
    hints = {}
    for part in parts:
        others = " ".join(f"--component {each.name}" for each in parts if each != part)
        if part.published and others:
            hints[part.published] = f"with {others}, which leaves it alone"
    return hints


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


def export(
    source: str | Path,
    components: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    *,
    publish: str | Path | None = None,
    store: Store | None = None,
    force: bool = False,
    link: bool = False,
    replace: bool = False,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Plan, build what is not in the store, and publish, with as many builds at a time as there are processors.

    The set is published only if all of it is there.

    Args:
        source, components, precisions, store, force: see `plan`.
        publish: the directory to publish into; the model directory for None.
        link: see `PublishedDirectory.publish`.
        replace: whether what others have put where a folder is to be published is put aside, and not an error.
        memory: see `make`.
        progress: is told of stages, from several threads.

    Returns:
        What became of each target, in the order of `plan`.

    Raises:
        InputError: the source, the store or the directory is not fit for it; what was published is as it was.
    """
    store = store or Store()
    check_apart(store, source, publish)
    work = Export(source, components, precisions, publish=publish, store=store, force=force, link=link, replace=replace)
    with store.in_use(), work:
        for each in work.plan():
            _bound(progress, each.target)("waiting")
        with ThreadPoolExecutor(workers()) as pool, worker.CancelScope() as scope:

            def made(each: Planned) -> Outcome:
                tell, directory = _bound(progress, each.target), work.directory
                try:
                    return make(each, store, directory, link=link, memory=memory, progress=tell, scope=scope)
                except Exception as error:
                    tell(f"failed: {line(error)}")
                    raise

            def submit(each: Planned) -> Pending:
                return pool.submit(made, each)

            try:
                work.begin(submit)
                return work.finish()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _bound(progress: Progress | None, target: Target) -> worker.Progress:
    return (lambda _: None) if progress is None else partial(progress, target)
