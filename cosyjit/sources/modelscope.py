"""Lists and downloads the files of models of ModelScope, through its own client: see `hub.Hub`."""

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus

from cosyjit.errors import CosyjitError, SourceError, SourceUnavailableError, causes
from cosyjit.sources import hub
from cosyjit.sources.hub import File, Listing, Model, is_revision
from cosyjit.text import without_password

if TYPE_CHECKING:
    from modelscope_hub import HubApi

TITLE: Final = "ModelScope"
SCHEME: Final = ""
EXAMPLE: Final = "iic/CosyVoice-300M"
FOLDER: Final = "modelscope"

BRANCH: Final = "master"
"""The revision that the hub uses by default."""

_FOLDER_TYPE: Final = "tree"
"""What the hub lists a folder as."""

_LOG: Final = logging.getLogger("cosyjit")


def listing(model: Model, names: Collection[str]) -> Listing:
    """The named files that a model has at a revision, as the hub lists them now.

    Each file has the commit that last changed it, and is downloaded at that commit. So the bytes are those that were
    listed, even if the branch moves in the meantime. The commit of the listing is that of the newest change
    that it shows. (If the history has merges, the tree of that commit may have older versions of other files.
    This is why each file has its own commit.) If the hub does not name commits, the requested revision is used.

    Raises:
        SourceUnavailableError: the hub cannot be reached, or is busy, even after the client's own tries, which take
            some seconds, or about a minute if nothing answers.
        SourceError: there is no such model or revision, access is refused, or a file is listed without its digest.
    """
    with client(str(model)) as api:
        from modelscope_hub.errors import NotExistError  # noqa: PLC0415  (see `hub`)

        endpoint = api.legacy.endpoint
        asked = model.revision or BRANCH
        try:
            entries = _entries(api, model, asked, names)
        except NotExistError:
            raise _unknown(api, model) from None
        by_name = files_in(entries)
        files = tuple(_file(model, name, by_name[name], asked) for name in names if name in by_name)
        return Listing(newest(entries) or asked, without_password(endpoint), files)


def _entries(api: "HubApi", model: Model, revision: str, names: Collection[str]) -> list[Mapping[str, Any]]:
    """What is in the model's top directory, and in the folders there in which one of the names is.

    A listing of all that is below a directory would be cut by the hub at a number of files, whatever these are.
    """
    found = partial(api.legacy.list_repo_files, model.id, "model", revision=revision, recursive=False)
    entries: list[Mapping[str, Any]] = [*found()]
    folders = {str(PurePosixPath(name).parent) for name in names}
    present = [each.get("Path") for each in entries if each.get("Type") == _FOLDER_TYPE]
    for folder in sorted(folders.intersection(path for path in present if isinstance(path, str))):
        entries += found(root=folder)
    return entries


def files_in(entries: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The entries of a listing that are files, by their names."""
    return {str(entry.get("Path")): entry for entry in entries if entry.get("Type") != _FOLDER_TYPE}


def newest(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """The commit that last changed any of the entries of a listing; None if the hub does not name commits."""
    commits = [(_date(entry), str(entry["Revision"])) for entry in entries if is_revision(entry.get("Revision"))]
    return max(commits)[1] if commits else None


def _date(entry: Mapping[str, Any]) -> int:
    date = entry.get("CommittedDate")
    return date if isinstance(date, int) else 0


def _file(model: Model, name: str, entry: Mapping[str, Any], asked: str) -> File:
    size, digest, revision = entry.get("Size"), entry.get("Sha256"), entry.get("Revision")
    digest = digest.lower() if isinstance(digest, str) else ""
    if not hub.is_size(size) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise SourceError(
            f"{model}: the hub lists {name} without its size and SHA-256, so it cannot be checked; "
            "download it yourself, and give the directory"
        )
    return File(name, size, digest, str(revision) if is_revision(revision) else asked)


def _unknown(api: "HubApi", model: Model) -> SourceError:
    """The error of a model, or a revision of it, that does not exist."""
    host, known = hub.host(api.legacy.endpoint), revisions(api, model)
    if known is None:
        return SourceError(
            f"{model}: no such model on {host}, or a private one; give a model directory, "
            f"or a ModelScope id such as iic/CosyVoice-300M, or log in ({LOGIN})"
        )
    return SourceError(
        f"{model}: {model.id} has no revision {model.revision or BRANCH} on {host}; it has {hub.some(known)}"
    )


def revisions(api: "HubApi", model: Model) -> list[str] | None:
    """The branches and tags of a model; None if there is no such model, or it is a private one."""
    from modelscope_hub.errors import NotExistError  # noqa: PLC0415  (see `hub`)

    try:
        return [str(each.get("Revision")) for each in api.legacy.list_revisions(model.id, "model")]
    except NotExistError:
        return None


LOGIN: Final = "set MODELSCOPE_API_TOKEN, or use `modelscope login`"


def download(model: Model, file: File, directory: Path) -> Path:
    """Download a file of a model into a directory of its own, and check that its bytes are those that were listed.

    If the download fails or the process is killed, the next call resumes it. The client gives up after five tries
    without an answer, and after an hour for one file. It is called again as long as bytes arrive.

    Raises:
        SourceUnavailableError: the hub cannot be reached, or is busy.
        SourceError: the hub sends other bytes than it listed, or refuses.
        OutputError: the directory cannot be written to.
    """
    _LOG.info("%s: downloading %s of commit %s (%.1f MB)", model, file.name, file.revision, file.size / 1e6)
    with client(str(model), files=True) as api:
        from modelscope_hub.errors import FileIntegrityError, NetworkError  # noqa: PLC0415  (see `hub`)

        host = hub.host(api.legacy.endpoint)
        while True:
            before = hub.received(directory)
            try:
                return api.download_file(
                    model.id,
                    "model",
                    file.name,
                    revision=file.revision,
                    local_dir=directory,
                    cache_dir=directory,  # where the client keeps its lock
                    expected_sha256=file.sha256,
                    file_size=file.size,
                )
            except NetworkError:
                if hub.received(directory) <= before:
                    raise
            except FileIntegrityError:
                raise SourceError(
                    f"{model}: {file.name} of commit {file.revision} does not arrive as {host} "
                    f"lists it ({file.size:,} bytes, SHA-256 {file.sha256}), also when it is downloaded again; "
                    "try again later, or tell the model's owner"
                ) from None


def endpoint() -> str:
    """The URL of the hub that would be asked, without credentials. No client is made: it would write into the home."""
    from modelscope_hub import HubConfig  # noqa: PLC0415  (see `hub`)

    given = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN")
    return without_password(HubConfig.normalize_endpoint(given))


def url(endpoint: str, model: Model, file: File) -> str:
    """The URL of a file, without credentials."""
    query = f"Revision={quote_plus(file.revision)}&FilePath={quote_plus(file.name)}"
    return f"{endpoint}/api/v1/models/{model.id}/repo?{query}"


def local_listing(_model: Model, _names: Collection[str]) -> None:
    """Nothing: no directory of the client's own cache is known."""


def local_copy(_model: Model, _file: File) -> None:
    """Nothing: see `local_listing`."""


@contextmanager
def client(what: str, *, files: bool = False) -> Iterator["HubApi"]:
    """A client with the current settings of the environment; its errors in the block become ours.

    Args:
        what: the beginning of their messages.
        files: as in `responses.Bounds`.
    """
    try:
        api = _new_client(what, files=files)
        host = hub.host(api.legacy.endpoint)
    except (AttributeError, ImportError, TypeError) as error:
        raise _incompatible_error(error, what, "it cannot be used") from None
    except Exception as error:  # noqa: BLE001  (an invalid address, a damaged file of a login)
        raise _settings_error(error, what) from None
    try:
        yield api
    except CosyjitError:
        raise
    except Exception as error:  # noqa: BLE001  (a strange answer makes the client raise almost anything)
        own = next((cause for cause in causes(error) if isinstance(cause, CosyjitError)), None)
        raise own or _translated_error(error, what, host) from None


def _new_client(what: str, *, files: bool) -> "HubApi":
    log = logging.getLogger("modelscope_hub")
    if not log.handlers:  # without a handler the client writes to standard error
        log.addHandler(logging.NullHandler())
    from modelscope_hub import HubApi, HubConfig, _download  # noqa: PLC0415  (see `hub`)

    bar = getattr(_download, "tqdm")  # noqa: B009  (the name is not public)
    if not isinstance(bar, partial):  # its bars would mix with logs and other progress
        setattr(_download, "tqdm", partial(bar, disable=True))  # noqa: B010
    api = HubApi(HubConfig())  # the client's own default is read once for each process
    import requests  # noqa: PLC0415  (as long as the client's import, of which it is a part)

    from cosyjit.sources.responses import Bounds  # noqa: PLC0415

    bounds = Bounds(what, files=files)
    for session in vars(api.legacy).values():
        if isinstance(session, requests.Session):
            bounds.apply(session)
    return api


def _translated_error(error: Exception, what: str, host: str) -> CosyjitError:
    """Our error, with a message of one line, for an error of the client."""
    import requests  # noqa: PLC0415  (as long as the client's import, of which it is a part)
    from modelscope_hub import errors  # noqa: PLC0415

    status = getattr(error, "status_code", None)
    failures = [cause for cause in causes(error) if isinstance(cause, OSError)]
    local = isinstance(error, OSError) and not isinstance(error, errors.HubError | requests.RequestException)
    disk = [failure for failure in failures if local or hub.is_of_disk(failure)]
    if disk:
        return hub.disk_error(what, disk[0])
    if isinstance(error, errors.APIError) and not error.retryable:
        return SourceError(f"{what}: {host} {_refusal_reason(status)}")
    if isinstance(error, ValueError) and not isinstance(error, requests.JSONDecodeError):
        return _settings_error(error, what)
    strerror = next((failure.strerror for failure in failures if failure.strerror), None)
    reason = strerror or _kind(error) if status is None else f"HTTP {status}"
    if isinstance(error, errors.HubError | OSError) and not isinstance(error, ValueError):
        return SourceUnavailableError(f"{what}: {host} cannot be reached, or is busy ({reason}); try again later")
    if isinstance(error, requests.JSONDecodeError):  # such as the page of some gateway
        return SourceUnavailableError(
            f"{what}: {host} does not answer as a hub does ({reason}); see whether MODELSCOPE_ENDPOINT is right, "
            "or try again later"
        )
    return _incompatible_error(error, what, f"{host} does not answer as a hub does")


def _refusal_reason(status: int | None) -> str:
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return f"refuses access (HTTP {status}); log in as someone who has it ({LOGIN})"
    if status == HTTPStatus.NOT_FOUND:
        return f"no longer has what it listed (HTTP {status}); run again"
    return f"refuses the request (HTTP {status}); see whether the id is right"


def _settings_error(error: Exception, what: str) -> SourceError:
    """The error of a client whose settings do not allow any request."""
    return SourceError(
        f"{what}: the settings of the ModelScope client cannot be used ({_kind(error)}); correct MODELSCOPE_ENDPOINT "
        "and MODELSCOPE_API_TOKEN, or log in again"
    )


def _incompatible_error(error: Exception, what: str, fault: str) -> SourceError:
    """The error of a client or hub that behaves in an unknown way, so that no later try would succeed."""
    return SourceError(
        f"{what}: {fault}, or modelscope-hub {version('modelscope-hub')} is not the client that cosyjit supports "
        f"({_kind(error)}); see whether MODELSCOPE_ENDPOINT is right, and install the version that constraints.txt has"
    )


def _kind(error: Exception) -> str:
    if isinstance(error, ConnectionError):
        return "no answer in time" if isinstance(error, TimeoutError) else "the connection broke"
    return type(error).__name__
