"""What the pages say of commands, options, errors and figures is so, and they are written plainly."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cosyjit import errors
from cosyjit.cli.answers import BAD_INPUT, FAILED
from cosyjit.cli.app import app
from cosyjit.errors import BuildError, CosyjitError, ResourceError, TransientError
from tests.support.pages import PAGES, blocks_of, code_of, length, name_of, rows_of, sentences
from tests.support.processes import ROOT

ENGLISH: Final = ROOT / "README.md"
CHINESE: Final = ROOT / "README.zh-CN.md"
LONGEST: Final = 25
"""The most words of a sentence."""

LANGUAGES: Final = {"sh", "python", "console", "text", "json", "yaml", "toml"}
"""What blocks of code may be: `sh` and `python` are run by tests/docs/test_commands.py."""

pages = pytest.mark.parametrize("page", PAGES, ids=name_of)
readmes = pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=name_of)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands() -> set[str]:
    """The commands of the command line."""
    return {name for name in app if not name.startswith("-")}


def options(command: str) -> set[str]:
    """The options of a command, each by the name that its help gives first; what has a place is none."""
    return {argument.name for argument in app[command].assemble_argument_collection() if argument.index is None}


def words_of_commands(text: str) -> set[str]:
    """What the first cells of a page's rows name as commands: `cosyjit history`, `rollback`."""
    cells = [row[0] for row in rows_of(text) if row[0].startswith("`cosyjit ")]
    return {re.split(r"\s+", code.removeprefix("cosyjit "))[0] for cell in cells for code in code_of(cell)}


@pages
def test_each_sentence_is_short(page: Path) -> None:
    # A changelog tells of what was, and grows by a line for each change.
    told = [] if page.name == "CHANGELOG.md" else sentences(text_of(page))
    assert [sentence for sentence in told if length(sentence) > LONGEST] == []


def test_what_a_sentence_is() -> None:
    text = "# A. Title\n\nOne `of a` kind. Two, e.g. *this* (and that). Three?\n\n- four\n  lines\n\n| a. b |\n|---|\n"
    assert list(sentences(text)) == ["One `of_a` kind.", "Two, this (and that).", "Three?", "four lines"]
    assert length("One `of_a` - kind (it is).") == 5


@pages
def test_each_block_of_code_says_what_it_is(page: Path) -> None:
    assert [block for block in blocks_of(page) if block.language not in LANGUAGES] == []


@pages
def test_each_block_of_python_is_python(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            ast.parse(block.content)


def test_the_readme_is_a_page() -> None:
    assert len(ENGLISH.read_bytes()) <= 6_000


@readmes
def test_the_readme_lists_each_command(page: Path) -> None:
    assert words_of_commands(text_of(page)) == commands()


def test_both_readmes_say_the_same() -> None:
    def without_comments(page: Path) -> list[tuple[str, str]]:
        return [(block.language, re.sub(r" +#.*", "", block.content)) for block in blocks_of(page)]

    assert without_comments(ENGLISH) == without_comments(CHINESE)
    links = [re.findall(r"\]\(((?!README)[\w./-]+)", text_of(page)) for page in (ENGLISH, CHINESE)]
    assert set(links[0]) == set(links[1])
    figures = [sorted(re.findall(r"\d+\.\d+", text_of(page))) for page in (ENGLISH, CHINESE)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("command", sorted(commands()))
def test_each_option_is_told_of(command: str) -> None:
    told = {word for page in (ROOT / "docs").glob("*.md") for word in re.findall(r"--[a-z][a-z-]*", text_of(page))}
    assert {option for option in options(command) if not {option, option.replace("--", "--no-")} & told} == set()


def _errors() -> Iterator[type[CosyjitError]]:
    for each in vars(errors).values():
        if isinstance(each, type) and issubclass(each, CosyjitError):
            yield each


def _row(error: type[CosyjitError]) -> list[str]:
    """What the page has to say of an error, but for the words."""
    roots = (CosyjitError, TransientError)
    parents = [f"`{base.__name__}`" for base in error.__bases__ if base is not Exception]
    status = "" if error in roots else str(FAILED if issubclass(error, BuildError | ResourceError) else BAD_INPUT)
    again = "" if error is CosyjitError else ("yes" if issubclass(error, TransientError) else "no")
    return [f"`{error.__name__}`", ", ".join(parents), status, again]


def test_the_page_of_errors_has_all_of_them() -> None:
    rows = [row for row in rows_of(text_of(ROOT / "docs" / "errors.md")) if row[0].endswith("Error`")]
    told = [[name, parents, status, again] for name, parents, _, status, again in rows]
    assert sorted(told) == sorted(map(_row, _errors()))


def test_each_table_of_figures_is_below_the_command_that_measures_it() -> None:
    sections = re.split(r"^## ", text_of(ROOT / "docs" / "performance.md"), flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections if "python -m benchmarks." not in section] == []
    figures = [row for row in rows_of(text_of(ENGLISH)) if re.search(r"\d (ms|s|MB)", row[1])]
    assert figures
    assert [row for row in figures if not re.search(r"benchmarks|the same", row[-1])] == []
