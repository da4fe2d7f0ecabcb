"""Pushes to repositories of ModelScope, through its own client.

A large file is uploaded under its SHA-256 and belongs to no commit yet, so nobody sees it. The client's own
`upload_folder` makes several commits; the requests of which it consists are made here, and one commit.
"""

import base64
import time
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from cosyjit.errors import SourceError, SourceUnavailableError
from cosyjit.hubs.repository import Contents, File, Held, Repository
from cosyjit.sources import hub, modelscope
from cosyjit.text import without_password

if TYPE_CHECKING:
    from modelscope_hub import HubApi

_TYPE: Final = "model"


class ModelScope(Repository):
    """A branch of a model of ModelScope."""

    default = modelscope.BRANCH

    def contents(self) -> Contents:
        """What the branch has now; see `Repository`."""
        with modelscope.client(str(self)) as api:
            self.endpoint = without_password(api.legacy.endpoint)
            return self._contents(self._entries(api))

    def _contents(self, entries: Sequence[Mapping[str, Any]]) -> Contents:
        found = modelscope.files_in(entries)
        held = {name: Held(_size(entry), _sha256(entry)) for name, entry in found.items()}
        return Contents(modelscope.newest(entries) or self.branch, held)

    def _entries(self, api: "HubApi") -> Sequence[Mapping[str, Any]]:
        from modelscope_hub.errors import NotExistError  # noqa: PLC0415  (its import takes 0.3 s)

        try:
            return api.legacy.list_repo_files(self.model.id, _TYPE, revision=self.branch, recursive=True)
        except NotExistError:
            raise self._unknown(api) from None

    def _unknown(self, api: "HubApi") -> SourceError:
        known = modelscope.revisions(api, self.model)
        if known is None:
            return SourceError(
                f"{self}: no such model on {self.host}, or a private one; make it there, public or private, or log in "
                f"as someone who may write to it ({modelscope.LOGIN})"
            )
        return SourceError(
            f"{self}: {self.model.id} has no branch {self.branch} on {self.host}; make it there, or push to another "
            f"one ({hub.some(known)})"
        )

    def commit(self, added: Sequence[File], removed: Collection[str], message: str, before: Contents) -> str:
        """Upload files, and make one commit; see `Repository`. The hub itself does not ask for the commit before it."""
        with modelscope.client(str(self)) as api:
            large = {file.sha256: file for file in added if _is_large(file)}
            objects = [{"oid": digest, "size": file.size} for digest, file in large.items()]
            places = api.legacy.validate_blobs(self.model.id, _TYPE, objects) if objects else {}
            for digest, file in large.items():
                place = places.get(digest)
                if place is not None:  # else the hub has it already
                    self.tell(file)
                    self._upload(api, file, place)
            if self._contents(self._entries(api)) != before:
                raise self.moved()
            self._commit(api, [*map(_removed, removed), *map(_added, added)], message)
            return self._commit_of(self._entries(api), added, removed)

    def _commit_of(self, entries: Sequence[Mapping[str, Any]], added: Sequence[File], removed: Collection[str]) -> str:
        """The commit that made changes, by what the branch has now: the answer to a commit does not name it."""
        files = self._contents(entries).files
        whole = all(file.name in files and files[file.name].is_same(file) for file in added)
        if not whole or not files.keys().isdisjoint(removed):
            raise SourceUnavailableError(
                f"{self}: {self.host} does not list what it was sent; run again to see what it has"
            )
        names = {file.name for file in added}
        return modelscope.newest([each for each in entries if each.get("Path") in names] or entries) or self.branch

    def _upload(self, api: "HubApi", file: File, place: object) -> None:
        """Upload a file to where the hub wants it, several times if the connection breaks."""
        from modelscope_hub import constants  # noqa: PLC0415  (see above)
        from modelscope_hub.errors import NetworkError, ServerError  # noqa: PLC0415

        if not isinstance(place, str) or urlsplit(place).scheme not in {"https", urlsplit(self.endpoint).scheme}:
            raise SourceError(
                f"{self}: {self.host} wants {file.name} over a connection that is not encrypted; "
                "see whether MODELSCOPE_ENDPOINT is right"
            )
        for attempt in range(1, constants.UPLOAD_BLOB_MAX_ATTEMPTS + 1):
            try:
                with file.opened() as opened:
                    api.legacy.upload_blob(place, opened, file.size)
            except (NetworkError, ServerError):  # noqa: PERF203  (each attempt may fail)
                if attempt == constants.UPLOAD_BLOB_MAX_ATTEMPTS:
                    raise
                pause = constants.UPLOAD_BLOB_RETRY_BACKOFF_BASE_SECONDS**attempt
                time.sleep(min(pause, constants.UPLOAD_BLOB_RETRY_MAX_DELAY_SECONDS))
            else:
                return

    def _commit(self, api: "HubApi", actions: list[dict[str, Any]], message: str) -> None:
        from modelscope_hub.errors import APIError, ServerError  # noqa: PLC0415  (see above)

        try:
            api.legacy.create_commit(self.model.id, _TYPE, actions, message, revision=self.branch)
        except APIError as error:
            status = error.status_code or 0
            # The client makes a ServerError of the code that the hub gives a branch which has moved meanwhile.
            if status == HTTPStatus.CONFLICT or (
                isinstance(error, ServerError) and status < HTTPStatus.INTERNAL_SERVER_ERROR
            ):
                raise self.moved() from None
            raise


def _size(entry: Mapping[str, Any]) -> int | None:
    size = entry.get("Size")
    return size if type(size) is int else None


def _sha256(entry: Mapping[str, Any]) -> str | None:
    digest = entry.get("Sha256")
    return digest.lower() if isinstance(digest, str) and digest else None


def _is_large(file: File) -> bool:
    """Whether the client would upload a file apart from the commit: by the end of its name, or by its size."""
    from modelscope_hub import constants  # noqa: PLC0415  (see above)

    path = PurePosixPath(file.name)
    if path.name.upper() in constants.UPLOAD_INLINE_METADATA_PATHS:
        return False
    return path.suffix.lower() in constants.MODEL_LFS_SUFFIX or file.size > constants.UPLOAD_LFS_FORCE_THRESHOLD_BYTES


def _added(file: File) -> dict[str, Any]:
    """The action of a commit that adds or replaces a file."""
    action = {"action": "create", "path": file.name, "size": file.size}
    if _is_large(file):
        return {**action, "type": "lfs", "sha256": file.sha256, "content": "", "encoding": ""}
    content = base64.b64encode(file.read()).decode("ascii")
    return {**action, "type": "normal", "sha256": "", "content": content, "encoding": "base64"}


def _removed(name: str) -> dict[str, Any]:
    return {"action": "delete", "path": name, "type": "normal", "size": 0, "sha256": "", "content": "", "encoding": ""}
