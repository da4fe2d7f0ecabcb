"""The ONNX file of an estimator as a component: planned, exported and looked at by the same calls as zips."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import onnx
import pytest
import torch

from cosyjit import OutdatedPlan, Store, export, lineage, outdated_plans, plan
from cosyjit.building import onnx_files, packages
from cosyjit.errors import SelectionError
from cosyjit.operations.verify import verify_store
from cosyjit.provenance import record
from tests.support.builds import Builds
from tests.support.checkpoints import change, retrain, rewrite
from tests.support.files import sha256
from tests.support.keys import pair
from tests.support.processes import Run, shown, snapshot, start
from tests.support.tiers import sampled

Copy = Callable[[Path], Path]
Stock = Callable[..., None]

PART: Final = "flow.decoder.estimator"
ASKED: Final = ("--component", PART)
FILE: Final = f"{PART}.fp32.onnx"
PLAN: Final = f"{PART}.fp16.mygpu.plan"


@pytest.fixture
def filled(tiny2: Path, store: Store, stock: Stock) -> Store:
    """The store, with the file of a stand-in in it."""
    stock(tiny2, [PART])
    return store


def state_of(directory: Path, store: Store) -> str:
    """What an export would do with the file of a directory, and why."""
    (planned,) = plan(directory, [PART], store=store)
    return ": ".join([planned.state, *planned.reasons])


# One after the other.


def test_a_file_is_planned_exported_looked_at_and_gone_back_to_as_zips_are(
    tiny2: Path, filled: Store, copy_of: Copy, run: Run
) -> None:
    directory = copy_of(tiny2)
    before = snapshot(directory)
    assert run("export", directory, *ASKED).status == 0
    assert {name: content for name, content in snapshot(directory).items() if name in before} == before
    first = shown(directory)[FILE]
    (directory / PLAN).write_bytes(b"plan")
    for command in (("status",), ("verify",), ("verify", "--deep")):
        assert run(*command, directory).status == 0
    assert "current" in run("status", directory).out
    assert (run("export", directory, *ASKED).status, (directory / PLAN).read_bytes()) == (0, b"plan")

    retrain(directory, "flow.pt", "decoder.estimator.")
    assert run("status", directory).status == 1
    planned = run("plan", directory, *ASKED).out
    assert "of 114 tensors changed" in planned
    assert planned.splitlines()[-2] == (f"An export would put {PLAN} aside as {PLAN}.1, since it changes {FILE}")
    ran = run("export", directory, *ASKED, "--json")
    (made,) = json.loads(ran.out)["targets"]
    assert (ran.status, made["state"], made["path"]) == (0, "built", str(directory / FILE))
    assert (
        ran.err
        == f"cosyjit: {directory / PLAN}: was made from another {FILE} than is published now, and is kept as {PLAN}.1\n"
    )
    assert sha256((directory / FILE).read_bytes()) == made["sha256"] != sha256(first)
    assert json.loads((directory / "cosyjit.json").read_bytes())["aside"] == {PLAN: f"{PLAN}.1"}

    (directory / PLAN).write_bytes(b"plan 2")
    ran = run("rollback", directory)
    assert (ran.status, ran.err.count("\n")) == (0, 1)
    assert f"is kept as {PLAN}.2" in ran.err
    assert shown(directory)[FILE] == first
    assert not (directory / PLAN).exists()
    assert run("gc", "--keep", "1", "--older-than", "0s", "--delete").status == 0
    assert filled.objects() == {sha256(first)}
    assert verify_store(filled) == []


def test_only_its_own_tensors_and_options_make_it_stale(tiny2: Path, filled: Store, copy_of: Copy) -> None:
    directory = copy_of(tiny2)
    export(directory, [PART], store=filled)
    assert state_of(directory, filled) == "fresh"
    retrain(directory, "flow.pt", "encoder.")
    change(directory, "flow.pt", lambda state: state.update(step=7))
    rewrite(directory, "linear_units: ", "linear_units:   ", "cosyvoice2.yaml")
    assert state_of(directory, filled) == "fresh"
    rewrite(directory, "act_fn: 'gelu'", "act_fn: 'gelu-approximate'", "cosyvoice2.yaml")
    assert state_of(directory, filled) == "stale: act_fn gelu -> gelu-approximate"
    rewrite(directory, "act_fn: 'gelu-approximate'", "act_fn: 'gelu'", "cosyvoice2.yaml")
    change(directory, "flow.pt", lambda state: state["decoder.estimator.final_proj.bias"].add_(1))
    assert state_of(directory, filled) == "stale: 1 of 114 tensors changed: final_proj.bias"


@pytest.mark.usefixtures("filled")
def test_what_is_written_in_place_of_a_file_goes_with_the_plans_made_from_it(
    tiny2: Path, copy_of: Copy, run: Run
) -> None:
    directory = copy_of(tiny2)
    assert run("export", directory, *ASKED).status == 0
    first = shown(directory)[FILE]
    (directory / FILE).write_bytes(b"another exporter writes through the link")
    (directory / PLAN).write_bytes(b"plan of that")
    planned = run("plan", directory, *ASKED)
    assert f"put {PLAN} aside as {PLAN}.1" in planned.out.splitlines()[-2]
    ran = run("export", directory, *ASKED)
    assert (ran.status, shown(directory)[FILE]) == (0, first)
    assert ran.err.endswith(f"is kept as {PLAN}.1\n")
    assert json.loads((directory / "cosyjit.json").read_bytes())["aside"] == {PLAN: f"{PLAN}.1"}
    assert run("status", directory).status == 0


def test_plans_that_would_be_put_aside_are_foretold(
    tiny2: Path, filled: Store, copy_of: Copy, run: Run, tmp_path: Path
) -> None:
    directory = copy_of(tiny2)
    (directory / FILE).write_bytes(b"theirs")
    (directory / PLAN).write_bytes(b"plan of theirs")
    odd = f"{PART}.fp32.new\nline.plan"
    (directory / odd).write_bytes(b"another of theirs")
    before = snapshot(directory)
    expected = [OutdatedPlan(PLAN, FILE, f"{PLAN}.1"), OutdatedPlan(odd, FILE, f"{odd}.1")]
    planned = plan(directory, [PART], store=filled)
    assert [*outdated_plans(planned, store=filled)] == expected
    assert outdated_plans(planned, publish=tmp_path / "new", store=filled) == outdated_plans(()) == ()
    assert outdated_plans(plan(directory, ["flow.encoder"], store=filled), store=filled) == ()
    ran = run("plan", directory, *ASKED, "--json")
    assert json.loads(ran.out)["outdated_plans"] == [each._asdict() for each in expected]
    lines = run("plan", directory, *ASKED).out.splitlines()[-3:-1]
    assert lines == [
        f"An export would put {name} aside as {name}.1, since it changes {FILE}"
        for name in (PLAN, f"{PART}.fp32.new\\nline.plan")
    ]
    assert snapshot(directory) == before

    assert run("export", directory, *ASKED).status == 0
    assert json.loads((directory / "cosyjit.json").read_bytes())["aside"] == {PLAN: f"{PLAN}.1", odd: f"{odd}.1"}
    (directory / PLAN).write_bytes(b"plan of what is there")
    for arguments in (ASKED, (*ASKED, "--precision", "autocast_fp16")):
        assert json.loads(run("plan", directory, *arguments, "--json").out)["outdated_plans"] == []
    forced = plan(directory, [PART], store=filled, force=True)
    assert outdated_plans(forced, store=filled) == ()  # it comes out the same


def test_a_plan_whose_name_is_too_long_for_a_number_is_refused_before_anything_is_written(
    tiny2: Path, filled: Store, copy_of: Copy, run: Run
) -> None:
    directory = copy_of(tiny2)
    long = f"{PART}.fp32.{'x' * 221}.plan"
    (directory / long).write_bytes(b"plan of theirs")
    before = snapshot(directory)
    line = f"{directory / long}: cannot be put aside under a longer name, such as {long}.1; move it away, and run again"
    planned = run("plan", directory, *ASKED)
    assert planned.out.splitlines()[-2] == f"An export would be refused: {line}"
    assert run("export", directory, *ASKED) == (2, "", f"cosyjit: {line}\n")
    assert snapshot(directory) == before
    assert verify_store(filled) == []
    (directory / long).unlink()
    assert run("export", directory, *ASKED).status == 0


def test_it_is_not_exported_unless_it_is_asked_for(tiny: Path, tiny2: Path, tiny3: Path, store: Store) -> None:
    for directory in (tiny, tiny2, tiny3):
        assert PART not in {each.target.component.name for each in plan(directory, store=store)}
        assert PART in {each.target.component.name for each in plan(directory, ["all"], store=store)}


@pytest.mark.parametrize("size", sampled(["tiny2", "tiny", "tiny3"], 3))
def test_each_family_gives_each_of_its_forms(
    size: str, request: pytest.FixtureRequest, store: Store, tmp_path: Path
) -> None:
    directory: Path = request.getfixturevalue(size)
    precisions = ["fp32", "autocast_fp16", "fp32.dynamic_batch"]
    if size != "tiny":
        precisions += ["streaming.fp32", "streaming.autocast_fp16"]
    made = export(directory, [PART], precisions, publish=tmp_path, store=store)
    assert [each.error for each in made] == [None] * len(precisions)
    found = sorted(path.name for path in tmp_path.glob("*.onnx"))
    assert found == sorted(f"{PART}.{precision}.onnx" for precision in precisions)
    for each in made:
        assert each.record is not None
        assert 0 < each.record.figures["absolute_error"] < 0.05
        onnx.checker.check_model(tmp_path / each.target.file_name, full_check=True)


def test_the_same_checkpoint_gives_the_same_bytes_anywhere(
    tiny2: Path, builds: Builds, first: Store, store: Store, copy_of: Copy, tmp_path: Path
) -> None:
    builds.stock(first, tiny2, [PART])
    directory = copy_of(tiny2)
    retrain(directory, "flow.pt", "encoder.")
    export(directory, [PART], publish=tmp_path / "new", store=store)
    assert store.objects() == first.objects()
    content = (tmp_path / "new" / FILE).read_bytes()
    assert str(tmp_path).encode() not in content
    assert tiny2.name.encode() not in content


# What it was made from.


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x08\x08\x12\x07pytorch\x1a\x032.4", "it has no metadata cosyjit.json"),
        (b"\x00\x08\x12\x07pytorch\x1a\x032.4", "it does not begin as an ONNX file does"),
    ],
    ids=["another exporter's", "damaged"],
)
def test_a_file_that_says_nothing_of_itself_is_told_apart(content: bytes, why: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / FILE).write_bytes(content)
    way = "name a zip, an ONNX file or a folder that cosyjit has built"
    line = f"cosyjit: {tmp_path / FILE}: is not an artifact of cosyjit ({why}); {way}\n"
    assert run("lineage", tmp_path / FILE) == (2, "", line)


def test_a_stray_file_tells_what_it_was_made_from(tiny2: Path, filled: Store, tmp_path: Path, run: Run) -> None:
    (planned,) = plan(tiny2, [PART], store=filled)
    export(tiny2, [PART], publish=tmp_path / "out", store=filled)
    stray = Path(shutil.copy(tmp_path / "out" / FILE, tmp_path / "stray"))
    traced = lineage(stray, store=filled)
    assert traced.same_bytes
    assert traced.record == planned.record
    said = lineage(stray, store=Store(tmp_path / "other")).embedded
    assert said == json.loads(record.embedded_provenance(planned.target.fingerprint))
    assert stray.read_bytes() == onnx.load(stray).SerializeToString(deterministic=True)
    (entry,) = onnx.load(stray).metadata_props
    assert (entry.key, json.loads(entry.value)) == (record.EMBEDDED_NAME, said)
    with stray.open("r+b") as file:
        file.seek(-100_000, 2)
        file.write(b"\0" * 8)
    assert run("lineage", stray).status == 1
    assert not lineage(stray, store=filled).same_bytes


@pytest.mark.usefixtures("filled")
def test_it_is_signed_and_required_to_be(tiny2: Path, copy_of: Copy, run: Run, tmp_path: Path) -> None:
    directory = copy_of(tiny2)
    (directory / f"{PART}.autocast_fp16.onnx").write_bytes(b"of others, and no more signed than the weights")
    keys = pair(tmp_path)
    required = "--require-signature", keys.public
    refused = run("export", directory, *ASKED, *required)
    assert (refused.status, refused.out) == (2, "")
    assert run("export", directory, *ASKED, "--sign", keys.private, *required).status == 0
    assert run("verify", directory, *required).status == 0


# What is refused, before anything is built.

ESTIMATOR: Final = "cosyvoice.flow.decoder.CausalConditionalDecoder"
BIAS: Final = "decoder.estimator.final_proj.bias"


def _edit(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: rewrite(path, old, new, "cosyvoice2.yaml")


def _change(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda path: change(path, "flow.pt", edit)


DAMAGE: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    "a tensor missing": (
        _change(lambda state: state.pop(BIAS)),
        f"/flow.pt: {PART}: the tensors do not fit the configuration (1 missing: {BIAS}); export a matching pair",
    ),
    "a tensor left over": (
        _change(lambda state: state.update({"decoder.estimator.more": torch.ones(1)})),
        f"/flow.pt: {PART}: the tensors do not fit the configuration (1 unexpected: decoder.estimator.more); export ",
    ),
    "a tensor of another shape": (
        _change(lambda state: state.update({BIAS: torch.ones(81)})),
        f"1 of another shape: {BIAS} ((81,) instead of (80,))",
    ),
    "none of its tensors": (
        _change(lambda state: [state.pop(name) for name in list(state) if name.startswith("decoder.estimator.")]),
        f"/flow.pt: {PART}: the tensors do not fit the configuration (114 missing: ",
    ),
    "the default that cannot work": (
        _edit("            act_fn: 'gelu'\n", ""),
        f"/cosyvoice2.yaml: {PART}: option act_fn is ",
    ),
    "an unknown activation": (
        _edit("act_fn: 'gelu'", "act_fn: 'relu'"),
        f"/cosyvoice2.yaml: {PART}: option act_fn is relu; supported: ",
    ),
    "inputs that a file does not have": (
        _edit("in_channels: 320", "in_channels: 160"),
        f"/cosyvoice2.yaml: {PART}: option in_channels is 160; supported: 320, 4 times out_channels, since ",
    ),
    "an unknown option": (
        _edit("act_fn: 'gelu'", "act_fn: 'gelu'\n            meanflow: True"),
        f"/cosyvoice2.yaml: {PART}: option meanflow is true; supported: ",
    ),
    "another class": (
        _edit(ESTIMATOR, "fork.flow.MeanFlowDecoder"),
        f"/cosyvoice2.yaml: {PART} is a fork.flow.MeanFlowDecoder; supported: {ESTIMATOR}",
    ),
    "another family's class": (
        _edit(ESTIMATOR, "cosyvoice.flow.DiT.dit.DiT"),
        f"/cosyvoice2.yaml: {PART} is a cosyvoice.flow.DiT.dit.DiT; supported: {ESTIMATOR}",
    ),
    "no node": (
        _edit("        estimator: !new:", "        other: !new:"),
        f"/cosyvoice2.yaml: has no node {PART}, which {PART} would be made from; --component flow.encoder --component ",
    ),
}


@pytest.mark.parametrize("kind", sampled(DAMAGE, 3))
def test_an_estimator_that_does_not_fit_is_refused_in_a_line_and_the_rest_is_exported_as_before(
    kind: str, tiny2: Path, copy_of: Copy, run: Run, store: Store
) -> None:
    directory = copy_of(tiny2)
    usual = {each.target.name: each.target.fingerprint.key for each in plan(directory, store=store)}
    damage, says = DAMAGE[kind]
    damage(directory)
    before = snapshot(directory)
    for command in ("plan", "export"):
        for names in (ASKED, ("--component", "all")):
            ran = run(command, directory, *names)
            assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1), ran
            assert ran.err.startswith(f"cosyjit: {directory}/")
            assert says in ran.err
    assert (snapshot(directory), store.objects()) == (before, set())
    assert {each.target.name: each.target.fingerprint.key for each in plan(directory, store=store)} == usual


def test_numbers_that_are_not_finite_fail_it_alone(tiny2: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny2)
    change(directory, "flow.pt", lambda state: state[BIAS].fill_(float("nan")))
    (made,) = export(directory, [PART], store=store)
    assert made.state == "failed"
    assert f"{BIAS} has numbers that are NaN or infinite" in str(made.error)
    assert (store.objects(), list(directory.glob("*.onnx"))) == (set(), [])


# Without the packages.

WITHOUT: Final = """
import sys
sys.modules[sys.argv[1]] = None
from cosyjit.cli.app import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("package", ["onnx", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_who_has_not_the_packages_is_told_what_to_install_before_anything_is_built(
    package: str, tiny2: Path, store: Store, tmp_path: Path
) -> None:
    line = f"{PART}.fp32: needs a package that is missing; install cosyjit[onnx]"
    given = (tiny2, "--component", "all", "--store", store.root, "--publish", tmp_path / "out")
    with start(WITHOUT, package, "export", *given) as process:
        assert process.communicate(timeout=600) == ("", f"cosyjit: {line}\n")
    assert process.returncode == 2
    assert (store.objects(), (tmp_path / "out").exists()) == (set(), False)
    with start(WITHOUT, package, "plan", *given) as process:
        out, err = process.communicate(timeout=600)
    assert (err, out.splitlines()[-2]) == ("", f"An export would be refused: {line}")


def test_what_is_built_already_needs_no_package(tiny2: Path, filled: Store, tmp_path: Path) -> None:
    given = (tiny2, *ASKED, "--store", filled.root, "--publish", tmp_path / "out")
    with start(WITHOUT, "onnx", "export", *given) as process:
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert "cached" in out
    assert (tmp_path / "out" / FILE).exists()


def test_a_worker_without_the_packages_says_so(
    tiny2: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = plan(tiny2, [PART], store=store)
    packages.check_packages(planned.target)
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    with pytest.raises(SelectionError, match=r"install cosyjit\[onnx\]"):
        onnx_files.build(planned.target, None, tmp_path, lambda _: None)
    with pytest.raises(SelectionError, match=r"install cosyjit\[onnx\]"):
        onnx_files.prove(planned.target, None, tmp_path, None, None)
