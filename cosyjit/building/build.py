"""From a target to its artifact, proven, in processes of its own."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from cosyjit.configuration.base_model import read_qwen2_config
from cosyjit.errors import CheckpointError, CosyjitError, OutputError
from cosyjit.fs.files import sha256_of, sha256_of_folder
from cosyjit.planning.plan import Target
from cosyjit.processes import worker
from cosyjit.provenance import record
from cosyjit.vllm.rules import Folder, plan_folder
from cosyjit.weights.fit import read_as
from cosyjit.weights.weights_file import opened


@dataclass(frozen=True)
class Artifact:
    """A built zip that is what its encoder is, or a folder that is what its weights are, not yet stored.

    Attributes:
        path: where it is staged.
        sha256: the digest of its bytes, in hex; of a folder, see `cosyjit.fs.files.sha256_of_folder`.
        bytes: its size.
        seconds: what building and verifying it took.
        figures: what was measured of it: its errors, as `cosyjit.torchscript.gate.Metrics` has them; of half
            precisions, how many numbers became 0; and what verifying took of the seconds.
        files: of a folder, the digests of its files by their names.
    """

    target: Target
    path: Path
    sha256: str
    bytes: int
    seconds: float
    figures: Mapping[str, float] = field(hash=False)
    files: Mapping[str, str] | None = field(default=None, hash=False)

    @property
    def objects(self) -> dict[Path, str]:
        """The files that the store is to keep, and their digests."""
        if self.files is None:
            return {self.path: self.sha256}
        return {self.path / name: digest for name, digest in self.files.items()}


def build(target: Target, directory: Path, progress: worker.Progress | None = None) -> Artifact:
    """Build a target in a process of its own, whether or not the store has it, and verify it in another one.

    Args:
        target: from `plan`.
        directory: where to put the artifact, in a new directory named for the target.
        progress: is told the name of each stage.

    Raises:
        InputError: the model directory has changed since it was planned.
        OutputError: the artifact cannot be brought to the disk.
        BuildError: a process was killed.
        VerificationError: the artifact is not what its encoder is.
    """
    begun = time.perf_counter()
    path = directory.absolute() / target.name
    try:
        path.mkdir()
        maker = _MAKERS[target.component.kind]
        made, underflows = worker.run(maker.build, target, path, progress=progress, into=path)
        built = time.perf_counter()
        proof = maker.prove(target, made, progress)
        figures = {**proof.errors, "underflows": underflows, "verify_seconds": round(time.perf_counter() - built, 3)}
        size = sum(each.stat().st_size for each in _files_of(made))
        artifact = Artifact(target, made, proof.sha256, size, time.perf_counter() - begun, figures, proof.files)
    except CosyjitError:
        target.check_unchanged()  # else that is the reason, whatever it has led to
        raise
    except OSError as error:
        raise _unwritable(path, error.strerror) from None
    if progress is not None:
        progress("built")
    return artifact


def _unwritable(path: Path, reason: str | None) -> OutputError:
    return OutputError(f"{path}: cannot be written to ({reason}); make room, or mend the disk")


def _build(target: Target, directory: Path, progress: worker.Progress) -> tuple[Path, int]:
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
        raise _unwritable(directory, str(error).splitlines()[0]) from None
    target.check_unchanged()
    return path, underflows


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


def _build_folder(target: Target, directory: Path, progress: worker.Progress) -> tuple[Path, int]:
    """Write the folder of a language model; runs in a process of its own.

    Returns:
        The folder, and how many numbers became 0 in the cast.
    """
    import torch

    from cosyjit.vllm import folder

    torch.set_num_threads(1)
    made = directory / target.file_name
    made.mkdir()
    planned = _planned_folder(target)
    underflows = folder.write(planned, target.weights_file, made, target.precision, progress, target.reading)
    target.check_unchanged()
    return made, underflows


def _verify_folder(target: Target, path: Path, progress: worker.Progress) -> dict[str, str]:
    """Compare a folder with what it was made from; runs in a process of its own.

    Returns:
        The digests of its files, of the bytes that were compared.
    """
    import torch

    from cosyjit.vllm import folder

    torch.set_num_threads(1)
    planned = _planned_folder(target)
    digests = folder.verify(planned, target.weights_file, path, target.precision, progress, target.reading)
    target.check_unchanged()
    return digests


def _planned_folder(target: Target) -> Folder:
    """What a folder is to hold, from the files that it was planned with."""
    target.check_unchanged()
    base = read_qwen2_config(target.source.directory)
    if base.digests != target.configs:
        raise CheckpointError(f"{base.path.parent}: was changed after it was planned; run again when it is complete")
    with opened(target.weights_file) as file:
        _, entries = read_as(file, target.weights_file, target.reading)
    return plan_folder(target.component, base, target.weights_file, entries)


class _Proof(NamedTuple):
    """What is known of an artifact that is what it should be: see `Artifact`."""

    errors: Mapping[str, float]
    sha256: str
    files: Mapping[str, str] | None = None


def _prove_zip(target: Target, path: Path, progress: worker.Progress | None) -> _Proof:
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(_sync, path)
        errors = worker.run(_verify, target, path, progress=progress)
        return _Proof(errors, synced.result())


def _prove_folder(target: Target, path: Path, progress: worker.Progress | None) -> _Proof:
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(_sync_folder, path)
        digests = worker.run(_verify_folder, target, path, progress=progress)
        synced.result()
    return _Proof({}, sha256_of_folder(digests), digests)


class _Maker(NamedTuple):
    """How an artifact of a kind is built, in a process of its own, and proven and brought to the disk."""

    build: Callable[..., tuple[Path, int]]
    prove: Callable[[Target, Path, worker.Progress | None], _Proof]


_MAKERS: Final = {"zip": _Maker(_build, _prove_zip), "vllm": _Maker(_build_folder, _prove_folder)}


def _files_of(artifact: Path) -> list[Path]:
    return list(artifact.iterdir()) if artifact.is_dir() else [artifact]


def _sync_folder(path: Path) -> None:
    """Bring the files of a folder to the disk."""
    for each in _files_of(path):
        with each.open("rb") as file:
            os.fsync(file.fileno())


def _sync(path: Path) -> str:
    """Bring a file to the disk, and meanwhile take its SHA-256."""
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        synced = pool.submit(os.fsync, file.fileno())
        digest = sha256_of(file)
        synced.result()
    return digest
