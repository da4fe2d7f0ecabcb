"""A plain exporter, as a yardstick: whole files loaded, one thing after the other, nothing checked.

python -m benchmarks.plain_export MODEL_DIR OUT_DIR
"""

import copy
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from benchmarks.plain import build_plain
from cosyjit.sources.checkpoint import open_checkpoint
from cosyjit.sources.source import open_source


def save(encoder: nn.Module, methods: tuple[str, ...], path: Path) -> None:
    """Script, freeze and optimize an encoder, and save it, as the public exporter does."""
    scripted = torch.jit.script(encoder)
    frozen = torch.jit.freeze(scripted, preserved_attrs=list(methods))
    torch.jit.optimize_for_inference(frozen).save(str(path))


def main(source: Path, out: Path) -> None:
    """Write the zips of a model directory, in fp32 and fp16, into another directory."""
    warnings.simplefilter("ignore", DeprecationWarning)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(open_source(source))
    parts = [part for part in checkpoint.family.components if part.kind == "zip" and not part.on_request]
    files = {part.weights for part in parts}
    states = {file: torch.load(source / file, map_location="cpu", weights_only=True) for file in files}
    for part in parts:
        encoder = build_plain(part.class_name, checkpoint.options(part))
        state = states[part.weights]
        encoder.load_state_dict({k.removeprefix(part.prefix): v for k, v in state.items() if k.startswith(part.prefix)})
        half = copy.deepcopy(encoder).half()
        save(encoder, part.methods, out / f"{part.name}.fp32.zip")
        save(half, part.methods, out / f"{part.name}.fp16.zip")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
