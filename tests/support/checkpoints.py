"""Checkpoints and the encoders in them."""

from pathlib import Path

import torch
from torch import Tensor, nn

from cosyjit.families import Component
from cosyjit.sources.checkpoint import Checkpoint, open_checkpoint
from cosyjit.sources.source import open_source
from cosyjit.torchscript.load import load_encoder
from cosyjit.torchscript.script import cast


def opened(directory: Path) -> Checkpoint:
    """A model directory as the product opens it."""
    return open_checkpoint(open_source(directory))


def component_of(checkpoint: Checkpoint, name: str) -> Component:
    """A component of the checkpoint's family, by its name."""
    return next(component for component in checkpoint.family.components if component.name == name)


def loaded(directory: Path, name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A component's encoder on the meta device, and its tensors."""
    checkpoint = opened(directory)
    component = component_of(checkpoint, name)
    return load_encoder(checkpoint.source, component, checkpoint.options(component))


def eager(directory: Path, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A component's encoder, filled but not scripted."""
    encoder, tensors = loaded(directory, name)
    encoder.load_state_dict(cast(tensors, dtype), assign=True)
    return encoder
