"""Of which type the file system at a path is, as the kernel names it."""

import os
import re
from pathlib import Path
from typing import Final

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
"""How a space and the like stand in the kernel's list of mounts."""


def file_system(path: Path, root: Path = Path("/")) -> str:
    """The type of the file system at a path, such as "ext4", "nfs4" or "overlay"; "" if that cannot be told.

    Args:
        path: one that is there.
        root: where /proc is.
    """
    place, found = Path(os.path.realpath(path)), (-1, "")
    try:
        lines = os.fsdecode((root / "proc/self/mountinfo").read_bytes()).splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, system = line.partition(" - ")
        point = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), mount.split(" ")[4]))
        depth = len(point.parts)
        if place.is_relative_to(point) and depth >= found[0]:  # of two at one place, the later one is seen
            found = depth, system.split(" ")[0]
    return found[1]
