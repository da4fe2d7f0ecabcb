"""The encoders against the plain ones, against the formula, and as TorchScript."""

import math
from typing import Any, Final, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cosyjit.encoders.attention import RelPositionMultiHeadedAttention
from cosyjit.encoders.layers import attention_mask, pad_mask, relative_positions
from cosyjit.encoders.registry import build_encoder
from tests.encoders.jit import (
    constant_devices,
    constant_tensors,
    graphs,
    loaded,
    nodes,
    optimized,
    preserved_methods,
    saved,
)
from tests.encoders.vectors import CONFORMER, TRANSFORMER, UPSAMPLE_CONFORMER, frames, ours, plain, weights

EXACT: Final = 1e-6
"""In float64. The tables of positions are float32 and may differ in their last bit."""
SINGLE: Final = 5e-5
"""In float32."""

_PUBLISHED: Final = {
    "input_layer": "linear",
    "pos_enc_layer_type": "rel_pos_espnet",
    "selfattention_layer_type": "rel_selfattn",
}
_BARE: Final = {"use_cnn_module": False, "macaron_style": False}
_TINY: Final = {"input_size": 12, "output_size": 16, "attention_heads": 4, "linear_units": 24, "num_blocks": 2}
_UPSAMPLE: Final = {
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
    "transformer": Configuration(TRANSFORMER, _PUBLISHED | _TINY | {"static_chunk_size": 1}),
    "conformer": Configuration(CONFORMER, _PUBLISHED | _TINY | _BARE),
    "causal convolution": Configuration(
        CONFORMER, _PUBLISHED | _TINY | {"causal": True, "cnn_module_kernel": 4, "static_chunk_size": 3}
    ),
    "layer norm": Configuration(
        CONFORMER,
        _PUBLISHED | _TINY | {"cnn_module_norm": "layer_norm", "normalize_before": False, "key_bias": False},
    ),
}
UPSAMPLE: Final = {
    "upsample": Configuration(UPSAMPLE_CONFORMER, _PUBLISHED | _UPSAMPLE | _BARE),
    "upsample with all": Configuration(UPSAMPLE_CONFORMER, _PUBLISHED | _UPSAMPLE | {"cnn_module_kernel": 5}),
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
    return Configuration(class_name, _PUBLISHED | size | draw(st.fixed_dictionaries(choices)))


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


# Against the plain encoders, eagerly and in float64


@settings(deadline=None, max_examples=150)
@given(configurations(), batches(), st.integers(-1, 3), st.integers(-1, 3))
def test_forward_is_the_plain_one(
    configuration: Configuration, batch: Batch, decoding_chunk_size: int, num_decoding_left_chunks: int
) -> None:
    assert_same_forward(
        ours(*configuration).double(),
        plain(*configuration).double(),
        batch,
        configuration.options["input_size"],
        torch.float64,
        EXACT,
        decoding_chunk_size=decoding_chunk_size,
        num_decoding_left_chunks=num_decoding_left_chunks,
    )


@settings(deadline=None, max_examples=200)
@given(configurations(), chunks())
def test_forward_chunk_is_the_plain_one(configuration: Configuration, sequence: Chunks) -> None:
    assert_same_chunks(
        ours(*configuration).double(),
        plain(*configuration).double(),
        sequence,
        configuration.options["input_size"],
        torch.float64,
        EXACT,
    )


@pytest.fixture(
    scope="module",
    params=[
        UPSAMPLE["upsample"],
        UPSAMPLE["upsample with all"].having(causal=True, cnn_module_norm="layer_norm", input_layer="linear_legacy"),
        UPSAMPLE["upsample with all"].having(normalize_before=False, static_chunk_size=3, num_blocks=2),
    ],
    ids=["bare", "causal, layer norm", "post-norm"],
)
def upsample_pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """The upsampling encoder, ours and plain, in float64."""
    return ours(*request.param).double(), plain(*request.param).double()


@settings(deadline=None, max_examples=12)
@given(batch=batches(), streaming=st.booleans(), with_context=st.booleans())
def test_upsampling_forward_is_the_plain_one(
    upsample_pair: tuple[nn.Module, nn.Module], batch: Batch, streaming: bool, with_context: bool
) -> None:
    arguments: dict[str, Any] = {"streaming": streaming}
    if with_context:
        batch = batch._replace(lengths=batch.lengths[:1])
        arguments["context"] = frames(f"context {batch.seed}", (1, 3, 512)).double()
    assert_same_forward(*upsample_pair, batch, 512, torch.float64, EXACT, **arguments)


# Rules that need no second encoder


@settings(deadline=None, max_examples=60)
@given(configurations(), st.integers(1, 3), st.integers(1, 4), seeds)
def test_chunks_of_the_static_size_make_the_whole(
    configuration: Configuration, chunk: int, count: int, seed: int
) -> None:
    """With chunk masks, chunk by chunk is the same as at once, unless a convolution looks ahead."""
    encoder = ours(*configuration.having(static_chunk_size=chunk, **_causal(configuration))).double()
    xs = frames(f"whole {seed}", (1, chunk * count, configuration.options["input_size"])).double()
    whole, _ = encoder(xs, torch.tensor([chunk * count]))
    assert_near(_in_chunks(encoder, xs, [chunk] * count, masked=False), whole, EXACT)


@settings(deadline=None, max_examples=60)
@given(configurations(), st.lists(st.integers(1, 5), min_size=1, max_size=4), seeds)
def test_any_chunks_with_causal_masks_make_the_whole(configuration: Configuration, sizes: list[int], seed: int) -> None:
    encoder = ours(*configuration.having(static_chunk_size=1, **_causal(configuration))).double()
    xs = frames(f"whole {seed}", (1, sum(sizes), configuration.options["input_size"])).double()
    whole, _ = encoder(xs, torch.tensor([sum(sizes)]))
    assert_near(_in_chunks(encoder, xs, sizes, masked=True), whole, EXACT)


def _causal(configuration: Configuration) -> dict[str, bool]:
    return {"causal": True} if configuration.class_name == CONFORMER else {}


def _in_chunks(encoder: Any, xs: Tensor, sizes: list[int], masked: bool) -> Tensor:
    """The outputs for chunks of these sizes, joined; if masked, each frame sees itself and those before."""
    att_cache = cnn_cache = torch.zeros(0, 0, 0, 0, dtype=xs.dtype)
    outputs = []
    for chunk in torch.split(xs, sizes, dim=1):
        cached, count = att_cache.size(2), chunk.size(1)
        mask = torch.ones(1, count, cached + count, dtype=torch.bool).tril(cached)
        mask = mask if masked else torch.ones(0, 0, 0, dtype=torch.bool)
        ys, att_cache, cnn_cache = encoder.forward_chunk(chunk, cached, -1, att_cache, cnn_cache, mask)
        outputs.append(ys)
    return torch.cat(outputs, dim=1)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([(2, 8), (1, 10), (4, 4)]), st.integers(1, 3), st.integers(0, 9), seeds)
def test_position_scores_of_few_and_of_many_queries(
    heads_and_size: tuple[int, int], queries: int, cached: int, seed: int
) -> None:
    """The two orders of the product agree with each other and with the formula."""
    heads, head_size = heads_and_size
    size = heads * head_size
    attention = RelPositionMultiHeadedAttention(heads, size, key_bias=True).double()
    weight = frames(f"weight {seed}", (size, size)).double()
    attention.linear_pos.weight = nn.Parameter(weight)
    query = frames(f"query {seed}", (1, heads, queries, head_size)).double()
    positions = relative_positions(cached, queries, weight[0], weight.device)
    copies = size
    assert queries * heads < size <= copies * queries * heads  # on both sides of what decides the order
    few = attention.position_scores(query, positions)
    many = attention.position_scores(query.expand(copies, -1, -1, -1), positions)
    distance = cached + torch.arange(queries).unsqueeze(1) - torch.arange(cached + queries)
    projected = torch.unflatten(_encoding(distance, size) @ weight.t(), 2, (heads, head_size))
    direct = torch.einsum("bhid,ijhd->bhij", query, projected)
    assert_near(few, direct, EXACT)
    assert_near(many, direct.expand(copies, -1, -1, -1), EXACT)


def _encoding(distance: Tensor, size: int) -> Tensor:
    """The formula of relative positions: distances of any shape (...) to (..., size), of float32 values in float64."""
    frequency = torch.exp(torch.arange(0, size, 2).float() * (-math.log(10000.0) / size))
    angle = distance.float().unsqueeze(-1) * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).double()


@settings(deadline=None, max_examples=60)
@given(batches(), st.integers(0, 4))
def test_who_sees_whom_in_a_whole_sequence(batch: Batch, chunk: int) -> None:
    """By hand, frame by frame: real keys up to the end of the query's chunk, or all keys if that is none."""
    mask = attention_mask(pad_mask(torch.tensor(batch.lengths), batch.padded), chunk)
    actual = mask.expand(-1, batch.padded, -1).tolist()
    for length, rows in zip(batch.lengths, actual, strict=True):
        for query, row in enumerate(rows):
            end = (query // chunk + 1) * chunk if chunk else batch.padded
            seen = [key < min(length, end) for key in range(batch.padded)]
            assert row == (seen if any(seen) else [True] * batch.padded)


# Longer than the public table of 5,000 positions

_LONG: Final = Configuration(
    TRANSFORMER,
    _PUBLISHED | {"input_size": 3, "output_size": 6, "attention_heads": 1, "linear_units": 5, "num_blocks": 1},
)


def test_forward_beyond_five_thousand_frames() -> None:
    encoder = ours(*_LONG)
    count = 5100
    xs = frames("long", (1, count, 3))
    ys, _ = encoder(xs, torch.tensor([count]))
    state = {name: tensor.double() for name, tensor in encoder.state_dict().items()}
    for frame in (0, 1, 2550, count - 1):
        expected = _one_block(state, 1, xs[0].double(), torch.empty(1, 0, 12, dtype=torch.float64), frame)
        assert_near(ys[0, frame].double(), expected, 1e-4)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_forward_chunk_beyond_five_thousand_frames(heads: int, count: int) -> None:
    encoder: Any = ours(*_LONG.having(attention_heads=heads))
    xs = frames("long chunk", (1, count, 3))
    cache = frames("long cache", (1, heads, 6000, 12 // heads))
    ys, att_cache, _ = encoder.forward_chunk(xs, 6000, -1, cache)
    assert torch.equal(att_cache[:, :, :6000], cache)
    state = {name: tensor.double() for name, tensor in encoder.state_dict().items()}
    for frame in range(count):
        expected = _one_block(state, heads, xs[0].double(), cache[0].double(), frame)
        assert_near(ys[0, frame].double(), expected, 1e-4)


def _one_block(state: dict[str, Tensor], heads: int, xs: Tensor, cache: Tensor, frame: int) -> Tensor:
    """The formula of a whole one-block Transformer that masks nothing, for one frame, in the type of its arguments.

    Args:
        state: the published parameters.
        heads: H.
        xs: (n, input_size).
        cache: (H, C, 2d).
        frame: which of the n frames.

    Returns:
        (D,).
    """

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].t() + state[f"{name}.bias"]

    def split(x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (heads, -1))

    block = "encoders.0"
    attention = f"{block}.self_attn"
    x = norm("embed.out.1", linear("embed.out.0", xs), 1e-5)
    x = x * math.sqrt(x.size(1))
    normed = norm(f"{block}.norm1", x, 1e-12)
    cached_keys, cached_values = cache.transpose(0, 1).chunk(2, dim=2)
    keys = torch.cat([cached_keys, split(linear(f"{attention}.linear_k", normed))])
    values = torch.cat([cached_values, split(linear(f"{attention}.linear_v", normed))])
    query = split(linear(f"{attention}.linear_q", normed[frame]))
    distance = cache.size(1) + frame - torch.arange(len(keys))
    positions = split(_encoding(distance, x.size(1)) @ state[f"{attention}.linear_pos.weight"].t())
    content_scores = torch.einsum("hd,jhd->hj", query + state[f"{attention}.pos_bias_u"], keys)
    position_scores = torch.einsum("hd,jhd->hj", query + state[f"{attention}.pos_bias_v"], positions)
    shares = ((content_scores + position_scores) / math.sqrt(query.size(1))).softmax(dim=1)
    y = x[frame] + linear(f"{attention}.linear_out", torch.einsum("hj,jhd->hd", shares, values).flatten())
    hidden = linear(f"{block}.feed_forward.w_1", norm(f"{block}.norm2", y, 1e-12)).relu()
    return norm("after_norm", y + linear(f"{block}.feed_forward.w_2", hidden), 1e-5)


# Arguments


@pytest.fixture(scope="module", params=["eager", "optimized"])
def form(request: pytest.FixtureRequest) -> str:
    """The form of the encoders of a test."""
    return str(request.param)


def in_form(form: str, encoder: nn.Module) -> Any:
    """The encoder as it is or optimized."""
    if form == "eager":
        return encoder
    with torch.inference_mode(mode=False):
        return optimized(encoder)


@pytest.mark.parametrize("batch", [0, 2])
def test_forward_chunk_takes_one_sequence(form: str, batch: int) -> None:
    encoder = in_form(form, ours(*STREAMING["transformer"]))
    error = ValueError if form == "eager" else torch.jit.Error
    with pytest.raises(error, match="one sequence at a time"):
        encoder.forward_chunk(frames("batch", (batch, 3, 12)), 0, -1)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_lengths_of_both_types(form: str, name: str) -> None:
    configuration = CONFIGURATIONS[name]
    encoder = in_form(form, ours(*configuration))
    xs = frames("lengths", (2, 5, configuration.options["input_size"]))
    short = encoder(xs, torch.tensor([5, 2], dtype=torch.int32))
    long = encoder(xs, torch.tensor([5, 2], dtype=torch.int64))
    for each, other in zip(short, long, strict=True):
        assert torch.equal(each, other)


# Half precision

_PRECISION: Final = {torch.float16: 0.02, torch.bfloat16: 0.15}
"""How far off outputs of about unit variance may be."""


@pytest.fixture(scope="module", params=_PRECISION, ids=str)
def half(request: pytest.FixtureRequest) -> torch.dtype:
    """A type of 16 bits."""
    dtype: torch.dtype = request.param
    return dtype


@pytest.mark.parametrize("autocast", [False, True], ids=["half inputs", "autocast"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_forward_in_half_precision(form: str, half: torch.dtype, name: str, autocast: bool) -> None:
    configuration = CONFIGURATIONS[name]
    encoder, rounded = _half_and_rounded(configuration, half)
    encoder = in_form(form, encoder)
    xs = frames("half", (2, 9, configuration.options["input_size"])).to(half).float()
    lengths = torch.tensor([9, 5])
    expected, mask = rounded(xs, lengths)
    real = mask.squeeze(1)
    with torch.autocast("cpu", dtype=half, enabled=autocast):
        for _ in range(3):  # TorchScript optimizes after the first calls
            ys, actual_mask = encoder(xs if autocast else xs.to(half), lengths)
            assert torch.equal(actual_mask, mask)
            assert ys.dtype == _output_type(form, half, autocast)
            assert_near(ys.float()[real], expected[real], _PRECISION[half])


@pytest.mark.parametrize("autocast", [False, True], ids=["half inputs", "autocast"])
@pytest.mark.parametrize("name", STREAMING)
def test_forward_chunk_in_half_precision(form: str, half: torch.dtype, name: str, autocast: bool) -> None:
    encoder, rounded = _half_and_rounded(STREAMING[name], half)
    encoder = in_form(form, encoder)
    xs = frames("half chunks", (1, 8, 12)).to(half).float()
    caches = expected_caches = [torch.zeros(0, 0, 0, 0), torch.zeros(0, 0, 0, 0)]
    for chunk in torch.split(xs, [4, 1, 1, 2], dim=1):
        mask = torch.ones(1, 1, 1, dtype=torch.bool)
        expected, *expected_caches = rounded.forward_chunk(chunk, 0, -1, *expected_caches, mask)
        with torch.autocast("cpu", dtype=half, enabled=autocast):
            ys, *caches = encoder.forward_chunk(chunk if autocast else chunk.to(half), 0, -1, *caches, mask)
        assert ys.dtype == _output_type(form, half, autocast)
        assert caches[0].dtype == half
        assert_near(ys.float(), expected, _PRECISION[half])
        for cache, expected_cache in zip(caches, expected_caches, strict=True):
            assert_near(cache.float(), expected_cache, _PRECISION[half])


def _half_and_rounded(configuration: Configuration, half: torch.dtype) -> tuple[Any, Any]:
    """An encoder in half precision, and one in float32 of the same weights, so that only the arithmetic differs."""
    encoder = ours(*configuration).to(half)
    rounded = build_encoder(*configuration)
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in encoder.state_dict().items()
    }
    rounded.load_state_dict(state, strict=True, assign=True)
    return encoder, rounded


def _output_type(form: str, half: torch.dtype, autocast: bool) -> torch.dtype:
    # On a CPU only the autocast of TorchScript takes layer norms in float32; on CUDA, that of eager torch does too.
    return torch.float32 if autocast and form == "optimized" else half


# States

_LINEAR_NAMES: Final = {"weight", "bias"}


def _named(*names: str) -> set[str]:
    return {f"{name}.{each}" for name in names for each in _LINEAR_NAMES}


_ATTENTION_NAMES: Final = {
    f"self_attn.{name}"
    for name in (
        *_named("linear_q", "linear_k", "linear_v", "linear_out"),
        "linear_pos.weight",
        "pos_bias_u",
        "pos_bias_v",
    )
}
_TRANSFORMER_BLOCK: Final = _ATTENTION_NAMES | _named("feed_forward.w_1", "feed_forward.w_2", "norm1", "norm2")
_CONFORMER_BLOCK: Final = _ATTENTION_NAMES | _named("feed_forward.w_1", "feed_forward.w_2", "norm_mha", "norm_ff")
_MACARON: Final = _named("feed_forward_macaron.w_1", "feed_forward_macaron.w_2", "norm_ff_macaron")
_CONVOLUTION: Final = _named(
    "norm_conv",
    "norm_final",
    "conv_module.pointwise_conv1",
    "conv_module.depthwise_conv",
    "conv_module.norm",
    "conv_module.pointwise_conv2",
)
_BATCH_NORM: Final = {f"conv_module.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
_AROUND: Final = _named("embed.out.0", "embed.out.1", "after_norm")
_AROUND_UPSAMPLE: Final = _AROUND | _named(
    "pre_lookahead_layer.conv1", "pre_lookahead_layer.conv2", "up_layer.conv", "up_embed.out.0", "up_embed.out.1"
)


def _blocks(name: str, count: int, names: set[str]) -> set[str]:
    return {f"{name}.{number}.{each}" for number in range(count) for each in names}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer", _AROUND | _blocks("encoders", 2, _TRANSFORMER_BLOCK)),
        ("conformer", _AROUND | _blocks("encoders", 2, _CONFORMER_BLOCK)),
        (
            "causal convolution",
            _AROUND | _blocks("encoders", 2, _CONFORMER_BLOCK | _MACARON | _CONVOLUTION | _BATCH_NORM),
        ),
        (
            "layer norm",
            _AROUND
            | _blocks("encoders", 2, (_CONFORMER_BLOCK | _MACARON | _CONVOLUTION) - {"self_attn.linear_k.bias"}),
        ),
        (
            "upsample",
            _AROUND_UPSAMPLE | _blocks("encoders", 1, _CONFORMER_BLOCK) | _blocks("up_encoders", 4, _CONFORMER_BLOCK),
        ),
    ],
)
def test_state_has_the_published_names(name: str, expected: set[str]) -> None:
    assert set(build_encoder(*CONFIGURATIONS[name]).state_dict()) == expected


@settings(deadline=None, max_examples=40)
@given(configurations())
def test_state_has_the_names_and_shapes_of_the_plain_one(configuration: Configuration) -> None:
    actual = {name: tensor.shape for name, tensor in ours(*configuration).state_dict().items()}
    assert actual == {name: tensor.shape for name, tensor in plain(*configuration).state_dict().items()}


@pytest.mark.parametrize("key_bias", [True, False])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_state_loaded_again_gives_the_same(name: str, key_bias: bool) -> None:
    configuration = CONFIGURATIONS[name].having(key_bias=key_bias)
    encoder = ours(*configuration)
    again = build_encoder(*configuration)
    state = dict(encoder.state_dict())
    given_state = weights(encoder, "")
    assert any(name.endswith("linear_k.bias") for name in state) == key_bias
    again.load_state_dict(state, strict=True, assign=True)
    assert state.keys() == given_state.keys()
    for each, tensor in again.state_dict().items():
        assert torch.equal(tensor, given_state[each])
    xs, lengths = frames("again", (2, 6, configuration.options["input_size"])), torch.tensor([6, 4])
    assert torch.equal(again(xs, lengths)[0], encoder(xs, lengths)[0])


# A state may lack the counter of BatchNorm: torch fills it in for states from before there was one, which a plain
# dict, having no version, is taken for.
@pytest.mark.parametrize("name", STREAMING)
def test_a_state_that_does_not_fit_is_an_error(name: str) -> None:
    encoder = build_encoder(*STREAMING[name])
    state = weights(encoder, "")
    for each in state:
        if each.endswith("num_batches_tracked"):
            continue
        with pytest.raises((RuntimeError, KeyError)):
            encoder.load_state_dict({other: state[other] for other in state if other != each}, assign=True)
        larger = torch.zeros([length + 1 for length in state[each].shape])
        with pytest.raises(RuntimeError):
            encoder.load_state_dict(state | {each: larger}, assign=True)
        with pytest.raises(RuntimeError, match="Unexpected"):
            encoder.load_state_dict(state | {f"{each}.more": state[each]}, assign=True)


def test_a_key_bias_that_is_not_wanted_is_an_error() -> None:
    encoder = build_encoder(*STREAMING["layer norm"])
    unwanted = {"encoders.0.self_attn.linear_k.bias": torch.zeros(16)}
    with pytest.raises(RuntimeError, match=r"Unexpected.*linear_k\.bias"):
        encoder.load_state_dict(weights(encoder, "") | unwanted, assign=True)


# TorchScript


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def scripted_pair(request: pytest.FixtureRequest) -> tuple[Any, nn.Module, int]:
    """An encoder optimized, saved and loaded, the same eagerly, and its input size."""
    configuration = CONFIGURATIONS[request.param]
    encoder = ours(*configuration)
    return loaded(saved(optimized(encoder))), encoder, configuration.options["input_size"]


@settings(deadline=None, max_examples=15)
@given(batch=batches())
def test_scripted_forward_is_the_eager_one(scripted_pair: tuple[Any, nn.Module, int], batch: Batch) -> None:
    scripted, encoder, size = scripted_pair
    assert_same_forward(scripted, encoder, batch, size, torch.float32, SINGLE)


@settings(deadline=None, max_examples=25)
@given(sequence=chunks())
@pytest.mark.parametrize("name", STREAMING)
def test_scripted_forward_chunk_is_the_eager_one(streaming_pairs: dict[str, Any], name: str, sequence: Chunks) -> None:
    scripted, encoder = streaming_pairs[name]
    assert_same_chunks(scripted, encoder, sequence, 12, torch.float32, SINGLE)


@pytest.fixture(scope="module")
def streaming_pairs() -> dict[str, tuple[Any, nn.Module]]:
    """All encoders with `forward_chunk`, optimized and eager."""
    encoders = {name: ours(*configuration) for name, configuration in STREAMING.items()}
    return {name: (optimized(encoder), encoder) for name, encoder in encoders.items()}


_MEGABYTE: Final = 2**20
_LARGE: Final = {"input_size": 512, "output_size": 512, "linear_units": 2048}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_artifact_has_each_weight_once_and_no_device(name: str) -> None:
    """A megabyte is little here: these encoders have 25 and more."""
    encoder = ours(*CONFIGURATIONS[name].having(**_LARGE))
    methods = preserved_methods(encoder)
    with torch.inference_mode(mode=False):
        module = optimized(encoder)
    weight_bytes = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    assert weight_bytes > 25 * _MEGABYTE
    storages: dict[int, torch.UntypedStorage] = {}
    for graph in graphs(module, methods):
        kinds = {node.kind() for node in nodes(graph)}
        assert "aten::linear" not in kinds
        assert not [kind for kind in kinds if "mkldnn" in kind.lower()]
        assert constant_devices(graph) == []
        for tensor in constant_tensors(graph):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    attributes = [*module.parameters(), *module.buffers()]
    constant_bytes = sum(storage.nbytes() for storage in storages.values())
    limit = 1.05 * weight_bytes + _MEGABYTE
    assert 0.95 * weight_bytes < constant_bytes + sum(tensor.nbytes for tensor in attributes) < limit
    assert len(saved(module)) < limit
