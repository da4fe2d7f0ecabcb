"""What stands in the way of an export is told by a plan, in the words that the export would end with."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from cosyjit import InputError, Store, export, obstacles, plan
from tests.support.keys import pair
from tests.support.processes import Run, shown, snapshot

Copy = Callable[[Path], Path]

ONE: Final = ("--component", "flow.encoder", "--precision", "fp16")
ZIP: Final = "flow.encoder.fp16.zip"
SAYS: Final = "was not written by cosyjit; move it away, or export with --replace, which puts it aside"


@pytest.fixture
def occupied(tiny2: Path, copy_of: Copy) -> Path:
    """A model directory with a folder `vllm` of another exporter."""
    directory = copy_of(tiny2)
    (directory / "vllm").mkdir()
    (directory / "vllm" / "config.json").write_text("theirs")
    return directory


@pytest.mark.slow
def test_a_folder_of_others_is_foretold_and_the_other_components_are_exported_beside_it(
    occupied: Path, run: Run, tmp_path: Path
) -> None:
    line = f"{occupied}/vllm: {SAYS}, or with --component flow.encoder, which leaves it alone"
    before = snapshot(occupied)
    planned = run("plan", occupied)
    assert (planned.status, planned.err) == (0, "")
    assert planned.out.splitlines()[-2] == f"An export would be refused: {line}"
    assert "flow.encoder" in planned.out
    found = json.loads(run("plan", occupied, "--json").out)
    assert (len(found["targets"]), found["obstacles"]) == (3, [line])
    assert run("export", occupied) == (2, "", f"cosyjit: {line}\n")
    assert json.loads(run("plan", occupied, "--json", "--publish", tmp_path / "new").out)["obstacles"] == []
    assert json.loads(run("plan", occupied, "--json", *ONE).out)["obstacles"] == []
    assert snapshot(occupied) == before
    assert not (tmp_path / "new").exists()

    assert run("export", occupied, *ONE).status == 0
    assert run("status", occupied).status == 0
    assert list(shown(occupied / "vllm")) == ["config.json"]
    assert ZIP in shown(occupied)


def test_of_several_folders_of_others_all_are_left_alone(occupied: Path, run: Run) -> None:
    (occupied / "hf_merged").mkdir()
    found = json.loads(run("plan", occupied, "--component", "*", "--json").out)["obstacles"]
    way = "with --component flow.encoder --component flow.decoder.estimator, which leaves all of these alone"
    assert [each.partition(", or with ")[2] for each in found] == [way.removeprefix("with ")] * 2
    others = ["--component", "flow.encoder", "--component", "flow.decoder.estimator"]
    assert json.loads(run("plan", occupied, *others, "--json").out)["obstacles"] == []
    assert json.loads(run("plan", occupied, "--component", "*", "--replace", "--json").out)["obstacles"] == []


def test_a_directory_in_the_place_of_a_zip_leaves_other_precisions_to_be_exported(
    tiny: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / ZIP).mkdir()
    arguments = (tiny, "--component", "flow.encoder", "--publish", tmp_path, "--json")
    (found,) = json.loads(run("plan", *arguments).out)["obstacles"]
    assert found.endswith("or publish into another directory, or with --precision fp32, which leaves it alone")
    assert json.loads(run("plan", *arguments, "--precision", "fp32").out)["obstacles"] == []


def test_a_plan_is_forced_as_an_export_is(tiny: Path, run: Run, stock: Callable[..., None]) -> None:
    stock(tiny, ["flow.encoder"], ["fp16"])
    for options, state in (([], "fresh"), (["--force"], "stale")):
        (target,) = json.loads(run("plan", tiny, *ONE, *options, "--json").out)["targets"]
        assert target["state"] == state


def test_where_there_is_no_other_component_none_is_named(tiny3: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "vllm").write_text("theirs")
    (found,) = obstacles(plan(tiny3, store=store), publish=tmp_path, store=store)
    assert str(found) == f"{tmp_path}/vllm: {SAYS}"
    assert obstacles(plan(tiny3, store=store), publish=tmp_path, store=store, replace=True) == ()
    assert obstacles((), publish=tmp_path, store=store) == obstacles(()) == ()


def _lead_out(path: Path) -> None:
    (path / ".cosyjit").mkdir()
    (path / ".cosyjit" / "current").symlink_to("/")


def _be_a_file(path: Path) -> None:
    path.rmdir()
    path.write_text("theirs")


def _lead_nowhere(path: Path) -> None:
    path.rmdir()
    path.symlink_to("nowhere")


IN_THE_WAY: Final[dict[str, Callable[[Path], object]]] = {
    "a folder of others": lambda path: (path / "vllm").mkdir(),
    "a file for a folder": lambda path: (path / "vllm").write_text("theirs"),
    "a link to nothing for a folder": lambda path: (path / "vllm").symlink_to("nowhere"),
    "a directory for a zip": lambda path: (path / ZIP).mkdir(),
    "a directory for the manifest": lambda path: (path / "cosyjit.json").mkdir(),
    "a link for the state": lambda path: (path / ".cosyjit").symlink_to(path.parent),
    "a link out of the state": _lead_out,
    "a file for the directory": _be_a_file,
    "a link to nothing for the directory": _lead_nowhere,
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_foretold_is_what_an_export_ends_with(kind: str, tiny2: Path, store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "published"
    directory.mkdir()
    IN_THE_WAY[kind](directory)
    before = snapshot(tmp_path)
    (found,) = obstacles(plan(tiny2, store=store), publish=directory, store=store)
    with pytest.raises(type(found)) as error:
        export(tiny2, publish=directory, store=store)
    assert str(error.value) == str(found)
    assert len(str(found).splitlines()) == 1
    assert (snapshot(tmp_path), store.objects()) == (before, set())


def test_all_that_is_in_the_way_is_foretold(tiny2: Path, store: Store, tmp_path: Path) -> None:
    for kind in ("a folder of others", "a directory for a zip", "a link for the state"):
        IN_THE_WAY[kind](tmp_path)
    found = obstacles(plan(tiny2, store=store), publish=tmp_path, store=store)
    names = [str(error).partition(": ")[0] for error in found]
    assert names == [str(tmp_path / name) for name in (ZIP, "vllm", ".cosyjit")]


def test_a_directory_of_too_long_a_name_is_foretold(tiny: Path, run: Run, tmp_path: Path) -> None:
    long = tmp_path.joinpath(*["n" * 200] * 19, "n" * (4085 - len(str(tmp_path)) - 19 * 201))
    assert run("plan", tiny, *ONE, "--publish", long).out.splitlines()[-2].startswith("An export would be refused: /")
    ran = run("export", tiny, *ONE, "--publish", long)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.endswith(": cannot be written to (File name too long); publish into another directory\n")


def test_a_signature_that_nobody_here_can_make_is_foretold(tiny: Path, home: Path, run: Run, tmp_path: Path) -> None:
    keys = pair(tmp_path)
    arguments = (tiny, *ONE, "--publish", tmp_path / "new", "--require-signature", keys.public)
    (found,) = json.loads(run("plan", *arguments, "--json").out)["obstacles"]
    assert "flow.encoder.fp16: would be built, and" in found
    assert run("export", *arguments) == (2, "", f"cosyjit: {found}\n")
    assert not (tmp_path / "new").exists()
    assert home.is_dir()


def test_a_lack_of_room_is_foretold(tiny: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(tiny, ["flow.encoder"], ["fp16"], store=store)
    real = os.statvfs

    def full(path: str) -> os.statvfs_result:
        return os.statvfs_result((*real(path)[:4], 0, *real(path)[5:]))

    monkeypatch.setattr(os, "statvfs", full)
    found = obstacles(planned, publish=tmp_path, store=store)
    assert [type(error).__name__ for error in found] == ["StoreError", "OutputError"]
    with pytest.raises(InputError) as error:
        export(tiny, components=["flow.encoder"], precisions=["fp16"], publish=tmp_path, store=store)
    assert str(error.value) == str(found[0])
