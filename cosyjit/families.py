"""What the model families need, as data: no other module asks for a family by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cosyjit.errors import ConfigError, SelectionError


@dataclass(frozen=True)
class Component:
    """A part of a model that is exported by itself.

    Attributes:
        name: the path of its node in the configuration, and the first part of its artifacts' names.
        class_name: the class that its node names.
        weights: the file that holds its tensors.
        prefix: what their names there start with.
        methods: the methods that its artifacts keep beside `forward`.
    """

    name: str
    class_name: str
    weights: str
    prefix: str
    methods: tuple[str, ...] = ()


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
    """A number format: its name, that of the torch type, and the size of a number."""

    name: str
    dtype: str
    bytes: int


_ENCODERS: Final = "cosyvoice.transformer"

FAMILIES: Final = (
    Family(
        name="CosyVoice",
        language_model="cosyvoice.llm.llm.TransformerLM",
        components=(
            Component("llm.text_encoder", f"{_ENCODERS}.encoder.ConformerEncoder", "llm.pt", "text_encoder."),
            Component("llm.llm", f"{_ENCODERS}.encoder.TransformerEncoder", "llm.pt", "llm.", ("forward_chunk",)),
            Component("flow.encoder", f"{_ENCODERS}.encoder.ConformerEncoder", "flow.pt", "encoder."),
        ),
    ),
    Family(
        name="CosyVoice2",
        language_model="cosyvoice.llm.llm.Qwen2LM",
        components=(
            Component("flow.encoder", f"{_ENCODERS}.upsample_encoder.UpsampleConformerEncoder", "flow.pt", "encoder."),
        ),
    ),
    Family(name="CosyVoice3", language_model="cosyvoice.llm.llm.CosyVoice3LM", components=()),
)

CONFIG_FILES: Final = ("cosyvoice.yaml", "cosyvoice2.yaml", "cosyvoice3.yaml")
"""The names under which configurations are published. They do not tell the family: early CosyVoice2 repositories used
the first."""

PRECISIONS: Final = {
    each.name: each
    for each in (Precision("fp32", "float32", 4), Precision("fp16", "float16", 2), Precision("bf16", "bfloat16", 2))
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


def select_components(family: Family, names: Sequence[str] | None) -> tuple[Component, ...]:
    """The family's components of these names, in the family's order; all of them for None.

    Raises:
        SelectionError: the family has nothing to export, or has no component of a name.
    """
    if not family.components:
        raise SelectionError(f"{family.name} has nothing to export as TorchScript; its runtime loads no such zip")
    known = [component.name for component in family.components]
    wanted = known if names is None else _checked(names, known, f"component of {family.name}")
    return tuple(component for component in family.components if component.name in wanted)


def select_precisions(names: Sequence[str] | None) -> tuple[Precision, ...]:
    """The precisions of these names, in the order of `PRECISIONS`; the default set for None.

    Raises:
        SelectionError: there is no precision of a name.
    """
    wanted = DEFAULT_PRECISIONS if names is None else _checked(names, list(PRECISIONS), "precision")
    return tuple(precision for precision in PRECISIONS.values() if precision.name in wanted)


def _checked(names: Sequence[str], known: Sequence[str], kind: str) -> Sequence[str]:
    if not names:
        raise SelectionError(f"no {kind} is selected; choose from {', '.join(known)}")
    for name in names:
        if name not in known:
            raise SelectionError(f"{name!r} is no {kind}; choose from {', '.join(known)}")
    return names
