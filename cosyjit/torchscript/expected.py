"""What an encoder gives in the calls of the gate: computed once for all precisions of a component."""

import io

import torch
from torch import nn

from cosyjit.torchscript.calls import Call, Labelled


class Expected:
    """The outputs of a float32 encoder in calls. Those that are not known yet are computed.

    Attributes:
        encoder: filled, float32, not scripted.
    """

    def __init__(self, encoder: nn.Module, content: bytes = b"") -> None:
        """Begin with what is known.

        Args:
            encoder: see the class.
            content: from `content`, of the same encoder with the same weights.
        """
        self.encoder = encoder
        self._known: dict[str, list[Labelled]] = torch.load(io.BytesIO(content), weights_only=True) if content else {}
        self._before = len(self._known)

    def of(self, call: Call) -> list[Labelled]:
        """The outputs of a call."""
        if call.key not in self._known:
            self._known[call.key] = list(call.run(self.encoder, torch.float32))
        return self._known[call.key]

    def content(self) -> bytes:
        """All outputs that are known, for another process; empty if none of them is new."""
        if len(self._known) == self._before:
            return b""
        file = io.BytesIO()
        torch.save(self._known, file)
        return file.getvalue()
