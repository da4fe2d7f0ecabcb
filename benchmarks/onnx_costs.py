"""The calls that `benchmarks.onnx` measures, in a module that the processes which run them can import."""

import os
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime
import torch

from benchmarks.costs import Cost, cost
from cosyjit.estimators.registry import build_estimator
from cosyjit.onnx import writer
from cosyjit.onnx.forms import FORMS
from cosyjit.onnx.models import LENGTH, make
from cosyjit.processes.worker import Progress

PREFIX = "decoder.estimator."
"""The beginning of the tensors' names in a weights file."""

NAMES = ("x", "mask", "mu", "t", "spks", "cond")


class Graph(NamedTuple):
    """Of a graph: the seconds that it takes to make it, its nodes, and the bytes of its weights."""

    seconds: float
    nodes: int
    size: int


def graph(class_name: str, options: Mapping[str, Any], form: str, progress: Progress) -> Graph:  # noqa: ARG001
    """What making a graph costs."""
    begun = time.perf_counter()
    model = make(class_name, options, FORMS[form])
    return Graph(time.perf_counter() - begun, len(model.proto.graph.node), model.size)


def write(class_name: str, options: Mapping[str, Any], form: str, weights: Path, out: Path, progress: Progress) -> Cost:
    """What making a graph, writing the file and bringing it to the disk cost."""

    def call() -> None:
        writer.write(make(class_name, options, FORMS[form]), weights, PREFIX, out, progress)
        with out.open("rb") as file:
            os.fsync(file.fileno())

    return cost(call)


def traced(class_name: str, options: Mapping[str, Any], weights: Path, out: Path, progress: Progress) -> Cost:  # noqa: ARG001
    """What torch's exporter by tracing costs, of the same network."""
    estimator = build_estimator(class_name, options)
    saved = torch.load(weights, mmap=True, weights_only=True)
    tensors = {name.removeprefix(PREFIX): each for name, each in saved.items() if name.startswith(PREFIX)}
    estimator.load_state_dict(tensors, strict=True, assign=True)
    frames = {name: torch.rand(2, 80, 200) for name in ("x", "mu", "cond")}
    inputs = {**frames, "mask": torch.ones(2, 1, 200), "t": torch.rand(2), "spks": torch.rand(2, 80)}

    def call() -> None:
        warnings.simplefilter("ignore")  # of what is a constant in a trace
        torch.onnx.export(
            estimator,
            tuple(inputs[name] for name in NAMES),
            str(out),
            input_names=list(NAMES),
            output_names=["estimator_out"],
            opset_version=18,
            do_constant_folding=True,
            dynamic_axes={name: {2: LENGTH} for name in ("x", "mask", "mu", "cond", "estimator_out")},
            dynamo=False,
        )
        with out.open("rb") as file:
            os.fsync(file.fileno())

    return cost(call)


def nodes(path: Path, progress: Progress) -> int:  # noqa: ARG001
    """The nodes of a file."""
    return len(onnx.load(path).graph.node)


def calls(paths: Sequence[Path], frames: int, progress: Progress) -> list[float]:  # noqa: ARG001
    """The processor seconds of a call of ONNX Runtime with each file, on one thread.

    They are medians of five; the files take turns, since the machine is not equally fast all the time.
    """
    sessions = [_session(path) for path in paths]
    x = torch.rand(2, 80, frames)
    tensors = {"x": x, "mu": x, "cond": x, "mask": torch.ones(2, 1, frames), "t": torch.rand(2), "spks": x[:, :, 0]}
    times: list[list[float]] = [[] for _ in paths]
    for _ in range(6):
        for session, taken in zip(sessions, times, strict=True):
            half = session.get_inputs()[0].type == "tensor(float16)"
            inputs = {name: (each.half() if half else each).numpy() for name, each in tensors.items()}
            begun = time.process_time()
            session.run(None, inputs)
            taken.append(time.process_time() - begun)
    return [statistics.median(taken[1:]) for taken in times]  # the first call takes memory as well


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
