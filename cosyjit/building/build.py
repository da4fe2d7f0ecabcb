"""From a target to its artifact, proven, in processes of its own."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from cosyjit.building import folders, zips
from cosyjit.building.artifact import Artifact, Proof, files_of, unwritable
from cosyjit.errors import CosyjitError, ResourceError
from cosyjit.planning.target import Target
from cosyjit.processes import limits, worker


class _Kind(NamedTuple):
    """How an artifact of a kind is made.

    Attributes:
        build: builds it, in a process of its own; gives its path, and how many numbers became 0 in the cast.
        prove: verifies it, in another process, and flushes it to the disk.
    """

    build: Callable[..., tuple[Path, int]]
    prove: Callable[[Target, Path, worker.Progress | None, worker.CancelScope | None], Proof]


_KINDS: Final = {"zip": _Kind(zips.build, zips.prove), "vllm": _Kind(folders.build, folders.prove)}
"""By `Component.kind`."""


def build(
    target: Target,
    directory: Path,
    progress: worker.Progress | None = None,
    scope: worker.CancelScope | None = None,
) -> Artifact:
    """Build a target in a process of its own, whether or not the store has it, and verify it in another one.

    Args:
        target: from `plan`.
        directory: where to put the artifact, in a new directory named for the target.
        progress: is told the name of each stage.
        scope: cancels the build together with the rest of its export; None if nothing does.

    Raises:
        InputError: the model directory has changed since it was planned.
        OutputError: the artifact cannot be written to the disk.
        BuildError: a process was killed, or the scope is cancelled.
        ResourceError: the system does not give the processes, files or memory that the build needs.
        VerificationError: the artifact does not match its encoder.
    """
    begun = time.perf_counter()
    path = directory.absolute() / target.name
    try:
        path.mkdir()
        kind = _KINDS[target.component.kind]
        made, underflows = worker.run(kind.build, target, path, progress=progress, into=path, scope=scope)
        built = time.perf_counter()
        proof = kind.prove(target, made, progress, scope)
        figures = {**proof.errors, "underflows": underflows, "verify_seconds": round(time.perf_counter() - built, 3)}
        size = sum(each.stat().st_size for each in files_of(made))
        artifact = Artifact(target, made, proof.sha256, size, time.perf_counter() - begun, figures, proof.files)
    except CosyjitError:
        target.check_unchanged()  # else that is the reason, whatever it has led to
        raise
    except OSError as error:
        lack = limits.lack(error)
        raise (ResourceError(lack) if lack else unwritable(path, error.strerror)) from None
    if progress is not None:
        progress("built")
    return artifact
