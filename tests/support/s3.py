"""A real S3 server on this machine, and a proxy that can be put in front of it to watch, refuse or cut what is said.

The fixture `s3` gives one test its share of the server: with it stores can be at `s3.url()`, in this process and in
those that it starts.
"""

import http.client
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import pytest

_SERVE: Final = """
import sys
from datetime import timedelta
from moto.backends import get_backend
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
for line in sys.stdin:
    bucket, seconds = line.split()
    for key in get_backend("s3")["123456789012"]["aws"].buckets[bucket].keys.values():
        key.last_modified -= timedelta(seconds=float(seconds))
    print(flush=True)
"""

SECRET: Final = "0wn3d-by-the-tests-alone"  # noqa: S105  (no server asks for it)
"""The secret key that tests have: it must not stand anywhere."""


class Server:
    """A process that speaks S3, from its first use on; it ends with the one that started it.

    Its buckets are seen with boto3, which shares no client with the stores that are tested.
    """

    def __init__(self) -> None:
        import boto3  # type: ignore[import-untyped]  # noqa: PLC0415  (most tests do without)

        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        host, port = self._process.stdout.readline().split()
        self.endpoint = f"http://{host}:{port}"
        self.env: Final = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # where there are no other credentials, none are looked for in a cloud
        }
        self.client: Final[Any] = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="tests",
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def age(self, bucket: str, seconds: float) -> None:
        """Have all that is in a bucket be older than it is."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(bucket, seconds, file=stdin, flush=True)
        assert stdout.readline() == "\n"

    def stop(self) -> None:
        with self._process:
            self._process.communicate()


class Service:
    """A server as one test has it, with the environment of this process set for it.

    Attributes:
        env: the same for a process that is started with an environment of its own.
        client: boto3's, for a look from the side.
    """

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.env = dict(server.env)
        self.client = server.client
        self._server = server
        self._monkeypatch = monkeypatch
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            monkeypatch.delenv(name)
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)

    def url(self) -> str:
        """A new place for a store, in a bucket of its own, which exists."""
        bucket = f"bucket-{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=bucket)
        return f"s3://{bucket}/a/prefix"

    def age(self, url: str, seconds: float) -> None:
        """Have all that is in the bucket of a store be older than it is."""
        self._server.age(url.removeprefix("s3://").partition("/")[0], seconds)

    @contextmanager
    def proxied(self, watch: "Watch") -> Iterator[None]:
        """Have a proxy between the server and all who reach for it first while this lasts, here or in a new process."""
        with proxy(self.env["AWS_ENDPOINT_URL"], watch) as endpoint, self._monkeypatch.context() as patched:
            patched.setenv("AWS_ENDPOINT_URL", endpoint)
            yield

    def etag(self, url: str) -> str:
        """What a server makes of an object's parts: their number stands at the end, if there were some."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return str(self.client.head_object(Bucket=bucket, Key=key)["ETag"]).strip('"')

    def uploads(self, url: str) -> list[str]:
        """The keys of the uploads in a bucket that have parts and no end."""
        bucket = url.removeprefix("s3://").partition("/")[0]
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


class Answer(NamedTuple):
    """What a proxy says in place of the server: an error, by its status and S3's code."""

    status: int
    code: str = ""
    message: str = "the proxy says so"


class Cut(NamedTuple):
    """So many bytes of the body that the server answers with, and then no connection; for None not even a head."""

    after: int | None = None


class Gone(NamedTuple):
    """No server: the connection ends, and the server has nothing of the request."""


class Short(NamedTuple):
    """A body that lacks so many bytes at its end, of a length that says nothing of them.

    Attributes:
        summed: whether the answer has the checksums that the server gave it. Not all servers know of them.
    """

    less: int
    summed: bool = False


Fault = Answer | Cut | Gone | Short

Watch = Callable[[str, str], Fault | None]
"""Is told the method and the path of each request, in threads of the proxy's, before the server has it."""


@contextmanager
def proxy(server: str, watch: Watch) -> Iterator[str]:
    """Pass on what comes in on a port, but for what a watch wants otherwise; gives the URL."""

    class Handler(_Handler):
        upstream, watching = urlsplit(server).netloc, staticmethod(watch)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: str
    watching: Watch

    def _handle(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        wanted = self.watching(self.command, self.path)
        if isinstance(wanted, Answer):
            self._answer(wanted)
            return
        if isinstance(wanted, Gone):
            self.close_connection = True
            return
        server = http.client.HTTPConnection(self.upstream)
        server.request(self.command, self.path, content, dict(self.headers))
        answer = server.getresponse()
        body = answer.read()
        server.close()
        if isinstance(wanted, Short):
            body = body[: max(0, len(body) - wanted.less)]
        cut = wanted if isinstance(wanted, Cut) else None
        self.close_connection = cut is not None
        if cut and cut.after is None:
            return
        self.send_response_only(answer.status)
        unsummed = isinstance(wanted, Short) and not wanted.summed
        for name, value in answer.getheaders():
            dropped = unsummed and name.lower().startswith("x-amz-checksum-")
            if not dropped and name.lower() not in {"connection", "content-length", "transfer-encoding"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(body[: cut.after] if cut else body)

    def _answer(self, answer: Answer) -> None:
        text = f"<Error><Code>{answer.code}</Code><Message>{answer.message}</Message></Error>".encode()
        self.send_response_only(answer.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815  (the server's names)

    def log_message(self, *_: object) -> None:
        """Nothing: the watch sees it all."""
