"""From a target to its zip, in a process of its own."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cosyjit import record, worker
from cosyjit.errors import CosyjitError
from cosyjit.files import sha256_of
from cosyjit.planning import Target


@dataclass(frozen=True)
class Artifact:
    """A built zip, not yet stored.

    Attributes:
        path: where it is staged.
        sha256: the digest of its bytes, in hex.
        bytes: its size.
        seconds: what building it took.
    """

    target: Target
    path: Path
    sha256: str
    bytes: int
    seconds: float


def build(target: Target, directory: Path, progress: worker.Progress | None = None) -> Artifact:
    """Build a target in a process of its own, whether or not the store has it.

    Args:
        target: from `plan`.
        directory: where to put the artifact, in a new directory named for the target.
        progress: is told the name of each stage.

    Raises:
        InputError: the model directory has changed since it was planned.
        BuildError: the process was killed.
    """
    begun = time.perf_counter()
    path = directory.absolute() / target.name
    path.mkdir()
    try:
        archive, sha256 = worker.run(_build, target, path, progress=progress)
    except CosyjitError:
        target.check_unchanged()  # else that is the reason, whatever it has led to
        raise
    if progress is not None:
        progress("built")
    return Artifact(target, archive, sha256, archive.stat().st_size, time.perf_counter() - begun)


def _build(target: Target, directory: Path, progress: worker.Progress) -> tuple[Path, str]:
    """Cast, script, freeze, optimize and save a target; runs in a process of its own."""
    import torch

    from cosyjit.script import cast, optimize, save
    from cosyjit.weights import load_encoder

    progress("load")
    torch.set_num_threads(1)  # as many builds run side by side as there are processors
    target.check_unchanged()
    encoder, tensors = load_encoder(target.source, target.component, target.options)
    encoder.load_state_dict(cast(tensors, getattr(torch, target.precision.dtype)), assign=True)
    progress("script")
    module = optimize(encoder, target.component.methods)
    progress("save")
    path = save(module, directory, {record.SHORT_FORM: record.short_form(target.fingerprint)})
    target.check_unchanged()
    progress("sync")
    return path, _sync(path)


def _sync(path: Path) -> str:
    """Bring a file to the disk, and meanwhile take its SHA-256."""
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        synced = pool.submit(os.fsync, file.fileno())
        digest = sha256_of(file)
        synced.result()
    return digest
