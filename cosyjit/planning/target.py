"""A target: one artifact that can be exported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cosyjit.families import PRECISIONS, Component, Precision
from cosyjit.fs.identity import Identity
from cosyjit.provenance.fingerprint import Fingerprint
from cosyjit.sources.source import Source
from cosyjit.weights.fit import PLAIN, EncoderNeed, Reading, check
from cosyjit.weights.weights_file import changed_error

_MEMORY_FACTOR: Final = 2.2
_QUANTIZED_MEMORY_FACTOR: Final = 3.3
_MEMORY_BASE: Final = 600_000_000
"""Measured of full-size components with torch 2.13: at most 2.1 times the float32 weights and 0.57 GB, mapped files
counted as well. Verifying quantized weights quantizes them anew: 3.1 times, measured of components half as large."""

_ONNX_MEMORY_FACTOR: Final = 2.6
"""Measured of full-size estimators with torch 2.13 and ONNX Runtime 1.32, beside the same 0.6 GB: at most 2.3 times the
float32 weights, in either precision. That is verifying; writing takes 0.27 GB, torch included, whatever the size."""

_FOLDER_MEMORY: Final = 900_000_000
"""What writing a folder and reading it back takes, torch included, whatever its size."""


@dataclass(frozen=True)
class Target:
    """One component at one precision for one kind of device: one artifact.

    Attributes:
        source: where the checkpoint is from.
        component: what is exported.
        options: those of its encoder or estimator, as the configuration gives them.
        precision: the type of its weights.
        fingerprint: all that decides its bytes.
        weights: what the file with its weights was when the fingerprint was taken.
        reading: how the names of tensors in that file are read.
        configs: the SHA-256 of the configurations when they were read, by their names in the model directory.
        more: how many numbers the artifact has beyond those of its tensors.
        device: the kind of device that the graph is optimized on; the artifact loads on others as well.
    """

    source: Source
    component: Component
    options: Mapping[str, Any] = field(hash=False)
    precision: Precision
    fingerprint: Fingerprint = field(hash=False)
    weights: Identity
    configs: Mapping[str, str] = field(hash=False)
    reading: Reading = PLAIN
    more: int = 0
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.component.name}.{self.precision.name}"

    @property
    def file_name(self) -> str:
        """The name by which the runtime finds the artifact."""
        return self.component.file_name(self.precision.name)

    @property
    def weights_file(self) -> Path:
        return self.source.directory / self.source.weights(self.component.weights)

    def is_unchanged(self) -> bool:
        """Whether the weights file is still the one that the fingerprint was taken of."""
        try:
            return Identity.of(self.weights_file) == self.weights
        except OSError:
            return False

    def check_unchanged(self) -> None:
        """Check that the weights file is still the one that the fingerprint was taken of.

        Raises:
            CheckpointError: it is not.
        """
        if not self.is_unchanged():
            raise changed_error(self.weights_file, "after it was planned")

    def check_fit(self) -> None:
        """Check that the weights are those that the encoder or estimator needs.

        Raises:
            UnsupportedOptionError: an option is unknown, missing, or of a value that is not supported.
            CheckpointError: tensors are missing, unknown, or of another shape or type.
        """
        need = EncoderNeed.of(self.component, self.options, self.source.config)
        prefix = self.component.prefix
        entries = {f"{prefix}{name}": each for name, each in self.fingerprint.tensors.items()}
        check(self.weights_file, entries, need, self.reading)

    @property
    def weight_bytes(self) -> int:
        """The size of the weights, in bytes: nearly that of the artifact."""
        tensors = self.fingerprint.tensors.items()
        return (
            sum(self.precision.size(name, each.shape) for name, each in tensors) + self.more * self.precision.item_size
        )

    @property
    def memory_bytes(self) -> int:
        """The memory that building and verifying may take, in bytes, in one process after the other."""
        if self.component.is_folder:
            return _FOLDER_MEMORY
        float32 = sum(PRECISIONS["fp32"].size(name, each.shape) for name, each in self.fingerprint.tensors.items())
        if self.component.kind == "onnx":
            return int(_ONNX_MEMORY_FACTOR * float32) + _MEMORY_BASE
        factor = _QUANTIZED_MEMORY_FACTOR if self.precision.quantized else _MEMORY_FACTOR
        return int(factor * float32) + _MEMORY_BASE

    @property
    def least_bytes(self) -> int:
        """The size of the weights if each set of equal weights is kept once, in bytes."""
        names = {each: name for name, each in self.fingerprint.tensors.items()}
        return sum(self.precision.size(name, each.shape) for each, name in names.items())
