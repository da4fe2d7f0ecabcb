"""vLLM's folders: written in one process, and compared with their weights in another."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cosyjit.building.artifact import Built, Proof, files_of
from cosyjit.configuration.base_model import read_qwen2_config
from cosyjit.errors import CheckpointError
from cosyjit.fs.hashing import sha256_of_folder
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.torchscript.graph import Graph
from cosyjit.vllm.rules import Folder, plan_folder
from cosyjit.weights.fit import read_as
from cosyjit.weights.weights_file import opened


def build(target: Target, _graph: Graph | None, directory: Path, progress: worker.Progress) -> Built:
    """Write the folder of a language model; runs in a process of its own."""
    import torch

    from cosyjit.vllm import folder

    torch.set_num_threads(1)
    made = directory / target.file_name
    made.mkdir()
    planned = planned_folder(target)
    underflows = folder.write(planned, target.weights_file, made, target.precision, progress, target.reading)
    target.check_unchanged()
    return Built(made, underflows)


def prove(
    target: Target, _graph: Graph | None, path: Path, progress: worker.Progress | None, scope: worker.CancelScope | None
) -> Proof:
    """Compare a folder with its weights, in a process of its own, while it is flushed to the disk."""
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(_sync, path)
        digests = worker.run(_verify, target, path, progress=progress, scope=scope)
        synced.result()
    return Proof({}, sha256_of_folder(digests), digests)


def _verify(target: Target, path: Path, progress: worker.Progress) -> dict[str, str]:
    """Compare a folder with what it was made from; runs in a process of its own.

    Returns:
        The digests of its files, of the bytes that were compared.
    """
    import torch

    from cosyjit.vllm import folder

    torch.set_num_threads(1)
    planned = planned_folder(target)
    digests = folder.verify(planned, target.weights_file, path, target.precision, progress, target.reading)
    target.check_unchanged()
    return digests


def planned_folder(target: Target) -> Folder:
    """What a folder is to hold, by the files that it was planned with.

    Raises:
        CheckpointError: a file was changed since.
    """
    target.check_unchanged()
    base = read_qwen2_config(target.source.directory)
    if base.digests != target.configs:
        raise CheckpointError(f"{base.path.parent}: was changed after it was planned; run again when it is complete")
    with opened(target.weights_file) as file:
        _, entries = read_as(file, target.weights_file, target.reading)
    return plan_folder(target.component, base, target.weights_file, entries)


def _sync(path: Path) -> None:
    """Flush the files of a folder to the disk."""
    for each in files_of(path):
        with each.open("rb") as file:
            os.fsync(file.fileno())
