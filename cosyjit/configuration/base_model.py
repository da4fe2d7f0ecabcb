"""The base model of a language model: the folder beside the weights that says, as JSON, how Qwen2 is to be built.

It is read as inert data, without torch or transformers.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cosyjit.documents import no_number
from cosyjit.errors import ConfigError
from cosyjit.fs import files
from cosyjit.weights.formats import BEGINNING, mistaken_for

BASE: Final = "CosyVoice-BlankEN"
"""The folder, by the name that the public runtime looks for in a model directory."""

CONFIG: Final = "config.json"
GENERATION: Final = "generation_config.json"

_LARGEST: Final = 1 << 20
"""In bytes; a published configuration has less than one thousand."""


@dataclass(frozen=True)
class Base:
    """A base model's configuration.

    Attributes:
        path: where its `config.json` is.
        config, generation: the objects in `config.json` and `generation_config.json`.
        digests: the SHA-256 of both files, by their names in a model directory.
    """

    path: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    digests: Mapping[str, str]

    def size(self, name: str) -> int:
        """A size that the configuration gives.

        Raises:
            ConfigError: there is none of this name, or it is no positive integer.
        """
        if name not in self.config:
            raise ConfigError(f"{self.path}: has no {name}; take the file that belongs to the base model")
        value = self.config[name]
        if type(value) is not int or value < 1:
            raise self.refused(name, "a positive integer")
        return value

    def refused(self, name: str, supported: str) -> ConfigError:
        """The error of a value that is not supported; None for one that is not there."""
        value = json.dumps(self.config.get(name))
        return ConfigError(f"{self.path}: {name} is {value[:100]}; supported: {supported}")


def read_base(directory: Path) -> Base:
    """Read the base configuration in a model directory.

    Raises:
        ConfigError: the folder or one of its two files is missing, or a file is no JSON object of less than 1 MB.
    """
    folder = directory / BASE
    if not folder.is_dir():
        raise ConfigError(
            f"{directory}: has no folder {BASE}; put the one that was published with the weights, "
            f"with {CONFIG} and {GENERATION}, beside them"
        )
    contents = {path: _content(folder / path.name) for path in (folder / CONFIG, folder / GENERATION)}
    config, generation = (_parse(content, path) for path, content in contents.items())
    digests = {f"{BASE}/{path.name}": hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    return Base(folder / CONFIG, config, generation, digests)


def _content(path: Path) -> bytes:
    try:
        content = files.beginning(path, _LARGEST)
    except files.NotAFileError:
        raise ConfigError(f"{path}: is no file; copy or download it again") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: does not exist; copy or download it again") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    if mistaken := mistaken_for(content[:BEGINNING]):
        raise ConfigError(f"{path}: {mistaken}")
    if len(content) > _LARGEST:
        raise ConfigError(f"{path}: has more than {_LARGEST:,} bytes; copy or download it again")
    return content


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(content, parse_constant=no_number)
        json.dumps(found, allow_nan=False)  # what is written from it has no number that JSON has not, such as 1e999
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON ({error}); copy or download it again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds a {type(found).__name__}, no object; copy or download it again")
    return found
