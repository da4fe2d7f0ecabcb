"""The command line: what it prints where, its exit codes, what it imports, and how it ends when something is killed."""

import contextlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cosyjit import Store, __version__, plan
from cosyjit.processes import worker
from cosyjit.provenance.statements import TYPE
from tests.support.builds import Builds
from tests.support.checkpoints import retrain
from tests.support.files import flip
from tests.support.processes import (
    CONSOLE_SCRIPT,
    Run,
    children,
    ended,
    finished,
    give,
    servers,
    shown,
    snapshot,
    spawn,
    start,
    wait_for,
)
from tests.support.processes import builds as builders
from tests.support.stores import litter, object_path, put_planned, record_path, unreferenced

Copy = Callable[[Path], Path]
Stock = Callable[..., None]
ONE = ["--component", "flow.encoder", "--precision", "fp16"]
ZIPS = {f"{name}.{half}.zip" for name in ("llm.text_encoder", "llm.llm", "flow.encoder") for half in ("fp32", "fp16")}


def targets(text: str) -> list[dict[str, Any]]:
    """The entries of an output that is one JSON object and nothing else."""
    document = json.loads(text)
    only_plans_have = {"obstacles", "outdated_plans"}
    assert [document.get(each, []) for each in only_plans_have] == [[], []]
    assert document.keys() - only_plans_have == {"targets"}
    return list(document["targets"])


def test_an_export_prints_a_table_and_where_the_zips_are(
    tiny: Path, copy_of: Copy, builds: Builds, run: Run, tmp_path: Path
) -> None:
    directory = copy_of(tiny)
    before = shown(directory)
    ran = finished(spawn(CONSOLE_SCRIPT, "export", directory))
    assert (ran.status, ran.err) == (0, "")
    *table, last = ran.out.splitlines()
    rows = [[cell.strip() for cell in row.split("│")[1:4]] for row in table if row.startswith("│")]
    names = ("llm.text_encoder", "llm.llm", "flow.encoder")
    assert rows == [[name, half, "built"] for name in names for half in ("fp32", "fp16")]
    assert last == f"Published in {directory}"
    after = shown(directory)
    assert after.keys() - before.keys() == ZIPS
    # What another process has built, with other seeds for hashes and other addresses, is the same.
    builds.stock(Store(tmp_path / "store"), tiny, ["flow.encoder"], ["fp16"])
    assert run("export", tiny, *ONE, "--publish", tmp_path / "again", "--store", tmp_path / "store").status == 0
    assert shown(tmp_path / "again").items() <= after.items()


@pytest.mark.slow
def test_python_m_prints_one_json_object_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    directory = tmp_path / "new" / "[red]:smile: 语音"
    command = [sys.executable, "-m", "cosyjit", "export", "--model_dir", tiny, *ONE, "--json", "--publish", directory]
    ran = finished(spawn(*command))
    assert (ran.status, ran.err) == (0, "")
    (entry,) = targets(ran.out)
    assert (entry["component"], entry["precision"], entry["state"]) == ("flow.encoder", "fp16", "built")
    assert entry["path"] == str(directory / "flow.encoder.fp16.zip")
    assert shown(directory).keys() == {"flow.encoder.fp16.zip"}


@pytest.mark.parametrize("flag", [[], ["--source"], ["--model-dir"], ["--model_dir"]], ids=lambda flag: str(*flag))
def test_the_model_directory_has_the_names_of_the_public_exporter(
    tiny: Path, tmp_path: Path, run: Run, stock: Stock, flag: list[str]
) -> None:
    stock(tiny, ["flow.encoder"], ["fp16"])
    ran = run("export", *flag, tiny, *ONE, "--publish", tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert shown(tmp_path).keys() == {"flow.encoder.fp16.zip"}


@pytest.mark.slow
def test_components_and_precisions_may_be_repeated(tiny: Path, copy_of: Copy, run: Run) -> None:
    directory = copy_of(tiny)
    before = shown(directory)
    components = ["--component", "flow.encoder", "--component", "llm.text_encoder"]
    ran = run("export", directory, *components, "--precision", "bf16", "--precision", "fp32", "--json")
    chosen = {f"{name}.{half}.zip" for name in ("llm.text_encoder", "flow.encoder") for half in ("fp32", "bf16")}
    assert (ran.status, ran.err) == (0, "")
    assert {Path(entry["path"]).name for entry in targets(ran.out)} == chosen
    assert shown(directory).keys() - before.keys() == chosen


def test_a_directory_whose_name_looks_like_markup_is_printed_as_it_is(
    tiny: Path, tmp_path: Path, run: Run, stock: Stock
) -> None:
    stock(tiny, ["flow.encoder"], ["fp16"])
    directory = tmp_path / "[red]x[/red] :smile:"
    assert run("export", tiny, *ONE, "--publish", directory).out.splitlines()[-1] == f"Published in {directory}"


def test_synth_writes_a_directory_that_exports_and_prints_it(tmp_path: Path, run: Run, tiny: Path) -> None:
    directory = tmp_path / "[red]:smile:"
    assert run("synth", directory, "--family", "cosyvoice", "--size", "tiny", "--seed", 0) == (0, f"{directory}\n", "")
    assert snapshot(directory) == snapshot(tiny)
    run("synth", tmp_path / "other", "--seed", 1)
    assert snapshot(tmp_path / "other").keys() == snapshot(tiny).keys()
    assert (tmp_path / "other" / "llm.pt").read_bytes() != (tiny / "llm.pt").read_bytes()
    assert run("synth", tmp_path / "other", "--seed", 0, "--force").status == 0
    assert snapshot(tmp_path / "other") == snapshot(tiny)


@pytest.mark.parametrize(("flag", "says"), [("--version", __version__), ("--help", "export")])
def test_version_and_help_go_to_standard_output(run: Run, flag: str, says: str) -> None:
    status, out, err = run(flag)
    assert (status, err) == (0, "")
    assert says in out


@pytest.fixture
def no_room(tiny: Path) -> Iterator[str]:
    """Lets no build write a file as large as the largest artifact is; gives the name of that one's target."""
    worker.prepare()
    largest = max((each.target for each in plan(tiny, precisions=["fp32"])), key=lambda target: target.weight_bytes)
    worker.run(give, 0)  # now the server runs, also if this test is the first of its process
    (server,) = servers(os.getpid())
    before = {limit: resource.prlimit(server, limit) for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)}
    for (limit, (_, hard)), soft in zip(before.items(), (largest.weight_bytes, 0), strict=True):
        resource.prlimit(server, limit, (soft, hard))
    yield largest.name
    for limit, values in before.items():
        resource.prlimit(server, limit, values)


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
def test_a_target_that_cannot_be_built_fails_alone_with_status_1_and_nothing_is_published(
    tiny: Path, copy_of: Copy, run: Run, no_room: str, form: list[str]
) -> None:
    directory = copy_of(tiny)
    before = snapshot(directory)
    status, out, err = run("export", directory, "--precision", "fp32", *form)
    assert (status, err) == (1, "")
    assert snapshot(directory) == before
    if form:
        states = {f"{entry['component']}.{entry['precision']}": entry["state"] for entry in targets(out)}
        (failed,) = (entry for entry in targets(out) if entry["error"] is not None)
        assert states == {name.removesuffix(".zip"): "built" for name in ZIPS if "fp32" in name} | {no_room: "failed"}
        assert {entry["path"] for entry in targets(out)} == {None}
        assert (failed["state"], failed["sha256"], failed["bytes"]) == ("failed", None, None)
    else:
        assert (out.count("│ built"), out.count("│ failed")) == (2, 1)
        assert [line for line in out.splitlines() if line.startswith(f"{no_room}: ")] != []
        assert out.splitlines()[-1].startswith("Nothing was published")


def test_a_killed_build_ends_with_status_1_and_nothing_is_published(
    tiny: Path, copy_of: Copy, run: Run, store: Store
) -> None:
    directory = copy_of(tiny)
    before = snapshot(directory)
    ended_export = threading.Event()

    def kill_all() -> None:
        while not ended_export.is_set():
            # Not before: the process of the plan is to end by itself.
            for pid in builders(os.getpid()) if litter(store) else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill_all)
        status, out, err = run("export", directory, "--precision", "fp32", "--json")
        ended_export.set()
        killing.result(60)
    assert (status, err) == (1, "")
    errors = [entry["error"] for entry in targets(out) if entry["state"] == "failed"]
    assert errors != []
    assert [error for error in errors if "SIGKILL" not in error] == []
    assert snapshot(directory) == before


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_leaves_no_file_and_no_process(
    tiny: Path, copy_of: Copy, store: Store, sent: signal.Signals, status: int
) -> None:
    directory = copy_of(tiny)
    before = snapshot(directory)
    with spawn(CONSOLE_SCRIPT, "export", directory) as process:
        wait_for(lambda: litter(store) and builders(process.pid))
        below = children(process.pid)
        process.send_signal(sent)
        out, _ = process.communicate(timeout=600)
    assert (process.returncode, out) == (status, "")
    wait_for(lambda: all(map(ended, below)))
    assert snapshot(directory) == before
    assert litter(store) == []


HOSTILE = "import os; os.mkdir(os.path.join({directory!r}, 'sprung')); raise ImportError('hostile')\n"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["console script", "library"])
def test_modules_in_the_model_directory_are_not_imported(tiny: Path, copy_of: Copy, tmp_path: Path, form: str) -> None:
    directory = copy_of(tiny)
    for name in (
        "torch.py",
        "json.py",
        "pickle.py",
        "encodings/__init__.py",
        "cosyjit/__init__.py",
        "sitecustomize.py",
    ):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(HOSTILE.format(directory=str(directory)))
    script = tmp_path / "export.py"
    script.write_text("import cosyjit\ncosyjit.export('.', components=['flow.encoder'], precisions=['fp16'])\n")
    command = [sys.executable, script] if form == "library" else [CONSOLE_SCRIPT, "export", ".", *ONE]
    before = snapshot(directory)
    ran = finished(spawn(*command, cwd=directory))
    assert (ran.status, ran.err) == (0, "")
    after = {name: content for name, content in snapshot(directory).items() if not name.startswith(".cosyjit")}
    assert after.keys() - before.keys() == {"flow.encoder.fp16.zip", "cosyjit.json"}


SPIED = """
import json, os, sys
seen = {"opened": [], "started": []}

def watch(event, arguments):
    if event == "open" and os.fsdecode(arguments[0] if isinstance(arguments[0], (str, bytes)) else "").endswith(".pt"):
        seen["opened"].append(os.fsdecode(arguments[0]))
    if event in {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system"}:
        seen["started"].append(event)

sys.addaudithook(watch)
from cosyjit.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    seen["status"] = ended.code
seen["imported"] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(seen), file=sys.stderr)
"""

HEAVY = {"fsspec", "numpy", "prefect", "torch"}


def spied(*arguments: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A command's targets, and what its process did: its status, what it opened, started and imported."""
    with start(SPIED, *arguments) as process:
        out, err = process.communicate(timeout=600)
    return targets(out), json.loads(err)


@pytest.mark.slow
def test_with_nothing_changed_plan_and_export_import_start_and_open_nothing_of_weight(
    tiny: Path, copy_of: Copy, run: Run, stock: Stock
) -> None:
    directory = copy_of(tiny)
    stock(directory)
    assert run("export", directory).status == 0
    before = shown(directory)
    for command, state in (("plan", "fresh"), ("export", "cached")):
        found, seen = spied(command, directory, "--json")
        assert [each["state"] for each in found] == [state] * 6
        assert seen["status"] == 0
        assert set(seen["imported"]) & HEAVY == set()
        assert (seen["started"], seen["opened"]) == ([], [])
    assert shown(directory) == before


def test_after_a_change_that_is_none_weights_are_read_and_what_is_new_is_fitted_without_torch(
    tiny: Path, copy_of: Copy, run: Run, stock: Stock
) -> None:
    directory = copy_of(tiny)
    stock(directory, ["flow.encoder"], ["fp16"])
    run("export", directory, *ONE)
    (directory / "flow.pt").touch()
    found, seen = spied("plan", directory, *ONE, "--precision", "bf16", "--json")
    assert [each["state"] for each in found] == ["fresh", "new"]
    assert set(seen["opened"]) == {str(directory / "flow.pt")}
    assert seen["started"] == []
    assert set(seen["imported"]) & HEAVY == set()


def test_a_plan_is_a_table_or_one_json_object(tiny: Path, run: Run, store: Store) -> None:
    put_planned(store, plan(tiny, ["flow.encoder"], ["fp32"]))
    put_planned(store, plan(tiny, ["flow.encoder"], ["fp16"]), torch="1.13.0")
    status, out, err = run("plan", tiny, "--json")
    assert (status, err) == (0, "")
    now = {each.target.name: each.target.fingerprint for each in plan(tiny)}
    states = {"flow.encoder.fp32": "fresh", "flow.encoder.fp16": "stale"}
    reasons = {"flow.encoder.fp16": [f"torch 1.13.0 -> {now['flow.encoder.fp16'].torch}"]}
    assert json.loads(out) == {
        "targets": [
            {
                "component": name.rpartition(".")[0],
                "precision": name.rpartition(".")[2],
                "device": "cpu",
                "fingerprint": each.key,
                "state": states.get(name, "new"),
                "reasons": reasons.get(name, []),
            }
            for name, each in now.items()
        ],
        "obstacles": [],
        "outdated_plans": [],
    }
    status, out, err = run("plan", tiny, "--component", "flow.encoder")
    assert (status, err) == (0, "")
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in out.splitlines() if row.startswith("│")]
    assert rows == [
        ["flow.encoder", "fp32", "fresh", ""],
        ["flow.encoder", "fp16", "stale", *reasons["flow.encoder.fp16"]],
    ]


def test_a_second_export_is_cached_and_force_builds_again(tiny: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["export", tiny, *ONE, "--publish", tmp_path, "--json"]
    first, second, forced = (targets(run(*arguments, *more).out) for more in ([], [], ["--force"]))
    assert [each["state"] for (each,) in (first, second, forced)] == ["built", "cached", "built"]
    assert [each["reasons"] for (each,) in (first, second, forced)] == [[], [], ["forced"]]
    assert (
        len({(each["sha256"], each["bytes"], each["path"], each["fingerprint"]) for (each,) in (first, second, forced)})
        == 1
    )


def test_the_store_is_named_by_an_option_or_by_the_environment(
    tiny: Path, tmp_path: Path, run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["export", tiny, *ONE, "--publish", tmp_path / "out", "--json"]
    monkeypatch.setenv("COSYJIT_STORE", str(tmp_path / "one"))
    assert targets(run(*arguments).out)[0]["state"] == "built"
    assert targets(run(*arguments, "--store", tmp_path / "two").out)[0]["state"] == "built"
    monkeypatch.setenv("COSYJIT_STORE", str(tmp_path / "two"))
    assert targets(run(*arguments).out)[0]["state"] == "cached"
    for root in ("one", "two"):
        assert len(list(Store(tmp_path / root).objects())) == 1
    assert store.objects() == set()
    assert f"nothing is published here from {tmp_path / 'two'};" in run("status", tmp_path / "nowhere").err


def test_links_are_published_on_request(tiny: Path, tmp_path: Path, run: Run, store: Store) -> None:
    (entry,) = targets(run("export", tiny, *ONE, "--publish", tmp_path, "--link", "--json").out)
    assert Path(entry["path"]).samefile(object_path(store, entry["sha256"]))


@pytest.fixture
def published(tiny: Path, copy_of: Copy, run: Run, stock: Stock) -> Path:
    """A model directory with one artifact published in it."""
    directory = copy_of(tiny)
    stock(directory, ["flow.encoder"], ["fp16"])
    assert run("export", directory, *ONE).status == 0
    return directory


ZIP = "flow.encoder.fp16.zip"


def test_status_says_what_is_published_and_ends_with_0_when_all_is_well(published: Path, run: Run) -> None:
    status, out, err = run("status", published)
    assert (status, err) == (0, "")
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in out.splitlines() if row.startswith("│")]
    assert rows == [[ZIP, "intact", "current", ""]]
    assert out.splitlines()[-1].startswith("Publication 1 of 20")
    assert out.splitlines()[-1].endswith(f", from {published}; manifest intact")


def test_status_ends_with_1_when_the_source_has_changed(published: Path, run: Run) -> None:
    count = retrain(published, "flow.pt", "encoder.")
    status, out, err = run("status", published, "--json")
    document = json.loads(out)
    assert (status, err) == (1, "")
    assert list(document) == ["publication", "manifest", "compared_with", "names", "older_plans"]
    assert document["publication"]["number"] == 1
    assert document["manifest"] == "intact"
    (name,) = document["names"]
    assert (name["name"], name["file"], name["state"]) == (ZIP, "intact", "stale")
    assert name["reasons"][0].startswith(f"{count} of {count} tensors changed")
    assert run("status", published).status == 1


def test_a_name_that_another_exporter_wrote_in_place_is_seen_and_mended_without_a_build(
    published: Path, run: Run
) -> None:
    before = shown(published)
    with (published / ZIP).open("wb") as file:
        file.write(b"another exporter's")
    assert run("status", published, "--json").status == 1
    assert "│ damaged │" in run("status", published).out
    assert run("verify", published) == (1, f"{published / ZIP}: damaged\n", "")
    assert run("verify").status == 0  # the store has not noticed
    (entry,) = targets(run("export", published, *ONE, "--json").out)
    assert entry["state"] == "cached"
    assert shown(published) == before
    assert run("status", published).status == 0
    assert unreferenced(published) == set()
    assert len(json.loads(run("history", published, "--json").out)["publications"]) == 1


def test_history_and_rollback_go_back_and_forth_without_a_build(published: Path, run: Run) -> None:
    first = shown(published)[ZIP]
    retrain(published, "flow.pt", "encoder.")
    assert run("export", published, *ONE).status == 0
    second = shown(published)[ZIP]
    assert first != second
    assert run("rollback", published) == (0, "Publication 3, with the artifacts of publication 1\n", "")
    assert shown(published)[ZIP] == first
    assert run("rollback", published, "--to", "2") == (0, "Publication 4, with the artifacts of publication 2\n", "")
    assert shown(published)[ZIP] == second
    status, out, err = run("history", published, "--json")
    found = json.loads(out)
    assert (status, err, list(found)) == (0, "", ["publications"])
    assert [(each["number"], each["restores"]) for each in found["publications"]] == [
        (4, 2),
        (3, 1),
        (2, None),
        (1, None),
    ]
    assert [each["previous"] for each in found["publications"]] == [
        *(each["identity"] for each in found["publications"][1:]),
        None,
    ]
    status, out, err = run("history", published)
    rows = [row.split("│")[1].strip() for row in out.splitlines() if row.startswith("│")]
    assert (status, err, rows) == (0, "", ["4 (as 2)", "3 (as 1)", "2", "1"])
    short = run("history", published, "--last", "2")
    assert (short.status, short.err) == (0, "")
    assert [row for row in short.out.splitlines() if row.startswith("│")] == [
        row for row in out.splitlines() if row.startswith("│")
    ][:2]
    of_two = json.loads(run("history", published, "--last", "2", "--json").out)
    assert of_two["publications"] == found["publications"][:2]
    assert run("status", published).status == 0


def test_a_rollback_to_what_there_is_not_is_refused(published: Path, run: Run) -> None:
    before = snapshot(published)
    for arguments, number in (([], 0), (["--to", "7"], 7), (["--to", "0"], 0)):
        assert run("rollback", published, *arguments) == (
            2,
            "",
            f"cosyjit: {published}: there is no publication {number}; kept are 1 to 1\n",
        )
    assert snapshot(published) == before


def test_a_rollback_to_what_was_collected_is_refused_and_what_is_published_stays(published: Path, run: Run) -> None:
    retrain(published, "flow.pt", "encoder.")
    run("export", published, *ONE)
    before = shown(published)
    assert run("gc", "--keep", "1", "--older-than", "0s", "--delete").status == 0
    for arguments in ([], ["--to", "1"]):
        assert run("rollback", published, *arguments) == (
            2,
            "",
            f"cosyjit: {published}: there is no publication 1; kept are 2 to 2\n",
        )
    assert shown(published) == before
    assert run("status", published).status == 0


def test_a_rollback_to_an_artifact_that_is_damaged_is_refused_and_what_is_published_stays(
    published: Path, run: Run, store: Store
) -> None:
    (first,) = targets(run("export", published, *ONE, "--json").out)
    retrain(published, "flow.pt", "encoder.")
    run("export", published, *ONE)
    before = shown(published)
    flip(object_path(store, first["sha256"]))
    status, out, err = run("rollback", published)
    assert (status, out) == (2, "")
    assert err.startswith(f"cosyjit: {store}: object {first['sha256']} is damaged; ")
    assert err.count("\n") == 1
    assert shown(published) == before
    assert unreferenced(published) == set()


def test_verify_reads_a_store_again_and_lists_what_is_wrong(published: Path, run: Run, store: Store) -> None:
    (entry,) = targets(run("export", published, *ONE, "--json").out)
    assert run("verify") == run("verify", store) == run("verify", published) == (0, "Nothing is wrong\n", "")
    assert json.loads(run("verify", "--json").out) == {"faults": []}
    assert store.local is not None
    path = object_path(store, entry["sha256"])
    stat = path.stat()
    flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    record_path(store, entry["fingerprint"]).write_text("no JSON")
    status, out, err = run("verify", "--json")
    faults = {each["name"]: each["problem"] for each in json.loads(out)["faults"]}
    assert (status, err) == (1, "")
    assert faults.keys() == {
        str(path.relative_to(store.local)),
        str(record_path(store, entry["fingerprint"]).relative_to(store.local)),
    }
    lines = run("verify", store).out.splitlines()
    assert len(lines) == 2
    assert all(": " in line for line in lines)
    assert run("verify", published).status == 0


def test_gc_is_a_dry_run_unless_told_to_delete(published: Path, run: Run, store: Store) -> None:
    (first,) = targets(run("export", published, *ONE, "--json").out)
    retrain(published, "flow.pt", "encoder.")
    (second,) = targets(run("export", published, *ONE, "--json").out)
    objects = {first["sha256"], second["sha256"]}

    def kept() -> set[str]:
        return store.objects()

    for options in ([], ["--older-than", "0s"], ["--keep", "1", "--older-than", "7d"]):
        found = json.loads(run("gc", *options, "--json").out)
        assert found["removed"] is False
        # The digests of published files that have been replaced are of no use, whatever their age.
        assert [each for each in found["files"] if not each["name"].startswith("digests/")] == []
    status, out, err = run("gc", "--keep", "1", "--older-than", "0s", "--json")
    found = json.loads(out)
    assert (status, err, found["removed"]) == (0, "", False)
    assert found["files"][0] == {"name": f"objects/{first['sha256'][:2]}/{first['sha256']}", "bytes": first["bytes"]}
    assert found["bytes"] == sum(each["bytes"] for each in found["files"])
    assert f"records/{first['fingerprint']}.json" in {each["name"] for each in found["files"]}
    lines = run("gc", "--keep", "1", "--older-than", "0s").out.splitlines()
    assert lines[-1].endswith("would go; run again with --delete to remove them")
    assert {line.partition(" (")[0] for line in lines} >= {each["name"] for each in found["files"]}
    assert kept() == objects
    gone = json.loads(run("gc", "--keep", "1", "--older-than", "0s", "--delete", "--json").out)
    assert gone == {**found, "removed": True}
    assert kept() == {second["sha256"]}
    again = json.loads(run("gc", "--keep", "1", "--older-than", "0s", "--delete", "--json").out)
    assert [each for each in again["files"] if not each["name"].startswith("digests/")] == []
    assert run("gc", "--keep", "1", "--older-than", "0s", "--delete").out.endswith("0 files removed, 0 bytes freed\n")
    assert run("verify").status == run("status", published).status == 0
    assert run("plan", published, *ONE, "--json").out.count('"fresh"') == 1


def test_lineage_finds_an_artifact_by_its_path_its_digest_and_its_fingerprint(
    published: Path, run: Run, store: Store, tmp_path: Path
) -> None:
    (entry,) = targets(run("export", published, *ONE, "--json").out)
    stray = tmp_path / "stray.zip"
    stray.write_bytes((published / ZIP).read_bytes())
    references = [published / ZIP, stray, entry["sha256"], entry["fingerprint"]]
    trees = {run("lineage", reference) for reference in references}
    ((status, tree, err),) = trees
    assert (status, err) == (0, "")
    assert tree.startswith(f"{ZIP}\n")
    assert f"source {published}\n" in tree
    documents = {run("lineage", reference, "--json").out for reference in references}
    (document,) = map(json.loads, documents)
    assert document["_type"] == TYPE
    assert document["subject"] == [{"name": ZIP, "digest": {"sha256": entry["sha256"]}}]
    kept = json.loads(record_path(store, entry["fingerprint"]).read_bytes())
    assert {**document, "checksum": kept["checksum"]} == kept


def test_the_lineage_of_a_stray_zip_needs_no_store_and_that_of_a_changed_one_says_so(
    published: Path, run: Run, tmp_path: Path
) -> None:
    (entry,) = targets(run("export", published, *ONE, "--json").out)
    elsewhere = ["--store", tmp_path / "other"]
    status, tree, err = run("lineage", published / ZIP, *elsewhere)
    assert (status, err) == (0, "")
    assert tree.startswith(f"{entry['sha256']} (of no record in this store)\n")
    said = json.loads(run("lineage", published / ZIP, *elsewhere, "--json").out)
    assert (list(said), said["fingerprint"]) == (["fingerprint", "parts", "schema"], entry["fingerprint"])
    assert str(published) not in json.dumps(said)
    flip((published / ZIP).resolve())
    changed = run("lineage", published / ZIP)
    assert (changed.status, changed.err) == (1, "")
    assert changed.out.startswith(f"{ZIP} (the file's own bytes are ")


def test_a_record_of_a_later_version_is_named_and_left_alone(published: Path, run: Run, store: Store) -> None:
    (entry,) = targets(run("export", published, *ONE, "--json").out)
    path = record_path(store, entry["fingerprint"])
    path.write_text(path.read_text().replace('"cosyjit_schema": 1', '"cosyjit_schema": 2'))
    before, content = snapshot(published), path.read_bytes()
    for command in (["export", published, *ONE], ["plan", published, *ONE], ["lineage", entry["fingerprint"]]):
        status, out, err = run(*command)
        assert (status, out) == (2, "")
        assert err.startswith(f"cosyjit: {path}: is of schema 2")
        assert err.count("\n") == 1
    assert snapshot(published) == before
    assert path.read_bytes() == content
    assert run("verify").status == 1
    assert run("gc", "--delete", "--older-than", "0s").status == 2
    assert path.read_bytes() == content


def test_a_record_that_is_no_json_is_built_again(published: Path, run: Run, store: Store) -> None:
    (before,) = targets(run("export", published, *ONE, "--json").out)
    record_path(store, before["fingerprint"]).write_text("no JSON")
    (after,) = targets(run("export", published, *ONE, "--json").out)
    assert (after["state"], after["reasons"], after["sha256"]) == ("built", ["record damaged"], before["sha256"])
    assert run("verify").status == 0


def test_a_store_that_cannot_be_written_is_one_line_in_a_process_of_its_own(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [CONSOLE_SCRIPT, "export", tiny, *ONE, "--store", tmp_path / "file", "--publish", tmp_path / "out"]
    status, out, err = finished(spawn(*command))
    assert (status, out) == (2, "")
    assert err.startswith(f"cosyjit: {tmp_path / 'file'}: cannot be read or written (")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_verify_of_a_directory_without_its_manifest_finds_that(published: Path, run: Run) -> None:
    (published / "cosyjit.json").unlink()
    status, out, err = run("verify", published)
    assert (status, out, err) == (1, f"{published / 'cosyjit.json'}: missing\n", "")
