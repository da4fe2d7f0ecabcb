"""What the artifacts of a component are made from: options, tensors, and what their files were when they were read."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cosyjit.checkpoint import Checkpoint
from cosyjit.digests import Digests, TensorDigest, Weights
from cosyjit.families import Component
from cosyjit.identity import Identity
from cosyjit.pretrained import read_base
from cosyjit.vllm import plan_folder


class Inputs(NamedTuple):
    """What a component is made from.

    Attributes:
        options: what decides an artifact's bytes beside tensors and precision.
        tensors: those that go into it, by their names in the weights file.
        weights: what that file was.
        configs: the SHA-256 of the configurations, by their names in the model directory.
    """

    options: Mapping[str, Any]
    tensors: Mapping[str, TensorDigest]
    weights: Identity
    configs: Mapping[str, str]


def read_inputs(
    checkpoint: Checkpoint, parts: Iterable[Component], digests: Digests, ready: Callable[[], None] | None = None
) -> dict[Component, Inputs]:
    """What components of a checkpoint are made from; what is not at hand of it is downloaded.

    Args:
        digests: those that are remembered.
        ready: is called before weights are read that are not known.

    Raises:
        InputError: the configuration cannot be resolved, or weights are missing, damaged or more than tensors; or what
            a folder is made from does not fit.
    """
    parts = tuple(dict.fromkeys(parts))
    options = {part: checkpoint.options(part) for part in parts if part.kind == "zip"}
    checkpoint.source.obtain({name for part in parts for name in (part.weights, *part.configs)})
    found = _digests_of(checkpoint, parts, digests, ready)
    return {part: _zip(checkpoint, part, options[part], found[part.weights]) for part in options} | {
        part: _folder(checkpoint, part, found[part.weights]) for part in parts if part.kind == "vllm"
    }


def _digests_of(
    checkpoint: Checkpoint, parts: Iterable[Component], digests: Digests, ready: Callable[[], None] | None
) -> dict[str, Weights]:
    """The digests of weights files by their names: in each, of whatever the family's components have there."""
    wanted: dict[frozenset[str], list[str]] = {}
    for weights in dict.fromkeys(part.weights for part in parts):
        prefixes = frozenset(part.prefix for part in checkpoint.family.components if part.weights == weights)
        wanted.setdefault(prefixes, []).append(weights)
    paths = {name: checkpoint.source.file(name) for names in wanted.values() for name in names}
    if ready is not None and not all(
        digests.known(paths[name], prefixes) for prefixes, names in wanted.items() for name in names
    ):
        ready()
    found: dict[str, Weights] = {}
    for prefixes, names in wanted.items():
        read = digests.tensors([paths[name] for name in names], prefixes)
        found |= {name: read[paths[name]] for name in names}
    return found


def _zip(checkpoint: Checkpoint, part: Component, options: Mapping[str, Any], weights: Weights) -> Inputs:
    tensors = {name: each for name, each in weights.tensors.items() if name.startswith(part.prefix)}
    return Inputs(options, tensors, weights.identity, {checkpoint.source.config.name: checkpoint.config.sha256})


def _folder(checkpoint: Checkpoint, part: Component, weights: Weights) -> Inputs:
    source = checkpoint.source
    base = read_base(source.directory)
    folder = plan_folder(part, base, source.directory / part.weights, weights.tensors)
    tensors = {name: weights.tensors[name] for name in folder.sources}
    return Inputs(folder.options, tensors, weights.identity, base.digests)
