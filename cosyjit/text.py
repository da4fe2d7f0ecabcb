"""Escapes text from outside for each medium. The functions are called where the text is shown, and nowhere before.

Anyone may have written the names of files and tensors, the fields of records and configurations, sources, answers of
servers and the texts of errors. They are kept unchanged until they are shown. JSON does not need these functions:
cosyjit writes it in ASCII, with JSON's own escapes for everything else.
"""

import re
from html import escape


def plain(text: str) -> str:
    """Text as one line for a terminal, a log, or the message of a state.

    Characters that are not printable become Python's escapes: controls and escape sequences, line breaks, marks that
    change the direction of writing, and the bytes of names that are not UTF-8. Markup is not escaped, since what prints
    these lines does not interpret any.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def markdown(text: str) -> str:
    """Text as code in a paragraph, a heading, a list or a table of Markdown.

    Backslashes alone are not enough: renderers unescape text before they look for addresses to link. In code they do
    not look for any.
    """
    # A `|` divides a row of a table, also within code, unless a backslash precedes it.
    return r"\|".join(map(_code, plain(text).split("|")))


def _code(text: str) -> str:
    """A code span (https://spec.commonmark.org/0.31.2/#code-spans), between more backticks than it has in a row."""
    if not text:
        return ""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    # Renderers take one space off each end where both ends have one, unless there are only spaces.
    pad = " " if text.strip(" ") and (text[0] in "` " or text[-1] in "` ") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def xml(text: str) -> str:
    """Text as the content or an attribute of an element of XML, SVG or HTML, in one line."""
    return escape(plain(text))


def without_password(url: str) -> str:
    """A URL without the user name and the password that it may have."""
    return re.sub(r"(?<=//)[^/?#]*@", "", url)
