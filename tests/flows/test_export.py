"""The flow against a real Prefect server."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas import State, TaskRun
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL

from cosyjit import Store, history, plan
from flows.export import export

TARGETS = [
    f"{component}.{precision}"
    for component in ("llm.text_encoder", "llm.llm", "flow.encoder")
    for precision in ("fp32", "fp16")
]


def run(source: Path, **parameters: Any) -> State[Any]:
    state = export(str(source), **parameters, return_state=True)
    assert isinstance(state, State)
    return state


def task_runs(state: State[Any]) -> list[TaskRun]:
    """The flow run's tasks, as the UI shows them."""
    run_id = state.state_details.flow_run_id
    assert isinstance(run_id, UUID)
    with get_client(sync_client=True) as client:
        return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))


def task_states(state: State[Any]) -> dict[str, str]:
    """Targets of the flow run's tasks to the names of their states."""
    return {run.name.split()[0]: run.state_name or "" for run in task_runs(state)}


def listing(directory: Path) -> list[str]:
    """What is shown in a directory, without cosyjit's own files."""
    return sorted(path.name for path in directory.iterdir() if path.name not in {".cosyjit", "cosyjit.json"})


def test_each_target_is_a_task_of_its_name_and_key_and_all_are_published(tiny: Path, tmp_path: Path) -> None:
    state = run(tiny, publish=str(tmp_path))

    assert (state.name, state.message) == ("Completed", "6 built")
    assert task_states(state) == dict.fromkeys(TARGETS, "Completed")
    keys = {each.target.name: each.target.fingerprint.key for each in plan(tiny)}
    assert sorted(run.name for run in task_runs(state)) == sorted(f"{name} {key}" for name, key in keys.items())
    assert listing(tmp_path) == sorted(f"{name}.zip" for name in TARGETS)
    assert [outcome.path for outcome in state.result()] == [tmp_path / f"{name}.zip" for name in TARGETS]


def test_a_second_run_shows_every_task_as_cached_and_publishes_nothing_new(tiny: Path, tmp_path: Path) -> None:
    run(tiny, publish=str(tmp_path))
    again = run(tiny, publish=str(tmp_path))

    assert (again.name, again.message) == ("Completed", "6 cached")
    assert task_states(again) == dict.fromkeys(TARGETS, "Cached")
    assert {run.state_type for run in task_runs(again)} == {StateType.COMPLETED}
    # In the UI each stands for itself, though all of them share a plan.
    assert [inputs for run in task_runs(again) for inputs in run.task_inputs.values() if inputs] == []
    assert [each.number for each in history(Store(), tmp_path)] == [1]


def test_what_changed_is_built_and_says_why_and_the_rest_is_cached(
    tiny: Path, copy_of: Callable[[Path], Path], store: Store
) -> None:
    directory = copy_of(tiny)
    run(directory, precisions=["fp16"])
    config = directory / "cosyvoice.yaml"
    config.write_text(
        re.sub(r"(encoder: !new:.*ConformerEncoder(?s:.*?)dropout_rate: )0.1", r"\g<1>0.2", config.read_text(), count=1)
    )
    missing = next(each.record for each in plan(directory, ["llm.llm"], ["fp16"]))
    assert missing is not None
    assert store.local is not None
    (store.local / "objects" / missing.sha256[:2] / missing.sha256).unlink()
    state = run(directory, precisions=["fp16"])

    messages = {run.name.split()[0]: run.state.message for run in task_runs(state) if run.state}
    assert state.message == "2 built, 1 cached"
    assert messages["llm.llm.fp16"] == "object missing"
    assert "dropout_rate 0.1 -> 0.2" in messages.values()
    assert "fresh" in messages.values()


def test_force_builds_what_has_not_changed(tiny: Path, tmp_path: Path) -> None:
    run(tiny, components=["flow.encoder"], publish=str(tmp_path))
    state = run(tiny, components=["flow.encoder"], publish=str(tmp_path), force=True)

    assert state.message == "2 built"


def test_the_record_names_the_runs(tiny: Path, tmp_path: Path) -> None:
    state = run(tiny, components=["flow.encoder"], precisions=["fp16"], publish=str(tmp_path))
    (outcome,) = state.result()
    (task_run,) = task_runs(state)

    assert outcome.record.run == {
        "prefect_flow_run": str(state.state_details.flow_run_id),
        "prefect_task_run": str(task_run.id),
    }


def test_the_environment_names_the_store(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSYJIT_STORE", str(tmp_path / "store"))
    run(tiny, components=["flow.encoder"], precisions=["fp16"], publish=str(tmp_path / "out"))

    assert len(list(Store(tmp_path / "store").objects())) == 1


def test_components_and_precisions_can_be_chosen(tiny: Path, tmp_path: Path) -> None:
    state = run(tiny, components=["llm.llm"], precisions=["bf16"], publish=str(tmp_path))

    assert task_states(state) == {"llm.llm.bf16": "Completed"}
    assert listing(tmp_path) == ["llm.llm.bf16.zip"]


def test_without_a_directory_the_zips_go_beside_the_checkpoint(tiny2: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(tiny2)

    run(directory)

    assert listing(directory) == sorted([*listing(tiny2), "flow.encoder.fp16.zip", "flow.encoder.fp32.zip"])


def kill_one_build(directory: Path) -> None:
    """Kill the process of a build for the store in `directory` just after it has begun: long before it has finished."""
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        servers = [child for child in psutil.Process().children() if "cosyjit.worker" in " ".join(child.cmdline())]
        builders = {child.pid for server in servers for child in server.children()}
        begun = builders - seen
        if begun and any(directory.glob("tmp/*/*")):
            os.kill(begun.pop(), signal.SIGKILL)
            return
        seen |= builders


def test_a_killed_build_fails_its_own_task_and_the_run_and_leaves_what_was_published(
    tiny: Path, tmp_path: Path, store: Store
) -> None:
    (tmp_path / "llm.llm.fp32.zip").write_bytes(b"earlier")
    killer = threading.Thread(target=kill_one_build, args=[store.local])
    killer.start()

    state = run(tiny, publish=str(tmp_path))
    killer.join()

    states = task_states(state)
    (failed,) = [name for name, task_state in states.items() if task_state == "Failed"]
    assert sorted(states) == sorted(TARGETS)
    assert set(states.values()) == {"Failed", "Completed"}
    assert state.name == "Failed"
    assert state.message is not None
    assert state.message.startswith(f"1 of 6 targets failed: {failed}: the build process was killed by SIGKILL")
    assert listing(tmp_path) == ["llm.llm.fp32.zip"]
    assert (tmp_path / "llm.llm.fp32.zip").read_bytes() == b"earlier"


def test_bad_input_is_one_line_in_the_state(tiny: Path, tmp_path: Path) -> None:
    missing = run(tmp_path / "missing")
    unknown = run(tiny, components=["llm.decoder"], publish=str(tmp_path))

    for state in (missing, unknown):
        assert state.name == "Failed"
        assert state.message is not None
        assert "\n" not in state.message
    assert "missing: does not exist" in str(missing.message)
    assert "'llm.decoder' is no component of CosyVoice" in str(unknown.message)
    assert listing(tmp_path) == []


def prefect(*arguments: str) -> str:
    """The `prefect` command in the repository, against the tests' server."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def deployed() -> None:
    prefect("work-pool", "create", "cosyjit", "--type", "process")
    prefect("deploy", "--all", "--no-prompt")


@pytest.mark.usefixtures("deployed")
def test_prefect_yaml_gives_the_deployment_export_cosyvoice() -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("export/cosyvoice")

    assert deployment.entrypoint == "flows/export.py:export"
    assert deployment.parameters["precisions"] == ["fp32", "fp16"]
    assert deployment.parameter_openapi_schema is not None
    assert deployment.parameter_openapi_schema["required"] == ["source"]
