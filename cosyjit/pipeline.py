"""Plan, build, publish: from a model directory to the zips that the runtime reads.

Whatever needs torch runs in processes of its own (`cosyjit.worker`); the caller's does not import it.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from cosyjit import worker
from cosyjit.checkpoint import open_checkpoint
from cosyjit.families import Component, Precision, select_components, select_precisions
from cosyjit.publish import publish, staging
from cosyjit.source import Source, open_source


@dataclass(frozen=True)
class Target:
    """One component at one precision for one kind of device: one artifact.

    Attributes:
        source: the model directory.
        component: what is exported.
        options: those of its encoder, as the configuration gives them.
        precision: the type of its weights.
        parameters: how many numbers these are.
        device: the kind of device that the graph is optimized on; the artifact loads on others as well.
    """

    source: Source
    component: Component
    options: Mapping[str, Any] = field(hash=False)
    precision: Precision
    parameters: int
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.component.name}.{self.precision.name}"

    @property
    def file_name(self) -> str:
        """The name by which the runtime finds the artifact."""
        return f"{self.name}.zip"

    @property
    def weight_bytes(self) -> int:
        """What the weights take, and so, nearly, the artifact."""
        return self.parameters * self.precision.bytes


@dataclass(frozen=True)
class Artifact:
    """A built zip, not yet published.

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


@dataclass(frozen=True)
class Outcome:
    """What became of a target.

    Attributes:
        path: where its artifact is published; None if it is not.
        artifact: what was built; None if that failed.
        error: why it failed, in a line; None if it did not.
    """

    target: Target
    state: Literal["built", "failed"]
    path: Path | None = None
    artifact: Artifact | None = None
    error: str | None = None


Progress = Callable[[Target, str], None]
"""Is told each target and the name of the stage that it enters: load, script, save, sync, built."""


def plan(
    source: str | Path, components: Sequence[str] | None = None, precisions: Sequence[str] | None = None
) -> tuple[Target, ...]:
    """The targets of a model directory, once all of what they need is seen to fit. Nothing is written.

    Args:
        source: a model directory.
        components: names of components; all that the family has for None.
        precisions: names of precisions; fp32 and fp16 for None.

    Raises:
        InputError: something is wrong with the directory, its configuration or weights, or there is nothing to export.
        BuildError: the process that read the weights was killed.
    """
    wanted = select_precisions(precisions)
    checkpoint = open_checkpoint(open_source(source))
    parts = {part: checkpoint.options(part) for part in select_components(checkpoint.family, components)}
    parameters = worker.run(_check, checkpoint.source, parts)
    return tuple(
        Target(checkpoint.source, component, options, precision, parameters[component])
        for component, options in parts.items()
        for precision in wanted
    )


def _check(
    source: Source, parts: Mapping[Component, Mapping[str, Any]], progress: worker.Progress
) -> dict[Component, int]:
    """Fit the weights of components to their options, and count them; runs in a process of its own."""
    from cosyjit.weights import load_encoder

    progress("check")
    loaded = {component: load_encoder(source, component, options) for component, options in parts.items()}
    return {component: sum(tensor.numel() for tensor in tensors.values()) for component, (_, tensors) in loaded.items()}


def build(target: Target, directory: Path, progress: worker.Progress | None = None) -> Artifact:
    """Build a target in a process of its own.

    Args:
        target: from `plan`.
        directory: where to put the artifact, in a new directory named for the target.
        progress: is told the name of each stage.

    Raises:
        InputError: the model directory has changed since it was planned, and no longer fits.
        BuildError: the process was killed.
    """
    begun = time.perf_counter()
    path = directory.absolute() / target.name
    path.mkdir()
    archive, sha256 = worker.run(_build, target, path, progress=progress)
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
    encoder, tensors = load_encoder(target.source, target.component, target.options)
    encoder.load_state_dict(cast(tensors, getattr(torch, target.precision.dtype)), assign=True)
    progress("script")
    module = optimize(encoder, target.component.methods)
    progress("save")
    path = save(module, directory)
    progress("sync")
    return path, _sync(path)


def _sync(path: Path) -> str:
    """Bring a file to the disk, and meanwhile take its SHA-256."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        synced = pool.submit(os.fsync, file.fileno())
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
        synced.result()
    return digest.hexdigest()


class Pending(Protocol):
    """A build under way, such as a `concurrent.futures.Future`."""

    def result(self) -> Artifact:
        """Wait for the artifact, or raise what the build raised."""


Result = Artifact | Exception
"""What a build gave or raised."""


def gather(targets: Sequence[Target], submit: Callable[[Target], Pending]) -> list[tuple[Target, Result]]:
    """Start a build for each target, the largest first, and wait for all of them, whichever fail."""
    pending = {target: submit(target) for target in sorted(targets, key=lambda target: -target.weight_bytes)}
    return [(target, _result(pending[target])) for target in targets]


def _result(pending: Pending) -> Result:
    try:
        return pending.result()
    except Exception as error:  # noqa: BLE001  (one target's failure is not the others')
        return error


def publication_directory(targets: Sequence[Target], directory: str | Path | None) -> Path:
    """Where artifacts go: the directory given, or the model directory itself."""
    return targets[0].source.directory if directory is None else Path(directory).expanduser().absolute()


def room(targets: Sequence[Target]) -> int:
    """The bytes that the artifacts of targets will take, nearly."""
    return sum(target.weight_bytes for target in targets)


def conclude(results: Sequence[tuple[Target, Result]], directory: Path) -> list[Outcome]:
    """Publish a set of artifacts if all of it was built; else leave what is published as it is.

    Raises:
        OutputError: the directory cannot be written to; it is as it was.
    """
    staged = {target.file_name: result.path for target, result in results if isinstance(result, Artifact)}
    complete = len(staged) == len(results)
    paths = dict(zip(staged, publish(staged, directory), strict=True)) if complete else {}
    return [_outcome(target, result, paths.get(target.file_name)) for target, result in results]


def _outcome(target: Target, result: Result, path: Path | None) -> Outcome:
    if isinstance(result, Artifact):
        return Outcome(target, "built", path, artifact=result)
    return Outcome(target, "failed", error=" ".join(str(result).split()) or type(result).__name__)


def export(
    source: str | Path,
    *,
    components: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Plan, build and publish, with as many builds at a time as there are processors.

    The set is published only if all of it could be built.

    Args:
        source, components, precisions: see `plan`.
        directory: where to publish; the model directory for None.
        progress: is told of stages, from several threads.

    Returns:
        What became of each target, in the order of `plan`.

    Raises:
        InputError: the source or the directory is not fit for it; nothing was written.
    """
    targets = plan(source, components, precisions)
    directory = publication_directory(targets, directory)
    with staging(directory, room(targets)) as work:
        with ThreadPoolExecutor(worker.processors()) as pool, worker.stopped_on_error():
            try:
                results = gather(targets, lambda target: pool.submit(build, target, work, _bound(progress, target)))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return conclude(results, directory)


def _bound(progress: Progress | None, target: Target) -> worker.Progress | None:
    return None if progress is None else lambda stage: progress(target, stage)
