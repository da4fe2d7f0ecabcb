"""What the environment says: read by the command line and the flows alone.

Not by pydantic-settings, whose import takes two fifths of the time that an export of nothing new may take.
"""

import os
from typing import Final

STORE: Final = "COSYJIT_STORE"
"""The variable that names the store: a directory or an fsspec URL."""


def store() -> str | None:
    """The store that the environment names; None if it names none."""
    return os.environ.get(STORE) or None
