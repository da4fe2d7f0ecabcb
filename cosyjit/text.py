"""Escapes text from outside for each medium. The functions are called where the text is shown, and nowhere before.

Anyone may have written the names of files and tensors, the fields of records and configurations, sources, answers of
servers and the texts of errors. They are kept unchanged until they are shown. JSON does not need these functions:
cosyjit writes it in ASCII, with JSON's own escapes for everything else.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from logging import DEBUG, LogRecord
from typing import Final


def plain(text: str) -> str:
    """Text as one line for a terminal, a log, or the message of a state.

    Characters that are not printable become Python's escapes: controls and escape sequences, line breaks, marks that
    change the direction of writing, and the bytes of names that are not UTF-8. Markup is not escaped, since what prints
    these lines does not interpret any.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def one_line(text: str, longest: int | None = None) -> str:
    """Text with one space in place of each run of white space, and "…" in place of what is longer.

    Args:
        text: any text, which may still need `plain`.
        longest: how many characters stay at most; all of them for None.
    """
    line = " ".join(text.split())
    return line if longest is None or len(line) <= longest else f"{line[:longest]}…"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, with commas between them, and "…" if there are more."""
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])


def log_lines(record: LogRecord) -> list[str]:
    """The text of a log record, escaped: one line, or the lines of a traceback in the debug log."""
    text = record.getMessage()
    return [plain(each) for each in (text.splitlines() if record.levelno == DEBUG else [text])]


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


_SECRETS: Final = (
    # A name and a password in a URL, and parameters of its query.
    (r"(:/+)[^\s'\"]*@", r"\1"),
    (r"(?i)([?&;][^=&;\s]*(?:token|secret|password|signature|credential|key)[^=&;\s]*=)[^&;\s'\"]+", r"\1…"),
    # Headers of requests, as Python shows mappings of them, and as the errors of HTTP clients quote their values.
    (r"(?i)\b(bearer|basic) [^\s'\"]+", r"\1 …"),
    (r"(?i)((?:authorization|cookie|[\w-]*token)[\"']?\s*[:=]\s*).+", r"\1…"),
    (r"(?i)(header value\W*?)b?([\"']).*", r"\1…"),
)
"""Where clients' errors quote what nobody else should see, and what is shown in its place."""

_SECRET_VARIABLE: Final = re.compile("(?i)(?:^|_)(?:[a-z0-9]*(?:token|secret|password|key)|auth|credentials?)(?:_|$)")
_SHORTEST: Final = 4
"""In characters: a shorter value of such a variable is a setting, or nothing that could be kept secret."""


def is_secret(variable: str) -> bool:
    """Whether the name of an environment variable says that its value is a secret."""
    return _SECRET_VARIABLE.search(variable) is not None


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """A text of several lines, such as a traceback, without passwords, tokens and the headers that carry them.

    Args:
        environment: whose variables with names such as `AWS_SECRET_ACCESS_KEY` have values that are not shown either.
    """
    for name, value in environment.items():
        if is_secret(name) and len(value.strip()) >= _SHORTEST:
            text = text.replace(value.strip(), "…")
    for pattern, shown in _SECRETS:
        text = re.sub(pattern, shown, text)
    return text


def without_password(url: str) -> str:
    """A URL without the user name and the password that it may have."""
    return re.sub(r"(?<=//)[^/?#]*@", "", url)
