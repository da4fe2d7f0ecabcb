"""The service when things go wrong, and over several machines: minutes long, for `make stress`."""

import os
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
import pytest

from cosyjit import Store
from cosyjit.operations.verify import verify_directory, verify_store
from cosyjit.synth.synth import synth
from tests.flows.service import PATIENCE, Service, end, serving, shown, start_worker
from tests.support import s3 as s3_server
from tests.support.processes import wait_for
from tests.support.stores import litter, unreferenced

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.stress

T = TypeVar("T")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without workers."""
    with serving(tmp_path_factory.mktemp("service")) as started:
        started.pause_schedules()
        yield started


@pytest.fixture
def worker(service: Service) -> Iterator["subprocess.Popen[bytes]"]:
    process = start_worker(service)
    yield process
    end(process)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of which each artifact takes a while; not to be changed."""
    return synth(tmp_path_factory.mktemp("slow") / "CosyVoice-full", "cosyvoice", "full", seed=0)


def builders(worker: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The processes that build below a worker: children of build servers."""
    below = psutil.Process(worker.pid).children(recursive=True)
    return [each for each in below if "cosyjit.processes.worker" in " ".join(each.cmdline())]


def amid(service: Service, run: str, look: Callable[[], T | None]) -> T:
    """What is seen while a run goes on, as soon as it is; a run that has ended will not show it any more."""

    def seen() -> T | None:
        found = look()
        assert found or service.ended(run) is None, service.tasks(run)
        return found

    return wait_for(seen, seconds=PATIENCE)


def building(service: Service, worker: "subprocess.Popen[bytes]", run: str) -> list[psutil.Process]:
    """The same, once something has been staged."""
    return amid(service, run, lambda: builders(worker) if litter(service.store) else None)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_runs_of_a_deployment_wait_for_each_other(
    service: Service, worker: "subprocess.Popen[bytes]", tiny2: Path, tmp_path: Path
) -> None:
    assert worker.poll() is None
    one = {"components": ["flow.encoder"], "precisions": ["fp16"], "force": True}
    runs = [
        service.deploy("cosyvoice2", source=str(tiny2), publish=str(tmp_path / str(number)), **one)
        for number in range(3)
    ]
    ended = [service.wait_for_end(run) for run in runs]
    assert {run["state_type"] for run in ended} == {"COMPLETED"}
    spans = sorted((run["start_time"], run["end_time"]) for run in ended)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_a_cancelled_run_ends_its_processes_and_the_next_one_finishes_the_work(
    service: Service, worker: "subprocess.Popen[bytes]", slow: Path, tmp_path: Path
) -> None:
    run = service.deploy("cosyvoice", source=str(slow), precisions=["fp32"], publish=str(tmp_path / "out"))
    processes = building(service, worker, run)
    service.run(f"prefect flow-run cancel {run}")
    wait_for(lambda: not alive(processes), seconds=PATIENCE)
    assert service.wait_for_end(run)["state_type"] == "CANCELLED"
    assert list((tmp_path / "out").glob("*.zip")) == []

    again = service.deploy("cosyvoice", source=str(slow), precisions=["fp32"], publish=str(tmp_path / "out"))
    assert service.wait_for_end(again)["state_type"] == "COMPLETED"
    assert len(list((tmp_path / "out").glob("*.zip"))) == len(service.tasks(again)) == 3
    assert verify_directory(tmp_path / "out", store=service.store) == verify_store(service.store) == []
    assert litter(service.store) == []


def test_two_workers_that_share_nothing_but_the_store_build_each_target_once(
    service: Service, s3: s3_server.Service, tiny: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    url, directory = s3.url(), copy_of(tiny)
    homes = [tmp_path / "one", tmp_path / "two"]
    workers = [start_worker(service, "--limit 1", HOME=str(home), COSYJIT_STORE=url, **s3.env) for home in homes]
    try:
        runs = [
            service.deploy(name, source=str(directory), publish=str(tmp_path / f"out {name}"))
            for name in ("cosyvoice", "cosyvoice2")
        ]
        ended = [service.wait_for_end(run) for run in runs]
    finally:
        for process in workers:
            end(process)
    assert [run["state_type"] for run in ended] == ["COMPLETED", "COMPLETED"]
    both = [shown(service.tasks(run)) for run in runs]
    assert {name: sorted(states[name] for states in both) for name in both[0]} == {
        name: ["Cached", "Completed"] for name in both[0]
    }
    assert [home.is_dir() for home in homes] == [True, True]


def test_the_tasks_of_a_run_are_built_by_the_workers_of_dask(
    service: Service, s3: s3_server.Service, tiny: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    url, directory = s3.url(), copy_of(tiny)
    scheduler_file = tmp_path / "scheduler.json"
    service.start(f"dask scheduler --host 127.0.0.1 --port 0 --no-dashboard --scheduler-file {scheduler_file}")
    wait_for(scheduler_file.exists, seconds=PATIENCE)
    for name in ("one", "two"):
        command = f"dask worker --scheduler-file {scheduler_file} --nthreads 2 --no-dashboard --host 127.0.0.1"
        service.start(
            f"{command} --local-directory {shlex.quote(str(tmp_path / name))}", HOME=str(tmp_path / name), **s3.env
        )
    address = shlex.quote(os.fsdecode(scheduler_file.read_bytes()).partition('"address": "')[2].partition('"')[0])
    worker = start_worker(service, COSYJIT_STORE=url, COSYJIT_DASK=address, HOME=str(tmp_path / "flow"), **s3.env)
    try:
        first = service.deploy("cosyvoice", source=str(directory), publish=str(tmp_path / "out"))
        assert service.wait_for_end(first)["state"]["message"] == "6 built"
        again = service.deploy("cosyvoice", source=str(directory), publish=str(tmp_path / "out"))
        assert service.wait_for_end(again)["state"]["message"] == "6 cached"
    finally:
        end(worker)
    assert set(shown(service.tasks(first)).values()) == {"Completed"}
    assert set(shown(service.tasks(again)).values()) == {"Cached"}
    assert len(list((tmp_path / "out").glob("*.zip"))) == 6
    # What was built was built there, and not by the flow's process.
    noted = [name for name in ("one", "two", "flow") if (tmp_path / name / ".cache" / "cosyjit" / "locks").is_dir()]
    assert "flow" not in noted
    assert noted


# The last one: the dead run keeps its place in the queue of its deployment.


def test_a_worker_killed_in_the_middle_loses_nothing_and_shows_nothing_half(
    service: Service, slow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    environment = {"COSYJIT_STORE": str(tmp_path / "store")}
    store = Store(tmp_path / "store")
    worker = start_worker(service, **environment)
    try:
        run = service.deploy("cosyvoice", source=str(slow), precisions=["fp32"], publish=str(out))
        amid(service, run, lambda: store.entries("records"))
        below = psutil.Process(worker.pid).children(recursive=True)
        for process in [psutil.Process(worker.pid), *below]:
            with suppress(psutil.NoSuchProcess):  # some end by themselves, once the first is gone
                process.send_signal(signal.SIGKILL)
        worker.wait()
        kept = len(store.entries("records"))
        assert list(out.glob("*.zip")) == []
        assert verify_store(store) == []
    finally:
        end(worker)
    worker = start_worker(service, **environment)
    try:
        # Of the deployment that the dead run has its place in, Prefect starts none for five minutes.
        again = service.deploy("cosyvoice2", source=str(slow), precisions=["fp32"], publish=str(out))
        assert service.wait_for_end(again)["state_type"] == "COMPLETED"
    finally:
        end(worker)
    states = sorted(shown(service.tasks(again)).values())
    assert states.count("Cached") >= kept > 0
    assert len(states) == len(list(out.glob("*.zip"))) == 3
    assert verify_directory(out, store=store) == verify_store(store) == []
    assert litter(store) == []
    assert unreferenced(out) == set()
