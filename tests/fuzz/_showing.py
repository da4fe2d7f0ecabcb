"""What people are shown of what was read."""

import io

from rich.console import Console, RenderableType


def show(thing: RenderableType) -> None:
    """Write a thing as a terminal has it: nothing in it may do anything there but begin a line."""
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, "utf-8")
    Console(file=stream, width=80).print(thing)
    stream.flush()
    assert content.getvalue().decode().replace("\n", "").isprintable()
