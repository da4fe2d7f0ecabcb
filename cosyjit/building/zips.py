"""TorchScript zips: built in one process, and verified in another."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from cosyjit.building.artifact import Built, Proof, sync, unwritable
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.provenance import record
from cosyjit.provenance.fingerprint import key_of
from cosyjit.torchscript.graph import Graph

_EXPECTED: Final[WeakKeyDictionary[worker.CancelScope, dict[str, bytes]]] = WeakKeyDictionary()
"""Of each export, what its encoders give in calls: `Expected.content` by the keys of fingerprints without precision.

So an encoder runs once for all precisions of a component, but for those that are verified at the same time. Of a
full-size `llm.llm` it is 11 MB.
"""

_MOST: Final = 16
"""How many encoders of an export are remembered: it may be of many sources. The first ones are forgotten."""


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
    expected = _EXPECTED.setdefault(scope, {}) if scope else {}
    key = key_of({**target.fingerprint.parts, "precision": None})
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(sync, path)
        known = expected.get(key, b"")
        figures, proven, more = worker.run(_verify, target, graph, path, known, progress=progress, scope=scope)
        expected[key] = max(expected.get(key, b""), more, key=len)
        for each in list(expected)[:-_MOST]:
            expected.pop(each, None)
        return Proof(figures, synced.result(), graph=proven)


def _verify(
    target: Target, graph: Graph | None, path: Path, known: bytes, progress: worker.Progress
) -> tuple[dict[str, float], Graph | None, bytes]:
    """Compare an artifact with its encoder; runs in a process of its own.

    Returns:
        Figures, the graph, and the content of `Expected`.
    """
    import torch

    from cosyjit.torchscript.expected import Expected
    from cosyjit.torchscript.gate import verify
    from cosyjit.torchscript.load import load_encoder
    from cosyjit.torchscript.script import cast

    progress("verify")
    torch.set_num_threads(1)
    encoder, tensors = load_encoder(target.source, target.component, target.options, target.reading)
    encoder.load_state_dict(cast(tensors, torch.float32), assign=True)
    expected = Expected(encoder, known)
    verified = verify(
        path,
        encoder,
        target.component,
        target.precision,
        target.least_bytes,
        target.weight_bytes,
        provenance=record.embedded_provenance(target.fingerprint),
        graph=graph,
        expected=expected,
    )
    target.check_unchanged()
    step, proven = verified.step, verified.graph
    measured = {"step_seconds": round(step.seconds, 6), "speedup": round(step.speedup, 3)} if step else {}
    figures = {**verified.metrics.figures, **(graph.figures if graph else measured)}
    return figures, proven if graph or proven is None else replace(proven, figures=measured), expected.content()
