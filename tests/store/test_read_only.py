"""A store that can only be read serves what it has, and nothing is written to it."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from cosyjit import Store, export
from tests.support.builds import Builds
from tests.support.processes import CONSOLE_SCRIPT, Ran, Run, shown, snapshot
from tests.support.s3 import Answer, Service

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


def run_as_nobody(store: Store, *arguments: object) -> Ran:
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
    assert "fresh" in run_as_nobody(kept, "plan", model, *ONE).out
    assert run_as_nobody(kept, "status", directory / "out").status == 0
    assert run_as_nobody(kept, "verify", directory / "out").status == 0
    assert (run_as_nobody(kept, "verify").status, run_as_nobody(kept, "gc").status) == (0, 0)
    made = run_as_nobody(kept, "export", model, *ONE, "--publish", out)
    assert (made.status, "cached" in made.out) == (0, True)
    expected = f"cosyjit: {kept.root}: is read-only, so its history has not this publication; {out} itself has\n"
    assert made.err == expected
    assert shown(out) == shown(directory / "out")
    again = run_as_nobody(kept, "export", model, *ONE, "--publish", out)
    assert (again.status, again.err) == (0, "")
    assert "intact" in run_as_nobody(kept, "status", out).out
    assert run_as_nobody(kept, "verify", out).status == 0
    assert snapshot(Path(kept.root)) == before


@pytest.mark.slow
def test_what_would_be_built_into_a_read_only_store_is_refused_before(kept: Store, directory: Path) -> None:
    others(Path(kept.root))
    before = snapshot(Path(kept.root))
    out = directory / "elsewhere"
    ran = run_as_nobody(kept, "export", directory / "model", *TWO, "--publish", out)
    expected = f"{kept.root}: is read-only, and flow.encoder.fp32 would be built into it; name another store"
    assert (ran.status, ran.out, ran.err) == (2, "", f"cosyjit: {expected}\n")
    assert expected in " ".join(run_as_nobody(kept, "plan", directory / "model", *TWO, "--publish", out).out.split())
    assert not out.exists()
    assert snapshot(Path(kept.root)) == before


def test_a_bucket_that_can_only_be_read_serves_what_it_has(
    tiny2: Path, copy_of: Callable[[Path], Path], s3: Service, builds: Builds, tmp_path: Path, run: Run
) -> None:
    url = s3.url()
    model = copy_of(tiny2)
    builds.stock(Store(url), tiny2, ["flow.encoder"], ["fp16"])
    before = sorted(entry.name for entry in Store(url).entries())
    command = ["export", model, *ONE, "--no-build", "--store", url, "--publish", tmp_path / "out"]
    with s3.proxied(lambda method, _: None if method in {"GET", "HEAD"} else Answer(403, "AccessDenied")):
        made = run(*command)
        again = run(*command)
        assert "intact" in run("status", tmp_path / "out", "--store", url).out
    expected = f"cosyjit: {url}: is read-only, so its history has not this publication; {tmp_path / 'out'} itself has\n"
    assert (made.status, "cached" in made.out, made.err) == (0, True, expected)
    assert (again.status, again.err) == (0, "")
    assert shown(tmp_path / "out").keys() == {NAME}
    assert sorted(entry.name for entry in Store(url).entries()) == before


def others(path: Path) -> None:
    """Makes a tree another user's, if that can be done."""
    if os.geteuid() == 0:
        for each in [path, *path.rglob("*")]:
            os.chown(each, 12345, 12345)
