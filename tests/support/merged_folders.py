"""Merged folders of model directories, planned, written and verified here."""

from pathlib import Path
from typing import Final

from cosyjit.configuration.base_model import read_qwen2_config
from cosyjit.configuration.base_tokenizer import read_tokenizer
from cosyjit.families import COSYVOICE2_HF, COSYVOICE3_HF, PRECISIONS, Component
from cosyjit.folders import folder as folders
from cosyjit.hf.gate import check_tokenizer
from cosyjit.hf.rules import Folder, plan_folder
from cosyjit.weights.tensors import Entries
from tests.support.weights_index import indexed_file

BASE: Final = "CosyVoice-BlankEN"
FILES: Final = [
    *("config.json", "generation_config.json", "model.safetensors", "speech_tokens.json", "tokenizer.json"),
    "tokenizer_config.json",
]
TOKENIZER: Final = [f"{BASE}/{name}" for name in ("tokenizer_config.json", "vocab.json", "merges.txt")]
"""What is read of a tokenizer in a stand-in."""


def component_of(directory: Path) -> Component:
    """Which component a stand-in has, by its configuration's name."""
    return COSYVOICE2_HF if (directory / "cosyvoice2.yaml").exists() else COSYVOICE3_HF


def planned(directory: Path, entries: Entries | None = None) -> Folder:
    """What the folder of a stand-in will be, or would be of other entries."""
    weights = directory / "llm.pt"
    found = indexed_file(weights) if entries is None else entries
    return plan_folder(component_of(directory), read_qwen2_config(directory), read_tokenizer(directory), weights, found)


def write(folder: Folder, directory: Path, out: Path, precision: str = "bf16") -> dict[str, str]:
    """Write and verify a folder of a stand-in, here. Gives the digests of its files."""
    out.mkdir(parents=True)
    folders.write(folder, directory / "llm.pt", out, PRECISIONS[precision], lambda _: None)
    return verify(folder, directory, out, precision)


def verify(folder: Folder, directory: Path, out: Path, precision: str = "bf16") -> dict[str, str]:
    """The product's own gate, here."""
    digests = folders.verify(folder, directory / "llm.pt", out, PRECISIONS[precision], lambda _: None)
    check_tokenizer(folder, out)
    return digests
