"""The options that a configuration may give an estimator: their names, defaults and supported values."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from cosyjit.encoders.options import REQUIRED, SHOWN, Option, checked, flag, one_of, rate, yaml
from cosyjit.errors import UnsupportedOptionError


@dataclass(frozen=True)
class UNetOptions:
    """The checked options of a U-Net that decide what it computes. Sizes are in channels, chunks in frames.

    Attributes:
        in_channels: those of all inputs together, as they are joined; also the size of the time's sinusoids.
        channels: the width of each stage down, from the first; the stages up have them in reverse.
        n_blocks: transformer blocks in each stage.
        causal: whether convolutions look back only, and norms are over the channels of one frame.
        static_chunk_size: frames that see each other when streaming, at any frame rate; 0: all do.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    attention_head_dim: int
    n_blocks: int
    num_mid_blocks: int
    num_heads: int
    act_fn: str
    causal: bool
    static_chunk_size: int = 0

    @property
    def time_channels(self) -> int:
        """The width of the time embedding."""
        return 4 * self.channels[0]


@dataclass(frozen=True)
class DiTOptions:
    """The checked options of a diffusion transformer that decide what it computes. Sizes are in channels.

    Attributes:
        depth: transformer blocks.
        ff_mult: the width of feed-forward layers over `dim`.
        spk_dim: 0 where the speaker is not an input.
        static_chunk_size: frames that see each other when streaming; 0: all do.
    """

    dim: int
    depth: int
    heads: int
    dim_head: int
    ff_mult: int
    mel_dim: int
    mu_dim: int
    spk_dim: int
    long_skip_connection: bool
    static_chunk_size: int


EstimatorOptions = UNetOptions | DiTOptions

_MOST: Final = 65_536
_MOST_STAGES: Final = 16


def _yaml(value: Any) -> str:
    """The value in the form of YAML, in one line; what is in the lists of a list is left out."""
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(_item, value[:SHOWN]))}]"
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return _item(value)


def _item(value: Any) -> str:
    return yaml(list(value) if isinstance(value, tuple) else value)


def _is_size(value: Any, least: int, most: int, factor: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most and value % factor == 0


def _size(default: Any = REQUIRED, least: int = 1, most: int = _MOST, factor: int = 1) -> Option:
    """An option that is an integer. It is bounded, so that the estimator can be built."""
    kind = "an integer" if factor == 1 else f"a multiple of {factor}"
    return Option(default, f"{kind} from {least} to {most}", lambda value: _is_size(value, least, most, factor))


def _size_or_null(least: int) -> Option:
    size = _size(None, least)
    return Option(None, f"{size.supported}, or null", lambda value: value is None or size.accepts(value))


def _widths(default: tuple[int, ...], factor: int) -> Option:
    words = f"a list of 1 to {_MOST_STAGES} multiples of {factor} from {factor} to {_MOST}"

    def accepts(value: Any) -> bool:
        is_list = isinstance(value, (list, tuple)) and 1 <= len(value) <= _MOST_STAGES
        return is_list and all(_is_size(each, factor, _MOST, factor) for each in value)

    return Option(default, words, accepts)


_STREAMING: Final = {
    "static_chunk_size": _size(50, least=0),
    "num_decoding_left_chunks": _size(2, least=-1),  # published and ignored: all chunks to the left are seen
}

_UNET: Final[dict[str, Option]] = {
    # Half as many sinusoids, whose exponents are divided by one less than that.
    "in_channels": _size(least=4, factor=2),
    "out_channels": _size(),
    "channels": _widths((256, 256), factor=8),  # GroupNorm has 8 groups
    "dropout": rate(0.05),
    "attention_head_dim": _size(64),
    "n_blocks": _size(1, least=0, most=100),
    "num_mid_blocks": _size(2, least=0, most=100),
    "num_heads": _size(4),
    # The default is that of the public class, which fails on it.
    "act_fn": one_of("snake", "gelu", "gelu-approximate", "geglu", "geglu-approximate", "snakebeta"),
}

_DIT: Final[dict[str, Option]] = {
    "dim": _size(least=16, factor=16),  # the convolutions have 16 groups
    "depth": _size(8, least=0, most=1_000),
    "heads": _size(8),
    "dim_head": _size(64, least=2, factor=2),  # the rotation is of pairs
    "dropout": rate(0.1),
    "ff_mult": _size(4, most=1_000),
    "mel_dim": _size(80),
    "mu_dim": _size_or_null(least=1),
    "long_skip_connection": flag(False),
    "spk_dim": _size_or_null(least=0),
    "out_channels": _size_or_null(least=1),  # published and ignored: as many as `mel_dim` go out
    **_STREAMING,
}

TABLES: Final[dict[str, dict[str, Option]]] = {
    "cosyvoice.flow.decoder.ConditionalDecoder": _UNET,
    "cosyvoice.flow.decoder.CausalConditionalDecoder": _UNET | _STREAMING,
    "cosyvoice.flow.DiT.dit.DiT": _DIT,
}
"""The options by the class names that configurations use."""


def options_of(class_name: str, given: Mapping[str, Any]) -> EstimatorOptions:
    """The checked options of an estimator, defaults filled in.

    Args:
        class_name: the class in the configuration.
        given: option names to values, as the configuration has them.

    Raises:
        UnsupportedOptionError: the class is not a key of `TABLES`; or an option is unknown or missing, or has an
            unsupported value.
    """
    if class_name not in TABLES:
        raise UnsupportedOptionError("class", _yaml(class_name), " or ".join(TABLES))
    values = checked(TABLES[class_name], given, _yaml)
    if TABLES[class_name] is _DIT:
        values["mu_dim"] = values["mel_dim"] if values["mu_dim"] is None else values["mu_dim"]
        values["spk_dim"] = values["spk_dim"] or 0
        return DiTOptions(**_of_fields(DiTOptions, values))
    values["channels"] = tuple(values["channels"])
    values["causal"] = TABLES[class_name] is not _UNET
    return UNetOptions(**_of_fields(UNetOptions, values))


def features(options: EstimatorOptions) -> dict[str, int]:
    """The channels of each input of an estimator's ONNX file, which has all inputs.

    The speaker's vector has as many as the mel frames where the network ignores it.

    Raises:
        UnsupportedOptionError: the channels are not those of all inputs together.
    """
    if isinstance(options, DiTOptions):
        size = options.mel_dim
        return {"x": size, "mu": options.mu_dim, "spks": options.spk_dim or size, "cond": size}
    size = options.out_channels
    if options.in_channels != 4 * size:
        raise UnsupportedOptionError(
            "in_channels",
            str(options.in_channels),
            f"{4 * size}, 4 times out_channels, since an ONNX file joins x, mu, spks and cond",
        )
    return {"x": size, "mu": size, "spks": size, "cond": size}


def _of_fields(kind: type[UNetOptions] | type[DiTOptions], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options that decide what is computed, without the others."""
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}
