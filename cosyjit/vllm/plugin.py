"""A plugin of vLLM: makes it know the class that folders of CosyVoice2 name, in each process that it starts.

vLLM calls `register` itself, as an entry point of the group `vllm.general_plugins`, wherever cosyjit is installed
beside it. Nothing else imports this module.
"""

from importlib.util import find_spec
from typing import Final

from cosyjit.vllm.rules import ARCHITECTURE_WITH_BIAS

_MODEL: Final = f"cosyjit.vllm.model:{ARCHITECTURE_WITH_BIAS}"


def register() -> None:
    """Register the class, unless one of its name is there already, such as that of the public runtime."""
    if find_spec("vllm") is None:
        return
    from vllm import ModelRegistry

    if ARCHITECTURE_WITH_BIAS not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE_WITH_BIAS, _MODEL)  # by name, so that it is imported where it is used
