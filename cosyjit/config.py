"""A model's configuration as inert data.

The published configurations are HyperPyYAML: a YAML whose tags build objects (`!new:`), call functions (`!apply:`) and
read other files (`!include:`) when it is loaded. Here it is composed to nodes and no further. Of these nodes only what
was asked for, and what that refers to, is cut out; HyperPyYAML then resolves the references and the arithmetic of this
cutting. A tag that would run something is by then a string that names it, so that nothing is imported and nothing runs,
and whatever stands elsewhere in the file does not matter.
"""

import copy
import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from cosyjit.errors import ConfigError

_NEW: Final = "!new:"
_REFERENCES: Final = ("!ref", "!copy")
_CORE: Final = "tag:yaml.org,2002:"
_PLAIN: Final = {_CORE + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_MERGE: Final = _CORE + "merge"
_LARGEST: Final = 10_000
"""The most nodes that a component may have; a published one has about twenty."""

_REFERENCE: Final = re.compile(r"<([^>]*)>")

_Path = tuple[str, ...]


class Instance(NamedTuple):
    """A `!new:` node: the name of its class, and the options given to it."""

    class_name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{_NEW}{self.class_name}"


class Config:
    """A configuration, composed to nodes but not built.

    Attributes:
        where: what messages call it; the file.
        sha256: the digest of its text.
    """

    def __init__(self, text: str, where: str) -> None:
        """
        Args:
            text: the document.
            where: what messages call it; the file.

        Raises:
            ConfigError: it is no YAML mapping.
        """
        self.where = where
        self._text = text
        self.sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            root = _compose(text)
        except (YAMLError, RecursionError) as error:
            raise ConfigError(f"{where}: is no YAML ({_line(error)}); restore the published file") from None
        if not isinstance(root, MappingNode):
            raise ConfigError(f"{where}: is no YAML mapping; restore the published file")
        self._root = root

    @classmethod
    def read(cls, path: Path) -> "Config":
        """
        Raises:
            ConfigError: the file cannot be read, or is no YAML mapping.
        """
        try:
            return cls(path.read_bytes().decode("utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({_line(error)}); restore the published file") from None

    def class_of(self, name: str) -> str:
        """The class that the `!new:` node at a dotted path names.

        Raises:
            ConfigError: there is no such node.
        """
        with self._resolving(name):
            node = _descend(self._root, _path(name))
        if node is None or not _tag(node).startswith(_NEW):
            raise self._no_instance(name)
        return _tag(node).removeprefix(_NEW)

    def instance(self, name: str) -> Instance:
        """The `!new:` node at a dotted path, its references and arithmetic resolved.

        A value that only running something would give appears as its tag, such as "!apply:torch.load".

        Raises:
            ConfigError: there is no such node, or a reference in it cannot be resolved as data.
        """
        with self._resolving(name):
            if _descend(self._root, _path(name)) is None:
                raise self._no_instance(name)
            found = copy.deepcopy(_resolved(self._text, name))
            for part in _path(name):
                found = (found.options if isinstance(found, Instance) else found)[part]
        if not isinstance(found, Instance):
            raise self._no_instance(name)
        return found

    def _no_instance(self, name: str) -> ConfigError:
        return ConfigError(f"{self.where}: {name} is missing, or no {_NEW} node; restore the published file")

    @contextmanager
    def _resolving(self, name: str) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  (a faulty file makes HyperPyYAML raise almost anything)
            reason = re.sub(r' in "<[^>]*>", line \d+, column \d+', "", _line(error))  # of the cutting, not of the file
            raise ConfigError(f"{self.where}: {name} cannot be resolved ({reason}); correct the node") from None


class _Cutting:
    """The part of a document that one node needs: the node, what it refers to, and what that refers to."""

    def __init__(self, root: Node, path: _Path) -> None:
        self._root = root
        self._copies: dict[int, Node] = {}
        self._kept: set[_Path] = set()
        wanted = [path]
        while wanted:
            path = wanted.pop()
            node = _descend(root, path)
            if node is None or path in self._kept:
                continue  # HyperPyYAML names what is not there
            self._kept.add(path)
            inert = self._inert(node)
            if _size(inert, {}) > _LARGEST:
                raise ValueError(f"it has more than {_LARGEST} nodes, those that aliases repeat counted each time")
            wanted += _references(inert, set())

    def text(self) -> str:
        """The cutting as a document."""
        stream = io.StringIO()
        _yaml().serialize(self._cut(self._root, ()), stream)
        return stream.getvalue()

    def _cut(self, node: Node, path: _Path) -> Node:
        if path in self._kept or not isinstance(node, MappingNode):
            return self._inert(node)
        values = [
            (key, self._cut(value, (*path, key.value)))
            for key, value in _items(node)
            if any(kept[: len(path) + 1] == (*path, key.value) for kept in self._kept)
        ]
        return MappingNode(_CORE + "map", values)

    def _inert(self, node: Node) -> Node:
        """A copy in which each node of any but a harmless tag is a string, its tag; shared nodes stay shared.

        The copies have the tags in full: written as they stand, a `%TAG` directive makes them look like others.
        """
        if id(node) not in self._copies:
            tag = _tag(node)
            if isinstance(node, ScalarNode) and (tag in _PLAIN or tag in _REFERENCES):
                if tag in _REFERENCES and "**" in node.value:
                    raise ValueError("powers are not worked out: a short one can take for ever")
                self._copies[id(node)] = ScalarNode(tag, node.value, style=node.style)
            elif isinstance(node, MappingNode) and (tag in _PLAIN or tag.startswith(_NEW)):
                mapping = self._copies[id(node)] = MappingNode(tag, [])
                mapping.value = [(self._inert(key), self._inert(value)) for key, value in _items(node)]
            elif isinstance(node, SequenceNode) and tag in _PLAIN:
                sequence = self._copies[id(node)] = SequenceNode(tag, [])
                sequence.value = [self._inert(item) for item in node.value]
            else:
                self._copies[id(node)] = ScalarNode(_CORE + "str", tag.removeprefix(_CORE), style='"')
        return self._copies[id(node)]


class _Constructor(SafeConstructor):
    """Plain values, and an `Instance` for each `!new:` node; a cutting has no other tags."""

    def construct_instance(self, suffix: str, node: Node) -> Instance:
        return Instance(suffix, self.construct_mapping(node, deep=True))


_Constructor.add_multi_constructor(_NEW, _Constructor.construct_instance)


def _yaml() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML allows to use an anchor's name again
    return yaml


def _load(text: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml.load(text)


# Many checkpoints have the same configuration, which takes a hundredth of a second for each component.


@lru_cache(maxsize=16)
def _compose(text: str) -> Node:
    return _yaml().compose(io.StringIO(text))


@lru_cache(maxsize=64)
def _resolved(text: str, name: str) -> Any:
    """What is left of a document of which only the node at a dotted path is wanted, resolved; not to be changed."""
    cutting = _Cutting(_compose(text), _path(name)).text()
    return _load(resolve_references(cutting).getvalue())


def _tag(node: Node) -> str:
    return str(node.tag or "")


def _path(name: str) -> _Path:
    return tuple(name.split("."))


def _descend(node: Node | None, path: _Path) -> Node | None:
    for part in path:
        if not isinstance(node, MappingNode):
            return None
        node = next((value for key, value in _items(node) if key.value == part), None)
    return node


def _items(node: MappingNode) -> list[tuple[Node, Node]]:
    """A mapping's keys and values, with those that it merges (`<<`), which HyperPyYAML would leave unresolved."""
    own = [(key, value) for key, value in node.value if _tag(key) != _MERGE]
    names = [key.value for key, _ in own]
    for key, value in node.value:
        for merged in (value.value if isinstance(value, SequenceNode) else [value]) if _tag(key) == _MERGE else []:
            if not isinstance(merged, MappingNode):
                raise ValueError("<< merges what is no mapping")  # noqa: TRY004  (of the file, not of the caller)
            own += [item for item in _items(merged) if item[0].value not in names]
            names = [key.value for key, _ in own]
    return own


def _size(node: Node, known: dict[int, int]) -> int:
    """How many nodes there are below a node and with it, an alias counted as what it stands for."""
    if id(node) not in known:
        children = [] if isinstance(node, ScalarNode) else node.value
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _references(node: Node, seen: set[int]) -> Iterator[_Path]:
    """The paths that the references below a node name, such as ("a", "b") for `!ref <a[b]> * 2`."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, ScalarNode):
        if _tag(node) in _REFERENCES:
            for reference in _REFERENCE.findall(node.value):
                yield tuple(part.strip("]") for part in reference.split(".")[0].split("["))
    else:
        children = [child for item in _items(node) for child in item] if isinstance(node, MappingNode) else node.value
        for child in children:
            yield from _references(child, seen)


def _line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
