"""The environments that are compared, and how each is made: with uv, of packages from the index."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from uv import find_uv_bin

from tests.support.processes import ROOT
from tests.versions.stand_ins import add_stand_ins

EXTRAS: Final = ("s3", "dask", "signing", "onnx", "hf", "otel", "dev")
"""All but vllm, which demands one release of torch."""

PYTHONS: Final = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""Those for which the pins of constraints.txt are to be had."""


class Environment(NamedTuple):
    """What an environment is made of.

    Attributes:
        name: as the tables show it.
        python: the release of Python.
        torch: what is asked for of torch.
        options: how uv chooses the other packages.
        excluded: packages that are left out, although others ask for them.
    """

    name: str
    python: str
    torch: str
    options: tuple[str, ...]
    excluded: tuple[str, ...] = ()


ENVIRONMENTS: Final = (
    Environment("lowest", "3.10", "torch==2.3.1", ("--resolution", "lowest-direct")),
    Environment("pinned", "3.11", "torch==2.13.0", ("--constraints", "constraints.txt")),
    Environment("newest", "3.13", "torch", ()),
)

_NAMES: Final = """
import json, re
from importlib.metadata import requires
names = {re.match(r"[\\w.-]+", each)[0] for each in requires("torch")}
print(json.dumps(sorted(name for name in names if re.match("nvidia-|cuda-|triton$", name))))
"""

_VERSIONS: Final = """
import json, platform
from importlib.metadata import distributions
print(json.dumps({each.name.lower(): each.version for each in distributions()} | {"python": platform.python_version()}))
"""


class Made:
    """An environment on the disk.

    Attributes:
        environment: what it is made of.
        python: its interpreter.
    """

    def __init__(self, environment: Environment, interpreter: Path, directory: Path) -> None:
        self.environment = environment
        self.python = directory / "bin" / "python"
        self._exclusions = directory / "excluded.txt"
        self._torch = directory / "torch.txt"
        uv("venv", "--clear", "--python", interpreter, directory)
        self._install("--no-deps", environment.torch)
        self._torch.write_text(f"torch=={self.versions()['torch']}\n", encoding="utf-8")
        excluded = [*json.loads(self.answer(_NAMES)), *environment.excluded]
        self._exclusions.write_text("\n".join(excluded), encoding="utf-8")
        (libraries,) = directory.glob("lib/python*/site-packages/torch/lib")
        add_stand_ins(libraries)

    def install(self, *requirements: str) -> None:
        """Install packages, and what they need but for the packages of CUDA and what the environment excludes."""
        files: list[str | Path] = ["--constraints", self._torch, "--excludes", self._exclusions]
        self._install(*files, *self.environment.options, *requirements)

    def _install(self, *arguments: str | Path) -> None:
        uv("pip", "install", "--python", self.python, *arguments)

    def answer(self, code: str) -> str:
        """What a few lines of Python print there."""
        return subprocess.run([self.python, "-c", code], check=True, capture_output=True, text=True).stdout

    def versions(self) -> dict[str, str]:
        """The versions of Python and of all packages there, by their names in lower case."""
        found: dict[str, str] = json.loads(self.answer(_VERSIONS))
        return found


def uv(*arguments: str | Path) -> None:
    """Run uv, with no setting but those of this project."""
    # Wheels that lie on this machine's disk are taken from there, as pip takes them.
    links = [argument for link in os.environ.get("PIP_FIND_LINKS", "").split() for argument in ("--find-links", link)]
    given = links if arguments[0] == "pip" else []
    command = [find_uv_bin(), *arguments[:2], *given, *arguments[2:], "--quiet", "--no-config", "--no-python-downloads"]
    subprocess.run(command, check=True, cwd=ROOT, stdin=subprocess.DEVNULL)


def interpreter(release: str) -> Path | None:
    """A Python of a release, from PATH or pyenv; None if there is none."""
    for path in _candidates(release):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([path, "-c", code], check=False, capture_output=True, text=True)
        if answer.stdout.strip() == release:
            return path
    return None


def _candidates(release: str) -> Iterator[Path]:
    if found := shutil.which(f"python{release}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{release}.*/bin/python"))


def resolve(release: str) -> None:
    """See to it that the pins of constraints.txt can be installed on a Python, as wheels; nothing is installed."""
    options = ("--python-version", release, "--only-binary", ":all:", "--constraints", "constraints.txt")
    extras = [argument for extra in EXTRAS for argument in ("--extra", extra)]
    uv("pip", "compile", *options, *extras, "pyproject.toml", "--output-file", os.devnull)
