"""Results that nobody computed, for the tests of what is shown of them."""

from pathlib import Path
from typing import Any, Final

from cosyjit import Outcome, Planned, Publication, Published, Record, Target
from cosyjit.families import FAMILIES, PRECISIONS
from cosyjit.fs.identity import Identity
from cosyjit.provenance.fingerprint import fingerprint
from cosyjit.provenance.record import Material
from cosyjit.sources.source import Source
from cosyjit.weights.tensor_digests import TensorDigest

MARKUP: Final = "[red]x[/red] :smile: [link=y] \\[z] {0} %s"
"""What rich, `format` and `%` would each make something else of."""

DIGEST: Final = "0123456789abcdef" * 4

FIGURES: Final = {
    "bytes": 4_007_654,
    "weight_bytes": 1_000_000,
    "seconds": 12.346,
    "absolute_error": 0.01234,
    "relative_error": 0.002,
    "cosine": 0.99987654,
    "underflows": 0,
    "verify_seconds": 4.5,
}

TENSOR: Final = TensorDigest("float32", (500, 500), "f" * 32)


def target(name: str, precision: str = "fp32", directory: str = "/models/m", family: str = "CosyVoice") -> Target:
    (components,) = (each.components for each in FAMILIES if each.name == family)
    (component,) = (component for component in components if component.name == name)
    source = Source(Path(directory), Path(directory, "cosyvoice.yaml"))
    half = PRECISIONS[precision]
    made = fingerprint(component, {"linear_units": 128}, half, "cpu", {f"{component.prefix}w": TENSOR})
    return Target(source, component, {}, half, made, Identity(1, 2, 3, 4), {"cosyvoice.yaml": DIGEST})


def record(made: Target, **changes: Any) -> Record:
    known: dict[str, Any] = {
        "name": made.file_name,
        "sha256": DIGEST,
        "fingerprint": made.fingerprint,
        "component": made.component.name,
        "source": str(made.source.directory),
        "materials": (Material("llm.pt", "file:///models/m/llm.pt", "1" * 64),),
        "started": "2026-01-02T03:04:05.678Z",
        "finished": "2026-01-02T03:04:06.789Z",
        "figures": FIGURES,
        "versions": {"cosyjit": "1", "torch": "2", "python": "3"},
    }
    return Record(**{**known, **changes})


def built(name: str, precision: str = "fp32", directory: str = "/models/m", *, published: bool = True) -> Outcome:
    made = target(name, precision, directory)
    path = Path(directory, made.file_name) if published else None
    return Outcome(made, "built", ("torch 1 -> 2",), record(made), 12.34567, path)


def cached(name: str) -> Outcome:
    made = target(name)
    return Outcome(made, "cached", (), record(made), 0.01234, Path("/models/m", made.file_name))


def failed(name: str, error: str, precision: str = "fp32") -> Outcome:
    return Outcome(target(name, precision), "failed", error=error)


def planned(*reasons: str) -> Planned:
    return Planned(target("llm.llm"), "stale" if reasons else "new", reasons)


def publication(number: int, restores: int | None = None, **artifacts: str) -> Publication:
    members = {f"{name}.zip": Published(digest * 64, 5, "k" * 32) for name, digest in artifacts.items()}
    return Publication(number, f"2026-01-0{number}", f"/{MARKUP}", members, None, restores)
