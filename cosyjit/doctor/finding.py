"""What is found out, and how each thing is looked at: one that cannot be found out leaves the others as they are."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cosyjit.errors import CosyjitError, line, log_cause
from cosyjit.text import without_secrets

State = Literal["ok", "note", "wrong"]


class ChildError(Exception):
    """A process that did not say what it was started for; the text is what it said last."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found out.

    Attributes:
        part: what it belongs to, such as "store".
        name: what it is, such as "free".
        value: as JSON has it: a text, a number, a truth value or a list; None where there is nothing.
        state: "wrong" if something will not work, "note" if it is worth knowing.
        advice: what it means, and what to do; "" where nothing is to be said.
        unit: of the value, such as "bytes"; "" where it has none.
    """

    part: str
    name: str
    value: Any
    state: State = "ok"
    advice: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Probe:
    """A look at something, which may take its time.

    Attributes:
        part: what the findings belong to.
        name: what stands for them where there are none.
        look: gives them one by one; what it has given counts also if it then fails or takes too long.
        seconds: how long it may take.
        state: what it is if it takes too long.
    """

    part: str
    name: str
    look: Callable[[], Iterable[Finding]]
    seconds: float = 10
    state: State = "wrong"


@dataclass
class _Look:
    """A probe under way, in a thread that nobody waits for: what it looks at may not answer for ever."""

    probe: Probe
    found: list[Finding] = field(default_factory=list)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            for each in self.probe.look():
                self.found.append(each)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is what was found out)
            log_cause(error)
            self.found.append(self._failed("wrong", _reason(error)))

    def wait(self) -> tuple[Finding, ...]:
        self.thread.join(self.probe.seconds)
        if self.thread.is_alive():
            slow = self._failed(self.probe.state, f"was not found out within {self.probe.seconds:g} s")
            return (*self.found, slow)
        return tuple(self.found)

    def _failed(self, state: State, reason: str) -> Finding:
        return Finding(self.probe.part, self.probe.name, None, state, reason)


def _reason(error: Exception) -> str:
    if isinstance(error, CosyjitError):
        return str(error)
    said = line(error) if isinstance(error, ChildError) else f"{type(error).__name__}: {line(error)}"
    return f"cannot be found out ({said})"


def look(probes: Sequence[Probe]) -> tuple[Finding, ...]:
    """What all probes find, in their order; they look at the same time."""
    begun = [_Look(each) for each in probes]
    for each in begun:
        each.thread.start()
    return tuple(_public(found) for each in begun for found in each.wait())


def _public(found: Finding) -> Finding:
    """A finding without secrets: whoever finds something out may quote what it was told, such as an address."""
    value = without_secrets(found.value, os.environ) if isinstance(found.value, str) else found.value
    return replace(found, value=value, advice=without_secrets(found.advice, os.environ))


def shown(path: str | Path) -> str:
    """A path as a report has it: the home directory, which may have someone's name in it, is "~"."""
    home, text = os.environ.get("HOME", ""), str(path)
    inside = len(home) > 1 and Path(text).is_relative_to(home)
    return str(Path("~", Path(text).relative_to(home))) if inside else text
