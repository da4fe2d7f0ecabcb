"""The rules of vLLM's folder: what goes into it from where, what stays out, and what fits no rule."""

import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from cosyjit.configuration.base_model import read_qwen2_config
from cosyjit.errors import CheckpointError, ConfigError, TensorMismatchError
from cosyjit.families import PRECISIONS
from cosyjit.fs.digests import Digests
from cosyjit.provenance.fingerprint import canonical
from cosyjit.vllm.rules import Folder, plan_folder
from cosyjit.weights.pickle_reader import Other
from cosyjit.weights.tensor_digests import read_tensors
from cosyjit.weights.tensors import Entries, StoredTensor
from tests.support.language_models import refused
from tests.support.vllm_folders import FILES, FOLDERS, component_of, entries_of, planned

LAYER: Final = {
    "input_layernorm.weight": (64,),
    "self_attn.q_proj.weight": (64, 64),
    "self_attn.q_proj.bias": (64,),
    "self_attn.k_proj.weight": (32, 64),
    "self_attn.k_proj.bias": (32,),
    "self_attn.v_proj.weight": (32, 64),
    "self_attn.v_proj.bias": (32,),
    "self_attn.o_proj.weight": (64, 64),
    "post_attention_layernorm.weight": (64,),
    "mlp.gate_proj.weight": (128, 64),
    "mlp.up_proj.weight": (128, 64),
    "mlp.down_proj.weight": (64, 128),
}

Copy = Callable[[Path], Path]


@pytest.fixture
def base_of(copy_of: Copy) -> Callable[..., Path]:
    """Copies a stand-in without its weights, and changes what its base configuration says; None takes an entry out."""

    def change(directory: Path, **options: Any) -> Path:
        copy = copy_of(directory / "CosyVoice-BlankEN").parent
        (yaml,) = directory.glob("*.yaml")
        shutil.copy(yaml, copy)
        path = copy / "CosyVoice-BlankEN" / "config.json"
        config = json.loads(path.read_text()) | options
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
        return copy

    return change


@pytest.fixture(params=FOLDERS)
def tiny_folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


refusal = partial(refused, planned)


def stored(entries: Entries, name: str) -> StoredTensor:
    entry = entries[name]
    assert isinstance(entry, StoredTensor)
    return entry


def config_of(folder: Folder, precision: str = "bf16") -> Any:
    return json.loads(folder.texts(PRECISIONS[precision])["config.json"])


# What goes in.


@pytest.mark.parametrize(("model", "tokens", "bias"), [("tiny2", 67, True), ("tiny3", 264, False)])
def test_each_tensor_of_the_folder_has_its_source(
    model: str, tokens: int, bias: bool, request: pytest.FixtureRequest
) -> None:
    folder = planned(request.getfixturevalue(model))
    layers = {f"model.layers.{number}.{name}": shape for number in (0, 1) for name, shape in LAYER.items()}
    copied = {**layers, "model.norm.weight": (64,)}
    expected = [
        ("model.embed_tokens.weight", "speech_embedding.weight", (tokens, 64)),
        *((name, f"llm.model.{name}", shape) for name, shape in copied.items()),
        ("lm_head.weight", "llm_decoder.weight", (tokens, 64)),
        *([("lm_head.bias", "llm_decoder.bias", (tokens,))] if bias else []),
    ]
    assert list(folder.tensors) == expected
    assert folder.shapes == {source: shape for _, source, shape in expected}


def test_what_stays_out_is_named(tiny2: Path, tiny3: Path) -> None:
    text = "llm.model.model.embed_tokens.weight"
    assert set(planned(tiny2).left_out) == {text, "llm.model.lm_head.weight", "llm_embedding.weight"}
    assert set(planned(tiny3).left_out) == {text}


def test_each_entry_of_the_weights_file_is_copied_or_left_out(tiny_folder: Path) -> None:
    folder = planned(tiny_folder)
    assert sorted([*folder.shapes, *folder.left_out]) == sorted(entries_of(tiny_folder))


def test_a_head_of_the_text_may_be_there_or_not_where_it_is_tied(tiny_folder: Path) -> None:
    entries = entries_of(tiny_folder)
    head = "llm.model.lm_head.weight"
    with_head = entries | {head: entries["llm.model.model.embed_tokens.weight"]}
    without = {name: entry for name, entry in entries.items() if name != head}
    assert planned(tiny_folder, with_head).tensors == planned(tiny_folder, without).tensors


def test_a_head_of_the_texts_own_stays_out_too(tiny2: Path, base_of: Callable[..., Path]) -> None:
    assert planned(base_of(tiny2, tie_word_embeddings=False), entries_of(tiny2)) == planned(tiny2)


def test_a_head_of_the_texts_own_has_to_be_there(tiny3: Path, base_of: Callable[..., Path]) -> None:
    for untied in (False, None):  # which is what transformers takes it for
        directory = base_of(tiny3, tie_word_embeddings=untied)
        assert "(1 missing: llm.model.lm_head.weight)" in refusal(TensorMismatchError, directory, entries_of(tiny3))
        shutil.rmtree(directory)
        directory.mkdir()


def test_counters_that_training_leaves_stay_out(tiny3: Path) -> None:
    entries = entries_of(tiny3) | {"epoch": Other("int"), "step": Other("int")}
    assert planned(tiny3, entries).tensors == planned(tiny3).tensors
    assert set(planned(tiny3, entries).left_out) == {"llm.model.model.embed_tokens.weight", "epoch", "step"}


def test_digests_give_the_same_folder_as_the_index(tiny_folder: Path, tmp_path: Path) -> None:
    path = tiny_folder / "llm.pt"
    weights = read_tensors(Digests(tmp_path), [path])[path]
    base = read_qwen2_config(tiny_folder)
    assert plan_folder(component_of(tiny_folder), base, path, weights.tensors) == planned(tiny_folder)


def test_a_width_of_heads_that_is_given_counts(tiny2: Path, base_of: Callable[..., Path]) -> None:
    wide = base_of(tiny2, head_dim=32)
    entries = entries_of(tiny2)
    for layer in (0, 1):
        name = f"llm.model.model.layers.{layer}.self_attn."
        for part, rows in (("q", 128), ("k", 64), ("v", 64)):
            weight, bias = f"{name}{part}_proj.weight", f"{name}{part}_proj.bias"
            entries[weight] = stored(entries, weight)._replace(shape=(rows, 64))
            entries[bias] = stored(entries, bias)._replace(shape=(rows,))
        entries[f"{name}o_proj.weight"] = stored(entries, f"{name}o_proj.weight")._replace(shape=(64, 128))
    assert ("model.layers.1.self_attn.o_proj.weight", f"{name}o_proj.weight", (64, 128)) in planned(
        wide, entries
    ).tensors
    assert config_of(planned(wide, entries))["head_dim"] == 32


# The configurations.


@pytest.mark.parametrize(
    ("model", "changed"),
    [
        ("tiny2", {"architectures": ["CosyVoice2ForCausalLM"], "use_bias": True, "vocab_size": 67}),
        ("tiny3", {"architectures": ["Qwen2ForCausalLM"], "use_bias": False, "vocab_size": 264}),
    ],
)
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_the_configuration_is_the_base_one_but_for_the_rules(
    model: str, changed: dict[str, Any], precision: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(model)
    base = json.loads((directory / "CosyVoice-BlankEN" / "config.json").read_text())
    assert {"bos_token_id", "eos_token_id", "torch_dtype"} < base.keys()
    del base["bos_token_id"], base["eos_token_id"]
    expected = base | changed | {"tie_word_embeddings": False, "torch_dtype": dtype}
    assert config_of(planned(directory), precision) == expected


def test_the_generation_has_no_end_of_text(tiny_folder: Path) -> None:
    base = json.loads((tiny_folder / "CosyVoice-BlankEN" / "generation_config.json").read_text())
    del base["eos_token_id"]
    assert base
    texts = planned(tiny_folder).texts(PRECISIONS["bf16"])
    assert json.loads(texts["generation_config.json"]) == base
    assert texts.keys() == {"config.json", "generation_config.json"}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"torch_dtype": "bfloat16"}, {"torch_dtype"}),
        ({"dtype": "bfloat16"}, {"dtype"}),
        ({"torch_dtype": "bfloat16", "dtype": "float32"}, {"torch_dtype", "dtype"}),
        ({}, {"torch_dtype"}),
    ],
)
def test_the_type_has_the_name_that_the_base_gives_it(
    given: dict[str, str], found: set[str], tiny3: Path, base_of: Callable[..., Path]
) -> None:
    directory = base_of(tiny3, **{"torch_dtype": None, **given})
    config = config_of(planned(directory, entries_of(tiny3)), "fp16")
    assert {name: config.get(name) for name in ("torch_dtype", "dtype") if name in config} == dict.fromkeys(
        found, "float16"
    )


def test_the_order_and_the_spaces_of_the_base_do_not_count(tiny2: Path, base_of: Callable[..., Path]) -> None:
    copy = base_of(tiny2)
    for path in (copy / name for name in FILES):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(content.items())), separators=(",", ":")))
    one, other = planned(tiny2), planned(copy, entries_of(tiny2))
    assert one.texts(PRECISIONS["bf16"]) == other.texts(PRECISIONS["bf16"])
    assert canonical(one.options) == canonical(other.options)


def test_the_type_of_the_base_decides_nothing(tiny2: Path, base_of: Callable[..., Path]) -> None:
    assert planned(base_of(tiny2, torch_dtype="float64"), entries_of(tiny2)) == planned(tiny2)


def test_whatever_changes_a_byte_of_the_configurations_changes_the_options(
    tiny2: Path, base_of: Callable[..., Path]
) -> None:
    copy = base_of(tiny2, rope_theta=10000.0)
    path = copy / "CosyVoice-BlankEN" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"top_k": 20}))
    before, now = planned(tiny2).options, planned(copy, entries_of(tiny2)).options
    assert {name: value for name, value in now.items() if before.get(name) != value} == {
        "config.json: rope_theta": 10000.0,
        "generation_config.json: top_k": 20,
    }


def test_a_plan_survives_the_way_to_another_process(tiny_folder: Path) -> None:
    folder = planned(tiny_folder)
    assert pickle.loads(pickle.dumps(folder)) == folder


# What does not fit.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_size": 96}, "hidden_size is 96, not 64"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, not 2"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, not 2"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000, not 2"),
        ({"intermediate_size": 96}, "(intermediate_size is 96, not 128)"),
        ({"num_key_value_heads": 4}, "(num_key_value_heads times a head's 16 is 64, not 32)"),
        ({"num_key_value_heads": 1}, "(num_key_value_heads times a head's 16 is 16, not 32)"),
        ({"num_attention_heads": 2}, "(num_key_value_heads times a head's 32 is 64, not 32)"),
        (
            {"head_dim": 32},
            "num_attention_heads times a head's 32 is 128, not 64; num_key_value_heads times a head's 32 is 64, not 32",
        ),
        ({"vocab_size": 151936}, "(vocab_size is 151936, not 640)"),
        ({"hidden_size": 96, "vocab_size": 255}, "vocab_size is 255, not 640"),
    ],
    ids=str,
)
def test_each_size_that_does_not_fit_the_tensors_is_named(
    options: dict[str, Any], words: str, tiny2: Path, base_of: Callable[..., Path]
) -> None:
    directory = base_of(tiny2, **options)
    message = refusal(ConfigError, directory, entries_of(tiny2))
    path = directory / "CosyVoice-BlankEN" / "config.json"
    assert message.startswith(f"{path}: does not fit the tensors of {directory / 'llm.pt'} (")
    assert words in message
    assert message.endswith("); export a matching pair")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_type": "qwen3"}, 'model_type is "qwen3"; supported: "qwen2"'),
        ({"model_type": None}, 'model_type is null; supported: "qwen2"'),
        ({"architectures": ["LlamaForCausalLM"]}, 'is ["LlamaForCausalLM"]; supported: ["Qwen2ForCausalLM"]'),
        ({"architectures": "Qwen2ForCausalLM"}, 'is "Qwen2ForCausalLM"; supported: ["Qwen2ForCausalLM"]'),
        ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings is "yes"; supported: true or false'),
        ({"hidden_size": "64"}, 'hidden_size is "64"; supported: a positive integer'),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"intermediate_size": 0}, "intermediate_size is 0; supported: a positive integer"),
        ({"head_dim": 16.0}, "head_dim is 16.0; supported: a positive integer"),
        ({"num_key_value_heads": 3}, "is 3; supported: a divisor of num_attention_heads, which is 4"),
    ],
    ids=str,
)
def test_a_base_that_is_no_qwen2_is_refused(
    options: dict[str, Any], words: str, tiny2: Path, base_of: Callable[..., Path]
) -> None:
    directory = base_of(tiny2, **options)
    message = refusal(ConfigError, directory, entries_of(tiny2))
    assert message.startswith(f"{directory / 'CosyVoice-BlankEN' / 'config.json'}: ")
    assert words in message


def test_all_tensors_that_fit_no_rule_are_listed_at_once(tiny2: Path) -> None:
    entries = entries_of(tiny2)
    for name in ("llm.model.model.layers.1.self_attn.k_proj.bias", "llm_embedding.weight", "llm_decoder.bias"):
        del entries[name]
    one = stored(entries, "llm.model.model.norm.weight")
    entries |= {
        "llm.model.model.layers.0.self_attn.o_proj.bias": one,
        "llm.model.model.layers.7.input_layernorm.weight": one,
        "llm.model.model.layers.01.input_layernorm.weight": one,
        "spk_embed_affine_layer.weight": one,
        "epoch": one,
        "optimizer": Other("dict"),
        "llm.model.model.layers.0.input_layernorm.weight": one._replace(dtype="int64"),
        "llm.model.model.layers.1.input_layernorm.weight": one._replace(shape=(64, 1)),
        "llm.model.model.layers.1.mlp.up_proj.weight": Other("Tensor"),
    }
    message = refusal(TensorMismatchError, tiny2, entries)
    assert message == (
        f"{tiny2 / 'llm.pt'}: llm.vllm: the tensors do not fit the configuration (3 missing: "
        "llm.model.model.layers.1.self_attn.k_proj.bias, llm_decoder.bias, llm_embedding.weight; 5 unexpected: "
        "llm.model.model.layers.0.self_attn.o_proj.bias, llm.model.model.layers.7.input_layernorm.weight, "
        "llm.model.model.layers.01.input_layernorm.weight, …; "
        "3 of another shape: "
        "llm.model.model.layers.0.input_layernorm.weight (int64 (64,) instead of (64,)), "
        "llm.model.model.layers.1.input_layernorm.weight ((64, 1) instead of (64,)), "
        "llm.model.model.layers.1.mlp.up_proj.weight (not a plain tensor: Tensor instead of (128, 64))); "
        "export a matching pair"
    )


def test_entries_known_by_digests_that_are_no_tensors_are_listed_too(tiny3: Path, tmp_path: Path) -> None:
    path = tiny3 / "llm.pt"
    tensors = dict(read_tensors(Digests(tmp_path), [path])[path].tensors)
    name = "llm.model.model.norm.weight"
    tensors[name] = tensors[name]._replace(dtype="dict", shape=())
    tensors["epoch"] = tensors[name]._replace(dtype="int", shape=())
    with pytest.raises(TensorMismatchError) as error:
        plan_folder(component_of(tiny3), read_qwen2_config(tiny3), path, tensors)
    assert error.value.misshapen == [f"{name} (not a plain tensor: dict instead of (64,))"]
    assert error.value.unexpected == []


@pytest.mark.parametrize("name", ["llm_decoder.bias", "llm_embedding.weight"])
def test_what_one_family_has_beside_is_unexpected_in_the_other(name: str, tiny3: Path) -> None:
    entries = entries_of(tiny3)
    entries[name] = stored(entries, "speech_embedding.weight")
    assert f"(1 unexpected: {name})" in refusal(TensorMismatchError, tiny3, entries)


def test_a_file_without_the_model_is_refused(tiny2: Path) -> None:
    entries = {name: entry for name, entry in entries_of(tiny2).items() if not name.startswith("llm.")}
    message = refusal(TensorMismatchError, tiny2, entries)
    assert message.startswith(f"{tiny2 / 'llm.pt'}: llm.vllm: the tensors do not fit the configuration (26 missing: ")


def test_a_layer_that_is_missing_whole_is_listed(tiny2: Path) -> None:
    entries = {name: entry for name, entry in entries_of(tiny2).items() if ".layers.0." not in name}
    message = refusal(TensorMismatchError, tiny2, entries)
    assert "12 missing: llm.model.model.layers.0.input_layernorm.weight, " in message


def test_more_layers_than_anyone_could_list_are_not_listed(tiny2: Path, base_of: Callable[..., Path]) -> None:
    entries = {name: entry for name, entry in entries_of(tiny2).items() if ".layers.0." not in name}
    directory = base_of(tiny2, num_hidden_layers=10**12)
    assert "(num_hidden_layers is 1000000000000, not 2)" in refusal(ConfigError, directory, entries)


@pytest.mark.parametrize("change", [1, -1, -66])
def test_an_embedding_and_a_head_of_two_vocabularies_are_refused(change: int, tiny2: Path) -> None:
    entries = entries_of(tiny2)
    head = stored(entries, "llm_decoder.weight")
    entries["llm_decoder.weight"] = head._replace(shape=(67 + change, 64))
    assert refusal(CheckpointError, tiny2, entries) == (
        f"{tiny2 / 'llm.pt'}: speech_embedding.weight has 67 rows and llm_decoder.weight {67 + change}; "
        "export a checkpoint in which they are of one vocabulary"
    )


def test_a_bias_of_another_vocabulary_is_refused(tiny2: Path) -> None:
    entries = entries_of(tiny2)
    entries["llm_decoder.bias"] = stored(entries, "llm_decoder.bias")._replace(shape=(66,))
    assert "1 of another shape: llm_decoder.bias ((66,) instead of (67,))" in refusal(
        TensorMismatchError, tiny2, entries
    )


def test_a_vocabulary_of_nothing_is_refused(tiny3: Path) -> None:
    entries = entries_of(tiny3)
    for name in ("speech_embedding.weight", "llm_decoder.weight"):
        entries[name] = stored(entries, name)._replace(shape=(0, 64))
    assert "speech_embedding.weight ((0, 64) instead of (1, 64))" in refusal(TensorMismatchError, tiny3, entries)


def test_a_head_that_is_the_embedding_is_refused(tiny3: Path, tmp_path: Path) -> None:
    words = (
        f"{tiny3 / 'llm.pt'}: llm_decoder.weight is tied to speech_embedding.weight, the same numbers; "
        "export a checkpoint whose head was trained by itself"
    )
    entries = entries_of(tiny3)
    entries["llm_decoder.weight"] = entries["speech_embedding.weight"]
    assert refusal(CheckpointError, tiny3, entries) == words
    path = tiny3 / "llm.pt"
    tensors = dict(read_tensors(Digests(tmp_path), [path])[path].tensors)
    tensors["llm_decoder.weight"] = tensors["speech_embedding.weight"]
    with pytest.raises(CheckpointError) as error:
        plan_folder(component_of(tiny3), read_qwen2_config(tiny3), path, tensors)
    assert str(error.value) == words
