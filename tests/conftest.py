"""What many tests share: model directories, written once and copied where a test changes them; and a server of S3's."""

import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import torch
from hypothesis import HealthCheck, settings

from cosyjit.fs.digests import Digests
from cosyjit.store.store import Store
from cosyjit.synth.synth import synth
from tests.support.builds import Builds
from tests.support.file_changes import need_stamps
from tests.support.processes import Run, run_here
from tests.support.s3 import Server, Service
from tests.support.stores import unique_url
from tests.support.telemetry import Told

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers asks it when it is imported
# A shell lets what it starts in the background ignore this, and the processes under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A machine that is busy with something else is slow, which is nothing that a test should fail of.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A change is judged by the same inputs on each machine and at each run; `make fuzz` looks for others.
settings.register_profile("repeat", settings.get_profile("explore"), derandomize=True)
settings.load_profile("repeat")

LONGEST: Final = (
    "vllm/test_plugin.py",
    "robustness/test_crashes.py",
    "flows/test_service_stress.py",
    "robustness/test_failing_s3.py",
    "cli/test_process.py",
    "robustness/test_crowd.py",
    "torchscript/test_mutants.py",
    "flows/test_service_outages.py",
    "robustness/test_crashes_build.py",
    "flows/test_export.py",
    "robustness/test_fuzzing.py",
    "torchscript/test_gate.py",
    "robustness/test_dead_machines.py",
    "cli/test_walks.py",
    "flows/test_service.py",
    "robustness/test_shared_stores.py",
    "flows/test_installed.py",
    "test_pipeline.py",
    "docs/test_commands.py",
    "benchmarks/test_export.py",
)
"""The files that take longest in `make test-rest`, the longest first. A worker is given the next file while its last
two tests are under way, so two of these at the end might go to one worker, and the others would be idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Lets torch have one thread, as in the processes that build and verify.

    Its threads wait for each other in a loop, and there is a process of the tests on each processor.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CosyVoice directory; not to be changed."""
    return synth(tmp_path_factory.mktemp("tiny") / "CosyVoice-tiny", "cosyvoice", "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CosyVoice2 directory; not to be changed."""
    return synth(tmp_path_factory.mktemp("tiny2") / "CosyVoice2-tiny", "cosyvoice2", "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CosyVoice3 directory; not to be changed."""
    return synth(tmp_path_factory.mktemp("tiny3") / "CosyVoice3-tiny", "cosyvoice3", "tiny", seed=0)


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests' home directories are."""
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def home(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, and so a store, of each test's own; it is made by whoever needs it."""
    path = homes / uuid.uuid4().hex
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("COSYJIT_STORE", raising=False)
    return path


@pytest.fixture
def store(home: Path) -> Store:
    """The store that commands and calls use which are told of no other."""
    return Store(home / ".cache" / "cosyjit")


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """What this process has built."""
    return Builds(tmp_path_factory.mktemp("builds"))


@pytest.fixture
def stock(builds: Builds, store: Store) -> Callable[..., None]:
    """Lets the test's store have what an export of a model directory would build, without a build for each test."""
    return partial(builds.stock, store)


@pytest.fixture
def first(tmp_path: Path) -> Store:
    """One of two stores, of this machine."""
    return Store(tmp_path / "first")


@pytest.fixture(params=["local", "remote"])
def second(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The other one, of this machine or behind a URL."""
    return Store(tmp_path / "second" if request.param == "local" else unique_url())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory, to publish into."""
    path = tmp_path / "model"
    path.mkdir()
    return path


@pytest.fixture
def memory(tmp_path: Path) -> Digests:
    """Where digests are remembered; the test is skipped where they cannot be."""
    need_stamps(tmp_path)
    return Digests(tmp_path / "memory")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process."""
    return partial(run_here, capsys)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a model directory for a test to change."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / directory.name))

    return copy


@pytest.fixture(scope="session")
def _told() -> Told:
    return Told()


@pytest.fixture
def told(_told: Told) -> Iterator[Told]:
    """What OpenTelemetry is told in this process."""
    _told.clear()
    yield _told
    _told.clear()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """A process that speaks S3."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Service:
    """That server as this test has it, with the environment set for it."""
    return Service(s3_server, monkeypatch)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Lets torch have another number of threads for a test to change, and gives it back."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
