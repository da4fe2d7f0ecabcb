"""The command line: what it prints where, its exit codes, and how it ends when something is killed."""

import contextlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cosyjit import __version__, plan
from tests.calls import (
    CONSOLE_SCRIPT,
    Ran,
    builds,
    children,
    ended,
    finished,
    run_here,
    servers,
    snapshot,
    spawn,
    wait_for,
)

Copy = Callable[[Path], Path]
ONE = ["--component", "flow.encoder", "--precision", "fp16"]
ZIPS = {f"{name}.{half}.zip" for name in ("llm.text_encoder", "llm.llm", "flow.encoder") for half in ("fp32", "fp16")}

Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return partial(run_here, capsys)


def targets(text: str) -> list[dict[str, Any]]:
    """The entries of an output that is one JSON object and nothing else."""
    document = json.loads(text)
    assert list(document) == ["targets"]
    return list(document["targets"])


def test_an_export_prints_a_table_and_where_the_zips_are(tiny: Path, copy_of: Copy, run: Run, tmp_path: Path) -> None:
    directory = copy_of(tiny)
    ran = finished(spawn(CONSOLE_SCRIPT, "export", directory))
    assert (ran.status, ran.err) == (0, "")
    *table, last = ran.out.splitlines()
    rows = [[cell.strip() for cell in row.split("│")[1:4]] for row in table if row.startswith("│")]
    names = ("llm.text_encoder", "llm.llm", "flow.encoder")
    assert rows == [[name, half, "built"] for name in names for half in ("fp32", "fp16")]
    assert last == f"Published in {directory}"
    # In another process, with other seeds for hashes and other addresses.
    assert run("export", tiny, "--publish", tmp_path / "again").status == 0
    again = snapshot(tmp_path / "again")
    assert again.keys() == ZIPS
    assert {name: snapshot(directory)[name] for name in ZIPS} == again


def test_python_m_prints_one_json_object_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    directory = tmp_path / "new" / "[red]:smile: 语音"
    command = [sys.executable, "-m", "cosyjit", "export", "--model_dir", tiny, *ONE, "--json", "--publish", directory]
    ran = finished(spawn(*command))
    assert (ran.status, ran.err) == (0, "")
    (entry,) = targets(ran.out)
    assert (entry["component"], entry["precision"], entry["state"]) == ("flow.encoder", "fp16", "built")
    assert entry["path"] == str(directory / "flow.encoder.fp16.zip")
    assert snapshot(directory).keys() == {"flow.encoder.fp16.zip"}


@pytest.mark.parametrize("flag", [[], ["--source"], ["--model-dir"], ["--model_dir"]], ids=lambda flag: str(*flag))
def test_the_model_directory_has_the_names_of_the_public_exporter(
    tiny: Path, tmp_path: Path, run: Run, flag: list[str]
) -> None:
    ran = run("export", *flag, tiny, *ONE, "--publish", tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert snapshot(tmp_path).keys() == {"flow.encoder.fp16.zip"}


def test_components_and_precisions_may_be_repeated(tiny: Path, copy_of: Copy, run: Run) -> None:
    directory = copy_of(tiny)
    before = snapshot(directory)
    components = ["--component", "flow.encoder", "--component", "llm.text_encoder"]
    ran = run("export", directory, *components, "--precision", "bf16", "--precision", "fp32", "--json")
    chosen = {f"{name}.{half}.zip" for name in ("llm.text_encoder", "flow.encoder") for half in ("fp32", "bf16")}
    assert (ran.status, ran.err) == (0, "")
    assert {Path(entry["path"]).name for entry in targets(ran.out)} == chosen
    assert snapshot(directory).keys() - before.keys() == chosen


def test_a_directory_whose_name_looks_like_markup_is_printed_as_it_is(tiny: Path, tmp_path: Path, run: Run) -> None:
    directory = tmp_path / "[red]x[/red] :smile:"
    assert run("export", tiny, *ONE, "--publish", directory).out.splitlines()[-1] == f"Published in {directory}"


def test_synth_writes_a_directory_that_exports_and_prints_it(tmp_path: Path, run: Run, tiny: Path) -> None:
    directory = tmp_path / "[red]:smile:"
    assert run("synth", directory, "--family", "cosyvoice", "--size", "tiny", "--seed", 0) == (0, f"{directory}\n", "")
    assert snapshot(directory) == snapshot(tiny)
    run("synth", tmp_path / "other", "--seed", 1)
    assert snapshot(tmp_path / "other").keys() == snapshot(tiny).keys()
    assert (tmp_path / "other" / "llm.pt").read_bytes() != (tiny / "llm.pt").read_bytes()


@pytest.mark.parametrize(("flag", "says"), [("--version", __version__), ("--help", "export")])
def test_version_and_help_go_to_standard_output(run: Run, flag: str, says: str) -> None:
    status, out, err = run(flag)
    assert (status, err) == (0, "")
    assert says in out


@pytest.fixture
def no_room(tiny: Path) -> Iterator[str]:
    """Lets no build write a file as large as the largest artifact is; gives the name of that one's target."""
    largest = max(plan(tiny, precisions=["fp32"]), key=lambda target: target.weight_bytes)
    (server,) = servers(os.getpid())
    before = {limit: resource.prlimit(server, limit) for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)}
    for (limit, (_, hard)), soft in zip(before.items(), (largest.weight_bytes, 0), strict=True):
        resource.prlimit(server, limit, (soft, hard))
    yield largest.name
    for limit, values in before.items():
        resource.prlimit(server, limit, values)


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


def test_a_killed_build_ends_with_status_1_and_nothing_is_published(tiny: Path, copy_of: Copy, run: Run) -> None:
    directory = copy_of(tiny)
    before = snapshot(directory)
    ended_export = threading.Event()

    def kill_all() -> None:
        while not ended_export.is_set():
            # Not before: the process of the plan is to end by itself.
            for pid in builds(os.getpid()) if list(directory.glob(".cosyjit-*")) else []:
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


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_leaves_no_file_and_no_process(
    tiny: Path, copy_of: Copy, sent: signal.Signals, status: int
) -> None:
    directory = copy_of(tiny)
    before = snapshot(directory)
    with spawn(CONSOLE_SCRIPT, "export", directory, "--publish", directory / "new") as process:
        wait_for(lambda: list(directory.glob("new/.cosyjit-*/*")) and builds(process.pid))
        below = children(process.pid)
        process.send_signal(sent)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    wait_for(lambda: all(map(ended, below)))
    assert snapshot(directory) == before


HOSTILE = "import os; os.mkdir(os.path.join({directory!r}, 'sprung')); raise ImportError('hostile')\n"


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
    assert snapshot(directory).keys() - before.keys() == {"flow.encoder.fp16.zip"}
