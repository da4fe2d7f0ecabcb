"""Notices of runs: automations of a Prefect server that call a webhook when a run failed, or built something."""

from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlsplit

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.types import SecretDict
from pydantic import SecretStr
from ruamel.yaml import YAML

from cosyjit.errors import SelectionError, ServerError, line
from cosyjit.flows.servers import named_server
from cosyjit.flows.templates import AUTOMATIONS, template
from cosyjit.processes.interrupts import note_changes

EVENTS: Final = ("failed", "built")
"""What can be told of."""

_BLOCK: Final = "cosyjit-alerts"
"""The name of the block with the webhook's address, which the server keeps encrypted."""

_NO_BLOCK: Final = "00000000-0000-0000-0000-000000000000"


def check_webhook(url: str) -> None:
    """Check the address of a webhook, which no message quotes: whoever knows it can write to its channel.

    Raises:
        SelectionError: it is not an address of the web.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        usable = usable and url.isprintable() and " " not in url
    except ValueError:
        usable = False
    if not usable:
        raise SelectionError(
            "--webhook: is not the address of a webhook; give one that begins with https:// or http://"
        )


def make_alerts(webhook: str, events: Collection[str]) -> tuple[str, ...]:
    """Make the automations for some events, or bring those that are there up to date.

    Args:
        webhook: the address that the server sends each notice to, as JSON.
        events: some of `EVENTS`.

    Returns:
        The names of the automations.

    Raises:
        SelectionError: the webhook is not an address, or there is no such event.
        ServerError: no server is named, it is missing or too old, or it does not take them.
    """
    check_webhook(webhook)
    for event in events:
        if event not in EVENTS:
            raise SelectionError(f"--on {event}: cannot be told of; choose from {', '.join(EVENTS)}")
    server = named_server()
    if server is None:
        raise ServerError("no Prefect server is named; set PREFECT_API_URL")
    note_changes("the server may have some of the alerts; run it again, and it has all")
    try:
        # A block that is there keeps its id, so that automations of a user's own go on with the new address.
        block = Webhook(url=SecretStr(webhook), headers=SecretDict({"Content-Type": "application/json"})).save(
            _BLOCK, overwrite=True
        )
        text = template(AUTOMATIONS).replace(_NO_BLOCK, str(block))
        wanted = {f"cosyjit: {event}" for event in events}
        found = [each for each in YAML(typ="safe", pure=True).load(text)["automations"] if each["name"] in wanted]
        with get_client(sync_client=True) as client:
            return tuple(_make(client, each) for each in found)
    except Exception as error:  # noqa: BLE001  (whatever the client raises)
        reason = line(error).replace(webhook, "…")
        raise ServerError(f"{server.shown}: does not take the alerts ({reason}); look into the server's log") from None


def _make(client: SyncPrefectClient, description: dict[str, Any]) -> str:
    automation = AutomationCore.model_validate(description)
    known = client.read_automations_by_name(automation.name)
    if known:
        client.update_automation(known[0].id, automation)
    else:
        client.create_automation(automation)
    return automation.name
