"""TorchScript zips: built in one process, and verified in another."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cosyjit.building.artifact import Proof, sync, unwritable
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.provenance import record


def build(target: Target, directory: Path, progress: worker.Progress) -> tuple[Path, int]:
    """Cast, script, freeze, optimize and save a target; runs in a process of its own.

    Returns:
        The zip, and how many numbers became 0 in the cast.
    """
    import torch

    from cosyjit.encoders.quantized import quantize
    from cosyjit.torchscript.load import load_encoder
    from cosyjit.torchscript.script import cast, check_cast, optimize, save

    progress("load")
    torch.set_num_threads(1)  # as many builds run side by side as there are processors
    target.check_unchanged()
    encoder, tensors = load_encoder(target.source, target.component, target.options, target.reading)
    # By way of float32, which the artifact is compared with: from float64, half precision may come out otherwise.
    weights = cast(cast(tensors, torch.float32), getattr(torch, target.precision.dtype))
    underflows = check_cast(tensors, weights, target.precision)
    if underflows:
        progress(f"cast: {underflows:,} numbers become 0")
    encoder.load_state_dict(weights, assign=True)
    if target.precision.quantized:
        quantize(encoder)
    progress("script")
    module = optimize(encoder, target.component.methods)
    progress("save")
    try:
        path = save(module, directory, {record.EMBEDDED_NAME: record.embedded_provenance(target.fingerprint)})
    except RuntimeError as error:  # of torch's, where it does not abort
        raise unwritable(directory, str(error).splitlines()[0]) from None
    target.check_unchanged()
    return path, underflows


def prove(target: Target, path: Path, progress: worker.Progress | None, scope: worker.CancelScope | None) -> Proof:
    """Compare a zip with its encoder, in a process of its own, while it is flushed to the disk."""
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(sync, path)
        errors = worker.run(_verify, target, path, progress=progress, scope=scope)
        return Proof(errors, synced.result())


def _verify(target: Target, path: Path, progress: worker.Progress) -> dict[str, float]:
    """Compare an artifact with its encoder; runs in a process of its own."""
    import torch

    from cosyjit.torchscript.gate import verify
    from cosyjit.torchscript.load import load_encoder
    from cosyjit.torchscript.script import cast

    progress("verify")
    torch.set_num_threads(1)
    encoder, tensors = load_encoder(target.source, target.component, target.options, target.reading)
    encoder.load_state_dict(cast(tensors, torch.float32), assign=True)
    sizes = target.least_bytes, target.weight_bytes
    figures, step = verify(path, encoder, target.component, target.precision, *sizes)
    target.check_unchanged()
    return {
        "absolute_error": figures.absolute,
        "relative_error": figures.relative,
        "cosine": figures.cosine,
        **({"step_seconds": round(step.seconds, 6), "speedup": round(step.speedup, 3)} if step else {}),
    }
