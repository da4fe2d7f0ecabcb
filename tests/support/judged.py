"""Artifacts with and without faults, as a build makes them, and what the gate says of them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import nn

from cosyjit.encoders.quantized import quantize
from cosyjit.errors import VerificationError
from cosyjit.families import PRECISIONS, Component
from cosyjit.metrics import Metrics
from cosyjit.provenance.record import EMBEDDED_NAME
from cosyjit.torchscript import script
from cosyjit.torchscript.gate import Verified, verify
from tests.support.checkpoints import component_of, eager, opened

PROVENANCE: Final = b"of a test"
"""What is embedded in each artifact."""

Fault = Callable[[nn.Module], object]


@cache
def component_in(directory: Path, name: str) -> Component:
    """A component of a directory that is not changed."""
    return component_of(opened(directory), name)


def cast_encoder(directory: Path, name: str, precision: str) -> nn.Module:
    """A component's encoder with its weights in the type of a precision."""
    return eager(directory, name, getattr(torch, PRECISIONS[precision].dtype))


def saved(directory: Path, name: str, precision: str, into: Path, fault: Fault | None = None) -> Path:
    """An artifact as a build makes it, of an encoder that a fault has changed, or made another one of."""
    encoder = cast_encoder(directory, name, precision)
    if fault is not None:
        with torch.no_grad():
            other = fault(encoder)
        encoder = other.eval() if isinstance(other, nn.Module) else encoder
    if PRECISIONS[precision].quantized:
        quantize(encoder)
    module = script.optimize(encoder, component_in(directory, name).methods)
    return script.save(module, into, {EMBEDDED_NAME: PROVENANCE})


def judged(path: Path, directory: Path, name: str, precision: str, encoder: nn.Module | None = None) -> Metrics:
    """What the gate measures of an artifact, against the directory's encoder or another one."""
    return verified(path, directory, name, precision, encoder).metrics


def verified(
    path: Path,
    directory: Path,
    name: str,
    precision: str,
    encoder: nn.Module | None = None,
) -> Verified:
    """What the gate gives of an artifact, against the directory's encoder or another one."""
    wanted = PRECISIONS[precision]
    encoder = encoder or eager(directory, name)
    weight_bytes = sum(wanted.size(each, tensor.shape) for each, tensor in encoder.state_dict().items())
    component = component_in(directory, name)
    return verify(path, encoder, component, wanted, weight_bytes, weight_bytes, provenance=PROVENANCE)


def refusal(
    path: Path, directory: Path, name: str, precision: str, encoder: nn.Module | None = None, way_out: str | None = None
) -> str:
    """What the gate says of an artifact that it refuses, without the way out: the precision's, or another one."""
    with pytest.raises(VerificationError) as caught:
        judged(path, directory, name, precision, encoder)
    (message,) = caught.value.args
    assert "\n" not in message
    problem, _, last = message.rpartition("; ")
    assert last == (way_out or PRECISIONS[precision].hint)
    return str(problem)
