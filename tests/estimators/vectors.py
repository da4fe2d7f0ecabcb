"""The golden vectors of the estimators, and estimators filled by their recipe."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from cosyjit.estimators.parameters import parameters
from cosyjit.estimators.registry import build_estimator
from tests.encoders.vectors import GOLDEN, frames, golden_outputs, weight

UNET: Final = "cosyvoice.flow.decoder.ConditionalDecoder"
CAUSAL_UNET: Final = "cosyvoice.flow.decoder.CausalConditionalDecoder"
DIT: Final = "cosyvoice.flow.DiT.dit.DiT"
CLASSES: Final = {name.rpartition(".")[2]: name for name in (UNET, CAUSAL_UNET, DIT)}

OUTPUTS: Final = golden_outputs("estimators.npz")


class Instance(NamedTuple):
    """An estimator of the vectors: its name and class, the channels of its inputs, its options and its cases."""

    name: str
    class_name: str
    channels: int
    options: dict[str, Any]
    cases: dict[str, dict[str, Any]]


def _instances() -> dict[str, Instance]:
    stored = json.loads((GOLDEN / "estimators.json").read_text())
    return {
        name: Instance(name, CLASSES[each["class"]], each["n_feats"], each["args"], each["cases"])
        for name, each in stored.items()
    }


INSTANCES: Final = _instances()
CALLS: Final = [(name, case) for name, each in INSTANCES.items() for case in each.cases if "lens" in each.cases[case]]
SOLVED: Final = [(name, case) for name, each in INSTANCES.items() for case in each.cases if "steps" in each.cases[case]]


class Inputs(NamedTuple):
    """What an estimator is called with, in this order."""

    x: Tensor
    mask: Tensor
    mu: Tensor
    t: Tensor
    spks: Tensor
    cond: Tensor


def inputs(instance: Instance, case: str) -> Inputs:
    """The inputs of a call of the vectors."""
    described = instance.cases[case]
    lengths, key = torch.tensor(described["lens"]), f"{instance.name}/{case}"
    rows, longest, channels = len(lengths), int(lengths.max()), instance.channels
    x, mu, cond = (frames(f"{key}.{name}", (rows, channels, longest)) for name in ("x", "mu", "cond"))
    spks = frames(f"{key}.spks", (rows, channels))
    if described.get("cfg"):
        x[1] = x[0]
        for each in (mu, spks, cond):
            each[1] = 0
    mask = (torch.arange(longest) < lengths.unsqueeze(1)).unsqueeze(1).float()
    return Inputs(x, mask, mu, torch.tensor(described["t"]), spks, cond)


def state(class_name: str, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an estimator by the vectors' recipe."""
    tensors = {
        name: weight(f"flow.decoder.estimator.{name}", parameter.shape)
        for name, parameter in parameters(class_name, options).items()
    }
    if "rotary_embed.inv_freq" in tensors:
        size = options.get("dim_head", 64)
        tensors["rotary_embed.inv_freq"] = 1 / 10000 ** (torch.arange(0, size, 2) / size)
    return tensors


def filled(class_name: str, options: Mapping[str, Any]) -> nn.Module:
    """An estimator with weights by their names."""
    estimator = build_estimator(class_name, options)
    estimator.load_state_dict(state(class_name, options), strict=True, assign=True)
    return estimator
