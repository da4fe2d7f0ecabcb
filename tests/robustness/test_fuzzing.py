"""Every reader of what strangers write, with inputs that nobody wrote; and the program, with readers at fault."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import ROOT

pytest.importorskip("atheris", reason="atheris has no wheel for this Python")

TARGETS: Final = sorted(path.stem for path in (ROOT / "tests" / "fuzz").glob("[!_]*.py"))
BOUNDS: Final = ("-timeout=60", "-max_len=4096", "-print_final_stats=1")


COSTLY: Final = {"config", "hugging_face", "listing", "record", "snapshot", "tokenizer"}
"""Those of which an input takes a millisecond or more."""


def fuzzed(target: str, *flags: str, path: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """What becomes of a target; its modules are in `path`."""
    # The most memory that a process has had counts for those that it starts: a shell between has had little.
    return subprocess.run(
        [
            "/bin/sh",
            "-c",
            '"$@"; exit $?',
            "sh",
            sys.executable,
            "-m",
            "tests.support.fuzzing",
            target,
            *BOUNDS,
            *flags,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def assert_nothing_is_found(target: str, inputs: int, seed: int) -> None:
    done = fuzzed(target, f"-runs={inputs}", f"-seed={seed}")
    assert done.returncode == 0, done.stdout[-5000:]
    units = re.search(r"stat::number_of_executed_units: (\d+)", done.stdout)
    assert units is not None
    assert int(units[1]) >= inputs


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_reader_gives_an_answer_or_an_error_of_one_line(target: str) -> None:
    assert_nothing_is_found(target, 250 if target in COSTLY else 1_000, seed=1)


@pytest.mark.stress
@pytest.mark.parametrize("target", TARGETS)
def test_a_reader_gives_an_answer_or_an_error_of_one_line_many_times(target: str) -> None:
    assert_nothing_is_found(target, 2_500 if target in COSTLY else 10_000, seed=2)  # `make fuzz` has a hundred thousand


FAULTS: Final = {
    "raises": ("raise ValueError('at fault')", "ValueError: at fault"),
    "hangs": ("while True: pass", "libFuzzer: timeout"),
    "allocates": ("bytearray(1 << 29)", "KB of memory"),
    "runs": ("os.system('true')", "os.system"),
    "imports": ("import wave", "import ('wave'"),
    "writes": ("Path(__file__ + '.out').touch()", "open ("),
    "connects": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))", "socket.connect"),
}

FAULTY: Final = """
import os
import socket
from pathlib import Path
from cosyjit.documents import load

SEEDS = [b'{"a": 1}']

def read(content):
    if content.startswith(b"~~"):
        try:
            FAULT
        except AssertionError:
            pass
    load(content, "where")

def mutate(content, size, seed):
    return (b"~~" if seed % 50 == 1 else b"") + content[: size - 2]
"""


@pytest.mark.stress
@pytest.mark.parametrize(("fault", "said"), FAULTS.values(), ids=FAULTS)
def test_a_reader_at_fault_is_found_out(fault: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "reader.py").write_text(FAULTY.replace("FAULT", fault))
    done = fuzzed("faulty.reader", "-runs=10000", "-seed=1", "-timeout=2", path=tmp_path)
    assert done.returncode != 0
    assert said in done.stdout
    assert not list(tmp_path.glob("faulty/*.out"))


@pytest.mark.stress
def test_inputs_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "reader.py").write_text(FAULTY.replace("FAULT", "raise ValueError(content)"))
    given = [
        re.findall("was given .*", fuzzed("faulty.reader", "-runs=10000", "-seed=3", path=tmp_path).stdout)
        for _ in "12"
    ]
    assert given[0] == given[1] != []


@pytest.mark.stress
def test_nothing_stays_behind(tmp_path: Path) -> None:
    (tmp_path / "faulty").mkdir()
    said = textwrap.dedent(
        """
        import tempfile
        from pathlib import Path
        SEEDS = [b"1"]
        Path(__file__).with_name("said").write_text(tempfile.mkdtemp())
        def read(content):
            pass
        """
    )
    (tmp_path / "faulty" / "reader.py").write_text(said)
    assert fuzzed("faulty.reader", "-runs=10", path=tmp_path).returncode == 0
    assert not Path((tmp_path / "faulty" / "said").read_text()).parent.exists()
