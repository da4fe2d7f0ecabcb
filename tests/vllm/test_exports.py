"""vLLM's folder as a component: planned, exported, published and looked at by the same calls as zips are."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from cosyjit import Outcome, Planned, Store, documents, export, history, plan
from cosyjit.building.make import make
from cosyjit.errors import CheckpointError, ConfigError
from cosyjit.operations.verify import verify_store
from cosyjit.planning.plan import find_targets
from cosyjit.provenance import record
from cosyjit.publishing.directory import PublishedDirectory
from tests.support.checkpoints import change
from tests.support.file_changes import need_stamps
from tests.support.files import flip
from tests.support.keys import pair
from tests.support.processes import Run, shown, snapshot
from tests.support.stores import exporting, object_path, record_path

Copy = Callable[[Path], Path]
Stock = Callable[..., None]
State = dict[str, Any]

FILES: Final = ["config.json", "generation_config.json", "model.safetensors"]
BASE: Final = "CosyVoice-BlankEN"


@pytest.fixture
def filled(tiny3: Path, store: Store, stock: Stock) -> Store:
    """The store, with the folder of a stand-in in it."""
    stock(tiny3)
    return store


def states(found: Iterable[Outcome | Planned]) -> dict[str, str]:
    return {each.target.name: each.state for each in found}


def reasons(directory: Path, store: Store) -> str:
    """Why the folder of a directory would be built; empty if it would not be."""
    (planned,) = plan(directory, ["llm.vllm"], store=store)
    assert (planned.state == "fresh") == (not planned.reasons)
    return "; ".join(planned.reasons)


def edit(path: Path, **values: Any) -> None:
    """Change what a file of JSON says; None takes an entry out."""
    said = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not None}, indent=2))


# One after the other.


def test_a_folder_is_planned_exported_looked_at_and_gone_back_to_as_zips_are(
    tiny3: Path, copy_of: Copy, run: Run, store: Store
) -> None:
    directory = copy_of(tiny3)
    before = snapshot(directory)
    assert [each["state"] for each in json.loads(run("plan", directory, "--json").out)["targets"]] == ["new"]
    ran = run("export", directory, "--json")
    (entry,) = json.loads(ran.out)["targets"]
    assert (ran.status, entry["state"], entry["path"]) == (0, "built", str(directory / "vllm"))
    assert sorted(path.name for path in (directory / "vllm").iterdir()) == FILES
    assert {name: content for name, content in snapshot(directory).items() if name in before} == before
    assert run("status", directory).status == run("verify", directory).status == run("verify", store.root).status == 0
    (again,) = json.loads(run("export", directory, "--json").out)["targets"]
    assert (again["state"], again["sha256"]) == ("cached", entry["sha256"])
    assert run("plan", directory, "--json").out.count('"fresh"') == 1

    change(directory, "llm.pt", lambda state: state.update(step=7))
    assert run("plan", directory, "--json").out.count('"fresh"') == 1  # written again, with the same tensors
    change(directory, "llm.pt", lambda state: state["speech_embedding.weight"].mul_(2))
    assert run("status", directory).status == 1
    assert "1 of 27 tensors changed: speech_embedding.weight" in " ".join(run("plan", directory).out.split())
    old = shown(directory / "vllm")
    assert run("export", directory).status == 0
    new = shown(directory / "vllm")
    assert {name for name in FILES if old[name] != new[name]} == {"model.safetensors"}
    assert [each.number for each in history(directory, store=store)] == [2, 1]
    assert len(json.loads(run("history", directory, "--json").out)["publications"]) == 2
    assert run("rollback", directory).status == 0
    assert shown(directory / "vllm") == old
    assert run("gc", "--older-than", "0s", "--delete").status == 0
    assert len(store.objects()) == 4
    assert run("gc", "--keep", "1", "--older-than", "0s", "--delete").status == 0
    assert store.objects() == {hashlib.sha256(content).hexdigest() for content in old.values()}
    assert verify_store(store) == []


def test_over_files_that_have_not_changed_nothing_is_read(
    tiny3: Path, filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_stamps(tiny3.parent)
    export(tiny3, publish=tmp_path)
    found = find_targets(tiny3, store=filled)
    inode = (tmp_path / "vllm" / "model.safetensors").stat().st_ino

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a process is started, or numbers are read")

    monkeypatch.setattr("cosyjit.processes.worker.run", read)
    monkeypatch.setattr("cosyjit.weights.weights_file.opened", read)
    monkeypatch.setattr("cosyjit.weights.tensor_digests.opened", read)
    assert states(export(tiny3, publish=tmp_path)) == {"llm.vllm.bf16": "cached"}
    assert [each.fingerprint for each in find_targets(tiny3, store=filled)] == [each.fingerprint for each in found]
    assert (tmp_path / "vllm" / "model.safetensors").stat().st_ino == inode


@pytest.mark.slow
def test_two_components_are_told_apart_by_what_each_is_made_from(tiny2: Path, copy_of: Copy, tmp_path: Path) -> None:
    directory = copy_of(tiny2)
    export(directory, publish=tmp_path / "out", precisions=["fp16"])
    change(directory, "flow.pt", lambda state: state["encoder.after_norm.weight"].mul_(2))
    assert states(plan(directory, precisions=["fp16"])) == {"flow.encoder.fp16": "stale", "llm.vllm.fp16": "fresh"}
    shutil.copy(tiny2 / "flow.pt", directory)
    change(directory, "llm.pt", lambda state: state["llm_decoder.bias"].add_(1))
    planned = plan(directory, precisions=["fp16"])
    assert states(planned) == {"flow.encoder.fp16": "fresh", "llm.vllm.fp16": "stale"}
    assert planned[1].reasons == ("1 of 28 tensors changed: llm_decoder.bias",)


@pytest.mark.parametrize(
    "name",
    [
        "llm.model.model.layers.1.self_attn.k_proj.bias",
        "llm.model.model.norm.weight",
        "speech_embedding.weight",
        "llm_decoder.weight",
    ],
)
def test_each_tensor_that_goes_in_decides(name: str, tiny3: Path, copy_of: Copy, filled: Store) -> None:
    directory = copy_of(tiny3)
    export(directory, publish=directory / "out")
    change(directory, "llm.pt", lambda state: state[name].view(-1)[0].add_(1))
    assert reasons(directory, filled) == f"1 of 27 tensors changed: {name}"


@pytest.mark.parametrize(
    "name", ["llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight", "llm_embedding.weight"]
)
def test_no_tensor_that_stays_out_decides(name: str, tiny2: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny2)
    (before,) = find_targets(directory, ["llm.vllm"], store=store)
    change(directory, "llm.pt", lambda state: state.update({name: state[name] + 1}))
    (after,) = find_targets(directory, ["llm.vllm"], store=store)
    assert after.fingerprint == before.fingerprint
    assert after.weights != before.weights


def test_of_the_configurations_what_stands_in_the_folder_decides(tiny3: Path, copy_of: Copy, filled: Store) -> None:
    directory = copy_of(tiny3)
    export(directory, publish=directory / "out")
    config, generation = (directory / BASE / name for name in FILES[:2])
    assert reasons(directory, filled) == ""
    config.write_text(json.dumps(dict(reversed(json.loads(config.read_text()).items())), indent=7))
    edit(config, bos_token_id=5, eos_token_id=None, torch_dtype="float32")
    edit(generation, eos_token_id=[1, 2, 3])
    assert reasons(directory, filled) == ""
    edit(config, rope_theta=2e6)
    assert reasons(directory, filled) == "config.json: rope_theta 1000000.0 -> 2000000.0"
    shutil.copy(tiny3 / BASE / "config.json", config)
    edit(config, note="for people")
    assert reasons(directory, filled) == "config.json: note for people added"
    shutil.copy(tiny3 / BASE / "config.json", config)
    edit(generation, top_k=7)
    assert reasons(directory, filled) == "generation_config.json: top_k 7 added"


def test_a_configuration_of_another_model_says_what_differs_when_it_fits(
    tiny3: Path, copy_of: Copy, filled: Store
) -> None:
    directory = copy_of(tiny3)
    export(directory, publish=directory / "out")
    edit(directory / BASE / "config.json", num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    found = reasons(directory, filled)
    assert "config.json: num_attention_heads 4 -> 2" in found
    assert "config.json: num_key_value_heads 2 -> 1" in found


# What it is known by.


def test_the_digest_is_what_sha256sum_makes_of_what_it_says_of_the_files(
    tiny3: Path, filled: Store, tmp_path: Path, run: Run
) -> None:
    (made,) = export(tiny3, publish=tmp_path, store=filled)
    command = "sha256sum * | sha256sum"
    ran = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=tmp_path / "vllm",
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
        text=True,
    )
    assert made.record is not None
    assert ran.stdout.split()[0] == made.record.sha256
    references = (tmp_path / "vllm", made.record.sha256, made.record.fingerprint.key)
    ((status, tree, err),) = {run("lineage", reference) for reference in references}
    assert (status, err) == (0, "")
    assert tree.startswith("vllm\n")
    for words in (made.record.sha256, f"source {tiny3}\n", *(f"{BASE}/{name}" for name in FILES[:2]), "llm.pt"):
        assert words in tree


def test_equal_inputs_give_equal_bytes_and_precisions_share_what_is_equal(
    tiny3: Path, copy_of: Copy, filled: Store, tmp_path: Path
) -> None:
    (first,) = export(tiny3, publish=tmp_path / "one")
    moved = copy_of(tiny3).rename(tmp_path / "moved")
    change(moved, "llm.pt", lambda state: state.update(epoch=1))
    (second,) = export(moved, publish=tmp_path / "two", force=True)
    assert (first.state, second.state) == ("cached", "built")
    assert first.record is not None
    assert second.record is not None
    assert (second.record.sha256, second.record.files) == (first.record.sha256, first.record.files)
    assert len(filled.objects()) == 3
    (third,) = export(tiny3, precisions=["fp16"], publish=tmp_path / "two")
    assert third.record is not None
    assert third.record.files is not None
    assert set(third.record.files.values()) & set(second.record.files or {}) == set()
    assert len(filled.objects()) == 5
    assert json.loads((tmp_path / "two" / "vllm" / "config.json").read_text())["torch_dtype"] == "float16"
    assert json.loads((tmp_path / "one" / "vllm" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_record_of_a_folder_has_its_files_and_what_they_were_made_from(
    tiny3: Path, filled: Store, tmp_path: Path, run: Run
) -> None:
    (made,) = export(tiny3, publish=tmp_path)
    found = made.record
    assert found is not None
    assert found == record.load(filled, found.fingerprint.key)
    assert (found.name, found.component, sorted(found.files or {})) == ("vllm", "llm.vllm", FILES)
    assert {each.name: each.sha256 for each in found.materials} == {
        name: hashlib.sha256((tiny3 / name).read_bytes()).hexdigest()
        for name in ("llm.pt", *(f"{BASE}/{name}" for name in FILES[:2]))
    }
    size = sum(len(content) for content in shown(tmp_path / "vllm").values())
    assert found.size == size > found.figures["weight_bytes"] > 0.9 * size - 5000
    statement = json.loads(run("lineage", found.sha256, "--json").out)
    assert statement["subject"] == [
        {"name": "vllm", "digest": {"sha256": found.sha256}},
        *(
            {"name": f"vllm/{name}", "digest": {"sha256": hashlib.sha256(content).hexdigest()}}
            for name, content in sorted(shown(tmp_path / "vllm").items())
        ),
    ]


@pytest.mark.parametrize("damage", ["the object of a file", "the record"])
def test_what_is_damaged_in_the_store_is_built_again(damage: str, tiny3: Path, filled: Store, tmp_path: Path) -> None:
    (before,) = export(tiny3, publish=tmp_path)
    assert before.record is not None
    key = before.record.fingerprint.key
    path = record_path(filled, key) if damage == "the record" else object_path(filled, before.record.objects[0])
    flip(path)
    reason = "record damaged" if damage == "the record" else "object damaged"
    assert reasons(tiny3, filled) == reason
    (after,) = export(tiny3, publish=tmp_path)
    assert after.state == "built"
    assert after.record is not None
    assert (after.record.sha256, after.record.files) == (before.record.sha256, before.record.files)
    assert verify_store(filled) == []


def test_a_missing_object_of_one_file_is_a_reason(tiny3: Path, filled: Store, tmp_path: Path) -> None:
    (before,) = export(tiny3, publish=tmp_path)
    assert before.record is not None
    object_path(filled, before.record.objects[-1]).unlink()
    assert reasons(tiny3, filled) == "object missing"


# Precisions.


def test_another_precision_is_published_in_place_of_the_first(
    tiny3: Path, filled: Store, tmp_path: Path, run: Run
) -> None:
    assert run("export", tiny3, "--publish", tmp_path).status == 0
    assert run("export", tiny3, "--publish", tmp_path, "--precision", "fp32", "--component", "llm.vllm").status == 0
    assert json.loads((tmp_path / "vllm" / "config.json").read_text())["torch_dtype"] == "float32"
    assert run("status", tmp_path).status == 0  # it is current, at its own precision
    assert history(tmp_path, store=filled)[0].artifacts.keys() == {"vllm"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp16", "--precision", "bf16"], "llm.vllm is published as one vllm, whatever its precision"),
        (["--precision", "int8"], "'int8' is not a precision of llm.vllm; choose from fp32, fp16, bf16"),
        (
            ["--component", "llm.llm"],
            "'llm.llm' is not a component of CosyVoice3; choose from flow.decoder.estimator, llm.vllm, llm.hf, all",
        ),
    ],
    ids=lambda each: str(each)[:24],
)
def test_what_there_is_not_is_refused_in_a_line(arguments: list[str], words: str, tiny3: Path, run: Run) -> None:
    before = snapshot(tiny3)
    for command in ("plan", "export"):
        ran = run(command, tiny3, *arguments)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.startswith(f"cosyjit: {words}")
        assert ran.err.count("\n") == 1
    assert snapshot(tiny3) == before


# What others have put there.


def test_a_folder_of_others_is_refused_before_anything_is_built_and_put_aside_if_asked(
    tiny3: Path, copy_of: Copy, run: Run, store: Store
) -> None:
    directory = copy_of(tiny3)
    (directory / "vllm").mkdir()
    (directory / "vllm" / "config.json").write_text("theirs")
    before = snapshot(directory)
    ran = run("export", directory)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"cosyjit: {directory / 'vllm'}: was not written by cosyjit; ")
    assert "--replace" in ran.err
    assert ran.err.count("\n") == 1
    assert (snapshot(directory), store.objects()) == (before, set())
    assert run("export", directory, "--replace").status == 0
    assert shown(directory / "vllm.1") == {"config.json": b"theirs"}
    assert sorted(shown(directory / "vllm")) == FILES
    assert run("export", directory, "--replace").status == 0
    assert not (directory / "vllm.2").exists()


# Signatures.


def test_a_folder_is_signed_as_a_zip_is(tiny3: Path, tmp_path: Path, store: Store, run: Run) -> None:
    keys, out = pair(tmp_path), tmp_path / "out"
    required = ["--publish", out, "--require-signature", keys.public]
    assert run("export", tiny3, "--publish", out).status == 0
    assert "is not signed" in run("export", tiny3, *required).err
    assert run("export", tiny3, *required, "--sign", keys.private).status == 0
    assert run("export", tiny3, *required).status == run("verify", out, *required[2:]).status == 0
    made = history(out, store=store)[0].artifacts["vllm"]
    found = record.load(Store(store.root, require=keys.public), made.fingerprint)
    assert found is not None
    assert (found.sha256, found.files, len(found.signed_by)) == (made.sha256, made.files, 1)

    # By someone who has not the key, and does not write as cosyjit does: that keeps what is signed.
    store.write(record.name_of(made.fingerprint), documents.with_checksum(found.statement))
    for command in (["export", tiny3, *required], ["lineage", out / "vllm", *required[2:]]):
        ran = run(*command)
        assert (ran.status, ran.out) == (2, "")
        assert "is not signed" in ran.err
    assert run("verify", out, *required[2:]).status == 1


def test_signed_files_that_are_exchanged_are_seen(tiny3: Path, tmp_path: Path, store: Store, run: Run) -> None:
    keys, out = pair(tmp_path), tmp_path / "out"
    run("export", tiny3, "--publish", out, "--sign", keys.private)
    files = dict(history(out, store=store)[0].artifacts["vllm"].files or {})
    config, model = files["config.json"], files["model.safetensors"]
    for name, digest in (("config.json", model), ("model.safetensors", config)):
        link = (out / "vllm").resolve() / name
        link.unlink()
        link.symlink_to(f"../../../files/{digest}")
    ran = run("verify", out, "--require-signature", keys.public)
    assert ran.status == 1
    assert f"{out / 'vllm'}" in ran.out


# Bad input.


def _without_base(directory: Path) -> None:
    shutil.rmtree(directory / BASE)


def _without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / BASE / name).unlink()


def _with(name: str, content: bytes) -> Callable[[Path], None]:
    def put(directory: Path) -> None:
        (directory / BASE / name).write_bytes(content)

    return put


def _directory(directory: Path) -> None:
    (directory / BASE / "config.json").unlink()
    (directory / BASE / "config.json").mkdir()


def _pipe(directory: Path) -> None:
    (directory / BASE / "config.json").unlink()
    os.mkfifo(directory / BASE / "config.json")


def _device(directory: Path) -> None:
    (directory / BASE / "config.json").unlink()
    (directory / BASE / "config.json").symlink_to("/dev/zero")


def _base_is_a_file(directory: Path) -> None:
    shutil.rmtree(directory / BASE)
    (directory / BASE).touch()


def _saying(**values: Any) -> Callable[[Path], None]:
    return lambda directory: edit(directory / BASE / "config.json", **values)


def _state(alter: Callable[[State], object]) -> Callable[[Path], None]:
    return lambda directory: change(directory, "llm.pt", alter)


def _tie(state: State) -> None:
    state["llm_decoder.weight"] = state["speech_embedding.weight"]


def _cut(state: State) -> None:
    state["speech_embedding.weight"] = state["speech_embedding.weight"][:-1].clone()


def _pipe_of_weights(directory: Path) -> None:
    (directory / "llm.pt").unlink()
    os.mkfifo(directory / "llm.pt")


BAD: Final[dict[str, tuple[Callable[[Path], None], str]]] = {
    "no base": (_without_base, "{}: has no folder CosyVoice-BlankEN; put the one that was published"),
    "a file in place of the base": (_base_is_a_file, "{}: has no folder CosyVoice-BlankEN; put the one"),
    "no configuration": (_without("config.json"), "{}/CosyVoice-BlankEN/config.json: does not exist; "),
    "no generation": (_without("generation_config.json"), "{}/CosyVoice-BlankEN/generation_config.json: does not "),
    "no JSON": (_with("config.json", b"{"), "{}/CosyVoice-BlankEN/config.json: is not JSON ("),
    "no object": (_with("generation_config.json", b"[]"), "{}/CosyVoice-BlankEN/generation_config.json: holds a list"),
    "too large": (_with("config.json", b" " * (1 << 21)), "{}/CosyVoice-BlankEN/config.json: has more than 1,048,576"),
    "a directory": (_directory, "{}/CosyVoice-BlankEN/config.json: cannot be read (Is a directory); "),
    "a pipe": (_pipe, "{}/CosyVoice-BlankEN/config.json: is not a file; "),
    "a device": (_device, "{}/CosyVoice-BlankEN/config.json: is not a file; "),
    "another kind": (_saying(model_type="llama"), '{}/CosyVoice-BlankEN/config.json: model_type is "llama"; supported'),
    "sizes": (
        _saying(hidden_size=96),
        "{}/CosyVoice-BlankEN/config.json: does not fit the tensors of {}/llm.pt (hidden",
    ),
    "a size that is none": (
        _saying(vocab_size=True),
        "{}/CosyVoice-BlankEN/config.json: vocab_size is true; supported",
    ),
    "a tied head": (_state(_tie), "{}/llm.pt: llm_decoder.weight is tied to speech_embedding.weight"),
    "two vocabularies": (_state(_cut), "{}/llm.pt: speech_embedding.weight has 263 rows and llm_decoder.weight 264; "),
    "an unknown tensor": (
        _state(lambda state: state.update(more=torch.zeros(1))),
        "{}/llm.pt: llm.vllm: the tensors do not fit the configuration (1 unexpected: more); ",
    ),
    "a missing tensor": (
        _state(lambda state: state.pop("llm.model.model.norm.weight")),
        "{}/llm.pt: llm.vllm: the tensors do not fit the configuration (1 missing: llm.model.model.norm.weight); ",
    ),
    "no weights": (lambda directory: (directory / "llm.pt").unlink(), "{}/llm.pt: does not exist; "),
    "a pipe of weights": (_pipe_of_weights, "{}/llm.pt: is a pipe or a device; "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_a_line_and_left_as_it_is(
    name: str, tiny3: Path, copy_of: Copy, run: Run, store: Store
) -> None:
    directory = copy_of(tiny3)
    spoil, words = BAD[name]
    spoil(directory)
    before = sorted(directory.rglob("*"))
    for command in ("plan", "export"):
        ran = run(command, directory)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.startswith("cosyjit: " + words.replace("{}", str(directory)))
        assert ran.err.count("\n") == 1
    assert sorted(directory.rglob("*")) == before
    assert store.objects() == set()


@pytest.mark.parametrize(
    ("value", "precision", "words"),
    [
        (float("nan"), "bf16", "llm.model.model.norm.weight"),
        (1e5, "fp16", "llm.model.model.norm.weight"),
    ],
    ids=["no number", "overflow"],
)
def test_a_number_that_cannot_be_written_fails_the_build_and_names_the_tensor(
    value: float, precision: str, words: str, tiny3: Path, copy_of: Copy, run: Run, store: Store
) -> None:
    directory = copy_of(tiny3)
    change(directory, "llm.pt", lambda state: state["llm.model.model.norm.weight"].view(-1)[3].fill_(value))
    before = snapshot(directory)
    ran = run("export", directory, "--precision", precision)
    assert ran.status == 1
    assert words in " ".join((ran.out + ran.err).split())
    assert snapshot(directory) == before
    assert store.objects() == set()


@pytest.mark.parametrize("name", ["llm.pt", *(f"{BASE}/{name}" for name in FILES[:2])])
@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_changes_between_plan_and_build_is_an_error(
    name: str, tiny3: Path, copy_of: Copy, store: Store, *, gone: bool
) -> None:
    directory = copy_of(tiny3)
    content = (directory / name).read_bytes()
    (planned,) = plan(directory, store=store)
    if gone:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content + b" ")
    published = PublishedDirectory(directory, store)
    with store.in_use(), exporting(published), pytest.raises((CheckpointError, ConfigError)) as error:
        make(planned, store, published)
    assert str(error.value).startswith(str((directory / name).parent))
    words = "was changed after it was planned; run again when it is complete"
    assert words in str(error.value) or (gone and "does not exist" in str(error.value))
    assert store.objects() == set()
    assert not (directory / "vllm").exists()
