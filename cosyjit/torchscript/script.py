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

ARCHIVE: Final = "archive.zip"
"""The name that artifacts are saved under: TorchScript writes a file's name into the file, and equal artifacts are to
have equal bytes whatever they are called later."""

_SHOWN: Final = 3
"""How many names of tensors a message gives."""


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors with all floating-point ones in `dtype`; those of other types, such as counters, as they are.

    The tensors given are left alone: a change of type is a copy.
    """
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def check_cast(tensors: Mapping[str, Tensor], cast_ones: Mapping[str, Tensor], precision: Precision) -> int:
    """How many numbers of tensors become 0 when they are cast.

    Raises:
        VerificationError: some are NaN or infinite, or become so, and so would what is computed with them.
    """
    changed = {name: after for name, after in cast_ones.items() if after.dtype != tensors[name].dtype}
    _refuse_unfit(tensors, "are NaN or infinite", "export a checkpoint whose weights are sound")
    _refuse_unfit(changed, f"overflow in {precision.dtype}", precision.hint)
    return sum(int(tensors[name].count_nonzero() - after.count_nonzero()) for name, after in changed.items())


def _refuse_unfit(tensors: Mapping[str, Tensor], what: str, way_out: str) -> None:
    counts = {name: _unfit(tensor) for name, tensor in tensors.items()}
    names = [name for name, count in counts.items() if count]
    if names:
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise VerificationError(f"{sum(counts.values()):,} numbers of {len(names)} tensors {what} ({shown}); {way_out}")


def _unfit(tensor: Tensor) -> int:
    """How many numbers are not finite. A sum that is finite is of such alone, and takes a tenth of the time."""
    return 0 if tensor.sum().isfinite() else tensor.numel() - int(tensor.isfinite().sum())


def optimize(
    encoder: nn.Module, methods: Sequence[str] = (), weights: Mapping[str, Tensor] | None = None
) -> torch.jit.ScriptModule:
    """Script, freeze and optimize for inference an encoder in eval mode, `forward` and the other methods named.

    Freezing takes the weights themselves into the graphs, without a copy. No process-wide JIT switch is touched.

    Args:
        encoder: left as it is.
        methods: to be kept beside `forward`.
        weights: instead of the encoder's own, by the names of `weights_of`.
    """
    with deprecations_ignored():
        scripted = torch.jit.script(encoder)
        if weights is not None:
            _fill(scripted, weights)
        frozen = torch.jit.freeze(scripted, preserved_attrs=list(methods))
        module = torch.jit.optimize_for_inference(frozen, other_methods=list(methods))
    for method in ("forward", *methods):
        graph: Any = (module if method == "forward" else getattr(module, method)).graph
        _forget_places(graph, graph.create("prim::Constant"))
    return module


def _forget_places(block: Any, blank: Any) -> None:
    """Take from all nodes the note of the file and line that they come from, as a blank node has none.

    An artifact would carry these notes, paths of this machine among them, and not the same ones each time.
    """
    for node in block.nodes():
        node.copyMetadata(blank)
        for inner in node.blocks():
            _forget_places(inner, blank)


def weights_of(encoder: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by the names of the attributes, which `state_dict` may change."""
    return {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}


def stand_ins(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each weight its number, in its shape, without the memory for that; those of floats are float32.

    The first row of a matrix has a fraction besides, so that its transpose is another tensor. Freezing takes equal
    constants as one: so weights that are equal have one number, and one that is its own transpose has no fraction.
    """
    found = {}
    firsts: dict[object, list[tuple[int, Tensor]]] = {}
    for number, (name, weight) in enumerate(weights.items()):
        others = firsts.setdefault((weight.shape, weight.detach().sum().item()), [])
        chosen = next((first for first, other in others if torch.equal(weight, other)), number)
        others.append((number, weight))
        rows = (weight.size(0), *[1] * (weight.ndim - 1)) if weight.ndim > 1 else ()
        column = torch.full(rows, chosen, dtype=torch.float32 if weight.is_floating_point() else weight.dtype)
        if weight.ndim > 1 and not _is_symmetric(weight):
            column[0] += _FRACTION
        found[name] = column.expand(weight.shape)
    return found


_FRACTION: Final = 0.25


def _is_symmetric(matrix: Tensor) -> bool:
    square = matrix.ndim == 2 and matrix.size(0) == matrix.size(1)  # noqa: PLR2004
    return square and torch.equal(matrix[0], matrix[:, 0]) and torch.equal(matrix, matrix.t())


def number_of(constant: Tensor) -> tuple[int, bool] | None:
    """Which stand-in a tensor is, and whether transposed; None if it is none, or was computed from some."""
    if not constant.numel():
        return None
    moving = [axis for axis, size in enumerate(constant.shape) if size > 1 and constant.stride(axis)]
    if len(moving) > (constant.ndim > 1):
        return None
    row = constant[tuple(slice(None) if axis in moving else 0 for axis in range(constant.ndim))].flatten().double()
    number = int(row[-1])
    over = row - number
    is_one = number >= 0 and float(over[0]) in {0.0, _FRACTION} and not over[1:].any()
    return (number, moving == [1]) if is_one else None


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
    """A file's name as torch.jit takes it, which wants UTF-8: a name of a directory above it may be other bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with _directory(path.parent) as name:
            yield f"{name}/{path.name}"
    else:
        yield str(path)


@contextmanager
def _directory(path: Path) -> Iterator[str]:
    """Another name of a directory."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}"
    finally:
        os.close(directory)


@contextmanager
def deprecations_ignored() -> Iterator[None]:
    """Ignore what torch says of each use of `torch.jit`: the runtime loads TorchScript, whatever torch recommends.

    torch 2.13 gives a DeprecationWarning, torch 2.14 and later a FutureWarning; on Python 3.14 the text differs.
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", _DEPRECATION, category)
        yield


_DEPRECATION: Final = r"`torch\.jit\.\w+` is (deprecated|not supported in Python 3\.\d+\+ and may break)\. "
