"""Answers of a hub to a client that reads each to its end: unpacked by us, and cut where they get too long.

`requests` unpacks what is sent as gzip or deflate, however much it comes to, and its users then hold all of it.
"""

import zlib
from typing import Any, BinaryIO, Final, cast

from requests import PreparedRequest, Response, Session
from urllib3 import HTTPResponse

from cosyjit.errors import SourceError

_MOST: Final = 4 << 20
"""In bytes, of an answer. A list of a model's files has less than 1,000 for each."""

_MOST_OF_ERROR: Final = 1 << 16
"""In bytes, of the body of an error or a redirection, of which a line is used at most."""

_BLOCK: Final = 1 << 16
"""How much is received at a time, in bytes."""

_PACKED: Final = {"gzip", "x-gzip", "deflate"}


class Bounds:
    """Bounds the answers that come in over a session.

    Args:
        what: begins the messages of errors.
        files: whether answers are files, which are read in pieces and may have any size.
    """

    def __init__(self, what: str, *, files: bool) -> None:
        self._what, self._files = what, files

    def apply(self, session: Session) -> None:
        """Bound what comes in over a session from now on, and ask for it as it is."""
        session.headers["Accept-Encoding"] = "identity"
        session.hooks["response"].append(self._bounded)

    def _bounded(self, response: Response, **_: Any) -> Response:
        """
        Raises:
            SourceError: it is packed in a way that nobody has asked for.
        """
        encoding = response.headers.pop("Content-Encoding", "identity").strip().lower()
        is_file = self._files and response.ok and not response.is_redirect
        if encoding not in ({"", "identity"} if is_file else {"", "identity", *_PACKED}):
            response.close()
            raise SourceError(
                f"{self._what}: {_host(response.request)} sends its answers in the encoding {encoding[:20]!r}, which "
                "was not asked for; see whether MODELSCOPE_ENDPOINT is right, or try again later"
            )
        if not is_file:
            packed = encoding in _PACKED
            if packed:
                response.headers.pop("Content-Length", None)  # of what is sent
            body = _Body(response, self._what, packed=packed)
            response.raw = HTTPResponse(
                cast("BinaryIO", body),
                response.headers,
                response.status_code,
                preload_content=False,
                original_response=response.raw._original_response,  # noqa: SLF001  (where requests looks for cookies)
            )
        return response


def _host(request: PreparedRequest) -> str:
    return (request.url or "").split("/")[2].rpartition("@")[2]


class _Body:
    """The body of an answer, as a file that urllib3 reads; no more is unpacked than is read.

    The body of an error ends where it gets too long; that of another answer is an error then.
    """

    def __init__(self, response: Response, what: str, *, packed: bool) -> None:
        self._raw = response.raw
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32) if packed else None
        self._is_error = not response.ok or response.is_redirect
        self._left = _MOST_OF_ERROR if self._is_error else _MOST
        self._what, self._host = what, _host(response.request)
        self._waiting = b""
        self.closed = False  # all may have been received, and not be unpacked

    def close(self) -> None:
        self.closed = True
        self._raw.close()

    def read(self, size: int | None = None) -> bytes:
        """As much as that, or all there is."""
        found = bytearray()
        while (size is None or size < 0 or len(found) < size) and (
            block := self.read1(_BLOCK if size is None or size < 0 else size - len(found))
        ):
            found += block
        return bytes(found)

    def read1(self, size: int = _BLOCK) -> bytes:
        """What comes next, soon; nothing at the end.

        Raises:
            SourceError: there is too much of it.
            zlib.error: it is damaged.
        """
        block = self._next(min(size, _BLOCK, self._left + 1))
        self._left -= len(block)
        if self._left >= 0:
            return block
        self.close()
        if self._is_error:
            return b""
        raise SourceError(
            f"{self._what}: {self._host} answers with more than {_MOST:,} bytes where a short list is due; "
            "see whether MODELSCOPE_ENDPOINT is right, or try again later"
        )

    def _next(self, size: int) -> bytes:
        if self._inflater is None:
            return self._receive(size)
        while not self._inflater.eof:
            packed = self._waiting or self._receive(_BLOCK)
            block = self._inflater.decompress(packed, size)
            self._waiting = self._inflater.unconsumed_tail
            if block or not packed:
                return block
        return b""

    def _receive(self, size: int) -> bytes:
        receive = getattr(self._raw, "read1", self._raw.read)  # which urllib3 has from 2.1 on
        return b"" if self._raw.closed else receive(size, decode_content=False)
