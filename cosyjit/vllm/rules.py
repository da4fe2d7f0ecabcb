"""The rules by which vLLM's folder of a language model follows from its weights file and its base configuration.

A weights file holds a `Qwen2ForCausalLM` under `llm.model.`, which was made for text, and beside it the embedding of
speech tokens and the head over them. In the folder these two take the places of the text's. What it is by these rules
is worked out here from names, types and shapes alone, without torch and without reading a number.

From the public runtime, which writes the folder when it first needs it, are the rules themselves: which tensors are
copied, replaced and left out, and the changes to the two configurations. The shapes are those of transformers' Qwen2:
biases for queries, keys and values and for nothing else, and `head_dim`, where it is not given, the width of a head.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit.configuration.base_model import CONFIG, GENERATION, Qwen2Config
from cosyjit.encoders.parameters import Parameter
from cosyjit.errors import CheckpointError, ConfigError
from cosyjit.families import Component, Precision
from cosyjit.weights.fit import Known, check_tensors
from cosyjit.weights.pickle_reader import Other

VERSION: Final = 1
"""Of these rules and of the form of the files: raised when equal inputs give other bytes."""

MODEL: Final = "model.safetensors"

_PREFIX: Final = "llm.model."
"""What the language model's own names begin with in the weights file."""
_EMBEDDING: Final = "model.embed_tokens.weight"
_HEAD: Final = "lm_head.weight"
_SPEECH_EMBEDDING: Final = "speech_embedding.weight"
_SPEECH_HEAD: Final = "llm_decoder.weight"
_SPEECH_BIAS: Final = "llm_decoder.bias"
_MARKS: Final = "llm_embedding.weight"
"""The two embeddings that CosyVoice2 puts before text and before speech; the caller of vLLM adds them itself."""

_ARCHITECTURE_WITH_BIAS: Final = "CosyVoice2ForCausalLM"
"""What the public runtime registers with vLLM, which knows no head with a bias."""

_TYPES: Final = ("torch_dtype", "dtype")
"""What the type of the weights is called in `config.json`, by the age of transformers."""

_LAYER: Final = re.compile(r"llm\.model\.model\.layers\.([0-9]{1,4})\.")


class Copied(NamedTuple):
    """A tensor of the folder: its name and shape there, and what it is called in the weights file."""

    name: str
    source: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Folder:
    """What a folder will hold.

    Attributes:
        config, generation: the contents of `config.json` and `generation_config.json`, but for the type of the weights.
        tensors: those of `model.safetensors`, in the order of their bytes.
        left_out: the names of the other entries of the weights file.
    """

    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tensors: tuple[Copied, ...]
    left_out: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors of the weights file that go into the folder."""
        return tuple(tensor.source for tensor in self.tensors)

    @property
    def options(self) -> dict[str, Any]:
        """What decides the folder's bytes beside tensors and precision, as JSON has it."""
        configs = {CONFIG: self.config, GENERATION: self.generation}
        return {f"{file}: {name}": value for file, values in configs.items() for name, value in values.items()}

    def texts(self, precision: Precision) -> dict[str, bytes]:
        """The two configurations as files, by their names, in the form that transformers writes."""
        types = {name: precision.dtype for name in _TYPES if name in self.config}
        configs = {CONFIG: {**self.config, **types}, GENERATION: self.generation}
        return {file: json.dumps(values, indent=2, sort_keys=True).encode() + b"\n" for file, values in configs.items()}

    def size(self, precision: Precision) -> int:
        """What the tensors take at a precision, in bytes."""
        return sum(math.prod(tensor.shape) * precision.item_size for tensor in self.tensors)


@dataclass(frozen=True)
class FolderNeed:
    """What the folder of a language model needs of a weights file: all that its base configuration asks for."""

    component: Component
    base: Qwen2Config

    @property
    def names(self) -> Iterable[str]:
        wanted = _wanted(self.component, self.base, 1, old_head=False)
        return [name for name in wanted if name != f"{_PREFIX}{_HEAD}"]

    @property
    def key(self) -> str:
        return f"{self.component.name} {json.dumps(self.base.config, sort_keys=True)}"

    def check(self, path: Path, entries: Known) -> None:
        """
        Raises:
            InputError: see `plan_folder`.
        """
        plan_folder(self.component, self.base, path, entries)


def plan_folder(component: Component, base: Qwen2Config, weights: Path, entries: Known) -> Folder:
    """Work out what the folder of a weights file will be.

    Args:
        component: its tensors that the family has `beside` the language model are expected.
        base: the configuration beside it.
        weights: what messages call the weights file.
        entries: all that it holds, by the names that are read, or by their digests.

    Raises:
        ConfigError: the configuration is of another model, or does not fit the tensors.
        TensorMismatchError: tensors are missing, unknown, or of another shape.
        CheckpointError: the head over speech has another vocabulary than the embedding, or is the embedding.
    """
    _check_sizes(base, weights, entries)
    rows = _speech_vocabulary(weights, entries)
    wanted = _wanted(component, base, rows, old_head=f"{_PREFIX}{_HEAD}" in entries)
    check_tensors(f"{weights}: {component.name}", {name: Parameter(each) for name, each in wanted.items()}, entries)
    if entries[_SPEECH_HEAD] == entries[_SPEECH_EMBEDDING]:
        raise CheckpointError(
            f"{weights}: {_SPEECH_HEAD} is tied to {_SPEECH_EMBEDDING}, the same numbers; "
            "export a checkpoint whose head was trained by itself"
        )
    tensors = tuple(_copied(base, wanted))
    sources = {tensor.source for tensor in tensors}
    left_out = tuple(name for name in entries if name not in sources)
    return Folder(_config(base, rows, bias=_SPEECH_BIAS in wanted), _generation(base), tensors, left_out)


def _check_sizes(base: Qwen2Config, weights: Path, entries: Known) -> None:
    """Compare each size with a tensor that shows it; of tensors that are missing, others say so."""
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
        "vocab_size": (base.vocab_size, _rows(entries, f"{_PREFIX}{_EMBEDDING}")),
    }
    wrong = [f"{name} is {size}, not {found}" for name, (size, found) in wanted.items() if found not in {None, size}]
    if wrong:
        raise ConfigError(
            f"{base.path}: does not fit the tensors of {weights} ({'; '.join(wrong)}); export a matching pair"
        )


def _rows(entries: Known, name: str) -> int | None:
    """How many rows a tensor has, or numbers if it is a vector; None if there is no such tensor."""
    entry = entries.get(name)
    return None if entry is None or isinstance(entry, Other) or not entry.shape else entry.shape[0]


def _layers(entries: Collection[str], wanted: int) -> int | None:
    """How many layers there are; None if there is none, or enough are, but some missing among them."""
    numbers = {int(found[1]) for found in map(_LAYER.match, entries) if found}
    end = max(numbers, default=-1) + 1
    return end if numbers and (len(numbers) == end or wanted > end) else None


def _speech_vocabulary(weights: Path, entries: Known) -> int:
    """How many speech tokens there are; 1 if the tensors that would show it are missing, or have none."""
    embedding, head = _rows(entries, _SPEECH_EMBEDDING), _rows(entries, _SPEECH_HEAD)
    if embedding and head and embedding != head:
        raise CheckpointError(
            f"{weights}: {_SPEECH_EMBEDDING} has {embedding} rows and {_SPEECH_HEAD} {head}; "
            "export a checkpoint in which they are of one vocabulary"
        )
    return embedding or head or 1


def _wanted(component: Component, base: Qwen2Config, rows: int, *, old_head: bool) -> dict[str, tuple[int, ...]]:
    """All tensors that the weights file is to have, in the folder's order, with their shapes.

    The old head need not be there where it is tied to the text's embedding: then it is one tensor of two names.
    """
    width, vocabulary = base.hidden_size, base.vocab_size
    text = {_EMBEDDING: (vocabulary, width), **_body(base)}
    if old_head or not base.tie_word_embeddings:
        text[_HEAD] = (vocabulary, width)
    shapes = {_SPEECH_BIAS: (rows,), _MARKS: (2, width)}
    return {
        **{f"{_PREFIX}{name}": shape for name, shape in text.items()},
        _SPEECH_EMBEDDING: (rows, width),
        _SPEECH_HEAD: (rows, width),
        **{name: shapes[name] for name in component.extra_tensors},
    }


def _body(base: Qwen2Config) -> dict[str, tuple[int, ...]]:
    """What is copied as it is: the layers, and the norm behind them."""
    width, inner = base.hidden_size, base.intermediate_size
    queries = base.num_attention_heads * base.head_dim
    keys = base.num_key_value_heads * base.head_dim
    layer: dict[str, tuple[int, ...]] = {
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
    found = {f"model.layers.{number}.{name}": shape for number in layers for name, shape in layer.items()}
    return {**found, "model.norm.weight": (width,)}


def _copied(base: Qwen2Config, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[Copied]:
    sources = {
        _EMBEDDING: _SPEECH_EMBEDDING,
        **{name: f"{_PREFIX}{name}" for name in _body(base)},
        _HEAD: _SPEECH_HEAD,
        "lm_head.bias": _SPEECH_BIAS,
    }
    return (Copied(name, source, wanted[source]) for name, source in sources.items() if source in wanted)


def _config(base: Qwen2Config, rows: int, *, bias: bool) -> dict[str, Any]:
    kept = {name: value for name, value in base.config.items() if name not in {"bos_token_id", "eos_token_id"}}
    types = [name for name in _TYPES if name in base.config] or [_TYPES[0]]
    return {
        **kept,
        **dict.fromkeys(types, "that of the precision"),
        **({"architectures": [_ARCHITECTURE_WITH_BIAS]} if bias else {}),
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "use_bias": bias,
    }


def _generation(base: Qwen2Config) -> dict[str, Any]:
    return {name: value for name, value in base.generation.items() if name != "eos_token_id"}
