"""`cosyjit serve`, `init` and `alert`: what they make of what they are given, and what they refuse."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_API_PORT, temporary_settings
from ruamel.yaml import YAML

from cosyjit.errors import SelectionError
from cosyjit.flows.alerts import EVENTS
from cosyjit.flows.serve import Model, find_models, name_of, serve
from cosyjit.flows.templates import AUTOMATIONS, DEPLOYMENTS, template
from tests.support.processes import CONSOLE_SCRIPT, ROOT, Run, snapshot

Copy = Callable[[Path], Path]

SECRET = "https://hooks.example.com/services/T0/secret"  # noqa: S105


def loaded(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("iic/CosyVoice-300M", "CosyVoice-300M"),
        ("iic/CosyVoice-300M@v1.0", "CosyVoice-300M@v1.0"),
        ("iic/CosyVoice-300M@training/night", "CosyVoice-300M@training-night"),
        ("/models/CosyVoice 300M", "CosyVoice 300M"),
        ("/models/a@b", "a@b"),
        ("/models/50% & <more>\n", "50- - -more--"),
        ("/", "root"),
    ],
)
def test_a_deployment_is_called_as_its_model(source: str, name: str) -> None:
    assert name_of(source) == name


def test_a_model_has_the_parameters_of_the_flow(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    (model,) = find_models([tiny.name], precisions=["fp16"], publish=tmp_path)
    assert model == Model(
        str(tiny),
        tiny.name,
        {
            "source": str(tiny),
            "components": None,
            "precisions": ["fp16"],
            "replace": False,
            "publish": str(tmp_path),
        },
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "no source is given; name a model directory or the id of a model on a hub"),
        (["{tiny}", "{tiny}/nowhere"], "{tiny}/nowhere: does not exist; give a model directory"),
        (["{tiny}", "{other}"], "{other}: would be served as 'CosyVoice-tiny', as {tiny} is; serve it by a command of"),
        (["{tiny}", "{other}", "--name", "a"], "--name a: is for one source, and 2 are given"),
        (["{tiny}", "{other}", "--publish", "a"], "--publish a: is for one source, and 2 are given"),
        (["{tiny}", "--component", "llm.lm"], "'llm.lm' is not a component of CosyVoice; choose from"),
        (["{tiny}", "--precision", "fp61"], "'fp61' is not a precision; choose from"),
        (["{tiny}", "--name", "a/b"], "--name 'a/b': is not a name of a deployment; give one without / % & < and >"),
        (["{tiny}", "--name", ""], "--name '': is not a name of a deployment"),
        (["{tiny}", "--limit", "0"], "--limit 0: is not a number of runs; give 1 or more"),
        (["{tiny}", "--limit", "two"], 'Invalid value for --limit: "two" is not an integer; give one, such as 3'),
        (["{tiny}", "--cron", "0 3"], "--cron '0 3': is not a schedule; give the five fields of cron, such as"),
        (["{tiny}", "--cron", "0 25 * * *"], "--cron '0 25 * * *': is not a schedule"),
        (["{tiny}", "--cron", "@never"], "--cron '@never': is not a schedule"),
        (["{tiny}", "--cron", "0 0 3 * * *"], "--cron '0 0 3 * * *': is not a schedule; give the five fields of cron"),
        (["{tiny}", "--cron", "0 3 30 2 *"], "--cron '0 3 30 2 *': never comes; give a day that its months have"),
        (["{tiny}", "--cron", "0 3 * * *", "--timezone", "Mars/X"], "--timezone Mars/X: is not a time zone; give one"),
        (["{tiny}", "--timezone", "UTC"], "--timezone UTC: is that of a schedule; give one with --cron"),
    ],
)
def test_serve_says_in_a_line_what_it_cannot_serve(
    options: list[str], told: str, tiny: Path, copy_of: Copy, run: Run
) -> None:
    places = {"tiny": tiny, "other": copy_of(tiny)}
    ran = run("serve", *(option.format(**places) for option in options))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"cosyjit: {told.format(**places)}")
    assert ran.err.count("\n") == 1


def test_a_name_that_no_server_can_have_is_refused(tiny: Path, tmp_path: Path, run: Run) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    shutil.copytree(tiny, directory)
    for command in (["serve", directory], ["serve", tiny, "--publish", directory]):
        ran = run(*command)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.endswith("is not UTF-8, so it cannot be served; give the directory another name\n")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_a_server_that_is_not_there_is_named(tiny: Path, closed_port: int, run: Run) -> None:
    url = f"http://user:pass@127.0.0.1:{closed_port}/api"
    shown = f"http://127.0.0.1:{closed_port}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        for command in (["serve", tiny], ["alert", "--webhook", SECRET]):
            ran = run(*command)
            assert (ran.status, ran.out) == (2, "")
            told = f"cosyjit: {shown}: no Prefect server is there; start it (`prefect server start`), or name one\n"
            assert ran.err == told


def test_a_port_that_is_in_use_is_named(tiny: Path, run: Run) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with temporary_settings({PREFECT_SERVER_API_PORT: port}, restore_defaults={PREFECT_API_URL}):
            ran = run("serve", tiny)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        f"cosyjit: 127.0.0.1:{port}: something listens there already; set PREFECT_API_URL to use a Prefect server that "
        "is there, or PREFECT_SERVER_API_PORT to start one at another port\n"
    )
    with temporary_settings({PREFECT_SERVER_API_PORT: 65536}, restore_defaults={PREFECT_API_URL}):
        ran = run("serve", tiny)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("cosyjit: 127.0.0.1:65536: cannot be listened at (bind(): port must be 0-65535")


def test_a_setting_that_prefect_does_not_take_is_named(tiny: Path) -> None:
    # Prefect reads its settings when it is imported, and says something of its own then.
    done = subprocess.run(
        [CONSOLE_SCRIPT, "serve", tiny],
        env={**os.environ, "PREFECT_SERVER_API_PORT": "abc"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("cosyjit: Prefect's settings: 1 validation error for ")


def test_init_writes_deployments_of_installed_workers(tmp_path: Path, run: Run) -> None:
    directory = tmp_path / "new" / "directory"
    ran = run("init", directory)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [str(directory / DEPLOYMENTS), str(directory / AUTOMATIONS)]
    written = loaded((directory / DEPLOYMENTS).read_text(encoding="utf-8"))
    checkout = loaded((ROOT / DEPLOYMENTS).read_text(encoding="utf-8"))
    assert written.pop("pull") == []
    for of, entrypoint in ((checkout, "flows/export.py:export"), (written, "cosyjit.flows.export.export")):
        assert of["definitions"].pop("entrypoint") == entrypoint
        assert {each.pop("entrypoint") for each in of["deployments"]} == {entrypoint}
    assert written == checkout


def test_no_schedule_is_active_that_nobody_has_chosen() -> None:
    deployments = loaded(template(DEPLOYMENTS))["deployments"]
    assert [schedule["active"] for each in deployments for schedule in each["schedules"]] == [False] * 3


@pytest.mark.parametrize("name", [DEPLOYMENTS, AUTOMATIONS])
def test_init_replaces_nothing(name: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / name).write_text("mine")
    before = snapshot(tmp_path)
    ran = run("init", tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"cosyjit: {tmp_path / name}: is there already; move it away, or name another directory\n"
    assert snapshot(tmp_path) == before


def test_init_names_a_directory_that_cannot_be_written_to(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    ran = run("init", tmp_path / "file" / "directory")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.endswith("cannot be written to (File exists); name another directory\n")


def test_init_leaves_nothing_that_is_cut_short(tmp_path: Path) -> None:
    # No file may grow longer than this, as on a disk that is full.
    limited = f"ulimit -f 1; trap '' XFSZ; exec '{CONSOLE_SCRIPT}' init ."
    done = subprocess.run(["/bin/bash", "-c", limited], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"cosyjit: {tmp_path}: cannot be written to (File too large); name another directory\n"
    assert list(tmp_path.iterdir()) == []


def test_the_automations_are_those_that_can_be_told_of() -> None:
    automations = [AutomationCore.model_validate(each) for each in loaded(template(AUTOMATIONS))["automations"]]
    assert [each.name for each in automations] == [f"cosyjit: {event}" for event in EVENTS]


@pytest.mark.parametrize(
    "url",
    [
        "hooks.example.com",
        "ftp://hooks.example.com",
        "https://",
        "https://[",
        "https://a b",
        "https://hooks.example.com:99999/secret",
    ],
)
def test_what_is_not_a_webhook_is_not_quoted(url: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSYJIT_WEBHOOK", url)
    ran = run("alert")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        "cosyjit: --webhook: is not the address of a webhook; give one that begins with https:// or http://\n"
    )


def test_alert_says_what_it_lacks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COSYJIT_WEBHOOK", raising=False)
    ran = run("alert")
    assert (ran.status, ran.err) == (2, "cosyjit: no webhook is given; set COSYJIT_WEBHOOK or give --webhook\n")
    ran = run("alert", "--webhook", SECRET, "--on", "success")
    told = "cosyjit: --on success: cannot be told of; choose from failed, built\n"
    assert (ran.status, ran.err) == (2, told)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        ran = run("alert", "--webhook", SECRET)
    assert (ran.status, ran.err) == (2, "cosyjit: no Prefect server is named; set PREFECT_API_URL\n")


@pytest.mark.slow
def test_a_server_of_its_own_that_cannot_start_says_why(
    tiny: Path, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{tmp_path}/file/prefect.db")
    with temporary_settings({PREFECT_SERVER_API_PORT: closed_port}, restore_defaults={PREFECT_API_URL}):
        ran = run("serve", tiny)
    assert (ran.status, ran.out) == (2, "")
    assert "(sqlite3.OperationalError) unable to open database file); set PREFECT_API_URL to use another" in ran.err
    assert ran.err.count("\n") == 1


def test_the_library_says_it_too() -> None:
    with pytest.raises(SelectionError, match="--limit -1"):
        serve([], limit=-1)
