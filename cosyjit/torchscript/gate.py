"""Verifies an artifact before it is stored: compares the saved file with the eager float32 encoder.

The file is loaded as its consumer loads it, in a process that did not build it. Two checks have to pass:

- Numbers (`calls`): the artifact is called in all the ways of the runtime, on fixed random inputs, on both sides of
  every branch. That proves what TorchScript has made of the encoder, and that nothing overflows.
- Contents (`structure`): its code is that of the encoder, scripted anew, and its constants are the encoder's weights
  bit for bit. That proves all that the calls do not reach, such as the positions of long sequences, and what a half
  precision is too coarse to show.

A zip that was written by a graph (`graph`) which all this has proven before, on a processor of this kind, is compared
with that byte by byte, weights included. It is called on both sides of every branch, and far behind a cache, since
weights may overflow there.

All precisions but float32 are also computed over a real length, since their errors depend on the weights. On a
processor without native arithmetic for a precision, only a few frames are computed, since all would take minutes: the
contents prove the rest.
"""

import io
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from cosyjit.errors import VerificationError
from cosyjit.families import Component, Precision, Tolerance
from cosyjit.metrics import Metrics, measure
from cosyjit.torchscript import script, step_time, structure
from cosyjit.torchscript.calls import STEP, Call, Extent, Labelled, calls
from cosyjit.torchscript.dissect import graph_of, is_filled
from cosyjit.torchscript.expected import Expected
from cosyjit.torchscript.graph import Graph
from cosyjit.torchscript.step_time import Step
from cosyjit.weights import zip_reader

_MOST: Final = 1.05, 1_000_000
"""The largest size of an artifact: a factor of the bytes of its weights, plus bytes for the code and the directory."""
_LEAST: Final = 0.95


class Mode(NamedTuple):
    """The type of the inputs, and the type of autocast if it is on."""

    name: str
    inputs: torch.dtype
    autocast: torch.dtype | None = None


class Verified(NamedTuple):
    """What verifying an artifact gives.

    Attributes:
        metrics: how far it is from the encoder.
        graph: its graph, now proven; None if it is of no use to other checkpoints.
        step: the time of a decoding step, if it decodes in steps and its graph had not been proven.
    """

    metrics: Metrics
    graph: Graph | None
    step: Step | None = None


def verify(
    path: Path,
    encoder: nn.Module,
    component: Component,
    precision: Precision,
    least_bytes: int,
    weight_bytes: int,
    *,
    provenance: bytes,
    graph: Graph | None = None,
    expected: Expected | None = None,
) -> Verified:
    """Compare an artifact with the encoder that it was made from.

    Args:
        path: the zip.
        encoder: filled, float32, not scripted.
        component, precision: those of the artifact.
        least_bytes: the size of the artifact's weights if equal weights are stored once.
        weight_bytes: their size if all are stored.
        provenance: what has to be embedded in the artifact.
        graph: the artifact's, if it has been proven before on a processor of this kind.
        expected: of the encoder, if other precisions of the component have been verified already.

    Raises:
        VerificationError: it does not load, lacks a method, or computes something else. The message says in which call,
            and what to try.
    """
    gate = _Gate(component.tolerances[precision.name], precision)
    expected = expected or Expected(encoder)
    gate.check_size(path.stat().st_size, least_bytes, weight_bytes)
    dtype: torch.dtype = getattr(torch, precision.dtype)
    methods = component.methods
    with torch.inference_mode():
        if graph is None:
            gate.check_checksums(path)
        else:
            gate.check_filled(path, graph, encoder, provenance)
        module = gate.load(path)
        gate.check_methods(module, ("forward", *methods))
        if graph is not None:
            # What torch makes of it at the first two calls, and what of that under autocast, was proven with the graph.
            with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                gate.check_numbers(module, expected, methods, dtype, proven=True)
        elif dtype == torch.float32:  # then numbers show nearly all, and in which call
            gate.check_numbers(module, expected, methods, dtype)
            reference = gate.check_contents(path, module, encoder, methods)
        else:
            reference = gate.check_contents(path, module, encoder, methods)
            gate.check_numbers(module, expected, methods, dtype)
        gate.check_provenance(path, provenance)
        if graph is not None:
            return Verified(gate.metrics, graph)
        step = step_time.measure(module, encoder, dtype) if STEP in methods else None
        if reference is not None:
            graph = graph_of(path, reference, script.cast(structure.weights_of(encoder), dtype), provenance)
    return Verified(gate.metrics, graph, step)


def _modes(dtype: torch.dtype) -> list[Mode]:
    """The ways in which a runtime calls an artifact whose weights have a type."""
    modes = [Mode(f"{str(dtype).removeprefix('torch.')} inputs", dtype)]
    if dtype != torch.float32:
        modes.append(Mode("float32 inputs under autocast", torch.float32, dtype))
    return modes


def has_arithmetic(dtype: torch.dtype) -> bool:
    """Whether this processor has native arithmetic for a type, so that it is at least as fast as float32."""
    # torch does not have a public function for it.
    name = {torch.float16: "_is_mkldnn_fp16_supported", torch.bfloat16: "_is_mkldnn_bf16_supported"}.get(dtype)
    return name is None or bool(getattr(torch.ops.mkldnn, name, lambda: False)())


# The checks.


class _Gate:
    """The checks of one artifact, and its metrics so far."""

    def __init__(self, tolerance: Tolerance, precision: Precision) -> None:
        self.tolerance = tolerance
        self.precision = precision
        self.metrics = Metrics()

    def fail(self, problem: str) -> VerificationError:
        return VerificationError(f"{problem}; {self.precision.hint}")

    def check_size(self, size: int, least_bytes: int, weight_bytes: int) -> None:
        factor, more = _MOST
        if not _LEAST * least_bytes <= size <= factor * weight_bytes + more:
            raise self.fail(f"the artifact has {size:,} bytes for weights of {weight_bytes:,}")

    def check_checksums(self, path: Path) -> None:
        """Check that an archive is not damaged, which torch does not see."""
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
                zip_reader.members(file)  # nor does zipfile see bytes that belong to no member
        except Exception as error:  # noqa: BLE001  (as torch, almost anything for a damaged archive)
            raise self.fail(f"the artifact does not load ({_lines(error)[0]})") from None
        if damaged:
            raise self.fail(f"the artifact does not load ({damaged} is damaged)")

    def check_provenance(self, path: Path, provenance: bytes) -> None:
        with zipfile.ZipFile(path) as archive:
            extra = [name for name in archive.namelist() if "/extra/" in name]
            if [archive.read(name) for name in extra] != [provenance]:
                raise self.fail("the provenance that is embedded in the artifact is not its own")

    def load(self, path: Path) -> Any:
        try:
            with script.deprecations_ignored(), script.name_for_torch(path) as name:
                return torch.jit.load(name, map_location="cpu")
        except Exception as error:  # noqa: BLE001  (torch raises almost anything for a damaged archive)
            raise self.fail(f"the artifact does not load ({_lines(error)[0]})") from None

    def check_methods(self, module: Any, methods: Sequence[str]) -> None:
        missing = [name for name in methods if not hasattr(module, name)]
        if missing:
            raise self.fail(f"the artifact has no method {', '.join(missing)}")

    def check_contents(self, path: Path, module: Any, encoder: nn.Module, methods: Sequence[str]) -> io.BytesIO | None:
        problem, reference = structure.compare(path, module, encoder, methods, self.precision)
        if problem:
            raise self.fail(problem)
        return reference

    def check_filled(self, path: Path, graph: Graph, encoder: nn.Module, provenance: bytes) -> None:
        weights = script.cast(structure.weights_of(encoder), getattr(torch, self.precision.dtype))
        if not is_filled(path, graph, weights, provenance):
            raise self.fail("the artifact is not its graph, which is proven, with the cast weights")

    def check_numbers(
        self,
        module: Any,
        expected: Expected,
        methods: Sequence[str],
        dtype: torch.dtype,
        *,
        proven: bool = False,
    ) -> int:
        """Compare outputs in all calls and modes; gives how many were compared.

        Args:
            proven: whether the graph is. Then weights alone may be at fault, which one mode shows, without a stream.
        """
        native, count = has_arithmetic(dtype), 0
        extent: Extent = "branches" if native else "few"
        real = native and self.precision.name != "fp32"
        for call in calls(expected.encoder, methods, extent, real=real, stream=not proven):
            outputs = expected.of(call)
            for mode in _modes(dtype)[: 1 if proven else None]:
                self.compare(f"{call.name}, {mode.name}", self.outputs(call, module, mode), outputs)
                count += 1
        return count

    def outputs(self, call: Call, module: Any, mode: Mode) -> list[Labelled]:
        """The outputs of an artifact, which have the type of the inputs, and its caches, with that of the weights."""
        where = f"{call.name}, {mode.name}"
        try:
            with torch.autocast("cpu", mode.autocast) if mode.autocast else nullcontext():
                outputs = list(call.run(module, mode.inputs))
        except Exception as error:  # noqa: BLE001  (torch raises almost anything)
            raise self.fail(f"{where}: {_lines(error)[-1]}") from None  # the last line, after TorchScript's trace
        for label, tensor in outputs:
            wanted = mode.inputs if label.startswith("ys") else mode.autocast or mode.inputs
            if tensor.dtype not in (wanted, torch.bool) and tensor.numel():
                raise self.fail(f"{where}: {label} is {tensor.dtype} instead of {wanted}")
        return outputs

    def compare(self, call: str, outputs: list[Labelled], expected: list[Labelled]) -> None:
        """Measure a call, and check that its metrics are within the tolerance."""
        for (label, ours), (_, theirs) in zip(outputs, expected, strict=True):
            where = f"{call}: {label}"
            if ours.shape != theirs.shape:
                raise self.fail(f"{where} is {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
            if theirs.dtype == torch.bool:
                if not torch.equal(ours, theirs):
                    raise self.fail(f"{where} differs from the encoder's")
            elif theirs.numel():
                metrics = measure(where, ours.double(), theirs.double(), self.tolerance, "encoder", self.precision.hint)
                self.metrics = self.metrics.worst(metrics)


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
