"""What a terminal, a pipe and a program get of commands: widths, colours, progress, counts, and errors as JSON."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cosyjit import Store, export
from cosyjit.processes.interrupts import changes, note_changes
from tests.support.files import flip
from tests.support.processes import CONSOLE_SCRIPT, Ran, Run, finished, spawn
from tests.support.screens import COLUMNS, on_terminal, rows
from tests.support.stores import object_path

Copy = Callable[[Path], Path]
Stock = Callable[..., None]

ONE = ("--component", "flow.encoder", "--precision", "fp16")
ZIP = "flow.encoder.fp16.zip"


@pytest.fixture
def published(tiny: Path, copy_of: Copy, stock: Stock) -> Path:
    """A model directory with one artifact published in it."""
    directory = copy_of(tiny)
    stock(directory, ["flow.encoder"], ["fp16"])
    export(directory, components=["flow.encoder"], precisions=["fp16"])
    return directory


def test_a_plan_tells_by_its_exit_status_whether_something_is_to_be_built(published: Path, run: Run) -> None:
    fresh, new = run("plan", published, *ONE, "--exit-code"), run("plan", published, "--exit-code")
    assert (fresh.status, fresh.out.splitlines()[-1]) == (0, "Nothing is to be built: the store has 1 of 1 targets")
    assert (new.status, new.out.splitlines()[-1]) == (2, "5 of 6 targets to build: 5 new")
    assert run("plan", published).status == 0
    assert run("plan", published, "nowhere", "--exit-code").status == 1
    (published / ZIP).unlink()
    (published / ZIP).mkdir()
    refused = run("plan", published, *ONE, "--exit-code")
    assert (refused.status, "An export would be refused: " in refused.out) == (1, True)
    for wrong in (["nowhere"], [published, "--precision", "fp8"], [published, "--nothing"]):
        assert run("plan", *wrong, "--exit-code").status == 1
    assert run("plan", "nowhere", "--exit_code").status == 1


def test_to_be_quiet_is_to_show_errors_alone(published: Path, run: Run, store: Store) -> None:
    for command in (["plan", published], ["status", published], ["export", published, *ONE], ["verify"], ["gc"]):
        assert run(*command, "-q") == (0, "", "")
    assert json.loads(run("verify", "--quiet", "--json").out) == {"faults": []}
    assert run("plan", "nowhere", "-q").err == run("plan", "nowhere").err
    (kept,) = store.objects()
    flip(object_path(store, kept))
    wrong = run("verify")
    assert (wrong.status, wrong.err) == (1, "")
    assert run("verify", "-q") == (1, "", "".join(f"cosyjit: {line}\n" for line in wrong.out.splitlines()))
    missing = run("export", published, "--component", "flow.encoder", "--no-build", "-q")
    assert (missing.status, missing.out) == (1, "")
    assert "cosyjit: flow.encoder.fp32: is not in " in missing.err
    assert run("plan", published, "-q", "-v") == (
        2,
        "",
        "cosyjit: --verbose and --quiet: exclude each other; give one of them\n",
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_a_script_that_knows_commands_and_options(run: Run, shell: str) -> None:
    status, out, err = run("completion", shell)
    assert (status, err) == (0, "")
    assert {"copy-store", "exit-code", "quiet"} <= set(re.findall(r"[\w-]*\w", out.replace("--", " ")))


def test_the_short_option_gives_the_version(run: Run) -> None:
    assert run("-V") == run("--version")


def test_what_changes_something_has_an_object_too(published: Path, run: Run, tmp_path: Path) -> None:
    export(published, components=["flow.encoder"], precisions=["fp16"], publish=tmp_path / "out")
    made = json.loads(run("synth", tmp_path / "new", "--json").out)
    assert made == {"directory": str(tmp_path / "new"), "family": "cosyvoice", "size": "tiny", "seed": 0}
    files = json.loads(run("init", tmp_path / "flow", "--json").out)["files"]
    assert files == [str(tmp_path / "flow" / name) for name in ("prefect.yaml", "automations.yaml")]
    run("export", published, *ONE, "--component", "llm.llm", "--force")
    back = json.loads(run("rollback", published, "--json").out)
    assert (back["publication"]["number"], back["publication"]["restores"]) == (3, 1)


@pytest.mark.parametrize("wrong", [["plan", "nowhere"], ["plan", "--nothing"], ["nothing"], ["gc", "--keep", "x"]])
def test_an_error_is_one_object_and_one_line(run: Run, wrong: list[str]) -> None:
    ran = run(*wrong, "--json")
    error = json.loads(ran.out)["error"]
    assert ran == Ran(2, ran.out, f"cosyjit: {error['message']}\n")
    assert error.keys() == {"kind", "message", "status"}
    assert (error["kind"], error["status"]) == ("SourceError" if "nowhere" in wrong else "UsageError", 2)


def test_what_was_changed_last_is_what_is_said() -> None:
    note_changes("what was copied is kept")
    assert changes() == "what was copied is kept"


SIGNALLED = """
import signal
from cosyjit.planning import plan
plan.plan = lambda *_, **__: signal.raise_signal(signal.SIGTERM)
from cosyjit.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_signal_is_an_object_too_and_says_what_was_changed(tiny: Path) -> None:
    ran = finished(spawn(sys.executable, "-c", SIGNALLED, "plan", tiny, "--json"))
    message = "ended by SIGTERM; nothing was changed"
    status = 128 + signal.SIGTERM
    assert (ran.status, ran.err) == (status, f"cosyjit: {message}\n")
    assert json.loads(ran.out) == {"error": {"kind": "Interrupted", "message": message, "status": status}}


@pytest.mark.slow
def test_a_lack_of_memory_is_an_object_too(tiny: Path) -> None:
    ran = finished(spawn("prlimit", "--as=50000000", CONSOLE_SCRIPT, "plan", tiny, "--json"))
    error = json.loads(ran.out)["error"]
    assert (error["kind"], error["status"], ran.err) == ("ResourceError", 1, f"cosyjit: {error['message']}\n")


@pytest.mark.slow
def test_a_terminal_has_colours_unless_it_should_not_and_the_same_text_as_a_pipe(published: Path) -> None:
    (published / ZIP).unlink()
    command = (CONSOLE_SCRIPT, "status", published)
    piped, coloured = finished(spawn(*command)), on_terminal(*command)
    assert rows(piped.out)[0][:2] == [ZIP, "missing"]
    assert "\x1b[31mmissing" in coloured.text
    assert coloured == (1, coloured.text)
    assert coloured.plain == piped.out
    table = piped.out.partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= COLUMNS
    assert "\x1b[31m" not in on_terminal(*command, environment={"NO_COLOR": "1"}).text
    assert on_terminal(*command, environment={"TERM": "dumb"}) == (1, piped.out)


@pytest.mark.slow
def test_a_terminal_shows_how_far_an_export_is(published: Path) -> None:
    command = (CONSOLE_SCRIPT, "export", published, *ONE, "--force")
    shown = on_terminal(*command)
    assert shown.status == 0
    assert "0 of 1 done; waiting: flow.encoder.fp16" in shown.plain
    assert "1 of 1 done" in shown.plain
    assert on_terminal(*command, "--quiet") == (0, "")
    dumb = on_terminal(*command, environment={"TERM": "dumb"})
    assert ("done" in dumb.text, "\x1b" in dumb.text) == (False, False)
