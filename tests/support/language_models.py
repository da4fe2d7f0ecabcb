"""The language models of checkpoints, composed in plain torch, and folders of them as transformers loads them.

The composition is in float64, of the weights file itself: Zhang and Sennrich, Root Mean Square Layer Normalization,
https://arxiv.org/abs/1910.07467; Su et al., RoFormer, https://arxiv.org/abs/2104.09864; Ainslie et al., GQA,
https://arxiv.org/abs/2305.13245; Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyjit.errors import CosyjitError
from cosyjit.families import Tolerance
from cosyjit.weights.tensors import Entries

PREFIX: Final = "llm.model.model."

State = dict[str, Tensor]


@functools.cache
def head_with_bias() -> Any:
    """The class of Qwen2 with the head that `use_bias` asks for."""
    import transformers  # noqa: PLC0415  (it takes seconds, and each worker collects the tests that need this)

    transformers.utils.logging.disable_progress_bar()

    class HeadWithBias(transformers.Qwen2ForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.use_bias)

    return HeadWithBias


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


def hidden(directory: Path, x: Tensor) -> Tensor:
    """What the layers and the norm of the model in a checkpoint make of embedded tokens, (T, D) to (T, D)."""
    state = load(directory)
    config = json.loads((directory / "CosyVoice-BlankEN" / "config.json").read_text())
    for number in range(config["num_hidden_layers"]):
        layer = f"{PREFIX}layers.{number}."
        before, behind = (state[f"{layer}{part}_layernorm.weight"] for part in ("input", "post_attention"))
        x = x + attend(norm(x, before, config["rms_norm_eps"]), state, f"{layer}self_attn.", config)
        x = x + feed(norm(x, behind, config["rms_norm_eps"]), state, f"{layer}mlp.")
    return norm(x, state[f"{PREFIX}norm.weight"], config["rms_norm_eps"])


def expected_logits(directory: Path, x: Tensor) -> Tensor:
    """The logits of speech tokens for embedded tokens, (T, D) to (T, tokens)."""
    state = load(directory)
    return F.linear(hidden(directory, x), state["llm_decoder.weight"], state.get("llm_decoder.bias"))


def loaded(folder: Path) -> Any:
    """The model, and what of it was missing or left over."""
    return head_with_bias().from_pretrained(folder, dtype="auto", local_files_only=True, output_loading_info=True)


def refused(plan: Callable[[Path, Entries], Any], kind: type[CosyjitError], directory: Path, entries: Entries) -> str:
    """The one line in which planning a folder is refused, by an error of a kind."""
    with pytest.raises(CosyjitError) as error:
        plan(directory, entries)
    assert type(error.value) is kind
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def check_logits(found: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.pow(2).mean().sqrt()))
    relative = float((found - expected).norm() / expected.norm())
    cosine = float(F.cosine_similarity(found.flatten(), expected.flatten(), dim=0))
    assert float((found - expected).abs().max()) <= tolerance.absolute * scale
    assert relative <= tolerance.relative
    assert cosine >= tolerance.cosine
