"""What tells a file from what it was before, without reading it."""

import os
import time
from pathlib import Path
from typing import Final, NamedTuple

_TICK: Final = 20 * 10**6
"""In ns, more than the step of the clock by which Linux stamps files. FAT's, of 2 s, shows as whole seconds."""


class Identity(NamedTuple):
    """What changes when a file does. Its time of change, unlike that of modification, cannot be set by anyone."""

    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, file: Path | int) -> "Identity":
        """That of a path, or of a descriptor."""
        stat = os.stat(file)  # noqa: PTH116  (a descriptor has no path)
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def settled(self) -> bool:
        """Whether any later change will show, for it lies further back than the file system's clock is coarse.

        Waits for that, if a moment is enough.
        """
        age = time.time_ns() - max(self.modified, self.changed)
        if 0 <= age < _TICK:
            time.sleep((_TICK - age) / 1e9)
            age = _TICK
        coarse = self.modified % 10**9 == 0 and self.changed % 10**9 == 0
        return age >= (2 * 10**9 if coarse else _TICK)
