"""The base model of a language model: the folder beside the weights that describes, as JSON, a Qwen2 model.

It is read as inert data, without torch or transformers.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cosyjit.configuration import json_files
from cosyjit.errors import ConfigError

BASE: Final = "CosyVoice-BlankEN"
"""The folder, by the name that the public runtime looks for in a model directory."""

CONFIG: Final = "config.json"
GENERATION: Final = "generation_config.json"

_ARCHITECTURE: Final = "Qwen2ForCausalLM"
"""The class of transformers that the configuration has to name."""

_LARGEST: Final = 1 << 20
"""In bytes; a published configuration has less than one thousand."""


@dataclass(frozen=True)
class Qwen2Config:
    """The configuration of a Qwen2 model, checked.

    Attributes:
        path: where its `config.json` is.
        config, generation: the objects in `config.json` and `generation_config.json`, with all their entries.
        digests: the SHA-256 of both files, by their names in a model directory.
        hidden_size, intermediate_size: widths, in channels.
        num_hidden_layers: the number of layers.
        num_attention_heads, num_key_value_heads: the second divides the first.
        head_dim: the width of a head, in channels.
        vocab_size: the number of text tokens.
        tie_word_embeddings: whether the head over text is the embedding of text.
    """

    path: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    digests: Mapping[str, str]
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool


def read_qwen2_config(directory: Path) -> Qwen2Config:
    """Read and check the base model's configuration in a model directory.

    Raises:
        ConfigError: the folder or one of its two files is missing; a file is not a JSON object of less than 1 MB; or
            the configuration is not that of a Qwen2 model, or lacks one of its sizes.
    """
    folder = directory / BASE
    if not folder.is_dir():
        raise ConfigError(
            f"{directory}: has no folder {BASE}; put the one that was published with the weights, "
            f"with {CONFIG} and {GENERATION}, beside them"
        )
    contents = {path: json_files.content(path, _LARGEST) for path in (folder / CONFIG, folder / GENERATION)}
    config, generation = (json_files.parsed(content, path) for path, content in contents.items())
    digests = {f"{BASE}/{path.name}": hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    return _checked(_Fields(folder / CONFIG, config), generation, digests)


class _Fields:
    """The entries of a `config.json`, each checked when it is taken."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path, self.config = path, config

    def require(self, name: str, supported: object) -> None:
        """Check that an entry has the one value that is supported.

        Raises:
            ConfigError: it has another value, or is missing.
        """
        if self.config.get(name) != supported:
            raise self.unsupported(name, json.dumps(supported))

    def size(self, name: str) -> int:
        """A size that the configuration gives.

        Raises:
            ConfigError: the entry is missing, or is not a positive integer.
        """
        if name not in self.config:
            raise ConfigError(f"{self.path}: has no {name}; take the file that belongs to the base model")
        value = self.config[name]
        if type(value) is not int or value < 1:
            raise self.unsupported(name, "a positive integer")
        return value

    def flag(self, name: str) -> bool:
        """An entry that is true or false; false where it is missing.

        Raises:
            ConfigError: it is something else.
        """
        value = self.config.get(name, False)
        if type(value) is not bool:
            raise self.unsupported(name, "true or false")
        return value

    def unsupported(self, name: str, supported: str) -> ConfigError:
        """The error of an entry whose value is not supported; a missing one is shown as null."""
        value = json.dumps(self.config.get(name))
        return ConfigError(f"{self.path}: {name} is {value[:100]}; supported: {supported}")


def _checked(fields: _Fields, generation: Mapping[str, Any], digests: Mapping[str, str]) -> Qwen2Config:
    fields.require("model_type", "qwen2")
    fields.require("architectures", [_ARCHITECTURE])
    tied = fields.flag("tie_word_embeddings")
    heads, key_value_heads = fields.size("num_attention_heads"), fields.size("num_key_value_heads")
    if heads % key_value_heads:
        raise fields.unsupported("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    width = fields.size("hidden_size")
    # transformers derives the width of a head where the configuration does not give it.
    is_derived = fields.config.get("head_dim") is None
    return Qwen2Config(
        path=fields.path,
        config=fields.config,
        generation=generation,
        digests=digests,
        hidden_size=width,
        intermediate_size=fields.size("intermediate_size"),
        num_hidden_layers=fields.size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=max(1, width // heads) if is_derived else fields.size("head_dim"),
        vocab_size=fields.size("vocab_size"),
        tie_word_embeddings=tied,
    )
