"""Fingerprints: what decides the bytes of an artifact, and the key of that."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import xxhash

from cosyjit import encoders
from cosyjit.configuration.config import Instance
from cosyjit.families import Component, Precision
from cosyjit.hf import rules as hf
from cosyjit.onnx import forms
from cosyjit.text import listed
from cosyjit.vllm import rules as vllm
from cosyjit.weights.tensor_digests import TensorDigest

_DOMAIN: Final = b"cosyjit fingerprint 1\n"
"""The beginning of what is hashed for a key. Another form of the parts gets another number."""


class _Recipe(NamedTuple):
    """The stages of a build, and the version of their code for a class and its options."""

    stages: tuple[str, ...]
    version: Callable[[str, Mapping[str, Any]], int]


_RECIPES: Final = {
    "zip": _Recipe(("script", "freeze", "optimize_for_inference"), encoders.version_of),
    "vllm": _Recipe(("cast",), lambda _class_name, _options: vllm.VERSION),
    "hf": _Recipe(("merge", "cast"), lambda _class_name, _options: hf.VERSION),
    "onnx": _Recipe(("cast", "graph"), lambda _class_name, _options: forms.VERSION),
}


@dataclass(frozen=True)
class Fingerprint:
    """What decides an artifact's bytes.

    Attributes:
        tensors: the digests of the component's tensors, by their names without its prefix.
        config: the class and options of the configuration, as JSON has them; and the component's overrides, if any.
        precision, device: their names.
        recipe: the methods that are kept, and the stages of the build.
        encoders: the version of the code that makes it: that of the encoder, of a kind of folder, or of ONNX files.
        torch: the version of torch.
    """

    tensors: Mapping[str, TensorDigest]
    config: Mapping[str, Any]
    precision: str
    device: str
    recipe: Mapping[str, Any]
    encoders: int
    torch: str

    @property
    def parts(self) -> dict[str, Any]:
        """All attributes as JSON has them; the tensors as their count and one digest."""
        return {
            "tensors": {"count": len(self.tensors), "xxh3_128": self._tensors_digest},
            "config": self.config,
            "precision": self.precision,
            "device": self.device,
            "recipe": self.recipe,
            "encoders": self.encoders,
            "torch": self.torch,
        }

    @cached_property
    def _tensors_digest(self) -> str:
        return xxhash.xxh3_128_hexdigest(canonical(self.tensors))

    @cached_property
    def key(self) -> str:
        """The XXH3-128 of the parts, in hex."""
        return key_of(self.parts)


def key_of(parts: Mapping[str, Any]) -> str:
    """The key of parts that were read from a file: what `Fingerprint.key` is for a fingerprint."""
    return xxhash.xxh3_128_hexdigest(_DOMAIN + canonical(parts))


def canonical(value: Any) -> bytes:
    """JSON in the same form for equal values: sorted keys, no spaces, ASCII.

    Raises:
        RecursionError: the value contains itself.
    """
    # The usual search for circles would take a fifth of the time.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), check_circular=False).encode("ascii")


def fingerprint(
    component: Component,
    options: Mapping[str, Any],
    precision: Precision,
    device: str,
    tensors: Mapping[str, TensorDigest],
) -> Fingerprint:
    """The fingerprint of a component at a precision on a kind of device.

    Args:
        component: one of its family's.
        options: from `Checkpoint.options`.
        precision, device: those that it is built for.
        tensors: the digests of its tensors, by their names in the weights file, which begin with its prefix.
    """
    recipe = _RECIPES[component.kind]
    return Fingerprint(
        tensors={name.removeprefix(component.prefix): digest for name, digest in tensors.items()},
        config={
            "class": component.class_name,
            "options": plain(options),
            **({"overrides": plain(component.overrides)} if component.overrides else {}),
        },
        precision=precision.name,
        device=device,
        recipe={"methods": list(component.methods), "stages": list(recipe.stages)},
        encoders=recipe.version(component.class_name, options),
        torch=_torch_version(),
    )


@cache
def _torch_version() -> str:
    """The version of torch, without importing torch, which takes seconds."""
    return version("torch")


def plain(value: Any) -> Any:
    """A value of a configuration as JSON has it. What JSON lacks gets a mark, so that different values differ."""
    if value is None or isinstance(value, bool | int | float | str):
        # Python refuses to write integers of thousands of digits.
        return {"!int": hex(value)} if isinstance(value, int) and abs(value) >= 1 << 64 else value
    if isinstance(value, Instance):
        return {f"!new:{value.class_name}": plain(value.options)}
    if isinstance(value, Mapping):
        return _plain_mapping(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {f"!{type(value).__name__}": str(value)}


def _plain_mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    if all(isinstance(key, str) and not key.startswith("!") for key in value):
        return {key: plain(item) for key, item in value.items()}
    return {"!map": sorted(([plain(key), plain(item)] for key, item in value.items()), key=canonical)}


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """In words, how the fingerprint of now differs from that of before."""
    return [
        *_tensors(before.tensors, now.tensors),
        *_values("", {"class": before.config["class"]}, {"class": now.config["class"]}),
        *_values("", before.config["options"], now.config["options"]),
        *_values("component: ", before.config.get("overrides", {}), now.config.get("overrides", {})),
        *_values("", {"precision": before.precision}, {"precision": now.precision}),
        *_values("", {"device": before.device}, {"device": now.device}),
        *_values("recipe: ", before.recipe, now.recipe),
        *_values("", {"encoder code": before.encoders}, {"encoder code": now.encoders}),
        *_values("", {"torch": before.torch}, {"torch": now.torch}),
    ]


def _tensors(before: Mapping[str, TensorDigest], now: Mapping[str, TensorDigest]) -> Iterator[str]:
    changed = [name for name in now if name in before and now[name] != before[name]]
    kinds = {
        f"of {len(now)} tensors changed": changed,
        f"of {len(now)} tensors added": [name for name in now if name not in before],
        f"of {len(before)} tensors removed": [name for name in before if name not in now],
    }
    for kind, names in kinds.items():
        if names:
            yield f"{len(names)} {kind}: {listed(names)}"


def _values(label: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in {**before, **now}:
        if name not in now:
            yield f"{label}{name} {_word(before[name])} removed"
        elif name not in before:
            yield f"{label}{name} {_word(now[name])} added"
        elif canonical(before[name]) != canonical(now[name]):
            words = [_word(before[name]), _word(now[name])]
            if words[0] == words[1]:  # a string and a value that look the same
                words = [json.dumps(before[name]), json.dumps(now[name])]
            yield f"{label}{name} {words[0]} -> {words[1]}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
