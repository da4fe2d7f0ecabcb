"""Pushes to repositories of Hugging Face, through its own client.

What stands there is asked as for a download. The client uploads a large file under its SHA-256, in parts or by Xet, and
makes the commit, which the hub refuses if the branch is not at the commit that was named as the one before.
"""

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from cosyjit.errors import CosyjitError, SourceError, SourceUnavailableError, causes
from cosyjit.hubs.repository import Contents, File, Held, Repository
from cosyjit.sources import hugging_face
from cosyjit.sources.hub import is_revision, is_size
from cosyjit.sources.hugging_face_client import Answer, NoRevisionError, PassingError, connect, incompatible_error
from cosyjit.text import without_password

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_SMALL: Final = 64 << 10
"""In bytes, what is sent from memory, and all of it together."""

_LARGEST: Final = 16 << 20
"""In bytes, what may be part of a commit, which is in memory as a whole. The hub wants files above 10 MB apart."""


_MOVED: Final = {HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT}
"""What the hub answers if the branch is at another commit by now."""


class HuggingFace(Repository):
    """A branch of a model of Hugging Face."""

    default = hugging_face.BRANCH

    def contents(self) -> Contents:
        """What the branch has now; see `Repository`."""
        client = connect(self.model)
        self.endpoint = without_password(client.endpoint)
        found = hugging_face.entries(client)
        return Contents(found.commit, {name: _held(entry) for name, entry in found.files.items()})

    def commit(self, added: Sequence[File], removed: Collection[str], message: str, before: Contents) -> str:
        """Upload files, and make one commit; see `Repository`."""
        with self._asked():
            from huggingface_hub import CommitOperationDelete, HfApi, get_token  # noqa: PLC0415  (an extra, takes 0.3 s)

            api: Any = HfApi(token=get_token())  # HF_HUB_DISABLE_IMPLICIT_TOKEN is for what only reads
            operations = [_operation(file) for file in added]
            self._upload(api, list(zip(added, operations, strict=True)))
            info = api.create_commit(
                self.model.id,
                [*(CommitOperationDelete(name, is_folder=False) for name in removed), *operations],
                commit_message=message,
                revision=self.branch,
                parent_commit=before.commit,
            )
            if not is_revision(info.oid):
                raise TypeError("no commit in the answer")
            return str(info.oid)

    def _upload(self, api: Any, additions: Sequence[tuple[File, "CommitOperationAdd"]]) -> None:
        """Upload what the hub wants apart from the commit: small files together, and the others one by one."""
        small = [operation for file, operation in additions if file.size <= _SMALL]
        large = [(file, operation) for file, operation in additions if file.size > _SMALL]
        for file, batch in [(None, small), *((file, [operation]) for file, operation in large)]:
            if file is not None:
                self.tell(file)
            # What a .gitignore of the repository names is pushed as well.
            how = {"revision": self.branch, "free_memory": False, "gitignore_content": "\n"}
            try:
                if batch:
                    api.preupload_lfs_files(self.model.id, batch, **how)
            except Exception:
                if file is not None:
                    file.check()  # the hub may refuse it because its bytes are others by now
                raise
        for file, operation in additions:
            self._check(file, operation)

    def _check(self, file: File, operation: "CommitOperationAdd") -> None:
        """See that a file was uploaded as it was published, and is part of a commit only if it is small."""
        if getattr(operation, "_should_ignore", False):
            raise SourceError(f"{self}: {self.host} ignores {file.name}; see what .gitignore has there")
        if getattr(operation, "_upload_mode", "lfs") == "regular" and file.size > _LARGEST:
            raise SourceError(
                f"{self}: {self.host} wants {file.name} with its {file.size:,} bytes in the commit itself; see whether "
                "HF_ENDPOINT is right"
            )
        if operation.upload_info.sha256.hex() != file.sha256:
            raise file.changed("it was changed while it was uploaded")

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Errors of the client in the block become ours."""
        try:
            with _silent():
                yield
        except CosyjitError:
            raise
        except Exception as error:  # noqa: BLE001  (a strange answer makes the client raise almost anything)
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> CosyjitError:
        """Our error, with a message of one line, for an error of the client."""
        client = connect(self.model)
        found: list[Any] = [getattr(each, "response", None) for each in causes(error)]
        answers = [each for each in found if each is not None]
        if any(each.status_code in _MOVED for each in answers):
            return self.moved()
        try:
            for each in answers:
                client.check(Answer(each.status_code, each.headers, iter(())))
        except CosyjitError as refusal:
            return refusal
        except NoRevisionError:
            return SourceError(
                f"{self}: {self.branch} is not a branch on {self.host}, such as a tag, or was removed; push to a branch"
            )
        except PassingError as problem:
            return self._unavailable(problem)
        passing = [each for each in map(client.translated, causes(error)) if isinstance(each, PassingError)]
        if passing or all(type(each) is RuntimeError for each in causes(error)):  # the latter is what hf_xet raises
            return self._unavailable(*passing[:1])
        return incompatible_error(client, type(error).__name__)

    def _unavailable(self, problem: object = "the upload broke") -> SourceUnavailableError:
        return SourceUnavailableError(f"{self}: {self.host} cannot be reached, or is busy ({problem}); try again later")


@contextmanager
def _silent() -> Iterator[None]:
    """Let the client say nothing in the block: it draws bars, and quotes the addresses of uploads, with signatures."""
    from huggingface_hub.utils.tqdm import (  # noqa: PLC0415  (see above)
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    log = logging.getLogger("huggingface_hub")
    level, drawn = log.level, not are_progress_bars_disabled()
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of how it uses its HTTP client
            warnings.simplefilter("ignore", UserWarning)  # if HF_HUB_DISABLE_PROGRESS_BARS=0 wants them
            disable_progress_bars()
            yield
    finally:
        log.setLevel(level)
        if drawn:
            enable_progress_bars()


def _operation(file: File) -> "CommitOperationAdd":
    from huggingface_hub import CommitOperationAdd  # noqa: PLC0415  (see above)

    if file.size <= _SMALL:
        return CommitOperationAdd(file.name, file.read())
    try:
        return CommitOperationAdd(file.name, file.content)
    except (OSError, ValueError):
        raise file.changed("it is not there any more") from None


def _held(entry: Mapping[str, Any]) -> Held:
    size, sha256, git_sha1 = hugging_face.described(entry)
    return Held(size if is_size(size) else None, _text(sha256), _text(git_sha1))


def _text(value: object) -> str | None:
    return value.lower() if isinstance(value, str) and value else None
