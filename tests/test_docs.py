"""What the pages for people name is there: files, links, verbs of make, and rooms."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pytest

from tests.support.pages import PAGES, name_of, tokens_of
from tests.support.processes import ROOT
from tests.test_architecture import ROOMS

FOLDERS: Final = ("cosyjit", "flows", "tests", "benchmarks", "containers", "docs", ".ci")

pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


def links(text: str) -> list[str]:
    """The addresses of a page's links and pictures."""
    found = [token.attrGet("href") or token.attrGet("src") for token in tokens_of(text)]
    return [str(address) for address in found if address is not None]


def anchors(text: str) -> set[str]:
    """What the headings of a page are linked by, as GitHub makes it of their words."""
    tokens = list(tokens_of(text))
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, address: str) -> bool:
    """Whether a link of a page leads nowhere in this repository; links to elsewhere are not looked at."""
    if re.match(r"[a-z]+:", address):
        return False
    path, _, anchor = unquote(address).partition("#")
    to = page.parent / path if path else page
    return not to.exists() or bool(anchor and anchor not in anchors(to.read_text(encoding="utf-8")))


def code(text: str) -> Iterator[str]:
    """The words of a page that are shown as code."""
    for token in tokens_of(text):
        if token.type == "code_inline":
            yield from token.content.split()


def files(text: str) -> set[str]:
    """The files and folders of this repository that a page names; those with a placeholder in their names excepted."""
    names = {word.partition("::")[0] for word in code(text)}
    own = {name for name in names if name.partition("/")[0] in FOLDERS and "/" in name}
    modules = {name for name in names if re.fullmatch(r"(?!cosyvoice/)[\w/]+\.py", name)}  # those are the public code's
    return {name for name in own | modules if not re.search(r"[<>*…{]", name)}


def is_there(name: str) -> bool:
    """Whether a name is that of a file or folder, from the root or, as it is shorter, from the package."""
    return (ROOT / name).exists() or (ROOT / "cosyjit" / name).exists()


@pages
def test_each_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [address for address in links(text) if broken(page, address)] == []


@pages
def test_each_file_that_is_named_exists(page: Path) -> None:
    # A changelog tells of what was.
    named = set() if page.name == "CHANGELOG.md" else files(page.read_text(encoding="utf-8"))
    assert sorted(name for name in named if not is_there(name)) == []


@pages
def test_each_verb_of_make_that_is_named_exists(page: Path) -> None:
    verbs = set(re.findall(r"^([\w$()]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"`make (\w+)", page.read_text(encoding="utf-8")))
    assert named - verbs == set()


def test_what_leads_nowhere_is_found() -> None:
    page = ROOT / "README.md"
    text = "# One, two\n[a](#one-two) [b](#two) ![c](docs/none.png) [d](SECURITY.md#none) [e](https://example.com/x)\n"
    assert links(text) == ["#one-two", "#two", "docs/none.png", "SECURITY.md#none", "https://example.com/x"]
    assert anchors(text) == {"one-two"}
    assert broken(page, "#two")
    assert not broken(page, "#figures")
    assert broken(page, "docs/none.png")
    assert broken(page, "SECURITY.md#none")
    assert not broken(page, "https://example.com/x")
    named = files("| `store/none.py` | `tests/none/` and `python -m x tests/robustness/written/<version>` |\n|---|---|")
    assert named == {"store/none.py", "tests/none/"}
    assert not any(map(is_there, named))


def architecture(heading: str) -> str:
    """The part of the page on the architecture below a heading."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.split(r"^#+ .*\n", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def test_the_rooms_are_those_of_the_package() -> None:
    told = dict(re.findall(r"^\| `(\w+)/` \| (.*?) \|", architecture("Rooms"), flags=re.MULTILINE))
    rooms = {path.parent.name: ast.parse(path.read_text("utf-8")) for path in (ROOT / "cosyjit").glob("*/__init__.py")}
    assert told == {name: ast.get_docstring(tree) for name, tree in rooms.items()}


def test_the_order_of_rooms_is_that_of_the_imports() -> None:
    _, block, _ = architecture("Who may import whom").split("```")
    lines = block.removeprefix("text\n").strip().splitlines()
    assert [set(line.split()) for line in reversed(lines)] == list(ROOMS)
