"""How a directory shows one whole set of files at any moment, and switches to another one in a single step.

    llm.llm.fp32.zip              -> .cosyjit/current/llm.llm.fp32.zip
    cosyjit.json                  -> .cosyjit/current/cosyjit.json
    .cosyjit/current              -> sets/<set>
    .cosyjit/sets/<set>/cosyjit.json
    .cosyjit/sets/<set>/llm.llm.fp32.zip -> ../../files/<sha256>
    .cosyjit/sets/<set>/vllm/config.json -> ../../../files/<sha256>
    .cosyjit/files/<sha256>

The directory may be a stranger's, and what he has put there is believed as little as it can be: nothing is written or
removed through a link that leads out of `.cosyjit`.

The names are symbolic links through `current`, which is replaced by renaming. What it does not lead to, nobody sees.

As in a plain copy, nothing is waited for to reach the disk: the system writes it in its own time. After a start of the
machine the digests of these files are taken anew, so that what a loss of power cut short is seen.
"""

import ctypes
import itertools
import os
import re
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from cosyjit.errors import OutputError
from cosyjit.fs import files, locks
from cosyjit.fs.waits import Wait, holders

MANIFEST: Final = "cosyjit.json"
"""The name of the document that describes a set, among its files."""

STATE: Final = ".cosyjit"
_SET: Final = r"sets/((?!\.\.?$)[^/]+)"
"""Where the link to the set that is shown may lead to."""

_GRACE: Final = 0.1
"""In s, how long the set before is left where it is: for readers that are amid following the links to it."""

_HERE: Final = -100
_EXCHANGE: Final = 2
"""AT_FDCWD and RENAME_EXCHANGE, for `renameat2`, which the standard library has not."""

_LIBC: Final = ctypes.CDLL(None)

_BEFORE: Final = "before."
"""What the names of sets begin with that hold what stood here before the first one."""


def current(directory: Path) -> str | None:
    """The name of the set that a directory shows; None if it shows none."""
    try:
        target = str((directory / STATE / "current").readlink())
    except OSError:
        return None
    found = re.fullmatch(_SET, target)
    return None if found is None or found[1].startswith(_BEFORE) else found[1]


def document(directory: Path, name: str) -> Path:
    """Where the document of a set is."""
    return directory / STATE / "sets" / name / MANIFEST


def file(directory: Path, digest: str) -> Path:
    """Where the file of a digest is, if it is in a set or going to be."""
    return directory / STATE / "files" / digest


def show(
    directory: Path,
    name: str,
    content: bytes,
    members: Mapping[str, str],
    *,
    replace: bool = False,
    own: Collection[str] = (),
) -> None:
    """Make a set of files that are there, and switch to it. To be called within `writing`, alone.

    Args:
        name: of the set.
        content: of its document.
        members: the names to show, and the digests of their files; "vllm/config.json" is a file in a folder.
        replace, own: see `check_names`.

    Raises:
        OutputError: something stands under a name that is not to be replaced; nothing was changed.
        OSError: the directory cannot be written to; it shows one whole set.
    """
    names = [*dict.fromkeys(member.partition("/")[0] for member in members), MANIFEST]
    check_names(directory, members, replace=replace, own=own)
    manifest = document(directory, name)
    files.make_directory(manifest.parent)
    for member, digest in members.items():
        path = manifest.parent / member
        if path.parent != manifest.parent:
            _make_real(path.parent)
        files.replace_symlink(f"../../{'../' * member.count('/')}files/{digest}", path)
    _drop_others(manifest.parent, members)
    if files.content(manifest, len(content)) != content:
        with files.replacing(manifest) as opened:
            opened.write(content)
    folders = {member.partition("/")[0] for member in members if "/" in member}
    _adopt(directory, dict.fromkeys((*names, *own)), folders, own)
    for member in names:
        files.replace_symlink(f"{STATE}/current/{member}", directory / member)
    _switch(directory, name)
    time.sleep(_GRACE)
    clean(directory)


def check_names(directory: Path, members: Collection[str], *, replace: bool = False, own: Collection[str] = ()) -> None:
    """
    Args:
        members: see `show`.
        replace: whether what stands where a folder is to be shown is put aside, under its name with a number.
        own: the names of files and folders that are cosyjit's own, though they are no links; none is put aside.

    Raises:
        OutputError: something else stands there, or, where a file is to be shown, something that is not a file.
    """
    for error in _taken(directory, members, {}, replace=replace, own=own):
        raise error


def obstacles(
    directory: Path,
    members: Collection[str],
    ways: Mapping[str, str],
    *,
    replace: bool = False,
    own: Collection[str] = (),
) -> Iterator[OutputError]:
    """The errors that `writing` and `show` would raise of what stands in a directory; nothing is written.

    Args:
        members, replace, own: see `check_names`.
        ways: by names, what else can be done where something stands in the way of a folder.
    """
    yield from _taken(directory, members, ways, replace=replace, own=own)
    yield from (_not_own(path) for path in _foreign(directory))


def _taken(
    directory: Path, members: Collection[str], ways: Mapping[str, str], *, replace: bool, own: Collection[str]
) -> Iterator[OutputError]:
    for name in (*members, MANIFEST):
        path = directory / name.partition("/")[0]
        if not os.path.lexists(path) or is_ours(path) or path.name in own:
            continue
        if "/" in name and not replace:
            way = "move it away, or export with --replace, which puts it aside"
            other = f", or {ways[path.name]}" if path.name in ways else ""
            yield OutputError(f"{path}: was not written by cosyjit; {way}{other}")
        if "/" not in name and not path.is_symlink() and not path.is_file():
            kind = "is a directory" if path.is_dir() else "is not a file"
            yield OutputError(f"{path}: {kind}; move it away, or publish into another directory")


def _make_real(folder: Path) -> None:
    """Make a folder of a set, where a stranger may have put something else."""
    if folder.is_symlink() or not folder.is_dir():
        files.remove(folder)
        files.make_directory(folder)


def _drop_others(folder: Path, members: Collection[str]) -> None:
    """Remove what someone has put into the folders of a set, or was being made there when a process was killed."""
    inside = [path for member in folder.iterdir() for path in _files_of(member)]
    for path in inside:
        if str(path.relative_to(folder)) not in members:
            files.remove(path)


def _adopt(directory: Path, names: Collection[str], folders: Collection[str], own: Collection[str]) -> None:
    """Turn files that stand under these names into links, while each name goes on showing what it does.

    They are left by other exporters, or by cosyjit's own earlier publications if someone replaced a link or copied the
    directory. What stands under the name of a folder is put aside; one of cosyjit's own goes with the set before.
    """
    strange = [name for name in names if os.path.lexists(directory / name) and not is_ours(directory / name)]
    if not strange:
        return
    folder = directory / STATE / "sets" / f"{_BEFORE}{uuid.uuid4().hex}"
    files.make_directory(folder)
    for path in _members(directory):
        if path.name not in strange:
            _repeat(path, folder / path.name)
            for each in _files_of(path):
                files.make_directory(folder / path.name)
                _repeat(each, folder / path.name / each.name)
    # A folder of cosyjit's own goes into the set itself, where nobody looks for it before.
    aside = {name: folder / name for name in strange if name in own and _is_folder(directory / name)}
    for name in (name for name in strange if name not in aside):
        if name in folders:
            aside[name] = _aside(directory / name)
        _show_before(directory, name, folder, aside.get(name))
    _switch(directory, folder.name)
    for name in strange:
        if name in aside:
            _exchange(f"{STATE}/current/{name}", directory / name, aside[name])
        else:
            files.replace_symlink(f"{STATE}/current/{name}", directory / name)


def _show_before(directory: Path, name: str, folder: Path, aside: Path | None) -> None:
    """Let a set show what stands under a name, which may be going to be put aside."""
    path = directory / name
    if aside is not None:
        (folder / name).symlink_to(f"../../../{aside.name}")
    elif path.is_symlink():
        (folder / name).symlink_to(directory.absolute() / path.readlink())
    else:
        _keep(path, folder / name)


def _repeat(path: Path, to: Path) -> None:
    """Let a file or a link in a set be in another set as well."""
    if path.is_symlink():
        to.symlink_to(path.readlink())
    elif path.is_file():
        _keep(path, to)


def _aside(path: Path) -> Path:
    """The first name with a number that is free."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(each for each in numbered if not os.path.lexists(each) or _is_begun(each))


def _is_begun(path: Path) -> bool:
    """Whether a path is the link of an exchange that a process was killed before."""
    return path.is_symlink() and str(path.readlink()) == f"{STATE}/current/{path.stem}" and path.suffix[1:].isdecimal()


def _exchange(target: str, path: Path, aside: Path) -> None:
    """Put what stands at a path aside, and a symbolic link to a target there: in one step where the system can."""
    files.replace_symlink(target, aside)
    with suppress(AttributeError):  # a C library that has no such call
        if not _LIBC.renameat2(_HERE, os.fsencode(aside), _HERE, os.fsencode(path), _EXCHANGE):
            return
    aside.unlink()
    path.rename(aside)
    files.replace_symlink(target, path)


def _keep(path: Path, to: Path) -> None:
    """A second name, or where there are no links a copy, of a file."""
    try:
        os.link(path, to)
    except OSError:
        with files.replacing(to) as file:
            files.copy(path, file)


def is_ours(path: Path) -> bool:
    """Whether a path is a name as `show` makes it, and not another's file, folder or link."""
    return path.is_symlink() and str(path.readlink()) == f"{STATE}/current/{path.name}"


def _leads_to_ours(path: Path) -> bool:
    return path.is_symlink() and str(path.readlink()).startswith(f"{STATE}/current/")


def _switch(directory: Path, name: str) -> None:
    current = directory / STATE / "current"
    if current.is_dir() and not current.is_symlink():  # in a copy of a directory, whose links have become files
        current.rename(current.with_name("sets") / f"{_BEFORE}{uuid.uuid4().hex}")
    files.replace_symlink(f"sets/{name}", current)


def _members(directory: Path) -> list[Path]:
    folder = directory / STATE / "current"
    return list(folder.iterdir()) if folder.is_dir() else []


def _files_of(member: Path) -> list[Path]:
    """What is in a folder of a set."""
    return list(member.iterdir()) if member.is_dir() and not member.is_symlink() else []


def clean(directory: Path) -> None:
    """Remove names, sets and files that are not shown, and what a process that was killed was writing.

    To be called within `writing`, alone.
    """
    for path in _left(directory):
        files.remove(path)
    names = {path.name for path in _members(directory)}
    for path in directory.iterdir():
        if (path.name not in names and is_ours(path)) or _is_begun(path):
            path.unlink()
    state = directory / STATE
    if not os.path.lexists(state / "current"):
        for folder in (state / "sets", state / "files", state):
            with suppress(OSError):  # something of somebody else is in it
                folder.rmdir()


def _left(directory: Path) -> Iterator[Path]:
    """What was being made when a process was killed, and then the sets and files that nothing shown leads to."""
    state = directory / STATE
    yield from (path for path in directory.glob(f".*{files.TEMPORARY}") if _leads_to_ours(path))
    for folder in (state, state / "current"):
        yield from folder.glob(f".*{files.TEMPORARY}")
    inside = [path for member in _members(directory) for path in (member, *_files_of(member))]
    shown = {path.readlink().name for path in (state / "current", *inside) if path.is_symlink()}
    for folder in (state / "sets", state / "files"):
        yield from (path for path in (folder.iterdir() if folder.is_dir() else []) if path.name not in shown)


@contextmanager
def writing(directory: Path, *, shared: bool = False, wait: float | None = None) -> Iterator[None]:
    """Hold the folder that a directory's sets are in, made if missing: alone, or with others that only bring files.

    Args:
        wait: how long others are waited for at most, in s; None for as long as it takes.

    Raises:
        BusyError: they were waited for so long.
        OutputError: the directory cannot be written to, or what is in that folder leads elsewhere.
    """
    state, patience = directory / STATE, Wait(directory, wait)
    try:
        while True:
            _check_own(directory)
            files.make_directory(state)
            try:
                fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:  # another process has removed it right now
                continue
            try:
                others = partial(holders, [os.fstat(fd).st_ino])
                patience.poll(partial(locks.taken, fd, shared=shared), others)
                if _same(fd, state):  # else another process has removed it while we waited
                    _check_own(directory)
                    yield
                    return
            finally:
                os.close(fd)
    except OSError as error:
        raise OutputError(
            f"{directory}: cannot be written to ({error.strerror}); publish into another directory"
        ) from None


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _check_own(directory: Path) -> None:
    for path in _foreign(directory):
        raise _not_own(path)


def _not_own(path: Path) -> OutputError:
    return OutputError(f"{path}: is not as cosyjit makes it, and may lead elsewhere; remove it, and run again")


def _foreign(directory: Path) -> Iterator[Path]:
    """What stands in the folder of a directory's sets in place of a folder, or of the link to one of them."""
    state = directory / STATE
    yield from (path for path in (state, state / "sets", state / "files") if not _is_folder(path))
    link = state / "current"
    if link.is_symlink():
        if not re.fullmatch(_SET, str(link.readlink())):
            yield link
    elif not _is_folder(link):  # which it is in a copy of a directory
        yield link
    yield from (path for path in (state / "sets").glob("*") if path.is_symlink())


def _is_folder(path: Path) -> bool:
    """Whether a path is a directory itself, or nothing."""
    return not os.path.lexists(path) or (path.is_dir() and not path.is_symlink())
