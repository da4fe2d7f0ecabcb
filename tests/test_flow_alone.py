"""Published files of a flow without a language model: what there is of them is exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import cosyjit
from cosyjit import Store
from cosyjit.errors import ConfigError
from cosyjit.planning.plan import compare
from cosyjit.publishing.directory import PublishedDirectory
from tests.support.checkpoints import rewrite, without_llm
from tests.support.http import answering
from tests.support.modelscope import MODEL, Hub
from tests.support.processes import run_here, snapshot
from tests.support.stores import put, put_planned
from tests.test_prefect_api import as_prefect

Copy = Callable[[Path], Path]

ZIP: Final = "flow.encoder.fp16.zip"
ONE: Final = ("--component", "flow.encoder", "--precision", "fp16")


@pytest.fixture
def flow(tiny: Path, copy_of: Copy) -> Path:
    """A flow of the first family, of the test's own."""
    return without_llm(copy_of(tiny))


def test_the_encoder_of_a_flow_is_exported_and_looked_at(flow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(capsys, "export", flow, *ONE).status == 0
    ran = run_here(capsys, "status", flow)
    assert (ran.status, ran.err) == (0, "")
    assert "current" in ran.out


def test_it_is_the_one_that_the_whole_model_has(flow: Path, tiny: Path, store: Store) -> None:
    (alone,), (whole,) = (compare(each, ["flow.encoder"], ["fp16"], store=store) for each in (flow, tiny))
    assert alone.target.fingerprint == whole.target.fingerprint


@pytest.mark.parametrize(
    ("family", "parts"), [("tiny", "llm.text_encoder, llm.llm"), ("tiny2", "llm.vllm")], ids=["first", "second"]
)
@pytest.mark.parametrize("command", ["export", "plan"])
def test_what_is_missing_is_named_with_what_there_is(
    command: str,
    family: str,
    parts: str,
    request: pytest.FixtureRequest,
    copy_of: Copy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = without_llm(copy_of(request.getfixturevalue(family)))
    (config,) = directory.glob("*.yaml")
    before = snapshot(directory)
    ran = run_here(capsys, command, directory)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        f"cosyjit: {config}: has no node llm, which {parts} would be made from; "
        "--component flow.encoder exports what there is\n"
    )
    assert snapshot(directory) == before


def test_a_component_that_is_missing_is_named_when_it_is_asked_for(flow: Path, store: Store) -> None:
    with pytest.raises(ConfigError) as error:
        cosyjit.plan(flow, ["llm.llm", "flow.encoder"], store=store)
    assert "has no node llm, which llm.llm would be made from; --component flow.encoder exports" in str(error.value)


def test_a_node_of_another_part_that_is_missing_is_named_as_well(tiny: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny)
    rewrite(directory, "    llm: !new:", "    other: !new:")
    with pytest.raises(ConfigError) as error:
        cosyjit.plan(directory, store=store)
    assert str(error.value).endswith(
        "has no node llm.llm, which llm.llm would be made from; "
        "--component llm.text_encoder --component flow.encoder exports what there is"
    )


def test_of_a_directory_with_more_than_the_flow_the_flow_is_compared_with_its_source(
    flow: Path, tiny: Path, store: Store, tmp_path: Path
) -> None:
    published = tmp_path / "published"
    whole = put_planned(store, compare(tiny, precisions=["fp16"], store=store))
    PublishedDirectory(published, store).publish(whole, str(flow))
    states = {each.name: (each.state, each.reasons) for each in cosyjit.status(published, store=store).names}
    assert states.pop(ZIP) == ("current", ())
    assert set(states.values()) == {("unknown", (f"{flow} has no such target",))}


def test_a_folder_beside_it_is_of_another_source(tiny2: Path, copy_of: Copy, store: Store, tmp_path: Path) -> None:
    directory, published = without_llm(copy_of(tiny2)), tmp_path / "published"
    whole = put_planned(store, compare(tiny2, ["flow.encoder"], ["fp16"], store=store))
    whole["vllm"] = put(store, {"config.json": b"{}"})
    PublishedDirectory(published, store).publish(whole, str(directory))
    states = {each.name: (each.state, each.reasons) for each in cosyjit.status(published, store=store).names}
    assert states == {ZIP: ("current", ()), "vllm": ("unknown", (f"{directory} has no such target",))}


def test_of_a_model_of_the_hub_the_flow_alone_is_downloaded(
    flow: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as hub:
        hub.use(monkeypatch)
        hub.publish(MODEL, {path.name: path for path in flow.iterdir()})
        (planned,) = compare(MODEL, ["flow.encoder"], ["fp16"], store=store)
        assert sorted(hub.downloads) == ["cosyvoice.yaml", "flow.pt"]
        (here,) = compare(flow, ["flow.encoder"], ["fp16"], store=store)
        assert planned.target.fingerprint == here.target.fingerprint


def test_a_server_is_told_the_family_of_a_flow(flow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(as_prefect) as (url, asked):
        assert run_here(capsys, "notify", flow, "--server", url).status == 0
    (resource,) = (one.body[0]["resource"] for one in asked if one.method == "POST")
    assert (resource["cosyjit.source"], resource["cosyjit.family"]) == (str(flow), "CosyVoice")
