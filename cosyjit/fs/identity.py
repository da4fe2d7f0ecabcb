"""What tells a file from what it was before, without reading it.

Linux stamps a file when it begins to change it: at each write, at a change of its length, names or mode, and at the
first write through a shared mapping to a page that is clean. The clock of the stamps moves in steps, of up to 10 ms.
So bytes belong to an identity for good if it is taken, then `settle` is called, then they are read, and it is the same
afterwards. No clock is compared with another one: what they show, and whether they are set, does not matter.

The device is no part of an identity: its number changes when the machine is started, and files that two devices have
under one path with the same number, size and times to the nanosecond are copies of one image, and equal.
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
"""The types of file systems that stamp as said, by `statfs`: ext2 to ext4, XFS, Btrfs, F2FS, and overlayfs on them.

Others do not, or it is not known that they do: tmpfs stamps no write through a mapping; stamps of NFS, SMB, FUSE and 9P
are another machine's or program's, and may be remembered by the kernel for seconds.
"""

_CLOCK: Final = 6
"""CLOCK_MONOTONIC_COARSE, for which `time` has no name: it moves on when the clock of the stamps does, if nobody sets
that."""

_PATIENCE: Final = 1.0
"""In s, how long that is waited for."""

_EXTENTS: Final = 0xC020660B
"""FS_IOC_FIEMAP, see https://docs.kernel.org/filesystems/fiemap.html: only file systems with a disk know it."""

_WRITTEN_BACK: Final = 1
"""FIEMAP_FLAG_SYNC: the request begins with writing the pages to the disk that are not clean. `fsync` would do so too,
but not in an overlayfs that is mounted as volatile, and takes longer."""

_LIBC: Final = ctypes.CDLL(None)


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

    @classmethod
    def written(cls, file: int) -> "Identity | None":
        """That of a descriptor whose file is complete and known to no other program yet; None as in `settle`.

        Whoever writes to it from now on changes its time of modification. Giving it a name changes only that of change.
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
    """Wait, some milliseconds for all, until whatever is done to open files from now on changes their identities.

    Args:
        files: descriptors.
        written_back: see to what mappings have changed; of files that nobody can have mapped it is not needed.

    Returns:
        Of each, whether it holds. It does not in most file systems that are not on a local disk, nor with stamps of
        whole seconds.
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
    """Wait until the clock has moved on; False if it does not, or there is none."""
    with suppress(OSError):
        begun, last = time.clock_gettime_ns(_CLOCK), time.monotonic() + _PATIENCE
        while time.monotonic() < last:
            if time.clock_gettime_ns(_CLOCK) != begun:
                return True
            time.sleep(0.001)
    return False


def _is_at_rest(file: int, *, written_back: bool) -> bool:
    """Wait for writes that were under way, which may have been stamped long ago, and let mapped pages be clean."""
    position = os.lseek(file, 0, os.SEEK_CUR)
    with suppress(OSError):  # there is nothing but holes
        os.lseek(file, 0, os.SEEK_DATA)  # takes the lock that a write holds; on XFS, reading does
    os.lseek(file, position, os.SEEK_SET)
    try:
        fcntl.ioctl(file, _EXTENTS, struct.pack("=QQLLLL", 0, 1, _WRITTEN_BACK if written_back else 0, 0, 0, 0))
    except OSError:
        return False
    return True
