"""Each estimator beside the same equations written plainly, with any options, and details that are easily missed."""

from typing import Any, Final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cosyjit.estimators import layers
from cosyjit.estimators.solver import solve, times
from tests.encoders.vectors import frames
from tests.estimators.cases import ACTIVATIONS, FEATURES, Configuration, configurations
from tests.estimators.plain import PlainDiT, PlainUNet, seen
from tests.estimators.vectors import CAUSAL_UNET, DIT, INSTANCES, UNET, filled, inputs, state

TOLERANCE: Final = 2e-5


def channels(configuration: Configuration) -> dict[str, int]:
    """How many channels each input has, 0 for one that is left out."""
    class_name, options = configuration
    if class_name == DIT:
        mu = FEATURES if options["mu_dim"] is None else options["mu_dim"]
        return {"x": FEATURES, "mu": mu, "spks": options["spk_dim"] or 0, "cond": FEATURES}
    inputs = options["in_channels"] // FEATURES
    return {"x": FEATURES, "mu": FEATURES, "spks": FEATURES * (inputs > 2), "cond": FEATURES * (inputs > 3)}


def assert_as_plain(configuration: Configuration, length: int, padding: int, t: float, *, streaming: bool) -> None:
    """One sequence, padded, gives the plain numbers. In float64, since norms of few numbers amplify rounding."""
    class_name, options = configuration
    total = length + padding
    sizes = channels(configuration)
    x, mu = (frames(each, (1, sizes[each], total)).double() for each in ("x", "mu"))
    cond = frames("cond", (1, sizes["cond"], total)).double() if sizes["cond"] else None
    spks = frames("spks", (1, sizes["spks"])).double() if sizes["spks"] else None
    real = [True] * length + [False] * padding
    mask = torch.tensor(real, dtype=torch.float64).reshape(1, 1, total)
    y = filled(class_name, options).double()(x, mask, mu, torch.tensor([t]), spks, cond, streaming=streaming)
    tensors = {name: tensor.double() for name, tensor in state(class_name, options).items()}
    plain = PlainDiT(tensors, options) if class_name == DIT else PlainUNet(tensors, options, causal=class_name != UNET)
    chunk = options.get("static_chunk_size", 0) if streaming else 0
    one: list[Any] = [None if each is None else each[0] for each in (x, mu, spks, cond)]
    torch.testing.assert_close(
        y[0], plain(one[0], real, one[1], t, one[2], one[3], chunk), atol=TOLERANCE, rtol=TOLERANCE
    )


@pytest.mark.slow
@given(configurations(), st.integers(1, 11), st.integers(0, 5), st.floats(0, 1, width=16), st.booleans())
def test_any_options_and_lengths(
    configuration: Configuration, length: int, padding: int, t: float, streaming: bool
) -> None:
    assert_as_plain(configuration, length, padding, t, streaming=streaming)


@pytest.mark.parametrize("act_fn", ACTIVATIONS)
@pytest.mark.parametrize("class_name", [UNET, CAUSAL_UNET])
def test_each_activation(class_name: str, act_fn: str) -> None:
    options = {
        "in_channels": 4 * FEATURES,
        "out_channels": FEATURES,
        "channels": [8, 16, 8],
        "attention_head_dim": 4,
        "n_blocks": 1,
        "num_mid_blocks": 1,
        "num_heads": 2,
        "act_fn": act_fn,
    }
    assert_as_plain(Configuration(class_name, options), 9, 2, 0.3, streaming=True)


@pytest.mark.parametrize("long_skip_connection", [True, False])
@pytest.mark.parametrize("spk_dim", [None, 3])
@pytest.mark.parametrize("mu_dim", [None, 3])
def test_each_form_of_the_transformer(long_skip_connection: bool, spk_dim: int | None, mu_dim: int | None) -> None:
    options = {
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "dim_head": 4,
        "ff_mult": 2,
        "mel_dim": FEATURES,
        "mu_dim": mu_dim,
        "spk_dim": spk_dim,
        "long_skip_connection": long_skip_connection,
        "static_chunk_size": 4,
    }
    assert_as_plain(Configuration(DIT, options), 9, 2, 0.3, streaming=True)


def built(name: str) -> nn.Module:
    return filled(INSTANCES[name].class_name, INSTANCES[name].options)


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


@pytest.mark.parametrize("chunk", [0, 1, 3, 20])
def test_a_query_that_sees_nothing_sees_everything(chunk: int) -> None:
    real = [[True] * 7, [True] * 2 + [False] * 5, [False] * 7, [False] * 4 + [True] * 3]
    found = layers.visible(torch.tensor(real).unsqueeze(1).float(), chunk).expand(-1, 7, -1)
    for row, each in enumerate(real):
        assert [query.nonzero().flatten().tolist() for query in found[row]] == [seen(each, i, chunk) for i in range(7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_hides_a_key_is_finite_and_hides_it(dtype: torch.dtype) -> None:
    bias = layers.attention_bias(torch.tensor([[[True, False]]]), dtype)
    assert bias.dtype == dtype
    assert bias.isfinite().all()
    assert torch.softmax(bias + torch.tensor([-9.0, 9.0], dtype=dtype), -1).tolist() == [[[[1.0, 0.0]]]]


def test_the_last_wavelength_is_ten_thousand_times_the_first() -> None:
    found = layers.sinusoids(torch.tensor([0.001]), 8)
    angles = torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 0.0001])
    torch.testing.assert_close(found[0], torch.cat([angles.sin(), angles.cos()]))


def test_the_time_is_embedded_in_float32() -> None:
    t = torch.tensor([0.3], dtype=torch.float16)
    assert layers.sinusoids(t, 320).dtype == torch.float32
    torch.testing.assert_close(layers.sinusoids(t, 320), layers.sinusoids(t.float(), 320), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["cosyvoice", "cosyvoice2"])
def test_the_u_nets_mask_their_output(name: str) -> None:
    given_inputs = inputs(INSTANCES[name], "padded")
    assert (built(name)(*given_inputs)[1, :, 20:] == 0).all()


def test_the_transformer_does_not_mask_its_output() -> None:
    assert (built("cosyvoice3")(*inputs(INSTANCES["cosyvoice3"], "padded"))[1, :, 20:] != 0).all()


@pytest.mark.parametrize(("name", "is_alone"), [("cosyvoice", False), ("cosyvoice2", True), ("cosyvoice3", True)])
def test_padding_counts_in_groupnorm_alone(name: str, is_alone: bool) -> None:
    x, mask, mu, t, spks, cond = inputs(INSTANCES[name], "padded")
    estimator = built(name)
    whole = estimator(x, mask, mu, t, spks, cond)[1:, :, :20]
    cut = estimator(x[1:, :, :20], mask[1:, :, :20], mu[1:, :, :20], t[1:], spks[1:], cond[1:, :, :20])
    assert (difference(whole, cut) < TOLERANCE) == is_alone


@pytest.mark.parametrize(("name", "changes"), [("cosyvoice", False), ("cosyvoice2", True), ("cosyvoice3", True)])
def test_streaming_changes_what_has_chunks(name: str, changes: bool) -> None:
    given_inputs = inputs(INSTANCES[name], "single")
    estimator = built(name)
    assert (difference(estimator(*given_inputs), estimator(*given_inputs, streaming=True)) > 0.01) == changes


def test_one_time_for_the_whole_batch() -> None:
    x, mask, mu, t, spks, cond = inputs(INSTANCES["cosyvoice3"], "cfg")
    estimator = built("cosyvoice3")
    assert difference(estimator(x, mask, mu, t[0], spks, cond), estimator(x, mask, mu, t, spks, cond)) == 0


@pytest.mark.parametrize("name", ["cosyvoice", "cosyvoice2", "cosyvoice3"])
def test_half_precision_has_numbers_near_those_of_float32(name: str) -> None:
    given_inputs = inputs(INSTANCES[name], "padded")
    whole = built(name)(*given_inputs)
    half = built(name).half()(*(each.half() for each in given_inputs))
    assert half.dtype == torch.float16
    assert half.isfinite().all()
    assert difference(half.float(), whole) < 0.1


def test_the_times_of_the_solver() -> None:
    found = times(10)
    assert [len(found), found[0], found[5], found[10]] == pytest.approx([11, 0, 1 - 2**-0.5, 1])


def test_the_solver_is_exact_for_a_constant_flow() -> None:
    z, mu = frames("z", (1, 3, 5)), frames("mu", (1, 3, 5))

    def estimate(x: Tensor, mask: Tensor, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor) -> Tensor:
        assert [each.size(0) for each in (x, mask, mu, t, spks, cond)] == [2] * 6
        assert torch.equal(x[0], x[1])
        assert not any(each[1].any() for each in (mu, spks, cond))
        return mu + 1

    x = solve(estimate, z, mu, frames("spks", (1, 3)), mu, steps=4, cfg_rate=0.5)
    torch.testing.assert_close(x, z + 1.5 * (mu + 1) - 0.5)
