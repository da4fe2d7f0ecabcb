"""Folders in the hands of transformers: the logits are those of the checkpoint's own tensors, and of nothing else.

The expected logits are composed here in plain torch, in float64, from the weights file itself: Zhang and Sennrich,
Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467; Su et al., RoFormer,
https://arxiv.org/abs/2104.09864; Ainslie et al., GQA, https://arxiv.org/abs/2305.13245; Shazeer, GLU Variants Improve
Transformer, https://arxiv.org/abs/2002.05202.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from cosyjit.errors import VerificationError
from cosyjit.families import PRECISIONS, Tolerance
from tests.support.vllm_folders import component_of, planned, verify, write

PREFIX: Final = "llm.model.model."

State = dict[str, Tensor]


@functools.cache
def head_with_bias() -> Any:
    """The class of Qwen2 with the head that `use_bias` asks for."""
    import transformers  # noqa: PLC0415  (it takes seconds, and each worker collects this file)

    transformers.utils.logging.disable_progress_bar()

    class HeadWithBias(transformers.Qwen2ForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.use_bias)

    return HeadWithBias


class Input(NamedTuple):
    """What is asked: the tokens of speech, or the embeddings that the runtime gives to vLLM; and the right answer."""

    keywords: dict[str, Tensor]
    logits: Tensor


@functools.cache
def load(directory: Path) -> State:
    state = torch.load(directory / "llm.pt", weights_only=True)
    return {name: tensor.double() for name, tensor in state.items()}


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()


def rotate(x: Tensor, theta: float) -> Tensor:
    """Turn the pairs (i, i + d/2) of each position t by t / theta^(2i/d); x is (heads, T, d)."""
    half = x.size(-1) // 2
    angles = torch.arange(x.size(1), dtype=x.dtype)[:, None] / theta ** (torch.arange(half, dtype=x.dtype) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def attend(x: Tensor, state: State, name: str, config: Mapping[str, Any]) -> Tensor:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    q, k, v = (
        F.linear(x, state[f"{name}{part}_proj.weight"], state[f"{name}{part}_proj.bias"]) for part in ("q", "k", "v")
    )
    q, k, v = (y.view(len(x), -1, config["hidden_size"] // heads).transpose(0, 1) for y in (q, k, v))
    q, k = rotate(q, config["rope_theta"]), rotate(k, config["rope_theta"])
    mixed = []
    for head in range(heads):
        group = head // (heads // groups)
        scores = q[head] @ k[group].T / q.size(-1) ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        mixed.append(scores.softmax(-1) @ v[group])
    return F.linear(torch.cat(mixed, -1), state[f"{name}o_proj.weight"])


def feed(x: Tensor, state: State, name: str) -> Tensor:
    gate, up = (F.linear(x, state[f"{name}{part}_proj.weight"]) for part in ("gate", "up"))
    return F.linear(gate * gate.sigmoid() * up, state[f"{name}down_proj.weight"])


def expected_logits(directory: Path, x: Tensor) -> Tensor:
    """What the model in a checkpoint gives for embedded tokens, (T, D) to (T, tokens)."""
    state = load(directory)
    config = json.loads((directory / "CosyVoice-BlankEN" / "config.json").read_text())
    for number in range(config["num_hidden_layers"]):
        layer = f"{PREFIX}layers.{number}."
        before, behind = (state[f"{layer}{part}_layernorm.weight"] for part in ("input", "post_attention"))
        x = x + attend(norm(x, before, config["rms_norm_eps"]), state, f"{layer}self_attn.", config)
        x = x + feed(norm(x, behind, config["rms_norm_eps"]), state, f"{layer}mlp.")
    x = norm(x, state[f"{PREFIX}norm.weight"], config["rms_norm_eps"])
    return F.linear(x, state["llm_decoder.weight"], state.get("llm_decoder.bias"))


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


def loaded(folder: Path) -> Any:
    """The model, and what of it was missing or left over."""
    return head_with_bias().from_pretrained(folder, dtype="auto", local_files_only=True, output_loading_info=True)


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


def check_logits(found: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.pow(2).mean().sqrt()))
    relative = float((found - expected).norm() / expected.norm())
    cosine = float(F.cosine_similarity(found.flatten(), expected.flatten(), dim=0))
    assert float((found - expected).abs().max()) <= tolerance.absolute * scale
    assert relative <= tolerance.relative
    assert cosine >= tolerance.cosine


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
