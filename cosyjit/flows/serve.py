"""Serves deployments of the flow: one for each model, whose runs start in this process's children.

What is served stays known to the Prefect server with its schedule paused; the next time that it is served, it goes on.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final, NamedTuple

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.server.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.types.entrypoint import EntrypointType

from cosyjit.errors import SelectionError, ServerError, line
from cosyjit.flows.export import export
from cosyjit.flows.servers import OwnServer, named_server
from cosyjit.fs.files import absolute
from cosyjit.prefect_api import UPDATED
from cosyjit.processes.interrupts import note_changes
from cosyjit.selection import select
from cosyjit.sources.checkpoint import open_checkpoint
from cosyjit.sources.source import open_source
from cosyjit.text import without_password

_TAG: Final = "cosyjit"
"""That of all deployments of the flow; the notices of runs go by it."""

_LOOK: Final = 1.0
"""In s, from one look at whether all that should run does to the next."""

_GRACE: Final = 60
"""In s, which the runner has to end in order."""

_FIELDS: Final = 5
"""Of cron. Prefect reads a sixth as seconds, which other programs have first, and starts a run in each of them."""


class Schedule(NamedTuple):
    """When to export: the five fields of cron, and the time zone by its name, such as Europe/Berlin."""

    cron: str
    timezone: str

    def check(self) -> None:
        """Check that Prefect takes it, and that its time comes.

        A server fails over a schedule whose time never comes, and may plan no runs of others either.

        Raises:
            SelectionError: the fields or the time zone are not what they should be.
        """
        try:
            CronSchedule(cron="* * * * *", timezone=self.timezone)
        except ValueError:
            raise SelectionError(
                f"--timezone {self.timezone}: is not a time zone; give one such as UTC or Europe/Berlin"
            ) from None
        try:
            schedule = CronSchedule(cron=self.cron, timezone=self.timezone)
        except ValueError:
            schedule = None
        if schedule is None or len(self.cron.split()) > _FIELDS:
            raise SelectionError(
                f"--cron {self.cron!r}: is not a schedule; give the five fields of cron, such as '0 3 * * *' for three "
                "o'clock at night"
            )
        try:
            asyncio.run(schedule.get_dates(1))
        except ValueError:
            raise SelectionError(f"--cron {self.cron!r}: never comes; give a day that its months have") from None


class Model(NamedTuple):
    """A model that is served.

    Attributes:
        source: the model directory's absolute path, or the id, as runs and notices name it.
        name: that of its deployment.
        parameters: of its runs.
    """

    source: str
    name: str
    parameters: dict[str, Any]


def find_models(
    sources: Sequence[str],
    *,
    name: str | None = None,
    components: list[str] | None = None,
    precisions: list[str] | None = None,
    publish: Path | None = None,
    replace: bool = False,
) -> tuple[Model, ...]:
    """The models of some sources, each with the name of its deployment.

    Args:
        sources: model directories, or ids on a hub.
        name: that of the deployment of one source; that of the directory, or the model's with its revision, for None.
        components, precisions, publish, replace: as the flow takes them; a directory to publish in is for one source.

    Raises:
        InputError: a source is neither a directory with a model, nor a model of the hub, or lacks a component or
            precision; two sources have one name; or an option is for one source and there are several.
    """
    for option, value in (("--publish", publish), ("--name", name)):
        if value is not None and len(sources) > 1:
            raise SelectionError(f"{option} {value}: is for one source, and {len(sources)} are given")
    models: dict[str, Model] = {}
    for source in sources:
        checkpoint = open_checkpoint(open_source(source))
        select(checkpoint.family, components, precisions)
        own = checkpoint.source.name
        _check_utf8(own)
        parameters = {"source": own, "components": components, "precisions": precisions, "replace": replace}
        model = Model(own, name_of(own) if name is None else name, parameters)
        if publish is not None:
            model.parameters["publish"] = str(absolute(publish))
            _check_utf8(model.parameters["publish"])
        other = models.setdefault(model.name, model)
        if other is not model:
            raise SelectionError(
                f"{source}: would be served as {model.name!r}, as {other.source} is; serve it by a command of its own, "
                "with --name"
            )
    return tuple(models.values())


def _check_utf8(source: str) -> None:
    try:
        source.encode()
    except UnicodeEncodeError:
        raise SelectionError(
            f"{source}: is not UTF-8, so it cannot be served; give the directory another name"
        ) from None


def name_of(source: str) -> str:
    """The name of a source's deployment: that of the directory, or of the model with its revision."""
    model, at, revision = source.partition("@") if not source.startswith("/") else (source, "", "")
    return _allowed(f"{model.rstrip('/').rpartition('/')[2]}{at}{revision}") or "root"


def _allowed(name: str) -> str:
    """A name without the characters that Prefect's names do not have, or that a terminal does not show."""
    return re.sub(r"[/%&<>]|[^\S ]", "-", "".join(each if each.isprintable() else "-" for each in name))


def serve(
    models: Sequence[Model],
    schedule: Schedule | None = None,
    *,
    limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve deployments until this call is ended by an exception, such as that of a signal.

    They are known to the server that Prefect's settings name; if these name none, to one of this call's own. Runs that
    are under way are ended with the call, and what they have built is in the store.

    Args:
        models: the models, with the names and parameters of their deployments.
        schedule: when to export each; for None only when something asks for it.
        limit: how many runs to have at a time; Prefect's own limit for None.
        say: is told, in a line each, what is served and where.

    Raises:
        SelectionError: the schedule or a name is not one, or the server has another model under a name.
        ServerError: there is no such server, or it ended, or it does not take the deployments.
    """
    if schedule is not None:
        schedule.check()
    if limit is not None and limit < 1:
        raise SelectionError(f"--limit {limit}: is not a number of runs; give 1 or more")
    for model in models:
        if model.name != _allowed(model.name) or not model.name.strip():
            raise SelectionError(
                f"--name {model.name!r}: is not a name of a deployment; give one without / % & < and >"
            )
    note_changes("nothing is served any more; what was published is whole, and what was built is kept")
    with _server() as (address, own):
        _take_over(models)
        serving = _Serving([_deployment(model, schedule) for model in models], limit)
        serving.start()
        try:
            _wait_for(serving.is_ready, own)
            if serving.error is None:
                when = "" if schedule is None else f", at {schedule.cron} {schedule.timezone}"
                for model in models:
                    say(f"export/{model.name} exports {model.source}{when}")
                say(f"{'A' if own is None else 'Its own'} Prefect server: {address}")
            _wait_for(serving.has_ended, own)
        finally:
            serving.stop()
        if serving.error is not None:
            raise ServerError(f"{address}: {line(serving.error)}; look into the server's log") from serving.error


def _wait_for(event: Event, own: OwnServer | None) -> None:
    """Wait for an event, and see that our own server has not ended meanwhile."""
    while not event.wait(_LOOK):
        if own is not None:
            own.check()


@contextmanager
def _server() -> Iterator[tuple[str, OwnServer | None]]:
    """The address to show of the server that Prefect's settings name, or a server of our own, which they then name."""
    named = named_server()
    if named is not None:
        yield without_password(get_current_settings().ui_url or named.url), None
        return
    own = OwnServer(get_current_settings().server.api.port)
    try:
        own.start()
        with temporary_settings({PREFECT_API_URL: own.api}):
            yield own.page, own
    finally:
        own.stop()


def _take_over(models: Sequence[Model]) -> None:
    """Remove the schedules of what the server has under the names of models: Prefect would keep them, without new ones.

    Raises:
        SelectionError: the server has another model under one of the names; nothing has changed then.
    """
    with get_client(sync_client=True) as client:
        found = []
        for model in models:
            name = f"{export.name}/{model.name}"
            try:
                known = client.read_deployment_by_name(name)
            except ObjectNotFound:
                continue
            served = known.parameters.get("source")
            if served != model.source:
                raise SelectionError(
                    f"{name}: exports {served} on this server; give another name with --name, or remove it with "
                    f"`prefect deployment delete {name}`"
                )
            found.append(known)
        for known in found:
            for each in known.schedules:
                client.delete_deployment_schedule(known.id, each.id)


def _deployment(model: Model, schedule: Schedule | None) -> RunnerDeployment:
    """The deployment of a model."""
    deployment = RunnerDeployment.from_flow(
        export,
        model.name,
        schedule=None if schedule is None else Cron(schedule.cron, timezone=schedule.timezone),
        parameters=model.parameters,
        description=f"Export what has changed of {model.source}.",
        tags=[_TAG],
        # One run at a time; what comes meanwhile waits for its turn.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        triggers=[DeploymentEventTrigger(expect={UPDATED}, match={"cosyjit.source": model.source})],
        paused=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    # So that a deployment of a work pool becomes one that is served.
    deployment.work_pool_name = deployment.work_queue_name = None
    return deployment


class _Serving(Thread):
    """Prefect's runner in a thread: signals are for the main thread, where the command line takes them.

    Attributes:
        is_ready: set when the server knows the deployments, or does not take them.
        has_ended: set when the runner has ended. (`is_alive` is wrong once a signal has interrupted `join`.)
        error: what ended the runner, unless that was `stop`.
    """

    def __init__(self, deployments: Sequence[RunnerDeployment], limit: int | None) -> None:
        super().__init__(name="serve", daemon=True)
        self.is_ready, self.has_ended = Event(), Event()
        self.error: Exception | None = None
        self._deployments = deployments
        self._runner = Runner() if limit is None else Runner(limit=limit)
        self._settings = copy_context()  # these name the server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def run(self) -> None:
        try:
            self._settings.run(asyncio.run, self._serve())
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001  (whatever Prefect raises)
            self.error = error
        finally:
            self.is_ready.set()
            self.has_ended.set()

    async def _serve(self) -> None:
        self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        for deployment in self._deployments:
            await self._runner.aadd_deployment(deployment)
        self.is_ready.set()
        await self._runner.start()

    def stop(self) -> None:
        """End the runner: runs that are under way are cancelled, and schedules paused.

        A server that does not answer any more is not waited for longer than a minute.
        """
        while self._loop is None and not self.has_ended.wait(_LOOK):
            pass
        if self._loop is None or self.has_ended.is_set():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        self.has_ended.wait(_GRACE)

    async def _stop(self) -> None:
        if self._runner.started:
            await self._runner.astop()
        elif self._task is not None:
            self._task.cancel()
