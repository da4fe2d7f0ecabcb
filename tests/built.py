"""Checkpoints and the encoders in them."""

from pathlib import Path

import torch
from torch import nn

from cosyjit.checkpoint import Checkpoint, load_encoder, open_checkpoint
from cosyjit.families import Component
from cosyjit.script import cast
from cosyjit.source import open_source


def opened(directory: Path) -> Checkpoint:
    """A model directory as the product opens it."""
    return open_checkpoint(open_source(directory))


def component_of(checkpoint: Checkpoint, name: str) -> Component:
    """A component of the checkpoint's family, by its name."""
    return next(component for component in checkpoint.family.components if component.name == name)


def eager(directory: Path, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A component's encoder, filled but not scripted."""
    checkpoint = opened(directory)
    encoder, tensors = load_encoder(checkpoint, component_of(checkpoint, name))
    encoder.load_state_dict(cast(tensors, dtype), assign=True)
    return encoder
