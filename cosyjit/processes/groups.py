"""The control groups that this process is in, which limit what it may have; see the manual page cgroups(7).

A container, a systemd unit or a batch job is such a group, or is in one.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path


def directories(controller: str, root: Path = Path("/")) -> Iterator[tuple[str, Path]]:
    """Where the limits of the groups stand, and of those above them: the type of file system, and the directory.

    The type is "cgroup2" for version 2, and "cgroup" for version 1.

    Args:
        controller: what is limited, such as "memory".
        root: where /proc and the file systems of control groups are.
    """
    for kind, group, mount in _groups(controller, root):
        for each in (group, *group.parents):
            yield kind, root / mount.relative_to("/") / each


def _groups(controller: str, root: Path) -> Iterator[tuple[str, Path, Path]]:
    """The control groups of this process: their kind, their path, and where they are mounted."""
    own = _own_groups(controller, _lines(root / "proc/self/cgroup"))
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        (_, _, _, above, point, *_), (kind, _, options) = mount.split(" "), system.split(" ")
        if kind in own and (kind == "cgroup2" or controller in options.split(",")):
            # Where a container sees its own group alone, the path to it from outside leads nowhere.
            group = own[kind].relative_to(above) if own[kind].is_relative_to(above) else Path()
            yield kind, group, Path(point)


def _own_groups(controller: str, lines: Sequence[str]) -> dict[str, Path]:
    """The control groups of this process that may have a controller, by the type of file system."""
    groups = {}
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            groups["cgroup2"] = Path(group)
        elif controller in controllers.split(","):
            groups["cgroup"] = Path(group)
    return groups


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return os.fsdecode(path.read_bytes()).splitlines()
    return []
