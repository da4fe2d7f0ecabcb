"""The flow encoder that runtimes of before April 2025 expect: asked for by name, in the place of the usual one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from cosyjit import Status, Store, status
from cosyjit.errors import ConfigError
from cosyjit.operations.verify import verify_directory
from cosyjit.planning.plan import compare, plan
from cosyjit.provenance import record
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.torchscript.script import deprecations_ignored
from tests.support.checkpoints import eager, retrain, rewrite
from tests.support.processes import Run
from tests.support.stores import put_planned, record_path

Copy = Callable[[Path], Path]

USUAL: Final = "flow.encoder"
CHUNKED: Final = "flow.encoder.chunked"
ZIP: Final = "flow.encoder.fp16.zip"


def states(found: Status) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {each.name: (each.state, each.reasons) for each in found.names}


@pytest.mark.slow
def test_it_is_built_proven_and_published_under_the_usual_name_and_gives_way_to_the_usual_one(
    tiny2: Path, store: Store, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    asked = ["--component", CHUNKED, "--precision", "fp16", "--publish", str(out), "--json"]
    ran = run("export", tiny2, *asked)
    assert ran.status == 0, ran.err
    (made,) = json.loads(ran.out)["targets"]
    assert (made["component"], Path(made["path"])) == (CHUNKED, out / ZIP)
    chunked = record.load(store, made["fingerprint"])
    assert chunked is not None
    assert (chunked.name, chunked.component) == (ZIP, CHUNKED)
    assert states(status(out, store=store)) == {ZIP: ("current", (f"as {CHUNKED}",))}
    assert f"\n  component {CHUNKED}\n" in run("lineage", out / ZIP).out

    # As the runtime calls it: by position, without `streaming`; 60 frames are more than a chunk.
    xs, lengths = torch.randn(1, 60, 512, generator=torch.Generator().manual_seed(0)), torch.tensor([60])
    with deprecations_ignored(), torch.inference_mode():
        found, _ = torch.jit.load(out / ZIP)(xs.half(), lengths.int())
        encoder: Any = eager(tiny2, USUAL)
        whole, _ = encoder(xs, lengths)
        encoder.static_chunk_size = 50
        expected, _ = encoder(xs, lengths, streaming=True)
    assert (found - expected).norm() < 0.3 * (found - whole).norm()

    # The usual one is another target: new, published in its place, and rolled back.
    (planned,) = plan(tiny2, [USUAL], ["fp16"], store=store)
    assert planned.state == "new"
    PublishedDirectory(out, store).publish(put_planned(store, [planned]), str(tiny2))
    assert states(status(out, store=store)) == {ZIP: ("current", ())}
    assert run("rollback", out).status == 0
    (shown,) = status(out, store=store).publication.artifacts.values()
    assert shown.sha256 == chunked.sha256
    assert states(status(out, store=store)) == {ZIP: ("current", (f"as {CHUNKED}",))}
    assert verify_directory(out, store=store) == []
    assert [each.state for each in plan(tiny2, [CHUNKED], ["fp16"], store=store)] == ["fresh"]
    assert json.loads(run("export", tiny2, *asked).out)["targets"][0]["state"] == "cached"


def test_an_export_of_all_leaves_it_out(tiny2: Path, store: Store) -> None:
    names = {each.target.component.name for each in compare(tiny2, store=store)}
    assert names == {USUAL, "llm.vllm"}


@pytest.fixture
def source(tiny2: Path, copy_of: Copy) -> Path:
    """A model directory of the test's own."""
    return copy_of(tiny2)


@pytest.fixture
def directory(source: Path, store: Store, tmp_path: Path) -> Path:
    """Where it is published in fp16, and the usual one in fp32."""
    path = tmp_path / "published"
    path.mkdir()
    for component, precision in ((USUAL, "fp32"), (CHUNKED, "fp16")):
        planned = compare(source, [component], [precision], store=store)
        PublishedDirectory(path, store).publish(put_planned(store, planned), str(source))
    return path


def test_status_knows_which_of_the_two_stands_under_a_name(source: Path, directory: Path, store: Store) -> None:
    current = {"flow.encoder.fp32.zip": ("current", ()), ZIP: ("current", (f"as {CHUNKED}",))}
    assert states(status(directory, store=store)) == current
    rewrite(source, "num_decoding_left_chunks: -1", "num_decoding_left_chunks: 2", "cosyvoice2.yaml")
    assert states(status(directory, store=store)) == current
    rewrite(source, "\nchunk_size: 25", "\nchunk_size: 30", "cosyvoice2.yaml")
    stale = ("stale", ("static_chunk_size 25 -> 30",))
    assert states(status(directory, store=store)) == dict.fromkeys(current, stale)
    retrain(source, "flow.pt", "encoder.after_norm.bias")
    for state, reasons in states(status(directory, store=store)).values():
        assert state == "stale"
        assert len(reasons) == 2
        assert not any("always_streaming" in each for each in reasons)


def test_without_its_record_it_is_current_all_the_same_until_something_changes(
    source: Path, directory: Path, store: Store
) -> None:
    record_path(store, status(directory, store=store).publication.artifacts[ZIP].fingerprint).unlink()
    assert states(status(directory, store=store))[ZIP] == ("current", (f"as {CHUNKED}",))
    retrain(source, "flow.pt", "encoder.after_norm.bias")
    assert states(status(directory, store=store))[ZIP] == ("stale", ("record missing",))


def test_beside_the_usual_one_it_is_refused_in_one_line(tiny2: Path, run: Run) -> None:
    for command in ("plan", "export"):
        ran = run(command, tiny2, "--component", USUAL, "--component", CHUNKED)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err == (
            "cosyjit: flow.encoder and flow.encoder.chunked are both published as flow.encoder.fp32.zip; "
            "choose one of them\n"
        )
    assert not (tiny2 / ".cosyjit").exists()


@pytest.mark.parametrize("component", [USUAL, CHUNKED])
@pytest.mark.parametrize("value", ["True", "False"])
def test_a_configuration_that_gives_the_option_itself_is_refused(
    component: str, value: str, source: Path, run: Run
) -> None:
    config = source / "cosyvoice2.yaml"
    rewrite(
        source,
        "        macaron_style: False\n",
        f"        macaron_style: False\n        always_streaming: {value}\n",
        config.name,
    )
    ran = run("plan", source, "--component", component)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"cosyjit: {config}: flow.encoder: option always_streaming is {value.lower()}; ")
    assert ran.err.count("\n") == 1


def test_a_family_without_it_says_what_it_has(tiny: Path, run: Run) -> None:
    ran = run("plan", tiny, "--component", CHUNKED)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("cosyjit: 'flow.encoder.chunked' is not a component of CosyVoice; choose from ")


def test_an_encoder_of_another_class_is_refused_by_the_node_that_has_it(source: Path, store: Store) -> None:
    rewrite(source, "upsample_encoder.UpsampleConformerEncoder", "encoder.ConformerEncoder", "cosyvoice2.yaml")
    with pytest.raises(ConfigError, match=r"cosyvoice2\.yaml: flow\.encoder is a .*\.ConformerEncoder; supported: "):
        compare(source, [CHUNKED], store=store)


def test_the_flow_of_another_models_decoder_is_refused_by_its_class(tiny: Path, copy_of: Copy, run: Run) -> None:
    """Of GLM-4-Voice: the same parameters, another mask, and other norms."""
    directory = copy_of(tiny)
    config = directory / "cosyvoice.yaml"
    before, encoder, after = config.read_text().rpartition("encoder.ConformerEncoder\n")
    config.write_text(f"{before}encoder.BlockConformerEncoder\n        block_size: 10\n{after}")
    assert encoder
    ran = run("plan", directory, "--component", USUAL)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        f"cosyjit: {config}: flow.encoder is a cosyvoice.transformer.encoder.BlockConformerEncoder; supported: "
        "cosyvoice.transformer.encoder.ConformerEncoder\n"
    )


def test_a_directory_of_another_family_does_not_know_it(
    source: Path, tiny: Path, directory: Path, store: Store
) -> None:
    """The model directory is replaced by one of the family before: its zip of that name is compared with."""
    shutil.rmtree(source)
    shutil.copytree(tiny, source)
    for state, reasons in states(status(directory, store=store)).values():
        assert state == "stale"
        assert any(each.startswith("class ") for each in reasons)
