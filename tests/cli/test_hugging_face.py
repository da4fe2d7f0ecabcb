"""From an id of Hugging Face to what is published of it, by the command line."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosyjit import Store
from cosyjit.planning.plan import find_targets
from cosyjit.processes import worker
from cosyjit.sources import hugging_face_client
from tests.support.hugging_face import MODEL, Hub
from tests.support.processes import Run
from tests.support.vllm_folders import FILES

SOURCE = f"hf:{MODEL}"
ONE = ["--component", "flow.encoder", "--precision", "fp16"]
TOKEN = "hf_0123456789"  # noqa: S105  (nobody's)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hugging_face_client, "_PAUSES", (0.0, 0.0))
    with Hub() as hub:
        hub.use(monkeypatch)
        yield hub


def publish(hub: Hub, directory: Path) -> str:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return hub.publish(MODEL, {str(path.relative_to(directory)): path for path in files})


def test_a_target_of_the_hub_is_that_of_a_directory(hub: Hub, tiny2: Path, store: Store) -> None:
    publish(hub, tiny2)
    here, there = (find_targets(each, ["llm.vllm"], store=store) for each in (tiny2, SOURCE))
    assert [each.fingerprint.key for each in here] == [each.fingerprint.key for each in there]
    assert sorted(hub.downloads) == [*FILES, "cosyvoice2.yaml", "llm.pt"]
    for each in there:
        each.check_unchanged()


@pytest.mark.slow
def test_an_id_is_planned_exported_traced_and_looked_at(
    hub: Hub, tiny: Path, run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.stop()  # one that has another home
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    commit = publish(hub, tiny)
    place = home / ".cache" / "cosyjit" / "huggingface" / MODEL
    said = [run("plan", "--source", SOURCE, *ONE), run("export", "--source", SOURCE, *ONE, "--json")]
    assert [each.status for each in said] == [0, 0], said
    assert json.loads(said[1].out)["targets"][0]["path"] == str(place / "flow.encoder.fp16.zip")
    assert sorted(hub.downloads) == ["cosyvoice.yaml", "flow.pt"]

    said.append(run("lineage", place / "flow.encoder.fp16.zip", "--json"))
    definition = json.loads(said[-1].out)["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["source"] == f"{SOURCE}@{commit}"
    assert [each["uri"] for each in definition["resolvedDependencies"]] == [
        f"{hub.endpoint}/{MODEL}/resolve/{commit}/{name}" for name in ("cosyvoice.yaml", "flow.pt")
    ]

    hub.requests.clear()
    said.append(run("status", place))
    assert (said[-1].status, hub.requests) == (0, [])
    assert f"Compared with {SOURCE}@{commit}, the last commit on this machine" in said[-1].out
    hub.publish(MODEL, {"flow.pt": b"other"})
    said.append(run("status", place, "--check-source"))
    assert said[-1].status == 1
    assert "flow.pt of this revision is not on this machine yet" in " ".join(said[-1].out.split())
    assert [each.kind for each in hub.requests] == ["info"]

    kept = [path for path in home.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert [path for path in kept if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in str(said)


def test_the_debug_log_has_no_token(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSYJIT_LOG", "debug")
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN} {TOKEN}")
    hub.token = TOKEN
    ran = run("plan", "--source", SOURCE)
    assert ran.status == 2
    assert "no such model on 127.0.0.1" in ran.err
    assert TOKEN not in ran.err + ran.out


@pytest.mark.parametrize("command", ["export", "plan", "notify"])
def test_what_is_no_id_is_refused_in_one_line(
    command: str, run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", hub.endpoint)
    ran = run(command, "--source", "hf:a/b@")
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("cosyjit: hf:a/b@: is not a Hugging Face id; write one such as hf:")
    assert hub.requests == []
