"""The identity of a file, which tells without reading it whether it has changed.

Linux stamps a file when it begins to change it: at each write, at a change of its length, names or mode, and at the
first write through a shared mapping to a page that is clean. The clock of the stamps moves in steps, of up to 10 ms.
So bytes belong to an identity for good if these steps are taken in order: the identity is read, `settle` is called, the
bytes are read, and the identity is still the same. No clock is compared with another one: what they show, and whether
someone sets them, does not matter.

The device is not part of an identity, since its number changes when the machine is started. If two devices have files
under one path with the same inode, size and times to the nanosecond, they are copies of one image, and equal.
"""

import ctypes
import fcntl
import os
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

_STAMPED: Final = {0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x794C7630}
"""The types of file systems that stamp in this way, by `statfs`: ext2 to ext4, XFS, Btrfs, F2FS, and overlayfs on them.

Others do not, or are not known to: tmpfs does not stamp a write through a mapping; the stamps of NFS, SMB, FUSE and 9P
come from another machine or program, and the kernel may cache them for seconds.
"""

_CLOCK: Final = 6
"""CLOCK_MONOTONIC_COARSE, for which `time` has no name: it moves when the clock of the stamps does, unless someone sets
that one."""

_PATIENCE: Final = 1.0
"""In s, how long to wait for that clock to move."""

_EXTENTS: Final = 0xC020660B
"""FS_IOC_FIEMAP, see https://docs.kernel.org/filesystems/fiemap.html: only file systems with a disk know it."""

_WRITTEN_BACK: Final = 1
"""FIEMAP_FLAG_SYNC: the request first writes the pages that are not clean to the disk. `fsync` does so too, but takes
longer, and does not in an overlayfs that is mounted as volatile."""

_LIBC: Final = ctypes.CDLL(None)


class Identity(NamedTuple):
    """Numbers that change when a file does. Nobody can set its time of change, unlike that of modification."""

    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, file: Path | int) -> "Identity":
        """The identity of a path, or of a descriptor."""
        stat = os.stat(file)  # noqa: PTH116  (a descriptor has no path)
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    @classmethod
    def written(cls, file: int) -> "Identity | None":
        """The identity of a file that is complete and that no other program knows yet; None where `settle` says no.

        A write from now on changes its time of modification. Giving it a name changes only the time of change.

        Args:
            file: a descriptor.
        """
        identity = cls.of(file)
        return identity if all(settle([file], written_back=False)) else None

    def is_still(self, file: int, path: Path) -> bool:
        """Whether an open file, and what stands at its path, are what they were.

        Args:
            file: a descriptor.
            path: the path that it was opened by.
        """
        with suppress(OSError):
            return Identity.of(file) == self == Identity.of(path)
        return False


def settle(files: Sequence[int], *, written_back: bool = True) -> list[bool]:
    """Wait until any change to open files changes their identities: some milliseconds for all of them together.

    Args:
        files: descriptors.
        written_back: include changes through mappings; not needed for files that nobody can have mapped.

    Returns:
        For each file, whether that holds. It does not on most file systems that are not on a local disk, nor where
        stamps are whole seconds.
    """
    stamped = [_is_stamped(file) for file in files]
    if not any(stamped) or not _has_clock_moved():
        return [False] * len(stamped)
    return [each and _is_at_rest(file, written_back=written_back) for file, each in zip(files, stamped, strict=True)]


def _is_stamped(file: int) -> bool:
    found = (ctypes.c_long * 64)()  # more than a `struct statfs` is long, which begins with the type
    with suppress(AttributeError):  # a C library without it
        known = _LIBC.fstatfs(file, found) == 0 and found[0] in _STAMPED
        return known and Identity.of(file).changed % 10**9 != 0
    return False


def _has_clock_moved() -> bool:
    """Wait until the clock has moved; False if it does not, or there is none."""
    with suppress(OSError):
        begun, last = time.clock_gettime_ns(_CLOCK), time.monotonic() + _PATIENCE
        while time.monotonic() < last:
            if time.clock_gettime_ns(_CLOCK) != begun:
                return True
            time.sleep(0.001)
    return False


def _is_at_rest(file: int, *, written_back: bool) -> bool:
    """Wait for writes under way, which may have been stamped long ago, and write back mapped pages."""
    position = os.lseek(file, 0, os.SEEK_CUR)
    with suppress(OSError):  # there is nothing but holes
        os.lseek(file, 0, os.SEEK_DATA)  # takes the lock that a write holds; on XFS, reading does
    os.lseek(file, position, os.SEEK_SET)
    try:
        fcntl.ioctl(file, _EXTENTS, struct.pack("=QQLLLL", 0, 1, _WRITTEN_BACK if written_back else 0, 0, 0, 0))
    except OSError:
        return False
    return True
