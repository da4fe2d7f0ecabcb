"""The families as data, how one is recognised, and how parts of it are selected."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosyjit.checkpoint import open_checkpoint
from cosyjit.encoders.registry import ENCODERS
from cosyjit.errors import ConfigError, SelectionError
from cosyjit.families import (
    CONFIG_FILES,
    DEFAULT_PRECISIONS,
    FAMILIES,
    PRECISIONS,
    Component,
    Family,
    Precision,
    family_of,
    select_components,
    select_precisions,
)
from cosyjit.source import open_source

Copy = Callable[[Path], Path]

COSYVOICE: Final = family_of("cosyvoice.llm.llm.TransformerLM", "")
COSYVOICE2: Final = family_of("cosyvoice.llm.llm.Qwen2LM", "")
COSYVOICE3: Final = family_of("cosyvoice.llm.llm.CosyVoice3LM", "")

ENCODER: Final = "cosyvoice.transformer.encoder"


def names(components: tuple[Component, ...]) -> list[str]:
    return [component.name for component in components]


def refusal(family: Family, wanted: list[str] | None) -> str:
    with pytest.raises(SelectionError) as error:
        select_components(family, wanted)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_the_table_is_what_the_public_runtime_reads() -> None:
    assert [family.name for family in FAMILIES] == ["CosyVoice", "CosyVoice2", "CosyVoice3"]
    assert COSYVOICE.components == (
        Component("llm.text_encoder", f"{ENCODER}.ConformerEncoder", "llm.pt", "text_encoder."),
        Component("llm.llm", f"{ENCODER}.TransformerEncoder", "llm.pt", "llm.", ("forward_chunk",)),
        Component("flow.encoder", f"{ENCODER}.ConformerEncoder", "flow.pt", "encoder."),
    )
    upsample = "cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder"
    assert COSYVOICE2.components == (Component("flow.encoder", upsample, "flow.pt", "encoder."),)
    assert COSYVOICE3.components == ()


@pytest.mark.parametrize("component", [component for family in FAMILIES for component in family.components])
def test_each_component_has_an_encoder_with_its_methods(component: Component) -> None:
    encoder = ENCODERS[component.class_name].encoder
    assert all(hasattr(encoder, method) for method in component.methods)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_each_precision_is_a_torch_type_of_its_size(precision: Precision) -> None:
    dtype = getattr(torch, precision.dtype)
    assert dtype.is_floating_point
    assert dtype.itemsize == precision.bytes


def test_an_unknown_language_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        family_of("cosyvoice.llm.llm.Qwen9LM", "/models/x/cosyvoice.yaml")
    message = str(error.value)
    assert message.startswith("/models/x/cosyvoice.yaml: llm is of an unknown class, cosyvoice.llm.llm.Qwen9LM; ")
    assert all(f"{family.language_model} ({family.name})" in message for family in FAMILIES)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("file_name", CONFIG_FILES)
def test_the_class_decides_and_not_the_file_name(file_name: str, tiny2: Path, tmp_path: Path) -> None:
    shutil.copy(tiny2 / "cosyvoice2.yaml", tmp_path / file_name)
    checkpoint = open_checkpoint(open_source(tmp_path))
    assert checkpoint.family is COSYVOICE2
    assert checkpoint.source.config == tmp_path / file_name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_is_told_by_its_language_model(family: Family, tmp_path: Path) -> None:
    (tmp_path / "cosyvoice.yaml").write_text(f"llm: !new:{family.language_model} {{llm: !apply:f []}}\n")
    assert open_checkpoint(open_source(tmp_path)).family is family


def test_a_configuration_with_another_language_model_is_refused(tiny: Path, copy_of: Copy) -> None:
    config = copy_of(tiny) / "cosyvoice.yaml"
    config.write_text(config.read_text().replace("llm.TransformerLM", "llm.OtherLM"))
    with pytest.raises(ConfigError, match=r"llm is of an unknown class, cosyvoice\.llm\.llm\.OtherLM") as error:
        open_checkpoint(open_source(config.parent))
    assert str(error.value).startswith(f"{config}: ")


def test_all_components_are_selected_by_default() -> None:
    assert select_components(COSYVOICE, None) == COSYVOICE.components
    assert select_components(COSYVOICE2, None) == COSYVOICE2.components


@given(st.lists(st.sampled_from(names(COSYVOICE.components)), min_size=1))
def test_selected_components_come_once_and_in_the_order_of_the_family(wanted: list[str]) -> None:
    selected = names(select_components(COSYVOICE, wanted))
    assert selected == [name for name in names(COSYVOICE.components) if name in wanted]


@given(st.lists(st.sampled_from(list(PRECISIONS)), min_size=1))
def test_selected_precisions_come_once_and_in_one_order(wanted: list[str]) -> None:
    selected = [precision.name for precision in select_precisions(wanted)]
    assert selected == [name for name in ("fp32", "fp16", "bf16") if name in wanted]


def test_the_runtimes_two_precisions_are_the_default() -> None:
    assert [precision.name for precision in select_precisions(None)] == list(DEFAULT_PRECISIONS) == ["fp32", "fp16"]


@pytest.mark.parametrize("name", ["llm.text_encoder", "flow.Encoder", "flow", ""])
def test_an_unknown_component_is_refused_with_the_known_ones(name: str) -> None:
    assert refusal(COSYVOICE2, ["flow.encoder", name]) == (
        f"{name!r} is no component of CosyVoice2; choose from flow.encoder"
    )


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SelectionError, match=r"^'int8' is no precision; choose from fp32, fp16, bf16$"):
        select_precisions(["fp16", "int8"])


def test_an_empty_selection_is_refused() -> None:
    assert refusal(COSYVOICE, []) == (
        "no component of CosyVoice is selected; choose from llm.text_encoder, llm.llm, flow.encoder"
    )
    with pytest.raises(SelectionError, match=r"^no precision is selected; choose from fp32, fp16, bf16$"):
        select_precisions([])


@pytest.mark.parametrize("wanted", [None, [], ["flow.encoder"]])
def test_a_family_with_nothing_to_export_is_refused_whatever_is_asked(wanted: list[str] | None) -> None:
    assert refusal(COSYVOICE3, wanted).startswith("CosyVoice3 has nothing to export as TorchScript")
