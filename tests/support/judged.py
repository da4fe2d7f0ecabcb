"""Artifacts with and without faults, as a build makes them, and what the gate says of them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
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
from cosyjit.torchscript.expected import Expected
from cosyjit.torchscript.gate import Verified, verify
from tests.support.checkpoints import component_of, eager, opened

PROVENANCE: Final = b"of a test"
"""What is embedded in each artifact."""

Fault = Callable[[nn.Module], object]


# What follows is kept by directory: nobody changes one that has been asked about.


@cache
def component_in(directory: Path, name: str) -> Component:
    """A component of a directory."""
    return component_of(opened(directory), name)


@cache
def expected_of(directory: Path, name: str) -> Expected:
    """A component's encoder, and what it gives: each call is computed by the first verification that makes it."""
    return Expected(eager(directory, name))


@cache
def _sound(directory: Path, name: str, precision: str) -> bytes:
    """The content of an artifact without a fault."""
    with TemporaryDirectory() as into:
        return _made(cast_encoder(directory, name, precision), directory, name, precision, Path(into)).read_bytes()


def cast_encoder(directory: Path, name: str, precision: str) -> nn.Module:
    """A component's encoder with its weights in the type of a precision."""
    return eager(directory, name, getattr(torch, PRECISIONS[precision].dtype))


def saved(directory: Path, name: str, precision: str, into: Path, fault: Fault | None = None) -> Path:
    """An artifact as a build makes it, of an encoder that a fault has changed, or made another one of."""
    if fault is None:
        path = into / script.ARCHIVE
        path.write_bytes(_sound(directory, name, precision))
        return path
    encoder = cast_encoder(directory, name, precision)
    with torch.no_grad():
        other = fault(encoder)
    return _made(other.eval() if isinstance(other, nn.Module) else encoder, directory, name, precision, into)


def _made(encoder: nn.Module, directory: Path, name: str, precision: str, into: Path) -> Path:
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
    expected = Expected(encoder) if encoder else expected_of(directory, name)
    weight_bytes = sum(wanted.size(each, tensor.shape) for each, tensor in expected.encoder.state_dict().items())
    return verify(
        path,
        expected.encoder,
        component_in(directory, name),
        wanted,
        weight_bytes,
        weight_bytes,
        provenance=PROVENANCE,
        expected=expected,
    )


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
