"""Checks that a half-precision artifact equals the float32 one but for the type of its numbers.

Half precisions are too coarse to prove this by their outputs, so the contents of the file are compared. Its code has to
be that of a float32 artifact. Its constants have to be the cast weights: each is identified by the constant of the same
name in an artifact whose weights are placeholders.
"""

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cosyjit.torchscript import script

_FRACTION: Final = 0.25
"""What the first row of a placeholder has beside its index."""


def problem(path: Path, module: Any, encoder: nn.Module, methods: Sequence[str], dtype: torch.dtype) -> str | None:
    """In words, what differs in an artifact besides the type; None if nothing does.

    Args:
        path: the zip.
        module: the same, loaded.
        encoder: filled, float32, not scripted.
        methods: the methods that it keeps beside `forward`.
        dtype: the type of its weights.
    """
    weights = script.cast(weights_of(encoder), dtype)
    indexed = list(weights.values())
    archive = io.BytesIO()
    with script.deprecations_ignored():
        torch.jit.save(script.optimize(encoder, methods, placeholders(weights)), archive)
        archive.seek(0)
        reference = torch.jit.load(archive)
    if _code(path) != _as_written_for(dtype, _code(archive)):
        return "the artifact's code is not that of the float32 one"
    seen = set()  # most constants occur in several methods
    for method in ("forward", *methods):
        constants = _constants(module, method)
        for name, placeholder in _constants(reference, method).items():
            identified = placeholder_index(placeholder)
            constant = constants[name]
            if identified is None or (constant.data_ptr(), identified) in seen:
                continue
            index, transposed = identified
            if not _equals(constant, indexed[index], transposed):
                return f"a constant of the artifact's {method}, {tuple(constant.shape)}, is not the cast of its tensor"
            seen.add((constant.data_ptr(), identified))
    return None


def weights_of(encoder: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by the names of their attributes, which those of `state_dict` may differ from."""
    return {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}


def placeholders(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A placeholder for each weight: its index, broadcast to its shape; float32 for weights of floats.

    A placeholder takes the memory of a column at most. Its first row has a fraction added, so that the placeholder
    differs from its transpose. Freezing merges constants that are equal. So equal weights get the same index, and a
    weight that is its own transpose gets no fraction.

        weight 2, of shape (3, 2)    placeholder    its transpose
                                     2.25  2.25     2.25  2     2
                                     2     2        2.25  2     2
                                     2     2
    """
    made = {}
    firsts: dict[object, list[tuple[int, Tensor]]] = {}
    for index, (name, weight) in enumerate(weights.items()):
        others = firsts.setdefault((weight.shape, weight.detach().sum().item()), [])
        chosen = next((first for first, other in others if torch.equal(weight, other)), index)
        others.append((index, weight))
        rows = (weight.size(0), *[1] * (weight.ndim - 1)) if weight.ndim > 1 else ()
        column = torch.full(rows, chosen, dtype=torch.float32 if weight.is_floating_point() else weight.dtype)
        if weight.ndim > 1 and not _is_symmetric(weight):
            column[0] += _FRACTION
        made[name] = column.expand(weight.shape)
    return made


def _is_symmetric(matrix: Tensor) -> bool:
    square = matrix.ndim == 2 and matrix.size(0) == matrix.size(1)  # noqa: PLR2004
    return square and torch.equal(matrix[0], matrix[:, 0]) and torch.equal(matrix, matrix.t())


def placeholder_index(constant: Tensor) -> tuple[int, bool] | None:
    """The index of a placeholder, and whether it is transposed; None for other tensors, such as computed ones."""
    if not constant.numel():
        return None
    moving = [axis for axis, size in enumerate(constant.shape) if size > 1 and constant.stride(axis)]
    if len(moving) > (constant.ndim > 1):
        return None
    row = constant[tuple(slice(None) if axis in moving else 0 for axis in range(constant.ndim))].flatten().double()
    index = int(row[-1])
    fraction = row - index
    is_placeholder = index >= 0 and float(fraction[0]) in {0.0, _FRACTION} and not fraction[1:].any()
    return (index, moving == [1]) if is_placeholder else None


def _code(archive: Path | io.BytesIO) -> str:
    """The code in an archive, without the numbers that torch gives to classes of the same name."""
    with zipfile.ZipFile(archive) as opened:
        members = sorted(name for name in opened.namelist() if name.endswith(".py"))
        code = "".join(opened.read(name).decode() for name in members)
    return re.sub(r"\.___torch_mangle_\d+", "", code)


_NUMBERS: Final = {torch.float16: 5, torch.float32: 6, torch.bfloat16: 15}
"""The types in TorchScript's code: numbers of torch's `ScalarType`, which do not change between versions."""


def _as_written_for(dtype: torch.dtype, code: str) -> str:
    """The code of a float32 artifact as it would be for another type: only the casts to that type differ."""
    casts = rf"(torch\.to\((?:[^()]|\([^()]*\))*, ){_NUMBERS[torch.float32]}\)"
    return re.sub(casts, rf"\g<1>{_NUMBERS[dtype]})", code)


def _constants(module: Any, method: str) -> dict[str, Tensor]:
    """The tensors in a method's code, by their names there."""
    _, constants = (module if method == "forward" else getattr(module, method)).code_with_constants
    names = getattr(constants, "const_mapping", constants)  # that of `forward` is not a dictionary
    return {name: value for name, value in names.items() if isinstance(value, Tensor)}


def _equals(constant: Tensor, weight: Tensor, transposed: bool) -> bool:
    """Whether a constant is a weight, possibly transposed, to the bit. Freezing may change the shape of a vector."""
    if transposed:
        constant = constant.t()
    return constant.dtype == weight.dtype and torch.equal(_bits(constant.reshape(weight.shape)), _bits(weight))


def _bits(tensor: Tensor) -> Tensor:
    """A tensor of two-byte numbers as integers, which are compared much faster."""
    return tensor.view(torch.int16) if tensor.element_size() == 2 else tensor  # noqa: PLR2004
