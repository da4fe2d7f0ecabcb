"""Verifies an ONNX file before it is stored: its bytes, its graph, and its numbers in ONNX Runtime.

- Bytes (`writer.verify`): the graph is the one that is made anew, and each weight the cast of its tensor, bit for bit.
- Graph: it is valid by ONNX's own checker, with the shapes of all values inferred; and its inputs and its output are
  those that runtimes bind. It is checked with its weights as inputs, which proves the same and reads no number.
- Numbers (`calls`): ONNX Runtime computes on the processor what the eager float32 estimator does.

Where the form is in half precision, the inputs are rounded to it before both compute, since that is the caller's part.
ONNX Runtime then computes most of it in float32, between the casts of the graph, because processors lack arithmetic in
half precision. So the numbers show what the rounded weights, inputs and casts do, and constants that are not finite;
not all that a GPU rounds. What would overflow there is looked for by itself (`ranges`), in the shorter calls.

Both compute with as many threads as torch has. Callers give it one: torch's threads wait for each other in a loop, so
that two of them on busy processors take 60 s of processor time for what one does in 8 s (CosyVoice, full size).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from cosyjit.errors import VerificationError, line
from cosyjit.estimators.solver import solve
from cosyjit.metrics import Metrics, measure
from cosyjit.onnx import ranges, writer
from cosyjit.onnx.calls import calls, utterance
from cosyjit.onnx.forms import BATCH, LIMITS
from cosyjit.onnx.graph import IR_VERSION, OPSET, TYPES, Axis, Model
from cosyjit.processes.worker import Progress
from cosyjit.weights.fit import PLAIN, Reading
from cosyjit.weights.safetensors import UNSOUND

_MOST: Final = 1.01, 1_000_000
"""The largest size of a file: a factor of the bytes of its weights, plus bytes for the graph."""

_AXES: Final[Mapping[str, tuple[Axis, ...]]] = {
    "x": ("batch", "channels", "seq_len"),
    "mask": ("batch", 1, "seq_len"),
    "mu": ("batch", "channels", "seq_len"),
    "t": ("batch",),
    "spks": ("batch", "channels"),
    "cond": ("batch", "channels", "seq_len"),
}
"""The inputs of a file and their axes, in the order in which the public runtime binds them; the output is bound last,
and has the axes of x."""

_OUTPUT: Final = "estimator_out"

_WATCHED: Final = 64
"""The most frames of a call whose values are looked at: how large they become does not depend on the length."""


def verify(
    path: Path,
    model: Model,
    estimator: nn.Module,
    weights: Path,
    prefix: str,
    progress: Progress,
    reading: Reading = PLAIN,
) -> Metrics:
    """Compare a file with the estimator and the weights that it was made from.

    Args:
        path: the file.
        model: from `cosyjit.onnx.models.make`, anew.
        estimator: filled, float32.
        weights, prefix, reading: as `writer.write` was given them.
        progress: receives "compare" and "verify".

    Returns:
        How far it is from the estimator.

    Raises:
        CheckpointError: the weights file cannot be read, or was changed after it was planned.
        VerificationError: the file is not what it should be, or computes something else. The message says where, and
            what to try.
        OSError: the file cannot be read.
    """
    check_graph(path, model)
    writer.verify(model, weights, prefix, path, progress, reading)
    factor, more = _MOST
    if path.stat().st_size > factor * model.size + more:
        raise VerificationError(f"{path}: has {path.stat().st_size:,} bytes for weights of {model.size:,}; {UNSOUND}")
    progress("verify")
    return compare(path, model, estimator)


# The graph.


def check_graph(path: Path, model: Model) -> None:
    """Check that a model is valid, and that its inputs and its output are those that runtimes bind.

    Raises:
        VerificationError: they are not; the message begins with the path.
    """
    problem = _form_problem(model) or _interface_problem(model) or _checker_problem(model)
    if problem:
        raise VerificationError(f"{path}: {problem}; {UNSOUND}")


def _form_problem(model: Model) -> str | None:
    proto = model.proto
    opsets = [(opset.domain, opset.version) for opset in proto.opset_import]
    if opsets != [("", OPSET)] or proto.ir_version > IR_VERSION:
        return f"is of opset {opsets} and IR version {proto.ir_version}, not of {OPSET} and {IR_VERSION}"
    outside = [each.name for each in proto.graph.initializer if each.data_location != onnx.TensorProto.DEFAULT]
    return f"has numbers outside of the file ({outside[0]})" if outside else None


def _interface_problem(model: Model) -> str | None:
    kind = TYPES[model.form.dtype]
    wanted = [(name, kind, [_axis(model, name, axis) for axis in axes]) for name, axes in _AXES.items()]
    wanted.append((_OUTPUT, *wanted[0][1:]))
    actual = [_bound(value) for value in (*model.proto.graph.input, *model.proto.graph.output)]
    for ours, theirs in zip(actual, wanted, strict=False):
        if ours != theirs:
            return f"binds {_shown(*ours)} where runtimes bind {_shown(*theirs)}"
    return None if len(actual) == len(wanted) else f"binds {len(actual)} values, and runtimes {len(wanted)}"


def _axis(model: Model, name: str, axis: Axis) -> Axis:
    """The size of an axis of an input, or its name where it may have any."""
    if axis == "channels":
        return model.sizes[name]
    return BATCH if axis == "batch" and not model.form.dynamic_batch else axis


def _bound(value: onnx.ValueInfoProto) -> tuple[str, int, list[Axis]]:
    described = value.type.tensor_type
    return value.name, described.elem_type, [axis.dim_param or axis.dim_value for axis in described.shape.dim]


def _shown(name: str, kind: int, axes: list[Axis]) -> str:
    return f"{name} ({onnx.TensorProto.DataType.Name(kind).lower()}, {' x '.join(map(str, axes))})"


def _checker_problem(model: Model) -> str | None:
    try:
        onnx.checker.check_model(ranges.described(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"is not valid ({line(error)})"
    return None


# The numbers.


def compare(path: Path, model: Model, estimator: nn.Module) -> Metrics:
    """Compare what a file computes with what its estimator does, in all calls.

    Raises:
        VerificationError: ONNX Runtime does not load or run it, or it computes something else.
    """
    metrics = _compared(path, model, estimator)
    if model.form.dtype == "float16":
        _check_ranges(path, model)
    return metrics


def _compared(path: Path, model: Model, estimator: nn.Module) -> Metrics:
    form = model.form
    limits = LIMITS[form.dtype]
    dtype: torch.dtype = getattr(torch, form.dtype)
    metrics = Metrics()

    def eager(*inputs: Tensor) -> Tensor:
        rounded = (each.to(dtype).float() for each in inputs)
        return estimator(*rounded, streaming=form.streaming)

    session = _session(path, str(path), limits.hint)

    def exported(*inputs: Tensor) -> Tensor:
        return _run(path, session, _OUTPUT, [each.to(dtype) for each in inputs], limits.hint)

    def measured(name: str, ours: Tensor, theirs: Tensor) -> Metrics:
        where = f"{path}: {name}"
        if ours.shape != theirs.shape:
            problem = f"the output is {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
            raise VerificationError(f"{where}: {problem}; {limits.hint}")
        return measure(where, ours.double(), theirs.double(), limits.tolerance, "estimator", limits.hint)

    with torch.inference_mode():
        for call in calls(form, model.sizes, model.chunk):
            inputs = call.inputs.values()
            metrics = metrics.worst(measured(call.name, exported(*inputs), eager(*inputs)))
        ours, theirs = (solve(estimate, *utterance(model.sizes)) for estimate in (exported, eager))
        return metrics.worst(measured("ten steps of the solver", ours, theirs))


def _check_ranges(path: Path, model: Model) -> None:
    """Check that no value of a file in half precision overflows in the shorter calls.

    Raises:
        VerificationError: one does; the message names it.
    """
    hint, values = LIMITS[model.form.dtype].hint, ranges.halves(model)
    watching = ranges.watching(model, values).SerializeToString()
    session = _session(path, watching, hint, ranges.weights(model, path))
    for call in calls(model.form, model.sizes, model.chunk):
        if call.inputs["x"].size(2) > _WATCHED:
            continue
        inputs = [each.half() for each in call.inputs.values()]
        largest = _run(path, session, ranges.OUTPUT, inputs, hint).tolist()
        for value, size in zip(values, largest, strict=True):
            if not size <= ranges.LARGEST:  # as NaN is not either
                problem = f"{value} reaches {size:.2g}, more than the {ranges.LARGEST:,} of half precision"
                raise VerificationError(f"{path}: {call.name}: {problem}; {hint}")


def _session(
    path: Path, model: str | bytes, hint: str, weights: Mapping[str, np.ndarray] | None = None
) -> onnxruntime.InferenceSession:
    """A session of a file, or of a model and its weights; `path` is for messages."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _FATAL
    # Several gates may run side by side, and waiting in a loop would take their processors.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(numbers) for name, numbers in (weights or {}).items()}
    options.add_external_initializers(list(values), list(values.values()))
    if isinstance(model, bytes):  # else it keeps a copy of each weight in float32
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  (its errors have no class in common)
        raise VerificationError(f"{path}: ONNX Runtime does not load it ({line(error)}); {hint}") from None


def _run(path: Path, session: onnxruntime.InferenceSession, output: str, inputs: Sequence[Tensor], hint: str) -> Tensor:
    named = {name: each.numpy() for name, each in zip(_AXES, inputs, strict=True)}
    try:
        (values,) = session.run([output], named)
    except Exception as error:  # noqa: BLE001  (its errors have no class in common)
        raise VerificationError(f"{path}: ONNX Runtime does not run it ({line(error)}); {hint}") from None
    return torch.from_numpy(values).float()


_FATAL: Final = 4
"""The level of ONNX Runtime's log from which nothing is shown that it does not raise as well."""
