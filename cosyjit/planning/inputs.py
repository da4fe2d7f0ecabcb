"""The inputs of a component's artifacts: options, tensors, and the identity of their files when they were read."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit.errors import UnsupportedOptionError
from cosyjit.families import Component
from cosyjit.folders.content import FolderNeed, numbers
from cosyjit.fs.digests import Digests
from cosyjit.fs.identity import Identity
from cosyjit.hf import rules as hf
from cosyjit.sources.checkpoint import Checkpoint
from cosyjit.vllm import rules as vllm
from cosyjit.weights.fit import EncoderNeed, Need, Reading, check
from cosyjit.weights.tensor_digests import TensorDigest, Weights, are_remembered, read_tensors

_FOLDERS: Final = {"vllm": vllm.need_of, "hf": hf.need_of}
"""By `Component.kind`, what gives the need of a folder."""

_Needs = dict[Path, list[Need]]
"""By weights file, what components need of it."""


class Inputs(NamedTuple):
    """What a component is made from.

    Attributes:
        options: what decides an artifact's bytes beside tensors and precision.
        tensors: those that go into it, by their names in the weights file.
        reading: how these names are read in that file.
        weights: the identity of that file.
        configs: the SHA-256 of the configurations, by their names in the model directory.
        more: how many numbers the artifact has beyond those of the tensors, which it may repeat or fill up.
    """

    options: Mapping[str, Any]
    tensors: Mapping[str, TensorDigest]
    reading: Reading
    weights: Identity
    configs: Mapping[str, str]
    more: int = 0


def read_inputs(
    checkpoint: Checkpoint, parts: Iterable[Component], digests: Digests, ready: Callable[[], None] | None = None
) -> dict[Component, Inputs]:
    """The inputs of components of a checkpoint; files that are missing on this machine are downloaded.

    Args:
        digests: those that are remembered.
        ready: is called before weights are read that are not known.

    Raises:
        InputError: the configuration cannot be resolved; weights are missing, damaged or more than tensors; or what a
            folder is made from does not fit.
    """
    parts = tuple(dict.fromkeys(parts))
    source = checkpoint.source
    options = {part: checkpoint.options(part) for part in parts if not part.is_folder}
    source.obtain({name for part in parts for name in source.files(part)})
    folders = {part: folder_need(part, source.directory) for part in parts if part.is_folder}
    found = _digests_of(checkpoint, {**_networks(checkpoint, options), **folders}, parts, digests, ready)
    return {part: _network(checkpoint, part, given, found[part.weights]) for part, given in options.items()} | {
        part: _folder(checkpoint, need, found[part.weights]) for part, need in folders.items()
    }


def folder_need(part: Component, directory: Path) -> FolderNeed:
    """What the folder of a component is made from, but for its weights.

    Raises:
        ConfigError: the files beside the weights are missing, damaged, or not what such a folder is made from.
    """
    return _FOLDERS[part.kind](part, directory)


def _networks(checkpoint: Checkpoint, options: Mapping[Component, Mapping[str, Any]]) -> dict[Component, Need]:
    """The tensors that encoders and estimators need, for those whose options are supported."""
    found: dict[Component, Need] = {}
    for part, given in options.items():
        with suppress(UnsupportedOptionError):  # whoever builds it will say so
            found[part] = EncoderNeed.of(part, given, checkpoint.source.config)
    return found


def _digests_of(
    checkpoint: Checkpoint,
    needs: Mapping[Component, Need],
    parts: Sequence[Component],
    digests: Digests,
    ready: Callable[[], None] | None,
) -> dict[str, Weights]:
    """The digests of weights files by their names: in each, of whatever the family's components have there.

    Of those on request, only if they are wanted: what they have may be large, or damaged.
    """
    wanted: defaultdict[frozenset[str], _Needs] = defaultdict(dict)
    paths = {part.weights: checkpoint.source.file(checkpoint.source.weights(part.weights)) for part in parts}
    for name, path in paths.items():
        known = [part for part in checkpoint.family.components if part.weights == name]
        prefixes = frozenset(part.prefix for part in known if part in parts or not part.on_request)
        own = [need for part, need in needs.items() if part.weights == name]
        wanted[prefixes][path] = own
    if ready is not None and not all(
        are_remembered(digests, path, prefixes, own)
        for prefixes, files in wanted.items()
        for path, own in files.items()
    ):
        ready()
    found: dict[Path, Weights] = {}
    for prefixes, files in wanted.items():
        found |= read_tensors(digests, files, prefixes, files)
    return {name: found[path] for name, path in paths.items()}


def _network(checkpoint: Checkpoint, part: Component, options: Mapping[str, Any], weights: Weights) -> Inputs:
    tensors = {name: each for name, each in weights.tensors.items() if name.startswith(part.prefix)}
    configs = {checkpoint.source.config.name: checkpoint.config.sha256}
    return Inputs(options, tensors, weights.reading, weights.identity, configs)


def _folder(checkpoint: Checkpoint, need: FolderNeed, weights: Weights) -> Inputs:
    path = checkpoint.source.directory / checkpoint.source.weights(need.component.weights)
    check(path, weights.tensors, need, weights.reading)
    folder = need.plan(path, weights.tensors)
    tensors = {name: weights.tensors[name] for name in folder.shapes}
    more = numbers(folder) - sum(map(math.prod, folder.shapes.values()))
    return Inputs(folder.options, tensors, weights.reading, weights.identity, need.configs, more)
