"""From a target to its artifact, proven, in processes of its own."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from cosyjit import record, worker
from cosyjit.errors import CheckpointError, CosyjitError, OutputError
from cosyjit.files import sha256_of, sha256_of_folder
from cosyjit.planning import Target
from cosyjit.pretrained import read_base
from cosyjit.tensors import opened, read_index
from cosyjit.vllm import Folder, plan_folder


@dataclass(frozen=True)
class Artifact:
    """A built zip that is what its encoder is, or a folder that is what its weights are, not yet stored.

    Attributes:
        path: where it is staged.
        sha256: the digest of its bytes, in hex; of a folder, see `cosyjit.files.sha256_of_folder`.
        bytes: its size.
        seconds: what building and verifying it took.
        figures: what was measured of it: its errors, as `cosyjit.verify.Figures` has them; of half precisions, how many
            numbers became 0; and what verifying took of the seconds.
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
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(_sync_all, made)
            errors = worker.run(maker.verify, target, made, progress=progress)
            figures = {**errors, "underflows": underflows, "verify_seconds": round(time.perf_counter() - built, 3)}
            size, sha256, contents = synced.result()
        artifact = Artifact(target, made, sha256, size, time.perf_counter() - begun, figures, contents)
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
    from cosyjit.script import cast, check_cast, optimize, save
    from cosyjit.weights import load_encoder

    progress("load")
    torch.set_num_threads(1)  # as many builds run side by side as there are processors
    target.check_unchanged()
    encoder, tensors = load_encoder(target.source, target.component, target.options)
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
        path = save(module, directory, {record.SHORT_FORM: record.short_form(target.fingerprint)})
    except RuntimeError as error:  # of torch's, where it does not abort
        raise _unwritable(directory, str(error).splitlines()[0]) from None
    target.check_unchanged()
    return path, underflows


def _verify(target: Target, path: Path, progress: worker.Progress) -> dict[str, float]:
    """Compare an artifact with its encoder; runs in a process of its own."""
    import torch

    from cosyjit.script import cast
    from cosyjit.verify import verify
    from cosyjit.weights import load_encoder

    progress("verify")
    torch.set_num_threads(1)
    encoder, tensors = load_encoder(target.source, target.component, target.options)
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

    from cosyjit import folders

    torch.set_num_threads(1)
    made = directory / target.file_name
    made.mkdir()
    written = folders.write(_planned_folder(target), target.weights_file, made, target.precision, progress)
    target.check_unchanged()
    return made, written.underflows


def _verify_folder(target: Target, path: Path, progress: worker.Progress) -> dict[str, float]:
    """Compare a folder with what it was made from; runs in a process of its own."""
    import torch

    from cosyjit import folders

    torch.set_num_threads(1)
    folders.verify(_planned_folder(target), target.weights_file, path, target.precision, progress)
    target.check_unchanged()
    return {}


def _planned_folder(target: Target) -> Folder:
    """What a folder is to hold, from the files that it was planned with."""
    target.check_unchanged()
    base = read_base(target.source.directory)
    if base.digests != target.configs:
        raise CheckpointError(f"{base.path.parent}: was changed after it was planned; run again when it is complete")
    with opened(target.weights_file) as file:
        entries = read_index(file, target.weights_file)
    return plan_folder(target.component, base, target.weights_file, entries)


class _Maker(NamedTuple):
    """What is done in processes of their own to build an artifact of a kind and to verify it."""

    build: Callable[..., tuple[Path, int]]
    verify: Callable[..., dict[str, float]]


_MAKERS: Final = {"zip": _Maker(_build, _verify), "vllm": _Maker(_build_folder, _verify_folder)}


def _sync_all(path: Path) -> tuple[int, str, dict[str, str] | None]:
    """Bring a file or a folder to the disk, and meanwhile take its size, its digest, and those of a folder's files."""
    if not path.is_dir():
        return path.stat().st_size, _sync(path), None
    digests = {each.name: _sync(each) for each in sorted(path.iterdir())}
    return sum(each.stat().st_size for each in path.iterdir()), sha256_of_folder(digests), digests


def _sync(path: Path) -> str:
    """Bring a file to the disk, and meanwhile take its SHA-256."""
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        synced = pool.submit(os.fsync, file.fileno())
        digest = sha256_of(file)
        synced.result()
    return digest
