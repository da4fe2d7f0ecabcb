"""The command line as people walk through it, by scripts that are run as they are written."""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import CONSOLE_SCRIPT

pytestmark = pytest.mark.stress

WALKS: Final = sorted(Path(__file__).parent.glob("walks/*.sh"))

PRELUDE: Final = r"""
set -euo pipefail
says() {
    local expected=$1 text=$2 status=0 output
    shift 2
    output=$("$@" 2>&1) || status=$?
    if [[ $status != "$expected" || $output != *"$text"* ]]; then
        printf 'ended with %s, not %s, or does not say "%s":\n%s\n' "$status" "$expected" "$text" "$*"
        printf '%s\n' "$output"
        exit 1
    fi
}
summary() {
    "$@" | python -c 'if True:
        import collections, json, sys
        states = collections.Counter(each["state"] for each in json.load(sys.stdin)["targets"])
        print(*(f"{count} {state}" for state, count in states.items()), sep=", ")'
}
"""
"""What the scripts have besides the shell: `says`, and how many targets of a JSON object are in which state."""


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.stem)
def test_a_walk_goes_as_it_is_written(walk: Path, tmp_path: Path) -> None:
    environment = {"PATH": f"{CONSOLE_SCRIPT.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        ["/bin/bash", "-c", PRELUDE + walk.read_text(encoding="utf-8")],
        cwd=tmp_path / "work",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
