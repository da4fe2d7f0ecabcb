"""Which components of a family are exported at which precisions: names, spellings of them, and patterns."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final

from cosyjit.errors import SelectionError
from cosyjit.families import PRECISIONS, Component, Family, Precision

ALL: Final = "all"
"""The name that stands for all components of a family, or all precisions of a component."""

_PATTERN: Final = frozenset("*?[")
"""What makes a name a pattern, such as `llm.*`, in the form of `fnmatch`."""

_SPELLINGS: Final = {
    **dict.fromkeys(("float32", "float", "single"), "fp32"),
    **dict.fromkeys(("float16", "half"), "fp16"),
    "bfloat16": "bf16",
}
"""What else precisions are called, by torch and by the options of other programs."""


def select(
    family: Family, components: Sequence[str] | None, precisions: Sequence[str] | None
) -> tuple[tuple[Component, Precision], ...]:
    """Components of a family at precisions, in the order of the tables.

    Each text may be a name, several names with commas between them, "all", or a pattern such as "llm.*".

    Args:
        family: the family.
        components: for None, all that the family has but those on request. "all" and patterns stand for those as well,
            but for the ones that are published under the names of others for which they stand.
        precisions: also in capitals, or as torch calls them; for None, the defaults of each component. A component is
            left out at the precisions that it does not have. Of one that is published under a single name, "all" and
            patterns stand for its default, if they match that; and for none, if a name says which.

    Raises:
        SelectionError: a component or precision does not exist, a pattern matches none, none of the components has a
            precision, or two artifacts would be published under one name.
    """
    parts = _components(family, components)
    selected = tuple(_at_precisions(parts, precisions))
    published: dict[str, Component] = {}
    for part, precision in selected:
        name = part.file_name(precision.name)
        other = published.setdefault(name, part)
        if other is not part:
            raise SelectionError(f"{other.name} and {part.name} are both published as {name}; choose one of them")
    return selected


def _components(family: Family, components: Sequence[str] | None) -> list[Component]:
    parts = family.components
    if components is None:
        return [part for part in parts if not part.on_request]
    known = [part.name for part in parts]
    kind = f"component of {family.name}"
    names: set[str] = set()
    for given in _words(components, kind, known):
        word = given.lower()
        found = [part for part in parts if _matches(part.name, word)]
        if not found:
            raise _unknown(given, kind, known)
        names |= {word} if word in known else _without_rivals(found)
    return [part for part in parts if part.name in names]


def _without_rivals(parts: Collection[Component]) -> set[str]:
    """The names of components, but for those on request that are published under the names of others of them."""
    nodes = {(part.node, part.kind) for part in parts if not part.on_request}
    return {part.name for part in parts if not part.on_request or (part.node, part.kind) not in nodes}


def _at_precisions(
    parts: Sequence[Component], precisions: Sequence[str] | None
) -> Iterator[tuple[Component, Precision]]:
    words = None if precisions is None else _precision_words(parts, precisions)
    for part in parts:
        names = part.defaults if words is None else _precisions_of(part, words)
        yield from ((part, each) for name, each in PRECISIONS.items() if name in names and name in part.tolerances)


def _precision_words(parts: Sequence[Component], precisions: Sequence[str]) -> list[str]:
    """Names of precisions and patterns, each of which some of the components has."""
    had = list(dict.fromkeys(name for part in parts for name in part.tolerances))
    lacking = ", ".join(part.name for part in parts)
    found = []
    for given in _words(precisions, "precision", list(PRECISIONS)):
        word = _SPELLINGS.get(given.lower(), given.lower())
        if not any(_matches(name, word) for name in PRECISIONS):
            raise _unknown(given, "precision", list(PRECISIONS))
        if not any(_matches(name, word) for name in had):
            raise _unknown(given, f"precision of {lacking}", had, others=())
        found.append(word)
    return found


def _precisions_of(part: Component, words: Sequence[str]) -> Collection[str]:
    """The names of a component's precisions for which words stand."""
    found = [name for name in part.tolerances if any(_matches(name, word) for word in words)]
    if part.published is None or len(found) <= 1:
        return found
    named = [name for name in found if name in words]
    choice = named or [name for name in found if name in part.defaults] or found
    if len(choice) > 1:
        raise SelectionError(
            f"{part.name} is published as one {part.published}, whatever its precision; choose one of "
            f"{', '.join(choice)}, or other components"
        )
    return choice


def _words(texts: Iterable[str], kind: str, known: Sequence[str]) -> list[str]:
    """The names and patterns in texts, which may have several with commas between them."""
    words = [word.strip() for text in texts for word in text.split(",")]
    if not words:
        raise SelectionError(f"no {kind} is selected; choose from {', '.join((*known, ALL))}")
    return words


def _matches(name: str, word: str) -> bool:
    return word in (name, ALL) or (not _PATTERN.isdisjoint(word) and fnmatchcase(name, word))


def _unknown(word: str, kind: str, known: Sequence[str], others: Sequence[str] = (ALL,)) -> SelectionError:
    problem = f"is not a {kind}" if _PATTERN.isdisjoint(word) else f"matches no {kind}"
    return SelectionError(f"{word!r} {problem}; choose from {', '.join((*known, *others))}")
