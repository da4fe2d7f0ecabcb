"""How much memory builds may take on this machine at a time, whichever processes ask for it.

Each build notes what it needs in a file that it holds the lock of; a process that is killed frees it. One build is
always let in, however much it needs: it has to be tried some time.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from cosyjit.fs import files
from cosyjit.fs.waits import Wait, holders

_SHARE: Final = 0.75
"""What builds may take of a machine's memory, unless they are told."""

_LIMITS: Final = {"cgroup2": "memory.max", "cgroup": "memory.limit_in_bytes"}
"""The files that say how much memory a control group may take, by the type of file system: version 2, and version 1."""


def installed(root: Path = Path("/")) -> int:
    """The memory that this machine has, or less where this process's control groups are limited to less, in bytes.

    A container, a systemd unit or a batch job is such a group, or is in one; a limit of any group above counts as well.

    Args:
        root: where /proc and the file systems of control groups are.
    """
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([found, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """The limits of the control groups that this process is in, in bytes; see the manual page cgroups(7)."""
    for kind, group, mount in _groups(root):
        place = root / mount.relative_to("/")
        for each in (group, *group.parents):
            with suppress(OSError, ValueError):  # the topmost group has no limit; "max" is none
                yield int((place / each / _LIMITS[kind]).read_text(encoding="ascii"))


def _groups(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """The kinds of control groups that limit memory; of each this process's group, and where the groups are mounted."""
    own = _own_groups(_lines(root / "proc/self/cgroup"))
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        (_, _, _, above, point, *_), (kind, _, options) = mount.split(" "), system.split(" ")
        if kind in own and (kind == "cgroup2" or "memory" in options.split(",")):
            # Where a container sees its own group alone, the path to it from outside leads nowhere.
            group = own[kind].relative_to(above) if own[kind].is_relative_to(above) else Path()
            yield kind, group, Path(point)


def _own_groups(lines: Sequence[str]) -> dict[str, Path]:
    """The control groups of this process that may limit memory, by the type of file system."""
    found = {}
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            found["cgroup2"] = Path(group)
        elif "memory" in controllers.split(","):
            found["cgroup"] = Path(group)
    return found


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return os.fsdecode(path.read_bytes()).splitlines()
    return []


def reservations_directory() -> Path:
    """Where the builds of this user on this machine reserve memory, whatever their stores are."""
    try:
        return Path(files.DEFAULT_ROOT).expanduser() / "locks" / "memory"
    except RuntimeError:  # there is no home
        return Path(tempfile.gettempdir()) / f"cosyjit-{os.getuid()}"


def tidy(directory: Path) -> None:
    """Remove the notes of processes that were killed, without waiting for a build that would."""
    with suppress(OSError):  # mostly there is no such directory
        files.check_own(directory)
        with files.locked(directory / "lock"):
            list(_taken(directory))


@contextmanager
def reserved(directory: Path, size: int, limit: int | None = None, *, wait: Wait | None = None) -> Iterator[None]:
    """Wait until so much memory is free of what builds may take, and keep it from others meanwhile.

    Args:
        directory: where the builds of this machine note what they need.
        size: what is needed, in bytes.
        limit: what all of them may take; three quarters of the machine's memory for None.
        wait: how other processes are waited for; as long as it takes for None.

    Raises:
        BusyError: they were waited for as long as that says.
    """
    wait = wait or Wait("memory")
    limit = limit or int(_SHARE * installed())
    with ExitStack() as held:
        with suppress(OSError):  # nothing can be noted there: nobody is kept waiting
            files.make_own(directory)
            wait.poll(
                lambda: _admitted(directory, size, limit, held),
                lambda: holders(each.stat().st_ino for each in directory.glob("*.*")),
            )
        yield


def _admitted(directory: Path, size: int, limit: int, held: ExitStack) -> bool:
    with files.locked(directory / "lock"):
        taken = list(_taken(directory))
        if taken and sum(taken) + size > limit:
            return False
        note = directory / f"{uuid.uuid4().hex}.{size}"
        held.callback(_forget, note)
        held.enter_context(files.locked(note))
        return True


def _taken(directory: Path) -> Iterator[int]:
    for note in directory.glob("*.*"):
        if files.is_free(note):  # of a process that was killed
            _forget(note)
        else:
            yield int(note.suffix.removeprefix("."))


def _forget(note: Path) -> None:
    with suppress(OSError):  # whoever looks next will do it, since nobody holds it
        note.unlink(missing_ok=True)
