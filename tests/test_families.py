"""The families as data, and how one is recognised."""

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
import torch

from cosyjit.encoders.options import TABLES, EncoderOptions
from cosyjit.encoders.registry import ENCODERS
from cosyjit.errors import ConfigError
from cosyjit.families import (
    CONFIG_FILES,
    COSYVOICE2_ESTIMATOR,
    COSYVOICE2_HF,
    COSYVOICE2_VLLM,
    COSYVOICE3_ESTIMATOR,
    COSYVOICE3_HF,
    COSYVOICE3_VLLM,
    COSYVOICE_ESTIMATOR,
    FAMILIES,
    PRECISIONS,
    Component,
    Family,
    Precision,
    family_of,
    plans_of,
)
from cosyjit.onnx.forms import FORMS, LIMITS
from cosyjit.sources.checkpoint import open_checkpoint
from cosyjit.sources.source import open_source
from tests.support.selections import pairs, refusal
from tests.support.vllm_folders import FILES

Copy = Callable[[Path], Path]

COSYVOICE: Final = family_of("cosyvoice.llm.llm.TransformerLM", "")
COSYVOICE2: Final = family_of("cosyvoice.llm.llm.Qwen2LM", "")
COSYVOICE3: Final = family_of("cosyvoice.llm.llm.CosyVoice3LM", "")

ENCODER: Final = "cosyvoice.transformer.encoder"


def test_the_table_is_what_the_public_runtime_reads() -> None:
    assert [family.name for family in FAMILIES] == ["CosyVoice", "CosyVoice2", "CosyVoice3"]
    found = [
        (family.name, part.name, part.class_name, part.weights, part.prefix, part.methods)
        for family in FAMILIES
        for part in family.components
        if part.kind == "zip"
    ]
    upsample = "cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder"
    assert found == [
        ("CosyVoice", "llm.text_encoder", f"{ENCODER}.ConformerEncoder", "llm.pt", "text_encoder.", ()),
        ("CosyVoice", "llm.llm", f"{ENCODER}.TransformerEncoder", "llm.pt", "llm.", ("forward_chunk",)),
        ("CosyVoice", "flow.encoder", f"{ENCODER}.ConformerEncoder", "flow.pt", "encoder.", ()),
        ("CosyVoice2", "flow.encoder", upsample, "flow.pt", "encoder.", ()),
        ("CosyVoice2", "flow.encoder.chunked", upsample, "flow.pt", "encoder.", ()),
    ]
    folders = {family.name: [part for part in family.components if part.is_folder] for family in FAMILIES}
    assert folders == {
        "CosyVoice": [],
        "CosyVoice2": [COSYVOICE2_VLLM, COSYVOICE2_HF],
        "CosyVoice3": [COSYVOICE3_VLLM, COSYVOICE3_HF],
    }


FOLDERS: Final = (COSYVOICE2_VLLM, COSYVOICE3_VLLM)
MERGED: Final = (COSYVOICE2_HF, COSYVOICE3_HF)
ESTIMATORS: Final = (COSYVOICE_ESTIMATOR, COSYVOICE2_ESTIMATOR, COSYVOICE3_ESTIMATOR)
ZIPS: Final = tuple(
    part for family in FAMILIES for part in family.components if part not in (*FOLDERS, *MERGED, *ESTIMATORS)
)
NODE: Final = "flow.decoder.estimator"


def test_the_language_models_that_vllm_decodes_are_folders_of_one_name() -> None:
    assert [part.class_name for part in FOLDERS] == [COSYVOICE2.language_model, COSYVOICE3.language_model]
    assert {(part.name, part.weights, part.prefix, part.kind, part.published) for part in FOLDERS} == {
        ("llm.vllm", "llm.pt", "", "vllm", "vllm")
    }
    assert [part.extra_tensors for part in FOLDERS] == [("llm_decoder.bias", "llm_embedding.weight"), ()]
    assert [part.configs for part in FOLDERS] == [FILES, FILES]
    assert {(part.kind, part.published, part.extra_tensors, part.configs) for part in ZIPS} == {("zip", None, (), ())}


def test_merged_folders_are_of_the_same_models_on_request_under_one_name() -> None:
    for merged, folder in zip(MERGED, FOLDERS, strict=True):
        same = ("class_name", "weights", "prefix", "tolerances", "extra_tensors", "defaults")
        assert [getattr(merged, name) for name in same] == [getattr(folder, name) for name in same]
        assert (merged.name, merged.published, merged.on_request, folder.on_request) == (
            "llm.hf",
            "hf_merged",
            True,
            False,
        )
        assert merged.configs == (*FILES, "CosyVoice-BlankEN/tokenizer_config.json")
    assert refusal(COSYVOICE2, ["llm.hf"], ["fp32", "bf16"]) == (
        "llm.hf is published as one hf_merged, whatever its precision; choose one of fp32, bf16, or other components"
    )


def test_the_special_tokens_are_those_of_the_public_tokenizers() -> None:
    two, three = (part.tokens for part in MERGED)
    assert (len(two.text), len(three.text)) == (19, 280)
    assert three.text[: len(two.text)] == two.text
    assert two.text[:4] == ("<|im_start|>", "<|im_end|>", "<|endofprompt|>", "[breath]")
    assert (three.text[18:21], three.text[103:106]) == (("[mn]", "<|endofsystem|>", "[AA]"), ("[ZH]", "[a]", "[ai]"))
    assert len(set(three.text)) == 280
    assert hashlib.sha256(" ".join(three.text).encode()).hexdigest()[:16] == "9465e47a82bc271c"
    assert (two.ends, len(two.named), len(two.marks)) == (3, 3, 2)
    assert (three.ends, len(three.named), len(three.marks)) == (200, 4, 0)


def test_a_file_of_onnx_is_held_to_more_at_float32() -> None:
    assert COSYVOICE2_ESTIMATOR.tolerances["fp32"].absolute < COSYVOICE2_ESTIMATOR.tolerances["autocast_fp16"].absolute


@pytest.mark.parametrize("component", [*FOLDERS, *ZIPS])
def test_each_component_has_tolerances_that_grow_with_the_coarseness_of_the_precision(component: Component) -> None:
    assert list(component.tolerances)[:3] == ["fp32", "fp16", "bf16"]
    assert set(component.tolerances) <= set(PRECISIONS)
    for finer, coarser in pairwise(component.tolerances[name] for name in ("fp32", "fp16", "bf16")):
        assert finer.absolute < coarser.absolute
        assert finer.relative < coarser.relative
        assert 1 > finer.cosine > coarser.cosine >= 0.997


def test_the_estimators_are_files_of_onnx_under_the_names_that_runtimes_read() -> None:
    assert [part.class_name for part in ESTIMATORS] == [
        "cosyvoice.flow.decoder.ConditionalDecoder",
        "cosyvoice.flow.decoder.CausalConditionalDecoder",
        "cosyvoice.flow.DiT.dit.DiT",
    ]
    assert [part for family in FAMILIES for part in family.components if part.kind == "onnx"] == [*ESTIMATORS]
    assert {(part.name, part.node, part.weights, part.prefix, part.on_request) for part in ESTIMATORS} == {
        (NODE, NODE, "flow.pt", "decoder.estimator.", True)
    }
    offline = ["autocast_fp16.onnx", "fp32.dynamic_batch.onnx", "fp32.onnx"]
    streaming = ["streaming.autocast_fp16.onnx", "streaming.fp32.onnx"]
    assert [
        sorted(part.file_name(name).removeprefix(f"{NODE}.") for name in part.tolerances) for part in ESTIMATORS
    ] == [offline, offline + streaming, offline + streaming]
    assert [pairs(family, [NODE]) for family in FAMILIES] == [[(NODE, "fp32")]] * 3


@pytest.mark.parametrize("component", ESTIMATORS)
def test_the_precisions_of_an_estimator_are_forms_of_its_file(component: Component) -> None:
    for name, tolerance in component.tolerances.items():
        assert FORMS[name].dtype == PRECISIONS[name].dtype
        assert LIMITS[FORMS[name].dtype].tolerance == tolerance


def test_each_form_of_a_file_is_a_precision_of_estimators_alone() -> None:
    assert set(FORMS) == {name for part in ESTIMATORS for name in part.tolerances}
    assert {name for part in (*ZIPS, *FOLDERS) for name in part.tolerances} & set(FORMS) == {"fp32"}


@pytest.mark.parametrize(
    ("file", "plans", "others"),
    [
        ("fp32.onnx", ["fp32.mygpu", "fp16.mygpu", "fp32.0"], ["fp32.dynamic_batch.l20", "autocast_fp16.0", "fp32"]),
        ("autocast_fp16.onnx", ["autocast_fp16.0", "autocast_fp16.mygpu"], ["fp16.mygpu", "streaming.autocast_fp16.0"]),
        ("streaming.fp32.onnx", ["streaming.fp32.0"], ["fp32.0", "streaming.autocast_fp16.0", "streaming.fp32.a.b"]),
        ("streaming.autocast_fp16.onnx", ["streaming.autocast_fp16.1"], ["autocast_fp16.1", "streaming.fp32.1"]),
        ("fp32.dynamic_batch.onnx", ["fp32.dynamic_batch.l20", "fp16.dynamic_batch.l20"], ["fp32.mygpu", "fp16.l20"]),
    ],
)
def test_plans_belong_to_the_file_that_runtimes_make_them_from(file: str, plans: list[str], others: list[str]) -> None:
    pattern = plans_of(f"{NODE}.{file}")
    assert pattern is not None
    for name in plans:
        assert pattern.fullmatch(f"{NODE}.{name}.plan")
        assert not pattern.fullmatch(f"{NODE}.{name}.plan.1")
        assert not pattern.fullmatch(f"x{NODE}.{name}.plan")
        assert not pattern.fullmatch(f"{NODE}.{name}.plan".replace("flow.", "flow-"))
    assert not any(pattern.fullmatch(f"{NODE}.{name}.plan") for name in others)


@pytest.mark.parametrize("name", ["flow.encoder.fp32.zip", "vllm", f"{NODE}.fp16.onnx", "fp32.onnx", ""])
def test_of_other_files_no_plans_are_made(name: str) -> None:
    assert plans_of(name) is None


@pytest.mark.parametrize("component", ZIPS)
def test_each_zip_has_an_encoder_with_its_methods(component: Component) -> None:
    encoder = ENCODERS[component.class_name].encoder
    assert all(hasattr(encoder, method) for method in component.methods)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_each_precision_is_a_torch_type_of_its_size(precision: Precision) -> None:
    dtype = getattr(torch, precision.dtype)
    assert dtype.is_floating_point
    assert precision.quantized or dtype.itemsize == precision.item_size


@pytest.mark.parametrize(
    ("name", "shape", "int8"),
    [
        ("encoders.0.feed_forward.w_1.weight", (8, 4), 32),
        ("embed.out.0.weight", (8, 4), 32),
        ("encoders.0.self_attn.linear_pos.weight", (8, 4), 128),
        ("encoders.0.self_attn.pos_bias_u", (8, 4), 128),
        ("encoders.0.feed_forward.w_1.bias", (8,), 32),
        ("after_norm.weight", (8,), 32),
    ],
)
def test_weights_take_what_their_precision_makes_of_them(name: str, shape: tuple[int, ...], int8: int) -> None:
    sizes = {each.name: each.size(name, shape) for each in PRECISIONS.values()}
    numbers = math.prod(shape)
    zips = {"fp32": 4 * numbers, "fp16": 2 * numbers, "bf16": 2 * numbers, "int8": int8}
    assert sizes == zips | {name: (2 if "fp16" in name else 4) * numbers for name in FORMS}


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


FLOW: Final = "flow: !new:a.Flow\n  encoder: !new:{} {{input_size: 512}}\n"


ESTIMATOR: Final = "flow: !new:a.Flow\n  decoder: !new:a.Decoder\n    estimator: !new:{} {{in_channels: 320}}\n"


@pytest.mark.parametrize(("family", "part"), [*zip(FAMILIES, ESTIMATORS, strict=True)], ids=lambda each: each.name)
def test_where_there_is_nothing_else_the_estimator_tells_the_family(
    family: Family, part: Component, tmp_path: Path
) -> None:
    (tmp_path / "cosyvoice.yaml").write_text(ESTIMATOR.format(part.class_name))
    assert open_checkpoint(open_source(tmp_path)).family is family


@pytest.mark.parametrize("estimator", ["!new:a.Estimator {}", "!new:cosyvoice.flow.DiT.dit.DiT {}", "5", "null"])
def test_an_estimator_of_another_class_does_not_change_what_the_encoder_tells(estimator: str, tmp_path: Path) -> None:
    encoder = FLOW.format(f"{ENCODER}.ConformerEncoder")
    (tmp_path / "cosyvoice.yaml").write_text(f"{encoder}  decoder: !new:a.D\n    estimator: {estimator}\n")
    assert open_checkpoint(open_source(tmp_path)).family is COSYVOICE


@pytest.mark.parametrize(
    ("class_name", "family"),
    [
        ("cosyvoice.transformer.encoder.ConformerEncoder", COSYVOICE),
        ("cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder", COSYVOICE2),
    ],
)
def test_without_a_language_model_the_components_tell_the_family(
    class_name: str, family: Family, tmp_path: Path
) -> None:
    (tmp_path / "cosyvoice.yaml").write_text(FLOW.format(class_name))
    checkpoint = open_checkpoint(open_source(tmp_path))
    assert checkpoint.family is family
    assert {part.node for part in family.components if checkpoint.has(part)} == {"flow.encoder"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            FLOW.format("a.Encoder"),
            f"and flow.encoder is a a.Encoder; known: {ENCODER}.ConformerEncoder (CosyVoice), cosyvoice.transformer.up",
        ),
        (
            "flow: !new:a.Flow {}\n",
            "has neither llm nor llm.text_encoder nor llm.llm nor flow.encoder nor flow.decoder.estimator, which",
        ),
        (
            ESTIMATOR.format("a.Estimator"),
            "and flow.decoder.estimator is a a.Estimator; known: cosyvoice.flow.decoder.Con",
        ),
        ("flow: {encoder: 5}\n", "flow.encoder is missing, or is not a !new: node"),
        (FLOW.format("a.Encoder") + "llm: 5\n", "llm is missing, or is not a !new: node"),
        (FLOW.format("a.Encoder") * 2, "the key flow occurs twice in one mapping"),
    ],
)
def test_what_tells_no_family_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "cosyvoice.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        open_checkpoint(open_source(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/cosyvoice.yaml: ")
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_a_component_overrides_are_options_of_its_encoder() -> None:
    known = {each.name for each in fields(EncoderOptions)}
    assert all(part.node == part.name and not part.overrides for part in ZIPS if not part.on_request)
    for part in ZIPS:
        assert set(part.overrides) <= known
    assert {name for part in ZIPS for name in part.overrides} == {"static_chunk_size", "always_streaming"}
    assert all("always_streaming" not in options for options in TABLES.values())
