"""What goes wrong with a service that is asked over a network, as OSErrors in words that can be shown.

Clients' own errors are many, few of them OSErrors, and some quote what nobody else should see: a URL with a password,
or what a command printed that was to give credentials. They are told apart by the names of their types, since only who
has used a client has imported it.
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

_PASSING: Final = {
    "botocore.ConnectionError": "no connection to",
    "botocore.HTTPClientError": "no answer from",
    "botocore.ResponseParserError": "no answer that can be read from",
    "botocore.FlexibleChecksumError": "an answer that is not what its checksum says from",
    "aiohttp.ClientError": "an answer broke off from",
}
"""Errors that may pass by themselves, with all types below them."""

_BUSY: Final = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown"}
"""S3's codes for the same, which may come with any status."""


class RangeError(OSError):
    """What was asked for begins behind the end of a file: of an empty one, anything does."""


class UnavailableError(OSError):
    """What may pass by itself: a service that cannot be reached now, or is busy."""


@contextmanager
def told() -> Iterator[None]:
    """Let what goes wrong meanwhile be an OSError."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (what is none of a service's is raised as it is)
        raise _explained(error) from None


def _explained(error: Exception) -> Exception:
    asked = error.__cause__ or error  # s3fs translates what S3 answers, but for what it does not know
    answer = getattr(asked, "response", None)
    if isinstance(answer, dict):
        return _refusal(asked, answer)
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if kinds & {"botocore.BotoCoreError", "aiohttp.ClientError"}:
        return _failure(error, kinds)
    if isinstance(error, ConnectionError | TimeoutError | asyncio.TimeoutError):
        return UnavailableError(_line(error))
    if isinstance(error, ValueError | TypeError) and not isinstance(error, OSError):
        return OSError(_line(error))  # of an endpoint that is no URL, or a client's option that there is not
    return error


def _refusal(asked: BaseException, answer: Mapping[str, Any]) -> Exception:
    """The error of a request that S3 has answered with one."""
    code, status = answer["Error"].get("Code"), int(answer["ResponseMetadata"]["HTTPStatusCode"])
    words = f"{getattr(asked, 'operation_name', 'a request')} is answered with {status}{f', {code}' if code else ''}"
    if code == "NoSuchBucket":  # which is not the lack of a file
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
    """The error of a request that has no answer."""
    details: Mapping[str, Any] = getattr(error, "kwargs", {})
    host = urlsplit(details.get("endpoint_url", "")).netloc.rpartition("@")[2] or "the service"
    if "botocore.SSLError" in kinds:
        return OSError(f"no secure connection to {host}")
    if "botocore.NoCredentialsError" in kinds:
        return OSError("no credentials are found, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if "botocore.CredentialRetrievalError" in kinds:  # its text is what a command has printed
        return OSError("no credentials come from where AWS's configuration says so")
    if isinstance(details.get("error"), ValueError):  # of a header that cannot be sent, for one
        return OSError(_line(details["error"]))
    passing = [words for kind, words in _PASSING.items() if kind in kinds]
    return UnavailableError(f"{passing[0]} {host}") if passing else OSError(_line(error))


def _line(error: BaseException) -> str:
    """An error's text in a line, without the names and passwords in URLs."""
    return re.sub(r"//[^/\s]*@", "//", one_line(str(error))) or type(error).__name__
