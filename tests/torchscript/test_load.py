"""What is taken from weights files, and what is refused and how it is said."""

import contextlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from cosyjit.errors import CheckpointError, ConfigError, InputError, TensorMismatchError, UnsupportedOptionError
from cosyjit.families import FAMILIES
from cosyjit.torchscript.script import deprecations_ignored
from tests.support.checkpoints import loaded
from tests.support.gadgets import PICKLED
from tests.support.weights_index import indexed_file

Copy = Callable[[Path], Path]
Gadget = Callable[[str], object]

COMPONENTS: Final = [
    (index, component) for index in (0, 1) for component in FAMILIES[index].components if component.kind == "zip"
]


def load(directory: Path, name: str) -> dict[str, Tensor]:
    _, tensors = loaded(directory, name)
    return tensors


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def change(path: Path, **entries: object) -> None:
    """Set entries of a weights file, by their names with `__` for the dots; None takes one out."""
    state = torch.load(path, weights_only=True)
    for name, value in entries.items():
        state[name.replace("__", ".")] = value
    torch.save({name: value for name, value in state.items() if value is not None}, path)


def refused(kind: type[InputError], directory: Path, name: str, *words: str) -> str:
    """The message of the error that loading a component raises, which is one line with these words in it."""
    with pytest.raises(InputError) as error:
        load(directory, name)
    assert type(error.value) is kind
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    return message


def unreadable(path: Path, content: bytes, *words: str) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        indexed_file(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize(("family", "component"), COMPONENTS)
def test_each_component_loads_strictly(family: int, component: Any, tiny: Path, tiny2: Path) -> None:
    directory = (tiny, tiny2)[family]
    encoder, tensors = loaded(directory, component.name)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert not encoder.training
    encoder.load_state_dict(tensors, strict=True, assign=True)
    state = torch.load(directory / component.weights, weights_only=True)
    expected = {name: tensor for name, tensor in state.items() if name.startswith(component.prefix)}
    found = {component.prefix + name: tensor for name, tensor in encoder.state_dict().items()}
    assert found.keys() == expected.keys()
    assert len(found) > 30
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["llm.llm", "flow.encoder"])
def test_tensors_are_mapped_from_the_file(name: str, tiny: Path) -> None:
    tensors = load(tiny, name)
    file = str(tiny / f"{name.partition('.')[0]}.pt")
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in lines if line[-1] == file]
    assert ranges
    for tensor in tensors.values():
        assert any(start <= tensor.data_ptr() < end for start, end in ranges)


def test_no_other_tensor_is_wanted_or_looked_at(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    path = directory / "llm.pt"
    state = torch.load(path, weights_only=True)
    for name in list(state):
        if not name.startswith("llm."):
            state[name] = torch.full((1,), float("nan")).to(torch.float16)
    del state["text_encoder.after_norm.weight"], state["llm_decoder.weight"]
    state |= {"llm_decoder.bias": 5, "llmx": "text", "text_encoder.embed": None, 7: [1], "": torch.eye(2).to_sparse()}
    torch.save(state, path)
    (directory / "flow.pt").unlink()
    assert load(directory, "llm.llm").keys() == load(tiny, "llm.llm").keys()
    refused(TensorMismatchError, directory, "llm.text_encoder", "text_encoder.after_norm.weight")


def test_what_training_leaves_beside_the_tensors_is_ignored(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    change(directory / "llm.pt", epoch=12, step=34_567)
    change(directory / "flow.pt", epoch=12, step=34_567)
    for component in (part for part in FAMILIES[0].components if part.kind == "zip"):
        assert load(directory, component.name).keys() == load(tiny, component.name).keys()


def test_other_floating_point_types_are_accepted(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    path = directory / "flow.pt"
    state = torch.load(path, weights_only=True)
    dtypes = (torch.float16, torch.bfloat16, torch.float64)
    torch.save({name: value.to(dtypes[i % 3]) for i, (name, value) in enumerate(state.items())}, path)
    assert {tensor.dtype for tensor in load(directory, "flow.encoder").values()} == set(dtypes)


def test_a_missing_file_is_said_to_be_missing(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    path = directory / "flow.pt"
    path.unlink()
    message = f"{path}: does not exist; put the weights file beside the configuration"
    assert refused(CheckpointError, directory, "flow.encoder") == message
    path.mkdir()
    refused(CheckpointError, directory, "flow.encoder", f"{path}: ")


def test_an_empty_file_is_said_to_be_empty(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    path = directory / "flow.pt"
    path.write_bytes(b"")
    assert refused(CheckpointError, directory, "flow.encoder") == f"{path}: is empty; copy or download it again"


@pytest.mark.parametrize("kept", [1, 3, 4, 40, 1000, 0.1, 0.5, 0.9, 0.99, 0.999, -100, -22, -1])
def test_a_truncated_file_is_damaged(kept: float, tiny: Path, tmp_path: Path) -> None:
    content = (tiny / "llm.pt").read_bytes()
    content = content[: int(kept * len(content)) if isinstance(kept, float) else kept]
    unreadable(tmp_path / "llm.pt", content, "is damaged", "copy or download it again")


GARBAGE: Final = {
    "random": bytes((i * i * 7 + i // 3) % 256 for i in range(5000)),
    "zeros": bytes(1000),
    "zip header": b"PK\x03\x04" + bytes(100),
    "half a legacy file": saved({"a": torch.ones(3)}, _use_new_zipfile_serialization=False)[:-1],
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_zip_of_torch_save_is_damaged(content: bytes, tmp_path: Path) -> None:
    unreadable(tmp_path / "llm.pt", content, "is damaged (")


class Scripted(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_torchscript_archive_is_refused_before_torch_loads_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with deprecations_ignored():
        torch.jit.save(torch.jit.script(Scripted()), buffer)
    unreadable(tmp_path / "llm.pt", buffer.getvalue(), "is a TorchScript archive", "save its state dictionary, ")


def test_a_directory_in_place_of_the_weights_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"llm\.pt: is a directory; put the weights file there"):
        indexed_file(tmp_path / "llm.pt")


def test_a_tensor_without_numbers_does_not_fit(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    state = torch.load(directory / "flow.pt", weights_only=True)
    torch.save(state | {"encoder.after_norm.bias": torch.empty(64, device="meta")}, directory / "flow.pt")
    with pytest.raises(TensorMismatchError, match=r"encoder\.after_norm\.bias \(not a plain tensor: Tensor with"):
        loaded(directory, "flow.encoder")


def test_a_zip_of_something_else_is_named(tmp_path: Path) -> None:
    other = "a zip archive, not a file of torch.save; save a state dictionary with torch.save"
    for name, words in (("text", other), ("a/version", other), ("archive/data.pkl", "damaged (")):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, "3")
        unreadable(tmp_path / "llm.pt", buffer.getvalue(), f"is {words}")


def test_no_damage_to_the_index_of_tensors_raises_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "llm.pt"
    content = bytearray(saved({"a": torch.zeros(2, 3), "b": torch.zeros(1)}))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        index = archive.read("archive/data.pkl")
    start = content.index(index)
    for i in range(start, start + len(index)):
        original = content[i]
        for content[i] in (original ^ 1, original ^ 64, 0x6A):
            path.write_bytes(content)
            with contextlib.suppress(CheckpointError), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of other pickle protocols
                assert isinstance(indexed_file(path), dict)
        content[i] = original


@pytest.mark.parametrize("gadget", PICKLED)
@pytest.mark.parametrize("place", ["entry", "inner", "key", "whole"])
def test_a_pickle_that_would_run_code_does_not(gadget: Gadget, place: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "llm.pt"
    evil = gadget(str(marker))
    tensor = torch.ones(3)
    values = {"entry": {"a": tensor, "b": evil}, "inner": {"a": [tensor, {"b": evil}]}, "key": {evil: tensor}}
    content = saved(values.get(place, evil))
    message = unreadable(path, content, "holds more than tensors, which loading could run as code (")
    is_class = place == "whole" and gadget.__name__ == "Restored"
    lines = f'import torch; m = torch.load("{path}", map_location="cpu", weights_only=False); '
    lines += f'torch.save(m.state_dict(), "{path}" + ".new")'
    way_out = f"save its state dictionary, and put that in its place: {lines}"
    module = f"if it is a whole module and you trust its maker, {way_out}"
    assert message.endswith(f"); {module if is_class else 'save it as a flat state dictionary'}")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("gadget", PICKLED)
def test_a_legacy_pickle_that_would_run_code_does_not(gadget: Gadget, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "llm.pt"
    unreadable(path, saved({"a": gadget(str(marker))}, _use_new_zipfile_serialization=False))
    unreadable(path, pickle.dumps({"a": gadget(str(marker))}))
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("value", [[torch.ones(2)], torch.ones(2), None, 5, "text"], ids=repr)
def test_what_is_no_dictionary_is_named(value: object, tmp_path: Path) -> None:
    unreadable(tmp_path / "llm.pt", saved(value), f"holds a {type(value).__name__}; save it as a flat state dictionary")


def test_every_tensor_that_does_not_fit_is_listed_at_once(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    path = directory / "llm.pt"
    change(
        path,
        llm__after_norm__weight=None,
        llm__encoders__0__self_attn__linear_k__bias=None,
        llm__encoders__9__norm1__weight=torch.ones(64),
        llm__surplus=torch.ones(2),
        llm__after_norm__bias=torch.zeros(65),
        llm__embed__out__0__weight=torch.zeros(64, 64, dtype=torch.int64),
        llm__embed__out__0__bias=7,
        llm__encoders__0__norm1__weight=torch.ones(64, dtype=torch.bool),
        llm__encoders__0__norm1__bias="text",
        llm__encoders__0__norm2__weight=torch.ones(64).to_sparse(),
        llm__encoders__0__norm2__bias=torch.zeros(64, 1),
    )
    message = refused(TensorMismatchError, directory, "llm.llm", "; export a matching pair")
    assert message.startswith(f"{path}: llm.llm: the tensors do not fit the configuration (2 missing: ")
    missing, unexpected, misshapen = message.rpartition(");")[0].split("; ")
    assert missing.endswith("2 missing: llm.encoders.0.self_attn.linear_k.bias, llm.after_norm.weight")
    assert unexpected == "2 unexpected: llm.encoders.9.norm1.weight, llm.surplus"
    assert misshapen.startswith("7 of another shape: ")
    assert misshapen.endswith(", …")
    with pytest.raises(TensorMismatchError) as error:
        load(directory, "llm.llm")
    assert set(error.value.misshapen) == {
        "llm.after_norm.bias ((65,) instead of (64,))",
        "llm.embed.out.0.weight (int64 (64, 64) instead of (64, 64))",
        "llm.embed.out.0.bias (not a plain tensor: int instead of (64,))",
        "llm.encoders.0.norm1.weight (bool (64,) instead of (64,))",
        "llm.encoders.0.norm1.bias (not a plain tensor: str instead of (64,))",
        "llm.encoders.0.norm2.weight (not a plain tensor: Tensor, sparse instead of (64,))",
        "llm.encoders.0.norm2.bias ((64, 1) instead of (64,))",
    }


def test_a_configuration_of_another_depth_does_not_fit(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    config = directory / "cosyvoice.yaml"
    config.write_text(config.read_text().replace("num_blocks: 3", "num_blocks: 2"))
    words = ("llm.pt: llm.llm: ", "unexpected: llm.encoders.2.", "export a matching pair")
    assert "missing" not in refused(TensorMismatchError, directory, "llm.llm", *words)


def test_a_component_of_another_class_is_refused(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    config = directory / "cosyvoice.yaml"
    right, wrong = (f"cosyvoice.transformer.encoder.{kind}Encoder" for kind in ("Transformer", "Conformer"))
    config.write_text(config.read_text().replace(right, wrong))
    assert refused(ConfigError, directory, "llm.llm") == f"{config}: llm.llm is a {wrong}; supported: {right}"


LAYER: Final = "input_layer: 'linear_legacy'"
CHUNK: Final = "static_chunk_size: 1"


@pytest.mark.parametrize(
    ("line", "changed", "words"),
    [
        (LAYER, "input_layer: conv2d", ["option input_layer is conv2d", "supported: linear or linear_legacy"]),
        (LAYER, "input_layer: !PLACEHOLDER", ["option input_layer is !PLACEHOLDER", "linear or linear_legacy"]),
        (LAYER, "input_layer: !unknown {a: 1}", ["option input_layer is !unknown", "linear or linear_legacy"]),
        (LAYER, "input_layer: !apply:f []", ["option input_layer is !apply:f", "linear or linear_legacy"]),
        (LAYER, 'input_layer: "two\\nlines"', ["option input_layer is ", "supported: linear or linear_legacy"]),
        (CHUNK, "static_chunk_size: -1", ["option static_chunk_size is -1", "supported: an integer from 0 to 65536"]),
        (CHUNK, "normalize_before: 1", ["option normalize_before is 1", "supported: true or false"]),
        (CHUNK, "cnn_module_kernel: 15", ["option cnn_module_kernel is 15", "the options are ", "key_bias"]),
        (CHUNK, '"two\\nlines": 15', ["supported: the options are "]),
    ],
)
def test_an_unsupported_option_is_named_with_what_is_supported(
    line: str, changed: str, words: list[str], tiny: Path, copy_of: Copy
) -> None:
    directory = copy_of(tiny)
    config = directory / "cosyvoice.yaml"
    before, found, after = config.read_text().rpartition(line)
    assert found
    config.write_text(before + changed + after)
    refused(UnsupportedOptionError, directory, "llm.llm", f"{config}: llm.llm: ", *words)


@pytest.mark.parametrize("name", ["llm.text_encoder", "flow.encoder"])
def test_a_component_that_the_configuration_lacks_is_refused(name: str, tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    config = directory / "cosyvoice.yaml"
    node = f"    {name.partition('.')[2]}: !new:"
    assert config.read_text().count(node) == 1
    config.write_text(config.read_text().replace(node, "    other: !new:"))
    refused(ConfigError, directory, name, f"{config}: {name} ")
