"""Plan, build and export: what is published, and what stays when a part or the whole is killed."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cosyjit import Artifact, InputError, Outcome, Target, build, export, plan
from cosyjit.pipeline import conclude
from cosyjit.publish import staging
from tests.calls import builds, children, ended, snapshot, start, wait_for

Copy = Callable[[Path], Path]

# Of spec/runtime.md.
RUNTIME = {
    f"{name}.{half}.zip" for name in ("llm.text_encoder", "llm.llm", "flow.encoder") for half in ("fp32", "fp16")
}
RUNTIME2 = {"flow.encoder.fp32.zip", "flow.encoder.fp16.zip"}


def names(targets: Sequence[Target]) -> list[str]:
    return [target.name for target in targets]


def with_earlier(directory: Path) -> dict[str, bytes | None]:
    """Puts something under the names of the runtime, and gives the directory's content."""
    for name in RUNTIME:
        (directory / name).write_text(f"an earlier {name}")
    return snapshot(directory)


def test_a_plan_has_the_targets_of_the_runtime_in_the_order_of_the_family(tiny: Path, tiny2: Path) -> None:
    before = snapshot(tiny)
    assert names(plan(tiny)) == [
        "llm.text_encoder.fp32",
        "llm.text_encoder.fp16",
        "llm.llm.fp32",
        "llm.llm.fp16",
        "flow.encoder.fp32",
        "flow.encoder.fp16",
    ]
    assert names(plan(tiny2)) == ["flow.encoder.fp32", "flow.encoder.fp16"]
    assert {target.file_name for target in plan(tiny)} == RUNTIME
    assert {target.device for target in plan(tiny)} == {"cpu"}
    assert snapshot(tiny) == before


@pytest.mark.parametrize(
    ("components", "precisions", "expected"),
    [
        (["llm.llm"], None, ["llm.llm.fp32", "llm.llm.fp16"]),
        (["flow.encoder", "llm.llm"], ["bf16"], ["llm.llm.bf16", "flow.encoder.bf16"]),
        (["llm.llm", "llm.llm"], ["bf16", "fp32", "bf16"], ["llm.llm.fp32", "llm.llm.bf16"]),
    ],
)
def test_a_selection_is_planned_once_each_and_in_the_usual_order(
    tiny: Path, components: list[str] | None, precisions: list[str] | None, expected: list[str]
) -> None:
    assert names(plan(tiny, components, precisions)) == expected


@pytest.mark.parametrize(("components", "precisions"), [([], None), (None, []), (["llm"], None), (None, ["fp8"])])
def test_a_selection_of_nothing_or_of_what_there_is_not_is_refused(
    tiny: Path, components: list[str] | None, precisions: list[str] | None
) -> None:
    with pytest.raises(InputError, match=r"choose from \w+"):
        plan(tiny, components, precisions)


def test_weight_bytes_are_those_of_the_tensors_in_the_checkpoint(tiny: Path) -> None:
    for target in plan(tiny, precisions=["fp32", "fp16", "bf16"]):
        state = torch.load(tiny / target.component.weights, weights_only=True)
        kept = [tensor.numel() for name, tensor in state.items() if name.startswith(target.component.prefix)]
        assert target.weight_bytes == sum(kept) * {"fp32": 4, "fp16": 2, "bf16": 2}[target.precision.name] > 0


def test_a_build_gives_the_digest_and_the_size_of_the_file_and_tells_its_stages(tiny: Path, tmp_path: Path) -> None:
    (target,) = plan(tiny, ["llm.llm"], ["fp16"])
    told: list[str] = []
    artifact = build(target, tmp_path, progress=told.append)
    content = artifact.path.read_bytes()
    assert artifact.target == target
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.bytes == len(content) > target.weight_bytes
    assert artifact.seconds > 0
    assert told == ["load", "script", "save", "sync", "built"]
    assert artifact.path.parent == tmp_path / target.name
    assert list(tmp_path.rglob("*.*")) == [tmp_path / target.name, artifact.path]


def test_a_relative_directory_is_meant_from_where_the_caller_is(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target,) = plan(tiny, ["flow.encoder"], ["fp32"])  # the build server is up, with the directory of before
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    artifact = build(target, Path("out"))
    assert artifact.path.resolve().is_relative_to(tmp_path / "out")
    assert artifact.bytes > target.weight_bytes


def test_an_export_publishes_the_names_of_the_runtime_and_leaves_nothing_else(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    before = snapshot(directory)
    outcomes = export(directory)
    after = snapshot(directory)
    assert names([outcome.target for outcome in outcomes]) == names(plan(directory))
    assert after.keys() - before.keys() == RUNTIME
    assert {name: after[name] for name in before} == before
    for outcome in outcomes:
        assert (outcome.state, outcome.error) == ("built", None)
        assert outcome.path == directory / outcome.target.file_name
        assert outcome.artifact is not None
        assert outcome.artifact.sha256 == hashlib.sha256(outcome.path.read_bytes()).hexdigest()


def test_an_export_of_the_second_family_publishes_what_its_runtime_reads(tiny2: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny2)
    before = snapshot(directory)
    assert {outcome.state for outcome in export(str(directory))} == {"built"}
    assert snapshot(directory).keys() - before.keys() == RUNTIME2


def test_an_export_tells_the_stages_of_every_target(tiny: Path, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    export(
        tiny, precisions=["fp32"], directory=tmp_path, progress=lambda target, stage: told.append((target.name, stage))
    )
    for target in plan(tiny, precisions=["fp32"]):
        stages = [stage for name, stage in told if name == target.name]
        assert stages == ["load", "script", "save", "sync", "built"]


def test_equal_checkpoints_give_equal_bytes_wherever_they_are(tiny: Path, copy_of: Copy, tmp_path: Path) -> None:
    before = snapshot(tiny)
    once, two = tmp_path / "new" / "one", tmp_path / "two"
    export(tiny, precisions=["fp16"], directory=once)
    content = snapshot(once)
    export(tiny, precisions=["fp16"], directory=once)
    export(copy_of(tiny), components=["llm.llm"], precisions=["fp16"], directory=two)
    assert content.keys() == {name for name in RUNTIME if "fp16" in name}
    assert snapshot(once) == content
    assert snapshot(two) == {"llm.llm.fp16.zip": content["llm.llm.fp16.zip"]}
    assert snapshot(tiny) == before


def test_exports_into_one_directory_at_the_same_time_both_succeed(tiny: Path, tmp_path: Path) -> None:
    def work(component: str) -> list[Outcome]:
        return export(tiny, components=[component], directory=tmp_path / "out")

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(work, ["llm.llm", "flow.encoder"]))
    assert [outcome.error for outcomes in results for outcome in outcomes] == [None] * 4
    assert snapshot(tmp_path / "out").keys() == {name for name in RUNTIME if "text" not in name}


def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_built(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    before = snapshot(directory)
    told: list[Target] = []
    with pytest.raises(InputError, match=r"flow\.pt: cannot be written to"):
        export(directory, directory=directory / "flow.pt", progress=lambda target, _: told.append(target))
    assert told == []
    assert snapshot(directory) == before


def test_a_target_whose_process_is_killed_fails_alone_and_nothing_is_published(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    before = with_earlier(directory)
    killed = threading.Lock()

    def kill_one(_: Target, stage: str) -> None:
        if stage == "load" and killed.acquire(blocking=False):
            os.kill(max(builds(os.getpid())), signal.SIGKILL)

    precisions = ["fp32", "fp16", "bf16"]
    outcomes = export(directory, components=["flow.encoder"], precisions=precisions, progress=kill_one)
    assert sorted(outcome.state for outcome in outcomes) == ["built", "built", "failed"]
    assert [outcome.path for outcome in outcomes] == [None, None, None]
    for outcome in outcomes:
        assert (outcome.artifact is None) == (outcome.state == "failed")
        assert outcome.error is None or "SIGKILL" in outcome.error
    assert snapshot(directory) == before
    assert {outcome.state for outcome in export(directory, components=["flow.encoder"])} == {"built"}


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 1000), os.unlink], ids=["truncated", "removed"])
def test_weights_that_change_after_the_plan_fail_their_targets_alone(
    tiny: Path, copy_of: Copy, damage: Callable[[Path], None]
) -> None:
    directory = copy_of(tiny)
    targets = plan(directory, precisions=["fp32"])
    damage(directory / "flow.pt")
    before = with_earlier(directory)

    def attempt(target: Target, work: Path) -> Artifact | Exception:
        try:
            return build(target, work)
        except InputError as error:
            return error

    with staging(directory) as work:
        outcomes = conclude([(target, attempt(target, work)) for target in targets], directory)
    assert [outcome.state for outcome in outcomes] == ["built", "built", "failed"]
    assert [outcome.path for outcome in outcomes] == [None, None, None]
    assert str(directory / "flow.pt") in (outcomes[2].error or "")
    assert snapshot(directory) == before


EXPORT = "import sys, cosyjit; cosyjit.export(sys.argv[1])"


def test_after_an_export_was_killed_nothing_half_written_is_visible_and_the_next_succeeds(
    tiny: Path, copy_of: Copy
) -> None:
    directory = copy_of(tiny)
    before = with_earlier(directory)
    with start(EXPORT, directory) as process:
        wait_for(lambda: list(directory.glob(".cosyjit-*/*/archive.zip")))
        below = children(process.pid)
        process.kill()
    wait_for(lambda: all(map(ended, below)))
    between = snapshot(directory)
    assert {name for name in between if not name.startswith(".cosyjit-")} == before.keys()
    assert any(name.startswith(".cosyjit-") for name in between)

    assert {outcome.state for outcome in export(directory)} == {"built"}
    after = snapshot(directory)
    assert after.keys() == before.keys()
    for name in RUNTIME:
        assert after[name] != before[name]
        assert between[name] in (before[name], after[name])


def test_a_set_of_which_a_name_cannot_be_written_is_not_published_at_all(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "llm.llm.fp16.zip").mkdir()
    (tmp_path / "llm.llm.fp32.zip").write_text("earlier")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="cannot be written to"):
        export(tiny, components=["llm.llm"], directory=tmp_path)
    assert snapshot(tmp_path) == before
