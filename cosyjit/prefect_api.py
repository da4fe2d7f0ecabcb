"""Tells a Prefect server, by HTTP alone, that training has written a checkpoint."""

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
"""The name of the event that the triggers of deployments wait for."""

OLDEST: Final = (3, 8)
"""The oldest release of Prefect whose servers support the flow and its deployments."""

_RETRIES: Final = Retry(
    total=None,
    connect=0,
    read=0,
    other=0,
    status=4,
    backoff_factor=0.5,
    status_forcelist=[429, 502, 503, 504],
    allowed_methods=None,
    raise_on_status=False,
)
"""A server answers 503 while another request locks its database. An event that arrives twice counts once, by its id."""


class Server(NamedTuple):
    """The address of a Prefect server, and the credentials for it.

    Attributes:
        url: that of its API, such as http://127.0.0.1:4200/api.
        user: "name:password", if the server requires it.
        key: an API key, if the server requires one.
        timeout: how long to wait for an answer, in s.
    """

    url: str
    user: str | None = None
    key: str | None = None
    timeout: float = 10

    def notify(self, source: str, family: str) -> None:
        """Send the event that a checkpoint was updated.

        Args:
            source: the model directory or id; workers open it by this name.
            family: the name of its family, by which deployments choose what they export.

        Raises:
            ServerError: the server is missing or too old, or refuses access; or the source is not UTF-8.
        """
        try:
            source.encode()
        except UnicodeEncodeError:
            raise ServerError(
                f"{source}: is not UTF-8, so a server cannot be told of it; give the directory another name"
            ) from None
        self.check()
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

    def check(self) -> None:
        """Check that the server answers, lets us in, and is recent enough.

        Raises:
            ServerError: the server is missing or too old, or refuses access.
        """
        check_version(self.shown, self.version())

    def version(self) -> str:
        """What the server says that its version is.

        Raises:
            ServerError: the server is missing, or refuses access.
        """
        return self._call("GET", "admin/version").text.strip('"\n')

    @property
    def shown(self) -> str:
        """The URL without the user name and the password, for messages."""
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
                    method,
                    f"{self.url.rstrip('/')}/{path}",
                    headers=headers,
                    auth=user,
                    timeout=self.timeout,
                    **content,
                )
            response.raise_for_status()
        except requests.HTTPError as error:
            status = error.response.status_code
            hint = {
                401: "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY",
                403: "ask for the right to send events",
                404: "name the API of a Prefect server, such as http://127.0.0.1:4200/api",
            }.get(status, "look into the server's log")
            raise ServerError(f"{self.shown}: answers {status} {error.response.reason}; {hint}") from None
        except (requests.RequestException, ValueError) as error:
            raise ServerError(
                f"{self.shown}: {_reason(error, self.timeout)}; start it (`prefect server start`), or name one"
            ) from None
        return response


def check_version(url: str, version: str) -> None:
    """Check that a server is recent enough.

    Args:
        url: that of the server's API, for messages.
        version: the server's answer.

    Raises:
        ServerError: it is not a Prefect server, or too old.
    """
    release = re.match(r"(\d+)\.(\d+)", version)
    if not release:
        raise ServerError(f"{url}: is not a Prefect server (its version is {version[:40]!r}); name one's API")
    if (int(release[1]), int(release[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ServerError(
            f"{url}: Prefect {version[:40]} is older than {oldest}, which cosyjit needs; upgrade the server"
        )


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, requests.Timeout):
        return f"no answer within {timeout:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        found = re.search(r"\[SSL[^\]]*\] ([^(']+)", str(error))
        return (
            f"no TLS connection ({found[1].strip() if found else 'SSL'}; REQUESTS_CA_BUNDLE names trusted certificates)"
        )
    if isinstance(error, requests.ConnectionError):
        return "no Prefect server is there"
    return "is not a URL" if isinstance(error, ValueError) else f"is not a Prefect server ({type(error).__name__})"
