"""Writes synthetic checkpoints for tests, demonstrations and measurements: the published form with random weights.

Only the configuration has sizes. The models are declared from it on the meta device; then each tensor is drawn.
"""

import math
import os
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import BinaryIO, Final

import torch
from torch import Tensor, nn

from cosyjit.configuration.base_model import BASE
from cosyjit.configuration.config import Config
from cosyjit.errors import OutputError, SelectionError
from cosyjit.fs.files import TEMPORARY, make_directory, replacing
from cosyjit.processes.interrupts import deferred, note_changes
from cosyjit.synth.shapes import declare_base_model, declare_model
from cosyjit.text import listed

_SIZES: Final = ("tiny", "small", "full")

_SMALL: Final = {"llm_size": 128}
"""What "small" has in place of the values of "tiny": heads of 32 channels, the fewest that vLLM takes on a CPU."""

_UNET: Final = {
    "unet_channels": (32, 256),
    "unet_heads": (2, 8),
    "unet_head_size": (16, 64),
    "unet_blocks": (1, 4),
    "unet_mid_stages": (2, 12),
}

_FAMILIES: Final[dict[str, dict[str, tuple[int, int]]]] = {
    "cosyvoice": {
        "text_token_size": (256, 51866),
        "speech_token_size": (64, 4096),
        "text_encoder_input_size": (32, 512),
        "text_encoder_size": (64, 1024),
        "text_encoder_blocks": (2, 6),
        "llm_size": (64, 1024),
        "llm_heads": (4, 16),
        "llm_linear_units": (128, 4096),
        "llm_blocks": (3, 14),
        "flow_input_size": (32, 512),
        "flow_size": (64, 512),
        "flow_heads": (4, 8),
        "flow_linear_units": (128, 2048),
        "flow_blocks": (2, 6),
        **_UNET,
    },
    "cosyvoice2": {
        "speech_token_size": (64, 6561),
        "llm_size": (64, 896),
        "flow_linear_units": (64, 2048),
        "flow_blocks": (1, 6),
        **_UNET,
    },
    "cosyvoice3": {
        "speech_token_size": (64, 6561),
        "llm_size": (64, 896),
        "dit_size": (64, 1024),
        "dit_depth": (2, 22),
        "dit_heads": (4, 16),
        "dit_head_size": (16, 64),
    },
}
"""The values of each family's template for "tiny" and "full"."""

_CONFIGS: Final = {f"{family}.yaml" for family in _FAMILIES}

_SHOWN: Final = 5
"""How many names a message gives."""


@dataclass(frozen=True)
class SyntheticCheckpoint:
    """A synthetic model directory before it is written.

    Attributes:
        config_name: the file name of the configuration.
        config: the text of the configuration.
        models: by weights file, a module on the meta device whose `state_dict` has the file's names and shapes.
        base: by path, the texts of the files that describe the base model of the language model.
    """

    config_name: str
    config: str
    models: dict[str, nn.Module]
    base: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its files."""
        return (*self.models, *self.base, self.config_name)


def synth(directory: Path, family: str, size: str = "tiny", seed: int = 0, *, force: bool = False) -> Path:
    """Write a synthetic model directory: the configuration, `llm.pt` and `flow.pt`, and `CosyVoice-BlankEN` where the
    family has it.

    The numbers depend only on the seed, the file and the tensor's name and shape. They are scaled so that an input of
    variance 1 gives an output near that, and nothing in between leaves the range of float16. The configuration is
    written last, so a new directory that has one is complete.

    Args:
        directory: a new or an empty directory.
        family: "cosyvoice", "cosyvoice2" or "cosyvoice3".
        size: "tiny", a few megabytes (CosyVoice2: 44, since its flow encoder has no narrower form); "small", the same
            but for a language model whose heads are wide enough for vLLM on a CPU; or "full", the published shapes:
            1.7 GB, CosyVoice2 2.5 GB, CosyVoice3 3.3 GB. It needs memory for the larger file.
        seed: any integer.
        force: also write into a directory that is not empty. Files of the same names are replaced, others stay.

    Returns:
        The directory.

    Raises:
        SelectionError: there is no such family or size.
        OutputError: the directory is not empty, is not a directory, or cannot be written to.
    """
    checkpoint = declare(family, size)
    try:
        _check_directory(directory, checkpoint, force=force)
        note_changes("the directory is not complete; run it again with --force")
        make_directory(directory)
        for name, model in checkpoint.models.items():
            with replacing(directory / name) as file:
                _save(_draw_all(model, f"{seed}/{name}"), file)
        for name, text in {**checkpoint.base, checkpoint.config_name: checkpoint.config}.items():
            make_directory((directory / name).parent)
            with replacing(directory / name) as file:
                file.write(text.encode())
    except OSError as error:
        raise OutputError(f"{directory}: cannot be written to ({error.strerror}); name another directory") from error
    return directory


def declare(family: str, size: str) -> SyntheticCheckpoint:
    """The checkpoint that `synth` would write, without the numbers, in a fraction of a second and without memory.

    Raises:
        SelectionError: there is no such family or size.
    """
    _check(family, _FAMILIES, "family")
    _check(size, _SIZES, "size")
    sizes = {key: full if size == "full" else tiny for key, (tiny, full) in _FAMILIES[family].items()}
    if size == "small":
        sizes |= _SMALL
    name = f"{family}.yaml"
    text = Template((files("cosyjit.synth") / "templates" / name).read_text(encoding="utf-8")).substitute(sizes)
    config = Config(text, name)
    with torch.device("meta"):
        models = {f"{part}.pt": declare_model(config.instance(part)) for part in ("llm", "flow")}
    described = declare_base_model(config.instance("llm"))
    base = {f"{BASE}/{file}": content for file, content in described.items()}
    return SyntheticCheckpoint(name, text, models, base)


def _check(name: str, choices: Collection[str], kind: str) -> None:
    if name not in choices:
        raise SelectionError(f"{name!r} is not a {kind} of synthetic checkpoint; choose from {', '.join(choices)}")


def _check_directory(directory: Path, checkpoint: SyntheticCheckpoint, *, force: bool) -> None:
    """Check that a checkpoint can be written into a directory; nothing is changed.

    Raises:
        OutputError: it has files that may not be replaced.
    """
    if not directory.is_dir():
        if os.path.lexists(directory):
            kind = "is a file" if directory.is_file() else "is a link that leads nowhere, or a device"
            raise OutputError(f"{directory}: {kind}; name a new or an empty directory")
        return
    present = sorted(path.name for path in directory.iterdir())
    if force:
        _check_replaceable(directory, checkpoint, present)
    elif present:
        raise OutputError(
            f"{directory}: {_description(present, checkpoint)}; name a new or an empty directory, or give --force, "
            f"which replaces {', '.join(checkpoint.names)} there and leaves the rest"
        )


def _description(present: Sequence[str], checkpoint: SyntheticCheckpoint) -> str:
    """In words, what a directory holds."""
    shown = listed(present, _SHOWN)
    if _CONFIGS.intersection(present):
        return f"is a model directory already, with {shown}"
    own = {Path(name).parts[0] for name in checkpoint.names}
    if all(name in own or name.endswith(TEMPORARY) for name in present):
        return f"holds {shown} and no configuration, as a synth that was killed leaves it"
    return f"is not empty, with {shown}"


def _check_replaceable(directory: Path, checkpoint: SyntheticCheckpoint, present: Sequence[str]) -> None:
    """Check that the files of a checkpoint can be replaced, and that the result is a model directory."""
    others = sorted(_CONFIGS.intersection(present) - {checkpoint.config_name})
    if others:
        beside = f"beside {checkpoint.config_name} it would not be a model directory"
        raise OutputError(f"{directory}: holds {', '.join(others)}, and {beside}; remove that, or name another one")
    for path in dict.fromkeys(directory / name for name in checkpoint.names):
        if path.is_dir() and not path.is_symlink():
            raise OutputError(f"{path}: is a directory; move it away, or name another directory")
        in_the_way = os.path.lexists(path.parent) and (path.parent.is_symlink() or not path.parent.is_dir())
        if path.parent != directory and in_the_way:
            raise OutputError(f"{path.parent}: is not a directory; move it away, or name another directory")


def _save(tensors: dict[str, Tensor], file: BinaryIO) -> None:
    try:
        with deferred():
            torch.save(tensors, file)
    except RuntimeError as error:
        # On a full disk torch raises an error about its own state, which hides that of the system.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _draw_all(model: nn.Module, key: str) -> dict[str, Tensor]:
    """Draw the model's tensors, by name. Names that share a tensor in the model share it here, and in the file."""
    declared = model.state_dict(keep_vars=True)
    drawn: dict[int, Tensor] = {}
    for name, tensor in declared.items():
        if id(tensor) not in drawn:
            drawn[id(tensor)] = _draw(f"{key}/{name}", tensor.shape)
    return {name: drawn[id(tensor)] for name, tensor in declared.items()}


def _draw(key: str, shape: torch.Size) -> Tensor:
    """Draw a matrix or kernel of variance 1 / fan-in, a norm's weight in 0.9 to 1.1, or a bias in -0.1 to 0.1.

    The frequencies of rotations are not drawn, since training does not change them.
    """
    if key.endswith(".inv_freq"):
        return 1 / 10000 ** (torch.arange(*shape) / shape[0])
    # Each tensor has its own generator, so that it does not depend on the others or their order.
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    tensor = torch.empty(shape, dtype=torch.float32).uniform_(-1, 1, generator=generator)
    if not key.endswith("weight"):
        return tensor.mul_(0.1)
    if len(shape) == 1:
        return tensor.mul_(0.1).add_(1)
    return tensor.mul_(math.sqrt(3 / math.prod(shape[1:])))
