"""The addresses of model hubs' pages, which are not sources: how the source is named that such a page shows."""

import re
from typing import Final
from urllib.parse import unquote, urlsplit

_PART: Final = r"(?P<id>[\w.-]+/[\w.-]+)"

_PAGES: Final = (
    (r"(www\.)?modelscope\.(cn|ai)", rf"/models/{_PART}(/.*)?", "{}"),
    (r"(www\.)?(huggingface\.co|hf\.co|hf-mirror\.com)", rf"/(?!(datasets|spaces|docs)/){_PART}(/.*)?", "hf:{}"),
)
"""The hosts of hubs, the paths of models there, and the form of a source."""


def is_address(text: str) -> bool:
    """Whether a text is an address of the web."""
    return re.match("https?://", text, re.IGNORECASE) is not None


def source_at(text: str) -> str | None:
    """The source that the page at an address shows, such as iic/CosyVoice-300M; None for the pages of others."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError:  # of what is not an address
        return None
    for hosts, path, form in _PAGES:
        found = re.fullmatch(path, unquote(parts.path), re.ASCII)
        if re.fullmatch(hosts, host) and found:
            return form.format(found["id"].removesuffix(".git"))
    return None
