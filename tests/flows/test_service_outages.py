"""A run of many sources whose server is killed and comes back, or cannot write to its database for a while."""

import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from cosyjit import plan
from cosyjit.operations.verify import verify_directory, verify_store
from cosyjit.store.store import Store
from tests.flows.service import PATIENCE, Service, end, serving, start_server, start_worker
from tests.support.checkpoints import retrain
from tests.support.processes import wait_for
from tests.support.stores import litter, unreferenced

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.stress

SOURCES: Final = 50
EQUAL: Final = 10
"""How many of them have the same weights, so that one builds what the others take from the store."""

COMPONENTS: Final = ["flow.encoder"]
PRECISIONS: Final = ["fp32"]
NAME: Final = "flow.encoder.fp32.zip"

AWAY: Final = 100
"""For how long there is no server, in s: longer than Prefect's clients would try if nobody told them to."""

LOCKED: Final = 30
"""For how long its database is locked, in s."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service")) as started:
        started.pause_schedules()
        yield started


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """That of the worker."""
    return Store(tmp_path / "store")


@pytest.fixture
def worker(service: Service, store: Store) -> Iterator["subprocess.Popen[bytes]"]:
    process = start_worker(service, COSYJIT_STORE=store.root)
    yield process
    end(process)


@pytest.fixture
def sources(tiny: Path, tmp_path: Path) -> list[Path]:
    """Model directories, of which each tenth has other weights than the one before it."""
    found, last = [], tiny
    for number in range(SOURCES):
        last = Path(shutil.copytree(last, tmp_path / f"model {number}"))
        if number % EQUAL == 0:
            retrain(last, "flow.pt", "encoder.")
        found.append(last)
    return found


def kill_server(service: Service) -> None:
    """Kill the server and all that it has started."""
    for process in [psutil.Process(service.server.pid), *psutil.Process(service.server.pid).children(recursive=True)]:
        process.send_signal(signal.SIGKILL)
    service.server.wait()


def restarted(service: Service) -> None:
    kill_server(service)
    time.sleep(AWAY)
    start_server(service)


def locked(service: Service) -> None:
    """Let nobody else write to the server's database for a while."""
    with closing(sqlite3.connect(service.database, timeout=PATIENCE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED)
        other.execute("ROLLBACK")


def begin(service: Service, sources: list[Path]) -> str:
    """Start a run; its identifier."""
    names = [str(source) for source in sources]
    return service.deploy("cosyvoice", source=names, components=COMPONENTS, precisions=PRECISIONS)


def check(store: Store, sources: list[Path]) -> None:
    """All is there, whole, and built once."""
    assert verify_store(store) == []
    for source in sources:
        assert verify_directory(source, store=store) == []
        assert (source / NAME).is_file()
        assert unreferenced(source) == set()
    assert len(store.entries("records")) == len(store.objects()) == SOURCES // EQUAL
    assert litter(store) == []


@pytest.mark.parametrize("outage", [restarted, locked])
@pytest.mark.usefixtures("worker")
def test_a_run_outlasts_its_server(
    outage: Callable[[Service], None], service: Service, store: Store, sources: list[Path]
) -> None:
    run = begin(service, sources)
    wait_for(lambda: store.entries("records"), seconds=PATIENCE)
    outage(service)
    ended = service.wait_for_end(run)
    built = SOURCES // EQUAL
    assert (ended["state_type"], ended["state"]["message"]) == ("COMPLETED", f"{built} built, {SOURCES - built} cached")
    check(store, sources)
    # A next run would find nothing to do.
    planned = [each for source in sources for each in plan(source, COMPONENTS, PRECISIONS, store=store)]
    assert [each.state for each in planned] == ["fresh"] * SOURCES
