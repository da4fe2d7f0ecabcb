"""The symbolic links by which a directory shows one whole set of files, and switches to another in one step.

    llm.llm.fp32.zip              -> .cosyjit/current/llm.llm.fp32.zip
    cosyjit.json                  -> .cosyjit/current/cosyjit.json
    .cosyjit/current              -> sets/<set>
    .cosyjit/sets/<set>/cosyjit.json
    .cosyjit/sets/<set>/llm.llm.fp32.zip -> ../../files/<sha256>
    .cosyjit/sets/<set>/vllm/config.json -> ../../../files/<sha256>
    .cosyjit/files/<sha256>

A stranger may be able to write to the directory, so nothing is written or deleted through a link that leads out of
`.cosyjit`.

The names are symbolic links through `current`, which is replaced by a rename. Nobody sees a set that it does not lead
to.

Files are not flushed to the disk, as in a plain copy. After the machine has been started again, their digests are taken
anew, so that a file that a power failure cut short is noticed.
"""

import ctypes
import itertools
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
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
"""How long the set before is kept, in s, for readers that are just following the links to it."""

_HERE: Final = -100
_EXCHANGE: Final = 2
"""AT_FDCWD and RENAME_EXCHANGE, for `renameat2`, which the standard library does not have."""

_LIBC: Final = ctypes.CDLL(None)

_LONGEST_NAME: Final = 255
"""In bytes, what Linux takes for the name of a file."""

_BEFORE: Final = "before."
"""The prefix of sets that hold the files which the directory had before it showed a set."""


class Layout:
    """The files by which a directory shows sets.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def live_set(self) -> str | None:
        """The name of the set that a directory shows; None if it shows none."""
        try:
            target = str((self.path / STATE / "current").readlink())
        except OSError:
            return None
        found = re.fullmatch(_SET, target)
        return None if found is None or found[1].startswith(_BEFORE) else found[1]

    def document(self, name: str) -> Path:
        """Where the document of a set is."""
        return self.path / STATE / "sets" / name / MANIFEST

    def file(self, digest: str) -> Path:
        """Where the file of a digest is, if it is in a set or going to be."""
        return self.path / STATE / "files" / digest

    def switch(
        self,
        name: str,
        content: bytes,
        members: Mapping[str, str],
        *,
        replace: bool = False,
        own: Collection[str] = (),
        aside: Mapping[str, str] | None = None,
    ) -> None:
        """Make a set of files that are there, and switch to it. To be called within `writing`, alone.

        Args:
            name: of the set.
            content: of its document.
            members: the names to show, and the digests of their files; "vllm/config.json" is a file in a folder.
            replace, own: see `check_names`.
            aside: the names of what must not stand beside the set, and those that it is kept under, from `free_name`.

        Raises:
            OutputError: something stands under a name that is not to be replaced, or cannot be put aside; nothing was
                changed.
            OSError: the directory cannot be written to; it shows one whole set.
        """
        names = [*dict.fromkeys(member.partition("/")[0] for member in members), MANIFEST]
        self.check_names(members, replace=replace, own=own)
        manifest = self.document(name)
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
        self._adopt(dict.fromkeys((*names, *own)), folders, own)
        for member in names:
            files.replace_symlink(f"{STATE}/current/{member}", self.path / member)
        with self._without(aside or {}, name):
            self._lead_to(name)
        time.sleep(_GRACE)
        self.clean()

    def check_names(self, members: Collection[str], *, replace: bool = False, own: Collection[str] = ()) -> None:
        """Raise an error if something stands under a name that is not to be replaced.

        Args:
            members: see `switch`.
            replace: whether what stands where a folder is to be shown is put aside, under its name with a number.
            own: the names of files and folders that are cosyjit's own copies, not links; none is put aside.

        Raises:
            OutputError: something else stands there, or, where a file is to be shown, something that is not a file.
        """
        for path, problem in self._taken(members, replace=replace, own=own):
            raise OutputError(f"{path}: {problem}")

    def obstacles(
        self,
        members: Collection[str],
        hint: Callable[[Collection[str]], str | None],
        *,
        replace: bool = False,
        own: Collection[str] = (),
    ) -> Iterator[OutputError]:
        """The errors that `writing` and `switch` would raise; nothing is written.

        Args:
            members, replace, own: see `check_names`.
            hint: what else can be done where something stands under some names.
        """
        taken = list(self._taken(members, replace=replace, own=own))
        other = hint([path.name for path, _ in taken]) if taken else None
        yield from (OutputError(f"{path}: {problem}{f', or {other}' if other else ''}") for path, problem in taken)
        yield from (_not_own(path) for path in self._foreign())

    def matching(self, names: re.Pattern[str]) -> list[str]:
        """The names in the directory that match a pattern, whatever stands under them."""
        return sorted(path.name for path in self.path.iterdir() if names.fullmatch(path.name))

    def free_name(self, name: str) -> str:
        """The name under which what stands under a name can be kept: the same with a number.

        Raises:
            OutputError: that would be longer than names may be.
        """
        free = _aside(self.path / name).name
        if len(os.fsencode(free)) > _LONGEST_NAME:
            raise OutputError(
                f"{self.path / name}: cannot be put aside under a longer name, such as {free}; move it away, and run "
                "again"
            )
        return free

    def put_aside(self, aside: Mapping[str, str]) -> None:
        """Give things other names: all of them or none.

        Args:
            aside: their names, and those that they are kept under, from `free_name`.

        Raises:
            OutputError: one of them cannot be put aside.
        """
        moved: dict[Path, Path] = {}
        try:
            self._move(aside, moved)
        except BaseException:
            _put_back(moved)
            raise

    def clean(self) -> None:
        """Remove names, sets and files that are not shown, and what a process that was killed was writing.

        To be called within `writing`, alone.
        """
        for path in self._left():
            files.remove(path)
        names = {path.name for path in self._members()}
        for path in self.path.iterdir():
            if (path.name not in names and is_ours(path)) or _is_begun(path):
                path.unlink()
        state = self.path / STATE
        if not os.path.lexists(state / "current"):
            for folder in (state / "sets", state / "files", state):
                with suppress(OSError):  # something of somebody else is in it
                    folder.rmdir()

    @contextmanager
    def writing(self, *, shared: bool = False, wait: float | None = None) -> Iterator[None]:
        """Hold the lock of the directory, alone or with others that only stage files; make its folder if it is missing.

        Args:
            wait: how long others are waited for at most, in s; None for as long as it takes.

        Raises:
            BusyError: they were waited for so long.
            OutputError: the directory cannot be written to, or what is in that folder leads elsewhere.
        """
        state, patience = self.path / STATE, Wait(self.path, wait)
        try:
            while True:
                self._check_own()
                files.make_directory(state)
                try:
                    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                except FileNotFoundError:  # another process has removed it right now
                    continue
                try:
                    others = partial(holders, [os.fstat(fd).st_ino])
                    patience.poll(partial(locks.taken, fd, shared=shared), others)
                    if _same(fd, state):  # else another process has removed it while we waited
                        self._check_own()
                        yield
                        return
                finally:
                    os.close(fd)
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written to ({error.strerror}); publish into another directory"
            ) from None

    def _taken(self, members: Collection[str], *, replace: bool, own: Collection[str]) -> Iterator[tuple[Path, str]]:
        """What stands under names and is not to be replaced, and what to do about it."""
        for name in (*members, MANIFEST):
            path = self.path / name.partition("/")[0]
            if not os.path.lexists(path) or is_ours(path) or path.name in own:
                continue
            if "/" in name and not replace:
                way = "move it away, or export with --replace, which puts it aside"
                yield path, f"was not written by cosyjit; {way}"
            if "/" not in name and not path.is_symlink() and not path.is_file():
                kind = "is a directory" if path.is_dir() else "is not a file"
                yield path, f"{kind}; move it away, or publish into another directory"

    def _adopt(self, names: Collection[str], folders: Collection[str], own: Collection[str]) -> None:
        """Turn files that stand under these names into links, while each name goes on showing what it does.

        They are left by other exporters, or by cosyjit's own earlier publications if someone replaced a link or copied
        the directory. What stands under the name of a folder is put aside; one of cosyjit's own goes with the set
        before.
        """
        strange = [name for name in names if os.path.lexists(self.path / name) and not is_ours(self.path / name)]
        if not strange:
            return
        folder = self.path / STATE / "sets" / f"{_BEFORE}{uuid.uuid4().hex}"
        files.make_directory(folder)
        for path in self._members():
            if path.name not in strange:
                _repeat(path, folder / path.name)
                for each in _files_of(path):
                    files.make_directory(folder / path.name)
                    _repeat(each, folder / path.name / each.name)
        # A folder of cosyjit's own goes into the set itself, where nobody looks for it before.
        aside = {name: folder / name for name in strange if name in own and _is_folder(self.path / name)}
        for name in (name for name in strange if name not in aside):
            if name in folders:
                aside[name] = _aside(self.path / name)
            self._show_before(name, folder, aside.get(name))
        self._lead_to(folder.name)
        for name in strange:
            if name in aside:
                _exchange(f"{STATE}/current/{name}", self.path / name, aside[name])
            else:
                files.replace_symlink(f"{STATE}/current/{name}", self.path / name)

    @contextmanager
    def _without(self, aside: Mapping[str, str], name: str) -> Iterator[None]:
        """Put things aside before the directory switches to a set, so that they are never seen beside it.

        If it does not switch, they are put back.
        """
        moved: dict[Path, Path] = {}
        try:
            self._move(aside, moved)
            yield
        except BaseException:
            if self.live_set() != name:
                _put_back(moved)
            raise

    def _move(self, aside: Mapping[str, str], moved: dict[Path, Path]) -> None:
        """See `put_aside`; where each is now and where it was is added to `moved`, also if the next one fails."""
        for path, to in ((self.path / each, self.path / kept) for each, kept in aside.items()):
            try:
                path.rename(to)
            except OSError as error:
                raise OutputError(
                    f"{path}: was made from another file than is published, and cannot be put aside "
                    f"({error.strerror}); move it away, and run again"
                ) from None
            moved[to] = path

    def _show_before(self, name: str, folder: Path, aside: Path | None) -> None:
        """Let a set show the file or folder that has a name now, or will be put aside."""
        path = self.path / name
        if aside is not None:
            (folder / name).symlink_to(f"../../../{aside.name}")
        elif path.is_symlink():
            (folder / name).symlink_to(self.path.absolute() / path.readlink())
        else:
            _keep(path, folder / name)

    def _lead_to(self, name: str) -> None:
        current = self.path / STATE / "current"
        if current.is_dir() and not current.is_symlink():  # in a copy of a directory, whose links have become files
            current.rename(current.with_name("sets") / f"{_BEFORE}{uuid.uuid4().hex}")
        files.replace_symlink(f"sets/{name}", current)

    def _members(self) -> list[Path]:
        folder = self.path / STATE / "current"
        return list(folder.iterdir()) if folder.is_dir() else []

    def _left(self) -> Iterator[Path]:
        """What was being made when a process was killed, and then the sets and files that nothing shown leads to."""
        state = self.path / STATE
        yield from (path for path in self.path.glob(f".*{files.TEMPORARY}") if _leads_to_ours(path))
        for folder in (state, state / "current"):
            yield from folder.glob(f".*{files.TEMPORARY}")
        inside = [path for member in self._members() for path in (member, *_files_of(member))]
        shown = {path.readlink().name for path in (state / "current", *inside) if path.is_symlink()}
        for folder in (state / "sets", state / "files"):
            yield from (path for path in (folder.iterdir() if folder.is_dir() else []) if path.name not in shown)

    def _check_own(self) -> None:
        for path in self._foreign():
            raise _not_own(path)

    def _foreign(self) -> Iterator[Path]:
        """What stands in the folder of a directory's sets in place of a folder, or of the link to one of them."""
        state = self.path / STATE
        yield from (path for path in (state, state / "sets", state / "files") if not _is_folder(path))
        link = state / "current"
        if link.is_symlink():
            if not re.fullmatch(_SET, str(link.readlink())):
                yield link
        elif not _is_folder(link):  # which it is in a copy of a directory
            yield link
        yield from (path for path in (state / "sets").glob("*") if path.is_symlink())


def _make_real(folder: Path) -> None:
    """Make a folder of a set, where a stranger may have put something else."""
    if folder.is_symlink() or not folder.is_dir():
        files.remove(folder)
        files.make_directory(folder)


def _drop_others(folder: Path, members: Collection[str]) -> None:
    """Remove files in the folders of a set that do not belong to it."""
    inside = [path for member in folder.iterdir() for path in _files_of(member)]
    for path in inside:
        if str(path.relative_to(folder)) not in members:
            files.remove(path)


def _put_back(moved: Mapping[Path, Path]) -> None:
    for to, path in moved.items():
        with suppress(OSError):
            to.rename(path)


def _repeat(path: Path, to: Path) -> None:
    """Put a file or a link of a set into another set as well."""
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
    """Give a file a second name; copy it where the file system has no hard links."""
    try:
        os.link(path, to)
    except OSError:
        with files.replacing(to) as file:
            files.copy(path, file)


def is_ours(path: Path) -> bool:
    """Whether a path is a name as `Layout.switch` makes it, and not another's file, folder or link."""
    return path.is_symlink() and str(path.readlink()) == f"{STATE}/current/{path.name}"


def _leads_to_ours(path: Path) -> bool:
    return path.is_symlink() and str(path.readlink()).startswith(f"{STATE}/current/")


def _files_of(member: Path) -> list[Path]:
    """What is in a folder of a set."""
    return list(member.iterdir()) if member.is_dir() and not member.is_symlink() else []


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _not_own(path: Path) -> OutputError:
    return OutputError(f"{path}: is not as cosyjit makes it, and may lead elsewhere; remove it, and run again")


def _is_folder(path: Path) -> bool:
    """Whether a path is a directory itself, or nothing."""
    return not os.path.lexists(path) or (path.is_dir() and not path.is_symlink())
