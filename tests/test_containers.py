"""The steps of the image, without an image: as another user, with an empty environment, and little that can be written.

docker itself is not run.
"""

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import ROOT

pytestmark = pytest.mark.stress

NOBODY: Final = 65534
OTHER: Final = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", "-i"]
WRITTEN: Final = ("home", "temporary", "store", "model")
PURELIB: Final = sysconfig.get_path("purelib")


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory of the other user's, which only root can remove otherwise."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    directory = Path(tempfile.mkdtemp(prefix="container-"))
    directory.chmod(0o755)
    os.chown(directory, NOBODY, NOBODY)
    yield directory
    shutil.rmtree(directory)


def as_other(place: Path, *command: str | Path, **environment: str) -> str:
    """What a command prints, which has to succeed, as the other user and in that directory."""
    given = [f"{name}={value}" for name, value in environment.items()]
    done = subprocess.run(
        [*OTHER, *given, *command], cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_steps_of_the_image_make_what_exports_with_little_to_write_to(place: Path) -> None:
    version = sysconfig.get_python_version()
    system = subprocess.run(
        [*OTHER, "PATH=/usr/bin:/bin", "python3", "-c", f"import os, sys; os.listdir({PURELIB!r}); print(sys.version)"],
        check=False,
        capture_output=True,
        text=True,
        cwd=place,
    )
    if not re.match(rf"{version}\.", system.stdout):
        pytest.skip(f"another user has no Python {version}, or may not read the packages of the tests: {system.stderr}")
    install = next(line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("RUN sh "))
    assert install.split()[2:5] == ["/checkout/containers/install.sh", "/checkout", "/opt/cosyjit"]
    environment = place / "cosyjit"
    # What cosyjit depends on takes minutes to download: it is in the environment of the tests.
    options = ["--no-deps", "--quiet"]
    script = ROOT / "containers" / "install.sh"
    as_other(place, "sh", script, ROOT, environment, *options, PATH="/usr/bin:/bin", HOME=str(place))
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{PURELIB}\n", encoding="utf-8")

    os.chown(place, 0, 0)
    for path in (environment, *environment.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
    for name in WRITTEN:
        (place / name).mkdir()
        os.chown(place / name, NOBODY, NOBODY)
    settings = {
        "PATH": f"{environment}/bin:/usr/bin:/bin",
        "HOME": f"{place / 'home'}",
        "TMPDIR": f"{place / 'temporary'}",
        "COSYJIT_STORE": f"{place / 'store'}",
    }
    as_other(place, "cosyjit", "synth", "model", **settings)
    told = as_other(place, "cosyjit", "export", "model", "--component", "flow.encoder", **settings)
    assert told.endswith(f"Published in {place}/model\n")
