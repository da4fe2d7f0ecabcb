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
"""How many brackets may be open at a time: the scanner looks at each of them for every token."""

_MOST_MERGED: Final = 10_000
"""How many keys all mappings together may take from others."""

_MERGE: Final = CORE + "merge"

_VERSION: Final = (1, 2)
"""Of YAML: the one that documents are of which do not say."""

Path = tuple[str, ...]
"""Where a node stands: the keys that lead to it."""


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
    """What reads and writes nodes."""
    found = YAML(typ="rt", pure=True)
    found.Scanner = _Scanner
    found.composer.warn_double_anchors = False  # YAML allows to use an anchor's name again
    return found


@lru_cache(maxsize=16)  # many checkpoints have the same configuration
def compose(text: str) -> MappingNode:
    """The mapping that a document is, not to be changed.

    Raises:
        Exception: it is none, or too large or deep; ruamel raises almost anything.
    """
    if len(text) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} characters")
    root = yaml().compose(io.StringIO(text))
    if not isinstance(root, MappingNode):
        raise ValueError("something else is at the top")  # noqa: TRY004  (of the file, not of the caller)
    return root


def tag(node: Node) -> str:
    """A node's tag, in full."""
    return str(node.tag or "")


class Document:
    """The mappings of a document, each looked through once however many aliases lead to it."""

    def __init__(self, root: MappingNode) -> None:
        self.root = root
        self._items: dict[int, list[tuple[Node, Node]]] = {}
        self._values: dict[int, dict[Hashable, list[Node]]] = {}
        self._merged = 0

    def at(self, path: Path) -> Node | None:
        """The node at a path; None if there is none.

        Raises:
            ValueError: a key of the path occurs twice in its mapping; or see `items`.
            RecursionError: see `items`.
        """
        node: Node | None = self.root
        for part in path:
            found = self._values_of(node).get(part, []) if isinstance(node, MappingNode) else []
            if len(found) > 1:
                raise ValueError(f"the key {part} occurs twice in one mapping")
            node = found[0] if found else None
        return node

    def _values_of(self, node: MappingNode) -> dict[Hashable, list[Node]]:
        if id(node) not in self._values:
            values = self._values[id(node)] = {}
            for key, value in self.items(node):
                values.setdefault(_name(key), []).append(value)
        return self._values[id(node)]

    def twice(self, node: MappingNode) -> str | None:
        """A key that occurs twice in a mapping; None if there is none.

        Raises:
            ValueError, RecursionError: see `items`.
        """
        return next((str(key) for key, found in self._values_of(node).items() if len(found) > 1), None)

    def items(self, node: MappingNode) -> list[tuple[Node, Node]]:
        """A mapping's keys and values, with those that it merges (`<<`), which HyperPyYAML would leave unresolved.

        Raises:
            ValueError: it merges what is no mapping, or too much, or has two keys `<<`.
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
    """The mappings that a merge is of."""
    found = node.value if isinstance(node, SequenceNode) else [node]
    mappings = [each for each in found if isinstance(each, MappingNode)]
    if len(mappings) < len(found):
        raise ValueError("<< merges what is no mapping")
    return mappings


def _name(key: Node) -> Hashable:
    """By what a key is looked up."""
    return key.value if isinstance(key, ScalarNode) else id(key)
