"""What the model families need, as data: no other module asks for a family by name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cosyjit.errors import ConfigError, SelectionError


class Tolerance(NamedTuple):
    """How far an artifact may be from its encoder: see `cosyjit.verify.Figures`.

    The absolute error is of outputs with a root mean square of 1 or less; of larger ones it is in units of that.
    """

    absolute: float
    relative: float
    cosine: float


@dataclass(frozen=True)
class Component:
    """A part of a model that is exported by itself.

    Attributes:
        name: the path of its node in the configuration, and the first part of its artifacts' names.
        class_name: the class that its node names.
        weights: the file that holds its tensors.
        prefix: what their names there start with.
        methods: the methods that its artifacts keep beside `forward`.
        tolerances: of the precisions that it can be exported at, by their names.
    """

    name: str
    class_name: str
    weights: str
    prefix: str
    methods: tuple[str, ...] = ()
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Family:
    """A model family, told by the class of the configuration's `llm` node.

    Attributes:
        name: as its publishers write it.
        language_model: the class that the top-level node `llm` names.
        components: what is exported; empty where nothing is.
    """

    name: str
    language_model: str
    components: tuple[Component, ...]


class Precision(NamedTuple):
    """A number format of an artifact's weights.

    Attributes:
        name: as users write it.
        dtype: the torch type of what is computed.
        bytes: the size of a weight.
        instead: what to try where it will not do.
        quantized: the weights of linear layers alone are of that size, those of positions excepted; others are float32.
    """

    name: str
    dtype: str
    bytes: int
    instead: str
    quantized: bool = False

    def size(self, name: str, shape: Sequence[int]) -> int:
        """How many bytes a tensor takes, by its name in a checkpoint."""
        narrow = len(shape) == 2 and name.endswith(".weight") and not name.endswith("linear_pos.weight")  # noqa: PLR2004
        return math.prod(shape) * (_FLOAT32_BYTES if self.quantized and not narrow else self.bytes)


_FLOAT32_BYTES: Final = 4

_CONFORMER: Final = "cosyvoice.transformer.encoder.ConformerEncoder"
_TRANSFORMER: Final = "cosyvoice.transformer.encoder.TransformerEncoder"
_UPSAMPLE: Final = "cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder"

# Measured with torch 2.13 on full-size weights of random numbers: the largest absolute error, the largest relative one
# and the smallest cosine. What is allowed is some six times the error; of int8, what its use demands.
#                               fp32, 1 thread   fp16                        bf16
#   llm.text_encoder            0, 0, 1          6.1e-3, 9.2e-4, 0.9999996   0.088, 7.6e-3, 0.99997
#   llm.llm                     0, 0, 1          1.7e-2, 1.6e-3, 0.9999988   0.20, 1.3e-2, 0.99992
#   flow.encoder                0, 0, 1          6.0e-3, 9.7e-4, 0.9999995   0.088, 8.4e-3, 0.99997
#   flow.encoder of CosyVoice2  0, 0, 1          6.7e-3, 1.3e-3, 0.9999992   0.10, 1.1e-2, 0.99994
#   llm.llm in int8: 0.18, 0.026, 0.99968
# Golden vectors, other processors and other numbers of threads make some 1e-5 of the zeros.
_FP32: Final = Tolerance(1e-4, 2e-5, 0.9999999)
_TOLERANCES: Final = {"fp32": _FP32, "fp16": Tolerance(0.04, 0.008, 0.99997), "bf16": Tolerance(0.6, 0.06, 0.998)}
_LLM_TOLERANCES: Final = {
    "fp32": _FP32,
    "fp16": Tolerance(0.1, 0.01, 0.9999),
    "bf16": Tolerance(1.2, 0.08, 0.997),
    "int8": Tolerance(1.1, 0.045, 0.999),
}

FAMILIES: Final = (
    Family(
        name="CosyVoice",
        language_model="cosyvoice.llm.llm.TransformerLM",
        components=(
            Component("llm.text_encoder", _CONFORMER, "llm.pt", "text_encoder.", (), _TOLERANCES),
            Component("llm.llm", _TRANSFORMER, "llm.pt", "llm.", ("forward_chunk",), _LLM_TOLERANCES),
            Component("flow.encoder", _CONFORMER, "flow.pt", "encoder.", (), _TOLERANCES),
        ),
    ),
    Family(
        name="CosyVoice2",
        language_model="cosyvoice.llm.llm.Qwen2LM",
        components=(Component("flow.encoder", _UPSAMPLE, "flow.pt", "encoder.", (), _TOLERANCES),),
    ),
    Family(name="CosyVoice3", language_model="cosyvoice.llm.llm.CosyVoice3LM", components=()),
)

CONFIG_FILES: Final = ("cosyvoice.yaml", "cosyvoice2.yaml", "cosyvoice3.yaml")
"""The names under which configurations are published. They do not tell the family: early CosyVoice2 repositories used
the first."""

PRECISIONS: Final = {
    each.name: each
    for each in (
        Precision("fp32", "float32", 4, "this is a fault of cosyjit or of torch: report it"),
        Precision("fp16", "float16", 2, "export bf16 or fp32 instead"),
        Precision("bf16", "bfloat16", 2, "export fp16 or fp32 instead"),
        Precision("int8", "float32", 1, "export fp32 instead", quantized=True),
    )
}

DEFAULT_PRECISIONS: Final = ("fp32", "fp16")
"""The two that the public runtime reads."""


def family_of(language_model: str, where: str) -> Family:
    """The family whose language model is of this class.

    Raises:
        ConfigError: there is none; the message begins with `where`.
    """
    for family in FAMILIES:
        if family.language_model == language_model:
            return family
    known = ", ".join(f"{family.language_model} ({family.name})" for family in FAMILIES)
    raise ConfigError(f"{where}: llm is of an unknown class, {language_model}; known: {known}")


def select(
    family: Family, components: Sequence[str] | None, precisions: Sequence[str] | None
) -> tuple[tuple[Component, Precision], ...]:
    """The family's components of these names at the precisions of these names, in the order of the tables.

    Args:
        family: whose components.
        components: all that the family has for None.
        precisions: the default set for None; a component that has not all of them is taken at those that it has.

    Raises:
        SelectionError: the family has nothing to export, there is no component or precision of a name, or none of the
            components has a precision.
    """
    if not family.components:
        raise SelectionError(f"{family.name} has nothing to export as TorchScript; its runtime loads no such zip")
    known = [component.name for component in family.components]
    names = known if components is None else _checked(components, known, f"component of {family.name}")
    wanted = DEFAULT_PRECISIONS if precisions is None else _checked(precisions, list(PRECISIONS), "precision")
    parts = [component for component in family.components if component.name in names]
    for name in wanted:
        if all(name not in part.tolerances for part in parts):
            choice = ", ".join(dict.fromkeys(each for part in parts for each in part.tolerances))
            having_not = ", ".join(part.name for part in parts)
            raise SelectionError(f"{name!r} is no precision of {having_not}; choose from {choice}")
    return tuple(
        (part, precision)
        for part in parts
        for precision in PRECISIONS.values()
        if precision.name in wanted and precision.name in part.tolerances
    )


def _checked(names: Sequence[str], known: Sequence[str], kind: str) -> Sequence[str]:
    if not names:
        raise SelectionError(f"no {kind} is selected; choose from {', '.join(known)}")
    for name in names:
        if name not in known:
            raise SelectionError(f"{name!r} is no {kind}; choose from {', '.join(known)}")
    return names
