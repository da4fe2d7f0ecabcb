"""The encoders of CosyVoice, from their equations."""

from typing import Final

VERSION: Final = 2
"""Of the code here and in `cosyjit.script`. Raised when an artifact made from the same weights would come out another
one; a part of every fingerprint."""
