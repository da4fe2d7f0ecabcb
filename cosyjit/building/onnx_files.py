"""ONNX files of flow estimators: written in one process, and verified in another."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from cosyjit.building.artifact import Built, Proof, sync
from cosyjit.building.packages import check_packages
from cosyjit.onnx.forms import FORMS
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.provenance import record
from cosyjit.torchscript.graph import Graph
from cosyjit.weights.fit import EncoderNeed

if TYPE_CHECKING:
    from cosyjit.onnx.graph import Model


def build(target: Target, _graph: Graph | None, directory: Path, progress: worker.Progress) -> Built:
    """Make the graph of an estimator, and write it with its weights; runs in a process of its own."""
    check_packages(target)  # the machine may be another than the one that has planned it
    import torch

    from cosyjit.onnx import writer

    torch.set_num_threads(1)
    target.check_unchanged()
    path = directory / target.file_name
    underflows = writer.write(
        _model(target), target.weights_file, target.component.prefix, path, progress, target.reading
    )
    target.check_unchanged()
    return Built(path, underflows)


def prove(
    target: Target, _graph: Graph | None, path: Path, progress: worker.Progress | None, scope: worker.CancelScope | None
) -> Proof:
    """Compare a file with its estimator and its weights, in a process of its own, while it is flushed to the disk."""
    check_packages(target)
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(sync, path)
        figures = worker.run(_verify, target, path, progress=progress, scope=scope)
        return Proof(figures, synced.result())


def _verify(target: Target, path: Path, progress: worker.Progress) -> dict[str, float]:
    """Compare a file with what it was made from; runs in a process of its own. Gives figures."""
    import torch

    from cosyjit.estimators.registry import build_estimator
    from cosyjit.onnx import gate
    from cosyjit.torchscript.load import map_tensors

    torch.set_num_threads(1)
    target.check_unchanged()
    component, weights = target.component, target.weights_file
    estimator = build_estimator(component.class_name, target.options)
    tensors = map_tensors(weights, EncoderNeed.of(component, target.options, target.source.config), target.reading)
    state = {name.removeprefix(component.prefix): each.float() for name, each in tensors.items()}
    estimator.load_state_dict(state, strict=True, assign=True)
    metrics = gate.verify(path, _model(target), estimator, weights, component.prefix, progress, target.reading)
    target.check_unchanged()
    return metrics.figures


def _model(target: Target) -> "Model":
    """The model of a target, with the provenance that is embedded in it."""
    from cosyjit.onnx.models import make

    model = make(target.component.class_name, target.options, FORMS[target.precision.name])
    provenance = record.embedded_provenance(target.fingerprint).decode("ascii")
    model.proto.metadata_props.add(key=record.EMBEDDED_NAME, value=provenance)
    return model
