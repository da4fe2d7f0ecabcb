"""The flow against a real Prefect server."""

import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import requests
from prefect.client.orchestration import get_client
from prefect.client.schemas import State, TaskRun
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, StateType, TaskRunResult
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import ReceivedEvent
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import ValidationError, validate

from cosyjit import Store, history, plan
from cosyjit.families import FAMILIES, PRECISIONS
from cosyjit.flows.export import _forward_logs, export
from cosyjit.processes import worker
from cosyjit.provenance import record
from cosyjit.provenance.record import Material
from cosyjit.reports.run_page import run_name, short_names
from tests.support import s3 as s3_server
from tests.support.checkpoints import change, retrain
from tests.support.hostile_text import HOSTILE, acting
from tests.support.http import Asked, answering
from tests.support.keys import pair
from tests.support.modelscope import MODEL, Hub
from tests.support.processes import Run, wait_for
from tests.support.telemetry import Told

pytestmark = pytest.mark.usefixtures("server")

TARGETS = [
    f"{component}.{precision}"
    for component in ("llm.text_encoder", "llm.llm", "flow.encoder")
    for precision in ("fp32", "fp16")
]


def run(source: str | Path, **parameters: Any) -> State[Any]:
    state = export(str(source), **parameters, return_state=True)
    assert isinstance(state, State)
    return state


def task_runs(state: State[Any]) -> list[TaskRun]:
    """The flow run's tasks, as the UI shows them once the server has heard of the end of the last one."""
    run_id = state.state_details.flow_run_id
    assert isinstance(run_id, UUID)

    def ended() -> list[TaskRun]:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
        plans = [run for run in found if run.name.startswith("plan") and run.state_type is StateType.COMPLETED]
        published = [run for run in found if run.name.startswith("publish")]
        are_final = all(run.state is not None and run.state.is_final() for run in found)
        return found if are_final and len(plans) == len(published) else []

    with get_client(sync_client=True) as client:
        return wait_for(ended)


def target_runs(state: State[Any]) -> list[TaskRun]:
    """Those of its tasks that make targets."""
    return [run for run in task_runs(state) if run.name.split()[0] not in {"plan", "publish"}]


def step(state: State[Any], name: str) -> tuple[str | None, str | None]:
    """Name and message of the state of the flow run's one task of a name."""
    (found,) = [run for run in task_runs(state) if run.name == name]
    assert found.state is not None
    return found.state.name, found.state.message


def task_states(state: State[Any]) -> dict[str, str]:
    """Targets of the flow run's tasks to the names of their states."""
    return {run.name.split()[0]: run.state_name or "" for run in target_runs(state)}


def edges(state: State[Any]) -> set[tuple[str, str]]:
    """What the flow run's graph draws from where to where, by the first words of the names of tasks."""
    runs = {run.id: run for run in task_runs(state)}
    return {
        (runs[before.id].name.split()[0], run.name.split()[0])
        for run in runs.values()
        for inputs in run.task_inputs.values()
        for before in inputs
        if isinstance(before, TaskRunResult)
    }


def listing(directory: Path) -> list[str]:
    """What is shown in a directory, without cosyjit's own files."""
    return sorted(path.name for path in directory.iterdir() if path.name not in {".cosyjit", "cosyjit.json"})


def flow_run_name(state: State[Any]) -> str:
    run_id = state.state_details.flow_run_id
    assert isinstance(run_id, UUID)
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).name


def test_the_form_offers_components_and_precisions_and_the_server_refuses_others() -> None:
    schema = parameter_schema(export).model_dump()
    components, precisions = (
        schema["properties"][name]["anyOf"][0]["items"]["enum"] for name in ("components", "precisions")
    )
    assert set(components) == {part.name for family in FAMILIES for part in family.components} | {"all"}
    assert precisions == [*PRECISIONS, "all"]
    for chosen, precision in (("all", "fp16"), ("llm.*", "all"), ("llm.llm,flow.encoder", "streaming.*"), ("*", "fp?")):
        given = {"source": "a", "components": [chosen], "precisions": [precision, "fp32"]}
        validate(given, schema, raise_on_error=True)
    for name in ("fp61", "FP61", "xfp32", "streaming-fp32"):
        with pytest.raises(ValidationError, match=name):
            validate({"source": "a", "precisions": [name]}, schema, raise_on_error=True)


def test_each_target_is_a_task_of_its_name_and_key_and_all_are_published(tiny: Path, tmp_path: Path) -> None:
    state = run(tiny, precisions=["fp16"], publish=str(tmp_path))
    names = [name for name in TARGETS if name.endswith(".fp16")]

    assert (state.name, state.message) == ("Completed", "3 built")
    assert task_states(state) == dict.fromkeys(names, "Completed")
    keys = {each.target.name: each.target.fingerprint.key for each in plan(tiny, precisions=["fp16"])}
    assert sorted(run.name for run in target_runs(state)) == sorted(f"{name} {key} build" for name, key in keys.items())
    assert step(state, "plan") == ("Completed", f"{tiny}: 3 to build, 0 cached")
    assert step(state, "publish") == ("Completed", f"Published in {tmp_path}")
    assert edges(state) == {edge for name in names for edge in [("plan", name), (name, "publish")]}
    assert flow_run_name(state) == run_name([str(tiny)])
    assert listing(tmp_path) == sorted(f"{name}.zip" for name in names)
    assert [outcome.path for outcome in state.result()] == [tmp_path / f"{name}.zip" for name in names]


def test_a_second_run_shows_every_task_as_cached_and_publishes_nothing_new(
    tiny: Path, tmp_path: Path, stock: Callable[..., None]
) -> None:
    stock(tiny)
    run(tiny, publish=str(tmp_path))
    again = run(tiny, publish=str(tmp_path))

    assert (again.name, again.message) == ("Completed", "6 cached")
    assert task_states(again) == dict.fromkeys(TARGETS, "Cached")
    assert {run.name.split()[2] for run in target_runs(again)} == {"cached"}
    assert {run.state_type for run in task_runs(again)} == {StateType.COMPLETED}
    assert edges(again) == {edge for name in TARGETS for edge in [("plan", name), (name, "publish")]}
    assert [each.number for each in history(tmp_path, store=Store())] == [1]


@pytest.mark.slow
def test_spans_of_a_run_are_below_those_of_its_tasks(
    tiny: Path, tmp_path: Path, stock: Callable[..., None], told: Told
) -> None:
    stock(tiny, ["flow.encoder"], ["fp16"])
    told.clear()
    run(tiny, components=["flow.encoder"], precisions=["fp16"], publish=str(tmp_path))
    names = {span.context.span_id: span.name for span in told.spans}
    above = {span.name: names[span.parent.span_id].split()[0] for span in told.own() if span.parent}
    assert above == {
        "plan": "plan",
        "begin": "plan",
        "build flow.encoder.fp16": "flow.encoder.fp16",
        "copy": "build",
        "publish": "publish",
    }
    assert len({span.context.trace_id for span in told.spans}) == 1
    assert [each.attributes["state"] for each in told.measured()["cosyjit.targets"]] == ["cached"]


@pytest.mark.slow
def test_what_changed_is_built_and_says_why_and_the_rest_is_cached(
    tiny: Path, copy_of: Callable[[Path], Path], store: Store, stock: Callable[..., None]
) -> None:
    directory = copy_of(tiny)
    stock(directory, precisions=["fp16"])
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

    messages = {run.name.split()[0]: run.state.message for run in target_runs(state) if run.state}
    assert state.message == "2 built, 1 cached"
    assert messages["llm.llm.fp16"] == "object missing"
    assert "dropout_rate 0.1 -> 0.2" in messages.values()
    assert "fresh" in messages.values()


@pytest.mark.slow
def test_force_builds_what_has_not_changed(tiny: Path, tmp_path: Path, stock: Callable[..., None]) -> None:
    stock(tiny, ["flow.encoder"])
    run(tiny, components=["flow.encoder"], publish=str(tmp_path))
    state = run(tiny, components=["flow.encoder"], publish=str(tmp_path), force=True)

    assert state.message == "2 built"


@pytest.mark.slow
def test_the_record_names_the_runs(tiny: Path, tmp_path: Path) -> None:
    state = run(tiny, components=["flow.encoder"], precisions=["fp16"], publish=str(tmp_path))
    (outcome,) = state.result()
    (task_run,) = target_runs(state)

    assert outcome.record.run == {
        "prefect_flow_run": str(state.state_details.flow_run_id),
        "prefect_task_run": str(task_run.id),
    }


@pytest.mark.slow
def test_the_environment_names_the_store(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSYJIT_STORE", str(tmp_path / "store"))
    run(tiny, components=["flow.encoder"], precisions=["fp16"], publish=str(tmp_path / "out"))

    assert len(list(Store(tmp_path / "store").objects())) == 1


@pytest.mark.slow
def test_the_environment_names_the_keys(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = pair(tmp_path)
    one = {"components": ["flow.encoder"], "precisions": ["fp16"], "publish": str(tmp_path / "out")}
    monkeypatch.setenv("COSYJIT_REQUIRE_SIGNATURE", str(keys.public))
    assert "flow.encoder.fp16: would be built, and" in (run(tiny, **one).message or "")
    monkeypatch.setenv("COSYJIT_SIGN", str(keys.private))
    assert run(tiny, **one).message == "1 built"
    monkeypatch.delenv("COSYJIT_SIGN")
    assert run(tiny, **one).message == "1 cached"


@pytest.mark.slow
def test_components_and_precisions_can_be_chosen(tiny: Path, tmp_path: Path) -> None:
    state = run(tiny, components=["llm.llm"], precisions=["bf16"], publish=str(tmp_path))

    assert task_states(state) == {"llm.llm.bf16": "Completed"}
    assert listing(tmp_path) == ["llm.llm.bf16.zip"]


@pytest.mark.slow
def test_without_builds_what_the_store_has_is_published_and_what_it_lacks_is_named(
    tiny: Path, tmp_path: Path, store: Store, stock: Callable[..., None]
) -> None:
    stock(tiny, ["flow.encoder"], ["fp16"])
    state = run(tiny, components=["flow.*"], precisions=["fp16", "b*"], publish=str(tmp_path), build=False)

    why = f"is not in {store} (new), and --no-build builds nothing; export it into that store without it"
    assert state.message == f"1 of 2 targets failed: flow.encoder.bf16: {why}"
    assert (target_runs(state), listing(tmp_path)) == ([], [])
    state = run(tiny, components=["flow.*"], precisions=["fp16"], publish=str(tmp_path), build=False)
    assert (state.message, listing(tmp_path)) == ("1 cached", ["flow.encoder.fp16.zip"])


@pytest.mark.slow
def test_the_estimator_is_exported_where_it_is_asked_for(tiny2: Path, tmp_path: Path) -> None:
    name = "flow.decoder.estimator"
    (tmp_path / f"{name}.fp16.mygpu.plan").write_bytes(b"plan")
    state = run(tiny2, components=[name], precisions=["fp32", "streaming.fp32"], publish=str(tmp_path))

    assert (state.name, state.message) == ("Completed", "2 built")
    assert task_states(state) == {f"{name}.fp32": "Completed", f"{name}.streaming.fp32": "Completed"}
    files = [f"{name}.fp16.mygpu.plan.1", f"{name}.fp32.onnx", f"{name}.streaming.fp32.onnx"]
    assert listing(tmp_path) == files


@pytest.mark.slow
def test_without_a_directory_the_zips_go_beside_the_checkpoint(tiny2: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(tiny2)

    run(directory)

    published = ["flow.encoder.fp16.zip", "flow.encoder.fp32.zip", "vllm"]
    assert listing(directory) == sorted([*listing(tiny2), *published])


def kill_one_build(directory: Path) -> None:
    """Kill the process of a build for the store in `directory` just after it has begun: long before it has finished."""
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        servers = [
            child for child in psutil.Process().children() if "cosyjit.processes.worker" in " ".join(child.cmdline())
        ]
        builders = {child.pid for server in servers for child in server.children()}
        begun = builders - seen
        if begun and any(directory.glob("tmp/*/*")):
            os.kill(begun.pop(), signal.SIGKILL)
            return
        seen |= builders


@pytest.mark.slow
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
    assert step(state, "publish") == ("Skipped", state.message)
    assert listing(tmp_path) == ["llm.llm.fp32.zip"]
    assert (tmp_path / "llm.llm.fp32.zip").read_bytes() == b"earlier"


def test_bad_input_is_one_line_in_the_state(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = run(tmp_path / "missing")
    monkeypatch.chdir(tmp_path)
    relative = run("./models/lost")
    unknown = run(tiny, components=["llm.decoder"], publish=str(tmp_path))

    for state in (missing, relative, unknown):
        assert state.name == "Failed"
        assert state.message is not None
        assert "\n" not in state.message
    assert "missing: does not exist" in str(missing.message)
    assert "'llm.decoder' is not a component of CosyVoice" in str(unknown.message)
    assert step(missing, "plan") == ("Failed", missing.message)
    assert len(task_runs(missing)) == 1
    assert listing(tmp_path) == []


@pytest.mark.slow
def test_the_environment_asks_for_the_causes_in_the_log_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: logged.extend(record.getMessage().splitlines()))
    logger = logging.getLogger("prefect.task_runs")
    logger.addHandler(handler)
    try:
        run(tmp_path / "missing")
        assert [line for line in logged if "Traceback" in line] == []
        monkeypatch.setenv("COSYJIT_LOG", "debug")
        run(tmp_path / "missing")
        assert [line for line in logged if line.startswith("cosyjit.errors.SourceError: ")] != []
    finally:
        logger.removeHandler(handler)
    monkeypatch.setenv("COSYJIT_LOG", "loud")
    assert run(tmp_path / "missing").message == "COSYJIT_LOG=loud: is not a level of the log; give debug or info"


@pytest.mark.slow
def test_what_is_no_source_or_no_single_place_is_one_line_as_well(tiny: Path, tmp_path: Path) -> None:
    none = export([], return_state=True)
    empty = export([str(tiny), ""], return_state=True)
    nowhere = export(str(tiny), publish="", return_state=True)
    one_place = export([str(tiny), str(tiny)], publish=str(tmp_path), return_state=True)
    twice = export([str(tiny), str(tiny)], return_state=True)

    assert none.message == empty.message == "no source is given; name a model directory or the id of a model on a hub"
    told = "publish: is empty; name a directory, or give null to publish beside the checkpoint"
    assert nowhere.message == told
    assert twice.message == f"{tiny}: is given twice; name it once"
    assert one_place.message == f"{tmp_path}: is one directory for 2 sources; publish them one by one"
    assert listing(tmp_path) == []


def test_a_store_in_the_place_of_what_is_published_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSYJIT_STORE", str(tmp_path))
    state = run(tiny, publish=str(tmp_path))

    assert state.name == "Failed"
    assert "name another store, to which `cosyjit copy-store` brings what this one has" in str(state.message)
    assert listing(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["much", "-1", "0", "1e400"])
def test_a_setting_that_is_none_is_one_line_as_well(
    memory: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSYJIT_MEMORY", memory)
    state = run(tiny, publish=str(tmp_path))

    assert (
        state.message == f"COSYJIT_MEMORY={memory}: is not an amount of memory; give a number of GB, such as 8 or 0.5"
    )


@pytest.mark.slow
def test_several_sources_are_exported_in_one_run_and_a_bad_one_stops_no_other(
    tiny: Path, tiny2: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    one, two, missing = copy_of(tiny), copy_of(tiny2), tmp_path / "missing"
    good = export([str(one), str(two)], precisions=["fp32"], return_state=True)
    bad = export([str(missing), str(one), str(two)], precisions=["fp32"], return_state=True)

    assert (good.name, good.message) == ("Completed", "5 built")
    assert (one / "llm.llm.fp32.zip").exists()
    assert (two / "flow.encoder.fp32.zip").exists()
    assert bad.name == "Failed"
    assert str(bad.message).startswith(f"{missing}: does not exist; ")
    assert sorted(task.state_name or "" for task in target_runs(bad)) == ["Cached"] * 5
    assert flow_run_name(good) == run_name([str(one), str(two)])
    names = dict(zip([one, two, missing], short_names([str(one), str(two), str(missing)]), strict=True))
    assert step(bad, f"plan {names[missing]}")[0] == "Failed"
    steps = [run.name for run in task_runs(bad) if run.name.startswith("publish")]
    assert sorted(steps) == sorted(f"publish {names[each]}" for each in (one, two))


def artifacts(state: State[Any]) -> dict[str, Artifact]:
    """What a run has left, by kinds."""
    run_id = state.state_details.flow_run_id
    assert isinstance(run_id, UUID)
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted)
    return {str(artifact.type): artifact for artifact in found}


def test_each_run_leaves_a_table_and_a_page(
    tiny: Path, copy_of: Callable[[Path], Path], stock: Callable[..., None]
) -> None:
    directory = copy_of(tiny)
    stock(directory)
    first = artifacts(run(directory))
    retrain(directory, "llm.pt", "llm.")
    again = artifacts(run(directory))

    assert set(first) == set(again) == {"table", "markdown"}
    assert {kind: each.key for kind, each in first.items()} == {kind: each.key for kind, each in again.items()}
    rows = {row["target"]: row for row in json.loads(str(again["table"].data))}
    assert set(rows) == set(TARGETS)
    assert {name: row["state"] for name, row in rows.items()} == {
        name: "built" if name.startswith("llm.llm") else "cached" for name in TARGETS
    }
    assert "tensors changed" in rows["llm.llm.fp16"]["why"]
    assert float(rows["llm.llm.fp16"]["speed-up"]) > 0
    (made,) = [each.record for each in plan(directory, ["llm.llm"], ["fp16"])]
    assert made is not None
    page = str(again["markdown"].data)
    assert f"`{made.sha256[:12]}`" in page
    assert "## Publications 1 to 2" in page
    assert "](data:image/svg+xml;base64," in page


def test_a_run_that_fails_leaves_them_too(tmp_path: Path) -> None:
    failed = artifacts(run(tmp_path / "missing"))

    assert json.loads(str(failed["table"].data)) == []
    assert "missing: does not exist" in str(failed["markdown"].data)


STRANGE = "".join(HOSTILE)
"""A text of strangers that is all of them in one."""


def check_shown(state: State[Any]) -> None:
    """See that a run shows texts of strangers as text: in its page, its table, the messages of states, and its log."""
    left = artifacts(state)
    rows = json.loads(str(left["table"].data))
    assert [acting(cell) for row in rows for cell in row.values() if acting(cell)] == []
    assert acting(str(left["markdown"].data)) == []
    assert str(left["markdown"].data).replace("\n", "").isprintable()
    messages = [run.state.message for run in task_runs(state) if run.state]
    for text in (state.message, *messages, *(line for entry in logged(state) for line in entry.split("\n"))):
        assert text is None or text.isprintable()


@pytest.mark.slow
def test_what_stands_in_the_files_of_a_source_that_fails_is_shown_as_text(
    tiny: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    directory, missing = (
        copy_of(tiny),
        f"{tmp_path}/{STRANGE.translate({0: None, 0xDCFF: None, 0xDC80: None, 0xD800: None})}",
    )
    change(directory, "flow.pt", lambda state: state.update({f"encoder.{STRANGE}": state["encoder.embed.out.0.bias"]}))
    failed = run(directory, components=["flow.encoder"], precisions=["fp16"])
    several = export([str(directory), missing], components=["flow.encoder"], precisions=["fp16"], return_state=True)

    assert "1 unexpected" in str(failed.message)
    assert "does not exist" in str(several.message)
    for state in (failed, several):
        check_shown(state)


@pytest.mark.slow
def test_what_a_record_says_and_what_directories_are_called_is_shown_as_text(
    tiny: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(tmp_path, *(text.replace("\0", "").replace("\ud800", "") for text in HOSTILE))
    shutil.copytree(tiny, place / "model")
    monkeypatch.chdir(place)  # a parameter of a run is UTF-8, the directory that it is in need not be
    one: dict[str, Any] = {"components": ["flow.encoder"], "precisions": ["fp16"]}
    built = run("model", **one)
    (made,) = [each.record for each in plan("model", **one)]
    assert made is not None
    texts: dict[str, Any] = dict.fromkeys(("name", "started", "finished", "component", "source"), STRANGE)
    materials, versions = (Material(STRANGE, STRANGE, "1" * 64, STRANGE),), {STRANGE: STRANGE}
    figures = {**made.figures, STRANGE: 1.0}
    record.save(store, replace(made, **texts, materials=materials, versions=versions, figures=figures))
    cached = run("model", **one)

    assert (built.message, cached.message) == ("1 built", "1 cached")
    for state in (built, cached):
        check_shown(state)


@pytest.mark.slow
def test_the_server_hears_of_the_assets_that_were_built_and_of_no_others(
    tiny: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(tiny)
    run(directory, components=["flow.encoder"], precisions=["fp32"])
    run(directory, components=["flow.encoder"], precisions=["fp32", "fp16"])
    prefix = f"cosyjit:/{directory}/"

    def told() -> list[ReceivedEvent]:
        wanted = EventFilter(
            event=EventNameFilter(name=["prefect.asset.materialization.succeeded"]),
            resource=EventResourceFilter(id_prefix=[prefix]),
        )
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/events/filter", json={"filter": wanted.model_dump(mode="json")}).json()
        return [ReceivedEvent.model_validate(each) for each in found["events"]]

    events = {
        event.resource.id.removeprefix(prefix): event for event in wait_for(lambda: told() if len(told()) > 1 else [])
    }
    assert set(events) == {"flow.encoder.fp32.zip", "flow.encoder.fp16.zip"}
    made = plan(directory, ["flow.encoder"], ["fp16"])[0].record
    assert made is not None
    event = events["flow.encoder.fp16.zip"]
    assert event.payload["sha256"] == made.sha256
    assert f"checkpoint:/{directory}" in {related.id for related in event.related}
    assert len(told()) == len(events)


def logged(state: State[Any]) -> list[str]:
    """The log of a flow run, once it has all of it."""
    run_id = state.state_details.flow_run_id
    assert isinstance(run_id, UUID)
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:

        def read() -> list[str]:
            return [line.message for line in client.read_logs(log_filter=wanted, limit=200)]

        wait_for(lambda: any(line.startswith("Finished in state") for line in read()))
        return read()


# A hub, and a store that others share.


@pytest.mark.slow
def test_an_id_is_exported_and_pinned_and_nothing_new_downloads_nothing(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.stop()  # one that has another home
    with Hub() as hub:
        hub.use(monkeypatch)
        commit = hub.publish(MODEL, {path.name: path for path in tiny.iterdir()})
        first = run(MODEL, components=["flow.encoder"])
        downloads = list(hub.downloads)
        again = run(MODEL, components=["flow.encoder"])
        missing = run(f"{MODEL}@v9", components=["flow.encoder"])
        assert hub.downloads == downloads
    down = run(MODEL, components=["flow.encoder"])

    assert (first.message, again.message, down.message) == ("2 built", "2 cached", "2 cached")
    assert sorted(downloads) == ["cosyvoice.yaml", "flow.pt"]
    outcome = first.result()[0]
    assert outcome.record.source == f"{MODEL}@{commit}"
    assert outcome.path.parent == home / ".cache" / "cosyjit" / "modelscope" / MODEL
    assert missing.name == "Failed"
    said = f"{MODEL} has no revision v9 on {hub.endpoint.removeprefix('http://')}; it has master"
    here = f"the directory {Path.cwd() / MODEL}@v9 does not exist"
    assert missing.message == f"{MODEL}@v9: {here}; as a ModelScope id: {said}"
    assert any(f"commit {commit} is used" in line for line in logged(down))


@pytest.mark.slow
def test_a_store_that_is_not_there_is_one_line_and_one_that_is_away_is_tried_again(
    s3: s3_server.Service, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSYJIT_STORE", "s3://there-is-no-such-bucket/store")
    missing = run(tiny, publish=str(tmp_path))
    monkeypatch.setenv("COSYJIT_STORE", s3.url())
    built = run(tiny, components=["flow.encoder"], publish=str(tmp_path))

    assert missing.name == "Failed"
    assert str(missing.message).startswith("s3://there-is-no-such-bucket/store: ")
    assert len(str(missing.message).splitlines()) == 1
    assert "tried again" not in "\n".join(logged(missing))
    assert built.message == "2 built"


class _Once(logging.Handler):
    """Sees when a run's log has a word, and counts how often."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word, self.seen = word, 0

    def emit(self, record: logging.LogRecord) -> None:
        self.seen += self.word in record.getMessage()


@pytest.mark.stress
@pytest.mark.parametrize(
    ("method", "folder"),
    [("GET", "records/"), ("PUT", "objects/"), ("PUT", "publications/")],
    ids=["planning", "building", "publishing"],
)
def test_what_may_pass_is_tried_again_after_the_clients_own_tries(
    method: str,
    folder: str,
    s3: s3_server.Service,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retried = _Once("Retry 1/2 will start")
    monkeypatch.setenv("COSYJIT_STORE", s3.url())
    logging.getLogger("prefect.task_runs").addHandler(retried)
    try:
        with s3.proxied(
            lambda verb, path: (
                s3_server.Answer(503, "SlowDown") if verb == method and not retried.seen and folder in path else None
            )
        ):
            state = run(tiny, components=["flow.encoder"], precisions=["fp32"], publish=str(tmp_path))
    finally:
        logging.getLogger("prefect.task_runs").removeHandler(retried)

    assert state.message == "1 built"
    assert retried.seen == 1
    assert listing(tmp_path) == ["flow.encoder.fp32.zip"]


@contextmanager
def older(version: str) -> Iterator[str]:
    """The tests' server as one that says to be of another version; the URL of its API."""
    api = str(PREFECT_API_URL.value())

    def answer(asked: Asked) -> tuple[int, bytes]:
        if asked.path.endswith("/admin/version"):
            return 200, json.dumps(version).encode()
        given = requests.request(
            asked.method, api.removesuffix("/api") + asked.path, json=asked.body, headers=asked.headers, timeout=30
        )
        return given.status_code, given.content

    with answering(answer) as (url, _):
        yield url


@pytest.mark.slow
def test_an_older_server_fails_the_run_with_one_line(tiny: Path, tmp_path: Path) -> None:
    with older("3.7.1") as url, temporary_settings({PREFECT_API_URL: url}):
        state = run(tiny, publish=str(tmp_path))
        APILogHandler().flush()  # or Prefect's thread would look for this server later, and tell of it amid other tests

    assert state.name == "Failed"
    assert state.message == f"{url}: Prefect 3.7.1 is older than 3.8, which cosyjit needs; upgrade the server"
    assert listing(tmp_path) == []


def test_another_model_of_a_name_keeps_its_deployment_and_no_other_changes(
    tiny: Path, tmp_path: Path, run: Run
) -> None:
    first = Path(shutil.copytree(tiny, tmp_path / "first"))
    nightly = [DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)]
    with get_client(sync_client=True) as client:
        flow = client.create_flow(export)
        served = {first.name: str(first), tiny.name: "/models/other"}
        made = [
            client.create_deployment(flow_id=flow, name=name, parameters={"source": source}, schedules=nightly)
            for name, source in served.items()
        ]
        try:
            ran = run("serve", first, tiny)
            kept = [client.read_deployment(each) for each in made]
        finally:
            for each in made:
                client.delete_deployment(each)
    name = f"export/{tiny.name}"
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        f"cosyjit: {name}: exports /models/other on this server; give another name with --name, or remove it with "
        f"`prefect deployment delete {name}`\n"
    )
    assert [each.parameters for each in kept] == [{"source": source} for source in served.values()]
    assert [len(each.schedules) for each in kept] == [1, 1]


def test_a_strangers_text_in_cosyjits_log_is_escaped_before_prefects_handlers_have_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _forward_logs()
    logging.getLogger("cosyjit").warning("%s: is read", "a\x1b[31mred\nname")
    (record,) = (each for each in caplog.records if each.name == "cosyjit")
    assert record.getMessage() == "a\\x1b[31mred\\nname: is read"
