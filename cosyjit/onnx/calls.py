"""The calls by which an ONNX file and its estimator are compared: at the lengths and on the inputs of runtimes.

what a graph could get wrong                    calls that show it
lengths: odd, even, shorter than a chunk        4, 16, 257 and 512 frames; a chunk, and one frame more
which input is which                            each call: all inputs are random
keys that are padded                            padded batches
frames that are padded, in the output           padded batches; a row of padding alone
frames that are padded, next to real ones       padded batches: halving looks from the last of an odd number of real
                                                frames at a padded one, and doubling from that of an even number
a row of zeros, for guidance                    the batch of guidance
the time, at its ends and between               0, 1, and others for each row
errors that add up                              ten steps of the solver
a batch of any size                             one and three rows
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from cosyjit.onnx.forms import BATCH, Form

_LENGTHS: Final = {4: (0, 1), 16: (0.3, 0.7), 257: (0.05, 0.5), 512: (1, 0.2)}
"""In frames, and the times of the two rows."""
_SOLVED: Final = 20
"""The frames that the solver is run over."""


class Call(NamedTuple):
    """A call of an estimator.

    Attributes:
        name: in messages.
        inputs: float32, by their names in the file, in its order.
    """

    name: str
    inputs: dict[str, Tensor]


def calls(form: Form, sizes: Mapping[str, int], chunk: int) -> Iterator[Call]:
    """The calls of a form, but for the solver's.

    Args:
        form: that of the file.
        sizes: the channels of each input that has some.
        chunk: the frames of a chunk; 0 if there are no chunks.
    """
    for length, times in _LENGTHS.items():
        yield Call(f"{length} frames", _inputs(sizes, [length] * BATCH, times))
    for lengths in ([33, 20], [24, 13]):
        name = f"a padded batch of {lengths[0]} and {lengths[1]} frames"
        yield Call(name, _inputs(sizes, lengths, [0.1, 0.9]))
    yield Call("a batch of 7 frames and of none", _inputs(sizes, [7, 0], [0.4, 0.6]))
    if form.streaming and chunk:
        for length in (chunk, chunk + 1):
            yield Call(f"{length} frames in chunks of {chunk}", _inputs(sizes, [length] * BATCH, [0.15, 0.85]))
        lengths = [2 * chunk + 1, chunk - 1]
        yield Call(f"a padded batch in chunks of {chunk}", _inputs(sizes, lengths, [0.25, 0.75]))
    if form.dynamic_batch:
        yield Call("one row", _inputs(sizes, [16], [0.35]))
        yield Call("three rows", _inputs(sizes, [16, 9, 1], [0.35, 0.45, 0.55]))
    guided = _inputs(sizes, [41] * BATCH, [0.25] * BATCH)
    guided["x"][1] = guided["x"][0]
    for name in ("mu", "spks", "cond"):
        guided[name][1] = 0
    yield Call("a batch of guidance, of 41 frames", guided)


def utterance(sizes: Mapping[str, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the solver is given: noise, mu, spks and cond of one row."""
    inputs = _inputs(sizes, [_SOLVED], [0])
    return inputs["x"], inputs["mu"], inputs["spks"], inputs["cond"]


def _inputs(sizes: Mapping[str, int], lengths: Sequence[int], times: Sequence[float]) -> dict[str, Tensor]:
    """Random inputs of a batch, the same at each time, with numbers in padded frames as well."""
    rows, longest = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(longest * 8 + rows)

    def drawn(name: str) -> Tensor:
        return torch.randn(rows, sizes[name], *([] if name == "spks" else [longest]), generator=generator)

    x, mu, spks, cond = (drawn(name) for name in ("x", "mu", "spks", "cond"))
    mask = (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).unsqueeze(1).float()
    return {"x": x, "mask": mask, "mu": mu, "t": torch.tensor(times, dtype=torch.float32), "spks": spks, "cond": cond}
