"""The configuration file: what it gives, what is passed over, and what is refused."""

import json
import os
from pathlib import Path
from typing import Final

import pytest

from tests.support.keys import pair
from tests.support.processes import Run

PLAN: Final = """
store = "here"
[plan]
component = ["flow.*", "llm.llm"]
precision = "fp16"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a folder, which is the current one."""
    folder = tmp_path / "project" / "folder"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder.parent


def targets(text: str) -> list[tuple[str, str]]:
    return [(each["component"], each["precision"]) for each in json.loads(text)["targets"]]


@pytest.mark.parametrize("name", ["cosyjit.toml", "pyproject.toml"])
def test_a_file_above_the_current_directory_gives_options(name: str, tiny: Path, project: Path, run: Run) -> None:
    if name == "pyproject.toml":
        (project / "folder" / name).write_text("[tool.other]\nname = 'cosyjit'\n")
        text = "[tool.cosyjit]" + PLAN.replace("[plan]", "[tool.cosyjit.plan]")
    else:
        text = PLAN
    (project / name).write_text(text)
    ran = run("plan", tiny, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert targets(ran.out) == [(each, "fp16") for each in ("llm.llm", "flow.encoder")]
    assert (project / "here" / "digests").is_dir()


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    tiny: Path, project: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "cosyjit.toml").write_text(PLAN)
    monkeypatch.setenv("COSYJIT_STORE", str(tmp_path / "environment"))
    assert targets(run("plan", tiny, "--precision", "bf16", "--json").out)[0] == ("llm.llm", "bf16")
    assert (tmp_path / "environment").is_dir()
    run("plan", tiny, "--store", tmp_path / "line")
    assert (tmp_path / "line").is_dir()
    assert not (project / "here").exists()


def test_a_command_has_the_options_that_it_has_and_the_nearest_file_wins(tiny: Path, project: Path, run: Run) -> None:
    (project / "cosyjit.toml").write_text("precision = 1")
    (project / "folder" / "pyproject.toml").write_text("[tool.cosyjit]\nprecision = 1")
    (project / "folder" / "cosyjit.toml").write_text(
        "precision = 'bf16'\nstore = 'none'\nlast = 2\n[export]\nbuild = false\n"
    )
    assert run("gc").err.startswith(f"cosyjit: {project}/folder/none: there is no store")
    assert run("export", tiny, "--json").status == 1


def test_keys_in_the_home_directory_are_found_by_a_tilde(
    tiny: Path, project: Path, home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    keys = pair(home)
    (project / "cosyjit.toml").write_text(f"require-signature = '~/{keys.public.name}'")
    monkeypatch.setenv("COSYJIT_SIGN", f"~/{keys.private.name}")
    ran = run("plan", tiny)
    assert (ran.status, ran.err) == (0, "")


REFUSED: Final[dict[str, tuple[str, ...]]] = {
    "stor = 'x'": ("stor: is not an option or a table; known are component, ", ", and the tables export, plan, "),
    "gc = 1": ("gc: is not an option; known are",),
    "[plan]\nkeep = 1": ("plan.keep: is not an option of plan; known are source, component, ",),
    "wait = 'soon'": ("wait: is 'soon'; give a number",),
    "[gc]\nkeep = true": ("gc.keep: is True; give an integer",),
    "last = 'all'": ("last: is 'all'; give an integer",),
    "force = 1": ("force: is 1; give true or false",),
    "precision = [16]": ("precision: is [16]; give a text, or a list of texts",),
    "publish = ['a']": ("publish: is ['a']; give a text",),
    "webhook = ['secret']": ("webhook: is of another type; give a text",),
    "publish = ''": ("publish: is empty; name a place, or remove it",),
    "json = true": ("json: is for the command line alone; remove it, and give --json",),
    "[plan]\nexit_code = true": ("plan.exit_code: is for the command line alone; remove it, and give --exit-code",),
    "sign = 'a'\n[gc]\nolder_than = '1d'\nolder-than = '2d'": ("gc.older-than: is given twice, also as gc.older_than",),
    "to = 3": ("to: differs by the command; give it in the table rollback or copy-store or push",),
    "[plan": ("is not TOML (", "mend it, or move it away"),
    "a = " + "[" * 5000: ("is not TOML (",),
    "#" * ((1 << 20) + 1): ("is larger than 1,048,576 bytes",),
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
def test_what_a_file_should_not_have_is_refused_in_one_line(text: str, tiny: Path, project: Path, run: Run) -> None:
    (project / "cosyjit.toml").write_text(text)
    ran = run("plan", tiny)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith(f"cosyjit: {project}/cosyjit.toml: {REFUSED[text][0]}")
    assert all(words in ran.err for words in REFUSED[text])
    assert "secret" not in ran.err


def test_what_is_not_a_file_of_text_is_refused(tiny: Path, project: Path, run: Run) -> None:
    path = project / "cosyjit.toml"
    for make, says in (
        (path.mkdir, "cannot be read (Is a directory)"),
        (lambda: os.mkfifo(path), "is not a file"),
        (lambda: path.symlink_to("nowhere"), "cannot be read (No such file or directory)"),
        (lambda: path.write_bytes(b"\xff"), "is not TOML ("),
    ):
        make()
        assert run("plan", tiny).err.startswith(f"cosyjit: {path}: {says}")
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    (project / "pyproject.toml").write_text("[tool]\ncosyjit = 1")
    assert "pyproject.toml: cosyjit: is not a table; give the options in [tool.cosyjit]" in run("plan", tiny).err


def test_the_file_of_a_model_directory_or_below_one_is_not_read(tiny: Path, project: Path, run: Run) -> None:
    (project / "cosyvoice4.yaml").touch()
    for path in (project / "folder" / "cosyjit.toml", project / "pyproject.toml"):
        path.write_text("[[[ a stranger's")
        ran = run("plan", tiny, "--component", "llm.llm")
        assert ran.status == 0
        line = f"{path}: is passed over, since {project} is a model directory, which may be a stranger's"
        assert ran.err == f"cosyjit: {line}; keep it elsewhere\n"
        path.unlink()
    (project.parent / "cosyjit.toml").write_text("precision = 'bf16'")  # above it, it is the user's
    assert targets(run("plan", tiny, "--component", "llm.llm", "--json").out) == [("llm.llm", "bf16")]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_the_file_of_another_user_is_not_read(tiny: Path, project: Path, run: Run) -> None:
    path = project / "cosyjit.toml"
    path.write_text("precision = 'bf16'")
    os.chown(path, 1234, 1234)
    ran = run("plan", tiny, "--component", "llm.llm", "--json")
    assert targets(ran.out) == [("llm.llm", "fp32"), ("llm.llm", "fp16")]
    assert ran.err == f"cosyjit: {path}: is passed over, since it belongs to another user (1234)\n"
    (project / "theirs").write_text("precision = 'bf16'")
    os.chown(project / "theirs", 1234, 1234)
    path.unlink()
    path.symlink_to("theirs")
    assert run("plan", tiny).err == f"cosyjit: {path}: leads to a file of another user (1234); move it away\n"
