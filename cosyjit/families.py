"""What the model families need, as data: no other module asks for a family by name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from cosyjit.errors import ConfigError, SelectionError

DEFAULT_PRECISIONS: Final = ("fp32", "fp16")
"""The two of which the public runtime reads zips."""

LANGUAGE_MODEL: Final = "llm"
"""The node of a configuration that the family is told by."""

Kind = Literal["zip", "vllm"]
"""What is made of a component: a zip of TorchScript, or the folder from which vLLM decodes a language model."""


class Tolerance(NamedTuple):
    """How far an artifact may be from its encoder: see `cosyjit.torchscript.gate.Figures`.

    The absolute error is of outputs with a root mean square of 1 or less; of larger ones it is in units of that.
    """

    absolute: float
    relative: float
    cosine: float


@dataclass(frozen=True)
class Component:
    """A part of a model that is exported by itself.

    Attributes:
        name: as users write it; unless `at` says otherwise, the path of its node in the configuration, which is the
            first part of its artifacts' names as well. A folder has no node of its own.
        class_name: the class that its node names; of a folder, that of the language model.
        weights: the file that holds its tensors.
        prefix: what their names there start with.
        methods: the methods that its artifacts keep beside `forward`.
        tolerances: of the precisions that it can be exported at, by their names.
        kind: what is made of it.
        published: the name of what is published, where it is the same at every precision.
        defaults: the precisions that it is exported at unless others are asked for.
        configs: the files that it is made from besides the configuration and the weights.
        beside: what the weights file of a folder has besides the language model, the embedding of speech and the head.
        at: the path of its node, where another component of that name has it as well.
        on_request: whether it is exported only where its name is given.
        overrides: what its encoder's options are whatever the configuration says, by their names in
            `cosyjit.encoders.options.EncoderOptions`.
    """

    name: str
    class_name: str
    weights: str
    prefix: str
    methods: tuple[str, ...] = ()
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict, hash=False)
    kind: Kind = "zip"
    published: str | None = None
    defaults: tuple[str, ...] = DEFAULT_PRECISIONS
    configs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    at: str = ""
    on_request: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def node(self) -> str:
        """The path of the node in the configuration that says how it is built; of a folder, the language model's."""
        return self.at or (LANGUAGE_MODEL if self.kind == "vllm" else self.name)

    def file_name(self, precision: str) -> str:
        """The name by which the runtime finds what is made of it at a precision."""
        return self.published or f"{self.node}.{precision}.zip"


@dataclass(frozen=True)
class Family:
    """A model family, told by the class of the configuration's `llm` node, or where there is none by its components.

    Attributes:
        name: as its publishers write it.
        language_model: the class that the top-level node `llm` names.
        components: what is exported.
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
# Of a folder's logits in transformers; its tensors are compared bit for bit. Measured with random numbers:
#          tiny                       full
#   fp32   1.9e-6, 4.8e-7, 1          6.1e-6, 1.3e-6, 1
#   fp16   5.9e-3, 1.4e-3, 0.9999990  1.1e-2, 2.5e-3, 0.999997
#   bf16   0.049, 0.012, 0.99993      0.098, 0.019, 0.99981
_FOLDER_TOLERANCES: Final = {
    "fp32": _FP32,
    "fp16": Tolerance(0.02, 0.005, 0.99999),
    "bf16": Tolerance(0.15, 0.036, 0.9995),
}


def _folder(class_name: str, beside: tuple[str, ...]) -> Component:
    """The language model of a family as the folder `vllm`, at the precision that the public runtime writes it at."""
    return Component(
        name="llm.vllm",
        class_name=class_name,
        weights="llm.pt",
        prefix="",
        tolerances=_FOLDER_TOLERANCES,
        kind="vllm",
        published="vllm",
        configs=("CosyVoice-BlankEN/config.json", "CosyVoice-BlankEN/generation_config.json"),
        defaults=("bf16",),
        beside=beside,
    )


COSYVOICE2_CHUNKED: Final = Component(
    name="flow.encoder.chunked",
    class_name=_UPSAMPLE,
    weights="flow.pt",
    prefix="encoder.",
    tolerances=_TOLERANCES,
    at="flow.encoder",
    on_request=True,
    overrides={"static_chunk_size": 50, "always_streaming": True},
)
"""The flow encoder as public runtimes of before April 2025 expect it: it attends in chunks at every call.

Read of FunAudioLLM/CosyVoice: from 94d6ce1 (December 16th, 2024) to 08312f4 (March 25th, 2025) `CosyVoice2Model` sets
`flow.encoder.static_chunk_size` to twice `flow.input_frame_rate`, which is 25 in the configuration of that family, and
the encoder is exported so. Its `forward` takes xs, xs_lens, decoding_chunk_size and num_decoding_left_chunks, of which
the runtime gives the first two, by position; there is no `streaming` and no `context`. From b56dfa2 (April 7th) the
runtime calls a `forward_chunk` of the encoder, which no artifact has; from 3c921da (May 23rd) it sets
`flow.encoder.streaming` before the export, and from b6c5f9d (May 27th) it passes `streaming`, as it does today.
"""

COSYVOICE2_VLLM: Final = _folder("cosyvoice.llm.llm.Qwen2LM", ("llm_decoder.bias", "llm_embedding.weight"))
COSYVOICE3_VLLM: Final = _folder("cosyvoice.llm.llm.CosyVoice3LM", ())

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
        components=(
            Component("flow.encoder", _UPSAMPLE, "flow.pt", "encoder.", (), _TOLERANCES),
            COSYVOICE2_CHUNKED,
            COSYVOICE2_VLLM,
        ),
    ),
    Family(name="CosyVoice3", language_model="cosyvoice.llm.llm.CosyVoice3LM", components=(COSYVOICE3_VLLM,)),
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


def nodes_of_components() -> tuple[str, ...]:
    """The paths of the nodes, other than the language model's, that components of any family have."""
    parts = [part for family in FAMILIES for part in family.components]
    return tuple(dict.fromkeys(part.node for part in parts if part.node != LANGUAGE_MODEL))


def family_by_components(classes: Mapping[str, str], where: str) -> Family:
    """The one family that a configuration without a language model can be of.

    Args:
        classes: of the nodes of components that it has, by their paths.
        where: what the message of an error begins with.

    Raises:
        ConfigError: no family has a component of such a class at such a node, or several have.
    """
    if not classes:
        nodes = " nor ".join((LANGUAGE_MODEL, *nodes_of_components()))
        raise ConfigError(f"{where}: has neither {nodes}, by which a family is told; restore the published file")
    fitting = [
        family for family in FAMILIES if any(classes.get(part.node) == part.class_name for part in family.components)
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = " and ".join(f"{node} is a {class_name}" for node, class_name in classes.items())
    known = ", ".join(
        f"{part.class_name} ({family.name})"
        for family in FAMILIES
        for part in family.components
        if part.node in classes
    )
    raise ConfigError(f"{where}: has no {LANGUAGE_MODEL} node to tell the family by, and {found}; known: {known}")


def select(
    family: Family, components: Sequence[str] | None, precisions: Sequence[str] | None
) -> tuple[tuple[Component, Precision], ...]:
    """The family's components of these names at the precisions of these names, in the order of the tables.

    Args:
        family: whose components.
        components: for None all that the family has, but for those on request.
        precisions: the defaults of each component for None; a component that has not all of them is taken at those that
            it has.

    Raises:
        SelectionError: there is no component or precision of a name, none of the components has a precision, or several
            things are published under one name.
    """
    known = [component.name for component in family.components]
    usual = [component.name for component in family.components if not component.on_request]
    names = usual if components is None else _checked(components, known, f"component of {family.name}")
    wanted = None if precisions is None else _checked(precisions, list(PRECISIONS), "precision")
    parts = [component for component in family.components if component.name in names]
    for name in wanted or ():
        if all(name not in part.tolerances for part in parts):
            choice = ", ".join(dict.fromkeys(each for part in parts for each in part.tolerances))
            having_not = ", ".join(part.name for part in parts)
            raise SelectionError(f"{name!r} is no precision of {having_not}; choose from {choice}")
    for part in parts:
        several = [name for name in wanted or () if name in part.tolerances] if part.published else []
        if len(several) > 1:
            raise SelectionError(
                f"{part.name} is published as one {part.published}, whatever its precision; choose one of "
                f"{', '.join(several)}, or other components"
            )
    selected = tuple(
        (part, precision)
        for part in parts
        for precision in PRECISIONS.values()
        if precision.name in (part.defaults if wanted is None else wanted) and precision.name in part.tolerances
    )
    published: dict[str, Component] = {}
    for part, precision in selected:
        other = published.setdefault(part.file_name(precision.name), part)
        if other is not part:
            name = part.file_name(precision.name)
            raise SelectionError(f"{other.name} and {part.name} are both published as {name}; choose one of them")
    return selected


def _checked(names: Sequence[str], known: Sequence[str], kind: str) -> Sequence[str]:
    if not names:
        raise SelectionError(f"no {kind} is selected; choose from {', '.join(known)}")
    for name in names:
        if name not in known:
            raise SelectionError(f"{name!r} is no {kind}; choose from {', '.join(known)}")
    return names
