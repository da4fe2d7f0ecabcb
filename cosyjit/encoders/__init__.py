"""The encoders of CosyVoice, from their equations."""

from collections.abc import Mapping
from typing import Any, Final

from cosyjit.encoders.options import TABLES

VERSION: Final = 3
"""Of the code here and in `cosyjit.torchscript.script`. Raised when some artifact made from the same weights would
come out another one; `version_of` says which."""

_BEFORE_CENTRED: Final = 2
"""Up to here the zeros around a centred convolution stood where those before a causal one stand."""


def version_of(class_name: str, options: Mapping[str, Any]) -> int:
    """The version that last changed what becomes of such an encoder; a part of every fingerprint.

    Args:
        class_name: a key of `TABLES`.
        options: the configuration's for it, whether or not they are supported.
    """
    known = TABLES[class_name]
    use_cnn_module, causal = (
        options.get(name, known[name].default) if name in known else False for name in ("use_cnn_module", "causal")
    )
    return VERSION if use_cnn_module and not causal else _BEFORE_CENTRED
