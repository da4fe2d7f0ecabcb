"""Lists and downloads the files of models of Hugging Face: see `hub.Hub`, and `hugging_face_client` for how."""

import logging
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from cosyjit.errors import SourceError
from cosyjit.sources import hub, hugging_face_client
from cosyjit.sources.hub import File, Listing, Model, is_revision, is_size
from cosyjit.sources.hugging_face_client import (
    Client,
    NoRevisionError,
    OtherBytesError,
    client_constants,
    connect,
    incompatible_error,
    patiently,
)
from cosyjit.text import without_password

TITLE: Final = "Hugging Face"
SCHEME: Final = "hf"
EXAMPLE: Final = hugging_face_client.EXAMPLE
FOLDER: Final = "huggingface"

BRANCH: Final = "main"
"""The revision that the hub uses by default."""

_ENDPOINT: Final = "https://huggingface.co"

_LOG: Final = logging.getLogger("cosyjit")


class Entries(NamedTuple):
    """All files of a model at a revision: its commit, and the entries of the list by their names."""

    commit: str
    files: Mapping[str, Mapping[str, Any]]


def listing(model: Model, names: Collection[str]) -> Listing:
    """The named files that a model has at a revision, by one request; see `hub.Hub`.

    All are downloaded at the commit that the revision is now, so the bytes are those that were listed, even if the
    branch moves in the meantime. Of a file in LFS the hub lists the SHA-256, of any other Git's id.
    """
    client = connect(model)
    return read_listing(client, _asked(client), names)


def entries(client: Client) -> Entries:
    """All files of a client's model, by one request.

    Raises:
        SourceUnavailableError: the hub cannot be reached, or is busy.
        SourceError: there is no such model or revision, or access is refused.
    """
    return _read_entries(client, _asked(client))


def _asked(client: Client) -> bytes:
    """What the hub answers about the files of a client's model."""
    model = client.model
    try:
        asked = quote(model.revision or BRANCH, safe="")
        return patiently(client, lambda: client.listed(f"/api/models/{model.id}/revision/{asked}?blobs=true"))
    except NoRevisionError:
        raise _no_revision(client) from None


def read_listing(client: Client, content: bytes, names: Collection[str]) -> Listing:
    """The listing that an answer has, which anyone may have written.

    Raises:
        SourceError: it is not that of a hub, or lists a file without its digest.
    """
    found = _read_entries(client, content)
    files = tuple(_file(client.model, name, found.files[name], found.commit) for name in names if name in found.files)
    return Listing(found.commit, without_password(client.endpoint), files)


def _read_entries(client: Client, content: bytes) -> Entries:
    """The entries that an answer has."""
    info = client.parsed(content)
    commit = info.get("sha") if isinstance(info, dict) else None
    siblings = info.get("siblings") if isinstance(info, dict) else None
    if not is_revision(commit) or not isinstance(siblings, list):
        raise incompatible_error(client, "no commit and no files in its answer")
    return Entries(commit, {each["rfilename"]: each for each in siblings if isinstance(each, dict) and _is_text(each)})


def _is_text(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("rfilename"), str)


def described(entry: Mapping[str, Any]) -> tuple[object, object, object]:
    """What the hub says of a file, true or not: its size, its SHA-256 if it is in LFS, and Git's id if it is not."""
    large = entry.get("lfs")
    if isinstance(large, dict):
        return large.get("size"), large.get("sha256"), None
    return entry.get("size"), None, entry.get("blobId")


def _file(model: Model, name: str, entry: Mapping[str, Any], commit: str) -> File:
    size, sha256, git_sha1 = described(entry)
    digest, digits = (sha256, 64) if git_sha1 is None else (git_sha1, 40)
    if not is_size(size) or not isinstance(digest, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", digest):
        raise SourceError(
            f"{model}: the hub lists {name} without its size and digest, so it cannot be checked; "
            "download it yourself, and give the directory"
        )
    return File(name, size, digest, commit) if digits == 64 else File(name, size, "", commit, digest)  # noqa: PLR2004


def _no_revision(client: Client) -> SourceError:
    """The error of a revision that a model does not have."""
    model, found = client.model, None
    with suppress(NoRevisionError):  # of a list that needs none
        found = client.parsed(patiently(client, lambda: client.listed(f"/api/models/{model.id}/refs")))
    kinds = [found.get(kind) if isinstance(found, dict) else None for kind in ("branches", "tags")]
    known = [each.get("name") for kind in kinds if isinstance(kind, list) for each in kind if isinstance(each, dict)]
    return SourceError(
        f"{model}: {model.id} has no revision {model.revision or BRANCH} on {client.host}; "
        f"it has {hub.some([name for name in known if is_revision(name)])}"
    )


def download(model: Model, file: File, directory: Path) -> Path:
    """Download a file of a model into a directory of its own; see `hub.Hub`.

    It goes on as long as bytes arrive, from where it broke off. Bytes that prove to be others are thrown away, and
    requested anew once.
    """
    client = connect(model)
    _LOG.info("%s: downloading %s of commit %s (%.1f MB)", model, file.name, file.revision, file.size / 1e6)
    path = directory / Path(file.name).name
    part = path.with_name(f"{path.name}.incomplete")
    try:
        if _comes(client, file, part) or _comes(client, file, part):
            with client.writing():
                return part.replace(path)
    except NoRevisionError:
        raise SourceError(
            f"{model}: {client.host} no longer has commit {file.revision}, which it listed; run again"
        ) from None
    raise SourceError(
        f"{model}: {file.name} of commit {file.revision} does not arrive as {client.host} lists it "
        f"({file.size:,} bytes, {'SHA-256' if file.sha256 else 'Git id'} {file.digest}), also when it is downloaded "
        "again; try again later, or tell the model's owner"
    )


def _comes(client: Client, file: File, part: Path) -> bool:
    """Receive all that is missing of a file, and check it. What proves to be other bytes is thrown away.

    Raises:
        SourceUnavailableError: the hub cannot be reached, or is busy.
        NoRevisionError, SourceError, OutputError: see `Client.receive`.
    """
    address = url(client.endpoint, client.model, file)
    with client.writing():
        part.parent.mkdir(parents=True, exist_ok=True)
        part.open("ab").close()
    with suppress(OtherBytesError):
        while part.stat().st_size < file.size:
            patiently(client, lambda: client.receive(address, part, file.size), lambda: part.stat().st_size)
        if file.is_at(part):
            return True
    part.unlink(missing_ok=True)
    return False


def endpoint() -> str:
    """The URL of the hub that would be asked, without credentials."""
    constants = client_constants()
    given = os.environ.get("HF_ENDPOINT") or _ENDPOINT if constants is None else constants.ENDPOINT
    return without_password(given)


def is_offline() -> bool:
    """Whether the client is told to ask nobody."""
    constants = client_constants()
    return constants is not None and constants.HF_HUB_OFFLINE


def url(endpoint: str, model: Model, file: File) -> str:
    """The URL of a file, without credentials if the endpoint has none."""
    return f"{endpoint}/{model.id}/resolve/{quote(file.revision, safe='')}/{quote(file.name)}"


def local_listing(model: Model, names: Collection[str]) -> Listing | None:
    """What the client's own cache has of a model, whatever the hub has by now; see `hub.Hub`."""
    cache = _cache(model)
    if cache is None:
        return None
    with suppress(OSError, UnicodeError):
        asked = model.revision or BRANCH
        known = (cache / "snapshots" / asked).is_dir()
        commit = asked if known else (cache / "refs" / asked).read_text(encoding="ascii").strip()
        if is_revision(commit):
            found = (_cached(cache / "snapshots" / quote(commit, safe=""), name, commit) for name in names)
            files = tuple(each for each in found if each is not None)
            return Listing(commit, without_password(client_constants().ENDPOINT), files) if files else None
    return None


def _cached(directory: Path, name: str, commit: str) -> File | None:
    """A file in a snapshot of the client's cache, where it is a link to bytes that have their digest as a name."""
    try:
        digest = (directory / name).readlink().name
        size = (directory / name).stat().st_size
    except OSError:
        return None
    if re.fullmatch("[0-9a-f]{64}", digest):
        return File(name, size, digest, commit)
    return File(name, size, "", commit, digest) if re.fullmatch("[0-9a-f]{40}", digest) else None


def local_copy(model: Model, file: File) -> Path | None:
    """A file in the client's own cache; see `hub.Hub`."""
    cache = _cache(model)
    path = None if cache is None else Path(os.path.realpath(cache / "blobs" / file.digest))
    return path if path is not None and path.is_file() and path.stat().st_size == file.size else None


def _cache(model: Model) -> Path | None:
    """The directory of a model in the client's own cache
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache); None if there is no client.
    """
    constants = client_constants()
    return None if constants is None else Path(constants.HF_HUB_CACHE, f"models--{model.id.replace('/', '--')}")
