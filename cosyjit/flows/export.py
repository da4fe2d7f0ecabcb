"""The flow `export`: for each source a task that plans, one for each target, and one that publishes the set.

It only spreads the calls of `cosyjit.pipeline` over tasks. Each build runs in a process of its own, so that one that is
killed fails its own task and no other. What the store has already is shown as Cached.

What plans and publishes runs in the flow's process. The tasks of targets run in its threads or, where COSYJIT_DASK
names a Dask scheduler, on its workers: these share the store with it, and for builds the model directory or the hub.
"""

import copy
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from typing import Annotated, Any, Final, TypeVar, cast, overload

from prefect import Task, allow_failure, flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.assets import Asset, add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.client.schemas.objects import TaskRun
from prefect.events import emit_event
from prefect.exceptions import MissingContextError
from prefect.futures import PrefectFuture, PrefectTaskRunFuture
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field
from rich.filesize import decimal

from cosyjit import pipeline, settings
from cosyjit.building.make import Outcome, make
from cosyjit.errors import BuildError, CosyjitError, SelectionError, TransientError, line, log_cause, trace
from cosyjit.families import FAMILIES, PRECISIONS
from cosyjit.operations.trends import trends
from cosyjit.pipeline import Export
from cosyjit.planning.plan import Planned
from cosyjit.planning.target import Target
from cosyjit.prefect_api import check_version
from cosyjit.processes.worker import CancelScope
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.reports.run_page import failed_page, run_name, run_page, run_rows, short_names
from cosyjit.reports.tables import counts, summary
from cosyjit.selection import ALL
from cosyjit.store.store import Store
from cosyjit.text import log_lines, plain, without_password

_RETRIES: Final = 2
_DELAY: Final = 5
"""How long to wait before each retry, in s. By then, the clients of the store and the hub have retried themselves.

One number for all retries: Prefect's UI shows no list.
"""

_BUILT_EVENT: Final = "cosyjit.artifacts.built"
"""The event of a run that has built something and published it, which automations can go by."""

_HAS_DASK: Final = find_spec("prefect_dask") is not None

T = TypeVar("T")


_COMPONENTS: Final = [*dict.fromkeys(part.name for family in FAMILIES for part in family.components), ALL]
_PRECISIONS: Final = [*PRECISIONS, ALL]


def _choice(names: Sequence[str]) -> Any:
    """What lets Prefect's form offer names, and its server refuse others."""
    return Field(json_schema_extra={"enum": list(names)})


def _text(names: Sequence[str]) -> Any:
    """What lets the form take a text: a pattern, several names with commas between them, or one of the names."""
    return Field(json_schema_extra={"pattern": "|".join([r"[*?\[,]", *(f"^{re.escape(name)}$" for name in names)])})


_Components = (
    Annotated[list[Annotated[str, _choice(_COMPONENTS)]], Field(title="Names")]
    | Annotated[list[Annotated[str, _text(_COMPONENTS)]], Field(title="Patterns")]
    | None
)
_Precisions = (
    Annotated[list[Annotated[str, _choice(_PRECISIONS)]], Field(title="Names")]
    | Annotated[list[Annotated[str, _text(_PRECISIONS)]], Field(title="Patterns")]
    | None
)


class _Outcomes(Sequence[Outcome]):
    """The result of a run; its type is one that Prefect does not search for results of tasks, which takes seconds."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = tuple(outcomes)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Outcome]: ...
    def __getitem__(self, index: int | slice) -> Outcome | Sequence[Outcome]:
        return self._outcomes[index]

    def __len__(self) -> int:
        return len(self._outcomes)


def _is_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Whether a task may succeed if it is tried again."""
    return isinstance(state.result(raise_on_failure=False), TransientError)


_STEP: Final[dict[str, Any]] = {
    "cache_policy": NO_CACHE,
    "retries": _RETRIES,
    "retry_delay_seconds": _DELAY,
    "retry_condition_fn": _is_transient,
}
"""What all tasks of a run have in common."""


class _Ended(PrefectTaskRunFuture[Any]):
    """A task that has ended, for those that come after it; in a state, Prefect would search each field for tasks."""

    def __init__(self, state: State[Any]) -> None:
        super().__init__(cast("Any", state.state_details.task_run_id))
        self._final_state = state

    def wait(self, timeout: float | None = None) -> None:
        pass

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:  # noqa: ARG002
        return self.state.result(raise_on_failure=raise_on_failure)

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        fn(self)


class _Target:
    """A target of a source: planned, and in the end submitted; waits for its outcome, as `Export.begin` asks."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.future: PrefectFuture[Any]

    def result(self) -> Outcome:
        # The future of a task that returns a state gives what is in the state.
        return cast("Outcome", self.future.result())


class _Source:
    """One source of a run, and what became of it.

    It is the argument of tasks; its type is one that Prefect does not search for results of other tasks.

    Attributes:
        source: what is exported.
        label: what tasks are named for it; empty in a run of one source.
        work: its export.
        targets: in the order in which the export begins, once it is planned.
        outcomes: once it is finished.
        page: on these outcomes.
        error: why it is not finished.
    """

    def __init__(self, source: str, label: str, work: Export) -> None:
        self.source, self.label, self.work = source, label, work
        self.targets: list[_Target] = []
        self.outcomes: Sequence[Outcome] = ()
        self.page = ""
        self.error: str | None = None

    @property
    def problem(self) -> str | None:
        """What went wrong, in one line; None if nothing did."""
        failed = [each for each in self.outcomes if each.state == "failed"]
        if self.error is None and failed:
            reasons = "; ".join(f"{each.target.name}: {each.error}" for each in failed)
            return f"{len(failed)} of {len(self.outcomes)} targets failed: {reasons}"
        return self.error

    def add(self, planned: Planned) -> _Target:
        """A target that is to be submitted."""
        self.targets.append(_Target(planned))
        return self.targets[-1]


@task(name="plan", task_run_name="plan{given.label}", **_STEP)
def plan(given: _Source) -> State[None]:
    """Find out what is to be done for a source, and whether that can be done."""
    try:
        planned = given.work.plan()
        given.work.begin(given.add)
    except CosyjitError as error:
        return _failed(error)
    fresh = sum(each.record is not None for each in planned)
    message = f"{planned[0].target.source.pinned}: {len(planned) - fresh} to build, {fresh} cached"
    return Completed(message=plain(message))


@task(name="publish", task_run_name="publish{given.label}", **_STEP)
def publish(given: _Source) -> State[None]:
    """Show what was made of a source, if all of it was."""
    try:
        given.outcomes = given.work.finish()
    except CosyjitError as error:
        return _failed(error)
    if given.problem:
        return Cancelled(name="Skipped", message=plain(given.problem))
    return Completed(message=plain(f"Published in {given.work.directory.path}"))


def _failed(error: CosyjitError) -> State[Any]:
    """The state of a task that ends with an error, which says so in one line."""
    log_cause(error)
    return Failed(message=plain(str(error)), data=error)


class _Work:
    """The argument of a task; its type is one that Prefect and Dask do not search for results of other tasks."""

    def __init__(
        self,
        name: str,
        planned: Planned,
        store: Store,
        directory: PublishedDirectory | None,
        scope: CancelScope | None,
        *,
        build: bool,
    ) -> None:
        self.name, self.planned, self.store, self.directory, self.scope = name, planned, store, directory, scope
        self.build = build


def build(work: _Work) -> State[Outcome]:
    """Make sure that the store has one target's artifact."""
    _forward_logs()
    planned, store, directory = work.planned, work.store, work.directory
    target = planned.target
    memory = settings.memory()  # each machine has its own
    reasons = "; ".join(planned.reasons)
    if reasons:
        _log(logging.INFO, f"{planned.state}: {reasons}")
    if planned.record is None:
        _log(logging.INFO, f"needs {decimal(target.memory_bytes)} of memory")
    run = {"prefect_flow_run": str(runtime.flow_run.id), "prefect_task_run": str(runtime.task_run.id)}
    # On a worker of Dask's the flow's process is another one, which holds the store itself.
    with _explained(), store.in_use(joining=True) if directory is None else nullcontext():
        outcome = make(
            planned,
            store,
            directory,
            memory=memory,
            progress=lambda stage: None if stage == "cached" else _log(logging.INFO, stage),  # its state says so
            run=run,
            scope=work.scope,
            build=work.build,
        )
    if outcome.record and outcome.state == "built":
        figures = {plain(name): value for name, value in outcome.record.figures.items()}
        add_asset_metadata(
            _asset(target), {**figures, "sha256": outcome.record.sha256, "fingerprint": target.fingerprint.key}
        )
    # The store alone knows what is cached; Prefect's own caching would not see an object that is gone.
    name = "Cached" if outcome.state == "cached" else "Completed"
    return Completed(name=name, message=plain(reasons) or planned.state, data=outcome)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn each error into one of cosyjit's, whose text is one line: Prefect shows it in the log and in the state."""
    try:
        yield
    except CosyjitError as error:
        log_cause(error)
        raise
    except Exception as error:  # noqa: BLE001  (of torch, for one)
        _log(logging.ERROR, *trace(error).splitlines())
        raise BuildError(line(error)) from None


def _log(level: int, *lines: str) -> None:
    """Write to the log of the run that this thread works for."""
    get_run_logger().log(level, "%s", "\n".join(map(plain, lines)))


_BUILD: Final = materialize(
    "cosyjit://",
    by="cosyjit",
    name="build",
    task_run_name="{work.name}",
    retry_jitter_factor=0.5,
    **_STEP,
)(build)


def _task(target: Target) -> Task[..., Any]:
    """The task of a target. Prefect tells of the asset that it makes, unless that was cached."""
    made = copy.copy(_BUILD)  # to make another would read and parse the source of this module, for each target
    made.assets = [Asset(key=_asset(target))]
    made.asset_deps = [Asset(key=f"checkpoint://{_path(target.source.name)}")]
    return made


def _asset(target: Target) -> str:
    return f"cosyjit://{_path(target.source.name)}/{target.file_name}"


def _path(name: str) -> str:
    """A source's name as a part of a URI, with the characters that Prefect lets stand there."""
    return re.sub(r"[^\w./@:~+=,-]", "_", name.lstrip("/"), flags=re.ASCII)[-300:]


def _runner() -> TaskRunner[Any]:
    address = settings.dask()
    if address is None or not _HAS_DASK:
        return ThreadPoolTaskRunner(max_workers=pipeline.workers())
    from prefect_dask.task_runners import DaskTaskRunner  # noqa: PLC0415  (an extra)

    return DaskTaskRunner(address=address)


def _run_name() -> str:
    """The name of a run in Prefect."""
    return run_name(_sources(runtime.flow_run.parameters["source"]))


def _sources(source: str | list[str]) -> list[str]:
    return [source] if isinstance(source, str) else source


@flow(name="export", flow_run_name=_run_name, task_runner=_runner())
def export(
    source: str | list[str],
    components: _Components = None,
    precisions: _Precisions = None,
    publish: str | None = None,
    force: bool = False,
    replace: bool = False,
    build: bool = True,
) -> State[Sequence[Outcome]]:
    """Build what has changed of a checkpoint, or of several, and publish it.

    Args:
        source: A model directory; or an id on ModelScope, such as `iic/CosyVoice-300M` or `iic/CosyVoice-300M@v1.0`, or
            on Hugging Face, such as `hf:FunAudioLLM/CosyVoice2-0.5B`; or several.
        components: What to export, such as llm.text_encoder, or a pattern such as llm.*. By default all but those made
            on request alone, such as flow.decoder.estimator or llm.hf; "all" for those as well.
        precisions: fp32, fp16, bf16 and, of llm.llm, int8; of flow.decoder.estimator autocast_fp16 and others. By
            default fp32 and fp16, of llm.vllm and llm.hf bf16, of flow.decoder.estimator fp32. "all" for all, and of
            llm.vllm and llm.hf for their default. Patterns are such as streaming.*.
        publish: The directory to put the zips into. Beside the checkpoint by default.
        force: Build even what has not changed.
        replace: Put a folder that others have written where vllm/ or hf_merged/ is to be published aside.
        build: Build what the store does not have. Otherwise the run fails where it lacks something.
    """
    sources = _sources(source)
    try:
        _forward_logs()
        _check(publish)
        store = Store(
            settings.store(), sign=settings.sign(), require=settings.require_signature(), wait=settings.wait()
        )
        with ExitStack() as held:
            works = _with_retries(
                lambda: held.enter_context(
                    pipeline.exports(
                        sources,
                        components,
                        precisions,
                        publish=publish,
                        store=store,
                        force=force,
                        replace=replace,
                        build=build,
                    )
                )
            )
            labels = [f" {each}" for each in short_names(sources)] if len(sources) > 1 else [""]
            parts = [_Source(*each) for each in zip(sources, labels, works, strict=True)]
            scope = held.enter_context(CancelScope())
            for each in parts:  # all of it is under way before any of it is waited for
                _begin(each, scope)
            for each in parts:
                _finish(each)
    except CosyjitError as error:
        log_cause(error)
        return Failed(message=plain(str(error)))
    outcomes = [outcome for each in parts for outcome in each.outcomes]
    _show(parts, outcomes)
    problems = [f"{_prefix(each, sources)}{each.problem}" for each in parts if each.problem]
    if problems:
        return Failed(message=plain("; ".join(problems)))
    message = counts(outcomes)
    if any(each.state == "built" for each in outcomes):
        _tell_of_what_was_built(message)
    return Completed(message=message, data=_Outcomes(outcomes))


def _prefix(part: _Source, sources: Sequence[str]) -> str:
    """The source and a colon, if there are several sources and the problem does not begin with its own."""
    named = len(sources) == 1 or (part.problem or "").startswith(part.source)
    return "" if named else f"{part.source}: "


def _check(publish: str | None) -> None:
    # As text, which forms may leave empty, it would be the directory of the worker's process, which goes with the run.
    if publish == "":
        raise SelectionError("publish: is empty; name a directory, or give null to publish beside the checkpoint")
    settings.memory()  # what it says is wrong of it is wrong of the whole run
    if settings.dask() and not _HAS_DASK:
        raise SelectionError(
            f"{settings.DASK}={settings.dask()}: needs a package that is missing; install cosyjit[dask]"
        )
    with get_client(sync_client=True) as client:
        check_version(without_password(str(client.api_url)).rstrip("/"), client.api_version())


def _begin(part: _Source, scope: CancelScope) -> None:
    """Plan a source, and start the tasks of its targets."""
    state = plan(part, return_state=True)
    if _succeeded(state, part):
        for each in part.targets:
            each.future = _submit(each.planned, part, scope, _Ended(state))


def _finish(part: _Source) -> None:
    """Wait for the tasks of a source, if they could begin, and publish."""
    if part.error is None:
        futures = [each.future for each in part.targets]
        for each in futures:
            each.wait()
        # What comes after one that crashed, Prefect would not run; what that means for the set, `Export` knows.
        ended = [allow_failure(each) for each in futures if each.state.is_completed() or each.state.is_failed()]
        if _succeeded(publish(part, wait_for=ended, return_state=True), part):
            _log(logging.INFO, part.source, *summary(part.outcomes, cached=not part.label).splitlines())
            part.page = run_page(part.source, part.outcomes, _trends(part))


def _succeeded(state: State[Any], part: _Source) -> bool:
    """Whether a task of a source has not ended with an error, which is kept."""
    if state.is_failed():
        error = state.result(raise_on_failure=False)
        if not isinstance(error, CosyjitError):
            raise error
        part.error = str(error)
    return part.error is None


def _submit(planned: Planned, part: _Source, scope: CancelScope, after: _Ended) -> PrefectFuture[Any]:
    target, work = planned.target, part.work
    name = f"{target.name} {target.fingerprint.key} {'build' if planned.record is None else 'cached'}{part.label}"
    elsewhere = settings.dask() is not None  # where neither the directory nor the scope can be had
    where = (None, None) if elsewhere else (work.directory, scope)
    given = _Work(name, planned, work.store, *where, build=work.build)
    return _task(target).submit(given, wait_for=[after])


def _with_retries(call: Callable[[], T], retries: int = _RETRIES) -> T:
    """The result of a call; after a transient error, it is tried again."""
    try:
        return call()
    except TransientError as error:
        if not retries:
            raise
        log_cause(error)
        _log(logging.WARNING, f"{error} (tried again in {_DELAY} s)")
    time.sleep(_DELAY)
    return _with_retries(call, retries - 1)


class _RunHandler(logging.Handler):
    """Forwards cosyjit's own log, such as of downloads, to the run that a thread works for."""

    def emit(self, record: logging.LogRecord) -> None:
        lines = log_lines(record)
        # Prefect's handler of all logs, which has this one next, escapes nothing.
        record.msg, record.args = "\n".join(lines), None
        with suppress(MissingContextError):
            # Prefect's own level decides on what is below it; COSYJIT_LOG has decided on this.
            _log(max(record.levelno, logging.INFO), *lines)


def _forward_logs() -> None:
    logger = logging.getLogger("cosyjit")
    if not any(isinstance(each, _RunHandler) for each in logger.handlers):
        logger.addHandler(_RunHandler())
    logger.setLevel(logging.DEBUG if settings.debug() else logging.INFO)


def _trends(part: _Source) -> dict[str, Any]:
    records = [each.record for each in part.outcomes if each.record]
    try:
        return dict(trends(part.work.directory, known=records))
    except CosyjitError:  # nothing was published there yet
        return {}


def _tell_of_what_was_built(message: str) -> None:
    """Emit an event of this run, with the labels that Prefect's own events of states have."""
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{runtime.flow_run.id}",
        "prefect.resource.name": str(runtime.flow_run.name),
        "prefect.state-name": "Completed",
        "prefect.state-message": message,
    }
    emit_event(_BUILT_EVENT, resource)


def _show(parts: Sequence[_Source], outcomes: Sequence[Outcome]) -> None:
    """Create a table and a page for the run in the UI; an error of the server here does not fail the run."""
    name = parts[0].source if len(parts) == 1 else f"{len(parts)} sources"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-80:]
    page = "\n\n".join(each.page or failed_page(each.source, each.problem or "") for each in parts)
    try:
        create_table_artifact(run_rows(outcomes), key=f"targets-{slug}", description="What became of each target")
        create_markdown_artifact(page, key=f"lineage-{slug}", description="Lineage, and figures by publication")
    except Exception as error:  # noqa: BLE001  (whatever the client raises)
        _log(logging.WARNING, f"no artifacts were left for this run: {line(error)}")
