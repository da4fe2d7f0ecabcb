"""Folders of language models: written in one process, and compared with their weights in another."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cosyjit.building.artifact import Built, Proof, files_of
from cosyjit.building.packages import check_packages
from cosyjit.errors import CheckpointError
from cosyjit.folders.content import Content
from cosyjit.fs.hashing import sha256_of_folder
from cosyjit.hf.rules import Folder as Merged
from cosyjit.planning.inputs import folder_need
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.torchscript.graph import Graph
from cosyjit.weights.fit import read_as
from cosyjit.weights.weights_file import opened


def build(target: Target, _graph: Graph | None, directory: Path, progress: worker.Progress) -> Built:
    """Write the folder of a language model; runs in a process of its own."""
    import torch

    from cosyjit.folders import folder

    check_packages(target)  # the machine may be another than the one that has planned it
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
    check_packages(target)
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

    from cosyjit.folders import folder

    torch.set_num_threads(1)
    planned = planned_folder(target)
    digests = folder.verify(planned, target.weights_file, path, target.precision, progress, target.reading)
    if isinstance(planned, Merged):
        from cosyjit.hf import gate

        gate.check_tokenizer(planned, path)
    target.check_unchanged()
    return digests


def planned_folder(target: Target) -> Content:
    """What a folder is to hold, by the files that it was planned with.

    Raises:
        CheckpointError: a file was changed since.
    """
    target.check_unchanged()
    need = folder_need(target.component, target.source.directory)
    if need.configs != target.configs:
        raise CheckpointError(
            f"{need.base.path.parent}: was changed after it was planned; run again when it is complete"
        )
    with opened(target.weights_file) as file:
        _, entries = read_as(file, target.weights_file, target.reading)
    return need.plan(target.weights_file, entries)


def _sync(path: Path) -> None:
    """Flush the files of a folder to the disk."""
    for each in files_of(path):
        with each.open("rb") as file:
            os.fsync(file.fileno())
