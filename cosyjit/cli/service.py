"""The commands around the flow: serve it, deploy it, and tell of its runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cosyjit import settings
from cosyjit.cli.console import show, show_json
from cosyjit.cli.options import Integer, JsonOption, NamesOption, PublishOption
from cosyjit.errors import SelectionError, line
from cosyjit.flows.templates import write_templates
from cosyjit.reports import as_json


def serve(
    *sources: str,
    component: NamesOption = None,
    precision: NamesOption = None,
    publish: PublishOption = None,
    replace: Annotated[bool, Parameter(negative="")] = False,
    cron: str | None = None,
    timezone: str | None = None,
    limit: Integer | None = None,
    name: str | None = None,
) -> None:
    """Serve a deployment of the Prefect flow for each model, until Ctrl-C or SIGTERM.

    The deployments are those of the server that PREFECT_API_URL names or, without it, of a server of this command's
    own, on this machine alone. A run starts by the schedule, by `cosyjit notify SOURCE`, and by hand.

    Parameters
    ----------
    sources
        Model directories, or ids on ModelScope or Hugging Face.
    component, precision, replace
        As for export.
    publish
        As for export, of one source.
    cron
        When to export: minute, hour, day of the month, month and day of the week, such as '0 3 * * *'.
    timezone
        The time zone of --cron, such as Europe/Berlin. UTC by default.
    limit
        The largest number of runs at a time, of all models. Each model has one at a time.
    name
        The name of the deployment of one source. That of the directory, or of the model, by default.
    """
    if not sources:
        raise SelectionError("no source is given; name a model directory or the id of a model on a hub")
    if timezone is not None and cron is None:
        raise SelectionError(f"--timezone {timezone}: is that of a schedule; give one with --cron")
    with _prefect():
        from cosyjit.flows import serve as serving  # takes seconds

    serving.serve(
        serving.find_models(
            sources, name=name, components=component, precisions=precision, publish=publish, replace=replace
        ),
        None if cron is None else serving.Schedule(cron, timezone or "UTC"),
        limit=limit,
        say=show,
    )


def init(directory: Path, *, json: JsonOption = False) -> None:
    """Write prefect.yaml, with deployments for `prefect deploy`, and automations.yaml, with notices of runs.

    They are for workers that have cosyjit installed, and yours to change. Nothing in the directory is replaced.

    Parameters
    ----------
    directory
        Where to write them.
    json
        Print one JSON object and nothing else.
    """
    paths = write_templates(directory)
    if json:
        show_json(as_json.written(paths))
    else:
        show(*map(str, paths))


def alert(
    *,
    webhook: Annotated[str | None, Parameter(env_var=settings.WEBHOOK)] = None,
    on: NamesOption = None,
    json: JsonOption = False,
) -> None:
    """Let the Prefect server call a webhook for each run of the deployments that failed, and that built something.

    The server is that of PREFECT_API_URL. It keeps the webhook's address encrypted, and nothing shows it.

    Parameters
    ----------
    webhook
        The address, such as that of an incoming webhook of Slack. In the environment, other users do not see it.
    on
        What to tell of: failed, or built; may be repeated. Both by default.
    json
        Print one JSON object and nothing else.
    """
    if not webhook:
        raise SelectionError(f"no webhook is given; set {settings.WEBHOOK} or give --webhook")
    with _prefect():
        from cosyjit.flows.alerts import EVENTS, make_alerts  # takes seconds

    made = make_alerts(webhook, EVENTS if on is None else on)
    if json:
        show_json(as_json.alerts(made))
    else:
        show(*made)


@contextmanager
def _prefect() -> Iterator[None]:
    """Import what imports Prefect, with what `[tool.prefect]` of a checkout's pyproject.toml sets.

    Unless the user has chosen otherwise, nothing is reported to anyone; and what was built and published ends as
    completed although the server was away for minutes.

    Raises:
        SelectionError: a setting of Prefect's is not what it should be.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")
    try:
        yield
    except ValueError as error:
        raise SelectionError(
            f"Prefect's settings: {line(error)}; change the variable PREFECT_…, or the profile"
        ) from None
