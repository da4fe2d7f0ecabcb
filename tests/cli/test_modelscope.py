"""From a ModelScope id to zips, by the command line and by the calls behind it."""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cosyjit import Store
from cosyjit.configuration.base_model import read_qwen2_config
from cosyjit.families import FAMILIES
from cosyjit.planning.plan import find_targets, localize
from cosyjit.weights.tensor_digests import are_remembered
from tests.support.checkpoints import retrain
from tests.support.modelscope import MODEL, Hub
from tests.support.processes import CONSOLE_SCRIPT, Ran, finished, shown, spawn
from tests.support.vllm_folders import FILES

Copy = Callable[[Path], Path]

ONE = ["--component", "flow.encoder", "--precision", "fp16"]
ZIP = "flow.encoder.fp16.zip"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.use(monkeypatch)
        yield hub


def publish(hub: Hub, directory: Path, model: str = MODEL) -> str:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return hub.publish(model, {str(path.relative_to(directory)): path for path in files})


def cosyjit(*arguments: object) -> Ran:
    return finished(spawn(CONSOLE_SCRIPT, *arguments))


def answer(*arguments: object, status: int = 0) -> dict[str, Any]:
    """What a command says in JSON, and nothing else."""
    ran = cosyjit(*arguments, "--json")
    assert ran.status == status
    assert all(": downloading " in line for line in ran.err.splitlines())
    found: dict[str, Any] = json.loads(ran.out)
    return found


def target(found: dict[str, Any]) -> dict[str, Any]:
    (only,) = found["targets"]
    return dict(only)


@pytest.mark.stress
def test_an_id_is_exported_looked_at_traced_and_exported_again(
    hub: Hub, tiny: Path, copy_of: Copy, home: Path, tmp_path: Path
) -> None:
    directory = copy_of(tiny)
    first = publish(hub, directory)
    place = home / ".cache" / "cosyjit" / "modelscope" / MODEL
    assert target(answer("plan", MODEL, *ONE))["state"] == "new"
    assert target(answer("export", MODEL, *ONE))["path"] == str(place / ZIP)
    assert sorted(hub.downloads) == ["cosyvoice.yaml", "flow.pt"]
    assert list(shown(place)) == [ZIP]
    assert cosyjit("status", place).status == 0

    statement = answer("lineage", place / ZIP)
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["source"] == f"{MODEL}@{first}"
    assert [each["uri"] for each in definition["resolvedDependencies"]] == [
        f"{hub.endpoint}/api/v1/models/{MODEL}/repo?Revision={first}&FilePath={name}"
        for name in ("cosyvoice.yaml", "flow.pt")
    ]

    hub.requests.clear()
    assert target(answer("export", MODEL, *ONE))["state"] == "cached"
    assert [each.kind for each in hub.requests] == ["listing"]

    moved = retrain(directory, "flow.pt", "encoder.")
    second = publish(hub, directory)
    hub.requests.clear()
    quiet = cosyjit("status", place)
    assert (quiet.status, hub.requests) == (0, [])
    assert f"Compared with {MODEL}@{first}, the last commit on this machine; --check-source asks the hub" in quiet.out
    before = cosyjit("status", place, "--check-source")
    assert before.status == 1
    assert f"{MODEL}@{second}: flow.pt of this revision is not on this machine yet" in " ".join(before.out.split())
    planned = target(answer("plan", MODEL, *ONE))
    assert planned["state"] == "stale"
    assert f"{moved} of {moved} tensors changed" in planned["reasons"][0]
    hub.requests.clear()
    assert "stale" in cosyjit("status", place).out
    assert hub.requests == []
    built = target(answer("export", MODEL, *ONE))
    assert (built["state"], built["path"]) == ("built", str(place / ZIP))
    assert cosyjit("status", place).status == 0
    assert len(answer("history", place)["publications"]) == 2

    hub.down()
    ran = cosyjit("export", MODEL, *ONE)
    assert ran.status == 0
    assert ran.err.count("\n") == 1
    assert f"cannot be reached, or is busy (HTTP 503); commit {second} is used" in ran.err
    ran = cosyjit("export", "iic/other", "--publish", tmp_path / "out")
    assert ran.status == 2
    assert ran.err.startswith("cosyjit: iic/other: ")
    assert ran.err.count("\n") == 1


def test_safetensors_of_a_model_are_downloaded_where_it_has_no_other(
    hub: Hub, tiny: Path, copy_of: Copy, store: Store
) -> None:
    directory = copy_of(tiny)
    save_file(torch.load(directory / "flow.pt", weights_only=True), directory / "flow.safetensors")
    publish(hub, directory, "iic/both")
    (directory / "flow.pt").unlink()
    publish(hub, directory, "iic/one")
    expected = find_targets(tiny, ["flow.encoder"], ["fp16"], store=store)
    for model, name in (("iic/both", "flow.pt"), ("iic/one", "flow.safetensors")):
        (found,) = find_targets(model, ["flow.encoder"], ["fp16"], store=store)
        assert [each for each in hub.downloads if each.startswith("flow.")] == [name]
        assert found.weights_file.name == name
        assert found.fingerprint == expected[0].fingerprint
        hub.requests.clear()


def test_a_plan_of_a_family_downloads_what_that_has(hub: Hub, tiny2: Path, store: Store) -> None:
    publish(hub, tiny2, "iic/CosyVoice2-0.5B")
    hub.publish("iic/CosyVoice2-0.5B", {"hift.pt": b"a vocoder that is not exported"})
    targets = find_targets("iic/CosyVoice2-0.5B", store=store)
    assert {each.name for each in targets} == {"flow.encoder.fp32", "flow.encoder.fp16", "llm.vllm.bf16"}
    assert sorted(hub.downloads) == [*FILES, "cosyvoice2.yaml", "flow.pt", "llm.pt"]
    assert [each.fingerprint.key for each in targets] == [
        each.fingerprint.key for each in find_targets(tiny2, store=store)
    ]


def test_a_plan_of_zips_alone_does_not_download_what_folders_are_made_from(hub: Hub, tiny2: Path, store: Store) -> None:
    publish(hub, tiny2, "iic/CosyVoice2-0.5B")
    find_targets("iic/CosyVoice2-0.5B", ["flow.encoder"], store=store)
    assert sorted(hub.downloads) == ["cosyvoice2.yaml", "flow.pt"]


def test_another_machine_obtains_all_that_a_folder_is_made_from(
    hub: Hub, tiny3: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, tiny3, "iic/CosyVoice3-0.5B")
    (target,) = find_targets("iic/CosyVoice3-0.5B", store=store)
    sent = pickle.dumps(target)
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    here = localize(pickle.loads(sent), Store(store.root))
    assert here.source.directory.is_relative_to(tmp_path / "other")
    assert here.is_unchanged()
    assert read_qwen2_config(here.source.directory).digests == here.configs
    (here.source.directory / FILES[0]).unlink()  # and the weights stay as they are
    assert read_qwen2_config(localize(here, Store(store.root)).source.directory).digests == here.configs


def test_a_plan_of_a_component_downloads_its_weights(hub: Hub, tiny: Path, store: Store) -> None:
    publish(hub, tiny)
    find_targets(MODEL, ["llm.llm", "llm.text_encoder"], ["fp16"], store=store)
    assert sorted(hub.downloads) == ["cosyvoice.yaml", "llm.pt"]


def test_a_target_of_the_hub_is_that_of_a_directory(hub: Hub, tiny: Path, store: Store) -> None:
    publish(hub, tiny)
    here, there = find_targets(tiny, store=store), find_targets(MODEL, store=store)
    assert [each.fingerprint.key for each in here] == [each.fingerprint.key for each in there]
    for each in there:
        each.check_unchanged()


def test_tensors_that_are_the_same_in_a_new_revision_are_not_read_again(hub: Hub, tiny: Path, store: Store) -> None:
    publish(hub, tiny)
    before = find_targets(MODEL, store=store)
    hub.publish(MODEL, {"README.md": b"read me"})
    after = find_targets(MODEL, store=store)
    assert before[0].source.pinned != after[0].source.pinned
    for one, other in zip(before, after, strict=True):
        assert one.source.file(one.component.weights) == other.source.file(other.component.weights)
        assert one.weights == other.weights
        known = [part for part in FAMILIES[0].components if part.weights == other.component.weights]
        prefixes = {part.prefix for part in known if not part.on_request}
        assert are_remembered(store.digests, other.source.file(other.component.weights), prefixes)
