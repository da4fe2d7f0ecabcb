"""Tokenizers of base models, in both forms: documents of which one value, or a few, became another."""

import json
import tempfile
from pathlib import Path
from typing import Any, Final

from cosyjit.configuration.base_tokenizer import BYTES, MERGES, PARTS, SETTINGS, VOCABULARY, WHOLE, read_tokenizer
from cosyjit.families import COSYVOICE2_HF
from cosyjit.hf.vocabulary import merged
from tests.support.mutations import mutator

_ADDED: Final = {"<|endoftext|>": 257, "<|im_start|>": 258, "<|im_end|>": 259}
_FLAGS: Final = {"special": True, "normalized": False}
_NUMBERS: Final = {**{symbol: number for number, symbol in enumerate(BYTES)}, "th": 256}
_LISTED: Final = {str(number): {"content": token, **_FLAGS} for token, number in _ADDED.items()}
_BYTES: Final = {"type": "ByteLevel"}
_FORMS: Final[tuple[dict[str, Any], ...]] = (
    {
        SETTINGS: {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": _LISTED, "model_max_length": 9},
        VOCABULARY: _NUMBERS,
        MERGES: "#version: 0.2\nt h\n",
    },
    {
        SETTINGS: {"added_tokens_decoder": _LISTED},
        WHOLE: {
            "added_tokens": [{"id": number, "content": token, **_FLAGS} for token, number in _ADDED.items()],
            **PARTS,
            "decoder": _BYTES,
            "post_processor": _BYTES,
            "model": {"type": "BPE", "dropout": None, "vocab": _NUMBERS, "merges": ["t h"]},
        },
    },
)
"""The files of a folder, by their names."""


def _written(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


SEEDS: Final = [*map(_written, _FORMS)]

mutate = mutator(SEEDS, _written)


def read(content: bytes) -> None:
    directory = Path(tempfile.gettempdir(), "model")
    folder = directory / "CosyVoice-BlankEN"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SETTINGS, WHOLE, VOCABULARY, MERGES):
        (folder / name).unlink(missing_ok=True)
    try:
        files = json.loads(content)
    except (ValueError, RecursionError):
        files = {SETTINGS: {}, WHOLE: content}
    for name in (SETTINGS, WHOLE, VOCABULARY, MERGES):
        if isinstance(files, dict) and name in files:
            (folder / name).write_bytes(_content(files[name]))
    vocabulary = merged(read_tokenizer(directory), COSYVOICE2_HF.tokens, 67, 300, "llm.pt")
    json.loads(vocabulary.tokenizer())
    assert len(vocabulary) == vocabulary.offset + 69


def _content(value: Any) -> bytes:
    if isinstance(value, bytes | str):
        return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return json.dumps(value).encode()
