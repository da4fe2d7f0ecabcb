"""The pages for people, and what is in them: words, sentences, blocks of code."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.processes import ROOT

PAGES: Final = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

_END: Final = re.compile(r"(?<=[.!?])[)\"”]?\s+")
_ABBREVIATIONS: Final = re.compile(r"\b(e\.g|i\.e|vs)\. ")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        language: what the page says that it is.
        content: its lines.
    """

    language: str
    content: str


def name_of(page: Path) -> str:
    """The path of a page from the root, as tests are named for it."""
    return str(page.relative_to(ROOT))


def tokens_of(text: str) -> Iterator[Token]:
    """The tokens of a page in Markdown, down to the parts of its lines."""
    for token in MarkdownIt().enable("table").parse(text):
        yield token
        yield from token.children or []


def blocks_of(page: Path) -> list[Block]:
    """The blocks of code of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    return [Block(token.info.strip(), token.content) for token in tokens_of(text) if token.type == "fence"]


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page's paragraphs and items of lists. Tables, headings and blocks of code are not prose."""
    tokens = MarkdownIt().enable("table").parse(text)
    for before, token in pairwise(tokens):
        if before.type == "paragraph_open":
            yield from _END.split(_ABBREVIATIONS.sub("", _shown(token)))


def _shown(token: Token) -> str:
    """The text of a paragraph as it is read: a piece of code is one word."""
    parts = []
    for each in token.children or []:
        if each.type == "code_inline":
            parts.append("`" + re.sub(r"\s+", "_", each.content) + "`")
        elif each.type == "text":
            parts.append(each.content)
        elif each.type in {"softbreak", "hardbreak"}:
            parts.append(" ")
    return "".join(parts)


def length(sentence: str) -> int:
    """How many words a sentence has."""
    return len([word for word in sentence.split() if re.search(r"\w", word)])


def code_of(text: str) -> list[str]:
    """The pieces of code in a text."""
    return re.findall(r"`([^`]+)`", text)


def rows_of(text: str) -> list[list[str]]:
    """The rows of a page's tables, heads included, as their cells."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line)]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
