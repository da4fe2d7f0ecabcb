"""A store that can only be read serves what it has, and nothing is written to it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from cosyjit import Store, export
from tests.support.processes import CONSOLE_SCRIPT, Ran, shown, snapshot

ONE: Final = ["--component", "flow.encoder", "--precision", "fp16"]
TWO: Final = ["--component", "flow.encoder", "--precision", "fp32"]
NAME: Final = "flow.encoder.fp16.zip"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where another user can look, unlike pytest's own directories."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def kept(tiny2: Path, directory: Path) -> Store:
    """A store that has something, and cannot be written to."""
    shutil.copytree(tiny2, directory / "model")
    store = Store(directory / "store")
    export(
        directory / "model", components=["flow.encoder"], precisions=["fp16"], publish=directory / "out", store=store
    )
    for path in [Path(store.root), *Path(store.root).rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in [directory / "model", *(directory / "model").rglob("*"), *(directory / "out").rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o777 if path.is_dir() else 0o666)
    return store


def run(store: Store, *arguments: object) -> Ran:
    """Runs the command as a user who owns nothing."""
    home = Path(store.root).with_name("home")
    home.mkdir(exist_ok=True)
    home.chmod(0o777)
    done = subprocess.run(
        [*AS_NOBODY, CONSOLE_SCRIPT, *map(str, arguments), "--store", store.root],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


AS_NOBODY: Final = (
    [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search,-fowner",
        "--inh-caps=-all",
        "sh",
        "-c",
        'exec "$@"',
        "sh",
    ]
    if os.geteuid() == 0
    else []
)
"""Root may write what is read-only; without these capabilities he may not, where it is not his."""


@pytest.mark.slow
def test_a_read_only_store_serves_what_it_has(kept: Store, directory: Path) -> None:
    others(Path(kept.root))
    before = snapshot(Path(kept.root))
    out = directory / "elsewhere"
    model = directory / "model"
    assert "fresh" in run(kept, "plan", model, *ONE).out
    assert run(kept, "status", directory / "out").status == 0
    assert run(kept, "verify", directory / "out").status == 0
    assert (run(kept, "verify").status, run(kept, "gc").status) == (0, 0)
    made = run(kept, "export", model, *ONE, "--publish", out)
    assert (made.status, "cached" in made.out) == (0, True)
    expected = f"cosyjit: {kept.root}: is read-only, so its history has not this publication; {out} itself has\n"
    assert made.err == expected
    assert shown(out) == shown(directory / "out")
    again = run(kept, "export", model, *ONE, "--publish", out)
    assert (again.status, again.err) == (0, "")
    assert "intact" in run(kept, "status", out).out
    assert run(kept, "verify", out).status == 0
    assert snapshot(Path(kept.root)) == before


@pytest.mark.slow
def test_what_would_be_built_into_a_read_only_store_is_refused_before(kept: Store, directory: Path) -> None:
    others(Path(kept.root))
    before = snapshot(Path(kept.root))
    out = directory / "elsewhere"
    ran = run(kept, "export", directory / "model", *TWO, "--publish", out)
    expected = f"{kept.root}: is read-only, and flow.encoder.fp32 would be built into it; name another store"
    assert (ran.status, ran.out, ran.err) == (2, "", f"cosyjit: {expected}\n")
    assert expected in " ".join(run(kept, "plan", directory / "model", *TWO, "--publish", out).out.split())
    assert not out.exists()
    assert snapshot(Path(kept.root)) == before


def others(path: Path) -> None:
    """Makes a tree another user's, if that can be done."""
    if os.geteuid() == 0:
        for each in [path, *path.rglob("*")]:
            os.chown(each, 12345, 12345)
