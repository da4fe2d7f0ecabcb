"""The flow `export`: one task for each target, and the set published at the end.

It only spreads the calls of `cosyjit.pipeline` over tasks. Each build runs in a process of its own, so that one that is
killed fails its own task and no other.
"""

from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from cosyjit import pipeline, report, worker
from cosyjit.errors import InputError
from cosyjit.pipeline import Artifact, Outcome, Target
from cosyjit.publish import staging


@task(name="build", task_run_name="{target.name}", cache_policy=NO_CACHE)
def build(target: Target, directory: Path) -> Artifact:
    """Build one target into a directory."""
    logger = get_run_logger()
    return pipeline.build(target, directory, progress=logger.info)


@flow(name="export", task_runner=ThreadPoolTaskRunner(max_workers=worker.processors()))  # type: ignore[arg-type]
def export(
    source: str,
    components: list[str] | None = None,
    precisions: list[str] | None = None,
    publish: str | None = None,
    force: bool = False,  # noqa: ARG001  (a parameter of the deployment)
) -> State[list[Outcome]]:
    """Build the zips of a model directory and publish them.

    Args:
        source: A model directory.
        components: What to export, such as llm.text_encoder. All components by default.
        precisions: fp32, fp16, bf16. By default fp32 and fp16.
        publish: Where to put the zips. Beside the checkpoint by default.
        force: Build even what is unchanged. So far every run builds everything.
    """
    try:
        outcomes = _export(source, components, precisions, publish)
    except InputError as error:
        return Failed(message=str(error))
    get_run_logger().info("%s\n%s", source, report.summary(outcomes))
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        reasons = "; ".join(f"{outcome.target.name}: {outcome.error}" for outcome in failed)
        return Failed(message=f"{len(failed)} of {len(outcomes)} targets failed: {reasons}")
    return Completed(message=f"{len(outcomes)} built", data=outcomes)


def _export(
    source: str, components: list[str] | None, precisions: list[str] | None, publish: str | None
) -> list[Outcome]:
    targets = pipeline.plan(source, components, precisions)
    directory = pipeline.publication_directory(targets, publish)
    with staging(directory, pipeline.room(targets)) as work:
        with worker.stopped_on_error():
            results = pipeline.gather(targets, lambda target: build.submit(target, work))
        return pipeline.conclude(results, directory)
