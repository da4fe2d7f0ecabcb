"""From an encoder to a TorchScript zip: cast, script, freeze, optimize, save."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

ARCHIVE: Final = "archive.zip"
"""The name that artifacts are saved under: TorchScript writes a file's name into the file, and equal artifacts are to
have equal bytes whatever they are called later."""


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors with all floating-point ones in `dtype`; those of other types, such as counters, as they are.

    The tensors given are left alone: a change of type is a copy.
    """
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def optimize(encoder: nn.Module, methods: Sequence[str] = ()) -> torch.jit.ScriptModule:
    """Script, freeze and optimize for inference an encoder in eval mode, `forward` and the other methods named.

    Freezing takes the weights themselves into the graphs, without a copy. No process-wide JIT switch is touched.
    """
    with _deprecations_ignored():
        scripted = torch.jit.script(encoder)
        frozen = torch.jit.freeze(scripted, preserved_attrs=list(methods))
        return torch.jit.optimize_for_inference(frozen, other_methods=list(methods))


def save(module: torch.jit.ScriptModule, directory: Path, extra: Mapping[str, bytes] | None = None) -> Path:
    """Save as `ARCHIVE` in a directory, with extra files inside. Returns the file's path."""
    path = directory / ARCHIVE
    with _deprecations_ignored():
        torch.jit.save(module, path, _extra_files=dict(extra or {}))
    return path


@contextmanager
def _deprecations_ignored() -> Iterator[None]:
    """torch 2.5 deprecated TorchScript in favour of torch.compile, but TorchScript is what the runtime loads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        yield
