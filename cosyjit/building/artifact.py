"""What a build gives: an artifact, staged and proven, not yet stored."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cosyjit.errors import OutputError
from cosyjit.fs.hashing import sha256_of
from cosyjit.planning.target import Target
from cosyjit.torchscript.graph import Graph


@dataclass(frozen=True)
class Artifact:
    """A zip that matches its encoder, or a folder that matches its weights; not yet stored.

    Attributes:
        path: where it is staged.
        sha256: the digest of its bytes, in hex; of a folder, see `cosyjit.fs.hashing.sha256_of_folder`.
        size: in bytes.
        seconds: what building and verifying it took.
        figures: what was measured of it: its errors, as `cosyjit.metrics.Metrics` has them; of half
            precisions, how many numbers became 0; and what verifying took of the seconds.
        files: of a folder, the digests of its files by their names.
        graph: that of the zip, proven; None of a folder, and if it is of no use to other checkpoints.
    """

    target: Target
    path: Path
    sha256: str
    size: int
    seconds: float
    figures: Mapping[str, float] = field(hash=False)
    files: Mapping[str, str] | None = field(default=None, hash=False)
    graph: Graph | None = field(default=None, compare=False)

    @property
    def objects(self) -> dict[Path, str]:
        """The files that the store is to keep, and their digests."""
        if self.files is None:
            return {self.path: self.sha256}
        return {self.path / name: digest for name, digest in self.files.items()}


class Built(NamedTuple):
    """What is built, and not yet proven.

    Attributes:
        path: the zip, or the folder.
        underflows: how many numbers became 0 in the cast.
        of_graph: whether it was written by a graph that had been proven before.
    """

    path: Path
    underflows: int
    of_graph: bool = False


class Proof(NamedTuple):
    """What verifying an artifact gives: see `Artifact`."""

    figures: Mapping[str, float]
    sha256: str
    files: Mapping[str, str] | None = None
    graph: Graph | None = None


def unwritable(path: Path, reason: str | None) -> OutputError:
    """The error of an artifact that cannot be written."""
    return OutputError(f"{path}: cannot be written to ({reason}); make room, or mend the disk")


def files_of(path: Path) -> list[Path]:
    """The files of a folder, or the one file that a path is."""
    return list(path.iterdir()) if path.is_dir() else [path]


def sync(path: Path) -> str:
    """Flush a file to the disk, and meanwhile take its SHA-256.

    Returns:
        The digest, in hex.
    """
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        synced = pool.submit(os.fsync, file.fileno())
        digest = sha256_of(file)
        synced.result()
    return digest
