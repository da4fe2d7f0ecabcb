"""The estimators once more, one function for each equation, with loops where the product has products of matrices.

It takes no module, no mask as a tensor of scores and no kernel of attention: tensors by name, and for each query a list
of the keys that it sees.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def _normalized(x: Tensor, eps: float) -> Tensor:
    """Over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    return _normalized(x, 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log1p(x.exp()))


def _silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _tanh_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sinusoids(t: float, size: int) -> Tensor:
    """In float32 up to the sinusoids, as angles of up to 1000 have to be to agree."""
    half = size // 2
    angles = 1000 * torch.tensor(t) * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()]).double()


def seen(real: list[bool], query: int, chunk: int) -> list[int]:
    """The keys that a query sees: real ones up to the end of its chunk; all, if it would see none."""
    end = (query // chunk + 1) * chunk if chunk else len(real)
    return [key for key, is_real in enumerate(real) if is_real and key < end] or list(range(len(real)))


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, real: list[bool], chunk: int) -> Tensor:
    """Of one sequence, each (T, heads * d)."""
    size, rows = q.size(1) // heads, []
    for query in range(q.size(0)):
        keys, row = seen(real, query, chunk), []
        for start in range(0, heads * size, size):
            head = slice(start, start + size)
            row.append(torch.softmax(k[keys, head] @ q[query, head] / math.sqrt(size), 0) @ v[keys, head])
        rows.append(torch.cat(row))
    return torch.stack(rows)


class PlainUNet:
    """Both U-Nets, for a batch of one: GroupNorm has no other frames than those of its own sequence."""

    def __init__(self, state: State, options: Mapping[str, Any], *, causal: bool) -> None:
        self.state, self.options, self.causal = state, options, causal

    def __call__(
        self, x: Tensor, real: list[bool], mu: Tensor, t: float, spks: Tensor | None, cond: Tensor | None, chunk: int
    ) -> Tensor:
        """The flow (F, T); x, mu and cond are (F, T), spks (F,)."""
        state, stages = self.state, len(self.options["channels"])
        speaker = None if spks is None else torch.stack([spks] * x.size(1), 1)
        x = torch.cat([each for each in (x, mu, speaker, cond) if each is not None])
        e = _linear(state, "time_mlp.linear_1", _sinusoids(t, x.size(0)))
        e = _linear(state, "time_mlp.linear_2", _silu(e))
        skips = []
        for i in range(stages):
            x = self._stage(f"down_blocks.{i}", x, real, e, chunk)
            skips.append((x, real))
            if i < stages - 1:
                x = self._convolution(f"down_blocks.{i}.2.conv", self._masked(x, real), stride=2)
                real = real[::2]
            else:
                x = self._kept(f"down_blocks.{i}.2", self._masked(x, real))
        for i in range(self.options["num_mid_blocks"]):
            x = self._stage(f"mid_blocks.{i}", x, real, e, chunk)
        for i, (skip, real) in enumerate(reversed(skips)):
            x = torch.cat([x[:, : skip.size(1)], skip])
            x = self._masked(self._stage(f"up_blocks.{i}", x, real, e, chunk), real)
            if i < stages - 1:
                weight, bias = (state[f"up_blocks.{i}.2.conv.{each}"] for each in ("weight", "bias"))
                x = F.conv_transpose1d(x, weight, bias, stride=2, padding=1)
            else:
                x = self._kept(f"up_blocks.{i}.2", x)
        x = self._masked(self._block("final_block", x, real), real)
        return self._masked(F.conv1d(x, state["final_proj.weight"], state["final_proj.bias"]), real)

    @staticmethod
    def _masked(x: Tensor, real: list[bool]) -> Tensor:
        return x * torch.tensor(real)

    def _convolution(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv1d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride=stride, padding=1)

    def _kept(self, name: str, x: Tensor) -> Tensor:
        if not self.causal:
            return self._convolution(name, x)
        zeros = torch.zeros(x.size(0), 2)
        return F.conv1d(torch.cat([zeros, x], 1), self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _block(self, name: str, x: Tensor, real: list[bool]) -> Tensor:
        y = self._kept(f"{name}.block.0", self._masked(x, real))
        if self.causal:
            y = _norm(self.state, f"{name}.block.2", y.T).T
        else:
            groups = _normalized(y.reshape(8, -1), 1e-5).reshape(y.shape).T
            y = (groups * self.state[f"{name}.block.1.weight"] + self.state[f"{name}.block.1.bias"]).T
        return self._masked(_mish(y), real)

    def _stage(self, name: str, x: Tensor, real: list[bool], e: Tensor, chunk: int) -> Tensor:
        state = self.state
        y = self._block(f"{name}.0.block1", x, real) + _linear(state, f"{name}.0.mlp.1", _mish(e)).unsqueeze(1)
        weight, bias = (state[f"{name}.0.res_conv.{each}"] for each in ("weight", "bias"))
        x = self._block(f"{name}.0.block2", y, real) + F.conv1d(self._masked(x, real), weight, bias)
        x = x.T
        for j in range(self.options["n_blocks"]):
            here = f"{name}.1.{j}"
            n = _norm(state, f"{here}.norm1", x)
            q, k, v = (_linear(state, f"{here}.attn1.to_{each}", n) for each in "qkv")
            attended = _attention(q, k, v, self.options["num_heads"], real, chunk)
            x = x + _linear(state, f"{here}.attn1.to_out.0", attended)
            z = _linear(state, f"{here}.ff.net.0.proj", _norm(state, f"{here}.norm3", x))
            x = x + _linear(state, f"{here}.ff.net.2", self._activated(f"{here}.ff.net.0", z))
        return x.T

    def _activated(self, name: str, z: Tensor) -> Tensor:
        half = z.size(1) // 2
        if self.options["act_fn"] == "gelu":
            y = _gelu(z)
        elif self.options["act_fn"] == "gelu-approximate":
            y = _tanh_gelu(z)
        elif self.options["act_fn"] == "geglu":
            y = z[:, :half] * _gelu(z[:, half:])
        elif self.options["act_fn"] == "geglu-approximate":
            y = z / (1 + (-1.702 * z).exp())
        else:
            alpha, beta = self.state[f"{name}.alpha"].exp(), self.state[f"{name}.beta"].exp()
            y = z + torch.sin(z * alpha) ** 2 / (beta + 1e-9)
        return y


class PlainDiT:
    """The diffusion transformer, for a batch of one."""

    def __init__(self, state: State, options: Mapping[str, Any]) -> None:
        self.state, self.options = state, options

    def __call__(
        self, x: Tensor, real: list[bool], mu: Tensor, t: float, spks: Tensor | None, cond: Tensor, chunk: int
    ) -> Tensor:
        """The flow (F, T); x, mu and cond are (F, T), spks (S,)."""
        state = self.state
        e = _linear(state, "time_embed.time_mlp.0", _sinusoids(t, 256))
        e = _silu(_linear(state, "time_embed.time_mlp.2", _silu(e)))
        rows = [torch.cat([x[:, p], cond[:, p], mu[:, p], *([] if spks is None else [spks])]) for p in range(x.size(1))]
        u = _linear(state, "input_embed.proj", torch.stack(rows))
        y = u.T
        for each in ("conv1", "conv2"):
            weight, bias = (state[f"input_embed.conv_pos_embed.{each}.0.{kind}"] for kind in ("weight", "bias"))
            y = _mish(F.conv1d(torch.cat([torch.zeros(y.size(0), 30), y], 1), weight, bias, groups=16))
        u = skip = u + y.T
        for number in range(self.options["depth"]):
            here = f"transformer_blocks.{number}"
            parts = _linear(state, f"{here}.attn_norm.linear", e).reshape(6, -1)
            n = _normalized(u, 1e-6) * (1 + parts[1]) + parts[0]
            u = u + parts[2] * self._attend(f"{here}.attn", n, real, chunk)
            n = _normalized(u, 1e-6) * (1 + parts[4]) + parts[3]
            u = u + parts[5] * _linear(state, f"{here}.ff.ff.2", _tanh_gelu(_linear(state, f"{here}.ff.ff.0.0", n)))
        if self.options["long_skip_connection"]:
            u = _linear(state, "long_skip_connection", torch.cat([u, skip], 1))
        scale, shift = _linear(state, "norm_out.linear", e).reshape(2, -1)
        return _linear(state, "proj_out", _normalized(u, 1e-6) * (1 + scale) + shift).T

    def _attend(self, name: str, n: Tensor, real: list[bool], chunk: int) -> Tensor:
        q, k, v = (_linear(self.state, f"{name}.to_{each}", n) for each in "qkv")
        for each in (q, k):
            self._rotate(each)
        y = _linear(self.state, f"{name}.to_out.0", _attention(q, k, v, self.options["heads"], real, chunk))
        return y * torch.tensor(real).unsqueeze(1)

    def _rotate(self, x: Tensor) -> None:
        """Rotate the first head, in place."""
        for p in range(x.size(0)):
            for i, rate in enumerate(self.state["rotary_embed.inv_freq"].tolist()):
                a, b = x[p, 2 * i].item(), x[p, 2 * i + 1].item()
                cos, sin = math.cos(p * rate), math.sin(p * rate)
                x[p, 2 * i], x[p, 2 * i + 1] = a * cos - b * sin, b * cos + a * sin
