"""The base configuration beside a language model: what is read of it, and how what is wrong is said."""

import json
import os
from pathlib import Path

import pytest

from cosyjit.configuration.base_model import read_qwen2_config
from cosyjit.errors import ConfigError

FILES = ("config.json", "generation_config.json")

CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory with nothing but a base configuration."""
    (tmp_path / "CosyVoice-BlankEN").mkdir()
    for name in FILES:
        (tmp_path / "CosyVoice-BlankEN" / name).write_text(json.dumps({**CONFIG, "of": name}))
    return tmp_path


def with_config(directory: Path, **changes: object) -> None:
    """Write the configuration with other entries."""
    (directory / "CosyVoice-BlankEN" / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def refusal(directory: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_qwen2_config(directory)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    return message


def test_the_two_files_are_read_as_they_are(directory: Path) -> None:
    base = read_qwen2_config(directory)
    assert base.path == directory / "CosyVoice-BlankEN" / "config.json"
    assert base.config == {**CONFIG, "of": "config.json"}
    assert base.generation == {**CONFIG, "of": "generation_config.json"}


def test_the_sizes_are_those_of_the_configuration(directory: Path) -> None:
    base = read_qwen2_config(directory)
    assert (base.hidden_size, base.intermediate_size, base.num_hidden_layers, base.vocab_size) == (64, 128, 2, 256)
    assert (base.num_attention_heads, base.num_key_value_heads, base.head_dim) == (4, 2, 16)
    assert base.tie_word_embeddings is False


def test_a_width_of_heads_that_is_given_counts(directory: Path) -> None:
    with_config(directory, head_dim=32, tie_word_embeddings=True)
    assert read_qwen2_config(directory).head_dim == 32
    assert read_qwen2_config(directory).tie_word_embeddings is True


def test_the_base_of_a_stand_in_is_read(tiny2: Path, tiny3: Path) -> None:
    for tiny in (tiny2, tiny3):
        base = read_qwen2_config(tiny)
        assert base.config == json.loads((tiny / "CosyVoice-BlankEN" / "config.json").read_text())
        assert base.hidden_size == 64


def test_a_directory_without_the_folder_is_told_what_belongs_there(tmp_path: Path) -> None:
    expected = (
        f"{tmp_path}: has no folder CosyVoice-BlankEN; put the one that was published with the weights, "
        "with config.json and generation_config.json, beside them"
    )
    assert refusal(tmp_path) == expected
    (tmp_path / "CosyVoice-BlankEN").write_text("a file")
    assert refusal(tmp_path) == expected


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(name: str, directory: Path) -> None:
    path = directory / "CosyVoice-BlankEN" / name
    path.unlink()
    assert refusal(directory) == f"{path}: does not exist; copy or download it again"


@pytest.mark.parametrize("name", FILES)
def test_a_directory_in_place_of_a_file_cannot_be_read(name: str, directory: Path) -> None:
    path = directory / "CosyVoice-BlankEN" / name
    path.unlink()
    path.mkdir()
    assert refusal(directory) == f"{path}: cannot be read (Is a directory); make it readable"


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name: str, directory: Path) -> None:
    path = directory / "CosyVoice-BlankEN" / name
    path.unlink()
    os.mkfifo(path)
    assert refusal(directory) == f"{path}: is not a file; copy or download it again"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b" ", "is not JSON (Expecting value: line 1 column 2 (char 1))"),
        (b"version 1\noid sha256:0\nsize 1\n", "is not JSON (Expecting value"),
        (b'{"a": 1', "is not JSON ("),
        (b'{"a": 1} {"a": 1}', "is not JSON (Extra data"),
        (b'{"a": NaN}', "is not JSON (NaN is not a JSON number)"),
        (b'{"a": -Infinity}', "is not JSON (-Infinity is not a JSON number)"),
        (b'{"a": 1e999}', "is not JSON (Out of range float values are not JSON compliant"),
        (b'{"a": %s}' % (b"9" * 5000), "is not JSON (Exceeds the limit (4300 digits)"),
        (b"[" * 100_000, "is not JSON (maximum recursion depth exceeded"),
        (b'{"a": "\xff\xfe"}', "is not JSON ('utf-8' codec can't decode byte 0xff"),
        (b"[1, 2]", "holds a list instead of an object"),
        (b'"text"', "holds a str instead of an object"),
        (b"null", "holds a NoneType instead of an object"),
        (b'{"a": "%s"}' % (b" " * (1 << 20)), "has more than 1,048,576 bytes"),
    ],
    ids=range(14),
)
@pytest.mark.parametrize("name", FILES)
def test_what_is_not_an_object_of_json_is_refused(name: str, content: bytes, words: str, directory: Path) -> None:
    path = directory / "CosyVoice-BlankEN" / name
    path.write_bytes(content)
    message = refusal(directory)
    assert message.startswith(f"{path}: {words}")
    assert message.endswith("; copy or download it again")


@pytest.mark.parametrize(
    ("value", "shown"),
    [("896", '"896"'), (896.0, "896.0"), (True, "true"), (0, "0"), (-1, "-1"), (None, "null"), ([64], "[64]")],
)
@pytest.mark.parametrize("name", [name for name in CONFIG if name not in {"model_type", "architectures"}])
def test_a_size_that_is_not_a_positive_integer_is_refused(
    name: str, value: object, shown: str, directory: Path
) -> None:
    with_config(directory, **{name: value})
    path = directory / "CosyVoice-BlankEN" / "config.json"
    assert refusal(directory) == f"{path}: {name} is {shown}; supported: a positive integer"


def test_a_size_that_is_not_there_is_named(directory: Path) -> None:
    path = directory / "CosyVoice-BlankEN" / "config.json"
    path.write_text(json.dumps({name: value for name, value in CONFIG.items() if name != "vocab_size"}))
    assert refusal(directory) == f"{path}: has no vocab_size; take the file that belongs to the base model"


def test_a_long_value_is_not_shown_whole(directory: Path) -> None:
    with_config(directory, hidden_size="x" * 9999)
    assert "hidden_size" in refusal(directory)


def test_a_link_to_the_folder_will_do(directory: Path) -> None:
    base = directory / "CosyVoice-BlankEN"
    base.symlink_to(base.rename(directory / "elsewhere"))
    assert read_qwen2_config(directory).hidden_size == 64
