"""The part of a document that one node needs, made harmless: it runs nothing, and comes to no more than it may.

A few lines can stand for more than any machine holds: aliases of aliases, references that double a text, products of
texts. What a part comes to is reckoned before anything in it is worked out.
"""

import io
import re
from typing import Final

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from cosyjit.configuration.yaml_nodes import CORE, Document, Path, tag, yaml

NEW: Final = "!new:"
_REFERENCES: Final = ("!ref", "!copy")
_PLAIN: Final = {CORE + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map")}

_KINDS: Final = {
    "timestamp": "a date",
    "binary": "binary data",
    "set": "a set",
    "omap": "an ordered mapping",
    "pairs": "a list of pairs",
    "python/tuple": "a tuple",
    "!tuple": "a tuple",
}
"""What values are called that HyperPyYAML makes objects of, by their tags; of others the tag itself is shown."""

_DATE: Final = re.compile(r"[0-9TtZz :.+-]{1,40}")

_LARGEST: Final = 100_000
"""The most characters that all of it may come to; a published encoder comes to 3,000."""

_LONGEST: Final = 2_000
"""The most characters of a scalar, the references in it worked out."""

_LEAST: Final = 64
"""The characters that any scalar counts at least: no number that a division gives is longer."""

_REFERENCE: Final = re.compile(r"<([^<>.]*)>")
"""With a point in it, it would be an attribute of what an object is when it was built."""

_UNSAFE: Final = re.compile(r"""^$|^\*|\*\*|\*$|['"\\]""")
"""In a text that is worked out as arithmetic: what makes strings of its parts, which can be multiplied, or powers. Two
stars may also come together from two texts, or around an empty one."""


class Cutting:
    """A node, what it refers to, and what that refers to."""

    def __init__(self, document: Document, path: Path) -> None:
        """
        Args:
            document: of which it is a part.
            path: of the node, which is there.

        Raises:
            ValueError: a reference leads nowhere, or it comes to more than it may.
            RecursionError: it contains itself.
        """
        self._document = document
        self._copies: dict[int, Node] = {}
        self._sizes: dict[tuple[int, bool], int] = {}
        self._open: set[int] = set()
        self._kept: dict[Path, Node] = {}
        self._size(self._keep(path), part=False)
        _check(sum(self._size(node, part=False) for node in self._kept.values()))
        self._wanted = {path[: length + 1] for path in self._kept for length in range(len(path))}

    def text(self) -> str:
        """The cutting as a document."""
        stream = io.StringIO()
        yaml().serialize(self._cut(self._document.root, ()), stream)
        return stream.getvalue()

    def _keep(self, path: Path) -> Node:
        node = self._document.at(path)
        if node is None:
            raise ValueError(f"the reference to {'.'.join(path)} leads nowhere, or through another one")
        return self._kept.setdefault(path, self._inert(node))

    def _cut(self, node: Node, path: Path) -> Node:
        if path in self._kept or not isinstance(node, MappingNode):
            return self._inert(node)
        return MappingNode(
            CORE + "map",
            [
                (key, self._cut(value, (*path, key.value)))
                for key, value in self._document.items(node)
                if isinstance(key, ScalarNode) and (*path, key.value) in self._wanted
            ],
        )

    def _inert(self, node: Node) -> Node:
        """A copy in which each node of any but a harmless tag is a string that names it; shared nodes stay shared.

        The copies have the tags in full: written as they stand, a `%TAG` directive makes them look like others.
        """
        if id(node) not in self._copies:
            name = tag(node)
            if isinstance(node, ScalarNode) and (name in _PLAIN or name in _REFERENCES):
                self._copies[id(node)] = ScalarNode(name, node.value, style=node.style)
            elif isinstance(node, MappingNode) and (name in _PLAIN or name.startswith(NEW)):
                again = self._document.twice(node)
                if again is not None:
                    raise ValueError(f"the key {again} occurs twice in one mapping")
                mapping = self._copies[id(node)] = MappingNode(name, [])
                mapping.value = [(self._inert(key), self._inert(value)) for key, value in self._document.items(node)]
            elif isinstance(node, SequenceNode) and name in _PLAIN:
                sequence = self._copies[id(node)] = SequenceNode(name, [])
                sequence.value = [self._inert(item) for item in node.value]
            else:
                self._copies[id(node)] = ScalarNode(CORE + "str", _words(node), style='"')
        return self._copies[id(node)]

    def _size(self, node: Node, *, part: bool) -> int:
        """How many characters an inert node may come to, aliases and references counted as what they stand for.

        Args:
            part: whether it becomes part of a text, which HyperPyYAML then works out as arithmetic.
        """
        known = id(node), part
        if known not in self._sizes:
            if id(node) in self._open:
                raise ValueError("it contains itself, or refers to itself")
            self._open.add(id(node))
            self._sizes[known] = _check(self._reckon(node, part=part))
            self._open.discard(id(node))
        return self._sizes[known]

    def _reckon(self, node: Node, *, part: bool) -> int:
        if isinstance(node, ScalarNode):
            return self._reckon_scalar(node, part=part)
        if part:
            raise ValueError("a list or a mapping would become part of a text")
        pairs = node.value if isinstance(node, MappingNode) else [node.value]
        return _LEAST + sum(self._size(child, part=False) for pair in pairs for child in pair)

    def _reckon_scalar(self, node: ScalarNode, *, part: bool) -> int:
        text, size = node.value, _LEAST + len(node.value)
        if tag(node) in _REFERENCES and "<" in text:
            part = part or not _REFERENCE.fullmatch(text)
            size += sum(self._size(self._target(each), part=part) for each in _REFERENCE.findall(text))
            if "<" in _REFERENCE.sub("", text):
                raise ValueError("a reference is none to a node")
        if part and _UNSAFE.search(text):
            raise ValueError("arithmetic is for numbers: no powers, no quotes, nothing empty")
        if max(len(text), part and size) > _LONGEST:
            raise ValueError(f"a text comes to more than {_LONGEST:,} characters")
        return size

    def _target(self, reference: str) -> Node:
        """What a reference such as "a[b]" leads to."""
        node = self._keep(tuple(part.strip("]") for part in reference.split("[")))
        if isinstance(node, ScalarNode) and tag(node) not in _REFERENCES and "<" in node.value:
            raise ValueError("a reference leads to a text with < in it, which would be taken for another one")
        return node


def _words(node: Node) -> str:
    """What stands for a node that is none of plain data: what kind of value it is, or its tag.

    No option takes such a text, so that whoever reads it refuses it.
    """
    name = tag(node).removeprefix(CORE)
    kind = _KINDS.get(name, name)
    if isinstance(node, ScalarNode) and _DATE.fullmatch(node.value) and name == "timestamp":
        return f"{kind} ({node.value})"
    return kind


def _check(size: int) -> int:
    if size > _LARGEST:
        raise ValueError(f"it comes to more than {_LARGEST:,} characters")
    return size
