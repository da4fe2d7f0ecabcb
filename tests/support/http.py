"""An HTTP server on loopback that answers as a test asks it to, and remembers what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


@contextmanager
def answering(answer: Callable[[Asked], tuple[int, bytes]]) -> Iterator[tuple[str, list[Asked]]]:
    """A server on loopback: the URL of its API, and what it was asked."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_json = body and self.headers.get("Content-Type") != "application/x-protobuf"
            one = Asked(self.command, self.path, dict(self.headers), json.loads(body) if is_json else body or None)
            asked.append(one)
            status, content = answer(one)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def do_PATCH(self) -> None:
            self.answer()

        def log_message(self, *_: object) -> None:
            """Nothing: standard error is for what is wrong."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
