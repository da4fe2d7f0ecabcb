"""What a Prefect server is told, by HTTP alone: that training has written a checkpoint."""

import re
import uuid
from typing import Any, Final, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from cosyjit.documents import now
from cosyjit.errors import ServerError
from cosyjit.text import without_password

UPDATED: Final = "cosyjit.checkpoint.updated"
"""The event that triggers of deployments wait for."""

OLDEST: Final = (3, 8)
"""The release of Prefect from which servers know what the flow and its deployments use."""

_TIMEOUT: Final = 10
"""In s."""

_RETRIES: Final = Retry(
    total=None,
    connect=0,
    read=0,
    status=4,
    backoff_factor=0.5,
    status_forcelist=[429, 502, 503, 504],
    allowed_methods=None,
    raise_on_status=False,
)
"""A server says 503 while another request has its database locked. An event that comes twice is one, by its id."""


class Server(NamedTuple):
    """Where a Prefect server is, and what it wants to see before it listens.

    Attributes:
        url: of its API, such as http://127.0.0.1:4200/api.
        user: "name:password", where the server has one.
        key: an API key, where it wants one.
    """

    url: str
    user: str | None = None
    key: str | None = None

    def notify(self, source: str, family: str) -> None:
        """Send the event that a checkpoint was updated.

        Args:
            source: the model directory or id, as workers can open it.
            family: the name of its family, by which deployments choose what they export.

        Raises:
            ServerError: there is no such server, it is too old, or it does not let us in; or the source cannot be named
                in JSON that others read.
        """
        try:
            source.encode()
        except UnicodeEncodeError:
            raise ServerError(
                f"{source}: is not UTF-8, and cannot be told to a server; give the directory another name"
            ) from None
        check_version(self.shown, self._call("GET", "admin/version").text.strip('"\n'))
        event = {
            "id": str(uuid.uuid4()),
            "occurred": now(),
            "event": UPDATED,
            "resource": {
                "prefect.resource.id": f"cosyjit.checkpoint.{source}",
                "prefect.resource.name": source,
                "cosyjit.source": source,
                "cosyjit.family": family,
            },
        }
        self._call("POST", "events", json=[event])

    @property
    def shown(self) -> str:
        """The URL for others to see, without a name and a password in it."""
        return without_password(self.url)

    def _call(self, method: str, path: str, **content: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        name, _, password = (self.user or "").partition(":")
        user = (name, password) if name else None
        try:
            with requests.Session() as session:
                for scheme in ("http://", "https://"):
                    session.mount(scheme, HTTPAdapter(max_retries=_RETRIES))
                response = session.request(
                    method, f"{self.url.rstrip('/')}/{path}", headers=headers, auth=user, timeout=_TIMEOUT, **content
                )
            response.raise_for_status()
        except requests.HTTPError as error:
            status = error.response.status_code
            way_out = {
                401: "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY",
                403: "ask for the right to send events",
                404: "name the API of a Prefect server, such as http://127.0.0.1:4200/api",
            }.get(status, "look into the server's log")
            raise ServerError(f"{self.shown}: answers {status} {error.response.reason}; {way_out}") from None
        except (requests.RequestException, ValueError) as error:
            raise ServerError(f"{self.shown}: {_why(error)}; start it (`prefect server start`), or name one") from None
        return response


def check_version(url: str, version: str) -> None:
    """
    Args:
        url: of the server's API, for messages.
        version: what it says.

    Raises:
        ServerError: a server of this version is too old.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if not found:
        raise ServerError(f"{url}: is no Prefect server (its version is {version[:40]!r}); name one's API")
    if (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ServerError(
            f"{url}: Prefect {version[:40]} is older than {oldest}, which cosyjit needs; upgrade the server"
        )


def _why(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return f"no answer within {_TIMEOUT} s"
    if isinstance(error, requests.ConnectionError):
        return "no Prefect server is there"
    return "is no URL" if isinstance(error, ValueError) else f"is no Prefect server ({type(error).__name__})"
