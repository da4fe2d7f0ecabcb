"""Which versions are installed: of cosyjit, of Python, and of all that cosyjit needs or can use."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cosyjit.doctor.finding import Finding, Probe, shown

_DEVELOPMENT: Final = "dev"
"""The extra that is for whoever works on cosyjit itself."""


def probes() -> list[Probe]:
    return [Probe("versions", "packages", _versions)]


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "Python", f"{platform.python_version()} ({platform.python_implementation()})")
    yield Finding("versions", "Python at", shown(sys.executable))
    try:
        needed = [Requirement(each) for each in requires("cosyjit") or ()]
    except PackageNotFoundError:
        advice = "is not installed, and cannot export; `pip install .` in its checkout"
        yield Finding("versions", "cosyjit", None, "wrong", advice)
        return
    yield Finding("versions", "cosyjit", version("cosyjit"))
    yield Finding("versions", "cosyjit at", shown(Path(__file__).parents[1]))
    for requirement, extra in _wanted(needed):
        yield _package(requirement, extra)


def _wanted(needed: list[Requirement]) -> Iterator[tuple[Requirement, str]]:
    """What is needed, and then what extras add, each with the extra's name; "" for what is needed always."""
    names = set()
    for each in needed:
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            names.add(canonicalize_name(each.name))
            yield each, ""
    for each in needed:
        extra = next((name for name in _extras() if each.marker and _is_of(each, name)), "")
        if extra and canonicalize_name(each.name) not in names:
            yield each, extra


def _extras() -> list[str]:
    return [each for each in metadata("cosyjit").get_all("Provides-Extra") or [] if each != _DEVELOPMENT]


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra})


def _package(requirement: Requirement, extra: str) -> Finding:
    name = requirement.name
    try:
        installed = version(name)
    except PackageNotFoundError:
        if extra:
            return Finding("versions", name, f"not installed (cosyjit[{extra}])")
        return Finding("versions", name, None, "wrong", f"is missing; `pip install '{name}{requirement.specifier}'`")
    if requirement.specifier.contains(installed, prereleases=True):
        return Finding("versions", name, installed)
    advice = f"cosyjit needs {requirement.specifier}; `pip install '{name}{requirement.specifier}'`"
    return Finding("versions", name, installed, "note" if extra else "wrong", advice)
