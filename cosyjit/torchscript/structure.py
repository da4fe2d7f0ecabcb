"""Checks that an artifact is its encoder: the code that TorchScript makes of it, and its weights, bit for bit.

The encoder is scripted anew, with placeholders for weights. The artifact's code has to be the same but for the type of
its numbers, and its constants have to be the cast weights: each is identified by the placeholder of the same name. So
all is proven that the code decides, over any number of frames and in half precisions, whose outputs are too coarse; but
not what TorchScript makes of the encoder, nor constants that freezing computes. These need calls (`calls`).

Quantized weights do not have placeholders: the encoder is quantized anew, and its constants are compared as they are.
"""

import copy
import io
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from cosyjit.encoders.quantized import quantize
from cosyjit.families import Precision
from cosyjit.torchscript import script

_FRACTION: Final = 0.25
"""What the first row of a placeholder has beside its index."""


class Comparison(NamedTuple):
    """What differs in an artifact.

    Attributes:
        problem: in words; None if nothing does.
        reference: the archive of the same encoder with placeholders, if the artifact is like it.
    """

    problem: str | None
    reference: io.BytesIO | None = None


def compare(path: Path, module: Any, encoder: nn.Module, methods: Sequence[str], precision: Precision) -> Comparison:
    """Compare an artifact with its encoder, scripted anew, but for the type.

    Args:
        path: the zip.
        module: the same, loaded.
        encoder: filled, float32, not scripted.
        methods: the methods that it keeps beside `forward`.
        precision: that of the artifact.
    """
    dtype: torch.dtype = getattr(torch, precision.dtype)
    weights = script.cast(weights_of(encoder), dtype)
    if precision.quantized:
        return Comparison(_compare(path, module, script.optimize(_quantized(encoder), methods), methods, _same).problem)
    reference = script.optimize(encoder, methods, placeholders(weights))
    is_cast = _Cast(list(weights.values()))
    compared = _compare(path, module, reference, methods, is_cast, dtype)
    if compared.problem is None:
        return compared
    # Freezing merges weights that are equal as numbers, by whatever sign of zero, order of axes or strides, which
    # placeholders do not show. So few checkpoints have such weights that the memory of a second artifact is taken.
    anew = _compare(path, module, script.optimize(encoder, methods, weights), methods, _same)
    return compared if anew.problem else Comparison(None)


def _compare(
    path: Path,
    module: Any,
    reference: Any,
    methods: Sequence[str],
    is_right: Callable[[Any, Any], bool],
    dtype: torch.dtype = torch.float32,
) -> Comparison:
    """Compare an artifact with a reference.

    Args:
        reference: an encoder, optimized.
        is_right: whether a constant of the artifact is what the reference has by its name.
        dtype: the type of the artifact's weights, if the reference has others.
    """
    archive = io.BytesIO()
    with script.deprecations_ignored():
        torch.jit.save(reference, archive)
    if _code(path) != _as_written_for(dtype, _code(archive)):
        return Comparison("the artifact's code is not that of its encoder")
    for method in ("forward", *methods):
        constants = _constants(module, method)
        for name, expected in _constants(reference, method).items():
            if name not in constants or not is_right(constants[name], expected):
                shape = tuple(_numbers(constants.get(name, expected))[0].shape)
                return Comparison(f"a constant of the artifact's {method}, {shape}, is not the cast of its tensor")
    return Comparison(None, archive)


class _Cast:
    """Says whether a constant is the weight that a placeholder stands for. Most occur in several methods."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.seen: set[tuple[int, tuple[int, bool]]] = set()

    def __call__(self, constant: Tensor, placeholder: Tensor) -> bool:
        identified = placeholder_index(placeholder)
        if identified is None or (constant.data_ptr(), identified) in self.seen:
            return True
        index, transposed = identified
        self.seen.add((constant.data_ptr(), identified))
        return _equals(constant, self.weights[index], transposed)


def _quantized(encoder: nn.Module) -> nn.Module:
    """The encoder with weights of 8 bits. It shares the others with the one given."""
    quantized = copy.deepcopy(encoder, {id(tensor): tensor for tensor in weights_of(encoder).values()})
    quantize(quantized)
    return quantized


def _same(constant: Any, expected: Any) -> bool:
    """Whether constants, tensors or packed weights of 8 bits, are the same to the bit."""
    ours, theirs = _numbers(constant), _numbers(expected)
    return len(ours) == len(theirs) and all(map(torch.equal, map(_bits, ours), map(_bits, theirs)))


def _numbers(constant: Any) -> list[Tensor]:
    """The numbers of a constant; of packed weights, these are the weights, their scales, zero points and biases."""
    if isinstance(constant, Tensor):
        return [constant]
    weight, bias = torch.ops.quantized.linear_unpack(constant)
    return [weight.int_repr(), weight.q_per_channel_scales(), weight.q_per_channel_zero_points(), bias]


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
        if weight.ndim > 1 and not is_symmetric(weight):
            column[0] += _FRACTION
        made[name] = column.expand(weight.shape)
    return made


def is_symmetric(matrix: Tensor) -> bool:
    """Whether a tensor is a matrix that is its own transpose."""
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
        code = "".join(opened.read(name).decode(errors="replace") for name in members)
    return re.sub(r"\.___torch_mangle_\d+", "", code)


_NUMBERS: Final = {torch.float16: 5, torch.float32: 6, torch.bfloat16: 15}
"""The types in TorchScript's code: numbers of torch's `ScalarType`, which do not change between versions."""


def _as_written_for(dtype: torch.dtype, code: str) -> str:
    """The code of a float32 artifact as it would be for another type: only the casts to that type differ."""
    casts = rf"(torch\.to\((?:[^()]|\([^()]*\))*, ){_NUMBERS[torch.float32]}\)"
    return re.sub(casts, rf"\g<1>{_NUMBERS[dtype]})", code)


def _constants(module: Any, method: str) -> dict[str, Any]:
    """The tensors and packed weights in a method's code, by their names there."""
    _, constants = (module if method == "forward" else getattr(module, method)).code_with_constants
    names = getattr(constants, "const_mapping", constants)  # that of `forward` is not a dictionary
    return {name: value for name, value in names.items() if isinstance(value, (Tensor, torch.ScriptObject))}


def _equals(constant: Tensor, weight: Tensor, transposed: bool) -> bool:
    """Whether a constant is a weight, possibly transposed, to the bit. Freezing may change the shape of a vector."""
    if constant.numel() != weight.numel() or (transposed and constant.ndim != 2):  # noqa: PLR2004
        return False
    if transposed:
        constant = constant.t()
    return constant.dtype == weight.dtype and torch.equal(_bits(constant.reshape(weight.shape)), _bits(weight))


def _bits(tensor: Tensor) -> Tensor:
    """A tensor of floating-point numbers as integers: 0 is not -0, and half ones are compared much faster."""
    types = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(types[tensor.element_size()]) if tensor.is_floating_point() else tensor
