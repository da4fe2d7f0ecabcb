"""The encoders against the plain ones and against the formula."""

import math
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cosyjit.encoders.attention import RelPositionMultiHeadedAttention
from cosyjit.encoders.layers import attention_mask, pad_mask, relative_positions
from tests.encoders.cases import (
    EXACT,
    PUBLISHED,
    UPSAMPLE,
    Batch,
    Chunks,
    Configuration,
    assert_near,
    assert_same_chunks,
    assert_same_forward,
    batches,
    chunks,
    configurations,
    seeds,
)
from tests.encoders.vectors import CONFORMER, TRANSFORMER, frames, ours, plain

# Against the plain encoders, eagerly and in float64


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    PUBLISHED | {"input_size": 3, "output_size": 6, "attention_heads": 1, "linear_units": 5, "num_blocks": 1},
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
