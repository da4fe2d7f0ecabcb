"""The estimators of CosyVoice's flow decoders, from their equations."""

from typing import Final

VERSION: Final = 1
"""The version of the estimators' options and tensors. It is raised when an artifact from the same weights would change
because of the code here; it is part of every fingerprint."""
