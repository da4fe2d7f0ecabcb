"""The merged folder as a component: planned, exported, published and refused by the calls that others are."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from cosyjit import Store, export, history, plan
from cosyjit.building import folders, packages
from cosyjit.errors import SelectionError
from cosyjit.operations.verify import verify_store
from cosyjit.planning.plan import find_targets
from tests.support.base_tokenizers import edit, make_whole, read
from tests.support.checkpoints import change
from tests.support.merged_folders import BASE, FILES, TOKENIZER
from tests.support.modelscope import Hub
from tests.support.processes import Run, shown, snapshot, start

Copy = Callable[[Path], Path]
Stock = Callable[..., None]
Edit = Callable[[Path], object]

PART: Final = "llm.hf"
ASKED: Final = ("--component", PART)
FOLDER: Final = "hf_merged"


@pytest.fixture
def filled(tiny3: Path, store: Store, stock: Stock) -> Store:
    """The store, with the merged folder of a stand-in in it."""
    stock(tiny3, [PART])
    return store


def reasons(directory: Path, store: Store) -> str:
    """Why the folder of a directory would be built; empty if it would not be."""
    (planned,) = plan(directory, [PART], store=store)
    assert (planned.state == "fresh") == (not planned.reasons)
    return "; ".join(planned.reasons)


def test_a_merged_folder_is_planned_exported_looked_at_and_gone_back_to_as_zips_are(
    tiny2: Path, copy_of: Copy, run: Run, store: Store
) -> None:
    directory = copy_of(tiny2)
    assert PART not in run("plan", directory, "--json").out
    assert [each["state"] for each in json.loads(run("plan", directory, *ASKED, "--json").out)["targets"]] == ["new"]
    ran = run("export", directory, *ASKED, "--json")
    (entry,) = json.loads(ran.out)["targets"]
    assert (ran.status, entry["state"], entry["path"]) == (0, "built", str(directory / FOLDER))
    assert sorted(path.name for path in (directory / FOLDER).iterdir()) == FILES
    for command in (
        ("status", directory),
        ("verify", directory),
        ("verify", directory, "--deep"),
        ("verify", store.root),
    ):
        assert run(*command).status == 0
    assert run("plan", directory, *ASKED, "--json").out.count('"fresh"') == 1
    old = shown(directory / FOLDER)

    edit(directory / BASE / "tokenizer_config.json", model_max_length=1024)
    assert run("status", directory).status == 1
    assert "tokenizer_config.json " in " ".join(run("plan", directory, *ASKED).out.split())
    assert run("export", directory, *ASKED).status == 0
    new = shown(directory / FOLDER)
    assert {name for name in FILES if old[name] != new[name]} == {"tokenizer_config.json"}
    assert [each.number for each in history(directory, store=store)] == [2, 1]
    assert run("rollback", directory).status == 0
    assert shown(directory / FOLDER) == old
    assert run("gc", "--keep", "1", "--older-than", "0s", "--delete").status == 0
    assert store.objects() == {hashlib.sha256(content).hexdigest() for content in old.values()}
    assert verify_store(store) == []


@pytest.mark.usefixtures("filled")
def test_a_folder_that_was_converted_by_hand_is_left_alone_unless_it_may_be_put_aside(
    tiny3: Path, copy_of: Copy, run: Run
) -> None:
    directory = copy_of(tiny3)
    (directory / FOLDER).mkdir()
    (directory / FOLDER / "model.safetensors").write_text("mine")
    for command in ("plan", "export"):
        ran = run(command, directory, *ASKED)
        assert FOLDER in ran.out + ran.err
        assert "--replace" in " ".join((ran.out + ran.err).split())
    assert shown(directory / FOLDER) == {"model.safetensors": b"mine"}
    assert run("export", directory, *ASKED, "--replace").status == 0
    assert sorted(path.name for path in (directory / FOLDER).iterdir()) == FILES
    assert shown(directory / f"{FOLDER}.1") == {"model.safetensors": b"mine"}


@pytest.mark.slow
def test_each_precision_is_published_in_place_of_the_others(
    tiny3: Path, filled: Store, tmp_path: Path, run: Run
) -> None:
    assert run("export", tiny3, *ASKED, "--publish", tmp_path).status == 0
    assert run("export", tiny3, *ASKED, "--publish", tmp_path, "--precision", "fp32").status == 0
    assert read(tmp_path / FOLDER / "config.json")["torch_dtype"] == "float32"
    assert history(tmp_path, store=filled)[0].artifacts.keys() == {FOLDER}
    assert run("status", tmp_path).status == 0


def test_a_record_has_the_tokenizer_among_what_it_was_made_from(
    tiny3: Path, filled: Store, tmp_path: Path, run: Run
) -> None:
    (made,) = export(tiny3, [PART], publish=tmp_path, store=filled)
    assert made.record is not None
    assert {each.name: each.sha256 for each in made.record.materials} == {
        name: hashlib.sha256((tiny3 / name).read_bytes()).hexdigest()
        for name in ("llm.pt", f"{BASE}/config.json", f"{BASE}/generation_config.json", *TOKENIZER)
    }
    assert sorted(made.record.files or {}) == FILES
    ((status, tree, err),) = {run("lineage", each) for each in (tmp_path / FOLDER, made.record.sha256)}
    assert (status, err) == (0, "")
    assert "vocab.json" in tree
    size = (tmp_path / FOLDER / "model.safetensors").stat().st_size
    assert size - 5000 < made.target.weight_bytes < size


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("speech_embedding.weight", "1 of 28 tensors changed: speech_embedding.weight"),
        ("llm.model.model.embed_tokens.weight", "1 of 28 tensors changed: llm.model.model.embed_tokens.weight"),
    ],
)
def test_each_tensor_that_goes_in_decides(name: str, says: str, tiny3: Path, copy_of: Copy, filled: Store) -> None:
    directory = copy_of(tiny3)
    export(directory, [PART], store=filled, publish=directory / "out")
    change(directory, "llm.pt", lambda state: state[name].view(-1)[0].add_(1))
    assert reasons(directory, filled) == says


def test_each_file_of_the_tokenizer_decides(tiny3: Path, copy_of: Copy, filled: Store) -> None:
    directory = copy_of(tiny3)
    export(directory, [PART], store=filled, publish=directory / "out")
    for name in TOKENIZER:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content + b"\n")
        digests = [hashlib.sha256(each).hexdigest() for each in (content, content + b"\n")]
        assert reasons(directory, filled) == f"{Path(name).name} {digests[0]} -> {digests[1]}"
        (directory / name).write_bytes(content)
    edit(directory / BASE / "config.json", rope_theta=2e6)
    assert reasons(directory, filled) == "config.json: rope_theta 1000000.0 -> 2000000.0"


@pytest.mark.slow
def test_either_form_of_a_tokenizer_is_exported_to_the_same_bytes(
    tiny3: Path, copy_of: Copy, filled: Store, tmp_path: Path
) -> None:
    export(tiny3, [PART], store=filled, publish=tmp_path / "one")
    directory = copy_of(tiny3)
    make_whole(directory / BASE)
    (made,) = export(directory, [PART], store=filled, publish=tmp_path / "two")
    assert made.state == "built"
    assert shown(tmp_path / "one" / FOLDER) == shown(tmp_path / "two" / FOLDER)


@pytest.mark.slow
def test_a_tokenizer_that_breaks_tokens_of_speech_up_fails_the_build_in_a_line(
    tiny2: Path, copy_of: Copy, run: Run, store: Store
) -> None:
    directory = copy_of(tiny2)
    with_added("<|s_5")(directory / BASE)
    ran = run("export", directory, *ASKED)
    assert (ran.status, store.objects()) == (1, set())
    assert (
        "; restore the tokenizer that was published with the weights; if it is that one, report this"
        in ran.out + ran.err
    )


@pytest.mark.slow
def test_numbers_of_text_that_are_not_finite_fail_it_alone(tiny3: Path, copy_of: Copy, stock: Stock) -> None:
    directory = copy_of(tiny3)
    change(directory, "llm.pt", lambda state: state["llm.model.model.embed_tokens.weight"][7].fill_(torch.nan))
    made = {each.target.component.name: each for each in export(directory, [PART])}
    assert made[PART].state == "failed"
    assert "llm.model.model.embed_tokens.weight has numbers that are NaN or infinite" in str(made[PART].error)
    change(directory, "llm.pt", lambda state: state["llm.model.model.embed_tokens.weight"][7].zero_())
    # The rows behind the special tokens are not in the folder.
    change(directory, "llm.pt", lambda state: state["llm.model.model.embed_tokens.weight"][633:].fill_(torch.nan))
    stock(directory, [PART])


# What is refused, before anything is built.


def with_added(*tokens: str) -> Edit:
    """Adds tokens to those that a tokenizer lists, behind the last one."""

    def add(base: Path) -> None:
        listed = read(base / "tokenizer_config.json")["added_tokens_decoder"]
        more = {str(number): {"content": token, "special": True} for number, token in enumerate(tokens, 355)}
        edit(base / "tokenizer_config.json", added_tokens_decoder={**listed, **more})

    return add


def with_vocabulary(**changes: int) -> Edit:
    return lambda base: edit(base / "vocab.json", **changes)


def with_link(name: str, to: str) -> Edit:
    def link(base: Path) -> None:
        (base / name).unlink()
        (base / name).symlink_to(to)

    return link


def with_hole(base: Path) -> None:
    os.truncate(base / "vocab.json", 1 << 40)


REFUSED: Final[dict[str, tuple[Edit, str, str]]] = {
    "no settings": (
        lambda base: (base / "tokenizer_config.json").unlink(),
        "tokenizer_config.json",
        "does not exist; ",
    ),
    "no vocabulary": (lambda base: (base / "vocab.json").unlink(), "vocab.json", "does not exist; copy or download"),
    "no merges": (lambda base: (base / "merges.txt").unlink(), "merges.txt", "does not exist; copy or download"),
    "a pointer": (
        lambda base: (base / "vocab.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "vocab.json",
        "is a Git LFS pointer",
    ),
    "huge": (with_hole, "vocab.json", "has more than 25,165,824 bytes; copy or download it again"),
    "not JSON": (lambda base: (base / "vocab.json").write_text("{"), "vocab.json", "is not JSON ("),
    "deep": (lambda base: (base / "vocab.json").write_text('{"a":' * 99_999), "vocab.json", "is not JSON ("),
    "wide": (
        lambda base: (base / "tokenizer.json").write_text("[" * 1_100_000),
        "tokenizer.json",
        "has more values than a tokenizer has",
    ),
    "of another type": (lambda base: (base / "vocab.json").write_text("[]"), "vocab.json", "holds a list instead of"),
    "ids of another type": (with_vocabulary(a="5"), "vocab.json", '"a" has the id "5"; its 352 tokens need'),  # type: ignore[arg-type]
    "an id twice": (with_vocabulary(a=7), "vocab.json", "has the id 7; its 352 tokens need the ids from 0 on, each"),
    "a device": (with_link("merges.txt", "/dev/zero"), "merges.txt", "is not a file; copy or download it again"),
    "a link to nothing": (with_link("vocab.json", "gone"), "vocab.json", "does not exist; copy or download it again"),
    "another file": (with_link("vocab.json", "/etc/passwd"), "vocab.json", "is not JSON ("),
    "merges of nothing": (
        lambda base: (base / "merges.txt").write_text("q q\n"),
        "merges.txt",
        '"q q" does not merge two tokens of the vocabulary to a third',
    ),
    "another class": (
        lambda base: edit(base / "tokenizer_config.json", tokenizer_class="LlamaTokenizer"),
        "tokenizer_config.json",
        'tokenizer_class is "LlamaTokenizer"; supported: Qwen2Tokenizer, Qwen2TokenizerFast',
    ),
    "another way to split": (
        lambda base: make_whole(base, pre_tokenizer={"type": "Whitespace"}),
        "tokenizer.json",
        "is not a tokenizer as Qwen2 has it (by its pre_tokenizer)",
    ),
    "more tokens than rows": (
        with_added(*(f"[more {number}]" for number in range(8))),
        "vocab.json",
        "its 363 tokens and the 278 special ones that it lacks are more than the 640 rows that ",
    ),
    "speech already": (
        with_added("<|s_3|>"),
        "vocab.json",
        "has <|s_3|> already, as 355, and the model has it as 637;",
    ),
    "special already": (
        with_added("[breath]"),
        "vocab.json",
        "has [breath] already, as 355, and the model has it as 356;",
    ),
    "special elsewhere": (
        lambda base: edit(
            base / "tokenizer_config.json",
            added_tokens_decoder={
                "352": {"content": "<|endoftext|>"},
                "353": {"content": "<|im_end|>"},
                "354": {"content": "<|im_start|>"},
            },
        ),
        "vocab.json",
        "has <|im_end|> already, as 353, and the model has it as 355;",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_plan_and_export_alike(
    name: str, tiny3: Path, copy_of: Copy, run: Run, store: Store
) -> None:
    directory = copy_of(tiny3)
    damage, file, says = REFUSED[name]
    damage(directory / BASE)
    for command in ("plan", "export"):
        ran = run(command, directory, *ASKED)
        assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1), ran
        assert ran.err.startswith(f"cosyjit: {directory / BASE / file}: ")
        assert says in ran.err
    assert store.objects() == set()
    assert not (directory / FOLDER).exists()
    assert run("plan", directory).status == 0  # what does not have a tokenizer does not need one


def test_a_family_without_it_says_what_there_is(tiny: Path, run: Run) -> None:
    ran = run("plan", tiny, *ASKED)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "'llm.hf' is not a component of CosyVoice; choose from " in ran.err


def test_a_tokenizer_that_changes_under_a_build_is_told_of(tiny3: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny3)
    (target,) = find_targets(directory, [PART], store=store)
    edit(directory / BASE / "tokenizer_config.json", model_max_length=5)
    with pytest.raises(Exception, match=f"{BASE}: was changed after it was planned; run again when it is complete"):
        folders.planned_folder(target)


# Without the package.

WITHOUT: Final = """
import sys
sys.modules["tokenizers"] = None
from cosyjit.cli.app import main
main(sys.argv[1:])
"""


def test_without_the_package_it_is_refused_before_anything_is_built(
    tiny3: Path, store: Store, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    line = f"{PART}.bf16: needs a package that is missing; install cosyjit[hf]"
    given = (tiny3, "--component", "llm.vllm", *ASKED, "--publish", tmp_path / "out")
    ran = run("export", *given)
    assert (ran.status, ran.out, ran.err) == (2, "", f"cosyjit: {line}\n")
    assert (store.objects(), (tmp_path / "out").exists()) == (set(), False)
    assert run("plan", *given).out.splitlines()[-2] == f"An export would be refused: {line}"


@pytest.mark.slow
def test_who_has_not_the_package_is_told_what_to_install_before_anything_is_built(
    tiny3: Path, store: Store, tmp_path: Path
) -> None:
    line = f"{PART}.bf16: needs a package that is missing; install cosyjit[hf]"
    given = (tiny3, "--component", "llm.vllm", *ASKED, "--store", store.root, "--publish", tmp_path / "out")
    with start(WITHOUT, "export", *given) as process:
        assert process.communicate(timeout=600) == ("", f"cosyjit: {line}\n")
    assert process.returncode == 2
    assert (store.objects(), (tmp_path / "out").exists()) == (set(), False)
    with start(WITHOUT, "plan", *given) as process:
        out, err = process.communicate(timeout=600)
    assert (err, out.splitlines()[-2]) == ("", f"An export would be refused: {line}")


@pytest.mark.slow
def test_what_is_built_already_needs_no_package(tiny3: Path, filled: Store, tmp_path: Path) -> None:
    given = (tiny3, *ASKED, "--store", filled.root, "--publish", tmp_path / "out")
    with start(WITHOUT, "export", *given) as process:
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert "cached" in out
    assert (tmp_path / "out" / FOLDER).is_dir()


def test_a_worker_without_the_package_says_so(
    tiny3: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target,) = find_targets(tiny3, [PART], store=store)
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    with pytest.raises(SelectionError, match=r"install cosyjit\[hf\]"):
        folders.build(target, None, tmp_path, lambda _: None)
    with pytest.raises(SelectionError, match=r"install cosyjit\[hf\]"):
        folders.prove(target, None, tmp_path, None, None)


# From the hub.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    with Hub() as hub:
        hub.use(monkeypatch)
        yield hub


def publish(hub: Hub, directory: Path, model: str) -> None:
    hub.publish(model, {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()})


def test_the_hub_is_asked_for_the_tokenizer_where_it_is_needed_and_only_there(
    hub: Hub, tiny3: Path, copy_of: Copy, store: Store
) -> None:
    publish(hub, tiny3, "iic/CosyVoice3-0.5B")
    find_targets("iic/CosyVoice3-0.5B", store=store)
    assert not set(TOKENIZER) & set(hub.downloads)
    hub.requests.clear()
    (found,) = find_targets("iic/CosyVoice3-0.5B", [PART], store=store)
    assert sorted(hub.downloads) == sorted(TOKENIZER)
    assert [found.fingerprint] == [each.fingerprint for each in find_targets(tiny3, [PART], store=store)]
    directory = copy_of(tiny3)
    make_whole(directory / BASE)
    publish(hub, directory, "iic/whole")
    hub.requests.clear()
    find_targets("iic/whole", [PART], store=store)
    assert f"{BASE}/tokenizer.json" in hub.downloads
    assert f"{BASE}/vocab.json" not in hub.downloads


def test_a_model_of_the_hub_without_a_tokenizer_is_refused_in_a_line(
    hub: Hub, tiny3: Path, copy_of: Copy, run: Run
) -> None:
    directory = copy_of(tiny3)
    (directory / BASE / "merges.txt").unlink()
    publish(hub, directory, "iic/CosyVoice3-0.5B")
    before = snapshot(directory)
    for command in ("plan", "export"):
        ran = run(command, "iic/CosyVoice3-0.5B", *ASKED)
        assert (ran.status, ran.out) == (2, "")
        line = ran.err.splitlines()[-1]
        assert line.startswith("cosyjit: iic/CosyVoice3-0.5B@")
        assert line.endswith(f": has no {BASE}/merges.txt; name a component or a revision that has what it needs")
    assert snapshot(directory) == before
