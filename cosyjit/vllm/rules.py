"""The rules that derive vLLM's folder of a language model from its weights file and its base model's configuration.

A weights file holds a `Qwen2ForCausalLM` for text under `llm.model.`, and beside it an embedding of speech tokens and a
head over them. In the folder, these two replace the embedding of text and the head over text:

    weights file                                 folder
    llm.model.model.embed_tokens.weight          (left out)
    speech_embedding.weight                  ──▶ model.embed_tokens.weight
    llm.model.model.layers.*                 ──▶ model.layers.*
    llm.model.model.norm.weight              ──▶ model.norm.weight
    llm.model.lm_head.weight                     (left out)
    llm_decoder.weight, llm_decoder.bias     ──▶ lm_head.weight, lm_head.bias
    llm_embedding.weight                         (left out)

The folder is planned here from names, types and shapes alone, without torch and without reading a number. The rules are
those of the public runtime, which writes the folder when it first needs it: which tensors are copied, replaced and left
out, and how the two configurations change. The shapes are those of transformers' Qwen2, in which only queries, keys and
values have biases.
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
"""The version of these rules and of the form of the files. It is raised when equal inputs give other bytes."""

MODEL: Final = "model.safetensors"

_PREFIX: Final = "llm.model."
"""The beginning of the language model's own names in the weights file."""
_EMBEDDING: Final = "model.embed_tokens.weight"
_HEAD: Final = "lm_head.weight"
_SPEECH_EMBEDDING: Final = "speech_embedding.weight"
_SPEECH_HEAD: Final = "llm_decoder.weight"
_SPEECH_BIAS: Final = "llm_decoder.bias"
_MARKS: Final = "llm_embedding.weight"
"""The two embeddings that CosyVoice2 puts before text and speech. The caller of vLLM adds them."""

ARCHITECTURE_WITH_BIAS: Final = "CosyVoice2ForCausalLM"
"""The class that the public runtime or `cosyjit.vllm.plugin` registers: vLLM's own has no bias in the head."""

_TYPES: Final = ("torch_dtype", "dtype")
"""The names of the weights' type in `config.json`; they depend on the version of transformers."""

_LAYER: Final = re.compile(r"llm\.model\.model\.layers\.([0-9]{1,4})\.")


class Copied(NamedTuple):
    """A tensor of the folder: its name and shape there, and its name in the weights file."""

    name: str
    source: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Folder:
    """The planned content of a folder.

    Attributes:
        config, generation: the contents of `config.json` and `generation_config.json`, except the type of the weights.
        tensors: those of `model.safetensors`, in the order of their bytes.
        left_out: the names of the other entries of the weights file.
    """

    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tensors: tuple[Copied, ...]
    left_out: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names in the weights file of the tensors that are copied."""
        return tuple(tensor.source for tensor in self.tensors)

    @property
    def options(self) -> dict[str, Any]:
        """The values that decide the folder's bytes besides tensors and precision, as JSON has them."""
        configs = {CONFIG: self.config, GENERATION: self.generation}
        return {f"{file}: {name}": value for file, values in configs.items() for name, value in values.items()}

    def texts(self, precision: Precision) -> dict[str, bytes]:
        """The contents of the two configuration files, by their names, in the form that transformers writes."""
        types = {name: precision.dtype for name in _TYPES if name in self.config}
        configs = {CONFIG: {**self.config, **types}, GENERATION: self.generation}
        return {file: json.dumps(values, indent=2, sort_keys=True).encode() + b"\n" for file, values in configs.items()}

    def size(self, precision: Precision) -> int:
        """The size of the tensors at a precision, in bytes."""
        return sum(math.prod(tensor.shape) * precision.item_size for tensor in self.tensors)


@dataclass(frozen=True)
class FolderNeed:
    """The tensors that the folder of a language model needs: those that its base model's configuration describes."""

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
        """Check that the folder can be planned.

        Raises:
            InputError: as `plan_folder`.
        """
        plan_folder(self.component, self.base, path, entries)


def plan_folder(component: Component, base: Qwen2Config, weights: Path, entries: Known) -> Folder:
    """Plan the folder of a weights file.

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
    wanted = _wanted(component, base, rows, old_head=f"{_PREFIX}{_HEAD}" in entries)
    parameters = {name: Parameter(shape) for name, shape in wanted.items()}
    check_tensors(f"{weights}: {component.name}", parameters, entries)
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
        "vocab_size": (base.vocab_size, _rows(entries, f"{_PREFIX}{_EMBEDDING}")),
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
    embedding, head = _rows(entries, _SPEECH_EMBEDDING), _rows(entries, _SPEECH_HEAD)
    if embedding and head and embedding != head:
        raise CheckpointError(
            f"{weights}: {_SPEECH_EMBEDDING} has {embedding} rows and {_SPEECH_HEAD} {head}; "
            "export a checkpoint in which they are of one vocabulary"
        )
    return embedding or head or 1


def _wanted(component: Component, base: Qwen2Config, rows: int, *, old_head: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors that the weights file has to have, by their names, in the folder's order.

    The head over text may be missing if it is tied to the embedding of text, which is then one tensor with two names.

    Args:
        component: that of the folder.
        base: the configuration of the base model.
        rows: the number of speech tokens.
        old_head: whether the weights file has the head over text.
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
    """The shapes of the tensors that are copied under their own names: the layers, and the norm behind them."""
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
    shapes = {f"model.layers.{number}.{name}": shape for number in layers for name, shape in layer.items()}
    return {**shapes, "model.norm.weight": (width,)}


def _copied(base: Qwen2Config, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[Copied]:
    sources = {
        _EMBEDDING: _SPEECH_EMBEDDING,
        **{name: f"{_PREFIX}{name}" for name in _body(base)},
        _HEAD: _SPEECH_HEAD,
        "lm_head.bias": _SPEECH_BIAS,
    }
    return (Copied(name, source, wanted[source]) for name, source in sources.items() if source in wanted)


def _config(base: Qwen2Config, rows: int, *, bias: bool) -> dict[str, Any]:
    inherited = {name: value for name, value in base.config.items() if name not in {"bos_token_id", "eos_token_id"}}
    types = [name for name in _TYPES if name in base.config] or [_TYPES[0]]
    return {
        **inherited,
        **dict.fromkeys(types, "that of the precision"),
        **({"architectures": [ARCHITECTURE_WITH_BIAS]} if bias else {}),
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "use_bias": bias,
    }


def _generation(base: Qwen2Config) -> dict[str, Any]:
    return {name: value for name, value in base.generation.items() if name != "eos_token_id"}
