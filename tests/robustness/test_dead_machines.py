"""A machine that goes down between build and publication: the next one takes over, and builds what is missing alone."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from cosyjit import history
from cosyjit.operations.gc import gc
from cosyjit.operations.verify import verify_directory, verify_store
from cosyjit.store.store import Store
from tests.support.processes import CONSOLE_SCRIPT, Ran, children, spawn, unexpected, wait_for
from tests.support.s3 import Service
from tests.support.stores import litter, unreferenced

if TYPE_CHECKING:
    import subprocess

NAMES: Final = {f"flow.encoder.{precision}.zip" for precision in ("fp32", "fp16")}


PATIENCE: Final = 900
"""In s: what takes longer will not come any more, on a busy machine either."""


def command(source: Path, out: Path, url: str) -> tuple[object, ...]:
    return CONSOLE_SCRIPT, "export", source, "--component", "flow.encoder", "--publish", out, "--store", url, "--json"


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a command and all below it at once, as a loss of power does."""
    below = [process.pid, *children(process.pid)]
    for sent in (signal.SIGSTOP, signal.SIGKILL):  # none of them sees another one end
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, sent)
    process.wait()


def ended(process: "subprocess.Popen[str]") -> Ran:
    with process:
        out, err = process.communicate(timeout=PATIENCE)
        return Ran(process.returncode, out, err)


def finish(source: Path, out: Path, url: str) -> dict[str, Any]:
    """Export once more; gives the states of the targets by name."""
    ran = ended(spawn(*command(source, out, url)))
    assert (ran.status, unexpected(ran.err)) == (0, [])
    targets = json.loads(ran.out)["targets"]
    return {f"{each['component']}.{each['precision']}": each["state"] for each in targets}


def check(store: Store, out: Path, kept: int, states: dict[str, Any]) -> None:
    """All is there once, and what was kept was not built again."""
    assert sorted(states.values()) == ["built"] * (2 - kept) + ["cached"] * kept
    check_shown(store, out)


def check_shown(store: Store, out: Path) -> None:
    assert {path.name for path in out.glob("*.zip")} == NAMES
    assert [each.number for each in history(out, store=store)] == [1]
    assert verify_directory(out, store=store) == verify_store(store) == []
    assert unreferenced(out) == set()
    assert len(store.objects()) == 2
    assert store.entries("damaged") == []


MOMENTS: Final = {
    "a lease is taken": ("PUT", "/locks/", 2),
    "an object is sent": ("PUT", "/objects/", 1),
    "a record is written": ("PUT", "/records/", 1),
    "the second record is written": ("PUT", "/records/", 2),
    "the publication is written": ("PUT", "/publications/", 1),
    "it is going to be shown": ("PUT", "/heads/", 1),
    "it is shown": ("PUT", "/heads/", 2),
}
"""The method, a part of the path and the number of the request at which the machine goes down."""


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives the commands that are started from now on another machine's home."""
    return lambda name: monkeypatch.setenv("HOME", str(tmp_path / name))


@pytest.mark.stress
@pytest.mark.parametrize("moment", MOMENTS)
def test_another_machine_takes_over_what_a_dead_one_held_in_a_bucket(
    moment: str,
    s3: Service,
    tiny: Path,
    tmp_path: Path,
    at_home: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, out = s3.url(), tmp_path / "out"
    method, part, number = MOMENTS[moment]
    seen: list[str] = []
    exporting: list[subprocess.Popen[str]] = []
    started, dead = threading.Event(), threading.Event()

    def go_down(asks: str, path: str) -> None:
        if asks == method and part in path:
            seen.append(path)
            if len(seen) == number:
                started.wait()
                kill(exporting[0])
                dead.set()

    at_home("one")
    with s3.proxied(go_down):
        exporting.append(spawn(*command(tiny, out, url)))
        started.set()
        ended(exporting[0])
    assert dead.is_set()
    at_home("two")
    store = Store(url)
    kept = len(store.entries("records"))
    assert verify_store(store) == []
    shown = {path.name for path in out.glob("*.zip")} if out.is_dir() else set()
    assert shown in (set(), NAMES)

    check(store, out, kept, finish(tiny, out, url))
    assert len(store.entries("locks")) <= kept  # nobody wants to build these any more; the next collection has them
    monkeypatch.setattr("cosyjit.operations.gc.time", SimpleNamespace(time=lambda: time.time() + 10 * 86_400))
    gc(store, delete=True)
    assert store.entries("locks") == []
    check_shown(store, out)


@pytest.mark.stress
def test_the_same_machine_takes_over_what_it_held_before(
    tiny: Path, tmp_path: Path, at_home: Callable[[str], None]
) -> None:
    at_home("one")
    root, out = tmp_path / "store", tmp_path / "out"
    store = Store(root)
    exporting = spawn(*command(tiny, out, str(root)))
    wait_for(lambda: root.is_dir() and store.entries("records"), seconds=PATIENCE)
    kill(exporting)
    ended(exporting)
    kept = len(store.entries("records"))
    assert verify_store(store) == []
    check(store, out, kept, finish(tiny, out, str(root)))
    assert litter(store) == []
