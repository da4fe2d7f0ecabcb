"""What Hugging Face answers when it is asked for the files of a model."""

import json
from typing import Final

from cosyjit.sources import hugging_face, snapshots
from cosyjit.sources.hub import Model
from cosyjit.sources.hugging_face_client import Client
from tests.fuzz._listings import answer, check
from tests.support.mutations import mutator

_MODEL: Final = Model("FunAudioLLM/CosyVoice2-0.5B", scheme="hf")
_CLIENT: Final = Client(_MODEL, "http://127.0.0.1:9", {})
_LARGE: Final = {"rfilename": "llm.pt", "blobId": "1" * 40, "lfs": {"sha256": "0" * 64, "size": 5, "pointerSize": 130}}
_FILES: Final = [_LARGE, {"rfilename": "cosyvoice2.yaml", "blobId": "2" * 40, "size": 7}]
SEEDS: Final = [json.dumps({"id": _MODEL.id, "sha": "c" * 40, "siblings": _FILES}).encode()]


def read(content: bytes) -> None:
    check(_MODEL, hugging_face.read_listing(_CLIENT, content, snapshots.NAMES))


mutate = mutator(SEEDS, answer)
