"""Where a store keeps its files: a directory of this machine, a bucket of S3, or a URL that fsspec knows.

In all of them a name leads to a whole file or to none, whenever someone looks and whenever the writer is killed. A
local file is written under another name, flushed to the disk and renamed. A file system of fsspec is expected to show a
file once it is complete, as object stores do.
"""

import errno
import os
import re
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedIOBase, BufferedReader, FileIO, RawIOBase, UnsupportedOperation
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit.fs import files
from cosyjit.fs.roots import Root
from cosyjit.store.remote_errors import RangeError, UnavailableError, translated_errors


class Entry(NamedTuple):
    """A file: its name below the root, its size in bytes, and the time of its last change, in seconds since 1970."""

    name: str
    size: int
    modified: float


class Storage(ABC):
    """Files by their names below a root. All of these raise OSError.

    A file that is not there is a FileNotFoundError; something that is not a file, or is too large for a document, is a
    `files.NotAFileError`.
    """

    def check(self) -> None:  # noqa: B027  (most have nothing to check)
        """Make sure that the place itself is there, so that a file which is not found is not there."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a small file."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a small file, or replace it."""

    @abstractmethod
    def add(self, file: Path, name: str) -> None:
        """Take over a local file, which may be gone afterwards; it is read-only from now on."""

    @abstractmethod
    def open(self, name: str) -> FileIO | BufferedIOBase:
        """An open file, to be read in pieces."""

    @abstractmethod
    def entries(self, folder: str = "") -> Iterator[Entry]:
        """All files below a folder; none if there is no such folder."""

    @abstractmethod
    def names(self) -> set[str] | None:
        """The names of the files and folders directly below the root; None if that is not there."""

    def strange(self, folder: str, folders: str = "") -> Iterator[str]:  # noqa: ARG002  (most have files alone)
        """The names below a folder that are not files, such as links.

        Args:
            folder: where to look.
            folders: the form of the names of folders that belong there.
        """
        yield from ()

    @abstractmethod
    def move(self, name: str, to: str) -> None:
        """Give a file another name."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def modified(self, name: str) -> float:
        """When a file was last changed, in s since 1970."""

    def check_size(self, name: str, size: int) -> None:  # noqa: B027  (most give the whole file or an error)
        """Make sure that a file has no more bytes than the ones that were read of it."""

    def renew(self, name: str, age: float) -> None:  # noqa: ARG002  (most cannot)
        """Set the time of a file to now if it was not changed for so many seconds, where that can be done."""
        self.open(name).close()

    def try_write(self) -> None:
        """Try whether a file could be written, and leave nothing.

        Raises:
            UnsupportedOperation: that cannot be tried without leaving something.
        """
        raise UnsupportedOperation("a trial would leave something")

    def uploads(self) -> Iterator[Entry]:
        """The uploads of files that are not complete, which are not entries; `remove` knows these names as well."""
        yield from ()


_LARGEST: Final = 64 << 20
"""In bytes, the largest document that is read: more than any of cosyjit's own."""

_BLOCK: Final = 4096
"""In bytes, what a trial writes: what a full disk has no room for."""

_UPLOAD: Final = "?uploadId="
"""What is between a file's name and the identifier of an upload of it."""


class Local(Storage):
    """Files in a directory, which the first write makes. No link in it is followed, see `cosyjit.fs.roots`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.below = Root(root)

    def read(self, name: str) -> bytes:
        return self.below.read(name, _LARGEST)

    def write(self, name: str, content: bytes) -> None:
        with self.below.replacing(name, sync=True) as file:
            file.write(content)

    def add(self, file: Path, name: str) -> None:
        with file.open("rb") as complete:
            os.fsync(complete.fileno())
            os.fchmod(complete.fileno(), os.fstat(complete.fileno()).st_mode & 0o555)
        try:
            self.below.take(file, name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with self.below.replacing(name, sync=True) as copy:
                files.copy(file, copy)
                os.fchmod(copy.fileno(), os.fstat(copy.fileno()).st_mode & 0o555)

    def open(self, name: str) -> FileIO:
        return self.below.open(name)

    def entries(self, folder: str = "") -> Iterator[Entry]:
        for name, found in self.below.walk(folder):
            if stat.S_ISREG(found.st_mode):
                yield Entry(name, found.st_size, found.st_mtime)

    def names(self) -> set[str] | None:
        try:
            return set(self.below.names(""))
        except FileNotFoundError:
            return None

    def strange(self, folder: str, folders: str = "") -> Iterator[str]:
        for name, found in self.below.walk(folder):
            own = stat.S_ISDIR(found.st_mode) and re.fullmatch(folders, name)
            if not stat.S_ISREG(found.st_mode) and not own:
                yield name

    def move(self, name: str, to: str) -> None:
        self.below.move(name, to)

    def remove(self, name: str) -> None:
        self.below.remove(name)

    def modified(self, name: str) -> float:
        return self.below.stat(name).st_mtime

    def try_write(self) -> None:
        try:
            with files.unnamed(files.nearest_directory(self.root)) as file:
                file.write(bytes(_BLOCK))
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            super().try_write()


class Remote(Storage):
    """Files behind a URL that fsspec knows."""

    _uploading: Mapping[str, int] = {}
    """The options of an upload."""

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec  # a tenth of a second, which local stores do without

        self._system, self._root = fsspec.url_to_fs(url, **options)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Translate errors of the requests in the block, once the place is known to be there."""
        with translated_errors():
            self.check()
            yield

    def read(self, name: str) -> bytes:
        content = b""
        with suppress(RangeError), self._asked():
            content = self._system.cat_file(self._path(name), start=0, end=_LARGEST + 1)
        if len(content) > _LARGEST:
            raise files.NotAFileError(errno.EFBIG, f"more than {_LARGEST:,} bytes")
        return content

    def write(self, name: str, content: bytes) -> None:
        with self._asked():
            self._system.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> None:
        """Write a small file that is not there.

        If two do so at once, one fails, where the file system sees to that: S3 does. Others look before they write,
        which leaves a moment in between.

        Raises:
            FileExistsError: it is there.
            UnsupportedOperation: the file system cannot create a file exclusively.
        """
        with self._asked():
            try:
                self._system.pipe_file(self._path(name), content, mode="create")
            except (TypeError, NotImplementedError):
                raise UnsupportedOperation("the file system cannot create a file exclusively") from None

    def add(self, file: Path, name: str) -> None:
        with self._asked():
            self._system.put_file(str(file), self._path(name), **self._uploading)

    def open(self, name: str) -> BufferedIOBase:
        with self._asked():
            return BufferedReader(_Opened(self._system.open(self._path(name), "rb")))

    def entries(self, folder: str = "") -> Iterator[Entry]:
        with self._asked():
            self._system.invalidate_cache()
            found = self._system.find(self._path(folder), detail=True)
        for path, info in found.items():
            name = path.removeprefix(self._path(""))
            if name != path and not name.endswith("/"):  # consoles make objects of such names for folders
                yield Entry(name, int(info["size"]), _modified(info))

    def names(self) -> set[str] | None:
        with suppress(FileNotFoundError), self._asked():
            self._system.invalidate_cache()
            found = self._system.ls(self._path(""), detail=False)
            return {name.rstrip("/").rpartition("/")[2] for name in found}
        return None

    def move(self, name: str, to: str) -> None:
        with self._asked():
            self._system.mv(self._path(name), self._path(to))

    def remove(self, name: str) -> None:
        with self._asked(), suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def modified(self, name: str) -> float:
        with self._asked():
            return _modified(self._system.info(self._path(name)))

    def check_size(self, name: str, size: int) -> None:
        with self._asked():
            _check_size(size, self._system.info(self._path(name))["size"])


class S3(Remote):
    """Files in a bucket, reached as the environment and the configuration of AWS's clients say, or that of fsspec.

    An object is visible once it is complete. A large one is sent in parts, and the parts of an upload that failed are
    removed. A request is repeated after a transient error, such as a busy server or a lost connection, after longer and
    longer waits.
    """

    # While a file is sent, twice so much is in memory: 70 MB. S3 takes 10,000 parts, which are 84 GB.
    _uploading: Mapping[str, int] = {"chunksize": 8 << 20, "max_concurrency": 4}

    _options: Mapping[str, Any] = {
        "skip_instance_cache": True,  # for the present credentials, not those of the first store in this process
        "use_listings_cache": False,  # others write as well
        "max_concurrency": 1,  # of reads: with more, the size is requested before each document
        "default_block_size": 16 << 20,
    }
    # Botocore's tries: the mode "standard" does not repeat a request after status 429.
    _config: Mapping[str, Any] = {
        "connect_timeout": 5,
        "read_timeout": 30,  # the end of a file may still be on its way
        "retries": {"mode": "legacy", "total_max_attempts": 5},
    }
    # The tries of s3fs, each of so many of botocore's: they include bodies that break off.
    _retries = 2

    def __init__(self, url: str) -> None:
        from fsspec.config import conf

        configured = {**conf.get("s3", {}), **conf.get("s3a", {})}
        options = {name: value for name, value in self._options.items() if name not in configured}
        try:
            super().__init__(url, **options, config_kwargs={**self._config, **configured.get("config_kwargs", {})})
        except ImportError:
            raise ImportError("install cosyjit[s3]") from None
        self._system.retries = self._retries
        self._bucket, self._prefix, _ = self._system.split_path(self._path(""))
        if not re.fullmatch(r"[A-Za-z0-9._-]+|arn:.+", self._bucket) or "" in self._root.split("/"):
            raise ValueError("no bucket has such a name, or no file in it")
        self._checked = False

    def check(self) -> None:
        if not self._checked:
            with translated_errors():  # by a list, which a user who can see a prefix only may request
                self._system.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            self._checked = True

    def add(self, file: Path, name: str) -> None:
        size = file.stat().st_size
        try:
            super().add(file, name)
        except FileNotFoundError:
            # If the answer to the end of an upload is lost, botocore repeats the request, and the upload is gone.
            with self._asked():
                if self._system.info(self._path(name))["size"] != size:
                    raise

    def move(self, name: str, to: str) -> None:
        with self._asked():
            self._system.cp_file(self._path(name), self._path(to))
            self._system.rm_file(self._path(name))

    def renew(self, name: str, age: float) -> None:
        if time.time() - self.modified(name) > age:
            with suppress(PermissionError), self._asked():  # a user who can only read relies on nothing for long
                self._system.cp_file(self._path(name), self._path(name), MetadataDirective="REPLACE")

    def uploads(self) -> Iterator[Entry]:
        with (
            suppress(PermissionError, UnsupportedOperation),
            self._asked(),
        ):  # its owner may see to them
            answer = self._system.call_s3("list_multipart_uploads", Bucket=self._bucket, Prefix=self._prefix)
            for each in answer.get("Uploads", []):  # a thousand at most; the next time returns others
                name = f"{each['Key'].removeprefix(self._prefix)}{_UPLOAD}{each['UploadId']}"
                yield Entry(name, 0, each["Initiated"].timestamp())

    def try_write(self) -> None:
        with self._asked():  # an upload that is given up leaves nothing, not even a version of an object
            key = f"{self._prefix}tmp/{uuid.uuid4().hex}"
            begun = self._system.call_s3("create_multipart_upload", Bucket=self._bucket, Key=key)
            self._system.abort_mpu(self._bucket, key, begun["UploadId"])

    def remove(self, name: str) -> None:
        name, _, upload = name.partition(_UPLOAD)
        if not upload:
            super().remove(name)
            return
        with self._asked(), suppress(FileNotFoundError):
            self._system.abort_mpu(self._bucket, f"{self._prefix}{name}", upload)


class _Opened(RawIOBase):
    """An open file of fsspec, whose errors are those of a storage."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with translated_errors():
            count = int(self._file.readinto(buffer))
            if not count and len(buffer):
                _check_size(self._file.tell(), self._file.size)
            return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _check_size(read: int, size: int) -> None:
    """Make sure that all of a file was read: an answer may be cut short, with a length that agrees with it."""
    if read != size:
        raise UnavailableError(f"an answer has {read} bytes of {size}")


def _modified(info: dict[str, Any]) -> float:
    """When a file was changed, by the names that fsspec's file systems have for that."""
    for name in ("LastModified", "modified", "mtime", "created"):
        if name in info:
            moment = info[name]
            return float(moment.timestamp() if hasattr(moment, "timestamp") else moment)
    raise OSError(f"the file system tells no time of change for {info['name']}")


def storage(root: str) -> Storage:
    """The storage at a path or URL."""
    if b"\0" in os.fsencode(root):
        raise ValueError("a NUL in its name")
    root = root.removeprefix("file://")
    if re.match(r"[^/]*://[^/@]*:[^/@]*@", root):
        raise ValueError("a password in its URL, which would be shown to many; leave it to the environment")
    if root.startswith(("s3://", "s3a://")):
        return S3(root)
    if "://" in root:
        return Remote(root)
    return Local(Path(root).expanduser().absolute())
