"""What the repositories of all hubs have in common: files by their digests, and commits."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final, NamedTuple, final

from cosyjit.errors import FileChangedError, RepositoryChangedError
from cosyjit.fs import files
from cosyjit.sources import hub, ids
from cosyjit.sources.hub import Model

_LOG: Final = logging.getLogger("cosyjit")

_BLOCK: Final = 1 << 20
"""How much of a file is read at a time, in bytes."""


class File(NamedTuple):
    """A file to be pushed.

    Attributes:
        name: in the repository, with / between its parts.
        size: of its bytes.
        sha256: of its bytes.
        content: where they are, or they themselves.
    """

    name: str
    size: int
    sha256: str
    content: Path | bytes

    def opened(self) -> "Reading":
        """The file, to be read once."""
        return Reading(self)

    def check(self) -> None:
        """Read all of it, to see that it has its digest.

        Raises:
            FileChangedError: it does not have it any more.
        """
        with self.opened() as opened:
            deque(iter(opened.read, b""), maxlen=0)

    def read(self) -> bytes:
        """All of it, for a small file.

        Raises:
            FileChangedError: it does not have its digest any more.
        """
        with self.opened() as opened:
            return b"".join(iter(opened.read, b""))

    def changed(self, reason: str) -> FileChangedError:
        """The error that it is not as it was published."""
        return FileChangedError(
            f"{self.name}: is not as it was published ({reason}); export again to mend it, and push again"
        )

    def git_sha1(self) -> str:
        """Git's id of it.

        Raises:
            FileChangedError: it does not have its digest any more.
        """
        with self.opened() as opened:
            return hub.git_sha1(opened, self.size)


@final
class Reading:
    """A file that is read from its beginning to its end. Its last bytes come only if it has its digest.

    So nothing is uploaded to the end that is not what was published.
    """

    def __init__(self, file: File) -> None:
        self._file, self._left, self._digest = file, file.size, hashlib.sha256()
        self._opened: IO[bytes] | None = None

    def __enter__(self) -> "Reading":
        content = self._file.content
        try:
            self._opened = BytesIO(content) if isinstance(content, bytes) else files.plain(content)
        except OSError as error:
            raise self._file.changed(error.strerror or type(error).__name__) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.close()

    def read(self, size: int = _BLOCK) -> bytes:
        """The next bytes; empty at the end.

        Raises:
            FileChangedError: the file cannot be read, is shorter than it was, or does not have its digest any more.
        """
        if self._opened is None or not self._left:
            return b""
        try:
            block = self._opened.read(min(size if size >= 0 else _BLOCK, self._left))
        except OSError as error:
            raise self._file.changed(error.strerror or type(error).__name__) from None
        self._left -= len(block)
        self._digest.update(block)
        if not block or (not self._left and self._digest.hexdigest() != self._file.sha256):
            raise self._file.changed("it was changed while it was uploaded")
        return block


class Held(NamedTuple):
    """A file of a repository, as its hub lists it.

    Attributes:
        size: of its bytes; None if the hub does not say.
        sha256: of its bytes; None if the hub does not say.
        git_sha1: git's id of it, where the hub has that in place of the SHA-256.
    """

    size: int | None
    sha256: str | None
    git_sha1: str | None = None

    def is_same(self, file: File) -> bool:
        """Whether it has the bytes of a file.

        Raises:
            FileChangedError: the file does not have its digest any more.
        """
        if self.size != file.size:
            return False
        return self.sha256 == file.sha256 if self.sha256 else self.git_sha1 == file.git_sha1()


class Contents(NamedTuple):
    """The files of a branch: its commit, and what it has, by name."""

    commit: str
    files: Mapping[str, Held]


class Repository(ABC):
    """A branch of a repository of a hub.

    Attributes:
        model: the id, with the branch.
        branch: its name.
        endpoint: the URL of the hub, without credentials; known once it was asked.
        default: the name of the hub's default branch.
    """

    default: str

    def __init__(self, model: Model) -> None:
        self.branch = model.revision or self.default
        self.model, self.endpoint = replace(model, revision=self.branch), ""

    def __str__(self) -> str:
        return str(self.model)

    @property
    def host(self) -> str:
        """The name of the hub's host, as messages show it."""
        return hub.host(self.endpoint)

    @abstractmethod
    def contents(self) -> Contents:
        """What the branch has now, by one request.

        Raises:
            SourceUnavailableError: the hub cannot be reached, or is busy.
            SourceError: there is no such repository or branch, or access is refused.
        """

    @abstractmethod
    def commit(self, added: Sequence[File], removed: Collection[str], message: str, before: Contents) -> str:
        """Upload files, and then add and remove files by one commit, of which nobody sees a part.

        Args:
            added: the files that are added or replaced.
            removed: the names of those that are removed.
            message: that of the commit.
            before: what the branch had when it was decided what to add and to remove.

        Returns:
            The new commit.

        Raises:
            RepositoryChangedError: others have pushed to the branch meanwhile.
            SourceUnavailableError: the hub cannot be reached, or is busy.
            SourceError: the hub refuses.
            FileChangedError: a file does not have its digest any more. As after any error, the branch is as it was.
        """

    def read(self, name: str, held: Held, commit: str) -> bytes:
        """A small file of a commit, as it is listed.

        Raises:
            SourceUnavailableError: the hub cannot be reached, or is busy.
            SourceError: the hub does not have it, refuses, or sends something else.
            OutputError: there is no room for it on this machine.
        """
        file = hub.File(name, held.size or 0, held.sha256 or "", commit, held.git_sha1 or "")
        with TemporaryDirectory(prefix="cosyjit-") as directory:
            return ids.hub_of(self.model).download(self.model, file, Path(directory)).read_bytes()

    def moved(self) -> RepositoryChangedError:
        """The error that others have pushed to the branch."""
        return RepositoryChangedError(f"{self}: others push to it at the same time; run again")

    def tell(self, file: File) -> None:
        """Tell the log that a file is uploaded."""
        _LOG.info("%s: uploading %s (%.1f MB)", self, file.name, file.size / 1e6)
