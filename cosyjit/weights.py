"""The encoder of a component, checked against the tensors of a weights file."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosyjit.encoders.registry import build_encoder
from cosyjit.errors import CheckpointError, TensorMismatchError, UnsupportedOptionError
from cosyjit.families import Component
from cosyjit.source import Source


def load_encoder(
    source: Source, component: Component, options: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A component's encoder on the meta device, and the tensors that fit it, mapped from the file and not yet read.

    Args:
        source: the model directory.
        component: one of its family's.
        options: from `Checkpoint.options`.

    Raises:
        UnsupportedOptionError: an option that is unknown, missing, or of a value that is not supported.
        CheckpointError: the weights file is missing, damaged or more than tensors, or the tensors do not fit.
    """
    try:
        encoder = build_encoder(component.class_name, options)
    except UnsupportedOptionError as error:
        where = f"{source.config}: {component.name}"
        raise UnsupportedOptionError(error.option, error.value, error.supported, where) from None
    path = source.directory / component.weights
    tensors = _under(component.prefix, read_weights(path))
    _check(f"{path}: {component.name}", component.prefix, encoder.state_dict(), tensors)
    return encoder, tensors


def read_weights(path: Path) -> dict[str, Any]:
    """The flat dictionary of a `.pt` file; its tensors are mapped, so that only those that are used are read.

    Raises:
        CheckpointError: the file is missing, empty or damaged, would run code, or holds no dictionary.
    """
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: does not exist; put the weights file beside the configuration") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    if empty:
        raise CheckpointError(f"{path}: is empty; copy or download it again")
    try:
        # Up to 2.5, torch loads a TorchScript archive, code and all, whatever `weights_only` says (CVE-2025-32434).
        scripted = "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()  # noqa: SLF001
        state = None if scripted else torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds more than tensors, which loading could run as code; save it as a flat state dictionary"
        ) from None
    except Exception as error:  # noqa: BLE001  (a damaged file makes the unpickler raise almost anything)
        raise CheckpointError(
            f"{path}: is damaged, or no zip file of torch.save ({_first_line(error)}); "
            "copy or download it again, or save it again"
        ) from None
    if scripted:
        raise CheckpointError(f"{path}: is a TorchScript archive; save the model's state dictionary")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}; save it as a flat state dictionary")
    return state


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries under a prefix, without it. What training leaves beside them, `epoch` and `step`, is under none."""
    return {name[len(prefix) :]: value for name, value in state.items() if str(name).startswith(prefix)}


def _check(where: str, prefix: str, wanted: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    missing = [prefix + name for name in wanted if name not in found]
    unexpected = [prefix + name for name in found if name not in wanted]
    misshapen = [
        f"{prefix}{name} ({_kind(found[name])} instead of {_shape(tensor)})"
        for name, tensor in wanted.items()
        if name in found and _kind(found[name]) != _shape(tensor)
    ]
    if missing or unexpected or misshapen:
        raise TensorMismatchError(where, missing, unexpected, misshapen)


def _kind(value: Any) -> str:
    """The shape of a tensor that has numbers in a row, or what a value is instead."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized or not value.is_cpu:
        return f"no plain tensor, {type(value).__name__}"
    return _shape(value)


def _shape(tensor: Tensor) -> str:
    """What of a tensor has to be as wanted, in words: its shape, and its type unless that is a float."""
    kind = "" if tensor.is_floating_point() else f"{str(tensor.dtype).removeprefix('torch.')} "
    return f"{kind}{tuple(tensor.shape)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
