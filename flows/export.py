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
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
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
from cosyjit.errors import BuildError, CosyjitError, SelectionError, TransientError, line
from cosyjit.operations.trends import trends
from cosyjit.pipeline import Outcome, Pending
from cosyjit.planning import plan as planning
from cosyjit.planning.plan import Planned, Target
from cosyjit.prefect_api import check_version
from cosyjit.processes import worker
from cosyjit.reports.run_page import failed_page, run_page, run_rows
from cosyjit.reports.tables import counts, summary
from cosyjit.store.store import Store
from cosyjit.text import plain, without_password

_DELAYS: Final = (2, 8)
"""In s, before what may pass is tried again. The clients of the store and the hub have tried several times by then."""

_HAS_DASK: Final = find_spec("prefect_dask") is not None

T = TypeVar("T")


class _Exported(NamedTuple):
    """What became of one source: its outcomes, and a page on them; or why there are none."""

    source: str
    outcomes: Sequence[Outcome] = ()
    page: str = ""
    error: str | None = None

    @property
    def problem(self) -> str | None:
        """Why it is not well, in a line."""
        failed = [each for each in self.outcomes if each.state == "failed"]
        if self.error is None and failed:
            reasons = "; ".join(f"{each.target.name}: {each.error}" for each in failed)
            return f"{len(failed)} of {len(self.outcomes)} targets failed: {reasons}"
        return self.error


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Whether another try of a task may end otherwise."""
    return isinstance(state.result(raise_on_failure=False), TransientError)


class _Work:
    """What a task is given; of no type that Prefect and Dask would search for the results of other tasks."""

    def __init__(self, planned: Planned, store: Store, directory: Path | None) -> None:
        self.planned, self.store, self.directory = planned, store, directory


def build(work: _Work) -> State[Outcome]:
    """See to it that the store has one target's artifact."""
    _listen()
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
            planned, store, directory, memory=memory, progress=lambda stage: _log(logging.INFO, stage), run=run
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
    """Let each error be one of cosyjit's, whose text is a line: Prefect shows it in the log and in the state."""
    try:
        yield
    except CosyjitError:
        raise
    except Exception as error:  # noqa: BLE001  (of torch, for one)
        _log(logging.ERROR, *"".join(traceback.format_exception(error)).splitlines())
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
        retry_condition_fn=_may_pass,
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
        components: What to export, such as llm.text_encoder. By default all but those made on request alone.
        precisions: fp32, fp16, bf16 and, of llm.llm, int8. By default fp32 and fp16, and of llm.vllm bf16.
        publish: The directory to put the zips into. Beside the checkpoint by default.
        force: Build even what has not changed.
        replace: Put a folder that others have written where vllm/ is to be published aside.
    """
    sources = [source] if isinstance(source, str) else source
    worker.reopen()
    _listen()
    try:
        _check(sources, publish)
        store = Store(
            settings.store(), sign=settings.sign(), require=settings.require_signature(), wait=settings.wait()
        )
        planning.check_apart(store, *sources, publish)
        with ExitStack() as held:
            _patiently(lambda: held.enter_context(store.in_use()))
            work = [
                _export(each, components, precisions, publish, store, force=force, replace=replace) for each in sources
            ]
            for each in work:
                held.callback(each.close)  # after an error, what each has brought is removed, once nothing is built
            held.enter_context(worker.stopped_on_error())
            for each in work:
                next(each)  # all of it is under way before any of it is waited for
            exported = [next(each) for each in work]
    except CosyjitError as error:
        return Failed(message=plain(str(error)))
    outcomes = [outcome for each in exported for outcome in each.outcomes]
    _show(exported, outcomes)
    problems = [f"{_before(each, sources)}{each.problem}" for each in exported if each.problem]
    if problems:
        return Failed(message=plain("; ".join(problems)))
    return Completed(message=counts(outcomes), data=outcomes)


def _before(exported: _Exported, sources: Sequence[str]) -> str:
    """What stands before a problem: the source, where there are several and the problem does not begin with it."""
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


def _export(
    source: str,
    components: list[str] | None,
    precisions: list[str] | None,
    publish: str | None,
    store: Store,
    *,
    force: bool,
    replace: bool,
) -> Generator[_Exported, None, None]:
    """Export a source in two steps: the first begins the work, the second waits for it, and publishes."""
    begun = _Exported(source)
    try:
        planned = _patiently(
            lambda: planning.plan(source, components, precisions, store=store, force=force, exporting=True)
        )
        directory = pipeline.publication_directory(planned, publish)
        with pipeline.ready(planned, store, directory, replace_others=replace):
            pending = pipeline.begin(planned, lambda each: _submit(each, store, directory))
            yield begun
            outcomes = pipeline.gather(planned, pending)
            done = _patiently(lambda: pipeline.conclude(outcomes, store, directory, replace_others=replace))
        _log(logging.INFO, source, *summary(done).splitlines())
        yield _Exported(source, done, run_page(source, done, _trends(store, directory)))
    except CosyjitError as error:
        _log(logging.ERROR, str(error))
        failed = _Exported(source, error=str(error))
        yield from (failed, failed)


def _submit(planned: Planned, store: Store, directory: Path) -> Pending:
    elsewhere = settings.dask() is not None
    # The future of a task that returns a state gives what is in the state.
    work = _Work(planned, store, None if elsewhere else directory)
    return cast("Pending", _task(planned.target).submit(work))


def _patiently(call: Callable[[], T], delays: Sequence[int] = _DELAYS) -> T:
    """What a call gives; if it fails with what may pass, after a while and another try."""
    try:
        return call()
    except TransientError as error:
        if not delays:
            raise
        _log(logging.WARNING, f"{error} (tried again in {delays[0]} s)")
    time.sleep(delays[0])
    return _patiently(call, delays[1:])


class _RunHandler(logging.Handler):
    """Lets the log of the run that a thread works for have what cosyjit tells of itself, such as downloads."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(MissingContextError):
            _log(record.levelno, record.getMessage())


def _listen() -> None:
    logger = logging.getLogger("cosyjit")
    # By its name: a worker of Dask's gets another class of it with each run.
    if not any(each.name == _RunHandler.__name__ for each in logger.handlers):
        handler = _RunHandler()
        handler.set_name(_RunHandler.__name__)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _trends(store: Store, directory: Path) -> dict[str, Any]:
    try:
        return dict(trends(store, directory))
    except CosyjitError:  # nothing was published there yet
        return {}


def _show(exported: Sequence[_Exported], outcomes: Sequence[Outcome]) -> None:
    """Leave a table and a page for those who look at the run; a server that does not take them fails nothing."""
    name = exported[0].source if len(exported) == 1 else f"{len(exported)} sources"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-80:]
    page = "\n\n".join(each.page or failed_page(each.source, each.problem or "") for each in exported)
    try:
        create_table_artifact(run_rows(outcomes), key=f"targets-{slug}", description="What became of each target")
        create_markdown_artifact(page, key=f"lineage-{slug}", description="Lineage, and figures by publication")
    except Exception as error:  # noqa: BLE001  (whatever the client raises)
        _log(logging.WARNING, f"no artifacts were left for this run: {line(error)}")
