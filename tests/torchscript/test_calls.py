"""The calls of the gate: that together they take every branch of an encoder on both sides."""

from collections.abc import Iterator
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from cosyjit.encoders.attention import RelPositionMultiHeadedAttention
from cosyjit.encoders.layers import Linear, pad_mask
from cosyjit.encoders.registry import build_encoder
from cosyjit.encoders.upsample import UpsampleConformerEncoder
from cosyjit.torchscript.calls import STEP, calls, forms, random_cache
from tests.encoders.cases import BARE, CONFIGURATIONS, PUBLISHED, Configuration
from tests.encoders.vectors import CONFORMER, TRANSFORMER, UPSAMPLE_CONFORMER
from tests.support.tiers import sampled

Branch = tuple[str, str, bool]
"""The method, the branch, and the side of it."""

_LARGE: Final = {"input_size": 512, "output_size": 512, "attention_heads": 8, "linear_units": 2048, "num_blocks": 1}
_LARGER: Final = {"input_size": 512, "output_size": 1024, "attention_heads": 16, "linear_units": 4096, "num_blocks": 2}

OF_FULL_WIDTH: Final = {
    "llm.text_encoder": Configuration(CONFORMER, PUBLISHED | BARE | _LARGER | {"static_chunk_size": 1}),
    "llm.llm": Configuration(TRANSFORMER, PUBLISHED | _LARGER | {"static_chunk_size": 1}),
    "flow.encoder": Configuration(CONFORMER, PUBLISHED | BARE | _LARGE),
    "flow.encoder 2": Configuration(UPSAMPLE_CONFORMER, PUBLISHED | BARE | _LARGE | {"static_chunk_size": 25}),
}


class Recorder:
    """An encoder without memory that says which side of each branch it takes. Its outputs are zeros."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.taken: set[Branch] = set()
        self.method = ""
        self.farthest = 0
        for module in encoder.modules():
            if isinstance(module, Linear):
                module.register_forward_pre_hook(self._linear)
            elif isinstance(module, RelPositionMultiHeadedAttention):
                module.register_forward_pre_hook(self._attention)

    def __call__(self, xs: Tensor, xs_lens: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        self.method = "forward"
        frames, chunk = xs.size(1), self.encoder.static_chunk_size
        self._take("padded", bool((xs_lens < frames).any()))
        self._take("a context", "context" in options)
        self._take("streaming", options.get("streaming", False))
        if options.get("streaming", True):
            self._take("a fourth chunk", frames > 3 * chunk > 0)
        given = {name: _meta(value) for name, value in options.items()}
        ys, _ = self.encoder(_meta(xs), _meta(xs_lens), **given)
        return torch.zeros(ys.shape), pad_mask(xs_lens * (ys.size(1) // frames), ys.size(1))

    def forward_chunk(self, xs: Tensor, **arguments: Any) -> tuple[Tensor, ...]:
        self.method = STEP
        self.farthest = max(self.farthest, arguments["att_cache"].size(2))
        self._take("a cache", arguments["att_cache"].size(2) > 0)
        self._take("a cache of convolutions", arguments["cnn_cache"].size(0) > 0)
        self._take("all is required", arguments["required_cache_size"] < 0)
        given = {name: _meta(value) for name, value in arguments.items()}
        ys, att_cache, cnn_cache = self.encoder.forward_chunk(_meta(xs), **given)
        return torch.zeros(ys.shape), torch.zeros(att_cache.shape), torch.zeros(cnn_cache.shape)

    def _linear(self, module: Any, inputs: tuple[Tensor]) -> None:
        one = inputs[0].size(0) * inputs[0].size(1) == 1
        self._take("one short row" if module.row_second else "one long row", one)

    def _attention(self, module: Any, inputs: tuple[Tensor, Any]) -> None:
        x, context = inputs
        self._take("few queries", x.size(0) * x.size(1) * module.heads < x.size(2))
        self._take("a mask", context.mask.size(2) > 0)

    def _take(self, branch: str, side: bool) -> None:
        self.taken.add((self.method, branch, side))


def _meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def branches(encoder: Any) -> Iterator[tuple[str, str]]:
    """The branches of an encoder's methods, of which both sides have to be taken."""
    upsampling = isinstance(encoder, UpsampleConformerEncoder)
    rows = {"one short row" if module.row_second else "one long row" for module in _linear_maps(encoder)}
    yield from (("forward", name) for name in {*rows, "padded", "few queries"})
    if encoder.static_chunk_size:
        yield "forward", "a fourth chunk"
    if upsampling:
        yield from (("forward", name) for name in ("a context", "streaming"))
    else:
        names = {*rows, "few queries", "a mask", "a cache", "a cache of convolutions", "all is required"}
        yield from ((STEP, name) for name in names)


def _linear_maps(encoder: nn.Module) -> Iterator[Any]:
    return (module for module in encoder.modules() if isinstance(module, Linear))


@pytest.mark.parametrize("stream", [True, False], ids=["with a stream", "without"])
@pytest.mark.parametrize("name", sampled([*OF_FULL_WIDTH, *CONFIGURATIONS], 3))
def test_every_branch_is_taken_on_both_sides(name: str, stream: bool) -> None:
    encoder = build_encoder(*(OF_FULL_WIDTH | CONFIGURATIONS)[name])
    recorder = Recorder(encoder)
    for call in calls(encoder, [STEP] if hasattr(encoder, STEP) else [], "branches", stream=stream):
        assert [label for label, _ in call.run(recorder, torch.float32)]
    wanted = {(*branch, side) for branch in branches(encoder) for side in (True, False)}
    assert wanted - recorder.taken == set()


@pytest.mark.parametrize("stream", [True, False], ids=["with a stream", "without"])
def test_far_positions_are_reached(stream: bool) -> None:
    recorder = Recorder(build_encoder(*OF_FULL_WIDTH["llm.llm"]))
    for call in calls(recorder.encoder, [STEP], "branches", stream=stream):
        assert [label for label, _ in call.run(recorder, torch.float32)]
    assert recorder.farthest == 1_040


@pytest.mark.parametrize("name", ["flow.encoder", "flow.encoder 2"])
def test_long_chunks_do_not_make_long_sequences(name: str) -> None:
    encoder = build_encoder(*OF_FULL_WIDTH[name].having(static_chunk_size=5000))
    assert max(length for form in forms(encoder) for lengths in form.sequences for length in lengths) == 334


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_random_cache_is_the_same_in_all_types_and_differs_in_every_block(dtype: torch.dtype) -> None:
    encoder = build_encoder(*CONFIGURATIONS["transformer"].having(num_blocks=5))
    cache = random_cache(encoder, 70, dtype)
    assert (cache.shape, cache.dtype) == ((5, 4, 70, 8), dtype)
    assert torch.equal(cache.double(), random_cache(encoder, 70, torch.float64))
    assert len({tuple(block.flatten().tolist()) for block in cache}) == 5
    assert float(cache.double().std()) == pytest.approx(1, abs=0.05)
    assert abs(float(cache.double().mean())) < 0.05
    assert cache.untyped_storage().nbytes() < 1.01 * cache.nbytes / 5
