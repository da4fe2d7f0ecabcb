"""A YAML document as nodes, in bounded time and memory. Nothing in it is constructed."""

import io
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.scanner import RoundTripScanner

CORE: Final = "tag:yaml.org,2002:"

LARGEST: Final = 64 << 10
"""The most characters of a document; published configurations have 10,000."""

_DEEPEST: Final = 20
"""How many brackets may be open at a time, since the scanner looks at each of them for every token."""

_MOST_MERGED: Final = 10_000
"""How many keys all mappings of a document may merge (`<<`) together."""

_MERGE: Final = CORE + "merge"

_VERSION: Final = (1, 2)
"""The version of YAML of documents that do not declare one."""

Path = tuple[str, ...]
"""The keys that lead to a node."""


class _Scanner(RoundTripScanner):
    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:  # noqa: N803  (ruamel's name)
        if len(self.flow_context) >= _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} brackets are open")
        super().fetch_flow_collection_start(TokenClass, to_push)

    def scan_yaml_directive_value(self, start_mark: Any) -> Any:
        version = super().scan_yaml_directive_value(start_mark)
        if version != _VERSION:  # where 010 is 8 and yes is true; HyperPyYAML reads no file that says so
            raise ValueError(f"it declares itself YAML {version[0]}.{version[1]}; remove the line %YAML")
        return version


def yaml() -> YAML:
    """A reader and writer of nodes."""
    ruamel = YAML(typ="rt", pure=True)
    ruamel.Scanner = _Scanner
    ruamel.composer.warn_double_anchors = False  # YAML allows to use an anchor's name again
    return ruamel


@lru_cache(maxsize=16)  # many checkpoints have the same configuration
def compose(text: str) -> MappingNode:
    """The mapping at the top level of a document; callers must not change it.

    Raises:
        Exception: there is none, or the document is too large or deep; ruamel raises almost anything.
    """
    if len(text) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} characters")
    root = yaml().compose(io.StringIO(text))
    if not isinstance(root, MappingNode):
        raise ValueError("the top level is not a mapping")  # noqa: TRY004  (of the file, not of the caller)
    return root


def tag(node: Node) -> str:
    """The tag of a node, in full."""
    return str(node.tag or "")


class Document:
    """The mappings of a document, each indexed once, however many aliases lead to it."""

    def __init__(self, root: MappingNode) -> None:
        self.root = root
        self._items: dict[int, list[tuple[Node, Node]]] = {}
        self._values: dict[int, dict[Hashable, list[Node]]] = {}
        self._merged = 0

    def at(self, path: Path) -> Node | None:
        """The node at a path; None if there is none.

        Raises:
            ValueError: a key of the path occurs twice in its mapping; or as `items`.
            RecursionError: as `items`.
        """
        node: Node | None = self.root
        for part in path:
            values = self._values_of(node).get(part, []) if isinstance(node, MappingNode) else []
            if len(values) > 1:
                raise ValueError(f"the key {part} occurs twice in one mapping")
            node = values[0] if values else None
        return node

    def _values_of(self, node: MappingNode) -> dict[Hashable, list[Node]]:
        if id(node) not in self._values:
            values = self._values[id(node)] = {}
            for key, value in self.items(node):
                values.setdefault(_name(key), []).append(value)
        return self._values[id(node)]

    def repeated_key(self, node: MappingNode) -> str | None:
        """A key that occurs twice in a mapping; None if there is none.

        Raises:
            ValueError, RecursionError: as `items`.
        """
        return next((str(key) for key, values in self._values_of(node).items() if len(values) > 1), None)

    def items(self, node: MappingNode) -> list[tuple[Node, Node]]:
        """The keys and values of a mapping, including those that it merges (`<<`), which HyperPyYAML does not resolve.

        Raises:
            ValueError: it merges something that is not a mapping, or too many keys, or has two keys `<<`.
            RecursionError: it merges itself.
        """
        if id(node) not in self._items:
            if sum(tag(key) == _MERGE for key, _ in node.value) > 1:
                raise ValueError("the key << occurs twice in one mapping")
            own = [(key, value) for key, value in node.value if tag(key) != _MERGE]
            names = {_name(key) for key, _ in own}
            for key, value in node.value:
                for merged in _sources(value) if tag(key) == _MERGE else []:
                    added = [item for item in self.items(merged) if _name(item[0]) not in names]
                    self._merged += len(added) + 1
                    if self._merged > _MOST_MERGED:
                        raise ValueError(f"<< merges more than {_MOST_MERGED:,} keys")
                    own += added
                    names.update(_name(added_key) for added_key, _ in added)
            self._items[id(node)] = own
        return self._items[id(node)]


def _sources(node: Node) -> list[MappingNode]:
    """The mappings that the value of a key `<<` stands for."""
    merged = node.value if isinstance(node, SequenceNode) else [node]
    mappings = [source for source in merged if isinstance(source, MappingNode)]
    if len(mappings) < len(merged):
        raise ValueError("<< merges something that is not a mapping")
    return mappings


def _name(key: Node) -> Hashable:
    """The value by which a key is looked up."""
    return key.value if isinstance(key, ScalarNode) else id(key)
