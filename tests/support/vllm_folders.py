"""vLLM's folders of model directories, and the entries that they are planned from."""

from pathlib import Path
from typing import Final, NamedTuple

from cosyjit.configuration.base_model import BASE, CONFIG, GENERATION, read_qwen2_config
from cosyjit.families import COSYVOICE2_VLLM, COSYVOICE3_VLLM, PRECISIONS, Component
from cosyjit.folders import folder as folders
from cosyjit.vllm.rules import Folder, plan_folder
from cosyjit.weights.tensors import Entries
from tests.support.weights_index import indexed_file

FILES: Final = (f"{BASE}/{CONFIG}", f"{BASE}/{GENERATION}")
"""What is read of a base model, by the names in a model directory."""

FOLDERS: Final = {"tiny2": COSYVOICE2_VLLM, "tiny3": COSYVOICE3_VLLM}
"""The components, by the fixtures of the directories that have them."""


def component_of(directory: Path) -> Component:
    """Which of them a stand-in has, by its configuration's name."""
    return COSYVOICE2_VLLM if (directory / "cosyvoice2.yaml").exists() else COSYVOICE3_VLLM


def entries_of(directory: Path) -> Entries:
    """What the weights file holds."""
    return indexed_file(directory / "llm.pt")


def planned(directory: Path, entries: Entries | None = None) -> Folder:
    """What the folder of a stand-in will be, or would be of other entries."""
    found = entries_of(directory) if entries is None else entries
    return plan_folder(component_of(directory), read_qwen2_config(directory), directory / "llm.pt", found)


class Written(NamedTuple):
    """A folder that was written: the digests of its files as the gate finds them, and the numbers that became 0."""

    digests: dict[str, str]
    underflows: int


def write(directory: Path, out: Path, precision: str = "bf16") -> tuple[Folder, Written]:
    """Plan, write and verify the folder of a stand-in, here."""
    folder = planned(directory)
    out.mkdir(parents=True)
    underflows = folders.write(folder, directory / "llm.pt", out, PRECISIONS[precision], lambda _: None)
    return folder, Written(verify(folder, directory, out, precision), underflows)


def verify(folder: Folder, directory: Path, out: Path, precision: str = "bf16") -> dict[str, str]:
    """The product's own gate, here."""
    return folders.verify(folder, directory / "llm.pt", out, PRECISIONS[precision], lambda _: None)
