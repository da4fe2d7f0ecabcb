"""Bounds the answers of a hub, for a client that reads each answer to its end.

`requests` would unpack gzip and deflate without a limit, and its users hold the whole answer in memory.
"""

import zlib
from typing import Any, BinaryIO, Final, cast

from requests import PreparedRequest, Response, Session
from urllib3 import HTTPResponse

from cosyjit.errors import SourceError

_MOST: Final = 4 << 20
"""The most bytes of an answer. A list of a model's files has less than 1,000 for each file."""

_MOST_OF_ERROR: Final = 1 << 16
"""The most bytes of the body of an error or a redirection, of which a line is used at most."""

_BLOCK: Final = 1 << 16
"""How much is received at a time, in bytes."""

_PACKED: Final = {"gzip", "x-gzip", "deflate"}


class Bounds:
    """Bounds the answers that come in over a session.

    Args:
        what: the beginning of the messages of errors.
        files: whether answers are files, which are read in pieces and may have any size.
    """

    def __init__(self, what: str, *, files: bool) -> None:
        self._what, self._files = what, files

    def apply(self, session: Session) -> None:
        """Bound the answers of a session from now on, and request them without compression."""
        session.headers["Accept-Encoding"] = "identity"
        session.hooks["response"].append(self._bounded)

    def _bounded(self, response: Response, **_: Any) -> Response:
        """Replace the body of a response by one that is bounded.

        Raises:
            SourceError: the body is encoded in a way that was not requested.
        """
        encoding = response.headers.pop("Content-Encoding", "identity").strip().lower()
        is_file = self._files and response.ok and not response.is_redirect
        if encoding not in ({"", "identity"} if is_file else {"", "identity", *_PACKED}):
            response.close()
            raise SourceError(
                f"{self._what}: {_host(response.request)} sends its answers in the encoding {encoding[:20]!r}, which "
                "was not requested; see whether MODELSCOPE_ENDPOINT is right, or try again later"
            )
        if not is_file:
            packed = encoding in _PACKED
            if packed:
                response.headers.pop("Content-Length", None)  # that of the packed body
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
    """The body of an answer, as a file that urllib3 reads. Only as much is unpacked as is read.

    If it is too long, the body of an error is cut, and the body of any other answer is refused.
    """

    def __init__(self, response: Response, what: str, *, packed: bool) -> None:
        self._raw = response.raw
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32) if packed else None
        self._is_error = not response.ok or response.is_redirect
        self._left = _MOST_OF_ERROR if self._is_error else _MOST
        self._what, self._host = what, _host(response.request)
        self._waiting = b""
        self.closed = False  # everything may be received before it is unpacked

    def close(self) -> None:
        self.closed = True
        self._raw.close()

    def read(self, size: int | None = None) -> bytes:
        """Up to `size` bytes, or all that remain."""
        content = bytearray()
        while (size is None or size < 0 or len(content) < size) and (
            block := self.read1(_BLOCK if size is None or size < 0 else size - len(content))
        ):
            content += block
        return bytes(content)

    def read1(self, size: int = _BLOCK) -> bytes:
        """The next bytes, as soon as there are any; empty at the end.

        Raises:
            SourceError: the body is too long.
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
            f"{self._what}: {self._host} answers with more than {_MOST:,} bytes where a short list is expected; "
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
        receive = getattr(self._raw, "read1", self._raw.read)  # urllib3 has read1 from 2.1 on
        return b"" if self._raw.closed else receive(size, decode_content=False)
