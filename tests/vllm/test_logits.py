"""Folders in the hands of transformers: the logits are those of the checkpoint's own tensors, and of nothing else."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from cosyjit.errors import VerificationError
from cosyjit.families import PRECISIONS
from tests.support.language_models import PREFIX, State, check_logits, expected_logits, load, loaded
from tests.support.vllm_folders import component_of, planned, verify, write


class Input(NamedTuple):
    """What is asked: the tokens of speech, or the embeddings that the runtime gives to vLLM; and the right answer."""

    keywords: dict[str, Tensor]
    logits: Tensor


@functools.cache
def inputs(directory: Path) -> list[Input]:
    """Speech tokens; and a prompt as the runtime makes it, marks and text and speech, which vLLM is given embedded."""
    state = load(directory)
    speech, text = state["speech_embedding.weight"], state[f"{PREFIX}embed_tokens.weight"]
    tokens = torch.tensor([5, 0, 66, 17, 17, 3, 41, 64, 12, 9, 33])
    # CosyVoice3 has its marks among the extra rows behind the 64 tokens.
    begin, task = state.get("llm_embedding.weight", speech[[64, 66]])
    prompt = torch.cat([begin[None], text[[7, 250, 0, 91]], task[None], speech[tokens[:5]]])
    return [
        Input({"input_ids": tokens[None]}, expected_logits(directory, speech[tokens])),
        Input({"inputs_embeds": prompt.float()[None]}, expected_logits(directory, prompt)),
    ]


def check_folder(folder: Path, directory: Path, precision: str) -> None:
    """That transformers loads a folder strictly, as what it says it is, and computes what the checkpoint would."""
    dtype = getattr(torch, PRECISIONS[precision].dtype)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118  (no mapping)
    model, loading = loaded(folder)
    assert {name: found for name, found in loading.items() if found} == {}
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    assert not model.config.tie_word_embeddings  # transformers sees that two are there, vLLM goes by this
    for each in inputs(directory):
        keywords = {name: x.to(dtype) if x.is_floating_point() else x for name, x in each.keywords.items()}
        with torch.inference_mode():
            found = model(**keywords).logits[0].double()
        check_logits(found, each.logits, component_of(directory).tolerances[precision])


@pytest.fixture
def directory(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


both = pytest.mark.parametrize("directory", ["tiny2", "tiny3"], indirect=True)


@pytest.mark.slow
@both
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_folder_gives_the_logits_of_the_checkpoints_own_tensors(
    directory: Path, precision: str, tmp_path: Path
) -> None:
    write(directory, tmp_path / "vllm", precision)
    check_folder(tmp_path / "vllm", directory, precision)


def text_rows(tensors: State, state: State) -> Tensor:
    """As many rows of the text's embedding as there are speech tokens."""
    own = tensors["model.embed_tokens.weight"]
    text = state[f"{PREFIX}embed_tokens.weight"]
    return text[torch.arange(len(own)) % len(text)].to(own.dtype)


def embedding_not_replaced(tensors: State, state: State) -> None:
    tensors["model.embed_tokens.weight"] = text_rows(tensors, state)


def head_not_replaced(tensors: State, state: State) -> None:
    tensors["lm_head.weight"] = text_rows(tensors, state)


def head_of_the_embedding(tensors: State, _: State) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def norm_missing(tensors: State, _: State) -> None:
    del tensors["model.norm.weight"]


def norm_of_ones(tensors: State, _: State) -> None:
    tensors["model.norm.weight"].fill_(1)


def keys_and_values_swapped(tensors: State, _: State) -> None:
    for part in ("weight", "bias"):
        swap(tensors, f"model.layers.1.self_attn.k_proj.{part}", f"model.layers.1.self_attn.v_proj.{part}")


def gate_and_up_swapped(tensors: State, _: State) -> None:
    swap(tensors, "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight")


def norms_swapped(tensors: State, _: State) -> None:
    swap(tensors, "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight")


def layers_swapped(tensors: State, _: State) -> None:
    for name in [name for name in tensors if name.startswith("model.layers.0.")]:
        swap(tensors, name, name.replace("layers.0", "layers.1"))


def swap(tensors: State, one: str, other: str) -> None:
    tensors[one], tensors[other] = tensors[other], tensors[one]


def wider_type(tensors: State, _: State) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(torch.float64 if tensor.dtype == torch.float32 else torch.float32)


def other_type(tensors: State, _: State) -> None:
    other = torch.float16 if next(iter(tensors.values())).dtype == torch.bfloat16 else torch.bfloat16
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(other)


def bias_lost(tensors: State, _: State) -> None:
    del tensors["lm_head.bias"]


def bias_of_zeros(tensors: State, _: State) -> None:
    tensors["lm_head.bias"].fill_(0)


Mutant = Callable[[State, State], None]

MUTANTS: Final[list[Mutant]] = [
    embedding_not_replaced,
    head_not_replaced,
    head_of_the_embedding,
    norm_missing,
    norm_of_ones,
    keys_and_values_swapped,
    gate_and_up_swapped,
    norms_swapped,
    layers_swapped,
    wider_type,
    other_type,
]


def assert_refused(folder: Path, directory: Path, precision: str) -> None:
    """Both by what it computes, and by the gate of the product."""
    with pytest.raises((AssertionError, RuntimeError)):
        check_folder(folder, directory, precision)
    with pytest.raises(VerificationError, match="this is a fault of cosyjit or of the disk"):
        verify(planned(directory), directory, folder, precision)


def assert_each_is_refused(mutants: list[Mutant], directory: Path, precision: str, out: Path) -> None:
    write(directory, out, precision)
    path = out / "model.safetensors"
    whole = path.read_bytes()
    for mutant in mutants:
        tensors = safetensors.torch.load(whole)
        mutant(tensors, load(directory))
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
        assert_refused(out, directory, precision)
    path.write_bytes(whole)
    check_folder(out, directory, precision)


OTHERS: Final = [pytest.param(name, marks=pytest.mark.stress) for name in ("fp32", "fp16")]


@pytest.mark.slow
@both
@pytest.mark.parametrize("precision", [*OTHERS, "bf16"])
def test_tensors_by_any_other_rule_are_noticed(directory: Path, precision: str, tmp_path: Path) -> None:
    assert_each_is_refused(MUTANTS, directory, precision, tmp_path / "vllm")


@pytest.mark.parametrize("precision", [*OTHERS, "bf16"])
def test_a_bias_that_is_lost_is_noticed(tiny2: Path, precision: str, tmp_path: Path) -> None:
    assert_each_is_refused([bias_lost, bias_of_zeros], tiny2, precision, tmp_path / "vllm")


@both
@pytest.mark.parametrize(
    "change",
    [
        {"tie_word_embeddings": True},
        {"vocab_size": 256},
        {"torch_dtype": "float32"},
        {"rope_theta": 10000.0},
        {"rms_norm_eps": 1e-2},
        {"num_hidden_layers": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_configuration_by_any_other_rule_is_noticed(directory: Path, change: dict[str, Any], tmp_path: Path) -> None:
    write(directory, tmp_path / "vllm", "fp16")
    path = tmp_path / "vllm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert_refused(tmp_path / "vllm", directory, "fp16")


def test_a_bias_that_the_configuration_does_not_tell_of_is_noticed(tiny2: Path, tmp_path: Path) -> None:
    write(tiny2, tmp_path / "vllm", "bf16")
    path = tmp_path / "vllm" / "config.json"
    path.write_text(path.read_text().replace('"use_bias": true', '"use_bias": false'))
    assert_refused(tmp_path / "vllm", tiny2, "bf16")
