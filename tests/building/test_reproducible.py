"""The same inputs give the same bytes: whoever builds, wherever the code stands, and whatever surrounds it."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support.processes import ROOT

pytestmark = pytest.mark.stress

ANOTHER_USER: Final = ["unshare", "--user", "--map-user=1234"]
CODE: Final = """
import sys
import cosyjit
source, store, into = sys.argv[1:]
assert cosyjit.__file__.startswith(sys.path[1]), cosyjit.__file__
precisions = ["fp32", "fp16", "bf16", "int8"]
outcomes = cosyjit.export(source, precisions=precisions, store=cosyjit.Store(store), publish=into)
print([outcome.error for outcome in outcomes if outcome.error])
"""


class Built(NamedTuple):
    """What came out of one installation: a digest for each zip, and where the zips are."""

    digests: dict[str, str]
    directory: Path


def build(installed: Path, source: Path, *prefix: str, **environment: str) -> Built:
    """Export with a copy of the package, in an environment, by a command that begins so."""
    shutil.copytree(ROOT / "cosyjit", installed / "cosyjit", ignore=shutil.ignore_patterns("__pycache__"))
    zips = installed / "zips"
    ran = subprocess.run(
        [*prefix, sys.executable, "-c", CODE, source, installed / "store", zips],
        env={"PATH": os.defpath, "HOME": str(installed), "PYTHONPATH": str(installed), **environment},
        cwd=installed,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
    return Built({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in zips.glob("*.zip")}, zips)


@pytest.fixture(scope="module")
def two(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """What two installations made of two copies of a model directory."""
    root = tmp_path_factory.mktemp("installations")
    moved = Path(shutil.copytree(tiny, root / "elsewhere" / "another name"))
    # Where the system lets nobody be another user, the name alone is another one.
    can = subprocess.run([*ANOTHER_USER, "true"], check=False, capture_output=True).returncode == 0
    other = {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2", "USER": "someone", "TZ": "Asia/Tokyo", "LANG": "C"}
    return (
        build(root / "one", tiny, PYTHONHASHSEED="1", OMP_NUM_THREADS="1", USER="root"),
        build(root / "a second place" / "of a longer name", moved, *(ANOTHER_USER if can else []), **other),
    )


def test_two_installations_of_two_users_build_equal_bytes(two: tuple[Built, Built]) -> None:
    one, other = two
    names = {"llm.text_encoder", "llm.llm", "flow.encoder"}
    wanted = {f"{name}.{half}.zip" for name in names for half in ("fp32", "fp16", "bf16")} | {"llm.llm.int8.zip"}
    assert one.digests.keys() == wanted
    assert one.digests == other.digests


def test_no_path_of_the_machine_stands_in_a_zip(two: tuple[Built, Built]) -> None:
    paths = [ROOT, Path(sys.prefix), Path(sys.base_prefix), Path.home(), Path(tempfile.gettempdir())]
    words = [str(path).encode() for path in paths] + [b"site-packages", b"/usr/", b"/home/"]
    for path in sorted(two[0].directory.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        notes = [name for name in contents if not name.partition("/")[2].startswith("constants/")]
        assert any(name.endswith(".debug_pkl") for name in notes)
        for name in notes:
            assert [word for word in words if word in contents[name] or word in name.encode()] == []


def test_a_zip_is_the_same_under_any_name(two: tuple[Built, Built]) -> None:
    # The root folder inside is none of the file's name, which torch would make it.
    for path in two[0].directory.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            assert {name.partition("/")[0] for name in archive.namelist()} == {"archive"}
