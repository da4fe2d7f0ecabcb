"""Builds encoders by the class names that configurations use."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from cosyjit.encoders.encoder import ConformerEncoder, TransformerEncoder
from cosyjit.encoders.options import TABLES, EncoderOptions, Option, parse_options
from cosyjit.encoders.upsample import UpsampleConformerEncoder


class _Entry(NamedTuple):
    encoder: Callable[[EncoderOptions], nn.Module]
    options: Mapping[str, Option]


_CLASSES: Final[dict[str, Callable[[EncoderOptions], nn.Module]]] = {
    encoder.__name__: encoder for encoder in (TransformerEncoder, ConformerEncoder, UpsampleConformerEncoder)
}

ENCODERS: Final = {name: _Entry(_CLASSES[name.rpartition(".")[2]], options) for name, options in TABLES.items()}
"""The encoders by the class names that configurations use."""


def build_encoder(
    class_name: str, options: Mapping[str, Any], overrides: Mapping[str, Any] = MappingProxyType({})
) -> nn.Module:
    """Build an encoder in eval mode on the meta device: names and shapes, without memory.

    Fill it with `encoder.load_state_dict(tensors, strict=True, assign=True)`.

    Args:
        class_name: a key of `ENCODERS`.
        options: the configuration's options for it.
        overrides: values of fields of `EncoderOptions` that replace those of the configuration.

    Raises:
        UnsupportedOptionError: an option is unknown or missing, or has an unsupported value.
    """
    entry = ENCODERS[class_name]
    with torch.device("meta"):
        return entry.encoder(replace(parse_options(entry.options, options), **overrides)).eval()
