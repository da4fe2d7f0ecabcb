"""Fingerprints: what decides the bytes of an artifact, and the key of that."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from typing import Any, Final, Literal, NamedTuple

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


class Change(NamedTuple):
    """A value that is not the same before and after.

    Attributes:
        name: what has the value: a tensor, an option, a package, a figure or a file.
        state: "added", "removed" or "changed".
        before, after: the value as JSON has it; None where there is none.
    """

    name: str
    state: Literal["added", "removed", "changed"]
    before: Any = None
    after: Any = None

    @property
    def shown(self) -> tuple[str, str]:
        """The values as text; "" where there is none. A string and another value that look the same are JSON."""
        words = _word(self.before), _word(self.after)
        if self.state == "changed":
            return words if words[0] != words[1] else (json.dumps(self.before), json.dumps(self.after))
        return ("", words[1]) if self.state == "added" else (words[0], "")

    def __str__(self) -> str:
        before, after = self.shown
        return (
            f"{self.name} {before} -> {after}"
            if self.state == "changed"
            else f"{self.name} {before}{after} {self.state}"
        )


def changes(before: Mapping[str, Any], now: Mapping[str, Any], label: str = "") -> list[Change]:
    """How named values of now differ from those of before.

    Args:
        label: what the names in the changes begin with.
    """
    found = []
    for name in {**before, **now}:
        named = f"{label}{name}"
        if name not in now:
            found.append(Change(named, "removed", before=before[name]))
        elif name not in before:
            found.append(Change(named, "added", after=now[name]))
        elif canonical(before[name]) != canonical(now[name]):
            found.append(Change(named, "changed", before[name], now[name]))
    return found


def option_changes(before: Fingerprint, now: Fingerprint) -> list[Change]:
    """How what two artifacts are differs, beside tensors and code: class, options, precision, device and recipe."""
    was, given = before.config, now.config
    return [
        *changes({"class": was["class"]}, {"class": given["class"]}),
        *changes(was["options"], given["options"]),
        *changes(was.get("overrides", {}), given.get("overrides", {}), "component: "),
        *changes({"precision": before.precision}, {"precision": now.precision}),
        *changes({"device": before.device}, {"device": now.device}),
        *changes(before.recipe, now.recipe, "recipe: "),
    ]


def code_changes(before: Fingerprint, now: Fingerprint) -> list[Change]:
    """How the code that two artifacts are made by differs."""
    return changes(
        {"encoder code": before.encoders, "torch": before.torch}, {"encoder code": now.encoders, "torch": now.torch}
    )


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """In words, how the fingerprint of now differs from that of before."""
    tensors = changes(before.tensors, now.tensors)
    others = [*option_changes(before, now), *code_changes(before, now)]
    return [*tensor_words(tensors, len(before.tensors), len(now.tensors)), *map(str, others)]


def tensor_words(found: Sequence[Change], before: int, now: int) -> Iterator[str]:
    """In words, how tensors changed.

    Args:
        found: the changes.
        before, now: how many tensors there were, and are.
    """
    for state, count in (("changed", now), ("added", now), ("removed", before)):
        names = [each.name for each in found if each.state == state]
        if names:
            yield f"{len(names)} of {count} tensors {state}: {listed(names)}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
