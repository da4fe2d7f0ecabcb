"""From a target to its zip: the digest of what was written, what the zip says of itself, and what a change on the way
does.
"""

import hashlib
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cosyjit import Artifact, BuildError, Target, build, plan
from cosyjit.errors import CheckpointError
from cosyjit.provenance.fingerprint import key_of
from cosyjit.provenance.record import EMBEDDED_NAME, embedded_provenance
from cosyjit.torchscript.script import deprecations_ignored
from tests.support.checkpoints import eager, moved, retrain
from tests.support.processes import builds

Copy = Callable[[Path], Path]


def target(directory: Path, component: str = "llm.llm", precision: str = "fp16") -> Target:
    (planned,) = plan(directory, [component], [precision])
    return planned.target


def inside(path: Path) -> bytes:
    """What a zip says of itself."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/extra/{EMBEDDED_NAME}"))
        return archive.read(name)


class Built(NamedTuple):
    """A build: where it was to put its artifact, what came of it, and the stages that it told of."""

    directory: Path
    artifact: Artifact
    told: list[str]


@pytest.fixture(scope="module")
def built(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build of `target(tiny)`."""
    directory, told = tmp_path_factory.mktemp("built"), list[str]()
    return Built(directory, build(target(tiny), directory, progress=told.append), told)


def test_a_build_gives_the_digest_and_the_size_of_the_file_and_tells_its_stages(tiny: Path, built: Built) -> None:
    wanted, (directory, artifact, told) = target(tiny), built
    content = artifact.path.read_bytes()
    assert artifact.target == wanted
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.size == len(content) > wanted.weight_bytes
    assert artifact.seconds > 0
    assert [stage for stage in told if not stage.startswith("cast:")] == ["load", "script", "save", "verify", "built"]
    assert artifact.path.parent == directory / wanted.name
    assert list(directory.rglob("*.*")) == [directory / wanted.name, artifact.path]


def test_a_relative_directory_is_meant_from_where_the_caller_is(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = target(tiny, "flow.encoder", "fp32")  # the build server is up, with the directory of before
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    artifact = build(wanted, Path("out"))
    assert artifact.path.resolve().is_relative_to(tmp_path / "out")
    assert artifact.size > wanted.weight_bytes


def test_a_zip_says_from_what_it_was_made_and_neither_when_nor_where(tiny: Path, built: Built) -> None:
    wanted = target(tiny)
    said = inside(built.artifact.path)
    assert said == embedded_provenance(wanted.fingerprint)
    document = json.loads(said)
    assert document == {
        "schema": 1,
        "fingerprint": wanted.fingerprint.key,
        "parts": json.loads(json.dumps(wanted.fingerprint.parts)),
    }
    assert key_of(document["parts"]) == wanted.fingerprint.key


def test_equal_weights_in_another_file_and_place_give_equal_bytes(built: Built, tiny: Path, copy_of: Copy) -> None:
    directory = moved(copy_of(tiny))
    retrain(directory, "llm.pt", "text_encoder.")
    again = build(target(directory), directory.parent)
    assert built.artifact.path.read_bytes() == again.path.read_bytes()


def test_the_zip_loads_as_it_is_and_computes_what_the_encoder_does(tiny: Path, tmp_path: Path) -> None:
    path = build(target(tiny, precision="fp32"), tmp_path).path
    extra: dict[str, Any] = {EMBEDDED_NAME: ""}
    with deprecations_ignored():
        module = torch.jit.load(path, map_location="cpu")
        torch.jit.load(path, _extra_files=extra)
    xs, lengths = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([7])
    with torch.inference_mode():
        torch.testing.assert_close(module(xs, lengths)[0], eager(tiny, "llm.llm")(xs, lengths)[0], rtol=0, atol=1e-5)
    assert extra[EMBEDDED_NAME] == embedded_provenance(target(tiny, precision="fp32").fingerprint)


def replace_by_a_copy(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


CHANGES = {
    "truncated": lambda path: os.truncate(path, 1000),
    "removed": os.unlink,
    "retrained": lambda path: retrain(path.parent, path.name, "encoder."),
    "touched": os.utime,
    "replaced by a copy": replace_by_a_copy,
}


def send(processes: list[int], number: int) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):  # of the call before this one, and at its end
            os.kill(pid, number)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        *((None, name) for name in CHANGES),
        ("load", "removed"),
        ("load", "retrained"),
        ("script", "truncated"),
        ("script", "retrained"),
        ("script", "touched"),
        ("script", "replaced by a copy"),
    ],
)
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_weights_that_change_after_the_plan_are_an_error_and_never_an_artifact(
    tiny: Path, copy_of: Copy, tmp_path: Path, name: str, stage: str | None, precision: str
) -> None:
    directory = copy_of(tiny)
    wanted = target(directory, "flow.encoder", precision)
    (tmp_path / "work").mkdir()

    def interfere(entered: str | None) -> None:
        if entered != stage:
            return
        building = builds(os.getpid()) if entered else []  # held meanwhile, or it may be done first
        send(building, signal.SIGSTOP)
        CHANGES[name](directory / "flow.pt")
        send(building, signal.SIGCONT)

    interfere(None)
    with pytest.raises(CheckpointError, match=r"/flow\.pt: was changed") as caught:
        build(wanted, tmp_path / "work", progress=interfere)
    assert "\n" not in str(caught.value)


def test_a_killed_build_is_an_error_that_names_the_signal(tiny: Path, tmp_path: Path) -> None:
    def kill(stage: str) -> None:
        if stage == "script":
            os.kill(max(builds(os.getpid())), signal.SIGKILL)

    with pytest.raises(BuildError, match="SIGKILL"):
        build(target(tiny), tmp_path, progress=kill)
