"""The export: plan, build what the store does not have, store, publish.

Whatever needs torch runs in processes of its own (`cosyjit.processes.worker`); the caller's does not import it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from cosyjit import telemetry
from cosyjit.building.make import Outcome, labels, make, not_built_error
from cosyjit.building.preflight import obstacles_in, publication_directory, published
from cosyjit.errors import CosyjitError, OutputError, ResourceError, SelectionError, line, log_cause
from cosyjit.planning.plan import Planned, check_apart, plan
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.processes.interrupts import note_changes
from cosyjit.processes.processors import processors
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import Store

Progress = Callable[[Target, str], None]
"""Is told each target and the name of the stage that it enters: waiting; load, script, save, verify, built; or cached.

All targets wait before the first is worked on. "cast: …" says how many numbers become 0, and "failed: …" why it did."""


def workers() -> int:
    """How many targets to work on at a time: while some are built, others are copied."""
    return 2 * processors()


class Pending(Protocol):
    """Work under way, such as a `concurrent.futures.Future`."""

    def result(self) -> Outcome:
        """Wait for the outcome, or raise what the work raised."""


class _Known:
    """What waits for nothing: an outcome that is known at once."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def result(self) -> Outcome:
        return self._outcome


class Export:
    """One export of one source, in three steps: `plan`, `begin`, `finish`.

    A context manager within which all three are called, once and in this order, and within `Store.in_use` of its
    store. If it is left before the set is published, what was staged is removed.

    Attributes:
        store: where the artifacts are kept.
        build: whether what the store does not have may be built.
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
        build: bool = True,
    ) -> None:
        """Prepare an export; nothing is read or written.

        Args:
            source, components, precisions, publish, store, force, link, replace, build: see `export`.

        Raises:
            SelectionError: all is to be built, and nothing is.
        """
        if force and not build:
            raise SelectionError("--force --no-build: one builds all, and the other nothing; give one of them")
        self.store: Final = store
        self.build: Final = build
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
        with telemetry.Stage("plan"):
            self.planned = plan(
                source,
                components,
                precisions,
                store=self.store,
                force=self._force,
                exporting=True,
                build=self.build,
            )
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
        if not self.build and any(each.record is None for each in self.planned):
            self._pending = {each.target: _Known(self._unpublished(each)) for each in self.planned}
            return
        with telemetry.Stage("begin"):
            for error in obstacles_in(self.planned, self.directory, replace=self._replace, exporting=True):
                raise error
            note_changes("what was published is as it was, and what was built is kept; run it again, and it goes on")
            self.directory.prepare()
        self._staging = True
        by_size = sorted(self.planned, key=lambda each: -each.target.weight_bytes)
        largest = {each.target.component: each for each in reversed(by_size)}
        ordered = sorted(by_size, key=lambda each: largest[each.target.component] is not each)
        self._pending = {each.target: submit(each) for each in ordered}

    def _unpublished(self, planned: Planned) -> Outcome:
        """What becomes of a target where others are missing and not to be built, or where it is itself."""
        if planned.record is not None:
            return Outcome(planned.target, "cached", planned.reasons, planned.record)
        error = line(not_built_error(planned, self.store))
        return Outcome(planned.target, "failed", planned.reasons, error=error)

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
            if self._staging:
                self.directory.discard_staged()
        else:
            self._outcomes = self._published(self._outcomes)
        self._staging = False
        return self._outcomes

    def _published(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        artifacts = {each.target.file_name: published(each.target, each.record) for each in outcomes if each.record}
        source = outcomes[0].target.source.name
        with telemetry.Stage("publish"):
            self.directory.publish(artifacts, source, link=self._link, replace=self._replace)
        return [replace(each, path=self.directory.path / each.target.file_name) for each in outcomes]


def _outcome(target: Target, pending: Pending) -> Outcome:
    try:
        outcome = pending.result()
    except Exception as error:
        telemetry.count({**labels(target), "state": "failed"}, error)
        if isinstance(error, ResourceError):  # which does not concern one target alone
            raise
        log_cause(error)
        return Outcome(target, "failed", error=line(error))
    figures = outcome.record.figures if outcome.record and outcome.state == "built" else None
    telemetry.count({**labels(target), "state": outcome.state}, figures=figures)
    return outcome


def check_sources(sources: Sequence[str | Path], publish: str | Path | None = None) -> None:
    """Check that sources can be exported together.

    Raises:
        SelectionError: there is none, one of them is empty or is given twice, or several would share one directory.
    """
    if not sources or not all(map(str, sources)):
        raise SelectionError("no source is given; name a model directory or the id of a model on a hub")
    if publish is not None and len(sources) > 1:
        raise SelectionError(f"{publish}: is one directory for {len(sources)} sources; publish them one by one")
    known: dict[str, str | Path] = {}
    for source in sources:
        key = str(source)
        with suppress(ValueError):  # a NUL in it, which is told of where it is opened
            path = os.path.realpath(os.path.expanduser(source))  # noqa: PTH111  (which raises nothing else)
            key = path if os.path.isdir(path) else key  # noqa: PTH112  (as above)
        if key in known:
            also = "" if known[key] == source else f", also as {known[key]}"
            raise SelectionError(f"{source}: is given twice{also}; name it once")
        known[key] = source


@contextmanager
def exports(
    sources: Sequence[str | Path],
    components: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    *,
    publish: str | Path | None = None,
    store: Store,
    force: bool = False,
    link: bool = False,
    replace: bool = False,
    build: bool = True,
) -> Iterator[list[Export]]:
    """The exports of several sources, within `Store.in_use`: all of them begin before any is finished.

    Args:
        sources: each as for `export`, as all other arguments are.

    Raises:
        SelectionError: see `check_sources`.
        StoreError: the store cannot be used, or would be mixed with a source or with what is published.
    """
    check_sources(sources, publish)
    check_apart(store, *sources, publish)
    with ExitStack() as held:
        works = [
            Export(
                source,
                components,
                precisions,
                publish=publish,
                store=store,
                force=force,
                link=link,
                replace=replace,
                build=build,
            )
            for source in sources
        ]
        held.enter_context(store.in_use())
        for work in works:
            held.enter_context(work)  # after an error, what it has staged is removed, once nothing is built
        yield works


class Exported(NamedTuple):
    """What became of one of several sources.

    Attributes:
        source: as it was given.
        outcomes: what became of each target, in the order of `plan`; none after an error.
        error: why it could not be exported; None if it could.
    """

    source: str | Path
    outcomes: tuple[Outcome, ...]
    error: CosyjitError | None = None


def export_each(
    sources: Sequence[str | Path],
    components: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    *,
    publish: str | Path | None = None,
    store: Store | None = None,
    force: bool = False,
    link: bool = False,
    replace: bool = False,
    build: bool = True,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[Exported]:
    """Export several sources at a time; an error of one of them does not stop the others.

    Args:
        sources: each as for `export`, as all other arguments are.

    Returns:
        What became of each source.

    Raises:
        SelectionError: there is no source, one is given twice, or several would be published into one directory.
        StoreError: the store cannot be used.
    """
    with ExitStack() as held:
        names = [*map(str, sources)]
        span = held.enter_context(telemetry.Span("export", {"source": names[0] if len(names) == 1 else names}))
        works = held.enter_context(
            exports(
                sources,
                components,
                precisions,
                publish=publish,
                store=store or Store(),
                force=force,
                link=link,
                replace=replace,
                build=build,
            )
        )
        pool = held.enter_context(ThreadPoolExecutor(workers()))
        parts = [_Part(work, held.enter_context(worker.CancelScope())) for work in works]

        def made(part: _Part, each: Planned) -> Outcome:
            tell, store, directory = _bound(progress, each.target), part.work.store, part.work.directory
            try:
                return make(
                    each, store, directory, link=link, memory=memory, progress=tell, scope=part.scope, build=build
                )
            except Exception as error:
                tell(f"failed: {line(error)}")
                raise

        def submit(part: _Part, each: Planned) -> Pending:
            context = copy_context()  # so that its spans are below those of this thread
            return pool.submit(lambda: context.run(made, part, each))

        try:
            for part in parts:
                part.attempt(part.begin, submit, progress)
            for part in parts:
                part.attempt(part.finish)
                span.fail(part.error)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [Exported(source, tuple(part.outcomes), part.error) for source, part in zip(sources, parts, strict=True)]


class _Part:
    """The export of one of several sources, and what became of it."""

    def __init__(self, work: Export, scope: worker.CancelScope) -> None:
        self.work, self.scope = work, scope
        self.outcomes: Sequence[Outcome] = ()
        self.error: CosyjitError | None = None

    def begin(self, submit: "Callable[[_Part, Planned], Pending]", progress: Progress | None) -> None:
        for each in self.work.plan():
            _bound(progress, each.target)("waiting")
        self.work.begin(partial(submit, self))

    def finish(self) -> None:
        self.outcomes = self.work.finish()

    def attempt(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step, unless one before it has failed; if it fails, nothing more is built for this source."""
        if self.error is not None:
            return
        try:
            step(*arguments)
        except CosyjitError as error:
            self.error = error
            self.scope.cancel()


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
    build: bool = True,
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
        build: whether what the store does not have is built. Otherwise that has failed, nothing is published, no
            process is started, and torch is not imported.
        memory: see `make`.
        progress: is told of stages, from several threads.

    Returns:
        What became of each target, in the order of `plan`.

    Raises:
        InputError: the source, the store or the directory is not fit for it; what was published is as it was.
    """
    (exported,) = export_each(
        [source],
        components,
        precisions,
        publish=publish,
        store=store,
        force=force,
        link=link,
        replace=replace,
        build=build,
        memory=memory,
        progress=progress,
    )
    if exported.error is not None:
        raise exported.error
    return list(exported.outcomes)


def _bound(progress: Progress | None, target: Target) -> worker.Progress:
    return (lambda _: None) if progress is None else partial(progress, target)
