"""Which components are selected at which precisions."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosyjit.families import DEFAULT_PRECISIONS, family_of
from cosyjit.selection import select
from tests.support.selections import pairs, refusal

COSYVOICE: Final = family_of("cosyvoice.llm.llm.TransformerLM", "")
COSYVOICE2: Final = family_of("cosyvoice.llm.llm.Qwen2LM", "")
COSYVOICE3: Final = family_of("cosyvoice.llm.llm.CosyVoice3LM", "")

NODE: Final = "flow.decoder.estimator"

COMPONENTS: Final = [component.name for component in COSYVOICE.components if not component.on_request]


def test_by_default_all_components_are_selected_at_the_runtimes_two_precisions() -> None:
    assert DEFAULT_PRECISIONS == ("fp32", "fp16")
    assert pairs(COSYVOICE) == [(name, precision) for name in COMPONENTS for precision in ("fp32", "fp16")]


def test_a_folder_is_selected_at_a_default_of_its_own() -> None:
    assert pairs(COSYVOICE2) == [("flow.encoder", "fp32"), ("flow.encoder", "fp16"), ("llm.vllm", "bf16")]
    assert pairs(COSYVOICE2, ["llm.vllm"]) == pairs(COSYVOICE3) == [("llm.vllm", "bf16")]


def test_what_older_runtimes_expect_is_selected_by_its_name_alone() -> None:
    chunked = ["flow.encoder.chunked"]
    assert pairs(COSYVOICE2, chunked) == [("flow.encoder.chunked", "fp32"), ("flow.encoder.chunked", "fp16")]
    assert pairs(COSYVOICE2, [*chunked, "llm.vllm"], ["bf16"]) == [
        ("flow.encoder.chunked", "bf16"),
        ("llm.vllm", "bf16"),
    ]
    assert [part.name for part in COSYVOICE2.components if part.on_request] == [*chunked, NODE, "llm.hf"]
    assert {part.name: (part.node, part.file_name("fp16")) for part, _ in select(COSYVOICE2, chunked, None)} == {
        "flow.encoder.chunked": ("flow.encoder", "flow.encoder.fp16.zip")
    }


@pytest.mark.parametrize("names", [["flow.encoder", "flow.encoder.chunked"], ["flow.encoder.chunked", "flow.encoder"]])
def test_components_that_are_published_under_one_name_are_not_selected_together(names: list[str]) -> None:
    assert refusal(COSYVOICE2, names, ["fp16", "bf16"]) == (
        "flow.encoder and flow.encoder.chunked are both published as flow.encoder.fp16.zip; choose one of them"
    )


ALL: Final = [(name, precision) for name in COMPONENTS for precision in ("fp32", "fp16")]


def test_all_are_those_on_request_as_well_but_for_rivals_of_others() -> None:
    assert pairs(COSYVOICE, ["all"]) == pairs(COSYVOICE, ["ALL"]) == [*ALL, (NODE, "fp32")]
    assert pairs(COSYVOICE2, ["all"]) == [
        ("flow.encoder", "fp32"),
        ("flow.encoder", "fp16"),
        (NODE, "fp32"),
        ("llm.vllm", "bf16"),
        ("llm.hf", "bf16"),
    ]
    assert pairs(COSYVOICE3, ["all"]) == [(NODE, "fp32"), ("llm.vllm", "bf16"), ("llm.hf", "bf16")]
    assert pairs(COSYVOICE3, ["llm.vllm", "all", "all"]) == pairs(COSYVOICE3, ["all"])
    assert pairs(COSYVOICE2, ["all"], ["autocast_fp16", "fp16"]) == [
        ("flow.encoder", "fp16"),
        (NODE, "autocast_fp16"),
        ("llm.vllm", "fp16"),
        ("llm.hf", "fp16"),
    ]
    assert refusal(COSYVOICE2, ["all", "flow.encoder.chunked"]) == (
        "flow.encoder and flow.encoder.chunked are both published as flow.encoder.fp32.zip; choose one of them"
    )


def test_a_form_that_a_family_does_not_have_is_refused_with_those_that_it_has() -> None:
    assert refusal(COSYVOICE, [NODE], ["streaming.fp32"]) == (
        f"'streaming.fp32' is not a precision of {NODE}; choose from fp32, autocast_fp16, fp32.dynamic_batch"
    )
    assert refusal(COSYVOICE2, None, ["autocast_fp16"]) == (
        "'autocast_fp16' is not a precision of flow.encoder, llm.vllm; choose from fp32, fp16, bf16"
    )


def test_a_precision_that_is_asked_for_is_taken_in_place_of_all_defaults() -> None:
    assert pairs(COSYVOICE2, None, ["fp16"]) == [("flow.encoder", "fp16"), ("llm.vllm", "fp16")]
    assert pairs(COSYVOICE2, ["flow.encoder"], ["fp32", "bf16"]) == [("flow.encoder", "fp32"), ("flow.encoder", "bf16")]
    assert refusal(COSYVOICE2, ["llm.vllm"], ["int8"]) == (
        "'int8' is not a precision of llm.vllm; choose from fp32, fp16, bf16"
    )


def test_what_is_published_under_one_name_is_taken_at_one_precision() -> None:
    assert refusal(COSYVOICE2, None, ["fp32", "bf16"]) == (
        "llm.vllm is published as one vllm, whatever its precision; choose one of fp32, bf16, or other components"
    )


@given(
    st.lists(st.sampled_from(COMPONENTS), min_size=1),
    st.lists(st.sampled_from(["fp32", "fp16", "bf16"]), min_size=1),
)
def test_what_is_selected_comes_once_and_in_the_order_of_the_tables(wanted: list[str], precisions: list[str]) -> None:
    assert pairs(COSYVOICE, wanted, precisions) == [
        (name, precision)
        for name in COMPONENTS
        if name in wanted
        for precision in ("fp32", "fp16", "bf16")
        if precision in precisions
    ]


def test_a_component_is_taken_at_the_precisions_that_it_has() -> None:
    assert pairs(COSYVOICE, None, ["int8"]) == [("llm.llm", "int8")]
    assert pairs(COSYVOICE, ["llm.llm", "flow.encoder"], ["int8", "fp32"]) == [
        ("llm.llm", "fp32"),
        ("llm.llm", "int8"),
        ("flow.encoder", "fp32"),
    ]


@pytest.mark.parametrize("precisions", [["int8"], ["fp32", "int8"]])
def test_a_precision_that_no_selected_component_has_is_refused(precisions: list[str]) -> None:
    assert refusal(COSYVOICE, ["llm.text_encoder", "flow.encoder"], precisions) == (
        "'int8' is not a precision of llm.text_encoder, flow.encoder; choose from fp32, fp16, bf16"
    )
    assert refusal(COSYVOICE2, None, precisions) == (
        "'int8' is not a precision of flow.encoder, llm.vllm; choose from fp32, fp16, bf16"
    )


@pytest.mark.parametrize("name", ["llm.text_encoder", "flow.Encoders", "flow", ""])
def test_an_unknown_component_is_refused_with_the_known_ones(name: str) -> None:
    assert refusal(COSYVOICE2, ["flow.encoder", name]) == (
        f"{name!r} is not a component of CosyVoice2; choose from flow.encoder, flow.encoder.chunked, "
        "flow.decoder.estimator, llm.vllm, llm.hf, all"
    )


KNOWN: Final = "fp32, fp16, bf16, int8, autocast_fp16, streaming.fp32, streaming.autocast_fp16, fp32.dynamic_batch, all"


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    assert refusal(COSYVOICE, None, ["fp16", "fp8"]) == f"'fp8' is not a precision; choose from {KNOWN}"


def test_an_empty_selection_is_refused() -> None:
    assert refusal(COSYVOICE, []) == (
        "no component of CosyVoice is selected; choose from llm.text_encoder, llm.llm, flow.encoder, "
        "flow.decoder.estimator, all"
    )
    assert refusal(COSYVOICE, None, []) == f"no precision is selected; choose from {KNOWN}"


ENCODER2: Final = [("flow.encoder", "fp32"), ("flow.encoder", "fp16"), ("flow.encoder", "bf16")]
FORMS: Final = ("fp32", "autocast_fp16", "streaming.fp32", "streaming.autocast_fp16", "fp32.dynamic_batch")


def test_all_precisions_are_those_that_each_component_has_and_the_default_of_what_has_one_name() -> None:
    folders = [("llm.vllm", "bf16"), ("llm.hf", "bf16")]
    assert pairs(COSYVOICE2, ["all"], ["all"]) == [*ENCODER2, *((NODE, form) for form in FORMS), *folders]
    assert pairs(COSYVOICE2, None, ["all"]) == [*ENCODER2, ("llm.vllm", "bf16")]
    assert pairs(COSYVOICE, ["llm.llm"], ["all"]) == [("llm.llm", each) for each in ("fp32", "fp16", "bf16", "int8")]
    assert pairs(COSYVOICE2, None, ["all", "fp16"]) == [*ENCODER2, ("llm.vllm", "fp16")]


def test_patterns_stand_for_the_names_that_they_match() -> None:
    assert pairs(COSYVOICE2, ["llm.*"]) == [("llm.vllm", "bf16"), ("llm.hf", "bf16")]
    assert pairs(COSYVOICE, ["llm.*", "*.estimator"], ["fp32"]) == [
        ("llm.text_encoder", "fp32"),
        ("llm.llm", "fp32"),
        (NODE, "fp32"),
    ]
    assert pairs(COSYVOICE2, ["*"], ["all"]) == pairs(COSYVOICE2, ["all"], ["*"]) == pairs(COSYVOICE2, ["all"], ["all"])
    assert pairs(COSYVOICE2, [NODE], ["streaming.*"]) == [(NODE, "streaming.fp32"), (NODE, "streaming.autocast_fp16")]
    assert pairs(COSYVOICE2, ["llm.vllm", "flow.encoder"], ["?p1[67]"]) == [
        ("flow.encoder", "fp16"),
        ("llm.vllm", "fp16"),
    ]
    assert pairs(COSYVOICE2, ["llm.vllm"], ["b*", "*16"]) == [("llm.vllm", "bf16")]
    assert refusal(COSYVOICE2, ["llm.vllm"], ["fp*"]) == (
        "llm.vllm is published as one vllm, whatever its precision; choose one of fp32, fp16, or other components"
    )


def test_a_pattern_leaves_out_the_rivals_of_what_it_matches_and_takes_them_alone() -> None:
    chunked = [("flow.encoder.chunked", "fp32"), ("flow.encoder.chunked", "fp16")]
    assert pairs(COSYVOICE2, ["flow.encoder*"]) == [("flow.encoder", "fp32"), ("flow.encoder", "fp16")]
    assert pairs(COSYVOICE2, ["*.chunked"]) == chunked
    assert refusal(COSYVOICE2, ["flow.*", "*.chunked"]) == (
        "flow.encoder and flow.encoder.chunked are both published as flow.encoder.fp32.zip; choose one of them"
    )


def test_a_pattern_that_matches_nothing_is_refused_with_what_there_is() -> None:
    assert refusal(COSYVOICE3, ["flow.encoder*"]) == (
        "'flow.encoder*' matches no component of CosyVoice3; choose from flow.decoder.estimator, llm.vllm, llm.hf, all"
    )
    assert refusal(COSYVOICE, None, ["fp8*"]) == f"'fp8*' matches no precision; choose from {KNOWN}"
    assert refusal(COSYVOICE2, ["llm.hf"], ["streaming.*"]) == (
        "'streaming.*' matches no precision of llm.hf; choose from fp32, fp16, bf16"
    )


def test_a_list_with_commas_is_one_of_names_and_patterns() -> None:
    assert pairs(COSYVOICE, ["llm.text_encoder, flow.encoder"], ["fp16,fp32"]) == [
        (name, precision) for name in ("llm.text_encoder", "flow.encoder") for precision in ("fp32", "fp16")
    ]
    assert refusal(COSYVOICE, None, ["fp16,"]) == f"'' is not a precision; choose from {KNOWN}"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *(("FP16", "fp16"), ("half", "fp16"), ("Float16", "fp16"), ("BF16", "bf16"), ("bfloat16", "bf16")),
        *(("float32", "fp32"), ("float", "fp32"), ("INT8", "int8"), ("I*8", "int8"), ("ALL", "all")),
    ],
)
def test_precisions_may_be_called_as_elsewhere(spelling: str, name: str) -> None:
    assert pairs(COSYVOICE, ["llm.llm"], [spelling]) == pairs(COSYVOICE, ["llm.llm"], [name])
