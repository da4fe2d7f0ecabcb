"""Plan, build, store and publish: what is built, what is cached, and what stays when a part or the whole is killed."""

import hashlib
import json
import os
import platform
import signal
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from cosyjit import InputError, Outcome, Planned, Store, Target, export, history, plan
from cosyjit.building.make import make
from cosyjit.errors import StoreError
from cosyjit.operations.gc import gc
from cosyjit.operations.verify import verify_store
from cosyjit.pipeline import Export
from cosyjit.provenance.record import EMBEDDED_NAME, embedded_provenance, load
from tests.support.checkpoints import retrain, rewrite
from tests.support.files import flip
from tests.support.processes import builds, children, ended, shown, snapshot, start, wait_for
from tests.support.stores import litter, object_path, record_path, unique_url, unreferenced

Copy = Callable[[Path], Path]
Stock = Callable[..., None]

# Of the public runtime.
RUNTIME: Final = {
    f"{name}.{half}.zip" for name in ("llm.text_encoder", "llm.llm", "flow.encoder") for half in ("fp32", "fp16")
}
RUNTIME2: Final = {"flow.encoder.fp32.zip", "flow.encoder.fp16.zip"}

FLOW: Final = ["flow.encoder"]


def names(planned: Sequence[Planned | Outcome]) -> list[str]:
    return [each.target.name for each in planned]


def states(outcomes: Sequence[Outcome]) -> list[str]:
    return [each.state for each in outcomes]


def with_earlier(directory: Path) -> dict[str, bytes]:
    """Puts something under the names of the runtime, as another exporter would, and gives what is seen."""
    for name in RUNTIME:
        (directory / name).write_text(f"an earlier {name}")
    return shown(directory)


def assert_clean(directory: Path, store: Store) -> None:
    """Nothing is left of work in hand, and nothing that is not shown."""
    assert litter(store) == []
    assert unreferenced(directory) == set()
    assert [path.name for path in directory.iterdir() if path.name.startswith(".")] in ([], [".cosyjit"])


@pytest.mark.slow
def test_an_export_publishes_the_names_of_the_runtime_and_leaves_nothing_else(
    tiny: Path, copy_of: Copy, store: Store
) -> None:
    directory = copy_of(tiny)
    before = shown(directory)
    outcomes = export(directory)
    after = shown(directory)
    assert names(outcomes) == names(plan(directory))
    assert after.keys() - before.keys() == RUNTIME
    assert {name: after[name] for name in before} == before
    for outcome in outcomes:
        assert (outcome.state, outcome.error, outcome.reasons) == ("built", None, ())
        assert outcome.path == directory / outcome.target.file_name
        assert outcome.record is not None
        assert outcome.record.sha256 == hashlib.sha256(outcome.path.read_bytes()).hexdigest()
    assert_clean(directory, store)
    assert verify_store(store) == []


@pytest.mark.slow
def test_an_export_of_the_second_family_publishes_what_its_runtime_reads(tiny2: Path, tmp_path: Path) -> None:
    before = snapshot(tiny2)
    assert states(export(str(tiny2), publish=tmp_path / "out")) == ["built", "built", "built"]
    assert shown(tmp_path / "out").keys() == RUNTIME2
    assert shown(tmp_path / "out" / "vllm").keys() == {"config.json", "generation_config.json", "model.safetensors"}
    assert snapshot(tiny2) == before


@pytest.mark.slow
def test_a_second_export_builds_nothing_and_publishes_nothing_new(
    tiny: Path, copy_of: Copy, store: Store, stock: Stock
) -> None:
    directory = copy_of(tiny)
    stock(directory)
    first = export(directory)
    after = snapshot(directory)
    stored = {path: path.stat().st_ino for path in (store.local or Path()).rglob("objects/*/*")}
    told: list[tuple[str, str]] = []
    second = export(directory, progress=lambda target, stage: told.append((target.name, stage)))
    assert states(second) == ["cached"] * 6
    assert [each.record for each in second] == [each.record for each in first]
    assert [each.path for each in second] == [each.path for each in first]
    assert sorted(told) == sorted((name, stage) for name in names(second) for stage in ("waiting", "cached"))
    assert snapshot(directory) == after
    assert [each.number for each in history(directory, store=store)] == [1]
    assert {path: path.stat().st_ino for path in (store.local or Path()).rglob("objects/*/*")} == stored


@pytest.mark.slow
def test_an_export_tells_the_stages_of_every_target(tiny: Path, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    export(
        tiny, precisions=["fp32"], publish=tmp_path, progress=lambda target, stage: told.append((target.name, stage))
    )
    for each in plan(tiny, precisions=["fp32"]):
        stages = [stage for name, stage in told if name == each.target.name and not stage.startswith("cast:")]
        assert stages == ["waiting", "load", "script", "save", "verify", "built"]


def test_a_record_says_what_an_artifact_was_made_from_and_how_it_came_out(
    tiny: Path, tmp_path: Path, store: Store
) -> None:
    outcomes = export(tiny, components=["llm.llm", "flow.encoder"], precisions=["fp16"], publish=tmp_path)
    for outcome, file in zip(outcomes, ("llm.pt", "flow.pt"), strict=True):
        made = outcome.record
        assert made is not None
        assert outcome.path is not None
        assert made == load(store, outcome.target.fingerprint.key)
        assert made.name == outcome.path.name == outcome.target.file_name
        assert made.fingerprint == outcome.target.fingerprint
        assert (made.component, made.source, made.run) == (outcome.target.component.name, str(tiny), {})
        assert {each.name: each.sha256 for each in made.materials} == {
            name: hashlib.sha256((tiny / name).read_bytes()).hexdigest() for name in ("cosyvoice.yaml", file)
        }
        assert {each.uri for each in made.materials} == {(tiny / name).as_uri() for name in ("cosyvoice.yaml", file)}
        assert made.versions == {
            "cosyjit": version("cosyjit"),
            "torch": version("torch"),
            "python": platform.python_version(),
        }
        assert made.figures["bytes"] == outcome.path.stat().st_size
        assert made.figures["weight_bytes"] == outcome.target.weight_bytes
        assert made.figures["seconds"] > 0
        assert made.started < made.finished
        with zipfile.ZipFile(outcome.path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(f"/extra/{EMBEDDED_NAME}"))
            assert archive.read(name) == embedded_provenance(made.fingerprint)


class Done:
    """Work that is done when it is waited for."""

    def __init__(self, call: Callable[[], Outcome]) -> None:
        self.result = call


def carried_out(work: Export) -> list[Outcome]:
    """Make each target of an export that is planned, and publish the set if it is whole."""
    with work.store.in_use(), work:
        work.begin(lambda each: Done(partial(make, each, work.store, work.directory)))
        return work.finish()


def failing(planned: Planned) -> Done:
    return Done(partial(Outcome, planned.target, "failed", error="a reason"))


def test_the_steps_of_an_export_are_taken_once_and_in_their_order(tiny: Path, tmp_path: Path, store: Store) -> None:
    with store.in_use(), Export(tiny, FLOW, ["fp16"], publish=tmp_path / "out", store=store) as work:
        with pytest.raises(RuntimeError, match="after it is planned"):
            work.begin(failing)
        with pytest.raises(RuntimeError, match="after it has begun"):
            work.finish()
        work.plan()
        with pytest.raises(RuntimeError, match="after it has begun"):
            work.finish()
        work.begin(failing)
        with pytest.raises(RuntimeError, match="begins once"):
            work.begin(failing)
        assert [(each.state, each.error) for each in work.finish()] == [("failed", "a reason")]


def test_the_largest_artifact_of_each_component_comes_first(tiny: Path, tmp_path: Path, store: Store) -> None:
    begun: list[str] = []

    def submit(planned: Planned) -> "Future[Outcome]":
        begun.append(planned.target.name)
        return Future()

    with store.in_use(), Export(tiny, publish=tmp_path / "out", store=store) as work:
        sizes = {each.target.name: each.target.weight_bytes for each in work.plan()}
        work.begin(submit)
    first, others = begun[:3], begun[3:]
    assert {name.removesuffix(".fp32") for name in first} == {"llm.text_encoder", "llm.llm", "flow.encoder"}
    assert {name.removesuffix(".fp16") for name in others} == {"llm.text_encoder", "llm.llm", "flow.encoder"}
    for each in (first, others):
        assert each == sorted(each, key=lambda name: -sizes[name])


def test_the_run_that_an_artifact_was_built_in_stands_in_its_record(tiny: Path, tmp_path: Path, store: Store) -> None:
    run = {"prefect_flow_run": "a", "prefect_task_run": "b"}
    with store.in_use(), Export(tiny, FLOW, ["fp16"], publish=tmp_path, store=store) as work:
        work.plan()
        work.begin(lambda each: Done(partial(make, each, store, work.directory, run=run)))
        (outcome,) = work.finish()
    assert outcome.path == tmp_path / "flow.encoder.fp16.zip"
    assert outcome.record is not None
    assert outcome.record.run == run
    assert load(store, outcome.target.fingerprint.key) == outcome.record


@pytest.mark.slow
def test_equal_checkpoints_share_objects_wherever_they_are(
    tiny: Path, copy_of: Copy, tmp_path: Path, store: Store
) -> None:
    once, two = tmp_path / "new" / "one", tmp_path / "two"
    before = snapshot(tiny)
    assert states(export(tiny, precisions=["fp16"], publish=once)) == ["built"] * 3
    assert states(export(copy_of(tiny), components=["llm.llm"], precisions=["fp16"], publish=two)) == ["cached"]
    assert shown(once).keys() == {name for name in RUNTIME if "fp16" in name}
    assert shown(two) == {"llm.llm.fp16.zip": shown(once)["llm.llm.fp16.zip"]}
    assert snapshot(tiny) == before
    assert len(list(store.objects())) == 3


@pytest.mark.slow
def test_force_builds_all_again_into_the_same_bytes(tiny: Path, tmp_path: Path, store: Store, stock: Stock) -> None:
    stock(tiny, FLOW)
    export(tiny, components=FLOW, publish=tmp_path)
    before = shown(tmp_path)
    outcomes = export(tiny, components=FLOW, publish=tmp_path, force=True)
    assert [(each.state, each.reasons) for each in outcomes] == [("built", ("forced",))] * 2
    assert shown(tmp_path) == before
    assert [each.number for each in history(tmp_path, store=store)] == [1]
    assert len(list(store.objects())) == 2
    assert_clean(tmp_path, store)


@pytest.mark.slow
def test_a_retrained_language_model_is_built_again_alone(tiny: Path, copy_of: Copy, store: Store, stock: Stock) -> None:
    directory = copy_of(tiny)
    stock(directory)
    export(directory)
    before = shown(directory)
    count = retrain(directory, "llm.pt", "llm.")
    outcomes = {each.target.name: each for each in export(directory)}
    built = {name: each for name, each in outcomes.items() if each.state == "built"}
    assert built.keys() == {"llm.llm.fp32", "llm.llm.fp16"}
    assert {each.state for name, each in outcomes.items() if name not in built} == {"cached"}
    for each in built.values():
        assert each.reasons[0].startswith(f"{count} of {count} tensors changed: ")
    after = shown(directory)
    assert {name for name in RUNTIME if after[name] != before[name]} == {"llm.llm.fp32.zip", "llm.llm.fp16.zip"}
    assert [each.number for each in history(directory, store=store)] == [2, 1]
    assert_clean(directory, store)


def test_what_one_export_does_not_make_stays_published_beside_it(
    tiny: Path, tmp_path: Path, store: Store, stock: Stock
) -> None:
    stock(tiny, FLOW, ["fp16"])
    export(tiny, components=FLOW, precisions=["fp16"], publish=tmp_path)
    before = shown(tmp_path)
    export(tiny, components=["llm.llm"], precisions=["bf16"], publish=tmp_path)
    assert shown(tmp_path).keys() == {"flow.encoder.fp16.zip", "llm.llm.bf16.zip"}
    assert before.items() <= shown(tmp_path).items()
    assert history(tmp_path, store=store)[0].artifacts.keys() == shown(tmp_path).keys()


@pytest.mark.parametrize("damage", [os.unlink, flip], ids=["removed", "damaged"])
def test_an_object_that_is_not_what_it_was_is_built_again(
    tiny: Path, tmp_path: Path, store: Store, stock: Stock, damage: Callable[[Path], None]
) -> None:
    stock(tiny, FLOW)
    outcomes = export(tiny, components=FLOW, publish=tmp_path)
    before = shown(tmp_path)
    assert outcomes[0].record is not None
    path = object_path(store, outcomes[0].record.sha256)
    damage(path)
    damaged = path.read_bytes() if path.exists() else None
    reason = "object missing" if damaged is None else "object damaged"
    assert shown(tmp_path) == before  # what is published is no link to it
    again = export(tiny, components=FLOW, publish=tmp_path)
    assert [(each.state, each.reasons) for each in again] == [("built", (reason,)), ("cached", ())]
    assert shown(tmp_path) == before
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert not path.stat().st_mode & 0o222
    assert store.local is not None
    aside = [each.read_bytes() for each in store.local.glob("damaged/*")]
    assert aside == ([] if damaged is None else [damaged])
    assert verify_store(store) == []


def test_links_are_made_where_they_are_asked_for(tiny: Path, tmp_path: Path, store: Store, stock: Stock) -> None:
    stock(tiny, FLOW, ["fp16"])
    (outcome,) = export(tiny, components=FLOW, precisions=["fp16"], publish=tmp_path / "linked", link=True)
    export(tiny, components=FLOW, precisions=["fp16"], publish=tmp_path / "copied")
    assert outcome.record is not None
    kept = object_path(store, outcome.record.sha256).stat()
    assert outcome.path is not None
    assert os.path.samestat(outcome.path.stat(), kept)
    copied = (tmp_path / "copied" / "flow.encoder.fp16.zip").stat()
    assert not os.path.samestat(copied, kept)
    assert copied.st_size == kept.st_size
    assert states(export(tiny, components=FLOW, precisions=["fp16"], publish=tmp_path / "linked", link=True)) == [
        "cached"
    ]


def test_links_to_another_disk_fail_their_targets_and_build_nothing(tiny: Path, tmp_path: Path, stock: Stock) -> None:
    components, precisions = ["flow.encoder"], ["fp16"]
    stock(tiny, components, precisions)
    export(tiny, components=components, precisions=precisions, publish=tmp_path / "out")
    memory = Path("/dev/shm")  # noqa: S108  (another file system, wherever tests run)
    with TemporaryDirectory(dir=memory) as other:
        told: list[str] = []
        (outcome,) = export(
            tiny,
            components=components,
            precisions=precisions,
            publish=other,
            link=True,
            progress=lambda _, stage: told.append(stage),
        )
        assert (outcome.state, told) == ("failed", ["waiting", "cached", f"failed: {outcome.error}"])
        assert "no links into" in str(outcome.error)
        assert list(Path(other).iterdir()) == []


def test_an_object_that_goes_between_the_plan_and_its_use_is_built_after_all(
    tiny: Path, tmp_path: Path, store: Store, stock: Stock
) -> None:
    one = (["flow.encoder"], ["fp16"])
    stock(tiny, *one)
    export(tiny, components=one[0], precisions=one[1], publish=tmp_path / "first", store=store)
    work = Export(tiny, *one, publish=tmp_path / "second", store=store)
    (planned,) = work.plan()
    assert planned.record is not None
    object_path(store, planned.record.sha256).unlink()
    assert states(carried_out(work)) == ["built"]
    assert shown(tmp_path / "second") == shown(tmp_path / "first")


@pytest.mark.slow
def test_exports_into_one_directory_at_the_same_time_both_succeed(tiny: Path, tmp_path: Path, store: Store) -> None:
    def work(component: str) -> list[Outcome]:
        return export(tiny, components=[component], publish=tmp_path / "out")

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(work, ["llm.llm", "flow.encoder"]))
    assert [outcome.error for outcomes in results for outcome in outcomes] == [None] * 4
    assert shown(tmp_path / "out").keys() == {name for name in RUNTIME if "text" not in name}
    assert_clean(tmp_path / "out", store)


def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_built(
    tiny: Path, copy_of: Copy, store: Store
) -> None:
    directory = copy_of(tiny)
    before = snapshot(directory)
    told: list[str] = []
    with pytest.raises(InputError, match=r"flow\.pt: cannot be written to"):
        export(directory, publish=directory / "flow.pt", progress=lambda _, stage: told.append(stage))
    assert {*told} == {"waiting"}
    assert snapshot(directory) == before
    assert list(store.objects()) == []


@pytest.mark.slow
def test_a_set_of_which_a_name_cannot_be_taken_is_not_published_at_all(
    tiny: Path, tmp_path: Path, store: Store
) -> None:
    (tmp_path / "llm.llm.fp16.zip").mkdir()
    (tmp_path / "llm.llm.fp32.zip").write_text("earlier")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"llm\.llm\.fp16\.zip: is a directory; move it away"):
        export(tiny, components=["llm.llm"], publish=tmp_path)
    assert snapshot(tmp_path) == before
    assert store.objects() == set()  # nothing was built for it
    (tmp_path / "llm.llm.fp16.zip").rmdir()
    assert states(export(tiny, components=["llm.llm"], publish=tmp_path)) == ["built", "built"]
    assert_clean(tmp_path, store)


@pytest.mark.slow
def test_a_target_whose_process_is_killed_fails_alone_and_the_others_are_kept(
    tiny: Path, copy_of: Copy, store: Store
) -> None:
    directory = copy_of(tiny)
    before = with_earlier(directory)
    killed = threading.Lock()

    def kill_one(_: Target, stage: str) -> None:
        if stage == "load" and killed.acquire(blocking=False):
            os.kill(max(builds(os.getpid())), signal.SIGKILL)

    precisions = ["fp32", "fp16", "bf16"]
    outcomes = export(directory, components=FLOW, precisions=precisions, progress=kill_one)
    assert sorted(states(outcomes)) == ["built", "built", "failed"]
    assert {outcome.path for outcome in outcomes} == {None}
    for outcome in outcomes:
        assert (outcome.record is None) == (outcome.state == "failed")
        assert outcome.error is None or "SIGKILL" in outcome.error
    assert shown(directory) == before
    assert_clean(directory, store)
    again = export(directory, components=FLOW, precisions=precisions)
    assert [(one.state, two.state) for one, two in zip(outcomes, again, strict=True)] == [
        ("failed", "built") if one.state == "failed" else ("built", "cached") for one in outcomes
    ]


def test_a_failure_leaves_an_earlier_publication_and_its_history_as_they_are(
    tiny: Path, copy_of: Copy, store: Store, stock: Stock
) -> None:
    directory = copy_of(tiny)
    stock(directory, FLOW)
    export(directory, components=FLOW)
    retrain(directory, "flow.pt", "encoder.")
    before = snapshot(directory)

    def kill(_: Target, stage: str) -> None:
        if stage == "load":
            os.kill(max(builds(os.getpid())), signal.SIGKILL)

    assert states(export(directory, components=FLOW, precisions=["fp16"], progress=kill)) == ["failed"]
    assert snapshot(directory) == before
    assert [each.number for each in history(directory, store=store)] == [1]
    assert_clean(directory, store)


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [lambda path: os.truncate(path, 1000), os.unlink, lambda path: retrain(path.parent, path.name, "encoder.")],
    ids=["truncated", "removed", "retrained"],
)
def test_weights_that_change_after_the_plan_fail_their_targets_alone(
    tiny: Path, copy_of: Copy, store: Store, edit: Callable[[Path], object]
) -> None:
    directory = copy_of(tiny)
    work = Export(directory, precisions=["fp16"], store=store)
    work.plan()
    edit(directory / "flow.pt")
    before = with_earlier(directory)
    outcomes = carried_out(work)
    assert states(outcomes) == ["built", "built", "failed"]
    assert [outcome.path for outcome in outcomes] == [None, None, None]
    assert f"{directory / 'flow.pt'}: was changed" in (outcomes[2].error or "")
    assert shown(directory) == before
    assert len(list(store.objects())) == 2
    assert_clean(directory, store)


def test_no_record_names_another_configuration_than_the_one_that_was_planned(
    tiny: Path, copy_of: Copy, store: Store
) -> None:
    directory = copy_of(tiny)
    work = Export(directory, FLOW, ["fp16"], store=store)
    work.plan()
    digest = hashlib.sha256((directory / "cosyvoice.yaml").read_bytes()).hexdigest()
    rewrite(directory, "linear_units: 128", "linear_units: 256")
    (outcome,) = carried_out(work)
    if outcome.record is None:
        assert "cosyvoice.yaml" in (outcome.error or "")
    else:
        assert outcome.record.materials[0].sha256 == digest


def test_a_checkpoint_that_is_rewritten_while_it_is_built_fails_and_the_next_export_succeeds(
    tiny: Path, copy_of: Copy, store: Store
) -> None:
    directory = copy_of(tiny)
    before = with_earlier(directory)
    once = threading.Lock()

    def interfere(_: Target, stage: str) -> None:
        if stage == "script" and once.acquire(blocking=False):
            retrain(directory, "flow.pt", "encoder.")

    (outcome,) = export(directory, components=FLOW, precisions=["fp16"], progress=interfere)
    assert outcome.state == "failed"
    assert "flow.pt: was changed" in (outcome.error or "")
    assert {name: content for name, content in shown(directory).items() if name in RUNTIME} == {
        name: content for name, content in before.items() if name in RUNTIME
    }
    assert list(store.objects()) == []
    assert_clean(directory, store)
    (outcome,) = export(directory, components=FLOW, precisions=["fp16"])
    assert outcome.state == "built"
    assert outcome.record is not None
    assert outcome.record.materials[1].sha256 == hashlib.sha256((directory / "flow.pt").read_bytes()).hexdigest()
    assert outcome.record.fingerprint.key == plan(directory, FLOW, ["fp16"])[0].target.fingerprint.key


def test_a_store_that_cannot_be_written_is_refused_before_anything_is_built(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[str] = []
    for root in (tmp_path / "file", tmp_path / "file" / "store", Path("/proc/nope")):
        with pytest.raises(StoreError, match=f"^{root}: cannot be read or written"):
            export(tiny, publish=tmp_path / "out", store=Store(root), progress=lambda *_: told.append("told"))
    assert told == []
    assert not (tmp_path / "out").exists()


MANY = """
import json, sys
from pathlib import Path
import cosyjit
source, directory = sys.argv[1:]
print("ready", flush=True)
sys.stdin.read()
outcomes = cosyjit.export(source, components=["flow.encoder"], publish=directory)
print(json.dumps([(each.state, each.error) for each in outcomes]))
"""


@pytest.mark.stress
def test_eight_processes_that_export_the_same_build_each_target_once(tiny: Path, tmp_path: Path, store: Store) -> None:

    directories = [tmp_path / ("shared" if number % 2 else f"own {number}") for number in range(8)]
    started = [start(MANY, tiny, directory) for directory in directories]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    found = []
    for process in started:
        with process:
            out, err = process.communicate(timeout=600)
        assert (process.returncode, err) == (0, "")
        found.append([tuple(each) for each in json.loads(out)])
    assert {error for each in found for _, error in each} == {None}
    for target in zip(*found, strict=True):
        assert sorted(state for state, _ in target) == ["built"] + ["cached"] * 7
    assert len(list(store.objects())) == 2
    first, *others = ([*shown(directory).items()] for directory in {*directories})
    assert {name for name, _ in first} == RUNTIME2
    assert [other for other in others if other != first] == []
    assert [each.number for each in history(tmp_path / "shared", store=store)] == [1]
    for directory in directories:
        assert_clean(directory, store)
    assert verify_store(store) == []


# Ends itself by SIGKILL, just before it does a certain thing for a certain time.
KILLED = """
import os, signal, sys
import cosyjit
source, event, word, times = sys.argv[1:]
left = int(times)

def paths(arguments):
    names = [os.fsdecode(each) for each in arguments if isinstance(each, (str, bytes, os.PathLike))]
    folders = [os.readlink(f"/proc/self/fd/{each}") for each in arguments if type(each) is int and each > 2]
    return [*names, *(f"{folder}/{name}" for folder in folders for name in names)]

def watch(name, arguments):
    global left
    if name == event and any(word in each for each in paths(arguments)):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
cosyjit.export(source, components=["flow.encoder"], progress=lambda target, stage: sys.audit("stage", stage))
"""

BUILDING: Final = {
    # What the process is about to do, and how many of the two artifacts are stored then.
    "write a record": ("os.rename", "/records/", 1, 0),
    "write the other record": ("os.rename", "/records/", 2, 1),
}

PUBLISHING: Final = {
    "bring a file": ("os.rename", "/.cosyjit/files/", 1),
    "name the publication": ("os.rename", "/heads/", 1),
    "show the new set": ("os.rename", "/.cosyjit/current", 2),
}


def kill_before(directory: Path, event: str, word: str, times: int) -> None:
    """Starts an export that is killed just before it does something."""
    with start(KILLED, directory, event, word, times) as process:
        out, err = process.communicate(timeout=600)
    assert (process.returncode, out, err) == (-signal.SIGKILL, "", "")


def assert_recovers(directory: Path, store: Store, before: dict[str, bytes], stored: int) -> None:
    """What was shown is; the next export builds what is not stored and leaves nothing else."""
    assert shown(directory) == before
    assert sum(each.record is not None for each in plan(directory, FLOW)) == stored
    assert sorted(states(export(directory, components=FLOW))) == ["built"] * (2 - stored) + ["cached"] * stored
    after = shown(directory)
    assert {name for name in after if after[name] != before.get(name)} == RUNTIME2
    assert history(directory, store=store)[0].artifacts.keys() == RUNTIME2
    assert verify_store(store) == []
    gc(store, older_than=0, delete=True)
    assert list((store.local or Path()).rglob("*.tmp")) == []
    assert_clean(directory, store)
    assert states(export(directory, components=FLOW)) == ["cached", "cached"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", BUILDING)
def test_after_a_kill_the_next_export_builds_what_is_not_stored(
    tiny: Path, copy_of: Copy, store: Store, moment: str
) -> None:
    event, word, times, stored = BUILDING[moment]
    directory = copy_of(tiny)
    before = with_earlier(directory)
    kill_before(directory, event, word, times)
    assert_recovers(directory, store, before, stored)


@pytest.mark.slow
@pytest.mark.parametrize("moment", PUBLISHING)
def test_after_a_kill_in_a_publication_the_set_from_before_is_shown_whole(
    tiny: Path, copy_of: Copy, tmp_path: Path, store: Store, stock: Stock, moment: str
) -> None:
    stock(tiny, FLOW)
    export(tiny, components=FLOW, publish=tmp_path / "other")
    directory = copy_of(tiny)
    before = with_earlier(directory)
    assert [each.state for each in plan(directory, FLOW)] == ["fresh", "fresh"]  # spares the other process a look
    kill_before(directory, *PUBLISHING[moment])
    assert_recovers(directory, store, before, 2)


@pytest.mark.slow
def test_nothing_outlives_an_export_that_was_killed(tiny: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny)
    with start("import sys, cosyjit; cosyjit.export(sys.argv[1])", directory) as process:
        wait_for(lambda: list((store.local or Path()).glob("tmp/*/*/archive.zip")))
        below = children(process.pid)
        process.kill()
    wait_for(lambda: all(map(ended, below)))
    assert shown(directory) == shown(tiny)
    assert litter(store) != []
    export(directory, components=FLOW, precisions=["fp16"])
    assert_clean(directory, store)


def test_a_record_that_is_no_record_is_made_again(tiny: Path, tmp_path: Path, store: Store, stock: Stock) -> None:
    stock(tiny, FLOW, ["fp16"])
    (made,) = export(tiny, components=FLOW, precisions=["fp16"], publish=tmp_path)
    path = record_path(store, made.target.fingerprint.key)
    path.write_text("no JSON")
    (again,) = export(tiny, components=FLOW, precisions=["fp16"], publish=tmp_path)
    assert (again.state, again.reasons) == ("built", ("record damaged",))
    assert again.record is not None
    assert made.record is not None
    assert again.record.sha256 == made.record.sha256
    assert verify_store(store) == []


@pytest.mark.slow
def test_where_there_is_no_home_a_build_notes_its_memory_elsewhere(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = """
import os, sys
os.environ.pop("HOME")
import pwd
pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid))
from cosyjit import Store, export
print([each.state for each in export(sys.argv[1], components=["flow.encoder"], precisions=["fp32"],
    publish=sys.argv[2], store=Store(sys.argv[3]))])
"""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with start(nobody, tiny, tmp_path / "out", tmp_path / "store") as process:
        out, err = process.communicate(timeout=600)
    assert (out, err) == ("['built']\n", "")


def test_a_damaged_object_of_a_shared_store_is_built_again_by_whoever_publishes_nothing(
    tiny: Path, tmp_path: Path
) -> None:
    store = Store(unique_url())
    with store.in_use(), Export(tiny, ["flow.encoder"], ["fp32"], publish=tmp_path / "out", store=store) as work:
        (planned,) = plan(tiny, ["flow.encoder"], ["fp32"], store=store)
        first = make(planned, store, None)
        assert first.record is not None
        store.write(f"objects/{first.record.sha256[:2]}/{first.record.sha256}", b"other")
        assert store.cache is not None
        store.cache.remove(f"objects/{first.record.sha256[:2]}/{first.record.sha256}")
        work.plan()
        work.begin(lambda each: Done(partial(make, each, store, None)))
        (done,) = work.finish()
        assert (first.state, done.state) == ("built", "built")
    assert done.path is not None
    assert done.path.is_file()


class Interrupted(BaseException):
    """As Ctrl-C is, of one export among several."""


@pytest.mark.slow
def test_an_export_that_is_interrupted_stops_no_other_of_the_same_process(
    tiny: Path, tiny2: Path, tmp_path: Path
) -> None:
    begun, interrupted = threading.Event(), threading.Event()

    def hold_the_build(target: Target, stage: str) -> None:  # noqa: ARG001
        begun.set()
        assert interrupted.wait(300)

    def interrupt(target: Target, stage: str) -> None:  # noqa: ARG001
        raise Interrupted

    export(tiny2, components=FLOW, publish=tmp_path / "2")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(export, tiny, publish=tmp_path / "1", progress=hold_the_build)
        try:
            assert begun.wait(300)
            with pytest.raises(Interrupted):
                export(tiny2, components=FLOW, publish=tmp_path / "2", progress=interrupt)
        finally:
            interrupted.set()
        assert [(each.state, each.error) for each in other.result(300)] == [("built", None)] * len(RUNTIME)
