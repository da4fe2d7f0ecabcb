"""The flow `export`: one task for each target, and the set published at the end.

It only spreads the calls of `cosyjit.pipeline` over tasks. Each build runs in a process of its own, so that one that is
killed fails its own task and no other. What the store has already is shown as Cached.

Tasks run in threads of the flow's process or, where COSYJIT_DASK names a Dask scheduler, on its workers: these share
the store with it, and for builds the model directory or the hub.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from typing import Any, Final, NamedTuple, TypeVar, cast

from prefect import Task, flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.assets import add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import MissingContextError
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from rich.filesize import decimal

from cosyjit import pipeline, settings
from cosyjit.errors import BuildError, CosyjitError, SelectionError, TransientError, line, log_cause, trace
from cosyjit.operations.trends import trends
from cosyjit.pipeline import Export, Outcome, Pending
from cosyjit.planning.plan import Planned, check_apart
from cosyjit.planning.target import Target
from cosyjit.prefect_api import check_version
from cosyjit.processes.worker import CancelScope
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.reports.run_page import failed_page, run_page, run_rows
from cosyjit.reports.tables import counts, summary
from cosyjit.store.store import Store
from cosyjit.text import log_lines, plain, without_password

_DELAYS: Final = (2, 8)
"""How long to wait before each retry, in s. By then, the clients of the store and the hub have retried themselves."""

_HAS_DASK: Final = find_spec("prefect_dask") is not None

T = TypeVar("T")


class _Exported(NamedTuple):
    """The result of one source: its outcomes and a page on them, or an error."""

    source: str
    outcomes: Sequence[Outcome] = ()
    page: str = ""
    error: str | None = None

    @property
    def problem(self) -> str | None:
        """What went wrong, in one line; None if nothing did."""
        failed = [each for each in self.outcomes if each.state == "failed"]
        if self.error is None and failed:
            reasons = "; ".join(f"{each.target.name}: {each.error}" for each in failed)
            return f"{len(failed)} of {len(self.outcomes)} targets failed: {reasons}"
        return self.error


def _is_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Whether a task may succeed if it is tried again."""
    return isinstance(state.result(raise_on_failure=False), TransientError)


class _Work:
    """The argument of a task; its type is one that Prefect and Dask do not search for results of other tasks."""

    def __init__(
        self, planned: Planned, store: Store, directory: PublishedDirectory | None, scope: CancelScope | None
    ) -> None:
        self.planned, self.store, self.directory, self.scope = planned, store, directory, scope


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
        outcome = pipeline.make(
            planned,
            store,
            directory,
            memory=memory,
            progress=lambda stage: _log(logging.INFO, stage),
            run=run,
            scope=work.scope,
        )
    if outcome.record:
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


def _task(target: Target) -> Task[..., Any]:
    """The task of a target. Prefect tells of the asset that it makes, unless that was cached."""
    return materialize(
        _asset(target),
        by="cosyjit",
        asset_deps=[f"checkpoint://{_path(target.source.name)}"],
        name="build",
        task_run_name=f"{target.name} {target.fingerprint.key}",
        cache_policy=NO_CACHE,
        retries=len(_DELAYS),
        retry_delay_seconds=list(_DELAYS),
        retry_jitter_factor=0.5,
        retry_condition_fn=_is_transient,
    )(build)


def _asset(target: Target) -> str:
    return f"cosyjit://{_path(target.source.name)}/{target.file_name}"


def _path(name: str) -> str:
    """A source's name as a part of a URI, with the characters that Prefect lets stand there."""
    return re.sub(r"[^\w./@:~+=,-]", "_", name.lstrip("/"), flags=re.ASCII)[-300:]


def _runner() -> TaskRunner[Any]:
    address = settings.dask()
    if address is None or not _HAS_DASK:
        return ThreadPoolTaskRunner(max_workers=pipeline.workers())
    import cloudpickle  # noqa: PLC0415  (what they send tasks with)
    from prefect_dask.task_runners import DaskTaskRunner  # noqa: PLC0415  (an extra)

    # Prefect loads this file by its path, under a name that nobody else can import it by.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return DaskTaskRunner(address=address)


@flow(name="export", task_runner=_runner())
def export(
    source: str | list[str],
    components: list[str] | None = None,
    precisions: list[str] | None = None,
    publish: str | None = None,
    force: bool = False,
    replace: bool = False,
) -> State[list[Outcome]]:
    """Build what has changed of a checkpoint, or of several, and publish it.

    Args:
        source: A model directory, or a ModelScope id such as iic/CosyVoice-300M or iic/CosyVoice-300M@v1.0; or several.
        components: What to export, such as llm.text_encoder. By default all but those made on request alone, such as
            flow.decoder.estimator or llm.hf; "all" for those as well.
        precisions: fp32, fp16, bf16 and, of llm.llm, int8; of flow.decoder.estimator autocast_fp16 and others. By
            default fp32 and fp16, of llm.vllm and llm.hf bf16, of flow.decoder.estimator fp32.
        publish: The directory to put the zips into. Beside the checkpoint by default.
        force: Build even what has not changed.
        replace: Put a folder that others have written where vllm/ or hf_merged/ is to be published aside.
    """
    sources = [source] if isinstance(source, str) else source
    try:
        _forward_logs()
        _check(sources, publish)
        store = Store(
            settings.store(), sign=settings.sign(), require=settings.require_signature(), wait=settings.wait()
        )
        check_apart(store, *sources, publish)
        with ExitStack() as held:
            _with_retries(lambda: held.enter_context(store.in_use()))
            exports = [
                Export(each, components, precisions, publish=publish, store=store, force=force, replace=replace)
                for each in sources
            ]
            for each in exports:
                held.enter_context(each)  # after an error, what it has staged is removed, once nothing is built
            scope = held.enter_context(CancelScope())
            errors = [_begin(each, scope) for each in exports]  # all of it is under way before any of it is waited for
            exported = list(map(_finish, sources, exports, errors))
    except CosyjitError as error:
        log_cause(error)
        return Failed(message=plain(str(error)))
    outcomes = [outcome for each in exported for outcome in each.outcomes]
    _show(exported, outcomes)
    problems = [f"{_prefix(each, sources)}{each.problem}" for each in exported if each.problem]
    if problems:
        return Failed(message=plain("; ".join(problems)))
    return Completed(message=counts(outcomes), data=outcomes)


def _prefix(exported: _Exported, sources: Sequence[str]) -> str:
    """The source and a colon, if there are several sources and the problem does not begin with its own."""
    named = len(sources) == 1 or (exported.problem or "").startswith(exported.source)
    return "" if named else f"{exported.source}: "


def _check(sources: Sequence[str], publish: str | None) -> None:
    if not sources:
        raise SelectionError("no source is given; name a model directory or a ModelScope id")
    if publish is not None and len(sources) > 1:
        raise SelectionError(f"{publish}: is one directory for {len(sources)} sources; publish them one by one")
    settings.memory()  # what it says is wrong of it is wrong of the whole run
    if settings.dask() and not _HAS_DASK:
        raise SelectionError(
            f"{settings.DASK}={settings.dask()}: needs a package that is missing; install cosyjit[dask]"
        )
    with get_client(sync_client=True) as client:
        check_version(without_password(str(client.api_url)).rstrip("/"), client.api_version())


def _begin(work: Export, scope: CancelScope) -> str | None:
    """Plan an export and start its tasks; why that cannot be done, if it cannot."""
    try:
        _with_retries(work.plan)
        work.begin(lambda each: _submit(each, work, scope))
    except CosyjitError as error:
        log_cause(error)
        return str(error)
    return None


def _finish(source: str, work: Export, error: str | None) -> _Exported:
    """Wait for the tasks of an export, and publish, unless it could not begin."""
    if error is None:
        try:
            outcomes = _with_retries(work.finish)
        except CosyjitError as problem:
            log_cause(problem)
            error = str(problem)
        else:
            _log(logging.INFO, source, *summary(outcomes).splitlines())
            return _Exported(source, outcomes, run_page(source, outcomes, _trends(work.directory)))
    _log(logging.ERROR, error)
    return _Exported(source, error=error)


def _submit(planned: Planned, work: Export, scope: CancelScope) -> Pending:
    elsewhere = settings.dask() is not None  # where neither the directory nor the scope can be had
    # The future of a task that returns a state gives what is in the state.
    given = _Work(planned, work.store, *((None, None) if elsewhere else (work.directory, scope)))
    return cast("Pending", _task(planned.target).submit(given))


def _with_retries(call: Callable[[], T], delays: Sequence[int] = _DELAYS) -> T:
    """The result of a call; after a transient error, it is tried again."""
    try:
        return call()
    except TransientError as error:
        if not delays:
            raise
        log_cause(error)
        _log(logging.WARNING, f"{error} (tried again in {delays[0]} s)")
    time.sleep(delays[0])
    return _with_retries(call, delays[1:])


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
    # By its name: a worker of Dask's gets another class of it with each run.
    if not any(each.name == _RunHandler.__name__ for each in logger.handlers):
        handler = _RunHandler()
        handler.set_name(_RunHandler.__name__)
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if settings.debug() else logging.INFO)


def _trends(directory: PublishedDirectory) -> dict[str, Any]:
    try:
        return dict(trends(directory))
    except CosyjitError:  # nothing was published there yet
        return {}


def _show(exported: Sequence[_Exported], outcomes: Sequence[Outcome]) -> None:
    """Create a table and a page for the run in the UI; an error of the server here does not fail the run."""
    name = exported[0].source if len(exported) == 1 else f"{len(exported)} sources"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-80:]
    page = "\n\n".join(each.page or failed_page(each.source, each.problem or "") for each in exported)
    try:
        create_table_artifact(run_rows(outcomes), key=f"targets-{slug}", description="What became of each target")
        create_markdown_artifact(page, key=f"lineage-{slug}", description="Lineage, and figures by publication")
    except Exception as error:  # noqa: BLE001  (whatever the client raises)
        _log(logging.WARNING, f"no artifacts were left for this run: {line(error)}")
