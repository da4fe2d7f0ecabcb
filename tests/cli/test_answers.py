"""What commands answer of several sources at a time, and what an export is that builds nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from cosyjit import Store, export, export_each
from cosyjit.errors import SourceError
from tests.support.files import flip
from tests.support.processes import Run, finished, shown, snapshot, start
from tests.support.stores import object_path

Copy = Callable[[Path], Path]
Stock = Callable[..., None]

ONE: Final = ("--component", "flow.encoder", "--precision", "fp16")


@pytest.fixture
def two(tiny: Path, tiny2: Path, copy_of: Copy, stock: Stock) -> tuple[Path, Path]:
    """Two model directories of which the store has one artifact each."""
    for directory in (tiny, tiny2):
        stock(directory, ["flow.encoder"], ["fp16"])
    return copy_of(tiny), copy_of(tiny2)


def test_several_sources_are_exported_and_one_that_is_none_stops_no_other(two: tuple[Path, Path], run: Run) -> None:
    first, second = two
    ran = run("export", first, "no\x1bwhere", second, *ONE)
    assert ran.status == 2
    assert ran.err.startswith("cosyjit: no\\x1bwhere: the directory ")
    assert ran.err.count("\n") == 1
    lines = ran.out.splitlines()
    assert [line for line in lines if line.startswith("/")] == [str(first), str(second)]
    assert [line for line in lines if line.startswith("Published")] == [f"Published in {each}" for each in two]
    ran = run("status", first, second, "--json")
    found = json.loads(ran.out)["directories"]
    assert ([each["directory"] for each in found], ran.status) == ([str(first), str(second)], 0)
    assert run("status", first).out in run("status", first, "nowhere", second).out


def test_the_document_of_several_has_that_of_each_and_errors(two: tuple[Path, Path], run: Run) -> None:
    sources = [word for name in (two[0], "nowhere", two[1]) for word in ("--source", name)]
    for command in ("plan", "export"):
        ran = run(command, *sources, *ONE, "--json")
        first, error, second = json.loads(ran.out)["sources"]
        assert (ran.status, ran.err.count("\n")) == (2, 1)
        assert first.keys() == {"source", *json.loads(run(command, two[0], *ONE, "--json").out)}
        assert [each["source"] for each in (first, error, second)] == [str(two[0]), "nowhere", str(two[1])]
        assert error.keys() == {"source", "error"}
        assert error["error"] == {"kind": "SourceError", "message": ran.err[len("cosyjit: ") : -1], "status": 2}


def test_the_library_gives_what_became_of_each(two: tuple[Path, Path], store: Store) -> None:
    given: list[str | Path] = [two[0], "nowhere", two[1]]
    first, error, second = export_each(given, ["flow.encoder"], ["fp16"], store=store)
    assert [each.source for each in (first, error, second)] == given
    assert [len(each.outcomes) for each in (first, error, second)] == [1, 0, 1]
    assert isinstance(error.error, SourceError)
    assert [each.outcomes[0].path for each in (first, second)] == [each / "flow.encoder.fp16.zip" for each in two]


def test_without_builds_what_is_missing_is_named_and_nothing_is_published(two: tuple[Path, Path], run: Run) -> None:
    before = snapshot(two[0])
    ran = run("export", two[0], "--component", "flow.encoder", "--no-build")
    assert (ran.status, ran.err) == (1, "")
    line = next(each for each in ran.out.splitlines() if each.startswith("flow.encoder.fp32: is not in "))
    assert line.endswith(" (new), and --no-build builds nothing; export it into that store without it")
    assert ran.out.splitlines()[-1].startswith("Nothing was published")
    assert snapshot(two[0]) == before


def test_without_builds_a_damaged_object_is_missing(two: tuple[Path, Path], store: Store) -> None:
    (outcome,) = export(two[0], ["flow.encoder"], ["fp16"], store=store, build=False)
    assert (outcome.state, outcome.path) == ("cached", two[0] / "flow.encoder.fp16.zip")
    assert outcome.record is not None
    flip(object_path(store, outcome.record.sha256))
    (outcome,) = export(two[0], ["flow.encoder"], ["fp16"], store=store, build=False, publish=two[1])
    assert (outcome.state, outcome.error) == (
        "failed",
        f"is not in {store} (object damaged), and --no-build builds nothing; export it into that store without it",
    )
    assert "flow.encoder.fp16.zip" not in shown(two[1])


WATCHED: Final = """
import sys
from cosyjit.__main__ import main

def watch(event, arguments):
    starts = event in {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec"}
    if starts or (event == "import" and arguments[0] == "torch"):
        print("seen:", event, arguments[0], flush=True)

sys.addaudithook(watch)
main()
"""


@pytest.mark.slow
def test_without_builds_no_process_is_started_and_torch_is_not_imported(two: tuple[Path, Path]) -> None:
    ran = finished(start(WATCHED, "export", *two, *ONE, "--no-build"))
    assert (ran.status, ran.err) == (0, "")
    assert "seen: " not in ran.out
    assert "flow.encoder.fp16.zip" in shown(two[0]).keys() & shown(two[1]).keys()
    assert "seen: " in finished(start(WATCHED, "export", two[0], "--component", "flow.encoder")).out
