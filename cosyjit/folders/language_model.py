"""The tensors of a language model: those that its weights file has to have by its base model's configuration.

A weights file holds a `Qwen2ForCausalLM` for text under `llm.model.`, and beside it an embedding of speech tokens and a
head over them. The shapes are those of transformers' Qwen2, in which only queries, keys and values have biases.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from cosyjit.configuration.base_model import Qwen2Config
from cosyjit.encoders.parameters import Parameter
from cosyjit.errors import CheckpointError, ConfigError
from cosyjit.families import Component
from cosyjit.weights.fit import Known, check_tensors
from cosyjit.weights.pickle_reader import Other

PREFIX: Final = "llm.model."
"""The beginning of the language model's own names in the weights file."""
EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
BIAS: Final = "lm_head.bias"
SPEECH_EMBEDDING: Final = "speech_embedding.weight"
SPEECH_HEAD: Final = "llm_decoder.weight"
SPEECH_BIAS: Final = "llm_decoder.bias"
MARKS: Final = "llm_embedding.weight"
"""The two embeddings that CosyVoice2 puts before text and speech."""

_LAYER: Final = re.compile(r"llm\.model\.model\.layers\.([0-9]{1,4})\.")

Shapes = dict[str, tuple[int, ...]]
"""Shapes of tensors by their names."""


def needed_names(component: Component, base: Qwen2Config) -> list[str]:
    """The names of the tensors that a folder needs in any case."""
    wanted = _wanted(component, base, 1, old_head=False)
    return [name for name in wanted if name != f"{PREFIX}{HEAD}"]


def checked_shapes(component: Component, base: Qwen2Config, weights: Path, entries: Known) -> Shapes:
    """The shapes of all tensors that a weights file has to have, by their names; it is checked that it has them.

    Args:
        component: that of the folder; its `extra_tensors` are required as well.
        base: the configuration of the base model.
        weights: the weights file, as messages name it.
        entries: all entries of the weights file, by the names of the reading, or their digests.

    Raises:
        ConfigError: the configuration does not fit the tensors.
        TensorMismatchError: tensors are missing or unknown, or have another shape.
        CheckpointError: the head over speech differs from the embedding in its vocabulary, or is tied to it.
    """
    _check_sizes(base, weights, entries)
    rows = _speech_vocabulary(weights, entries)
    wanted = _wanted(component, base, rows, old_head=f"{PREFIX}{HEAD}" in entries)
    parameters = {name: Parameter(shape) for name, shape in wanted.items()}
    check_tensors(f"{weights}: {component.name}", parameters, entries)
    if entries[SPEECH_HEAD] == entries[SPEECH_EMBEDDING]:
        raise CheckpointError(
            f"{weights}: {SPEECH_HEAD} is tied to {SPEECH_EMBEDDING}, the same numbers; "
            "export a checkpoint whose head was trained by itself"
        )
    return wanted


def body(base: Qwen2Config) -> Shapes:
    """The shapes of the tensors that are copied under their own names: the layers, and the norm behind them."""
    width, inner = base.hidden_size, base.intermediate_size
    queries = base.num_attention_heads * base.head_dim
    keys = base.num_key_value_heads * base.head_dim
    layer: Shapes = {
        "input_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (width, queries),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    layers = range(base.num_hidden_layers)
    shapes = {f"model.layers.{number}.{name}": shape for number in layers for name, shape in layer.items()}
    return {**shapes, "model.norm.weight": (width,)}


def _check_sizes(base: Qwen2Config, weights: Path, entries: Known) -> None:
    """Compare each size with a tensor that shows it. Missing tensors are not reported here."""
    first = "llm.model.model.layers.0."
    width = base.head_dim
    wanted = {
        "hidden_size": (base.hidden_size, _rows(entries, "llm.model.model.norm.weight")),
        "num_hidden_layers": (base.num_hidden_layers, _layers(entries, base.num_hidden_layers)),
        "intermediate_size": (base.intermediate_size, _rows(entries, f"{first}mlp.gate_proj.weight")),
        f"num_attention_heads times a head's {width}": (
            base.num_attention_heads * width,
            _rows(entries, f"{first}self_attn.q_proj.weight"),
        ),
        f"num_key_value_heads times a head's {width}": (
            base.num_key_value_heads * width,
            _rows(entries, f"{first}self_attn.k_proj.weight"),
        ),
        "vocab_size": (base.vocab_size, _rows(entries, f"{PREFIX}{EMBEDDING}")),
    }
    wrong = [f"{name} is {size}, not {shown}" for name, (size, shown) in wanted.items() if shown not in {None, size}]
    if wrong:
        raise ConfigError(
            f"{base.path}: does not fit the tensors of {weights} ({'; '.join(wrong)}); export a matching pair"
        )


def _rows(entries: Known, name: str) -> int | None:
    """The number of rows of a tensor, or of numbers of a vector; None if there is no such tensor."""
    entry = entries.get(name)
    return None if entry is None or isinstance(entry, Other) or not entry.shape else entry.shape[0]


def _layers(entries: Collection[str], wanted: int) -> int | None:
    """The number of layers; None if there are none, or the last is there and others are missing."""
    numbers = {int(match[1]) for match in map(_LAYER.match, entries) if match}
    end = max(numbers, default=-1) + 1
    return end if numbers and (len(numbers) == end or wanted > end) else None


def _speech_vocabulary(weights: Path, entries: Known) -> int:
    """The number of speech tokens; 1 if the tensors that show it are missing or empty."""
    embedding, head = _rows(entries, SPEECH_EMBEDDING), _rows(entries, SPEECH_HEAD)
    if embedding and head and embedding != head:
        raise CheckpointError(
            f"{weights}: {SPEECH_EMBEDDING} has {embedding} rows and {SPEECH_HEAD} {head}; "
            "export a checkpoint in which they are of one vocabulary"
        )
    return embedding or head or 1


def _wanted(component: Component, base: Qwen2Config, rows: int, *, old_head: bool) -> Shapes:
    """The shapes of all tensors that the weights file has to have, by their names, in the folder's order.

    The head over text may be missing if it is tied to the embedding of text, which is then one tensor with two names.

    Args:
        component: that of the folder.
        base: the configuration of the base model.
        rows: the number of speech tokens.
        old_head: whether the weights file has the head over text.
    """
    width, vocabulary = base.hidden_size, base.vocab_size
    text = {EMBEDDING: (vocabulary, width), **body(base)}
    if old_head or not base.tie_word_embeddings:
        text[HEAD] = (vocabulary, width)
    shapes = {SPEECH_BIAS: (rows,), MARKS: (2, width)}
    return {
        **{f"{PREFIX}{name}": shape for name, shape in text.items()},
        SPEECH_EMBEDDING: (rows, width),
        SPEECH_HEAD: (rows, width),
        **{name: shapes[name] for name in component.extra_tensors},
    }
