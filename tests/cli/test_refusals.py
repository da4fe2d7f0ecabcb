"""What the command line refuses: exit code 2, one line that names the thing and the way out, and no trace."""

import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from cosyjit import errors
from tests.support.checkpoints import change, rewrite, without_llm
from tests.support.modelscope import MODEL
from tests.support.processes import CONSOLE_SCRIPT, Ran, Run, finished, snapshot, spawn

Copy = Callable[[Path], Path]


def assert_refused(ran: Ran, *says: str, as_json: bool = False) -> None:
    """See that a command was refused in a line, which is in an object as well if that was asked for."""
    assert ran.status == 2
    if as_json:
        (error,) = json.loads(ran.out).values()
        assert (error["status"], f"cosyjit: {error['message']}\n") == (2, ran.err)
        assert error["kind"] == "UsageError" or issubclass(getattr(errors, error["kind"]), errors.InputError)
    else:
        assert ran.out == ""
    assert ran.err.startswith("cosyjit: ")
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1
    for words in says:
        assert words in ran.err


class Trap:
    """Unpickling it makes the directory `sprung` in the working directory."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("sprung",)


def pickle_plainly(directory: Path) -> None:
    with (directory / "llm.pt").open("wb") as file:
        pickle.dump({"llm.x": Trap()}, file, protocol=2)


WHOLE = "cosyvoice.llm.llm.TransformerLM"
NORM = "llm.after_norm.weight"

DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no yaml": (
        lambda path: (path / "cosyvoice.yaml").unlink(),
        ("/CosyVoice-tiny: no configuration", "it needs one of cosyvoice.yaml"),
    ),
    "yaml of no syntax": (
        lambda path: (path / "cosyvoice.yaml").write_text("llm: [1\nflow: }"),
        ("/cosyvoice.yaml: ", "restore the published file"),
    ),
    "yaml of no mapping": (
        lambda path: (path / "cosyvoice.yaml").write_text("- llm\n"),
        ("/cosyvoice.yaml: ", "restore the published file"),
    ),
    "yaml of bytes": (
        lambda path: (path / "cosyvoice.yaml").write_bytes(bytes(range(256))),
        ("/cosyvoice.yaml: ", "restore the published file"),
    ),
    "empty yaml": (
        lambda path: (path / "cosyvoice.yaml").write_bytes(b""),
        ("/cosyvoice.yaml: is empty; copy or download it again",),
    ),
    "two families": (
        lambda path: (path / "cosyvoice2.yaml").write_text((path / "cosyvoice.yaml").read_text() + "# more"),
        ("cosyvoice.yaml and cosyvoice2.yaml stand side by side and differ", "keep the one"),
    ),
    "unknown llm": (
        lambda path: rewrite(path, WHOLE, "cosyvoice.llm.llm.TransformerLM9"),
        ("/cosyvoice.yaml: llm", "cosyvoice.llm.llm.TransformerLM9;", f"known: {WHOLE}"),
    ),
    "weights of another family": (
        lambda path: rewrite(path, WHOLE, "cosyvoice.llm.llm.CosyVoice3LM"),
        (": has no folder CosyVoice-BlankEN; put the one that was published with the weights", "beside them"),
    ),
    "other component class": (
        lambda path: rewrite(path, "encoder.TransformerEncoder", "encoder.TransformerEncoder9"),
        ("/cosyvoice.yaml: llm.llm is a cosyvoice.transformer.encoder.TransformerEncoder9", "supported: cosyvoice."),
    ),
    "unsupported option": (
        lambda path: rewrite(path, "'rel_selfattn'", "'other_attn'"),
        ("/cosyvoice.yaml: llm.text_encoder: option selfattention_layer_type is other_attn", "supported: "),
    ),
    "a date as an option": (
        lambda path: rewrite(path, "linear_units: 128", "linear_units: 2024-01-01"),
        ("/cosyvoice.yaml: ", "option linear_units is a date (2024-01-01); supported: an integer from 1 to 65536"),
    ),
    "a text as a number": (
        lambda path: rewrite(path, "linear_units: 128", "linear_units: '128'"),
        ("/cosyvoice.yaml: ", "option linear_units is '128'; supported: an integer from 1 to 65536"),
    ),
    "a float as a number": (
        lambda path: rewrite(path, "linear_units: 128", "linear_units: 1e3"),
        ("/cosyvoice.yaml: ", "option linear_units is 1000.0; supported: an integer from 1 to 65536"),
    ),
    "yes as a flag": (
        lambda path: rewrite(path, "normalize_before: True", "normalize_before: yes"),
        ("/cosyvoice.yaml: ", "option normalize_before is yes; supported: true or false"),
    ),
    "a flow alone": (
        without_llm,
        ("/cosyvoice.yaml: has no node llm, which llm.", "--component flow.encoder exports what there is"),
    ),
    "weights missing": (
        lambda path: (path / "flow.pt").unlink(),
        ("/flow.pt: does not exist", "put the weights file beside the configuration"),
    ),
    "weights empty": (
        lambda path: (path / "flow.pt").write_bytes(b""),
        ("/flow.pt: is empty", "copy or download it again"),
    ),
    "weights truncated": (
        lambda path: os.truncate(path / "flow.pt", 1_000_000),
        ("/flow.pt: is damaged", "copy or download it again"),
    ),
    "weights of bytes": (
        lambda path: (path / "flow.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        ("/flow.pt: is a Git LFS pointer, ", "run `git lfs pull` in its repository, or download it again"),
    ),
    "weights a list": (
        lambda path: torch.save([torch.zeros(1)], path / "llm.pt"),
        ("/llm.pt: holds a list", "save it as a flat state dictionary"),
    ),
    "trap in a zip": (
        lambda path: torch.save({"llm.x": Trap()}, path / "llm.pt"),
        ("/llm.pt: holds more than tensors", "save it as a flat state dictionary"),
    ),
    "trap in a pickle": (
        pickle_plainly,
        ("/llm.pt: ",),
    ),
    "key missing": (
        lambda path: change(path, "llm.pt", lambda state: state.pop(NORM)),
        ("/llm.pt: llm.llm", f"1 missing: {NORM}", "export a matching pair"),
    ),
    "key extra": (
        lambda path: change(path, "llm.pt", lambda state: state.update({"llm.more": state[NORM]})),
        ("/llm.pt: llm.llm", "1 unexpected: llm.more", "export a matching pair"),
    ),
    "key of another shape": (
        lambda path: change(path, "llm.pt", lambda state: state.update({NORM: torch.ones(3)})),
        ("/llm.pt: llm.llm", f"1 of another shape: {NORM} ((3,) instead of (64,))", "export a matching pair"),
    ),
}


CONTRACT: Final = {
    *("no yaml", "yaml of no syntax", "unknown llm", "unsupported option", "a text as a number", "a flow alone"),
    *("weights missing", "weights truncated", "trap in a zip", "key missing"),
    *("export nowhere", "export CosyVoice-tiny --precision fp8", "export", "exprot CosyVoice-tiny", "status nowhere"),
    *("export CosyVoice-tiny --store nope://x", "rollback CosyVoice-tiny --to x", "gc --keep 0", "gc"),
    *("verify --store nowhere", "lineage nowhere.zip", "synth new --size huge"),
}
"""What stands for the rest, which the second tier has: each is refused by the tests of its own module as well."""


def by_tiers(names: str | tuple[str, ...], cases: Iterable[Any], ids: Callable[[Any], str]) -> pytest.MarkDecorator:
    """Parametrizes a test with cases, of which those in `CONTRACT` alone are of the first tier."""
    several = [case if isinstance(case, tuple) else (case,) for case in cases]
    found = [(case, ids(case[0])) for case in several]
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        names, [pytest.param(*case, id=name, marks=() if name in CONTRACT else slow) for case, name in found]
    )


@by_tiers("name", DAMAGE, ids=str)
def test_a_bad_model_directory_is_refused_in_one_line_and_left_as_it_is(
    tiny: Path, copy_of: Copy, run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    directory = copy_of(tiny)
    monkeypatch.chdir(directory.parent)
    damage, says = DAMAGE[name]
    damage(directory)
    before = snapshot(directory.parent)
    assert_refused(run("export", directory, "--json", "--publish", directory.parent / "new"), *says, as_json=True)
    assert snapshot(directory.parent) == before


@by_tiers(
    ("arguments", "says"),
    [
        (["export", "{}/nowhere"], ("/nowhere: does not exist", "give a model directory")),
        (["export", "{}/CosyVoice-tiny/llm.pt"], ("/llm.pt: is a file; give the model directory", "/CosyVoice-tiny\n")),
        (["plan", "{}/CosyVoice-tiny/cosyvoice.yaml"], ("/cosyvoice.yaml: is a file; give the model directory",)),
        (["export", f"https://www.modelscope.cn/models/{MODEL}"], (f"/{MODEL}: is an address; give {MODEL}\n",)),
        (["export", "./no/where"], ("./no/where: the directory /", "/no/where does not exist; give a model directory")),
        (["export", "{}/" + "n" * 300], ("n" * 300,)),
        (["export", "{}/[red]:smile:"], ("/[red]:smile:: does not exist",)),
        (
            ["export", "{}/CosyVoice-tiny", "--component", "vocoder"],
            ("'vocoder'", "choose from llm.text_encoder, llm."),
        ),
        (["export", "{}/CosyVoice-tiny", "--component", "llm.llm", "--component", ""], ("''", "choose from")),
        (["export", "{}/CosyVoice-tiny", "--precision", "fp8"], ("'fp8'", "choose from fp32, fp16, bf16")),
        (["export", "{}/CosyVoice-tiny", "--publish", "{}/CosyVoice-tiny/llm.pt"], ("/llm.pt: cannot", "another")),
        (["export", "{}/CosyVoice-tiny", "--publish", "{}/CosyVoice-tiny/llm.pt/x"], ("llm.pt/x: cannot", "another")),
        (["export", "{}/CosyVoice-tiny", "--publish", "/proc/nope"], ("/proc/nope: cannot be", "another directory")),
        (["export", "{}/CosyVoice-tiny", "--publish", "{}/" + "n" * 300], ("nnn: cannot be written", "another")),
        (["export"], ("--source",)),
        (["export", "--json"], ("--source",)),
        (["export", "{}/CosyVoice-tiny", "--publish"], ("--publish",)),
        (["export", "{}/CosyVoice-tiny", "--publish", ""], ("--publish: is empty; name a directory, or leave",)),
        (["export", "{}/CosyVoice-tiny", "--jsn"], ("--jsn", "--json")),
        (["export", "{}/CosyVoice-tiny", "{}/CosyVoice-tiny/"], ("/: is given twice, also as /", "; name it once")),
        (["plan", "{}/CosyVoice-tiny", "{}/CosyVoice-tiny"], ("/CosyVoice-tiny: is given twice; name it once",)),
        (["plan", "{}/CosyVoice-tiny", "iic/x", "--publish", "{}/new"], ("/new: is one directory for 2 sources",)),
        (["export", "{}/CosyVoice-tiny", "--no-build", "--force"], ("--force --no-build: one builds all",)),
        (["exprot", "{}/CosyVoice-tiny"], ("exprot", "export")),
        (["plan", "{}/nowhere"], ("/nowhere: does not exist", "give a model directory")),
        (["plan", "{}/CosyVoice-tiny", "--precision", "fp8"], ("'fp8'", "choose from fp32, fp16, bf16")),
        (["export", "{}/CosyVoice-tiny", "--store", "{}/CosyVoice-tiny/llm.pt"], ("/llm.pt: cannot be read",)),
        (["export", "{}/CosyVoice-tiny", "--store", "/proc/nope"], ("/proc/nope: cannot be read or written",)),
        (["export", "{}/CosyVoice-tiny", "--store", "nope://x"], ("nope://x: is not a store", "fsspec URL")),
        (["export", "{}/CosyVoice-tiny", "--publish", "~nobody-of-this-name/x"], ("~nobody-of-this-name/x",)),
        (["status"], ("--directory",)),
        (["status", "{}/CosyVoice-tiny"], ("/CosyVoice-tiny: nothing is published here", "export into it")),
        (["status", "{}/nowhere"], ("/nowhere: nothing is published here",)),
        (["status", "~nobody-of-this-name"], ("~nobody-of-this-name",)),
        (["status", "{}/CosyVoice-tiny", "--store", "{}/CosyVoice-tiny/llm.pt"], ("/llm.pt: cannot be read",)),
        (["history", "{}/CosyVoice-tiny"], ("/CosyVoice-tiny: nothing is published here", "export into it")),
        (["history", "{}/CosyVoice-tiny", "--last", "0"], ("--last 0", "1 or more")),
        (["rollback", "{}/CosyVoice-tiny"], ("/CosyVoice-tiny: nothing is published here", "export into it")),
        (["rollback", "{}/CosyVoice-tiny", "--to", "x"], ("--to", '"x"')),
        (["rollback", "{}/CosyVoice-tiny", "--to", "1.6"], ("--to", '"1.6" is not an integer')),
        (["diff", "{}/CosyVoice-tiny", "1.6"], ('"1.6" is not an integer; give one',)),
        (["gc", "--older-than", "9999999999d"], ("--older-than 9999999999d: is not an age", "7d")),
        (["gc", "--keep", "0.4"], ("--keep", '"0.4" is not an integer')),
        (["verify", "{}/CosyVoice-tiny"], ("/CosyVoice-tiny",)),
        (["verify", "{}/nowhere"], ("/nowhere",)),
        (["gc", "--keep", "0"], ("--keep 0", "1 or more")),
        (["gc", "--keep", "-1"], ("cosyjit: --keep -1: keep 1 or more publications of each directory\n",)),
        (["gc", "--older-than", "soon"], ("--older-than soon: is not an age", "7d")),
        (["gc", "--older-than", "7"], ("--older-than 7: has no unit; give one, such as 7d or 7h",)),
        (["gc", "--older-than=-7d"], ("--older-than -7d: keep files for 0s or longer",)),
        (["gc", "--store", "{}/nowhere"], ("/nowhere: there is no store; name the one", "--store or COSYJIT_STORE")),
        (["gc"], ("/cosyjit: there is no store; name the one that was exported into",)),
        (["verify"], ("/cosyjit: there is no store; name the one that was exported into",)),
        (["verify", "--store", "{}/nowhere"], ("/nowhere: there is no store",)),
        (["verify", "--store", "{}/CosyVoice-tiny"], ("/CosyVoice-tiny: there is no store",)),
        (["verify", "--store", "{}/CosyVoice-tiny/llm.pt"], ("/llm.pt: cannot be read or written (Not a directory)",)),
        (["verify", "--store", "memory://nowhere"], ("memory://nowhere: there is no store",)),
        (["gc", "--store", "memory://nowhere"], ("memory://nowhere: there is no store",)),
        (["lineage", "{}/nowhere.zip"], ("/nowhere.zip: is not an artifact", "fingerprint that")),
        (["lineage", "{}/CosyVoice-tiny/llm.pt"], ("/llm.pt: is not an artifact of cosyjit", "name a zip")),
        (["lineage", "{}/CosyVoice-tiny/cosyvoice.yaml"], ("/cosyvoice.yaml: is not an artifact of cosyjit",)),
        (["lineage", "0" * 64], ("/cosyjit: there is no store; name the one", "--store or COSYJIT_STORE")),
        (["lineage", "n" * 300], ("n" * 300,)),
        (["lineage", "~nobody-of-this-name/a.zip"], ("~nobody-of-this-name",)),
        (["lineage", ""], ("is a directory, and not the folder of an artifact", "name a zip")),
        (["synth"], ("--directory",)),
        (
            ["synth", "{}/CosyVoice-tiny"],
            ("/CosyVoice-tiny: is a model directory already", "new or an empty", "--force"),
        ),
        (["synth", "{}/CosyVoice-tiny/llm.pt", "--force"], ("/llm.pt: is a file; name a new or an empty directory",)),
        (["synth", "{}/new", "--family", "mozart"], ("'mozart'", "choose from cosyvoice, cosyvoice2")),
        (["synth", "{}/new", "--size", "huge"], ("'huge'", "choose from tiny, small, full")),
        (["synth", "{}/new", "--seed", "x"], ("--seed", '"x"')),
        (["synth", "{}/CosyVoice-tiny/llm.pt/new"], ("llm.pt/new: cannot be written to", "name another directory")),
    ],
    ids=lambda arguments: " ".join(arguments).replace("{}/", "")[:50],
)
def test_bad_arguments_are_refused_in_one_line_and_leave_no_trace(
    tiny: Path, copy_of: Copy, run: Run, arguments: list[str], says: tuple[str, ...]
) -> None:
    parent = copy_of(tiny).parent
    before = snapshot(parent)
    ran = run(*(argument.replace("{}", str(parent)) for argument in arguments))
    assert_refused(ran, *says, as_json="--json" in arguments)
    assert snapshot(parent) == before


@pytest.mark.parametrize("name", ["weights truncated", "trap in a zip"])
def test_a_refusal_is_one_line_in_a_process_of_its_own_too(tiny: Path, copy_of: Copy, name: str) -> None:
    directory = copy_of(tiny)
    damage, says = DAMAGE[name]
    damage(directory)
    before = snapshot(directory.parent)
    assert_refused(finished(spawn(CONSOLE_SCRIPT, "export", directory, cwd=directory.parent)), *says)
    assert snapshot(directory.parent) == before
