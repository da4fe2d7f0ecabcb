"""What a hub answers when it is asked for the files of a model, through its own client."""

import io
import json
import os
from typing import Any, Final

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPResponse

from cosyjit.sources import modelscope, snapshots
from cosyjit.sources.hub import Model
from tests.fuzz._listings import answer, check
from tests.support.mutations import mutator

os.environ["MODELSCOPE_ENDPOINT"] = "http://127.0.0.1:9"
_MODEL: Final = Model("iic/CosyVoice-300M")
_ENTRY: Final = {
    "CommittedDate": 1_700_000_000,
    "Name": "llm.pt",
    "Path": "llm.pt",
    "Revision": "c" * 40,
    "Sha256": "0" * 64,
    "Size": 5,
    "Type": "blob",
}
_FILES: Final = [_ENTRY, {**_ENTRY, "Name": "cosyvoice.yaml", "Path": "cosyvoice.yaml", "Sha256": "1" * 64}]
SEEDS: Final = [
    json.dumps({"Code": 200, "Data": {"Files": _FILES}, "Message": "success", "Success": True}).encode(),
    json.dumps({"Data": _FILES}).encode(),
]


class _Answering(BaseAdapter):
    """A connection on which every request gets one answer."""

    content = b""
    _adapter = HTTPAdapter()

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        body = HTTPResponse(io.BytesIO(self.content), {"Content-Type": "application/json"}, 200, preload_content=False)
        return self._adapter.build_response(request, body)

    def close(self) -> None:
        """There is nothing to be closed."""


_CONNECTION: Final = _Answering()
requests.Session.get_adapter = lambda *_, **__: _CONNECTION  # type: ignore[method-assign]  # a server takes longer


def read(content: bytes) -> None:
    _CONNECTION.content = content
    check(_MODEL, modelscope.listing(_MODEL, snapshots.NAMES))


mutate = mutator(SEEDS, answer)
