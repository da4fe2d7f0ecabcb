"""What Hugging Face answers when it is asked for the files of a model."""

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from cosyjit.sources import hugging_face, snapshots
from cosyjit.sources.hub import Model
from cosyjit.sources.hugging_face_client import Client
from cosyjit.sources.snapshots import Snapshot
from tests.support.mutations import mutator

_MODEL: Final = Model("FunAudioLLM/CosyVoice2-0.5B", scheme="hf")
_CLIENT: Final = Client(_MODEL, "http://127.0.0.1:9", {})
_LARGE: Final = {"rfilename": "llm.pt", "blobId": "1" * 40, "lfs": {"sha256": "0" * 64, "size": 5, "pointerSize": 130}}
_FILES: Final = [_LARGE, {"rfilename": "cosyvoice2.yaml", "blobId": "2" * 40, "size": 7}]
SEEDS: Final = [json.dumps({"id": _MODEL.id, "sha": "c" * 40, "siblings": _FILES}).encode()]


def read(content: bytes) -> None:
    found = hugging_face.read_listing(_CLIENT, content, snapshots.NAMES)
    snapshot = Snapshot(_MODEL, found.revision, found.endpoint, found.files)
    root = os.path.realpath(snapshots._root(_MODEL))
    for each in snapshot.files:
        assert each.name in snapshots.NAMES
        for path in (snapshot.directory, snapshot.path(each.name), snapshots._incoming(_MODEL, each)):
            assert os.path.realpath(path).startswith(f"{root}/"), path
        assert f"{snapshot} {each} {snapshot.uri(each.name)}".isprintable()
    snapshots._check_room(snapshot, snapshot.files)


def _listed(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()


mutate = mutator(SEEDS, _listed)
