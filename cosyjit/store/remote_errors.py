"""Errors of services behind a network, translated into OSErrors in words that can be shown.

Clients have many errors of their own. Few are OSErrors, and some quote secrets: a URL with a password, or the output of
a command that prints credentials. They are told apart by the names of their types, so that no client is imported here.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from io import UnsupportedOperation
from typing import Any, Final
from urllib.parse import urlsplit

from cosyjit.text import one_line

_TRANSIENT: Final = {
    "botocore.ConnectionError": "no connection to",
    "botocore.HTTPClientError": "no answer from",
    "botocore.ResponseParserError": "no answer that can be read from",
    "botocore.FlexibleChecksumError": "an answer that is not what its checksum says from",
    "aiohttp.ClientError": "an answer broke off from",
}
"""Transient errors, by the names of their types and of those that they derive from, and what messages say."""

_BUSY: Final = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown"}
"""S3's codes of transient errors, which may come with any status."""


class RangeError(OSError):
    """The range that was asked for begins behind the end of the file; of an empty file, any range does."""


class UnavailableError(OSError):
    """A service that cannot be reached now, or is busy: a transient error."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translate errors of the block into OSErrors."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (an error that is not a service's is raised as it is)
        raise _translated(error) from None


def _translated(error: Exception) -> Exception:
    asked = error.__cause__ or error  # s3fs translates the errors of S3 that it knows
    answer = getattr(asked, "response", None)
    if isinstance(answer, dict):
        return _refusal(asked, answer)
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if kinds & {"botocore.BotoCoreError", "aiohttp.ClientError"}:
        return _failure(error, kinds)
    if isinstance(error, ConnectionError | TimeoutError | asyncio.TimeoutError):
        return UnavailableError(_line(error))
    if isinstance(error, ValueError | TypeError) and not isinstance(error, OSError):
        return OSError(_line(error))  # of an endpoint that is not a URL, or an unknown option
    return error


def _refusal(asked: BaseException, answer: Mapping[str, Any]) -> Exception:
    """The error of a request that S3 has answered with an error."""
    code, status = answer["Error"].get("Code"), int(answer["ResponseMetadata"]["HTTPStatusCode"])
    words = f"{getattr(asked, 'operation_name', 'a request')} is answered with {status}{f', {code}' if code else ''}"
    if code == "NoSuchBucket":  # 404, but not a missing file
        return OSError("there is no such bucket")
    if code in {"PreconditionFailed", "ConditionalRequestConflict"}:
        return FileExistsError(words)
    if code in _BUSY or status == HTTPStatus.TOO_MANY_REQUESTS:
        return UnavailableError(words)
    kinds: dict[int, type[OSError]] = {
        HTTPStatus.NOT_FOUND: FileNotFoundError,
        HTTPStatus.FORBIDDEN: PermissionError,
        HTTPStatus.NOT_IMPLEMENTED: UnsupportedOperation,
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: RangeError,
    }
    return kinds.get(status, UnavailableError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else OSError)(words)


def _failure(error: Exception, kinds: set[str]) -> OSError:
    """The error of a request that was not answered."""
    details: Mapping[str, Any] = getattr(error, "kwargs", {})
    host = urlsplit(details.get("endpoint_url", "")).netloc.rpartition("@")[2] or "the service"
    if "botocore.SSLError" in kinds:
        return OSError(f"no secure connection to {host}")
    if "botocore.NoCredentialsError" in kinds:
        return OSError("no credentials are found, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if "botocore.CredentialRetrievalError" in kinds:  # its text is the output of a command
        return OSError("AWS's configured credential source returned no credentials")
    if isinstance(details.get("error"), ValueError):  # such as a header that cannot be sent
        return OSError(_line(details["error"]))
    transient = [words for kind, words in _TRANSIENT.items() if kind in kinds]
    return UnavailableError(f"{transient[0]} {host}") if transient else OSError(_line(error))


def _line(error: BaseException) -> str:
    """An error's text in one line, without the user names and passwords in URLs."""
    return re.sub(r"//[^/\s]*@", "//", one_line(str(error))) or type(error).__name__
