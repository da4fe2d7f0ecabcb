"""The forms in which people have weights: each gives what the plain file gives, or is named for what it is."""

import collections
import datetime as dt
import io
import pathlib
import resource
import shlex
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from cosyjit import Store, plan
from cosyjit.building.folders import planned_folder
from cosyjit.errors import CheckpointError
from cosyjit.folders import folder
from cosyjit.planning.target import Target
from cosyjit.torchscript.load import load_encoder
from cosyjit.torchscript.script import deprecations_ignored
from tests.support.processes import run_here
from tests.support.weights_index import assert_as_torch_loads

State = dict[str, Tensor]
Write = Callable[[State, Path], object]


class Subclass(Tensor):
    """What some libraries keep tensors in."""


def saved(change: Callable[[State], object] = lambda state: state, **options: Any) -> Write:
    def write(state: State, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of quantized tensors, and of storages
            torch.save(change(state), path, **options)

    return write


def zipped(method: int, *, folders: bool = False) -> Write:
    """Unpacked, and zipped again by another program."""

    def write(state: State, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", method) as new:
            if folders:
                new.writestr("archive/", b"")
                new.writestr("archive/data/", b"")
            for name in old.namelist():
                new.writestr(name, old.read(name))

    return write


def partly_zipped(state: State, path: Path) -> None:
    """Every second member deflated."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for number, name in enumerate(old.namelist()):
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)


def behind(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def under(name: str) -> Callable[[State], dict[str, Any]]:
    return lambda state: {name: state, "epoch": 3}


def beside(**others: Any) -> Callable[[State], dict[Any, Any]]:
    return lambda state: {**state, **others}


def attributed(state: State) -> State:
    for tensor in state.values():
        tensor.tag = "kept"  # type: ignore[attr-defined]
    return state


def parameters(state: State) -> State:
    found: State = {name: nn.Parameter(tensor) for name, tensor in state.items()}
    for parameter in found.values():
        parameter.tag = {"kept": (1, 2)}  # type: ignore[attr-defined]
    return found


def turned(state: State) -> State:
    return {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in state.items()}


CONJUGATED: Final = torch.complex(torch.ones(3), torch.arange(3.0)).conj()

OTHERS: Final[dict[Any, Any]] = {
    "set": {1, "a", (2, 3)},
    "frozenset": frozenset({1.5}),
    "complex": 1 + 2j,
    "bytes": b"\0\xff" * 300,
    "no bytes": b"",
    "bytearray": bytearray(b"abc"),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2]),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "ordered": collections.OrderedDict(a=[torch.ones(2)]),
    "time": dt.datetime(2025, 5, 1, tzinfo=dt.timezone.utc),
    "path": pathlib.PurePosixPath("/models"),
    "slice": slice(1, 2),
    "range": range(3),
    "type": int,
    "scalar": np.float64(0.5),
    "numbers": np.arange(3),
    "size": torch.Size([2, 3]),
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "optim": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]},
    (1, ("a", 2)): "a key that is a tuple",
    torch.float16: "a key that is a type",
    "type of bits": torch.bits8,
    "quantized type": torch.quint8,
    "recursive": None,
    2**70: "a large key",
    "": "no name",
    "n" * 5000: "a long name",
    "two\nlines": "a name in two lines",
}
OTHERS["recursive"] = OTHERS["ordered"]["itself"] = [OTHERS["ordered"]]

TENSORS: Final[dict[str, Any]] = {
    "expanded": torch.ones(1).expand(1 << 40),
    "conjugated": CONJUGATED,
    "negated": CONJUGATED.imag,
    "sparse": torch.eye(3).to_sparse(),
    "meta": torch.empty(2, device="meta"),
    "float8": torch.ones(2).to(torch.float8_e5m2),
    "unsigned": torch.ones(2, dtype=torch.uint16),
    "buffer": nn.Buffer(torch.ones(2)),
    "attributed": attributed({"a": torch.ones(2)})["a"],
    "sparse, attributed": attributed({"a": torch.eye(3).to_sparse()})["a"],
    "float8, attributed": attributed({"a": torch.ones(2).to(torch.float8_e5m2)})["a"],
    "storage": torch.ones(3).untyped_storage(),
    "n" * 3000: torch.ones(2),
}
"""What is passed over beside a component's tensors. Beside those of a language model it may be a part of that."""

READ: Final[dict[str, Write]] = {
    **{f"protocol {protocol}": saved(pickle_protocol=protocol) for protocol in (3, 4, 5)},
    "before torch 1.6": saved(_use_new_zipfile_serialization=False),
    "before torch 1.6, protocol 4": saved(_use_new_zipfile_serialization=False, pickle_protocol=4),
    "deflated": zipped(zipfile.ZIP_DEFLATED),
    "partly deflated": partly_zipped,
    "zipped again": zipped(zipfile.ZIP_STORED, folders=True),
    "ordered": saved(collections.OrderedDict),
    "ordered, protocol 5": saved(collections.OrderedDict, pickle_protocol=5),
    "defaulting": saved(lambda state: collections.defaultdict(None, state)),
    "attributed": saved(attributed),
    "parameters": saved(parameters),
    "turned": saved(turned),
    "among others": saved(lambda state: {**OTHERS, **state}),
    "among others, protocol 5": saved(lambda state: {**OTHERS, **state}, pickle_protocol=5),
    "among others, before torch 1.6": saved(lambda state: {**state, **OTHERS}, _use_new_zipfile_serialization=False),
    **{
        f"behind {prefix}": saved(behind(prefix)) for prefix in ("module.", "_orig_mod.", "model.", "module._orig_mod.")
    },
    **{f"under {name}": saved(under(name)) for name in ("state_dict", "model", "module", "generator")},
    "under two": saved(lambda state: {"state": {"generator": state}, **OTHERS}),
    "under and behind": saved(lambda state: {"state_dict": behind("module.")(state), "optim": OTHERS["optim"]}),
    "under and behind, before torch 1.6": saved(
        lambda state: {"model": behind("_orig_mod.")(state)}, _use_new_zipfile_serialization=False
    ),
    "beside another model": saved(lambda state: {**behind("generator.")(state), "discriminator": {"a": torch.ones(2)}}),
}
"""Writers of files that say what a plain one says."""

PLACES: Final = {
    "behind module.": 'behind "module."',
    "behind _orig_mod.": 'behind "_orig_mod."',
    "behind model.": 'behind "model."',
    "behind module._orig_mod.": 'behind "module._orig_mod."',
    **{f"under {name}": f'under "{name}"' for name in ("state_dict", "model", "module", "generator")},
    "under two": 'under "state" / "generator"',
    "under and behind": 'under "state_dict" and behind "module."',
    "under and behind, before torch 1.6": 'under "model" and behind "_orig_mod."',
    "beside another model": 'behind "generator."',
}
"""How the names in those are read, where not as they stand."""


def state_of(path: Path) -> State:
    return dict(torch.load(path, weights_only=True))


@pytest.fixture
def model(tiny: Path, copy_of: Callable[[Path], Path]) -> Path:
    """A model directory to change."""
    return copy_of(tiny)


def targets(directory: Path, store: Store, *components: str) -> list[Target]:
    return [each.target for each in plan(directory, components or None, store=store)]


def assert_same_tensors(found: Target, expected: Target) -> None:
    """The same encoder, of the same numbers, as whoever builds it has it."""
    for one, other in zip(mapped(found), mapped(expected), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])


def mapped(target: Target) -> Iterator[tuple[str, Tensor]]:
    _, tensors = load_encoder(target.source, target.component, target.options, target.reading)
    yield from sorted(tensors.items())


@pytest.mark.parametrize("form", READ)
def test_a_form_gives_what_the_plain_file_gives(form: str, tiny: Path, model: Path, store: Store) -> None:
    READ[form](state_of(tiny / "llm.pt"), model / "llm.pt")
    plain, found = (targets(directory, store, "llm.text_encoder", "llm.llm") for directory in (tiny, model))
    assert [each.fingerprint.key for each in found] == [each.fingerprint.key for each in plain]
    assert {str(each.reading) for each in found} == {PLACES.get(form, "")}
    for one, other in zip(found[::2], plain[::2], strict=True):
        assert_same_tensors(one, other)
    again = targets(model, Store(store.root), "llm.text_encoder", "llm.llm")
    assert again == found


@pytest.mark.parametrize("name", TENSORS, ids=lambda name: name[:20])
def test_tensors_of_any_kind_may_stand_beside_a_component(name: str, tiny: Path, model: Path, store: Store) -> None:
    saved(beside(**{name: TENSORS[name]}))(state_of(tiny / "llm.pt"), model / "llm.pt")
    (plain, _), (found, _) = (targets(directory, store, "llm.text_encoder") for directory in (tiny, model))
    assert found.fingerprint == plain.fingerprint
    assert_same_tensors(found, plain)


VLLM: Final = [form for form in READ if form != "beside another model"]


@pytest.mark.slow
@pytest.mark.parametrize("form", VLLM)
def test_a_form_gives_the_folder_that_the_plain_file_gives(
    form: str, tiny3: Path, copy_of: Callable[[Path], Path], store: Store, tmp_path: Path
) -> None:
    directory = copy_of(tiny3)
    READ[form](state_of(tiny3 / "llm.pt"), directory / "llm.pt")
    (plain,), (found,) = (targets(each, store) for each in (tiny3, directory))
    assert found.fingerprint == plain.fingerprint
    assert str(found.reading) == PLACES.get(form, "")
    assert written(found, tmp_path / "found") == written(plain, tmp_path / "plain")


def written(target: Target, out: Path) -> dict[str, str]:
    """The digests of a folder's files, as the gate finds them."""
    out.mkdir()
    call = planned_folder(target), target.weights_file, out, target.precision, lambda _: None, target.reading
    folder.write(*call)
    return folder.verify(*call)


@pytest.mark.parametrize("name", ["a", "conjugated", "sparse"])
def test_a_tensor_beside_a_language_model_is_unexpected(
    name: str, tiny3: Path, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copy_of(tiny3)
    saved(beside(**{name: TENSORS.get(name, torch.ones(2))}))(state_of(tiny3 / "llm.pt"), directory / "llm.pt")
    ran = run_here(capsys, "plan", directory)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        f"cosyjit: {directory}/llm.pt: llm.vllm: the tensors do not fit the configuration (1 unexpected: {name}); "
        "export a matching pair\n"
    )


def test_safetensors_stand_in_for_both_files(tiny: Path, model: Path, store: Store) -> None:
    for name in ("llm", "flow"):
        state = state_of(tiny / f"{name}.pt")
        safetensors.torch.save_file(state, model / f"{name}.safetensors", {"format": "pt", "any": "thing"})
        (model / f"{name}.pt").unlink()
    plain, found = targets(tiny, store), targets(model, store)
    assert [each.fingerprint.key for each in found] == [each.fingerprint.key for each in plain]
    assert {each.weights_file.name for each in found} == {"llm.safetensors", "flow.safetensors"}
    for one, other in zip(found, plain, strict=True):
        assert_same_tensors(one, other)


def test_a_pt_file_is_read_where_safetensors_stand_beside_it(model: Path, store: Store) -> None:
    (model / "llm.safetensors").write_bytes(b"anything")
    assert targets(model, store)[0].weights_file.name == "llm.pt"


def test_what_is_not_contiguous_or_at_an_odd_place_is_read_all_the_same(tiny: Path, model: Path, store: Store) -> None:
    state = state_of(tiny / "flow.pt")
    zeros = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items() if name.endswith("bias")}
    flat = {name: tensor.contiguous() for name, tensor in {**state, **zeros}.items()}
    torch.save({"odd": torch.ones(1, dtype=torch.uint8), **flat}, model / "flow.pt")
    (expected, _) = targets(model, store, "flow.encoder")
    legacy = saved(_use_new_zipfile_serialization=False)
    for write in (saved(), legacy, zipped(zipfile.ZIP_DEFLATED)):
        directory = Path(shutil.copytree(model, model.parent / "other", dirs_exist_ok=True))
        write({"odd": torch.ones(1, dtype=torch.uint8), **state, **zeros}, directory / "flow.pt")
        (found, _) = targets(directory, store, "flow.encoder")
        assert found.fingerprint == expected.fingerprint
        assert_same_tensors(found, expected)


# What is told of it.


def test_a_reading_is_told_in_output_and_record(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(lambda state: {"state_dict": behind("module.")(state)})(state_of(model / "flow.pt"), model / "flow.pt")
    only = "--component", "flow.encoder", "--precision", "fp16"
    place = 'under "state_dict" and behind "module."'
    told = f"cosyjit: {model}/flow.pt: its tensors stand {place}, and are read from there\n"
    for command in ("plan", "export", "export"):
        ran = run_here(capsys, command, model, *only)
        assert (ran.status, ran.err) == (0, told)
    ran = run_here(capsys, "lineage", model / "flow.encoder.fp16.zip")
    assert f"flow.pt read {place}" in ran.out
    assert run_here(capsys, "verify", model).out == "Nothing is wrong\n"
    assert run_here(capsys, "status", model).status == 0
    ran = run_here(capsys, "plan", model, *only, "--json")
    assert '"reading": "under \\"state_dict\\" and behind \\"module.\\""' in ran.out


def refusal(capsys: pytest.CaptureFixture[str], directory: Path, *arguments: object) -> str:
    ran = run_here(capsys, "plan", directory, *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    return ran.err


def mended(message: str, path: Path) -> None:
    """Run the command in a message, and put what it writes in its place, as who reads it would."""
    before = path.read_bytes()
    command, _, _ = message[message.index("python -c ") :].partition(f" writes {path.name}.new without that)")
    arguments = shlex.split(command)
    done = subprocess.run([sys.executable, *arguments[1:]], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert path.read_bytes() == before
    Path(f"{path}.new").replace(path)


@pytest.mark.slow
def test_one_of_several_readings_is_to_be_chosen(
    tiny: Path, model: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_of(model / "llm.pt")
    saved(lambda state: {"model": state, "ema": {k: v.clone() for k, v in state.items()}})(state, model / "llm.pt")
    message = refusal(capsys, model)
    assert message.startswith(
        f'cosyjit: {model}/llm.pt: has fitting tensors under "model"; under "ema"; keep one of these'
    )
    mended(message, model / "llm.pt")
    assert [each.fingerprint for each in targets(model, store)] == [each.fingerprint for each in targets(tiny, store)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "place"),
    [
        (behind("module."), 'behind "module."'),
        (lambda state: {"state_dict": state}, 'under "state_dict"'),
        (lambda state: {"it's": behind('a "b" $HOME `x`.')(state)}, 'under "it\'s" and behind "a \\"b\\" $HOME `x`."'),
    ],
    ids=["behind", "under", "quoted"],
)
def test_where_no_reading_fits_the_nearest_is_named_with_what_mends_it(
    change: Callable[[State], object], place: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model / "llm.pt"
    state = state_of(path)
    kept = {name: tensor for name, tensor in state.items() if name != "llm.after_norm.bias"}
    torch.save(change(kept), path)
    message = refusal(capsys, model)
    assert message.startswith(
        f"cosyjit: {path}: llm.llm: the tensors do not fit the configuration (1 missing: llm.after_norm.bias); "
        f"export a matching pair; its names were read {place} (python -c "
    )
    mended(message, path)
    assert state_of(path).keys() == kept.keys()
    assert refusal(capsys, model).endswith("(1 missing: llm.after_norm.bias); export a matching pair\n")


def test_a_prefix_is_not_blamed_on_the_base_configuration(
    tiny2: Path, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copy_of(tiny2)
    state = state_of(directory / "llm.pt")
    del state["llm_decoder.weight"]
    torch.save(behind("module.")(state), directory / "llm.pt")
    message = refusal(capsys, directory, "--component", "llm.vllm")
    assert message.startswith(f"cosyjit: {directory}/llm.pt: llm.vllm: the tensors do not fit")
    assert '(1 missing: llm_decoder.weight); export a matching pair; its names were read behind "module." (' in message


def test_names_that_fit_as_they_stand_are_not_read_in_another_way(model: Path, tiny: Path, store: Store) -> None:
    others = {name: torch.zeros_like(tensor) for name, tensor in state_of(tiny / "llm.pt").items()}
    saved(beside(**behind("ema.")(others), model=others))(state_of(tiny / "llm.pt"), model / "llm.pt")
    assert [each.fingerprint for each in targets(model, store)] == [each.fingerprint for each in targets(tiny, store)]
    assert {str(each.reading) for each in targets(model, store)} == {""}


def test_what_was_read_in_one_way_is_read_anew_for_another_configuration(model: Path, store: Store) -> None:
    state = state_of(model / "llm.pt")
    shorter = {name: tensor for name, tensor in state.items() if not name.startswith("llm.encoders.2.")}
    torch.save({"large": state, "small": shorter}, model / "llm.pt")
    assert {str(each.reading) for each in targets(model, store, "llm.llm")} == {'under "large"'}
    config = model / "cosyvoice.yaml"
    config.write_text(config.read_text().replace("num_blocks: 3", "num_blocks: 2"))
    assert {str(each.reading) for each in targets(model, store, "llm.llm")} == {'under "small"'}


def test_a_reading_of_both_components_is_one_for_both(model: Path, store: Store) -> None:
    state = state_of(model / "llm.pt")
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("text_encoder.")}
    torch.save({"all": state, "part": encoder}, model / "llm.pt")
    assert {str(each.reading) for each in targets(model, store)} == {'under "all"', ""}


# What cannot be read is named.


POINTER: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567890\n"
PAGE: Final = b"\n <!DOCTYPE html>\n<html><head><title>404</title></head></html>"

MISTAKEN: Final = {
    "a pointer": (
        POINTER,
        "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download",
    ),
    "a page": (PAGE, "is a web page, not the file itself; download it again"),
    "an answer": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "is a web page, not the file itself",
    ),
    "nothing": (b"", "is empty; copy or download it again"),
    "a gzip archive": (b"\x1f\x8b\x08" + bytes(100), "is a gzip archive; unpack it"),
    "a text": (b'{"error": "no access"}\n', 'is a text, not weights ({"error": "no access"}); download it again'),
}


@pytest.mark.parametrize("name", ["llm.pt", "flow.pt", "cosyvoice.yaml"])
@pytest.mark.parametrize("kind", ["a pointer", "a page", "an answer", "nothing", "a gzip archive"])
def test_what_stands_in_place_of_a_file_is_named(
    kind: str, name: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = MISTAKEN[kind]
    (model / name).write_bytes(content)
    assert refusal(capsys, model).startswith(f"cosyjit: {model / name}: {words}")


@pytest.mark.parametrize(
    "name", ["llm.pt", "CosyVoice-BlankEN/config.json", "CosyVoice-BlankEN/generation_config.json"]
)
@pytest.mark.parametrize("kind", ["a pointer", "a page", "nothing"])
def test_what_stands_in_place_of_a_file_of_the_language_model_is_named(
    kind: str, name: str, tiny3: Path, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copy_of(tiny3)
    content, words = MISTAKEN[kind]
    (directory / name).write_bytes(content)
    assert refusal(capsys, directory).startswith(f"cosyjit: {directory / name}: {words}")


@pytest.mark.parametrize("kind", MISTAKEN)
def test_what_stands_in_place_of_safetensors_is_named(
    kind: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "llm.pt").unlink()
    content, words = MISTAKEN[kind]
    (model / "llm.safetensors").write_bytes(content)
    words = words if kind != "a text" else "is damaged (its head has "
    assert refusal(capsys, model).startswith(f"cosyjit: {model}/llm.safetensors: {words}")


def test_files_under_each_other_s_names_are_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of(model / "llm.pt")
    safetensors.torch.save_file(state, model / "llm.pt")
    message = f"cosyjit: {model}/llm.pt: is a safetensors file; name it llm.safetensors\n"
    assert refusal(capsys, model, "--component", "llm.llm") == message
    (model / "llm.pt").unlink()
    torch.save(state, model / "llm.safetensors")
    message = f"cosyjit: {model}/llm.safetensors: is a file of torch.save; name it llm.pt\n"
    assert refusal(capsys, model, "--component", "llm.llm") == message


def test_a_directory_of_deepspeed_is_named_with_its_converter(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "llm.pt"
    path.unlink()
    path.mkdir()
    assert refusal(capsys, model) == f"cosyjit: {path}: is a directory; put the weights file there\n"
    for name in ("latest", "mp_rank_00_model_states.pt"):  # the directory of a tag; the converter stands above it
        (path / name).touch()
    way_out = "make one file of it with zero_to_fp32.py, the converter that DeepSpeed leaves in it or in the directory"
    message = (
        f"cosyjit: {path}: is a directory that DeepSpeed saved; {way_out} above it, and put that file in its place\n"
    )
    assert refusal(capsys, model) == message
    (path / "mp_rank_00_model_states.pt").rename(path / "zero_to_fp32.py")
    assert refusal(capsys, model) == message


class Whole(nn.Module):
    """A module that is pickled as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


LINES: Final = "save its state dictionary, and put that in its place: import torch; m = torch."


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"_use_new_zipfile_serialization": False}, marks=pytest.mark.slow),
        pytest.param({"pickle_protocol": 5}, marks=pytest.mark.slow),
    ],
)
def test_a_whole_module_is_refused_with_the_lines_that_save_its_state(
    options: dict[str, Any], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model / "llm.pt"
    torch.save(nn.Sequential(nn.Linear(2, 2)), path, **options)
    message = refusal(capsys, model)
    assert "if it is a whole module and you trust its maker, " + LINES in message
    code = message[message.index("import torch") :]
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert list(state_of(Path(f"{path}.new"))) == ["0.weight", "0.bias"]


@pytest.mark.slow
def test_a_torchscript_archive_is_refused_with_the_lines_that_save_its_state(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model / "llm.pt"
    with deprecations_ignored():
        torch.jit.save(torch.jit.script(Whole()), path)
    message = refusal(capsys, model)
    assert message.startswith(f"cosyjit: {path}: is a TorchScript archive; {LINES}jit.load")
    code = message[message.index("import torch") :]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
    assert list(state_of(Path(f"{path}.new"))) == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {**state, "llm.after_norm.bias": TENSORS["sparse"]},
            "(not a plain tensor: Tensor, sparse instead",
        ),
        (
            lambda state: {**state, "llm.after_norm.bias": CONJUGATED.imag},
            "llm.after_norm.bias (not a plain tensor: Tensor, conjugated or negated instead of (64,))",
        ),
        (
            lambda state: {**state, "llm.after_norm.bias": torch.ones(1).expand(1 << 40)},
            "has a tensor of more than 1073741824 bytes that is not contiguous; save it again with tensor.contiguous()",
        ),
    ],
    ids=["sparse", "negated", "expanded"],
)
def test_a_component_s_tensor_that_is_not_plain_is_named(
    change: Callable[[State], object], words: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(change)(state_of(model / "llm.pt"), model / "llm.pt")
    assert words in refusal(capsys, model)


def test_what_inflates_to_far_more_than_its_size_is_refused(
    tiny: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state_of(tiny / "llm.pt").items()}
    zipped(zipfile.ZIP_DEFLATED)(zeros, model / "llm.pt")
    message = refusal(capsys, model, "--component", "llm.llm")
    assert message.startswith(f"cosyjit: {model}/llm.pt: is deflated, and its tensors take ")


def test_there_has_to_be_room_to_inflate(
    tiny: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(zipfile.ZIP_DEFLATED)(state_of(tiny / "llm.pt"), model / "llm.pt")
    message = f"cosyjit: {model}/llm.pt: is deflated, and cannot be inflated among temporary files"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, hard))
    try:
        found = refusal(capsys, model, "--component", "llm.llm")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found.startswith(f"{message} (File too large); set TMPDIR to a directory with room, or load it")
    monkeypatch.setattr("tempfile.tempdir", "/dev/full/none")
    assert refusal(capsys, model, "--component", "llm.llm").startswith(f"{message} (Not a directory); set TMPDIR")


def test_a_deflated_file_that_is_damaged_is_said_to_be(
    tiny: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zipped(zipfile.ZIP_DEFLATED)(state_of(tiny / "llm.pt"), model / "llm.pt")
    content = bytearray((model / "llm.pt").read_bytes())
    with zipfile.ZipFile(model / "llm.pt") as archive:
        places = [member.header_offset + 200 for member in archive.infolist() if member.compress_size > 300]
    for at in places[1:]:
        content[at : at + 50] = bytes(50)
    (model / "llm.pt").write_bytes(content)
    assert f"{model}/llm.pt: is damaged (" in refusal(capsys, model)


def test_a_legacy_file_of_a_part_of_a_storage_is_read(tmp_path: Path) -> None:
    """Torch writes a whole storage, whatever part of it a tensor is."""
    whole = torch.arange(24.0)
    state = {"a": whole[4:10].view(2, 3), "b": whole.view(4, 6).t(), "c": torch.tensor(True), "d": torch.empty(0)}
    torch.save(state, tmp_path / "llm.pt", _use_new_zipfile_serialization=False)
    assert_as_torch_loads((tmp_path / "llm.pt").read_bytes())


class Made:
    """What is pickled as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def reattributed(attributes: object) -> Callable[[State], dict[str, Any]]:
    """Parameters whose attributes are set when they are loaded."""
    rebuild = torch._utils._rebuild_parameter_with_state
    return lambda state: {name: Made(rebuild, tensor, False, {}, attributes) for name, tensor in state.items()}


@pytest.mark.parametrize("attributes", [{"data": torch.ones(2)}, ({}, {"real": torch.ones(2)}), {"__class__": 1}])
def test_attributes_that_change_a_tensor_are_not_passed_over(
    attributes: object, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(reattributed(attributes))(state_of(model / "flow.pt"), model / "flow.pt")
    words = "not a plain tensor: Tensor, changed by its attributes instead of"
    assert words in refusal(capsys, model, "--component", "flow.encoder")


def test_what_was_planned_before_does_not_decide_how_names_are_read(model: Path, store: Store) -> None:
    state = state_of(model / "llm.pt")
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("text_encoder.")}
    doubled = {name: 2 * tensor for name, tensor in state.items()}
    torch.save({**encoder, "model": doubled}, model / "llm.pt")
    (alone, _) = targets(model, Store(f"{store.root}/other"), "llm.text_encoder")
    assert {str(each.reading) for each in targets(model, store, "llm.llm", "llm.text_encoder")} == {'under "model"'}
    assert targets(model, store, "llm.text_encoder")[0].fingerprint == alone.fingerprint
    torch.save({"model": state, "ema": encoder}, model / "llm.pt")
    assert {str(each.reading) for each in targets(model, store, "llm.llm", "llm.text_encoder")} == {'under "model"'}
    with pytest.raises(CheckpointError, match='has fitting tensors under "model"; under "ema"'):
        targets(model, store, "llm.text_encoder")


def test_what_stands_whole_is_not_looked_for_elsewhere(
    model: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_of(model / "llm.pt")
    torch.save({**state, "llm.more": torch.zeros(3), "ema": state}, model / "llm.pt")
    assert "(1 unexpected: llm.more); export a matching pair\n" in refusal(capsys, model)
    assert "llm.text_encoder.fp32" in {each.name for each in targets(model, store, "llm.text_encoder")}


@pytest.mark.slow
def test_what_mends_safetensors_leaves_them_as_they_are(
    model: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_of(model / "llm.pt")
    (model / "llm.pt").unlink()
    path = model / "llm.safetensors"
    twice = {prefix + name: tensor.clone() for prefix in ("a.", "b.") for name, tensor in state.items()}
    safetensors.torch.save_file(twice, path)
    mended(refusal(capsys, model), path)
    assert {str(each.reading) for each in targets(model, store)} == {""}


def test_a_name_that_is_no_tensor_s_does_not_hide_a_prefix(model: Path, store: Store) -> None:
    saved(lambda state: {**behind("m.")(state), "epoch": 1, "m.epoch": 2})(state_of(model / "llm.pt"), model / "llm.pt")
    assert {str(each.reading) for each in targets(model, store, "llm.llm")} == {'behind "m."'}


def test_more_prefixes_than_anyone_has_are_not_tried_one_by_one(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_of(model / "flow.pt")
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    torch.save({f"{i}.{name}": tensor for i in range(20) for name, tensor in encoder.items()}, model / "flow.pt")
    found = refusal(capsys, model, "--component", "flow.encoder")
    assert 'has fitting tensors behind "0."; behind "1."; behind "2."; …; keep one of these' in found
