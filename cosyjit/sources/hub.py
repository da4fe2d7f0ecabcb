"""What all hubs have in common: models, their files, and what a module for a hub has to do.

A module for a hub imports the hub's own client where it is used, since that takes 0.3 s, and lets it find its endpoint
and its token by itself, in the environment or in the file of a login; no token is kept by us. Our messages have only
the kinds and numbers of its errors, since the texts of these quote requests and answers.
"""

import errno
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeGuard
from urllib.parse import urlsplit

from cosyjit.errors import OutputError
from cosyjit.fs.files import plain
from cosyjit.fs.hashing import sha256_of
from cosyjit.text import without_password

REVISION: Final = r"[A-Za-z0-9][A-Za-z0-9_.+-]*(/[A-Za-z0-9_+-][A-Za-z0-9_.+-]*)*"
"""The form of a revision: a branch, tag or commit."""

_LONGEST: Final = 96
"""The most characters of a revision, since it becomes part of a file name."""

_NAMED: Final = 10
"""How many revisions of a model a message names."""

_LARGEST: Final = 1 << 60
"""In bytes; no disk has room for such a file."""

_DISK: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors of this machine's disk. After many tries a client reports them as errors of the hub."""

_BLOCK: Final = 1 << 20
"""How much of a file is read at a time, in bytes."""


@dataclass(frozen=True)
class Model:
    """A model as the user names it.

    Attributes:
        id: owner and name, such as "iic/CosyVoice-300M".
        revision: a branch, tag or commit; for None, the hub's default branch.
        scheme: what stands before the id and a colon, and tells the hub; "" for ModelScope.
    """

    id: str
    revision: str | None = None
    scheme: str = ""

    def __str__(self) -> str:
        return self.at(self.revision)

    def at(self, revision: str | None) -> str:
        """The name of the model at a revision, as a user writes it."""
        name = f"{self.scheme}:{self.id}" if self.scheme else self.id
        return name if revision is None else f"{name}@{revision}"


class File(NamedTuple):
    """A file of a model.

    Attributes:
        name: with / between its parts.
        size: of its bytes.
        sha256: of its bytes; "" if the hub lists only Git's id.
        revision: the commit to download it at.
        git_sha1: Git's id of it, in hex; "" if the hub lists its SHA-256.
    """

    name: str
    size: int
    sha256: str
    revision: str
    git_sha1: str = ""

    @property
    def digest(self) -> str:
        """What the hub lists, in hex: a SHA-256 has 64 digits, and Git's id 40."""
        return self.sha256 or self.git_sha1

    def is_at(self, path: Path) -> bool:
        """Whether the file at a path has these bytes, all of which are read.

        Raises:
            OSError: it cannot be read.
        """
        with plain(path) as file:
            if self.sha256:
                return sha256_of(file) == self.sha256
            return path.stat().st_size == self.size and git_sha1(file, self.size) == self.git_sha1


class Listing(NamedTuple):
    """Files of a model at a revision.

    Attributes:
        revision: the commit.
        endpoint: the URL of the hub that listed them, without credentials.
        files: those of the requested files that exist.
    """

    revision: str
    endpoint: str
    files: tuple[File, ...]


class Hub(Protocol):
    """A module for a hub."""

    @property
    def TITLE(self) -> str:  # noqa: N802  (constants of a module)
        """The name of the hub in messages."""

    @property
    def SCHEME(self) -> str:  # noqa: N802
        """What its ids begin with, before a colon; "" for none."""

    @property
    def EXAMPLE(self) -> str:  # noqa: N802
        """An id, as messages show one."""

    @property
    def FOLDER(self) -> str:  # noqa: N802
        """The name of the directory of its models, below ~/.cache/cosyjit."""

    def listing(self, model: Model, names: Collection[str]) -> Listing:
        """The named files that a model has at a revision, as the hub lists them now.

        Raises:
            SourceUnavailableError: the hub cannot be reached, or is busy.
            SourceError: there is no such model or revision, or access is refused.
        """

    def download(self, model: Model, file: File, directory: Path) -> Path:
        """Download a file into a directory of its own, and check that its bytes are those that were listed.

        If the download fails or the process is killed, the next call resumes it.

        Raises:
            SourceUnavailableError: the hub cannot be reached, or is busy.
            SourceError: the hub sends other bytes than it listed, or refuses.
            OutputError: the directory cannot be written to.
        """

    def url(self, endpoint: str, model: Model, file: File) -> str:
        """The URL of a file, without credentials."""

    def local_listing(self, model: Model, names: Collection[str]) -> Listing | None:
        """The named files that the client's own cache has of a model; None if it has none."""

    def local_copy(self, model: Model, file: File) -> Path | None:
        """A file in the client's own cache, which may have other bytes by now; None if there is none."""


def is_revision(value: object) -> TypeGuard[str]:
    """Whether a value may be the name of a revision: a text that cannot lead out of a directory."""
    return (
        isinstance(value, str)
        and len(value) <= _LONGEST
        and ".." not in value
        and re.fullmatch(REVISION, value) is not None
    )


def is_size(value: object) -> TypeGuard[int]:
    """Whether a value may be the size of a file, in bytes."""
    return type(value) is int and 0 <= value < _LARGEST


def some(revisions: Sequence[str]) -> str:
    """The first revisions of a model, and how many more there are."""
    more = f" and {len(revisions) - _NAMED} more" if len(revisions) > _NAMED else ""
    return f"{', '.join(revisions[:_NAMED]) or 'none'}{more}"


def host(endpoint: str) -> str:
    """The name of the host in an endpoint, with its port, as messages show it."""
    return urlsplit(without_password(endpoint)).netloc


def received(directory: Path) -> int:
    """How many bytes of a download are in its directory."""
    try:
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    except OSError:
        return 0


class Readable(Protocol):
    """What bytes can be read from, such as an open file."""

    def read(self, size: int, /) -> bytes:
        """The next bytes; empty at the end."""


def git_sha1(file: Readable, size: int) -> str:
    """Git's id of an open file of a size, in hex (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def is_of_disk(error: OSError) -> bool:
    """Whether an error is that this machine's disk is full or read-only."""
    return error.errno in _DISK


def disk_error(what: str, error: OSError) -> OutputError:
    """The error of a download that cannot be written."""
    reason = error.strerror or type(error).__name__
    return OutputError(f"{what}: the download cannot be written ({reason}); make room, and run again")
