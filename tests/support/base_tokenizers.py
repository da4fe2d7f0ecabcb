"""Tokenizers of base models: files for tests to change, and the same tokenizer in its other form."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

from cosyjit.configuration.base_tokenizer import SPLIT

BASE: Final = "CosyVoice-BlankEN"
BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, **values: Any) -> None:
    """Change what a file of JSON says; None takes an entry out."""
    said = {**read(path), **values}
    kept = {name: value for name, value in said.items() if value is not None}
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def only_base(directory: Path, to: Path) -> Path:
    """A directory with nothing but the base model of a stand-in."""
    return Path(shutil.copytree(directory / BASE, to / BASE)).parent


def whole(folder: Path, *, pairs: bool = False) -> dict[str, Any]:
    """What `tokenizer.json` would say of the tokenizer that a folder has in the other form."""
    settings = read(folder / "tokenizer_config.json")
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": int(number), **each} for number, each in settings["added_tokens_decoder"].items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                BYTE_LEVEL,
            ],
        },
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": read(folder / "vocab.json"),
            "merges": [merge.split() for merge in merges] if pairs else merges,
        },
    }


def make_whole(folder: Path, **changes: Any) -> Path:
    """Give a folder its tokenizer in the other form, with changes to parts of it. Gives the path of the file."""
    document = whole(folder)
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        if inner:
            document[outer] = {**document[outer], inner: value}
        else:
            document[outer] = value
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    for other in ("vocab.json", "merges.txt"):
        (folder / other).unlink()
    return path
