"""A program of a user's is checked against the installed package's types: see PEP 561."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import ROOT

RIGHT: Final = """
import cosyjit

for outcome in cosyjit.export("CosyVoice-300M", precisions=["fp16"]):
    print(outcome.target.name, outcome.state, outcome.path)
"""
WRONG: Final = RIGHT.replace("outcome.path", "outcome.place")


@pytest.mark.slow
def test_mypy_sees_the_types_of_an_installed_package(tmp_path: Path) -> None:
    # An environment that has the package's files and nothing else.
    venv.create(tmp_path / "user")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(ROOT / "cosyjit", tmp_path / "user" / "lib" / version / "site-packages" / "cosyjit")
    for name, text in {"right.py": RIGHT, "wrong.py": WRONG}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    python = ["--python-executable", str(tmp_path / "user" / "bin" / "python")]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", *python, "right.py", "wrong.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "")
    *errors, count = ran.stdout.splitlines()
    assert errors == ['wrong.py:5: error: "Outcome" has no attribute "place"  [attr-defined]']
    assert count.startswith("Found 1 error in 1 file")
