"""The encoders of CosyVoice, from their equations."""

from collections.abc import Mapping
from typing import Any, Final

from cosyjit.encoders.options import TABLES

VERSION: Final = 3
"""The version of the code here and in `cosyjit.torchscript.script`. It is raised when an artifact from the same weights
would change; `version_of` says for which encoders."""

_BEFORE_CENTRED: Final = 2
"""The version before the zeros around a centred convolution moved behind `pointwise_conv1`."""


def version_of(class_name: str, options: Mapping[str, Any]) -> int:
    """The version that last changed the artifacts of an encoder. It is part of every fingerprint.

    Args:
        class_name: a key of `TABLES`.
        options: those of the encoder in the configuration, supported or not.
    """
    known = TABLES[class_name]
    use_cnn_module, causal = (
        options.get(name, known[name].default) if name in known else False for name in ("use_cnn_module", "causal")
    )
    return VERSION if use_cnn_module and not causal else _BEFORE_CENTRED
