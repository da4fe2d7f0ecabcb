"""What strangers write where text is shown: each would do something if the medium took it for more than text."""

from collections.abc import Iterator
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

MARKDOWN: Final = MarkdownIt("commonmark").enable("table")

HOSTILE: Final = (
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07\x1b]8;;http://example.com/\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m\x9d0;title\x9c\x85",
    "\x00\x08\x7f",
    "a\u202egnp.exe\u2066b\u2069\u200f",
    "one\ntwo\r\nthree\rfour\u2028five\u2029six\x0bseven\x0ceight",
    "[bold]b[/bold] [link=http://example.com/]l[/link] [/] :smile:",
    "{0} {name} %s %(name)s",
    "[link](http://example.com/) ![picture](http://example.com/x.png)",
    "<img src=http://example.com/x.png onerror=alert(1)><script>alert(1)</script><!-- ",
    "</text></svg><script>alert(1)</script>",
    '" onload="alert(1)',
    "http://example.com/ www.example.com <http://example.com/> someone@example.com",
    "a | b |\n| --- | --- |\n| c | d",
    "\\| \\` \\",
    "``` mermaid\nx\n```",
    "` `` ```",
    "# heading\n- list\n> quote\n\n    code",
    "&lt;b&gt; &#60;b&#62;",
    "[a]: http://example.com/",
    "name \udcff\udc80 of no UTF-8",
    "\ud800 half of a pair",
)


def acting(page: str) -> list[str]:
    """What in a page of Markdown is more than text, and no picture that the page has in itself."""

    def within(tokens: list[Token]) -> Iterator[Token]:
        for token in tokens:
            yield token
            yield from within(token.children or [])

    kinds = {"link_open", "html_inline", "html_block", "image", "fence", "code_block", "blockquote_open"}
    found = [token for token in within(MARKDOWN.parse(page)) if token.type in kinds]
    return [token.type for token in found if not str(token.attrGet("src")).startswith("data:image/svg+xml;base64,")]
