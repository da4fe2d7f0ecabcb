"""The subset of a YAML document that one node needs, made inert: it runs nothing, and its expanded size is bounded.

A few lines can expand to more than any machine holds: aliases of aliases, references that double a text, products of
texts. So the expanded size of a subset is computed before HyperPyYAML resolves anything in it.

For example, of the document

    sample_rate: 24000
    width: 64
    hidden: !ref <width> * 2
    discount: !apply:random.random
    llm: !new:models.LM
        size: !ref <hidden>
        init: !apply:torch.load [weights.pt]
    flow: !new:models.Flow
        width: !ref <width>

the node `llm` needs the subset

    width: 64
    hidden: !ref <width> * 2
    llm: !new:models.LM
        size: !ref <hidden>
        init: "!apply:torch.load"

It is found in three steps:

1. Include the node, `llm`. Its references are followed, and what they lead to is included as well: `hidden`, then
   `width`. Nothing leads to `sample_rate`, `discount` or `flow`, so whatever stands there does not matter.
2. Make inert what is included: a node whose tag would run something becomes a string that names the tag, as `init`.
3. Add up the expanded sizes. A scalar counts its characters and at least 64, and a reference counts what it leads to
   again: `hidden` counts 64 + 11 for itself and 64 + 2 for `width`. The sum may not exceed 100,000.
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
"""What messages call the values of these tags, of which HyperPyYAML makes objects. Other tags are shown themselves."""

_DATE: Final = re.compile(r"[0-9TtZz :.+-]{1,40}")

_LARGEST: Final = 100_000
"""The largest expanded size of a subset, in characters; that of a published encoder is 3,000."""

_LONGEST: Final = 2_000
"""The largest expanded size of a text, in characters."""

_QUOTED: Final = 40
"""How much of a text a message quotes, in characters."""

_LEAST: Final = 64
"""The smallest size that a scalar counts, in characters. The result of a division is never longer."""

_REFERENCE: Final = re.compile(r"<([^<>.]*)>")
"""A reference to a node. With a point in it, it would name an attribute of the object that is built from the node."""

_UNSAFE: Final = re.compile(r"""^$|^\*|\*\*|\*$|['"\\]""")
"""What a text may not have that HyperPyYAML evaluates as arithmetic: powers; and quotes, since strings can be
multiplied. Two stars make a power also where they come from two texts, or stand around an empty one."""


class Subset:
    """A node, what it refers to, and what that refers to in turn."""

    def __init__(self, document: Document, path: Path) -> None:
        """Collect the subset that a node needs.

        Args:
            document: the whole document.
            path: the path of the node, which exists.

        Raises:
            ValueError: a reference leads nowhere, or the expanded size is too large.
            RecursionError: the node contains itself.
        """
        self._document = document
        self._copies: dict[int, Node] = {}
        self._sizes: dict[tuple[int, bool], int] = {}
        self._open: set[int] = set()
        self._included: dict[Path, Node] = {}
        self._bounded_size(self._include(path), part=False)
        _check(sum(self._bounded_size(node, part=False) for node in self._included.values()))
        self._wanted = {path[: length + 1] for path in self._included for length in range(len(path))}

    def text(self) -> str:
        """The subset as the text of a YAML document."""
        stream = io.StringIO()
        yaml().serialize(self._pruned(self._document.root, ()), stream)
        return stream.getvalue()

    def _include(self, path: Path) -> Node:
        """Add the node at a path to the subset; what it refers to is added when its size is computed."""
        node = self._document.at(path)
        if node is None:
            raise ValueError(f"the reference to {'.'.join(path)} leads nowhere, or through another reference")
        return self._included.setdefault(path, self._inert(node))

    def _pruned(self, node: Node, path: Path) -> Node:
        """A copy of a node with nothing but what is included or leads to it."""
        if path in self._included or not isinstance(node, MappingNode):
            return self._inert(node)
        return MappingNode(
            CORE + "map",
            [
                (key, self._pruned(value, (*path, key.value)))
                for key, value in self._document.items(node)
                if isinstance(key, ScalarNode) and (*path, key.value) in self._wanted
            ],
        )

    def _inert(self, node: Node) -> Node:
        """A copy in which a string stands for each node whose tag is not harmless; shared nodes stay shared.

        The copies have their tags in full, since a `%TAG` directive can disguise a tag that is written in short.
        """
        if id(node) not in self._copies:
            name = tag(node)
            if isinstance(node, ScalarNode) and (name in _PLAIN or name in _REFERENCES):
                self._copies[id(node)] = ScalarNode(name, node.value, style=node.style)
            elif isinstance(node, MappingNode) and (name in _PLAIN or name.startswith(NEW)):
                repeated = self._document.repeated_key(node)
                if repeated is not None:
                    raise ValueError(f"the key {repeated} occurs twice in one mapping")
                mapping = self._copies[id(node)] = MappingNode(name, [])
                mapping.value = [(self._inert(key), self._inert(value)) for key, value in self._document.items(node)]
            elif isinstance(node, SequenceNode) and name in _PLAIN:
                sequence = self._copies[id(node)] = SequenceNode(name, [])
                sequence.value = [self._inert(item) for item in node.value]
            else:
                self._copies[id(node)] = ScalarNode(CORE + "str", _description(node), style='"')
        return self._copies[id(node)]

    def _bounded_size(self, node: Node, *, part: bool) -> int:
        """The expanded size of an inert node, which is computed once.

        Args:
            part: whether the node becomes part of a text, which HyperPyYAML then evaluates as arithmetic.

        Raises:
            ValueError: the node contains itself, or is too large.
        """
        known = id(node), part
        if known not in self._sizes:
            if id(node) in self._open:
                raise ValueError("it contains itself, or refers to itself")
            self._open.add(id(node))
            self._sizes[known] = _check(self._expanded_size(node, part=part))
            self._open.discard(id(node))
        return self._sizes[known]

    def _expanded_size(self, node: Node, *, part: bool) -> int:
        """The size of a node in characters, each alias and reference counted as all that it stands for."""
        if isinstance(node, ScalarNode):
            return self._expanded_size_of_scalar(node, part=part)
        if part:
            raise ValueError("a list or a mapping would become part of a text")
        pairs = node.value if isinstance(node, MappingNode) else [node.value]
        return _LEAST + sum(self._bounded_size(child, part=False) for pair in pairs for child in pair)

    def _expanded_size_of_scalar(self, node: ScalarNode, *, part: bool) -> int:
        text, size = node.value, _LEAST + len(node.value)
        if tag(node) in _REFERENCES and "<" in text:
            part = part or not _REFERENCE.fullmatch(text)
            size += sum(self._bounded_size(self._target(name), part=part) for name in _REFERENCE.findall(text))
            if "<" in _REFERENCE.sub("", text):
                raise ValueError(f"{text[:_QUOTED]!r} has a reference that is not to a node")
        if part and _UNSAFE.search(text):
            raise ValueError("arithmetic cannot have powers, quotes or empty texts")
        if max(len(text), part and size) > _LONGEST:
            raise ValueError(f"a text expands to more than {_LONGEST:,} characters")
        return size

    def _target(self, reference: str) -> Node:
        """The node that a reference such as "a[b]" leads to."""
        node = self._include(tuple(part.strip("]") for part in reference.split("[")))
        if isinstance(node, ScalarNode) and tag(node) not in _REFERENCES and "<" in node.value:
            raise ValueError("a reference leads to a text with <, which would be read as another reference")
        return node


def _description(node: Node) -> str:
    """The text that replaces a node which is not plain data: the kind of its value, or its tag.

    No option accepts such a text, so that the reader of the option refuses it.
    """
    name = tag(node).removeprefix(CORE)
    kind = _KINDS.get(name, name)
    if isinstance(node, ScalarNode) and _DATE.fullmatch(node.value) and name == "timestamp":
        return f"{kind} ({node.value})"
    return kind


def _check(size: int) -> int:
    if size > _LARGEST:
        raise ValueError(f"it expands to more than {_LARGEST:,} characters")
    return size
