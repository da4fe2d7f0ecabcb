"""From a target to its artifact, proven, in processes of its own."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from cosyjit.building import folders, onnx_files, zips
from cosyjit.building.artifact import Artifact, Built, Proof, files_of, unwritable
from cosyjit.errors import CosyjitError, ResourceError, log_cause
from cosyjit.fs.files import remove
from cosyjit.planning.target import Target
from cosyjit.processes import limits, worker
from cosyjit.torchscript.graph import Graph

_LOG: Final = logging.getLogger("cosyjit")


class _Kind(NamedTuple):
    """How an artifact of a kind is made. Both are given the artifact's graph, if there is one.

    Attributes:
        build: builds it, in a process of its own.
        prove: verifies it, in another process, and flushes it to the disk.
    """

    build: Callable[..., Built]
    prove: Callable[[Target, Graph | None, Path, worker.Progress | None, worker.CancelScope | None], Proof]


_KINDS: Final = {
    "zip": _Kind(zips.build, zips.prove),
    "vllm": _Kind(folders.build, folders.prove),
    "hf": _Kind(folders.build, folders.prove),
    "onnx": _Kind(onnx_files.build, onnx_files.prove),
}
"""By `Component.kind`."""


def build(
    target: Target,
    directory: Path,
    progress: worker.Progress | None = None,
    scope: worker.CancelScope | None = None,
    graph: Graph | None = None,
) -> Artifact:
    """Build a target in a process of its own, whether or not the store has it, and verify it in another one.

    With its graph, which was proven before, it is written by that, and less has to be verified; if this fails, it is
    built and verified without.

    Args:
        target: from `plan`.
        directory: where to put the artifact, in a new directory named for the target.
        progress: is told the name of each stage.
        scope: cancels the build together with the rest of its export; None if nothing does.
        graph: that of its zip, from a store that is trusted.

    Raises:
        InputError: the model directory has changed since it was planned.
        OutputError: the artifact cannot be written to the disk.
        BuildError: a process was killed, or the scope is cancelled.
        ResourceError: the system does not give the processes, files or memory that the build needs.
        VerificationError: the artifact does not match its network, or its weights.
    """
    begun = time.perf_counter()
    path = directory.absolute() / target.name
    try:
        path.mkdir()
        kind = _KINDS[target.component.kind]
        made = worker.run(kind.build, target, graph, path, progress=progress, into=path, scope=scope)
        built = time.perf_counter()
        try:
            proof = kind.prove(target, graph if made.of_graph else None, made.path, progress, scope)
        except Exception as error:  # a zip of a stranger's graph may be anything, and end its process
            if not made.of_graph:
                raise
            log_cause(error)
            _LOG.info("%s: what its graph gave does not pass; it is built without", target.name)
            remove(path)
            return build(target, directory, progress, scope)
        figures = {
            **proof.figures,
            "underflows": made.underflows,
            "of_graph": int(made.of_graph),
            "verify_seconds": round(time.perf_counter() - built, 3),
        }
        size = sum(each.stat().st_size for each in files_of(made.path))
        seconds = time.perf_counter() - begun
        artifact = Artifact(target, made.path, proof.sha256, size, seconds, figures, proof.files, proof.graph)
    except CosyjitError:
        target.check_unchanged()  # else that is the reason, whatever it has led to
        raise
    except OSError as error:
        lack = limits.lack(error)
        raise (ResourceError(lack) if lack else unwritable(path, error.strerror)) from None
    if progress is not None:
        progress("built")
    return artifact


def prove(
    target: Target,
    path: Path,
    progress: worker.Progress | None = None,
    scope: worker.CancelScope | None = None,
) -> None:
    """Verify an artifact of a target in a process of its own, as if nothing of it had been proven before.

    Args:
        target: from `plan`.
        path: the zip or the folder.
        progress, scope: see `build`.

    Raises:
        CheckpointError: the model directory has changed since it was planned.
        VerificationError: the artifact does not match its encoder.
        BuildError, ResourceError: see `build`.
    """
    _KINDS[target.component.kind].prove(target, None, path, progress, scope)
