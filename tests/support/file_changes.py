"""All the ways in which programs change files, by chance: for tests of what is remembered of files."""

import ctypes
import mmap
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from cosyjit.fs import files
from cosyjit.fs.digests import Digests
from cosyjit.fs.identity import settle
from tests.support.files import sha256_of
from tests.support.processes import start

CHANGING: Final = {
    "rewritten": "os.pwrite(fd, contents[i % 2], 0)",
    "rewritten in part": "os.pwrite(fd, contents[i % 2][:len(contents[0]) // 2], 0); time.sleep(0.001); "
    "os.pwrite(fd, contents[i % 2][len(contents[0]) // 2:], len(contents[0]) // 2)",
    "cut short": "os.ftruncate(fd, random.randrange(len(contents[0]))); time.sleep(0.001); "
    "os.pwrite(fd, contents[0], 0)",
    "replaced": "open(sys.argv[1] + '.new', 'wb').write(contents[i % 2]); "
    "os.replace(sys.argv[1] + '.new', sys.argv[1])",
    "longer": "os.pwrite(fd, bytes(i), len(contents[0])); time.sleep(0.001); os.ftruncate(fd, len(contents[0]))",
}

CHANGED: Final = "was changed while it was read; run again when it is complete"

_WRITER: Final = """
import os, random, select, sys, time

fd = os.open(sys.argv[1], os.O_RDWR)
contents = [open(path, "rb").read() for path in sys.argv[2:]]
print("ready", flush=True)
i = 0
while not select.select([sys.stdin], [], [], random.random() * 0.06)[0]:
    i += 1
    {change}
"""


@contextmanager
def changing(change: str, path: Path, contents: Sequence[Path]) -> Iterator[None]:
    """Have a process change a file for as long as the block lasts.

    Args:
        change: one of `CHANGING`.
        contents: the files whose contents the file has in turn.
    """
    with start(_WRITER.format(change=change), path, *contents) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        yield
        writer.communicate()
    assert writer.returncode == 0


SIZE: Final = 5 * 4096
"""Of the files, in bytes: some pages."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_EXCHANGE: Final = 2
_HOLE: Final = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_CLONE: Final = 0x40049409  # FICLONE
_HERE: Final = -100  # AT_FDCWD


def is_stamped(directory: Path) -> bool:
    """Whether a file system's times tell of all changes, so that digests of its files are remembered."""
    path = directory / "stamped"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        (found,) = settle([file.fileno()])
    path.unlink()
    return found


def need_stamps(directory: Path) -> None:
    """Skip a test of what is remembered where nothing can be."""
    if not is_stamped(directory):
        pytest.skip(f"{directory} is on a file system whose times are not relied on, such as tmpfs")


def is_remembered(memory: Digests, path: Path) -> bool:
    with files.plain(path) as file:
        return memory._recall_sha256(file, path) is not None


class Changer:
    """Changes some files by chance, their sizes for the most part left as they are."""

    def __init__(self, paths: Sequence[Path], seed: int) -> None:
        self.paths = paths
        self.random = random.Random(seed)  # noqa: S311  (a test is to be the same again)
        self._mappings: list[mmap.mmap] = []
        self._other = paths[0].with_name("other")
        self._other.write_bytes(self._bytes(SIZE))
        for path in paths:
            path.write_bytes(self._bytes(SIZE))

    def close(self) -> None:
        for mapping in self._mappings:
            mapping.close()

    def step(self) -> str:
        """Change a file, or its times or names; says how."""
        way = self.random.choice(self.WAYS)
        with suppress(OSError):  # what this file system does not do
            way(self, self.random.choice(self.paths))
        return way.__name__

    def _bytes(self, count: int) -> bytes:
        return self.random.randbytes(count)

    def _place(self, count: int = 1) -> int:
        return self.random.randrange(SIZE - count + 1)

    def _write_whole(self, path: Path) -> None:
        with path.open("r+b") as file:
            file.write(self._bytes(SIZE))

    def _rewrite(self, path: Path) -> None:
        path.write_bytes(self._bytes(SIZE))

    def _write_part(self, path: Path) -> None:
        with path.open("r+b") as file:
            os.pwritev(file.fileno(), [self._bytes(3), self._bytes(2)], self._place(5))

    def _write_behind(self, path: Path) -> None:
        """And put the times back."""
        stat = path.stat()
        self._write_part(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def _write_directly(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 4096) as page:  # which begins where this way of writing wants it
                page[:] = self._bytes(4096)
                os.pwrite(fd, page, self._place() // 4096 * 4096)
        finally:
            os.close(fd)

    def _map(self, path: Path) -> None:
        """And write through the mapping, which stays."""
        with path.open("r+b") as file:
            self._mappings.append(mmap.mmap(file.fileno(), SIZE))
        if len(self._mappings) > 8:
            self._mappings.pop(0).close()
        self._write_mapped(path)

    def _write_mapped(self, _: Path) -> None:
        """Through a mapping of any file, some of them replaced since."""
        if self._mappings:
            mapping = self.random.choice(self._mappings)
            with suppress(ValueError):  # it is being cut
                mapping[self._place()] = self.random.randrange(256)

    def _flush(self, _: Path) -> None:
        if self._mappings:
            self.random.choice(self._mappings).flush()

    def _cut_and_fill(self, path: Path) -> None:
        os.truncate(path, self._place())
        with path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(self._bytes(SIZE - file.tell()))

    def _cut_and_stretch(self, path: Path) -> None:
        os.truncate(path, self._place())
        os.truncate(path, SIZE)

    def _punch(self, path: Path) -> None:
        with path.open("r+b") as file:
            _LIBC.fallocate(file.fileno(), _HOLE, ctypes.c_long(self._place(50)), ctypes.c_long(50))

    def _replace(self, path: Path) -> None:
        """By a file that has the times of the one before."""
        stat, new = path.stat(), path.with_suffix(".new")
        new.write_bytes(self._bytes(SIZE))
        os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        new.replace(path)

    def _exchange(self, path: Path) -> None:
        other = os.fsencode(self.random.choice([*self.paths, self._other]))
        _LIBC.renameat2(_HERE, os.fsencode(path), _HERE, other, _EXCHANGE)

    def _link(self, path: Path) -> None:
        """And write by the other name."""
        link = path.with_suffix(".link")
        link.unlink(missing_ok=True)
        os.link(path, link)
        self._write_part(link)

    def _copy_range(self, path: Path) -> None:
        with self._other.open("rb") as source, path.open("r+b") as file:
            os.copy_file_range(source.fileno(), file.fileno(), 100, self._place(100), self._place(100))

    def _send(self, path: Path) -> None:
        with self._other.open("rb") as source, path.open("r+b") as file:
            file.seek(self._place(100))
            os.sendfile(file.fileno(), source.fileno(), self._place(100), 100)

    def _clone(self, path: Path) -> None:
        with self._other.open("rb") as source, path.open("r+b") as file:
            _LIBC.ioctl(file.fileno(), ctypes.c_ulong(_CLONE), source.fileno())

    def _touch(self, path: Path) -> None:
        moment = self.random.choice([0, 10**9, 4 * 10**18])  # 1970, a second later, and in a hundred years
        os.utime(path, ns=(moment, moment))

    def _chmod(self, path: Path) -> None:
        path.chmod(self.random.choice([0o644, 0o600]))

    WAYS: Final[Sequence[Callable[["Changer", Path], None]]] = (
        *(_write_whole, _rewrite, _write_part, _write_behind, _write_directly),
        *(_map, _write_mapped, _write_mapped, _write_mapped, _write_mapped, _flush),
        *(_cut_and_fill, _cut_and_stretch, _punch, _replace, _exchange, _link),
        *(_copy_range, _send, _clone, _touch, _chmod),
    )


def walk(memory: Digests, folder: Path, steps: int, seed: int) -> int:
    """Change files and ask for their digests, by chance; gives how often one was known without reading."""
    paths = [folder / f"{name}.bin" for name in "abc"]
    known = 0
    with closing(Changer(paths, seed)) as changer:
        done: list[str] = []
        for _ in range(steps):
            if changer.random.random() < 0.6:
                done.append(changer.step())
                continue
            path = changer.random.choice(paths)
            known += is_remembered(memory, path)
            assert memory.sha256(path) == sha256_of(path), (seed, done)
            assert is_remembered(memory, path)
            assert memory.sha256(path) == sha256_of(path)
    return known
