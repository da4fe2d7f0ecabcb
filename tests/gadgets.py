"""What would run code if it were loaded as its makers load it."""

import os
from pathlib import Path
from typing import Any, Final

RUNNING: Final = {
    "apply": "!apply:planted.function []",
    "apply with keywords": "!apply:planted.function {a: 1}",
    "applyref": "!applyref:planted.function []",
    "applyref of a scalar": "!applyref:planted.function ''",
    "new": "!new:planted.Class {}",
    "name": "!name:planted.function",
    "module": "!module:planted",
    "include": "!include:included.yaml",
    "python apply": "!!python/object/apply:planted.function []",
    "python new": "!!python/object/new:planted.Class {}",
    "python name": "!!python/name:planted.function",
    "python module": "!!python/module:planted",
}
"""Nodes for which HyperPyYAML imports the module `planted`."""

PLACES: Final = {
    "option": "llm: !new:a.Model\n  e: !new:a.Encoder {o: [NODE ]}\n",
    "referred to": "x: NODE\nllm: !new:a.Model\n  e: !new:a.Encoder {o: !ref <x>}\n",
    "copied": "llm: !new:a.Model\n  e: !new:a.Encoder {o: !copy <x>}\nx: NODE\n",
    "interpolated": "llm: !new:a.Model\n  e: !new:a.Encoder {o: !ref a<x>}\nx: NODE\n",
    "aliased": "x: &x NODE\nllm: !new:a.Model\n  e: !new:a.Encoder {o: *x}\n",
    "merged": "x: &x {o: NODE }\nllm: !new:a.Model\n  e: !new:a.Encoder {<<: *x}\n",
    "sibling": "llm: !new:a.Model\n  o: NODE\n  e: !new:a.Encoder {o: 1}\n",
    "elsewhere": "x: {y: [NODE ]}\nllm: !new:a.Model\n  e: !new:a.Encoder {o: 1}\n",
    "key": "llm: !new:a.Model\n  e: !new:a.Encoder {? NODE : 1}\n",
    "key elsewhere": "? NODE\n: 1\nllm: !new:a.Model\n  e: !new:a.Encoder {o: 1}\n",
    "parent": "x: {o: NODE }\nllm: !new:a.Model\n  e: !new:a.Encoder {o: !ref '<x[o]>', p: !ref <x>}\n",
}
"""Configurations with a component `llm.e`, in which one of these nodes takes the place of NODE."""

REDEFINED: Final = {
    "applyref option": (
        "%TAG ! !new:\n---\nllm: !a.Model\n  e: !<!new:a.Encoder> {o: !applyref:planted.function []}\n"
    ),
    "applyref component": "%TAG ! !new:\n---\nllm: !a.Model\n  e: !applyref:planted.function {a: 1}\n",
    "include": "%TAG ! !new:\n---\nllm: !a.Model\n  e: !include:included.yaml {}\n",
    "applyref by handle": (
        "%TAG !x! !applyref:\n---\nllm: !new:a.Model\n  e: !new:a.Encoder {o: !x!planted.function []}\n"
    ),
    "applyref by core handle": (
        "%TAG !! !applyref:\n---\nllm: !new:a.Model\n  e: !new:a.Encoder {o: !!planted.function []}\n"
    ),
}
"""Documents whose %TAG directives give tags other meanings than they show."""

INCLUDED: Final = "secret: !applyref:planted.function []\n"
"""What `included.yaml` says."""

PLANTED: Final = """
from pathlib import Path

Path({marker!r}).touch()

def function(*_, **__):
    return 1

class Class:
    pass
"""
"""The module `planted`: importing it makes a file."""


class Marking:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker


class Command(Marking):
    """Does it by a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


class Custom(Marking):
    """Does it by a function of the pickle's maker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return touch, (self.marker,)


class Restored(Marking):
    """Does it as its state is restored."""

    def __setstate__(self, state: dict[str, str]) -> None:
        touch(state["marker"])


def touch(marker: str) -> str:
    """Make a file."""
    Path(marker).touch()
    return marker


PICKLED: Final = (Command, Custom, Restored)
