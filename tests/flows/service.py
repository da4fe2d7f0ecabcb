"""A Prefect server and workers as processes of their own, as docs/prefect.md starts them; nothing is the user's."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psutil
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from cosyjit.store.store import Store
from tests.support.processes import ROOT, wait_for

BIN: Final = Path(sys.executable).parent
PATIENCE: Final = 900
"""In s: what takes longer will not come any more, on a busy machine either."""


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def page_commands() -> list[str]:
    """The lines by which docs/prefect.md starts all of it from a checkout."""
    text = (ROOT / "docs" / "prefect.md").read_text(encoding="utf-8").partition("# From a checkout\n")[2]
    found = re.search(r"```sh\n(.*?)\n```", text, flags=re.DOTALL)
    assert found is not None
    return found[1].replace("\\\n", " ").splitlines()


def post(api: str, path: str, body: Any) -> requests.Response:
    """What a server's API answers to a request with a body of JSON."""
    with requests.Session() as session:
        # As Prefect's client does: a database that is locked by another request is not for long.
        patient = Retry(total=None, status=8, backoff_factor=0.5, status_forcelist=[503], allowed_methods=None)
        session.mount("http://", HTTPAdapter(max_retries=patient))
        response = session.post(f"{api}/{path}", json=body, timeout=30)
    response.raise_for_status()
    return response


class Service:
    """Everything below one directory; `environment` lets commands find the server.

    Attributes:
        server: the process, from `start_server`.
    """

    server: "subprocess.Popen[bytes]"

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.directory = directory
        self.api = f"http://127.0.0.1:{port}/api"
        self._started: list[subprocess.Popen[bytes]] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "COSYJIT_"))}
        self.environment = {
            **kept,
            "HOME": str(directory / "home"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(directory / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # How soon a run that waits for another one of its deployment asks again; the default is half a minute.
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "300",
        }

    def start(self, command: str, **environment: str) -> "subprocess.Popen[bytes]":
        """A command in the background; what it prints is in `log`."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                shlex.split(command),
                cwd=ROOT,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    @property
    def store(self) -> Store:
        """That of workers which are told of no other."""
        return Store(self.directory / "home" / ".cache" / "cosyjit")

    @property
    def database(self) -> Path:
        """The server's."""
        return self.directory / "prefect" / "prefect.db"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def run(self, command: str, **environment: str) -> str:
        """What a command prints, which has to succeed."""
        done = subprocess.run(
            shlex.split(command),
            cwd=ROOT,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{self.log.read_text()}"
        return done.stdout

    def ask(self, path: str, **body: Any) -> Any:
        """What the server's API answers."""
        return post(self.api, path, body).json()

    def healthy(self) -> bool:
        try:
            return requests.get(f"{self.api}/health", timeout=5).ok
        except requests.RequestException:
            return False

    def flow_runs(self, **wanted: Any) -> list[dict[str, Any]]:
        """Those that were started by now, the latest first."""
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", sort="START_TIME_DESC", **wanted)
        return [run for run in found if run["state_type"] != "SCHEDULED"]

    def ended(self, run: str) -> dict[str, Any] | None:
        """A flow run that has ended; None as long as it has not."""
        (found,) = self.ask("flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        return found if found["state_type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} else None

    def tasks(self, run: str | UUID) -> dict[str, tuple[str, str]]:
        """Name and message of the states of a flow run's tasks that make targets, by these."""
        found = self.ask("task_runs/filter", flow_runs={"id": {"any_": [str(run)]}})
        made = [task for task in found if task["name"].split()[0] not in {"plan", "publish"}]
        return {task["name"].split()[0]: (task["state_name"], task["state"]["message"] or "") for task in made}

    def deploy(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment; its identifier."""
        (found,) = self.ask("deployments/filter", deployments={"name": {"any_": [deployment]}})
        made = self.ask(f"deployments/{found['id']}/create_flow_run", parameters=parameters)
        return str(made["id"])

    def pause_schedules(self) -> None:
        """Have no run begin by itself, which would keep others of its deployment waiting."""
        for deployment in self.ask("deployments/filter"):
            post(self.api, f"deployments/{deployment['id']}/pause_deployment", {})

    def wait_for_end(self, run: str) -> dict[str, Any]:
        return wait_for(lambda: self.ended(run), seconds=PATIENCE)

    def stop(self) -> None:
        for process in reversed(self._started):
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that was started here, and those that it has started."""
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for left in tree:
        with suppress(psutil.NoSuchProcess):
            left.kill()


@contextmanager
def serving(directory: Path) -> Iterator[Service]:
    """A service whose server runs, with the work pool and the deployments, by the commands of the page but the last.

    Its workers are for the test to start.
    """
    service = Service(directory)
    with ExitStack() as stack:
        stack.callback(service.stop)
        _, pool, deploy, worker, _ = page_commands()
        start_server(service)
        service.run(pool)
        service.run(deploy)
        assert worker.endswith(" &")
        yield service


def start_server(service: Service) -> None:
    """The server by the command of the page, once it answers."""
    service.server = service.start(page_commands()[0].removesuffix(" &"))
    wait_for(service.healthy, seconds=PATIENCE)


def start_worker(service: Service, options: str = "", **environment: str) -> "subprocess.Popen[bytes]":
    """A worker by the command of the page."""
    worker = page_commands()[3].removesuffix(" &")
    return service.start(f"{worker} {options}", **environment)


def shown(mapping: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Targets and the names of their states."""
    return {name: state for name, (state, _) in mapping.items()}
