"""What an operator does who has a wheel and no checkout: from an empty directory, with an environment of its own."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import pytest

from tests.flows.service import BIN, PATIENCE, free_port, post
from tests.support.http import Asked, answering
from tests.support.processes import ROOT, wait_for

pytestmark = pytest.mark.stress

PAGE: Final = ROOT / "docs" / "prefect.md"
ONE: Final = ("--component", "flow.encoder", "--precision", "fp16")
ENDED: Final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Installed(NamedTuple):
    """An environment with the wheel, and a home directory that it makes.

    Attributes:
        bin: the folder of its commands.
        directory: of all that is made.
    """

    bin: Path
    directory: Path

    def environment(self, **others: str) -> dict[str, str]:
        """Nothing of the user's; the same database of Prefect's for all, for a new one takes most of a minute."""
        path = f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin"
        home = {"HOME": str(self.directory / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        return {"PATH": path, "NO_COLOR": "1", "COLUMNS": "300", "PREFECT_WORKER_QUERY_SECONDS": "1", **home, **others}

    def run(self, *command: str | Path, cwd: Path, **others: str) -> str:
        """What a command prints, which has to succeed."""
        done = subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=cwd,
            env=self.environment(**others),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run([BIN / "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT], check=True)
    (made,) = directory.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment; what it depends on is in that of the tests, since that takes minutes to make."""
    directory = tmp_path_factory.mktemp("installed")
    (directory / "home").mkdir()
    environment = directory / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    made = Installed(environment / "bin", directory)
    python = made.bin / "python"
    subprocess.run(
        [BIN / "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True
    )
    # As a path alone: the file beside it that adds the checkout is not read.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    script = (BIN / "prefect").read_text(encoding="utf-8")
    (made.bin / "prefect").write_text(re.sub(r"^#!.*", f"#!{python}", script), encoding="utf-8")
    (made.bin / "prefect").chmod(0o755)
    return made


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty directory."""
    directory = tmp_path / "empty"
    directory.mkdir()
    return directory


@contextmanager
def started(command: list[str | Path], log: Path, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A command in a session of its own, of which nothing is left afterwards."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
        ) as process,
    ):
        try:
            yield process
        finally:
            tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for each in tree:
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def ask(api: str, path: str, **body: Any) -> Any:
    """What a server's API answers."""
    return post(api, path, body).json()


def ended(api: str, *, but: set[str]) -> dict[str, Any] | None:
    """A flow run that has ended, other than some by their ids."""
    runs = [run for run in ask(api, "flow_runs/filter") if run["id"] not in but and run["state_type"] in ENDED]
    return runs[0] if runs else None


def test_the_wheel_is_what_is_installed_and_lacks_nothing(installed: Installed, empty: Path) -> None:
    code = "import cosyjit.flows.export as it; print(it.__file__)"
    assert str(installed.directory) in installed.run("python", "-c", code, cwd=empty)
    check = ("--python", str(installed.bin / "python"), "check")
    told = subprocess.run([BIN / "pip", *check], check=False, capture_output=True, text=True).stdout
    assert [line for line in told.splitlines() if line.startswith("cosyjit ")] == []


def test_a_model_is_served_from_an_empty_directory(installed: Installed, empty: Path, tiny: Path) -> None:
    model = Path(shutil.copytree(tiny, empty / "CosyVoice-tiny"))
    port = free_port()
    api, log = f"http://127.0.0.1:{port}/api", empty / "log"
    environment = installed.environment(PREFECT_SERVER_API_PORT=str(port), COSYJIT_STORE=str(empty / "store"))
    command: list[str | Path] = [installed.bin / "cosyjit", "serve", model.name, *ONE, "--cron", "0 3 * * *"]
    with started(command, log, cwd=empty, env=environment) as process:
        wait_for(lambda: process.poll() is not None or "Prefect server" in log.read_text(), seconds=PATIENCE)
        said = log.read_text()
        assert f"export/CosyVoice-tiny exports {model}, at 0 3 * * * UTC\n" in said
        assert f"Its own Prefect server: http://127.0.0.1:{port}\n" in said

        # By hand, and by the event that a checkpoint was updated.
        (deployment,) = ask(api, "deployments/filter")
        ask(api, f"deployments/{deployment['id']}/create_flow_run")
        first = wait_for(lambda: ended(api, but=set()), seconds=PATIENCE)
        installed.run("cosyjit", "notify", model, cwd=empty, PREFECT_API_URL=api)
        second = wait_for(lambda: ended(api, but={first["id"]}), seconds=PATIENCE)
        assert [run["state"]["message"] for run in (first, second)] == ["1 built", "1 cached"], log.read_text()
        assert (model / "flow.encoder.fp16.zip").exists()

        # With a run under way.
        parameters = {**deployment["parameters"], "force": True}
        third = ask(api, f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)
        running = {"id": {"any_": [third["id"]]}, "state": {"type": {"any_": ["RUNNING"]}}}
        wait_for(lambda: ask(api, "flow_runs/filter", flow_runs=running), seconds=PATIENCE)
        # What would be in the server's memory alone, nothing would take back if the server were killed.
        assert list((installed.directory / "home" / ".prefect" / "concurrency_leases").glob("*-*.json"))
        tree = psutil.Process(process.pid).children(recursive=True)
        assert len(tree) >= 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        wait_for(lambda: not any(each.is_running() for each in tree), seconds=PATIENCE)
    told = "nothing is served any more; what was published is whole, and what was built is kept"
    assert log.read_text().endswith(f"cosyjit: ended by SIGTERM; {told}\n")
    with sqlite3.connect(installed.directory / "home" / ".prefect" / "prefect.db") as database:
        states = dict(database.execute("SELECT id, state_name FROM flow_run"))
        assert list(database.execute("SELECT paused FROM deployment")) == [(1,)]
    database.close()
    assert [states[run["id"]] for run in (first, second, third)] == ["Completed", "Completed", "Cancelled"]


def walk() -> str:
    """The blocks of the page that are its walk."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## A walk\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE))


def test_the_walk_ends_with_a_scheduled_run_that_failed_and_told_somebody(installed: Installed, empty: Path) -> None:
    port, log = free_port(), empty / "log"
    api = f"http://127.0.0.1:{port}/api"
    with answering(lambda _: (200, b"")) as (url, asked):
        webhook = f"{url.removesuffix('/api')}/T0/B0/s3cret"
        script = walk().replace("127.0.0.1:4200", f"127.0.0.1:{port}")
        script = script.replace("https://hooks.example.com/services/T0/B0/secret", webhook)
        assert webhook in script
        environment = installed.environment(PREFECT_SERVER_API_PORT=str(port), COSYJIT_STORE=str(empty / "store"))
        with started(
            ["/bin/bash", "-euc", f"{script}\necho THE END\nwait"], log, cwd=empty, env=environment
        ) as process:
            wait_for(lambda: process.poll() is not None or "THE END" in log.read_text(), seconds=PATIENCE)
            assert process.poll() is None, log.read_text()

            def failed() -> list[Asked]:
                return [one for one in asked if one.body["state"] == "Failed"]

            (notice, *_) = wait_for(failed, seconds=PATIENCE)
            runs = {f"http://127.0.0.1:{port}/runs/flow-run/{run['id']}": run for run in ask(api, "flow_runs/filter")}
            run = runs[notice.body["url"]]
            assert notice.body["run"] == run["name"]
            assert run["expected_start_time"] > run["created"]
            assert notice.path == "/T0/B0/s3cret"
            assert notice.headers["Content-Type"] == "application/json"
            model = empty / "CosyVoice-tiny"
            assert notice.body["source"] == str(model)
            assert notice.body["message"].startswith(f"{model / 'llm.pt'}: ")
            assert notice.body["text"] == f"cosyjit: {run['name']}: Failed: {notice.body['message']}"
            messages = [one["state"]["message"] for one in runs.values() if one["state_type"] == "COMPLETED"]
            assert {"6 built", "6 cached"} <= set(messages)
            _check_that_nothing_else_is_planned(api)
            told = wait_for(lambda: [one.body for one in asked if one.body["state"] == "Completed"], seconds=PATIENCE)
            assert [one["message"] for one in told] == ["6 built"]
            assert told[0]["text"] == f"cosyjit: {told[0]['run']}: Completed: 6 built"
            assert runs[told[0]["url"]]["state"]["message"] == "6 built"
            _check_that_names_become_no_mentions(api, run, asked)
        assert "s3cret" not in log.read_text()
        stored = (installed.directory / "home" / ".prefect" / "prefect.db").read_bytes()
        assert b"s3cret" not in stored


def _check_that_nothing_else_is_planned(api: str) -> None:
    """The server plans runs of the one schedule that was chosen."""
    deployments = {each["id"]: each["name"] for each in ask(api, "deployments/filter") if each["work_pool_name"]}
    assert sorted(deployments.values()) == ["cosyvoice", "cosyvoice2", "cosyvoice3"]

    def planned() -> set[str]:
        runs = ask(api, "flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
        return {deployments.get(run["deployment_id"], "another") for run in runs if run["auto_scheduled"]}

    assert wait_for(planned, seconds=PATIENCE) == {"cosyvoice"}


def _check_that_names_become_no_mentions(api: str, run: dict[str, Any], asked: list[Asked]) -> None:
    """An event as the flow sends it, but for its message."""
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{run['id']}",
        "prefect.resource.name": run["name"],
        "prefect.state-name": "Completed",
        "prefect.state-message": "1 built <!channel> & more",
    }
    related = [
        {"prefect.resource.id": "prefect.flow.0", "prefect.resource.role": "flow", "prefect.resource.name": "export"},
        {"prefect.resource.id": "prefect.tag.cosyjit", "prefect.resource.role": "tag"},
    ]
    event = {"event": "cosyjit.artifacts.built", "resource": resource, "related": related, "id": str(uuid.uuid4())}
    event["occurred"] = datetime.now(timezone.utc).isoformat()
    post(api, "events", [event])
    told = wait_for(lambda: [one.body for one in asked if "more" in one.body["message"]], seconds=PATIENCE)
    assert told[0]["message"] == resource["prefect.state-message"]
    assert told[0]["text"] == f"cosyjit: {run['name']}: Completed: 1 built &lt;!channel&gt; &amp; more"
