"""What OpenTelemetry is told of exports, and that nothing comes of it where it is not there, or goes wrong."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from cosyjit import InputError, Outcome, Store, Target, export, plan
from cosyjit.telemetry import Stages
from tests.support.processes import CONSOLE_SCRIPT, finished, spawn, start
from tests.support.telemetry import Told, collecting

FLOW: Final = (["flow.encoder"], ["fp16"])
ONE: Final = ("--component", "flow.encoder", "--precision", "fp16")
LABELS: Final = {"component": "flow.encoder", "precision": "fp16"}


@pytest.fixture
def stocked(tiny: Path, stock: Callable[..., None]) -> Path:
    """A model directory of which the store has one artifact."""
    stock(tiny, *FLOW)
    return tiny


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {each.target.component.name: each.state for each in outcomes}


def test_what_the_store_has_is_told_as_cached(stocked: Path, tmp_path: Path, told: Told) -> None:
    (outcome,) = export(stocked, *FLOW, publish=tmp_path)
    root = told.span("export")
    build = told.span("build flow.encoder.fp16")
    assert told.below(None) == ["export"]
    assert told.below(root) == ["plan", "begin", "build flow.encoder.fp16", "publish"]
    assert told.below(build) == ["copy"]
    assert root.attributes == {"cosyjit.source": str(stocked)}
    assert build.attributes == {
        "cosyjit.component": "flow.encoder",
        "cosyjit.precision": "fp16",
        "cosyjit.state": "cached",
        "cosyjit.source": outcome.target.source.pinned,
        "cosyjit.fingerprint": outcome.target.fingerprint.key,
    }
    assert told.failed() == {}
    measured = told.measured()
    assert measured.keys() == {"cosyjit.targets", "cosyjit.stage.duration"}
    assert measured["cosyjit.targets"] == [({**LABELS, "state": "cached"}, 1, 1)]
    assert {each.attributes.pop("stage"): each.attributes for each in measured["cosyjit.stage.duration"]} == {
        "plan": {},
        "begin": {},
        "copy": LABELS,
        "publish": {},
    }


@pytest.mark.slow
def test_what_is_built_is_told_with_its_stages_and_figures_and_what_fails_with_its_error(
    tiny: Path, copy_of: Callable[[Path], Path], tmp_path: Path, told: Told
) -> None:
    directory = copy_of(tiny)

    def interfere(target: Target, stage: str) -> None:
        if (target.component.name, stage) == ("flow.encoder", "load"):
            os.truncate(directory / "flow.pt", 1000)

    outcomes = export(
        directory, ["llm.llm", "flow.encoder"], ["fp16"], publish=tmp_path / "published", progress=interfere
    )
    assert states(outcomes) == {"llm.llm": "built", "flow.encoder": "failed"}
    built, failed = sorted(outcomes, key=lambda each: each.state)
    assert built.record is not None
    stages = told.below(told.span("build llm.llm.fp16"))
    assert stages == ["wait", "start", "load", "script", "save", "verify", "store", "copy"]
    assert "publish" not in told.below(told.span("export"))
    *_, last = told.below(told.span("build flow.encoder.fp16"))  # in which that was seen
    assert told.failed() == dict.fromkeys((last, "build flow.encoder.fp16"), ("CheckpointError", failed.error))
    measured = told.measured()
    labels = {"component": "llm.llm", "precision": "fp16"}
    assert sorted(measured["cosyjit.targets"], key=lambda each: each.attributes["state"]) == [
        ({**labels, "state": "built"}, 1, 1),
        ({**LABELS, "state": "failed", "error.type": "CheckpointError"}, 1, 1),
    ]
    figures = built.record.figures
    assert measured["cosyjit.artifact.size"] == [(labels, figures["bytes"], 1)]
    assert measured["cosyjit.step.duration"] == [(labels, figures["step_seconds"], 1)]
    assert {each.attributes["measure"]: each.sum for each in measured["cosyjit.artifact.error"]} == {
        "absolute": figures["absolute_error"],
        "relative": figures["relative_error"],
    }
    timed = [each.attributes for each in measured["cosyjit.stage.duration"]]
    assert {each["stage"] for each in timed if each.get("component") == "llm.llm"} == set(stages)
    assert {each["stage"]: each["error.type"] for each in timed if "error.type" in each} == {last: "CheckpointError"}


@pytest.mark.parametrize(
    ("source", "shown"),
    [("https://name:hidden@example.com/model", "https://example.com/model"), ("/none/\udcff", "/none/\\udcff")],
)
def test_a_source_is_told_without_its_password_and_escaped(source: str, shown: str, told: Told) -> None:
    with pytest.raises(InputError):
        export(source)
    assert told.failed().keys() == {"export", "plan"}
    assert (told.span("export").attributes or {})["cosyjit.source"] == shown
    texts = [text or "" for _, text in told.failed().values()]
    assert all(texts)
    assert not any("hidden" in text or "\udcff" in text or "\n" in text for text in texts)
    (timed,) = told.measured()["cosyjit.stage.duration"]
    assert timed.attributes == {"stage": "plan", "error.type": "SourceError"}


def test_what_comes_to_light_in_a_stage_is_told_with_it(told: Told) -> None:
    passed_on: list[str] = []
    with Stages("build x", {}, {}, passed_on.append) as stages:
        stages.enter("wait")
        for stage in ("load", "cast: 3 numbers become 0", "built"):
            stages.tell(stage)
    assert passed_on == ["load", "cast: 3 numbers become 0", "built"]
    assert [span.name for span in told.own()] == ["build x", "wait", "load"]
    assert [event.name for event in told.span("load").events] == ["cast: 3 numbers become 0"]


def test_a_broken_provider_changes_nothing_but_the_debug_log(
    stocked: Path, tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.broken = True
    with caplog.at_level("DEBUG", "cosyjit"):
        assert states(export(stocked, *FLOW, publish=tmp_path)) == {"flow.encoder": "cached"}
    assert (tmp_path / "flow.encoder.fp16.zip").exists()
    assert told.own() == []
    assert {(each.levelname, "the provider is broken" in each.message) for each in caplog.records} == {("DEBUG", True)}


WITHOUT: Final = """
import sys
from importlib.abc import MetaPathFinder
from cosyjit import export
class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
if sys.argv[2] == "missing":
    sys.meta_path.insert(0, Missing())
print(*[each.state for each in export(sys.argv[1], ["flow.encoder"], ["fp16"])])
print("opentelemetry" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["missing", "installed"])
def test_an_export_does_without_opentelemetry_and_does_not_import_it_unasked(
    stocked: Path, copy_of: Callable[[Path], Path], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "missing":  # and asked for
        monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "sdk_tracer_provider")
    with start(WITHOUT, copy_of(stocked), where) as process:
        out, err = process.communicate(timeout=600)
    assert err == ""
    assert out.split() == ["cached", "False"]


@pytest.mark.slow
def test_a_command_sends_all_before_it_ends_however_it_ends(
    stocked: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    instrument = CONSOLE_SCRIPT.with_name("opentelemetry-instrument")
    command = instrument, CONSOLE_SCRIPT, "export", stocked, *ONE, "--publish", tmp_path
    with collecting() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        ran = finished(spawn(*command))
        assert (ran.status, ran.err) == (0, "")
        assert received.spans().keys() == {"export", "plan", "begin", "build flow.encoder.fp16", "copy", "publish"}
        assert received.metrics() == {"cosyjit.targets", "cosyjit.stage.duration"}
    (planned,) = plan(stocked, *FLOW, store=store)
    with collecting() as received, store.build_lock(planned.target.fingerprint.key):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        process = spawn(*command, "--force")
        assert process.stderr is not None
        assert "waits for process" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert finished(process).status == 128 + signal.SIGTERM
        assert received.spans()["export"] == "interrupted"
        assert received.metrics() == {"cosyjit.stage.duration"}
