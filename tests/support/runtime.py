"""What the public runtime does with the zips, as a program of its own: it knows torch and the files, and nothing else.

    python -I consumer.py FAMILY ZIPS INPUTS OUTPUTS

ZIPS is a directory of zips under the runtime's names; INPUTS and OUTPUTS are files of `torch.save`, each a dictionary.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Models = dict[str, Any]
Tensors = dict[str, Tensor]


class Mode(NamedTuple):
    """How a zip is called: the type of its weights, of the inputs, and of autocast if that is on."""

    precision: str
    inputs: torch.dtype
    autocast: torch.dtype | None


MODES = {
    "fp32": Mode("fp32", torch.float32, None),
    "fp16": Mode("fp16", torch.float16, None),
    "fp16 under autocast": Mode("fp16", torch.float32, torch.float16),
    "bf16": Mode("bf16", torch.bfloat16, None),
    "bf16 under autocast": Mode("bf16", torch.float32, torch.bfloat16),
    "int8": Mode("int8", torch.float32, None),
}


def lengths(xs: Tensor) -> Tensor:
    return torch.tensor([xs.size(1)], dtype=torch.int32)


# TorchScript rewrites a graph after its first run, so each is run several times.


def cosyvoice(models: Models, inputs: Tensors) -> Iterator[tuple[str, Tensor]]:
    """The text, the speech tokens, and the autoregressive loop: the prompt, then one frame at a time."""
    text, tokens = inputs["text"], inputs["tokens"]
    for turn in range(3):
        ys, mask = models["llm.text_encoder"](text, lengths(text), decoding_chunk_size=1, num_decoding_left_chunks=-1)
        yield from {f"text {turn} ys": ys, f"text {turn} mask": mask}.items()
        ys, mask = models["flow.encoder"](tokens, lengths(tokens))
        yield from {f"tokens {turn} ys": ys, f"tokens {turn} mask": mask}.items()

    prompt, steps = inputs["prompt"], inputs["steps"]
    offset = 0
    att_cache, cnn_cache = torch.zeros((0, 0, 0, 0)), torch.zeros((0, 0, 0, 0))
    for lm_input in (prompt, *steps.split(1, dim=1)):
        frames = lm_input.size(1)
        ys, att_cache, cnn_cache = models["llm.llm"].forward_chunk(
            lm_input,
            offset=offset,
            required_cache_size=-1,
            att_cache=att_cache,
            cnn_cache=cnn_cache,
            att_mask=torch.tril(torch.ones((1, frames, frames))).to(torch.bool),
        )
        yield from {f"chunk {offset} ys": ys, f"chunk {offset} att_cache": att_cache}.items()
        offset += frames


def cosyvoice2(models: Models, inputs: Tensors) -> Iterator[tuple[str, Tensor]]:
    """The speech tokens: as a whole, and as a stream that ends or goes on."""
    tokens, context, encode = inputs["tokens"], inputs["context"], models["flow.encoder"]
    for name, (ys, mask) in {
        "whole": encode(tokens, lengths(tokens), streaming=False),
        "end of stream": encode(tokens, lengths(tokens), streaming=True),
        "stream": encode(tokens, lengths(tokens), context=context, streaming=True),
    }.items():
        yield from {f"{name} ys": ys, f"{name} mask": mask}.items()


FAMILIES: dict[str, tuple[tuple[str, ...], Callable[[Models, Tensors], Iterator[tuple[str, Tensor]]]]] = {
    "cosyvoice": (("llm.text_encoder", "llm.llm", "flow.encoder"), cosyvoice),
    "cosyvoice2": (("flow.encoder",), cosyvoice2),
}
"""The names of each family's encoders, and the calls of them."""


def find(zips: Path, name: str, precision: str) -> Path:
    """The zip of an encoder; one that is not made at a precision is used in fp32."""
    path = zips / f"{name}.{precision}.zip"
    return path if path.exists() else zips / f"{name}.fp32.zip"


def main(family: str, zips: str, inputs: str, outputs: str) -> None:
    """Load the zips and make all calls in every mode."""
    names, calls = FAMILIES[family]
    given: Tensors = torch.load(inputs)
    found: dict[str, Tensors] = {}
    with torch.inference_mode():
        for title, mode in MODES.items():
            models = {
                name: torch.jit.load(find(Path(zips), name, mode.precision), map_location="cpu") for name in names
            }
            xs = {name: tensor.to(mode.inputs) for name, tensor in given.items()}
            with nullcontext() if mode.autocast is None else torch.autocast("cpu", dtype=mode.autocast):
                found[title] = dict(calls(models, xs))
    torch.save({"found": found, "modules": list(sys.modules)}, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
