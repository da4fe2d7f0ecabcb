"""Builds estimators by the class names that configurations use."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cosyjit.estimators.dit import DiT
from cosyjit.estimators.options import UNetOptions, options_of
from cosyjit.estimators.unet import UNet


def build_estimator(class_name: str, options: Mapping[str, Any]) -> nn.Module:
    """Build an estimator in eval mode on the meta device: names and shapes, without memory.

    Fill it with `estimator.load_state_dict(tensors, strict=True, assign=True)`.

    Args:
        class_name: a key of `cosyjit.estimators.options.TABLES`.
        options: the configuration's options for it.

    Raises:
        UnsupportedOptionError: the class is not a key; or an option is unknown or missing, or has an unsupported value.
    """
    known = options_of(class_name, options)
    with torch.device("meta"):
        estimator = UNet(known) if isinstance(known, UNetOptions) else DiT(known)
    return estimator.eval()
