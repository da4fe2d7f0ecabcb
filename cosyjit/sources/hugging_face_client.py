"""Asks Hugging Face over the session of its own client, in bounded time and memory.

The client says where the hub is, who the user is, whether it may be asked at all, and where its cache is; its session
knows of proxies and certificates. The requests are made here, one by one, since its functions read answers and follow
redirections without a bound, begin a download that broke off anew, and tell the hub more than it has to know. For the
same reasons files come over plain HTTP, which the hub gives for files in Xet as well, and not through `hf_xet`.

huggingface_hub has a session of requests before 1.0, of httpx from then on, and of httpx2 from 2.0 on. None of them is
imported: what is used of a session and of its errors is alike.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from importlib.metadata import version
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urljoin, urlsplit

from cosyjit.errors import CosyjitError, SourceError, SourceUnavailableError, causes
from cosyjit.sources import hub
from cosyjit.sources.hub import Model
from cosyjit.text import without_password

EXAMPLE: Final = "hf:FunAudioLLM/CosyVoice2-0.5B"

LOGIN: Final = "set HF_TOKEN, or use `hf auth login`"

_PAUSES: Final = (1.0, 3.0)
"""How long to wait before asking again, in s, where nothing has come since the last time."""

_LONGEST_PAUSE: Final = 60.0
"""The longest that a hub can ask for, in s."""

_LONGEST_LIST: Final = 60.0
"""How long a list may take to arrive, in s."""

_MINUTE: Final = 60.0
_LEAST: Final = 1 << 16
"""How many bytes of a file have to arrive in each minute."""

_MOST: Final = 4 << 20
"""The most bytes of a list. That of a model has some 200 for each file."""

_BLOCK: Final = 1 << 16
"""How much is received at a time, in bytes."""

_HOPS: Final = 5
"""How many redirections are followed, one after the other."""

_REDIRECTIONS: Final = {301, 302, 303, 307, 308}
_BUSY: Final = {408, 429, 500, 502, 503, 504}

_OF_SETTINGS: Final = {
    *("UnsupportedProtocol", "InvalidURL", "LocalProtocolError"),  # of httpx
    *("InvalidSchema", "MissingSchema", "InvalidHeader", "InvalidProxyURL"),  # of requests
    *("LocationParseError", "ValueError", "OIDCError"),
}
"""The names of the errors of addresses, tokens and proxies that can be none."""

_OF_CONNECTIONS: Final = {"TransportError", "HTTPError", "RequestException", "OSError"}
"""Those of connections, in httpx, in requests and in urllib3, and of the system."""


class PassingError(Exception):
    """A problem that may pass by itself.

    Attributes:
        wait: how long the hub wants us to wait, in s.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class NoRevisionError(Exception):
    """A model has no such revision, or no longer."""


class OtherBytesError(Exception):
    """A file does not arrive as it was listed."""


_OURS: Final = (CosyjitError, PassingError, NoRevisionError, OtherBytesError)


class Answer(NamedTuple):
    """What a hub answers: its status, its headers, and the bytes as they arrive."""

    status: int
    headers: Mapping[str, str]
    blocks: Iterator[bytes]


def client_constants() -> Any:
    """What the client has read of the environment; None if it is not installed.

    Raises:
        SourceError: it cannot read that, such as a timeout that is not a number.
    """
    if find_spec("huggingface_hub") is None:
        return None
    try:
        from huggingface_hub import constants  # noqa: PLC0415  (see `hub`)
    except ValueError as error:
        raise SourceError(
            f"huggingface_hub cannot read a variable of its own ({error}); correct the variables that begin with HF_"
        ) from None
    return constants


@dataclass(frozen=True)
class Client:
    """Asks the hub that the client knows, as the user whom it knows, for a model.

    Attributes:
        model: the model, with which messages begin.
        endpoint: the URL of the hub, which may have a name and a password in it.
        headers: those of each request, which may have a token in them.
    """

    model: Model
    endpoint: str
    headers: Mapping[str, str] = field(repr=False)

    @property
    def host(self) -> str:
        return hub.host(self.endpoint)

    def listed(self, path: str) -> bytes:
        """The list at a path of the hub's API.

        Raises:
            PassingError, NoRevisionError, SourceError: see `_answered`.
        """
        with self._answered(f"{self.endpoint}{path}", {}) as answer:
            content, end = bytearray(), time.monotonic() + _LONGEST_LIST
            for block in answer.blocks:
                content += block
                if len(content) > _MOST:
                    raise SourceError(
                        f"{self.model}: {self.host} answers with more than {_MOST:,} bytes where a short list is "
                        "expected; see whether HF_ENDPOINT is right, or try again later"
                    )
                if time.monotonic() > end:
                    raise PassingError("no answer in time")
            return bytes(content)

    def parsed(self, content: bytes) -> Any:
        """A list, as JSON has it.

        Raises:
            SourceUnavailableError: it is no JSON.
        """
        try:
            return json.loads(content)
        except (ValueError, RecursionError):  # such as the page of some gateway
            raise SourceUnavailableError(
                f"{self.model}: {self.host} does not answer as a hub does; see whether HF_ENDPOINT is right, "
                "or try again later"
            ) from None

    def receive(self, address: str, part: Path, size: int) -> None:
        """Receive what is missing of a file, as far as it comes.

        Raises:
            OtherBytesError: there is more of it, or less, than `size` bytes.
            PassingError, NoRevisionError, SourceError: see `_answered`.
            OutputError: it cannot be written.
        """
        begin = part.stat().st_size
        with self._answered(address, {"range": f"bytes={begin}-"} if begin else {}) as answer:
            if answer.status == HTTPStatus.PARTIAL_CONTENT:
                if not re.match(rf"bytes {begin}-", answer.headers.get("content-range", "")):
                    raise OtherBytesError
            elif begin:  # all of it, although a part was asked for
                begin = 0
            with self.writing():
                file = part.open("ab" if begin else "wb", buffering=0)
            with file:
                for block in _paced(answer.blocks):
                    begin += len(block)
                    if begin > size:
                        raise OtherBytesError
                    with self.writing():
                        _write(file, block)
        if begin < size:
            raise PassingError("the connection broke")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Errors of the block are those of this machine's disk."""
        try:
            yield
        except OSError as error:
            raise hub.disk_error(str(self.model), error) from None

    @contextmanager
    def _answered(self, address: str, more: Mapping[str, str]) -> Iterator[Answer]:
        """The answer to a request that the hub does not refuse.

        Raises:
            PassingError: the hub cannot be reached, or is busy.
            NoRevisionError: there is no such commit, branch or tag.
            OtherBytesError: of a file, there are fewer bytes than were asked for.
            SourceError: the hub refuses, the settings do not allow a request, or the answer is not that of a hub.
        """
        try:
            with _followed(address, {**self.headers, **more}) as answer:
                self.check(answer)
                yield answer
        except _OURS:
            raise
        except Exception as error:
            raise self.translated(error) from error

    def check(self, answer: Answer) -> None:
        """Raise what the status of an answer means, unless that is well; see `_answered`."""
        status, headers = answer.status, answer.headers
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if status in _BUSY:
            raise PassingError(f"HTTP {status}", _pause(headers.get("retry-after", "")))
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise OtherBytesError
        if headers.get("x-error-code") == "RevisionNotFound":
            raise NoRevisionError
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            raise SourceError(f"{self.model}: {self._refusal(status, headers)}")
        if encoding not in {"", "identity"}:
            raise SourceError(
                f"{self.model}: {self.host} sends its answers in the encoding {encoding[:20]!r}, which was not "
                "requested; see whether HF_ENDPOINT is right, or try again later"
            )

    def _refusal(self, status: int, headers: Mapping[str, str]) -> str:
        """Why the hub refuses, by what its own client goes by, and what to do."""
        code, foreign = headers.get("x-error-code"), headers.get("x-error-message") == _FOREIGN_TOKEN
        if code == "GatedRepo":
            page = f"{without_password(self.endpoint)}/{self.model.id}"
            return f"is gated; accept the conditions on {page}, and log in as the user who did ({LOGIN})"
        if code == "RepoNotFound" or (status == HTTPStatus.UNAUTHORIZED and not foreign):
            return (
                f"no such model on {self.host}, or a private one; see whether the id is right, such as {EXAMPLE}, "
                f"or log in ({LOGIN})"
            )
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return f"{self.host} refuses access (HTTP {status}); log in as someone who has it ({LOGIN})"
        if status == HTTPStatus.NOT_FOUND:
            return (
                f"{self.host} does not have what it was asked for (HTTP {status}); see whether the id and HF_ENDPOINT "
                "are right, or run again"
            )
        return f"{self.host} refuses the request (HTTP {status}); see whether the id is right"

    def translated(self, error: BaseException) -> Exception:
        """What an error of a session means."""
        names = {each.__name__ for each in type(error).__mro__}
        if names & _OF_SETTINGS:
            return _settings_error(error, str(self.model))
        if names & _OF_CONNECTIONS:
            reasons = [each.strerror for each in causes(error) if isinstance(each, OSError) and each.strerror]
            late = any("Timeout" in type(each).__name__ for each in causes(error))
            return PassingError([*reasons, "no answer in time" if late else "the connection broke"][0])
        return incompatible_error(self, type(error).__name__)


def connect(model: Model) -> Client:
    """What asks the hub, with the settings that the client has.

    Raises:
        SourceError: there is no client, or its settings do not allow any request.
        SourceUnavailableError: it is told to ask nobody.
    """
    constants = client_constants()
    if constants is None:
        raise SourceError(f"{model}: needs a package that is missing; pip install 'cosyjit[hub]'")
    try:
        client = Client(model, constants.ENDPOINT.rstrip("/"), {"user-agent": "cosyjit", "accept-encoding": "identity"})
        host, token = client.host, None if constants.HF_HUB_OFFLINE else _token()
    except Exception as error:  # noqa: BLE001  (an address that can be none, a token that cannot be read)
        raise _settings_error(error, str(model)) from None
    if constants.HF_HUB_OFFLINE:
        raise SourceUnavailableError(f"{model}: HF_HUB_OFFLINE is set, so {host} is not asked; unset it")
    return replace(client, headers={**client.headers, "authorization": f"Bearer {token}"}) if token else client


def _token() -> str | None:
    """The user's token, if there is one, and the client may use it by itself."""
    from huggingface_hub import get_token  # noqa: PLC0415  (see `hub`)

    return None if client_constants().HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


_Result = TypeVar("_Result")


def patiently(client: Client, ask: Callable[[], _Result], progress: Callable[[], int] = int) -> _Result:
    """Ask, and ask again after problems that may pass by themselves, for as long as there is progress.

    Raises:
        SourceUnavailableError: they do not pass.
        NoRevisionError, OtherBytesError, CosyjitError: those of `ask`.
    """
    pauses, reached = iter(_PAUSES), progress()
    while True:
        try:
            return ask()
        except PassingError as error:
            problem = error
        if progress() > reached:
            pauses, reached = iter(_PAUSES), progress()
        pause = next(pauses, None)
        if pause is None:
            raise SourceUnavailableError(
                f"{client.model}: {client.host} cannot be reached, or is busy ({problem}); try again later"
            ) from problem
        time.sleep(max(pause, problem.wait))


_FOREIGN_TOKEN: Final = "Invalid credentials in Authorization header"  # noqa: S105  (what the hub says of one)


@contextmanager
def _followed(address: str, headers: Mapping[str, str]) -> Iterator[Answer]:
    """The answer to a request, after redirections; a token goes to the host alone that is asked first."""
    with ExitStack() as stack:
        for _ in range(_HOPS):
            answer = stack.enter_context(_requested(address, headers))
            place = answer.headers.get("location")
            if answer.status not in _REDIRECTIONS or not place:
                break
            stack.close()
            before, address = address, urljoin(address, place)
            if _origin(before) != _origin(address):
                headers = {name: value for name, value in headers.items() if name != "authorization"}
        yield answer


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port


@contextmanager
def _requested(address: str, headers: Mapping[str, str]) -> Iterator[Answer]:
    """The answer to one request, of which nothing is read but its head."""
    from huggingface_hub import get_session  # noqa: PLC0415  (see `hub`)

    session: Any = get_session()
    how: dict[str, Any] = {"headers": dict(headers), "timeout": client_constants().HF_HUB_DOWNLOAD_TIMEOUT}
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", address, follow_redirects=False, **how) as response:
            yield Answer(response.status_code, response.headers, response.iter_raw())
    else:  # that of requests, which has a flag of this name
        with closing(session.get(address, allow_redirects=False, stream=True, **how)) as response:
            read = getattr(response.raw, "read1", response.raw.read)  # urllib3 has read1 from 2.1 on
            blocks = iter(lambda: read(_BLOCK, decode_content=False), b"")
            yield Answer(response.status_code, response.headers, blocks)


def _paced(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The bytes of a file as they arrive.

    Raises:
        PassingError: hardly any do.
    """
    came, end = 0, time.monotonic() + _MINUTE
    for block in blocks:
        came += len(block)
        yield block
        if came >= _LEAST:
            came, end = 0, time.monotonic() + _MINUTE
        elif time.monotonic() > end:
            raise PassingError("hardly anything arrives")


def _write(file: FileIO, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


def _pause(asked: str) -> float:
    """How long a hub wants us to wait, in s; of a date, nothing is known."""
    return min(float(asked), _LONGEST_PAUSE) if re.fullmatch("[0-9]{1,6}", asked) else 0.0


def _settings_error(error: BaseException, what: str) -> SourceError:
    """The error of a client whose settings do not allow any request."""
    return SourceError(
        f"{what}: the settings of the Hugging Face client cannot be used ({type(error).__name__}); correct HF_ENDPOINT "
        "and HF_TOKEN, or log in again"
    )


def incompatible_error(client: Client, reason: str) -> SourceError:
    """The error of a client or hub that behaves in an unknown way, so that no later try would succeed."""
    return SourceError(
        f"{client.model}: {client.host} does not answer as a hub does, or huggingface_hub {version('huggingface_hub')} "
        f"is not a client that cosyjit supports ({reason}); see whether HF_ENDPOINT is right, and install "
        "'cosyjit[hub]'"
    )
