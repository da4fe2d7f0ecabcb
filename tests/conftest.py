"""Model directories that many tests read: written once, copied where a test changes them."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from cosyjit.store import Store
from cosyjit.synth import synth


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CosyVoice directory; not to be changed."""
    return synth(tmp_path_factory.mktemp("tiny") / "CosyVoice-tiny", "cosyvoice", "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CosyVoice2 directory; not to be changed."""
    return synth(tmp_path_factory.mktemp("tiny2") / "CosyVoice2-tiny", "cosyvoice2", "tiny", seed=0)


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


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a model directory for a test to change."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / directory.name))

    return copy
