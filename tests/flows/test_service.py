"""The service as docs/prefect.md starts it: a real server, work pool, deployments and workers, on loopback."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cosyjit import history
from cosyjit.prefect_api import Server
from tests.flows.service import PATIENCE, Service, page_commands, serving, shown, start_worker
from tests.support.checkpoints import retrain
from tests.support.processes import wait_for

pytestmark = pytest.mark.stress


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one worker."""
    with serving(tmp_path_factory.mktemp("service")) as started:
        start_worker(started)
        yield started


TARGETS = {
    f"{component}.{precision}"
    for component in ("llm.text_encoder", "llm.llm", "flow.encoder")
    for precision in ("fp32", "fp16")
}


def test_the_commands_of_the_readme_export_and_then_show_every_task_cached(
    service: Service, tiny: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(tiny)
    command = page_commands()[-1].replace("/models/CosyVoice-300M", shlex.quote(str(directory)))
    assert str(directory) in command

    service.run(command)
    service.run(command)

    again, first = service.flow_runs()[:2]
    assert shown(service.tasks(first["id"])) == dict.fromkeys(TARGETS, "Completed")
    assert shown(service.tasks(again["id"])) == dict.fromkeys(TARGETS, "Cached")
    assert (first["state"]["message"], again["state"]["message"]) == ("6 built", "6 cached")
    assert {path.name for path in directory.glob("*.zip")} == {f"{target}.zip" for target in TARGETS}


def test_the_file_holds_a_deployment_for_each_family_with_all_that_they_need(service: Service) -> None:
    found = {each["name"]: each for each in service.ask("deployments/filter")}
    automations = service.ask("automations/filter")

    sources = {name: each["parameters"]["source"] for name, each in found.items()}
    assert sources == {
        "cosyvoice": "iic/CosyVoice-300M",
        "cosyvoice2": "iic/CosyVoice2-0.5B",
        "cosyvoice3": "FunAudioLLM/Fun-CosyVoice3-0.5B-2512",
    }
    for name, family in (("cosyvoice", "CosyVoice"), ("cosyvoice2", "CosyVoice2"), ("cosyvoice3", "CosyVoice3")):
        deployment = found[name]
        assert deployment["entrypoint"] == "flows/export.py:export"
        assert deployment["description"]
        assert deployment["tags"] == ["cosyjit", family]
        choices = {"source", "components", "precisions", "publish"}
        assert set(deployment["parameters"]) == {*choices, "force", "replace", "build"}
        assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        assert deployment["global_concurrency_limit"]["limit"] == 1
        (schedule,) = deployment["schedules"]
        assert not schedule["active"]
        assert schedule["schedule"]["timezone"] == "UTC"
        (trigger,) = [each["trigger"] for each in automations if each["name"].startswith(f"{name}__")]
        assert (trigger["expect"], trigger["match"]) == (["cosyjit.checkpoint.updated"], {"cosyjit.family": family})
        form = deployment["parameter_openapi_schema"]["properties"]
        assert all(field["description"] for field in form.values())


def test_the_server_plans_runs_by_the_schedules_that_somebody_has_chosen_alone(service: Service) -> None:
    def planned() -> set[str]:
        runs = service.ask("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
        return {run["deployment_id"] for run in runs if run["auto_scheduled"]}

    chosen = next(each for each in service.ask("deployments/filter") if each["name"] == "cosyvoice2")
    (schedule,) = chosen["schedules"]
    service.run(f"prefect deployment schedule resume export/cosyvoice2 {schedule['id']}")
    try:
        assert wait_for(planned, seconds=PATIENCE) == {chosen["id"]}
    finally:
        service.run(f"prefect deployment schedule pause export/cosyvoice2 {schedule['id']}")


def test_a_notice_of_a_checkpoint_exports_what_changed_of_it_by_the_deployment_of_its_family(
    service: Service, tiny2: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(tiny2)
    before = {run["id"] for run in service.flow_runs()}

    def new() -> list[dict[str, Any]]:
        """Of those by their schedules, one may begin meanwhile."""
        runs = [run for run in service.flow_runs() if run["id"] not in before]
        return [run for run in runs if run["parameters"]["source"] == str(directory)]

    def told() -> dict[str, str]:
        (run,) = wait_for(new, seconds=PATIENCE)
        ended = service.wait_for_end(run["id"])
        before.add(run["id"])
        assert "CosyVoice2" in ended["tags"]
        assert ended["state_type"] == "COMPLETED"
        return shown(service.tasks(run["id"]))

    said = service.run(f"cosyjit notify {shlex.quote(str(directory))}")
    assert said == f"{service.api} knows that {directory} was updated\n"
    halves = {"flow.encoder.fp32": "Completed", "flow.encoder.fp16": "Completed"}
    assert told() == {**halves, "llm.vllm.bf16": "Completed"}

    retrain(directory, "flow.pt", "encoder.")
    Server(service.api).notify(str(directory), "CosyVoice2")
    assert told() == {**halves, "llm.vllm.bf16": "Cached"}
    assert [each.number for each in history(directory, store=service.store)] == [2, 1]
