"""Modules in processes of their own: what they say, and what is said where they say nothing."""

import subprocess
from pathlib import Path

import pytest

from cosyjit.doctor.children import asked
from cosyjit.doctor.finding import ChildError
from cosyjit.errors import ResourceError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where modules of the test are found."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_module_gives_the_object_that_it_prints(folder: Path) -> None:
    (folder / "told.py").write_text("import sys; print('{\"a\": 1}'); print('a warning', file=sys.stderr)")
    assert asked("told", 60) == {"a": 1}


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        ("import nosuchmodule", ChildError, "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("raise SystemExit(3)", ChildError, "exit status 3"),
        ("raise ValueError('x' * 400)", ChildError, "ValueError: x"),
        ("raise ValueError('one\\n  two')", ChildError, "ValueError: one two"),
        ("import sys; sys.exit('no error, but a word')", ChildError, "no error, but a word"),
        ("raise MemoryError", ResourceError, "mute: there is not enough memory"),
    ],
)
def test_a_module_that_says_nothing_is_quoted(code: str, kind: type[Exception], says: str, folder: Path) -> None:
    (folder / "mute.py").write_text(code)
    with pytest.raises(kind) as error:
        asked("mute", 60)
    assert str(error.value).startswith(says)
    assert len(str(error.value)) <= 251


def test_a_module_that_does_not_end_is_killed(folder: Path) -> None:
    (folder / "endless.py").write_text("import time; time.sleep(600)")
    with pytest.raises(subprocess.TimeoutExpired):
        asked("endless", 0.1)
