"""Text from outside, in each medium: shown as it is, in one line, and nothing else than shown."""

from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it.token import Token

from cosyjit.text import listed, markdown, one_line, plain, without_secrets, xml
from tests.support.hostile_text import HOSTILE, MARKDOWN

TEXTS: Final = st.text(st.characters(exclude_categories=())) | st.text("`|\\ *_[]()<>!#-\n\x1b\udc80a", max_size=12)
PLACES: Final = {
    "paragraph": "{}",
    "within a sentence": "so `it` is {} and `so`",
    "heading": "# {}",
    "list": "- {}\n- after",
    "table": "| one | two |\n| --- | --- |\n| {} | after |",
}
"""Where a page has such text."""


def within(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from within(token.children or [])


def rendered(page: str) -> list[Token]:
    return list(within(MARKDOWN.parse(page)))


def elements(page: str) -> list[str]:
    return [token.type for token in rendered(page) if token.type not in {"text", "code_inline"}]


def shown(page: str, *kinds: str) -> str:
    return "".join(token.content for token in rendered(page) if token.type in (kinds or ("text", "code_inline")))


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_line_is_printable_and_stays_what_it_is(text: str) -> None:
    line = plain(text)
    assert line.isprintable()
    assert plain(line) == line


@given(TEXTS)
def test_any_text_is_one_printable_line_and_what_is_printable_is_left(text: str) -> None:
    line = plain(text)
    assert line.isprintable()
    line.encode("utf-8")
    assert (line == text) == text.isprintable()


def check_page(place: str, text: str) -> None:
    """See that a page has the elements that it has with a word in the place of a text, and shows the text."""
    page, usual = PLACES[place].format(markdown(text)), PLACES[place].format("`word`")
    assert elements(page) == elements(usual)
    assert shown(page) == shown(usual).replace("word", plain(text))
    # All of it is code, but for what divides a table's cells.
    assert shown(page, "text").replace("|", "") == shown(usual, "text")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_markdown_shows_it_as_code(text: str, place: str) -> None:
    check_page(place, text)


@pytest.mark.parametrize("place", PLACES)
@given(text=TEXTS.filter(bool))
def test_markdown_shows_any_text_as_code(place: str, text: str) -> None:
    check_page(place, text)


def test_markdown_of_nothing_is_nothing() -> None:
    assert markdown("") == ""


@given(TEXTS)
def test_xml_has_it_as_content_and_as_an_attribute(text: str) -> None:
    element = ET.fromstring(f'<a b="{xml(text)}">{xml(text)}</a>')  # noqa: S314  (our own)
    assert (element.text or "", element.get("b"), len(element)) == (plain(text), plain(text), 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:a5ecret@host/a?b=c\nto me@host", "at http://host/a?b=c\nto me@host"),
        ("url: /a?b=c&access_token=a5ecret&d=e", "url: /a?b=c&access_token=…"),
        ("X-Amz-Credential=1; /a?X-Amz-Signature=a5ecret'", "X-Amz-Credential=1; /a?X-Amz-Signature=…'"),
        ("{'Authorization': 'Bearer a5ecret'}\nnext", "{'Authorization': …\nnext"),
        ("sent Bearer a5ecret", "sent Bearer …"),
        ("Set-Cookie: a=a5ecret; b=c", "Set-Cookie: …"),
        ("Invalid header value b'a5ecret\\n'", "Invalid header value …"),
        ("in header value: 'a5ecret'", "in header value: …"),
        ("one of the environment, hunter22.", "one of the environment, …."),
        ("at http://me:a5/ecret@host/a, or http:/me:a5ecret@host", "at http://host/a, or http:/host"),
        ("the user's author, in a class of sessions", "the user's author, in a class of sessions"),
    ],
)
def test_no_secret_is_left_in_a_traceback(text: str, shown: str) -> None:
    assert (
        without_secrets(
            text,
            {"MY_PASSWORD": "hunter22\n", "PATH": "no", "KEY": "no", "AUTHOR": "author", "XDG_SESSION_CLASS": "user"},
        )
        == shown
    )


@pytest.mark.parametrize(
    ("text", "longest", "line"),
    [
        (" a\n\tb ", None, "a b"),
        ("abcdef", 3, "abc…"),
        ("abc", 3, "abc"),
        ("a     b", 3, "a b"),
        (" \n", 3, ""),
        ("x" * 10**5, None, "x" * 10**5),
    ],
)
def test_a_text_in_one_line_has_single_spaces_and_an_end_that_shows_what_was_cut(
    text: str, longest: int | None, line: str
) -> None:
    assert one_line(text, longest) == line


@pytest.mark.parametrize(
    ("names", "most", "text"),
    [([], 3, ""), (["a"], 3, "a"), (["a", "b", "c"], 3, "a, b, c"), (["a", "b", "c"], 2, "a, b, …")],
)
def test_a_list_of_names_says_whether_there_are_more(names: list[str], most: int, text: str) -> None:
    assert listed(names, most) == text
