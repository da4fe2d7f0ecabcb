"""What people are shown of what was read."""

import io

from rich.console import Console
from rich.table import Table

from cosyjit.text import plain


def show(*things: Table | str) -> None:
    """Write things as a terminal has them: nothing in them may do anything there but begin a line."""
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, "utf-8")
    console = Console(file=stream, width=80, markup=False, emoji=False, highlight=False)
    for thing in things:
        console.print(plain(thing) if isinstance(thing, str) else thing)
    stream.flush()
    assert content.getvalue().decode().replace("\n", "").isprintable()
