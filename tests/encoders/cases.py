"""Configurations, batches and chunks for the tests of the encoders, and what it is to be the same."""

from typing import Any, Final, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.encoders.vectors import CONFORMER, TRANSFORMER, UPSAMPLE_CONFORMER, frames

EXACT: Final = 1e-6
"""In float64. The tables of positions are float32 and may differ in their last bit."""
SINGLE: Final = 5e-5
"""In float32."""

PUBLISHED: Final = {
    "input_layer": "linear",
    "pos_enc_layer_type": "rel_pos_espnet",
    "selfattention_layer_type": "rel_selfattn",
}
BARE: Final = {"use_cnn_module": False, "macaron_style": False}
TINY: Final = {"input_size": 12, "output_size": 16, "attention_heads": 4, "linear_units": 24, "num_blocks": 2}
UPSAMPLE_OPTIONS: Final = {
    "input_size": 512,
    "output_size": 512,
    "attention_heads": 8,
    "linear_units": 16,
    "num_blocks": 1,
    "static_chunk_size": 2,
}


class Configuration(NamedTuple):
    """What `build_encoder` takes."""

    class_name: str
    options: dict[str, Any]

    def having(self, **options: Any) -> "Configuration":
        """The same with these options changed."""
        return Configuration(self.class_name, self.options | options)


STREAMING: Final = {
    "transformer": Configuration(TRANSFORMER, PUBLISHED | TINY | {"static_chunk_size": 1}),
    "conformer": Configuration(CONFORMER, PUBLISHED | TINY | BARE),
    "causal convolution": Configuration(
        CONFORMER, PUBLISHED | TINY | {"causal": True, "cnn_module_kernel": 4, "static_chunk_size": 3}
    ),
    "layer norm": Configuration(
        CONFORMER,
        PUBLISHED | TINY | {"cnn_module_norm": "layer_norm", "normalize_before": False, "key_bias": False},
    ),
}
UPSAMPLE: Final = {
    "upsample": Configuration(UPSAMPLE_CONFORMER, PUBLISHED | UPSAMPLE_OPTIONS | BARE),
    "upsample with all": Configuration(UPSAMPLE_CONFORMER, PUBLISHED | UPSAMPLE_OPTIONS | {"cnn_module_kernel": 5}),
}
CONFIGURATIONS: Final = STREAMING | UPSAMPLE


class Batch(NamedTuple):
    """A padded batch: the lengths, the length padded to, and what makes its frames."""

    lengths: list[int]
    padded: int
    seed: int

    def inputs(self, size: int) -> tuple[Tensor, Tensor]:
        """xs (B, T, size) in float32, and the lengths (B,)."""
        return frames(f"batch {self.seed}", (len(self.lengths), self.padded, size)), torch.tensor(self.lengths)


class Step(NamedTuple):
    """One call of `forward_chunk`: its number of frames, required_cache_size, and what makes its mask.

    Attributes:
        mask: "none", "no keys" (a last axis of 0), or the axes that are not 1: "", "queries", "keys", "both".
        visible: the share of true entries.
    """

    frames: int
    required: int
    mask: str
    visible: float

    def att_mask(self, cached: int, seed: int) -> Tensor:
        """The mask for this step behind `cached` frames."""
        total = cached + self.frames
        shapes = {
            "none": (0, 0, 0),
            "no keys": (1, self.frames, 0),
            "": (1, 1, 1),
            "queries": (1, self.frames, 1),
            "keys": (1, 1, total),
            "both": (1, self.frames, total),
        }
        return torch.rand(shapes[self.mask], generator=torch.Generator().manual_seed(seed)) < self.visible


class Chunks(NamedTuple):
    """A sequence in chunks."""

    steps: list[Step]
    seed: int


seeds: Final = st.integers(0, 10**6)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """A small Transformer or Conformer of any supported options."""
    heads, head_size = draw(st.sampled_from([(1, 4), (1, 10), (2, 3), (2, 8), (3, 2), (4, 1), (4, 4)]))
    choices: dict[str, st.SearchStrategy[Any]] = {
        "input_size": st.integers(1, 6),
        "linear_units": st.integers(1, 9),
        "num_blocks": st.integers(1, 3),
        "input_layer": st.sampled_from(["linear", "linear_legacy"]),
        "normalize_before": st.booleans(),
        "static_chunk_size": st.integers(0, 4),
        "key_bias": st.booleans(),
        "activation_type": st.sampled_from(["relu", "swish", "gelu", "tanh", "selu", "hardtanh"]),
    }
    class_name = draw(st.sampled_from([TRANSFORMER, CONFORMER]))
    if class_name == CONFORMER:
        causal = draw(st.booleans())
        choices |= {
            "macaron_style": st.booleans(),
            "use_cnn_module": st.booleans(),
            "causal": st.just(causal),
            "cnn_module_kernel": st.integers(1, 6) if causal else st.sampled_from([1, 3, 5]),
            "cnn_module_norm": st.sampled_from(["batch_norm", "layer_norm"]),
        }
    size = {"output_size": heads * head_size, "attention_heads": heads}
    return Configuration(class_name, PUBLISHED | size | draw(st.fixed_dictionaries(choices)))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """A batch in which any sequence, the longest too, may be padded, and any may be empty."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    return Batch(lengths, max(1, *lengths) + draw(st.integers(0, 2)), draw(seeds))


@st.composite
def chunks(draw: st.DrawFn) -> Chunks:
    """Up to five chunks with masks of every kind."""
    step = st.builds(
        Step,
        frames=st.integers(1, 5),
        required=st.integers(-2, 7),
        mask=st.sampled_from(["none", "no keys", "", "queries", "keys", "both"]),
        visible=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    )
    return Chunks(draw(st.lists(step, min_size=1, max_size=5)), draw(seeds))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal shapes and types, and no entry further off than the tolerance."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def assert_same_forward(
    actual: Any, expected: Any, batch: Batch, size: int, dtype: torch.dtype, tolerance: float, **arguments: Any
) -> None:
    """Compare two encoders over whole sequences: masks exactly, outputs where frames are real."""
    xs, lengths = batch.inputs(size)
    ys, mask = actual(xs.to(dtype), lengths, **arguments)
    expected_ys, expected_mask = expected(xs.to(dtype), lengths, **arguments)
    assert torch.equal(mask, expected_mask)
    assert ys.isfinite().all()
    real = mask.squeeze(1)
    assert_near(ys[real], expected_ys[real], tolerance)


def assert_same_chunks(
    actual: Any, expected: Any, sequence: Chunks, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Compare two encoders chunk by chunk, each fed its own caches, and see that no cache given is written to."""
    empty = torch.zeros(0, 0, 0, 0, dtype=dtype)
    caches, expected_caches = (empty, empty), (empty, empty)
    for number, step in enumerate(sequence.steps):
        xs = frames(f"chunk {sequence.seed} {number}", (1, step.frames, size)).to(dtype)
        mask = step.att_mask(caches[0].size(2), sequence.seed + number)
        given = [cache.clone() for cache in caches]
        ys, *next_caches = actual.forward_chunk(xs, sequence.seed, step.required, *caches, mask)
        for cache, before in zip(caches, given, strict=True):
            assert torch.equal(cache, before)
        expected_ys, *expected_caches = expected.forward_chunk(xs, 0, step.required, *expected_caches, mask)
        assert_near(ys, expected_ys, tolerance)
        for cache, expected_cache in zip(next_caches, expected_caches, strict=True):
            assert_near(cache, expected_cache, tolerance)
        caches = next_caches
