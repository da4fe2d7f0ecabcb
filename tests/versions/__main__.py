"""Make the environments, export in each, load in each, run the tests in each, and print what came of it.

    python -m tests.versions DIRECTORY TEST...

DIRECTORY is for all that is made, and is emptied first; each TEST is a file or folder of tests. The tables are
Markdown, and left in `DIRECTORY/table.md`. The exit status is 1 if anything went wrong; what did is printed.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit.families import FAMILIES
from tests.support.processes import ROOT
from tests.versions.environments import ENVIRONMENTS, EXTRAS, PYTHONS, Environment, Made, interpreter, resolve

DIRECTORIES: Final = {family.name.casefold(): family for family in FAMILIES}
"""The model directories of each environment, and what `cosyjit synth` is told for them."""

SHOWN: Final = ("numpy", "prefect", "cyclopts", "rich", "fsspec", "pytest")
"""The packages whose versions the table shows beside torch's."""

PASSED: Final = "yes"

FLOW: Final = """
import sys
import prefect_dask
from cosyjit.flows.export import export
for state in ("built", "cached"):
    outcomes = export(sys.argv[1], components=["flow.encoder"], precisions=["fp16"])
    assert [each.state for each in outcomes] == [state], outcomes
"""


class Loaded(NamedTuple):
    """What came of the artifacts of one environment in another one."""

    artifacts: int
    calls: int
    errors: dict[str, float]

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {error:.2g}" for name, error in self.errors.items())
        return f"{self.artifacts} artifacts, {self.calls} calls; {errors}"


class Tried:
    """An environment, and all that is tried in it."""

    def __init__(self, made: Made, root: Path) -> None:
        self.made = made
        self.name = made.environment.name
        self.root = root
        self.title = "torch {torch}, Python {python}".format_map(made.versions())
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("COSYJIT_", "PREFECT_"))},
            "COSYJIT_STORE": str(root / "store"),
            "PREFECT_HOME": str(root / "prefect"),
            "HF_HUB_OFFLINE": "1",
        }
        root.mkdir()

    def export(self) -> None:
        """Export all families at all precisions with the installed command, which says nothing of what it is."""
        for name, family in DIRECTORIES.items():
            directory = str(self.root / name)
            self._cosyjit("synth", directory, "--family", name)
            self._cosyjit("plan", directory)
            parts = [part for part in family.components if not part.on_request]
            zips = [part for part in parts if part.kind == "zip"]
            if zips:
                precisions = dict.fromkeys(precision for part in zips for precision in part.tolerances)
                chosen = [*_each("--component", [part.name for part in zips]), *_each("--precision", precisions)]
                self._cosyjit("export", directory, *chosen)
            for part in parts:
                for precision in part.tolerances if part.kind != "zip" else ():
                    chosen = ["--component", part.name, "--precision", precision]
                    self._cosyjit("export", directory, *chosen, "--publish", f"{directory}-{part.kind}-{precision}")

    def _cosyjit(self, *arguments: str) -> None:
        command = [str(self.made.python.with_name("cosyjit")), *arguments]
        told = subprocess.run(command, check=False, cwd=self.root, env=self.env, capture_output=True, text=True)
        if told.returncode or "Warning" in told.stderr:
            raise RuntimeError(f"{' '.join(command)}: exit status {told.returncode}\n{told.stdout}{told.stderr}")

    def load(self, other: "Tried") -> Loaded:
        """Compare what another environment made with this one's encoders."""
        directories = [str(other.root / name) for name in DIRECTORIES]
        answer = self._run("-m", "tests.versions.loads", *directories, stdout=subprocess.PIPE)
        found: list[dict[str, Any]] = [json.loads(line) for line in answer.stdout.splitlines()]
        errors: dict[str, float] = {}
        for each in found:
            if each["kind"] == "zip":
                errors[each["precision"]] = max(each["error"], errors.get(each["precision"], 0.0))
        calls = sum(each["count"] for each in found if each["kind"] == "zip")
        return Loaded(len(found), calls, errors)

    def flow(self) -> None:
        """Run the flow twice with a server of its own: what is built first is cached afterwards."""
        self._run("-c", FLOW, str(self.root / "cosyvoice2"), env={**self.env, "COSYJIT_STORE": str(self.root / "flow")})

    def test(self, tests: Sequence[str]) -> None:
        """Run some tests."""
        options = (
            "-q",
            "--numprocesses",
            "logical",
            "--dist",
            "loadfile",
            "-p",
            "no:cacheprovider",
            "-m",
            "not stress",
        )
        self._run("-m", "pytest", *options, *tests)

    def _run(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        given: dict[str, Any] = {"env": self.env, **options}
        return subprocess.run([self.made.python, *arguments], check=True, cwd=ROOT, text=True, **given)


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [argument for value in values for argument in (option, value)]


class Tier:
    """All that is tried, what went wrong, and what could not be tried."""

    def __init__(self, root: Path, tests: Sequence[str]) -> None:
        self.root = root
        self.tests = tests
        self.failed: list[str] = []
        self.skipped: list[str] = []

    def run(self) -> str:
        """Try everything. Returns the tables."""
        tried = [one for environment in ENVIRONMENTS if (one := self._make(environment))]
        if not tried:
            self.failed.append("there is no environment, so nothing was tried")
        used = [self._use(one) for one in tried]
        with ThreadPoolExecutor(2) as pool:  # each loads on one thread
            loads = [[made.title, *pool.map(lambda by: self._load(made, by), tried)] for made in tried]  # noqa: B023
        pins = [self._step(f"pins on Python {each}", lambda: resolve(each)) for each in PYTHONS]  # noqa: B023
        return "\n\n".join(
            (
                _table(["", "", *SHOWN, "export", "flow", "tests"], used),
                _table(["made with \\ loaded by", *(one.title for one in tried)], loads),
                _table(["", *(f"Python {each}" for each in PYTHONS)], [["`constraints.txt` can be installed", *pins]]),
            )
        )

    def _make(self, environment: Environment) -> Tried | None:
        found = interpreter(environment.python)
        if found is None:
            self.skipped.append(f"{environment.name}: no Python {environment.python} is on PATH or under pyenv")
            return None
        made: list[Made] = []
        self._step(
            f"{environment.name}: torch", lambda: made.append(Made(environment, found, self.root / environment.name))
        )
        if made and self._step(f"{environment.name}: cosyjit", made[0].install) == PASSED:
            return Tried(made[0], self.root / f"{environment.name}-made")
        return None

    def _use(self, one: Tried) -> list[str]:
        """Export without the extras, so without numpy; the rest needs them. Returns a row of the first table."""
        exported = self._step(f"{one.name}: export", one.export)
        self._step(f"{one.name}: extras", lambda: one.made.install(*EXTRAS))
        versions = one.made.versions()
        return [
            one.name,
            one.title,
            *(versions.get(name, "") for name in SHOWN),
            exported,
            self._step(f"{one.name}: flow", one.flow),
            self._step(f"{one.name}: tests", lambda: one.test(self.tests)),
        ]

    def _load(self, made: Tried, by: Tried) -> str:
        if made is by:
            return "by the gate"  # when they were exported
        return self._step(f"{made.name} in {by.name}", lambda: by.load(made))

    def _step(self, name: str, call: Callable[[], object]) -> str:
        """What a call gives, in words for a table."""
        begun = time.monotonic()
        try:
            result = call()
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            self.failed.append(name)
            _say(f"{name}: FAILED\n{error}")
            return "FAILED"
        _say(f"{name}: {time.monotonic() - begun:.0f} s")
        return PASSED if result is None else str(result)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def main(directory: str, *tests: str) -> int:
    """Run the tier. Returns the exit status."""
    root = Path(directory).absolute()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    tier = Tier(root, tests)
    tables = tier.run()
    (root / "table.md").write_text(f"{tables}\n", encoding="utf-8")
    _say(f"\n{tables}\n")
    for skipped in tier.skipped:
        _say(f"SKIPPED: {skipped}")
    for failed in tier.failed:
        _say(f"FAILED: {failed}")
    return 1 if tier.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
