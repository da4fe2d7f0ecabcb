"""The Prefect server that the settings name; or one of a command's own, on loopback, which is gone with the command."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import IO, Final

from prefect.settings import get_current_settings

from cosyjit.errors import ServerError, line
from cosyjit.prefect_api import Server
from cosyjit.text import one_line

_HOST: Final = "127.0.0.1"

_PATIENCE: Final = 180
"""In s. A server that makes a new database on a busy machine takes most of a minute."""

_LOOK: Final = 0.2
"""In s, from one look at whether it listens to the next."""

_GRACE: Final = 20
"""In s, which a server has to end in order."""

_DEFAULTS: Final = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Under opentelemetry-instrument, it would tell of each request and each look at its clock.
    "OTEL_SDK_DISABLED": "true",
}
"""The variables of a server where the environment has no others.

The first says where it notes which runs are under way. One that is killed and has noted it in its memory alone, as
Prefect's own default is, takes them to be under way for ever, and the next runs of their deployments wait for ever."""

_ERROR: Final = re.compile(r"[\w.]+(?:Error|Exception)\b")
"""How the last line of a traceback begins. What a server says after it does not tell why it ended."""

_START: Final = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: it ends even where the command is killed
if os.getppid() == int(sys.argv.pop(1)):
    from prefect.cli import app
    sys.argv[1:] = ["server", "start", "--host", "{_HOST}", "--port", *sys.argv[1:]]
    app()
"""


def named_server() -> Server | None:
    """The server that Prefect's settings name, with its credentials; None if they name none.

    Raises:
        ServerError: the server is missing or too old, or refuses access.
    """
    server = configured_server()
    if server is not None:
        server.check()
    return server


def configured_server() -> Server | None:
    """As `named_server`, but nothing is asked of it."""
    url = get_current_settings().api.url
    return _with_credentials(url) if url else None


def _with_credentials(url: str) -> Server:
    api = get_current_settings().api
    user, key = (None if each is None else each.get_secret_value() for each in (api.auth_string, api.key))
    return Server(url, user, key)


class OwnServer:
    """A Prefect server as a child of this process, from `start` to `stop`.

    It asks for a password if PREFECT_SERVER_API_AUTH_STRING is set, and PREFECT_API_AUTH_STRING to the same. It keeps
    its database where all of the user's own servers do (`PREFECT_HOME`), so runs of before are seen.

    Args:
        port: what it listens on.

    Attributes:
        page: the address of its pages for people.
        api: that of its API.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.page = f"http://{_HOST}:{port}"
        self.api = f"{self.page}/api"
        self._started: tuple[subprocess.Popen[bytes], IO[bytes]] | None = None

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises:
            ServerError: the port cannot be used, or the server ends before it answers, or refuses access.
        """
        self._check_port()
        output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        # A session of its own: Ctrl-C is for the command, which may still have something to tell the server.
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(os.getpid()), str(self._port)],
            env=_DEFAULTS | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started = process, output
        self._wait()

    def stop(self) -> None:
        """End the server, and all that it has started."""
        if self._started is None:
            return
        process, output = self._started
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.close()

    def check(self) -> None:
        """Check that the server has not ended.

        Raises:
            ServerError: it has; the message quotes the last error that it told of, or else the last that it said.
        """
        if self._started is None:
            return
        process, output = self._started
        status = process.poll()
        if status is not None:
            output.seek(0)
            said = [text for text in output.read().decode(errors="replace").splitlines() if text.strip()]
            told = [text for text in said if _ERROR.match(text)] or said or [""]
            raise ServerError(
                f"{self.api}: the Prefect server ended with exit status {status} ({one_line(told[-1], 200)}); "
                "set PREFECT_API_URL to use another one"
            )

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, self._port))
            except (OSError, OverflowError) as error:
                in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
                reason = "something listens there already" if in_use else f"cannot be listened at ({line(error)})"
                raise ServerError(
                    f"{_HOST}:{self._port}: {reason}; set PREFECT_API_URL to use a Prefect server that is there, or "
                    "PREFECT_SERVER_API_PORT to start one at another port"
                ) from None

    def _wait(self) -> None:
        """Wait until the server listens, which it does once it answers."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            self.check()
            with suppress(OSError), socket.create_connection((_HOST, self._port)):
                break
            time.sleep(_LOOK)
        _with_credentials(self.api).check()
