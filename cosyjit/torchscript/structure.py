"""Whether a half-precision artifact is the float32 one but for the type of its numbers.

What half precisions are too coarse to show by what they compute is told by what their files hold.
"""

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cosyjit.torchscript import script


def problem(path: Path, module: Any, encoder: nn.Module, methods: Sequence[str], dtype: torch.dtype) -> str | None:
    """What is other in an artifact than its type, in words; None if nothing is.

    Args:
        path: the zip.
        module: the same, loaded.
        encoder: filled, float32, not scripted.
        methods: those that it keeps beside `forward`.
        dtype: the type of its weights.
    """
    weights = script.cast(script.weights_of(encoder), dtype)
    numbered = list(weights.values())
    archive = io.BytesIO()
    with script.deprecations_ignored():
        torch.jit.save(script.optimize(encoder, methods, script.stand_ins(weights)), archive)
        archive.seek(0)
        wanted = torch.jit.load(archive)
    if _code(path) != _as_written_for(dtype, _code(archive)):
        return "the artifact's code is not that of the float32 one"
    seen = set()  # most constants are those of several methods
    for method in ("forward", *methods):
        found = _constants(module, method)
        for name, stand_in in _constants(wanted, method).items():
            stood_for = script.number_of(stand_in)
            if stood_for is None or (found[name].data_ptr(), stood_for) in seen:
                continue
            number, transposed = stood_for
            if not _is(found[name], numbered[number], transposed):
                return (
                    f"a constant of the artifact's {method}, {tuple(found[name].shape)}, is not the cast of its tensor"
                )
            seen.add((found[name].data_ptr(), stood_for))
    return None


def _code(archive: Path | io.BytesIO) -> str:
    """The code in an archive, without the numbers by which torch tells classes of one name apart."""
    with zipfile.ZipFile(archive) as opened:
        members = sorted(name for name in opened.namelist() if name.endswith(".py"))
        code = "".join(opened.read(name).decode() for name in members)
    return re.sub(r"\.___torch_mangle_\d+", "", code)


_NUMBERS: Final = {torch.float16: 5, torch.float32: 6, torch.bfloat16: 15}
"""The types in TorchScript's code: numbers of torch's `ScalarType`, which files have kept since they are written."""


def _as_written_for(dtype: torch.dtype, code: str) -> str:
    """Code for float32 as it would be for another type: only what is cast to the type of the weights differs."""
    casts = rf"(torch\.to\((?:[^()]|\([^()]*\))*, ){_NUMBERS[torch.float32]}\)"
    return re.sub(casts, rf"\g<1>{_NUMBERS[dtype]})", code)


def _constants(module: Any, method: str) -> dict[str, Tensor]:
    """The tensors in a method's code, by their names there."""
    _, constants = (module if method == "forward" else getattr(module, method)).code_with_constants
    names = getattr(constants, "const_mapping", constants)  # of `forward` it is no dictionary
    return {name: value for name, value in names.items() if isinstance(value, Tensor)}


def _is(found: Tensor, wanted: Tensor, transposed: bool) -> bool:
    """Whether a constant is a weight, or a transposed one, to the bit; of a vector, freezing may hold another shape."""
    if transposed:
        found = found.t()
    return found.dtype == wanted.dtype and torch.equal(_bits(found.reshape(wanted.shape)), _bits(wanted))


def _bits(tensor: Tensor) -> Tensor:
    """A tensor of two-byte numbers as one of integers, which are compared much faster."""
    return tensor.view(torch.int16) if tensor.element_size() == 2 else tensor  # noqa: PLR2004
