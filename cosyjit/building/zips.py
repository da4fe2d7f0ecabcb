"""TorchScript zips: built in one process, and verified in another."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from cosyjit.building.artifact import Built, Proof, sync, unwritable
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.provenance import record
from cosyjit.torchscript.graph import Graph


def build(target: Target, graph: Graph | None, directory: Path, progress: worker.Progress) -> Built:
    """Cast a target's weights, and write its graph with them; or script, freeze, optimize and save its encoder.

    Both give the same zip. It runs in a process of its own.

    Args:
        target: the artifact.
        graph: the artifact's, if the store has it; it is used if the weights fit it.
        directory: where the zip is written.
        progress: is told the name of each stage.
    """
    import torch

    from cosyjit.encoders.quantized import quantize
    from cosyjit.torchscript import dissect
    from cosyjit.torchscript.load import load_encoder
    from cosyjit.torchscript.script import ARCHIVE, cast, check_cast, optimize, save
    from cosyjit.torchscript.structure import weights_of

    progress("load")
    torch.set_num_threads(1)  # as many builds run side by side as there are processors
    target.check_unchanged()
    encoder, tensors = load_encoder(target.source, target.component, target.options, target.reading)
    # By way of float32, which the artifact is compared with: from float64, half precision may come out otherwise.
    weights = cast(cast(tensors, torch.float32), getattr(torch, target.precision.dtype))
    underflows = check_cast(tensors, weights, target.precision)
    if underflows:
        progress(f"cast: {underflows:,} numbers become 0")
    provenance = record.embedded_provenance(target.fingerprint)
    path = directory / ARCHIVE
    encoder.load_state_dict(weights, assign=True)
    if graph is not None:
        progress("save")
        if dissect.fill(path, graph, weights_of(encoder), provenance):
            target.check_unchanged()
            return Built(path, underflows, of_graph=True)
    if target.precision.quantized:
        quantize(encoder)
    progress("script")
    module = optimize(encoder, target.component.methods)
    progress("save")
    try:
        save(module, directory, {record.EMBEDDED_NAME: provenance})
    except RuntimeError as error:  # of torch's, where it does not abort
        raise unwritable(directory, str(error).splitlines()[0]) from None
    target.check_unchanged()
    return Built(path, underflows)


def prove(
    target: Target,
    graph: Graph | None,
    path: Path,
    progress: worker.Progress | None,
    scope: worker.CancelScope | None,
) -> Proof:
    """Compare a zip with its encoder, in a process of its own, while it is flushed to the disk."""
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(sync, path)
        figures, proven = worker.run(_verify, target, graph, path, progress=progress, scope=scope)
        return Proof(figures, synced.result(), graph=proven)


def _verify(
    target: Target, graph: Graph | None, path: Path, progress: worker.Progress
) -> tuple[dict[str, float], Graph | None]:
    """Compare an artifact with its encoder; runs in a process of its own. Gives figures, and the graph."""
    import torch

    from cosyjit.torchscript.gate import verify
    from cosyjit.torchscript.load import load_encoder
    from cosyjit.torchscript.script import cast

    progress("verify")
    torch.set_num_threads(1)
    encoder, tensors = load_encoder(target.source, target.component, target.options, target.reading)
    encoder.load_state_dict(cast(tensors, torch.float32), assign=True)
    verified = verify(
        path,
        encoder,
        target.component,
        target.precision,
        target.least_bytes,
        target.weight_bytes,
        provenance=record.embedded_provenance(target.fingerprint),
        graph=graph,
    )
    target.check_unchanged()
    metrics, step, proven = verified.metrics, verified.step, verified.graph
    measured = {"step_seconds": round(step.seconds, 6), "speedup": round(step.speedup, 3)} if step else {}
    figures = {
        "absolute_error": metrics.absolute,
        "relative_error": metrics.relative,
        "cosine": metrics.cosine,
        **(graph.figures if graph else measured),
    }
    return figures, proven if graph or proven is None else replace(proven, figures=measured)
