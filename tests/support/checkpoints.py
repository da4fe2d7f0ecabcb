"""Checkpoints: the encoders in them, and changes to their files."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def change(directory: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits the state dictionary in a weights file."""
    state = torch.load(directory / name, weights_only=True)
    edit(state)
    torch.save(state, directory / name)


def retrain(directory: Path, name: str, prefix: str) -> int:
    """Moves all tensors below a prefix in a weights file; gives how many there are."""
    moved = 0

    def move(state: dict[str, Any]) -> None:
        nonlocal moved
        for key in [key for key in state if key.startswith(prefix)]:
            state[key] = state[key] * 1.25
            moved += 1

    change(directory, name, move)
    return moved


def rewrite(directory: Path, old: str, new: str, name: str = "cosyvoice.yaml") -> None:
    """Replaces text in the configuration."""
    config = directory / name
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


def without_llm(directory: Path) -> Path:
    """Leaves of a model directory what a published flow is: no language model, neither its node nor its weights."""
    (config,) = directory.glob("*.yaml")
    config.write_text(re.sub(r"(?m)^llm:.*\n(?:[ #].*\n|\n)*", "", config.read_text()))
    (directory / "llm.pt").unlink()
    return directory


def moved(directory: Path) -> Path:
    """Gives a directory another name beside the one it had."""
    return Path(shutil.move(directory, directory.with_name(f"{directory.name} moved")))
