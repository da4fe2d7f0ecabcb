"""How far the outputs of an artifact are from those of the network that it was made from."""

from typing import NamedTuple

from torch import Tensor

from cosyjit.errors import VerificationError
from cosyjit.families import Tolerance


class Metrics(NamedTuple):
    """How far an artifact is from its network.

    Attributes:
        absolute: the largest difference of two numbers.
        relative: the largest norm of the difference of a call's outputs, divided by the norm of the network's.
        cosine: the smallest cosine of the angle between a call's outputs and the network's.
    """

    absolute: float = 0.0
    relative: float = 0.0
    cosine: float = 1.0

    @property
    def figures(self) -> dict[str, float]:
        """What a record has of it, by the names there."""
        return {"absolute_error": self.absolute, "relative_error": self.relative, "cosine": self.cosine}

    def worst(self, other: "Metrics") -> "Metrics":
        """The worse of each two figures."""
        return Metrics(
            max(self.absolute, other.absolute), max(self.relative, other.relative), min(self.cosine, other.cosine)
        )


def measure(where: str, ours: Tensor, theirs: Tensor, tolerance: Tolerance, network: str, hint: str) -> Metrics:
    """Measure one output, and check that it is within a tolerance.

    Args:
        where: the beginning of the error's message.
        ours, theirs: the artifact's output and the network's, in float64.
        tolerance: that of the artifact.
        network: what the artifact was made from, in a word.
        hint: what the error's message tells users to do.

    Raises:
        VerificationError: numbers are NaN or infinite, or too far from the network's.
    """
    for whose, tensor, advice in (
        (f" of the {network} itself", theirs, "export a checkpoint whose weights are sound"),
        ("", ours, hint),
    ):
        unfit = tensor.numel() - int(tensor.isfinite().sum())
        if unfit:
            problem = f"{where}{whose} has {unfit:,} of {tensor.numel():,} numbers NaN or infinite"
            raise VerificationError(f"{problem}; {advice}")
    error, norm, other = float((ours - theirs).norm()), float(theirs.norm()), float(ours.norm())
    metrics = Metrics(
        absolute=float((ours - theirs).abs().max()),
        relative=error / norm if norm else float(error > 0),
        cosine=float((ours * theirs).sum()) / (norm * other) if norm and other else float(norm == other),
    )
    scale = max(1.0, norm / theirs.numel() ** 0.5)
    bounds = {
        "largest absolute error": (metrics.absolute, tolerance.absolute * scale),
        "relative error": (metrics.relative, tolerance.relative),
        "distance of the cosine from 1": (1 - metrics.cosine, 1 - tolerance.cosine),
    }
    for name, (value, bound) in bounds.items():
        if value > bound:
            raise VerificationError(f"{where}: the {name} is {value:.2g}, more than {bound:.2g}; {hint}")
    return metrics
