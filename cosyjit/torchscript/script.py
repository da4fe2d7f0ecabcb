"""From an encoder to a TorchScript zip: cast, script, freeze, optimize, save."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cosyjit.errors import VerificationError
from cosyjit.families import Precision
from cosyjit.text import listed

ARCHIVE: Final = "archive.zip"
"""The name that artifacts are saved under. TorchScript writes the name of the file into the file, and equal artifacts
have to have equal bytes whatever they are called later."""


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast all floating-point tensors to `dtype`; tensors of other types, such as counters, stay.

    The given tensors are not changed: a cast is a copy.
    """
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def check_cast(tensors: Mapping[str, Tensor], cast_ones: Mapping[str, Tensor], precision: Precision) -> int:
    """How many numbers of tensors underflow to 0 in a cast.

    Raises:
        VerificationError: numbers are NaN or infinite, or become so.
    """
    changed = {name: after for name, after in cast_ones.items() if after.dtype != tensors[name].dtype}
    _refuse_unfit(tensors, "are NaN or infinite", "export a checkpoint whose weights are sound")
    _refuse_unfit(changed, f"overflow in {precision.dtype}", precision.hint)
    return sum(int(tensors[name].count_nonzero() - after.count_nonzero()) for name, after in changed.items())


def _refuse_unfit(tensors: Mapping[str, Tensor], what: str, hint: str) -> None:
    counts = {name: _unfit(tensor) for name, tensor in tensors.items()}
    names = [name for name, count in counts.items() if count]
    if names:
        raise VerificationError(
            f"{sum(counts.values()):,} numbers of {len(names)} tensors {what} ({listed(names)}); {hint}"
        )


def _unfit(tensor: Tensor) -> int:
    """How many numbers are not finite. If their sum is finite, all are; it takes a tenth of the time."""
    return 0 if tensor.sum().isfinite() else tensor.numel() - int(tensor.isfinite().sum())


def optimize(
    encoder: nn.Module, methods: Sequence[str] = (), weights: Mapping[str, Tensor] | None = None
) -> torch.jit.ScriptModule:
    """Script, freeze and optimize an encoder in eval mode for inference: `forward` and other methods.

    Freezing puts the weights themselves into the graphs, without a copy. No process-wide JIT switch is changed.

    Args:
        encoder: the encoder, which is not changed.
        methods: the methods to keep beside `forward`.
        weights: tensors that replace the encoder's own, by the names of their attributes.
    """
    with deprecations_ignored():
        scripted = torch.jit.script(encoder)
        if weights is not None:
            _fill(scripted, weights)
        frozen = torch.jit.freeze(scripted, preserved_attrs=list(methods))
        module = torch.jit.optimize_for_inference(frozen, other_methods=list(methods))
    for method in ("forward", *methods):
        graph: Any = (module if method == "forward" else getattr(module, method)).graph
        _strip_source_locations(graph, graph.create("prim::Constant"))
    return module


def _strip_source_locations(block: Any, blank: Any) -> None:
    """Strip source locations from all nodes, by giving each the metadata of a blank node.

    Otherwise an artifact would contain paths of this machine, and equal inputs would give different bytes.
    """
    for node in block.nodes():
        node.copyMetadata(blank)
        for inner in node.blocks():
            _strip_source_locations(inner, blank)


def _fill(module: torch.jit.ScriptModule, weights: Mapping[str, Tensor]) -> None:
    parts: dict[str, Any] = dict(module.named_modules())
    for name, weight in weights.items():
        part, _, attribute = name.rpartition(".")
        setattr(parts[part], attribute, weight)


def save(module: torch.jit.ScriptModule, directory: Path, extra: Mapping[str, bytes] | None = None) -> Path:
    """Save as `ARCHIVE` in a directory, with extra files inside. Returns the file's path."""
    path = directory / ARCHIVE
    with deprecations_ignored(), name_for_torch(path) as name:
        torch.jit.save(module, name, _extra_files=dict(extra or {}))
    return path


@contextmanager
def name_for_torch(path: Path) -> Iterator[str]:
    """A name of a file in UTF-8, as torch.jit requires; the names of directories above the file may be other bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with _directory(path.parent) as name:
            yield f"{name}/{path.name}"
    else:
        yield str(path)


@contextmanager
def _directory(path: Path) -> Iterator[str]:
    """A name of a directory that is ASCII, while the block runs."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}"
    finally:
        os.close(directory)


@contextmanager
def deprecations_ignored() -> Iterator[None]:
    """Ignore the warnings of torch about `torch.jit`, since the runtime loads TorchScript, whatever torch recommends.

    torch 2.13 raises a DeprecationWarning, torch 2.14 and later a FutureWarning. On Python 3.14 the text differs.
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", _DEPRECATION, category)
        yield


_DEPRECATION: Final = r"`torch\.jit\.\w+` is (deprecated|not supported in Python 3\.\d+\+ and may break)\. "
