"""The flow `export`: one task for each target, and the set published at the end.

It only spreads the calls of `cosyjit.pipeline` over tasks. Each build runs in a process of its own, so that one that is
killed fails its own task and no other. What the store has already is shown as Cached.
"""

from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from cosyjit import pipeline, planning, report, settings, worker
from cosyjit.errors import CosyjitError
from cosyjit.pipeline import Outcome, Pending
from cosyjit.planning import Planned
from cosyjit.store import Store


@task(name="build", task_run_name="{planned.target.name} {planned.target.fingerprint.key}", cache_policy=NO_CACHE)
def build(planned: Planned, store: Store, directory: Path) -> State[Outcome]:
    """See to it that the store has one target's artifact."""
    logger = get_run_logger()
    if planned.reasons:
        logger.info("%s: %s", planned.state, "; ".join(planned.reasons))
    run = {"prefect_flow_run": str(runtime.flow_run.id), "prefect_task_run": str(runtime.task_run.id)}
    outcome = pipeline.make(planned, store, directory, progress=logger.info, run=run)
    # The store alone knows what is cached; Prefect's own caching would not see an object that is gone.
    name = "Cached" if outcome.state == "cached" else "Completed"
    return Completed(name=name, message="; ".join(planned.reasons) or planned.state, data=outcome)


@flow(name="export", task_runner=ThreadPoolTaskRunner(max_workers=pipeline.workers()))  # type: ignore[arg-type]
def export(
    source: str,
    components: list[str] | None = None,
    precisions: list[str] | None = None,
    publish: str | None = None,
    force: bool = False,
) -> State[list[Outcome]]:
    """Build what has changed of a model directory, and publish it.

    Args:
        source: A model directory.
        components: What to export, such as llm.text_encoder. All components by default.
        precisions: fp32, fp16, bf16 and, of llm.llm, int8. By default fp32 and fp16.
        publish: Where to put the zips. Beside the checkpoint by default.
        force: Build even what has not changed.
    """
    try:
        outcomes = _export(source, components, precisions, publish, force=force)
    except CosyjitError as error:
        return Failed(message=str(error))
    get_run_logger().info("%s\n%s", source, report.summary(outcomes))
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        reasons = "; ".join(f"{outcome.target.name}: {outcome.error}" for outcome in failed)
        return Failed(message=f"{len(failed)} of {len(outcomes)} targets failed: {reasons}")
    return Completed(message=report.counts(outcomes), data=outcomes)


def _export(
    source: str, components: list[str] | None, precisions: list[str] | None, publish: str | None, *, force: bool
) -> list[Outcome]:
    store = Store(settings.store())
    worker.reopen()
    with store.in_use():
        planned = planning.plan(source, components, precisions, store=store, force=force, exporting=True)
        directory = pipeline.publication_directory(planned, publish)
        with pipeline.ready(planned, store, directory):
            with worker.stopped_on_error():
                outcomes = pipeline.gather(planned, lambda each: _submit(each, store, directory))
            return pipeline.conclude(outcomes, store, directory)


def _submit(planned: Planned, store: Store, directory: Path) -> Pending:
    # Quoted, it is not searched for results of other tasks, with which it shares what it was planned from.
    quoted: Any = quote(planned)
    # The future of a task that returns a state gives what is in the state.
    return cast("Pending", build.submit(quoted, store, directory))
