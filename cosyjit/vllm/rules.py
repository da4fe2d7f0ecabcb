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
out, and how the two configurations change.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit.configuration.base_model import CONFIG, GENERATION, Qwen2Config, read_qwen2_config
from cosyjit.families import Component, Precision
from cosyjit.folders.content import FolderNeed, Rows, as_text, typed, with_types
from cosyjit.folders.language_model import (
    BIAS,
    EMBEDDING,
    HEAD,
    PREFIX,
    SPEECH_BIAS,
    SPEECH_EMBEDDING,
    SPEECH_HEAD,
    body,
    checked_shapes,
)
from cosyjit.weights.fit import Known

VERSION: Final = 1
"""The version of these rules and of the form of the files. It is raised when equal inputs give other bytes."""

ARCHITECTURE_WITH_BIAS: Final = "CosyVoice2ForCausalLM"
"""The class that the public runtime or `cosyjit.vllm.plugin` registers: vLLM's own has no bias in the head."""


class Copied(NamedTuple):
    """A tensor of the folder: its name and shape there, and its name in the weights file."""

    name: str
    source: str
    shape: tuple[int, ...]

    @property
    def pieces(self) -> tuple[Rows]:
        return (Rows(self.source, 0, self.shape[0]),)


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
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that are copied, by their names in the weights file."""
        return {tensor.source: tensor.shape for tensor in self.tensors}

    @property
    def options(self) -> dict[str, Any]:
        """The values that decide the folder's bytes besides tensors and precision, as JSON has them."""
        configs = {CONFIG: self.config, GENERATION: self.generation}
        return {f"{file}: {name}": value for file, values in configs.items() for name, value in values.items()}

    def texts(self, precision: Precision) -> dict[str, bytes]:
        """The contents of the two configuration files, by their names."""
        return {CONFIG: as_text(typed(self.config, precision)), GENERATION: as_text(self.generation)}


def need_of(component: Component, directory: Path) -> FolderNeed:
    """What the folder of a model directory is made from.

    Raises:
        ConfigError: the base model's configuration cannot be read, or is not that of a Qwen2 model.
    """
    base = read_qwen2_config(directory)
    key = f"{component.name} {json.dumps(base.config, sort_keys=True)}"
    return FolderNeed(component, base, partial(plan_folder, component, base), base.digests, key)


def plan_folder(component: Component, base: Qwen2Config, weights: Path, entries: Known) -> Folder:
    """Plan the folder of a weights file.

    Args:
        component: that of the folder; its `extra_tensors` are required as well.
        base: the configuration of the base model.
        weights: the weights file, as messages name it.
        entries: all entries of the weights file, by the names of the reading, or their digests.

    Raises:
        ConfigError, TensorMismatchError, CheckpointError: the entries do not fit; see `checked_shapes`.
    """
    shapes = checked_shapes(component, base, weights, entries)
    tensors = tuple(_copied(base, shapes))
    sources = {tensor.source for tensor in tensors}
    left_out = tuple(name for name in entries if name not in sources)
    config = _config(base, shapes[SPEECH_EMBEDDING][0], bias=SPEECH_BIAS in shapes)
    return Folder(config, _generation(base), tensors, left_out)


def _copied(base: Qwen2Config, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Copied]:
    sources = {
        EMBEDDING: SPEECH_EMBEDDING,
        **{name: f"{PREFIX}{name}" for name in body(base)},
        HEAD: SPEECH_HEAD,
        BIAS: SPEECH_BIAS,
    }
    return (Copied(name, source, shapes[source]) for name, source in sources.items() if source in shapes)


def _config(base: Qwen2Config, rows: int, *, bias: bool) -> dict[str, Any]:
    inherited = {name: value for name, value in base.config.items() if name not in {"bos_token_id", "eos_token_id"}}
    changed = {
        **({"architectures": [ARCHITECTURE_WITH_BIAS]} if bias else {}),
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "use_bias": bias,
    }
    return with_types(base, {**inherited, **changed})


def _generation(base: Qwen2Config) -> dict[str, Any]:
    return {name: value for name, value in base.generation.items() if name != "eos_token_id"}
