"""Changes of JSON documents for fuzzing: what a parser may have left out to ask for."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from cosyjit import documents

VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 2**63, 2**64, 10**4000, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "..", ".", "/", "/etc/passwd", "../../etc/passwd", "a/../b", "a\\b", "%2e%2e", "a\0b", "a\nb", "~", "~root"),
    *(
        "\x1b[31m",
        "\u202e",
        "\u2028",
        "\ud800",
        "\u2024\u2024",
        "\uff0e\uff0e",
        "x" * 300,
        "x" * 5000,
        "0" * 32,
        "f" * 64,
    ),
    *([], {}, [[]], [None], {"": ""}, {"a": {"b": 1}}, "cosyvoice.yaml", "llm.pt"),
)


def deep(depth: int) -> Any:
    """Lists in lists."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def change(document: Any, chance: random.Random) -> Any:
    """A JSON document of which one value, or a few, became another."""
    found = copied(document)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        found = _change_one(found, chance)
    return found


def copied(document: Any) -> Any:
    """A document of which nothing is shared with another."""
    return json.loads(json.dumps(document))


def _change_one(document: Any, chance: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return copied(chance.choice(VALUES))
    parent, key = chance.choice(places)
    how = chance.randrange(8)
    if how == 0:
        del parent[key]
    elif how == 1:
        other, name = chance.choice(places)
        parent[key] = copied(other[name])
    elif how == 2:
        parent[key] = deep(chance.choice((3, 30, 90)))
    elif how == 3 and isinstance(parent, dict):
        parent[chance.choice(("", "..", "a\0b", "\x1b[31m", "\ud800", "x" * 300, f"{key}x"))] = parent.pop(key)
    elif how == 4 and isinstance(parent, list):
        parent.append(copied(parent[key]))
    else:
        parent[key] = copied(chance.choice(VALUES))
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Where the values of a document stand: in what, and under which key."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        parent = waiting.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else []
        found += [(parent, key) for key in keys]
        waiting += [parent[key] for key in keys]
    return found


def resealed(document: dict[str, Any]) -> bytes:
    """A document with the checksum that it has to have."""
    return documents.with_checksum({name: value for name, value in document.items() if name != "checksum"})


def mutator(seeds: Sequence[bytes], *written: Callable[[dict[str, Any]], bytes]) -> Callable[[bytes, int, int], bytes]:
    """Changes the documents that contents are, and writes them in one of several ways.

    Args:
        seeds: what is begun with anew where a content is no document any more.
        written: of which a seed takes one.
    """

    def mutate(content: bytes, size: int, seed: int) -> bytes:
        chance = random.Random(seed)  # noqa: S311  (the same each time)
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = json.loads(chance.choice(seeds))
        try:
            changed = chance.choice(written)(change(document, chance))
        except (
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            RecursionError,
        ):  # what cannot be written in this way
            return content[:size]
        return changed if len(changed) <= size else content[:size]

    return mutate
