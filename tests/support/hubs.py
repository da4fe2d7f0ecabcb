"""What the small hubs on loopback have in common: how they run, what goes wrong as a test wants it, and uploads."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from typing_extensions import Self

from tests.support.files import sha256


class Asked(Protocol):
    """A request that a hub was asked."""

    @property
    def kind(self) -> str:
        """What for; "other" is anything that the client has no business to ask for."""

    @property
    def name(self) -> str:
        """That of the file; of an upload, its SHA-256."""

    @property
    def headers(self) -> Mapping[str, str]:
        """All of them, by names in small letters."""


R = TypeVar("R", bound=Asked)


@dataclass
class Failure:
    """What is to go wrong, and how often.

    Attributes:
        kind: with which requests.
        name: of which file; any for "".
        times: how often, None for always.
        status: of the answer; 0 where that begins as it should.
        code: what `X-Error-Code` says, on Hugging Face.
        headers: of the answer.
        cut: how much of the body comes before the connection ends; of an upload, how much of that is taken.
        content: the body, in place of the right one.
        until: what is waited for where the body is cut, which goes on then.
        unsized: whether the body has no size, and ends with the connection; on Hugging Face, as the next two.
        endless: whether it never ends.
        drip: the time between one byte of it and the next, in s.
    """

    kind: str
    name: str = ""
    times: int | None = 1
    status: int = 0
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    content: bytes | None = None
    until: threading.Event | None = None
    unsized: bool = False
    endless: bool = False
    drip: float = 0.0


H = TypeVar("H", bound="LoopbackHub[Any]")


class LoopbackHub(ABC, Generic[R]):
    """A hub, entered to run.

    Attributes:
        kinds: of requests, but for "other".
        handler: what answers them.
        requests: all that it was asked for, in order.
        token: what a client has to show for anything; nothing for "".
        writer: what a client has to show to push; nothing for "".
        uploads: the files that were uploaded, by their SHA-256, whether a commit has them or not.
        meanwhile: called with each request before it is answered.
    """

    kinds: ClassVar[tuple[str, ...]]
    handler: ClassVar["type[Handler]"]

    def __init__(self) -> None:
        self.requests: list[R] = []
        self.token = self.writer = ""
        self.uploads: dict[str, bytes] = {}
        self.meanwhile: Callable[[R], object] = lambda request: None  # noqa: ARG005
        self.lock = threading.RLock()
        self._failures: list[Failure] = []
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Be there, again at the same address."""
        server = _Server(self, self._port)
        self._server, self._port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def elsewhere(self) -> str:
        """Where the bytes of large files are: the same server, under the name of another host."""
        return f"http://localhost:{self._port}"

    def fail(self, kind: str, **what: Any) -> Failure:
        """Let requests fail from now on; see `Failure`."""
        failure = Failure(kind, **what)
        self._failures.append(failure)
        return failure

    def down(self) -> None:
        """Be there for nobody, without the wait that one who is not there at all is worth."""
        self._failures = [Failure(kind, times=None, status=503, headers={"Retry-After": "0"}) for kind in self.kinds]

    def mend(self) -> None:
        """Let nothing fail any more."""
        self._failures.clear()

    def failing(self, kind: str, name: str) -> Failure | None:
        """What is to go wrong with a request, which counts as one of the times."""
        with self.lock:
            for failure in self._failures:
                if failure.kind == kind and failure.name in {"", name} and failure.times != 0:
                    failure.times = None if failure.times is None else failure.times - 1
                    return failure
            return None

    @abstractmethod
    def is_download(self, request: R) -> bool:
        """Whether a request is for a file."""

    @property
    def downloads(self) -> list[str]:
        """The names of the files that were downloaded, once for each request."""
        return [each.name for each in self.requests if self.is_download(each)]

    @property
    def ranges(self) -> list[str]:
        """Which parts of files were asked for; "" for all of one."""
        return [each.headers.get("range", "") for each in self.requests if self.is_download(each)]

    def count(self, kind: str) -> int:
        """How many requests of a kind there were."""
        return sum(each.kind == kind for each in self.requests)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: LoopbackHub[Any], port: int) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", port), hub.handler)

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no error here."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Any:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def log_message(self, *_: object) -> None:
        """The requests of the hub are its log."""

    def take_upload(self, digest: str) -> None:
        """Receive a file that is announced by its SHA-256, and answer."""
        failure = self.hub.failing("upload", digest)
        size = int(self.headers["Content-Length"])
        content = self.rfile.read(size if failure is None or failure.cut is None else failure.cut)
        if failure is not None and failure.until is not None:
            failure.until.wait()
        if len(content) < size:
            self.close_connection = True
        elif failure is not None and failure.status:
            self.send_body(failure.status, b"<Error><Code>AccessDenied</Code></Error>", failure.headers)
        elif sha256(content) != digest:
            self.send_body(400, b"<Error><Code>XAmzContentSHA256Mismatch</Code></Error>", {})
        else:
            self.hub.uploads[digest] = content
            self.send_body(200, b"", {})

    def send_body(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_content(self, content: bytes, headers: Mapping[str, str], failure: Failure | None) -> None:
        """Answer with bytes, or the part of them that is wanted."""
        if failure is not None and failure.content is not None:
            content = failure.content
        size = len(content)
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        start, _, end = wanted.partition("-")
        first, last = int(start or 0), int(end or size - 1)
        if wanted and first >= size:
            self.send_body(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
            return
        self.send_response(206 if wanted else 200)
        ranges = {"Content-Range": f"bytes {first}-{last}/{size}"} if wanted else {}
        sizes = {"Content-Length": str(last + 1 - first)}
        for name, value in {**headers, **ranges, **sizes, **(failure.headers if failure else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        body = content[first : last + 1] if self.command != "HEAD" else b""
        cut = len(body) if failure is None or failure.cut is None else failure.cut
        self.wfile.write(body[:cut])
        if cut < len(body):
            self.wfile.flush()
            if failure is not None and failure.until is not None:
                failure.until.wait()
                self.wfile.write(body[cut:])
            else:
                self.close_connection = True
