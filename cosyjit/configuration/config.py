"""The configuration of a model as inert data.

The published configurations are HyperPyYAML, a YAML whose tags build objects (`!new:`), call functions (`!apply:`) and
read other files (`!include:`) when it is loaded. Here it is composed to nodes and not constructed. The nodes that a
caller asks for, with what they refer to, become a document of their own (`yaml_subset`), in which each tag that would
run something is a string that names it. HyperPyYAML then resolves the references and the arithmetic in that document.
So nothing is imported, nothing runs, and the rest of the file does not matter.
"""

import codecs
import copy
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.nodes import Node

from cosyjit.configuration import yaml_nodes
from cosyjit.configuration.yaml_nodes import Document
from cosyjit.configuration.yaml_subset import NEW, Subset
from cosyjit.errors import ConfigError, line
from cosyjit.fs import files
from cosyjit.weights.formats import BEGINNING, mistaken_for

_CLASS: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,199}")

_MASKED: Final = re.compile(rf"could not determine a constructor for the tag '{NEW}")
"""What ruamel says of a node that it cannot construct. It does not give the reason."""

_WIDE: Final = {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}
"""How files in UTF-16 begin. Those in UTF-32 begin like one of these, or with a 0."""

_UTF8: Final = "save it as UTF-8, or restore the published file"


class Instance(NamedTuple):
    """A `!new:` node: the name of its class, and the options that it is given."""

    class_name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{NEW}{self.class_name}"


class Config:
    """A configuration, composed to nodes but not built.

    Attributes:
        where: the file, as messages name it.
        sha256: the digest of its text.
    """

    def __init__(self, text: str, where: str) -> None:
        """Compose a document.

        Args:
            text: the document.
            where: the file, as messages name it.

        Raises:
            ConfigError: the document is not a YAML mapping.
        """
        self.where = where
        self._text = text
        self.sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            self._root = yaml_nodes.compose(text)
        except Exception as error:  # noqa: BLE001  (a faulty file makes ruamel raise almost anything)
            raise ConfigError(f"{where}: is not a YAML mapping ({line(error)}); restore the published file") from None

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read a configuration file.

        Raises:
            ConfigError: the file cannot be read, or is not a YAML mapping in UTF-8.
        """
        try:
            content = _content(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read ({line(error)}); restore the published file") from None
        if mistaken := mistaken_for(content[:BEGINNING]):
            raise ConfigError(f"{path}: {mistaken}")
        return cls(_decoded(content, path), str(path))

    def has(self, name: str) -> bool:
        """Whether there is a node, of any kind, at a dotted path.

        Raises:
            ConfigError: this cannot be decided, such as where a key of the path occurs twice.
        """
        with self._resolving(name):
            return Document(self._root).at(_path(name)) is not None

    def class_of(self, name: str) -> str:
        """The class that the `!new:` node at a dotted path names.

        Raises:
            ConfigError: there is no such node, or it does not name a class.
        """
        with self._resolving(name):
            node = Document(self._root).at(_path(name))
        if node is None or not yaml_nodes.tag(node).startswith(NEW):
            raise self._no_instance(name)
        return self._checked(yaml_nodes.tag(node).removeprefix(NEW), name)

    def instance(self, name: str) -> Instance:
        """The `!new:` node at a dotted path, its references and arithmetic resolved.

        Where only running code would give a value, its tag stands in its place, such as "!apply:torch.load".

        Raises:
            ConfigError: there is no such node, or a reference in it cannot be resolved as data.
        """
        with self._resolving(name):
            if Document(self._root).at(_path(name)) is None:
                raise self._no_instance(name)
            value = copy.deepcopy(_resolved(self._text, name))
            for part in _path(name):
                value = (value.options if isinstance(value, Instance) else value)[part]
        if not isinstance(value, Instance):
            raise self._no_instance(name)
        self._checked(value.class_name, name)
        return value

    def _checked(self, class_name: str, name: str) -> str:
        if not _CLASS.fullmatch(class_name):
            raise ConfigError(f"{self.where}: {name} does not name a class after {NEW}; restore the published file")
        return class_name

    def _no_instance(self, name: str) -> ConfigError:
        return ConfigError(
            f"{self.where}: {name} is missing, or is not a {NEW} node with named options; restore the published file"
        )

    @contextmanager
    def _resolving(self, name: str) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  (a faulty file makes HyperPyYAML raise almost anything)
            reason = re.sub(r' in "<[^>]*>", line \d+, column \d+', "", line(error))  # of the subset, not of the file
            if _MASKED.search(reason):
                reason = "a key or a value in it is invalid"
            raise ConfigError(f"{self.where}: {name} cannot be resolved ({reason}); correct the node") from None


class _Constructor(SafeConstructor):
    """Plain values, and an `Instance` for each `!new:` node; a subset has no other tags."""

    def construct_instance(self, suffix: str, node: Node) -> Instance:
        return Instance(suffix, self.construct_mapping(node, deep=True))


_Constructor.add_multi_constructor(NEW, _Constructor.construct_instance)


def _load(text: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml.load(text)


def _content(path: Path) -> bytes:
    """The bytes of a configuration file.

    Raises:
        OSError, ValueError: it cannot be read, is not a file, or is too large.
    """
    content = files.beginning(path, yaml_nodes.LARGEST)
    if len(content) > yaml_nodes.LARGEST:
        raise ValueError(f"more than {yaml_nodes.LARGEST:,} bytes")
    return content


def _decoded(content: bytes, path: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: its content is not UTF-8.
    """
    if content[:2] in _WIDE or 0 in content[:4]:
        raise ConfigError(f"{path}: is not UTF-8 text but UTF-16, UTF-32 or binary; {_UTF8}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at {error.start:,}"
        raise ConfigError(f"{path}: is not UTF-8 text ({byte}); {_UTF8}") from None


@lru_cache(maxsize=64)  # many checkpoints have the same configuration
def _resolved(text: str, name: str) -> Any:
    """The subset of a document that the node at a dotted path needs, resolved; callers must not change it."""
    subset = Subset(Document(yaml_nodes.compose(text)), _path(name)).text()
    return _load(resolve_references(subset).getvalue())


def _path(name: str) -> yaml_nodes.Path:
    return tuple(name.split("."))
