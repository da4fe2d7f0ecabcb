"""Model directories that many tests read: written once, copied where a test changes them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cosyjit.synth import synth


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CosyVoice directory; not to be changed."""
    return synth(tmp_path_factory.mktemp("tiny") / "CosyVoice-tiny", "cosyvoice", "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CosyVoice2 directory; not to be changed."""
    return synth(tmp_path_factory.mktemp("tiny2") / "CosyVoice2-tiny", "cosyvoice2", "tiny", seed=0)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a model directory for a test to change."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / directory.name))

    return copy
