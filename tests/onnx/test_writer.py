"""ONNX files as they are written: their bytes, their numbers, and what a weights file can be wrong in."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cosyjit.errors import BuildError, CheckpointError, VerificationError
from cosyjit.onnx import writer
from cosyjit.onnx.forms import FORMS
from cosyjit.onnx.graph import Model
from tests.estimators.vectors import CAUSAL_UNET, DIT, UNET
from tests.onnx.test_gate import OPTIONS
from tests.support.onnx_files import PREFIX, Case, case_of, loaded

CLASSES: Final = (UNET, CAUSAL_UNET, DIT)


def whole(case: Case, model: Model) -> onnx.ModelProto:
    """What a file should be, with all weights in memory."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for weight in model.weights:
        tensor = case.state[weight.name].float().to(getattr(torch, weight.dtype)).reshape(weight.shape)
        kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[weight.dtype]
        content = tensor.contiguous().numpy().tobytes()
        proto.graph.initializer.append(helper.make_tensor(weight.name, kind, weight.shape, content, raw=True))
    return proto


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("class_name", CLASSES)
def test_the_bytes_are_those_that_onnx_itself_writes(class_name: str, form: str, tmp_path: Path) -> None:
    case = case_of(tmp_path, class_name, OPTIONS[class_name])
    model, path = case.model(form), tmp_path / "made.onnx"
    case.write(model, path)
    assert path.read_bytes() == whole(case, model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("class_name", CLASSES)
def test_weights_have_their_own_names_and_numbers(class_name: str, tmp_path: Path) -> None:
    case = case_of(tmp_path, class_name, OPTIONS[class_name])
    case.write(case.model("fp32"), tmp_path / "made.onnx")
    initializers = {each.name: numpy_helper.to_array(each) for each in loaded(tmp_path / "made.onnx").graph.initializer}
    for name, tensor in case.state.items():
        written = torch.from_numpy(initializers[name].copy())
        assert torch.equal(written.reshape(tensor.shape), tensor)
        assert written.squeeze().shape == tensor.squeeze().shape  # no weight is transposed


def test_only_the_time_and_the_positions_are_float32_in_half_precision(tmp_path: Path) -> None:
    case = case_of(tmp_path, DIT, OPTIONS[DIT])
    wide = {weight.name for weight in case.model("autocast_fp16").weights if weight.dtype == "float32"}
    time = {f"time_embed.time_mlp.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")}
    assert wide == {"rotary_embed.inv_freq", *time}


@pytest.mark.parametrize("class_name", [UNET, CAUSAL_UNET])
def test_what_the_sums_of_a_unet_pass_through_is_float32_in_half_precision(class_name: str, tmp_path: Path) -> None:
    case = case_of(tmp_path, class_name, OPTIONS[class_name])
    half = {weight.name for weight in case.model("autocast_fp16").weights if weight.dtype == "float16"}
    layers = r"(blocks\.\d+\.0\.(mlp\.1|block[12]\.block\.0)|attn1\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"
    assert half == {name for name in case.state if re.search(rf"{layers}\.(weight|bias)$", name)}


def test_another_process_writes_the_same_bytes_of_a_file_elsewhere(tmp_path: Path) -> None:
    case = case_of(tmp_path, DIT, OPTIONS[DIT])
    case.write(case.model("autocast_fp16"), tmp_path / "made.onnx")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = f"""if True:
        from pathlib import Path
        from tests.support.onnx_files import case_of
        case = case_of(Path({str(elsewhere)!r}), {DIT!r}, {OPTIONS[DIT]!r})
        case.write(case.model("autocast_fp16"), Path({str(elsewhere / "made.onnx")!r}))
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    content = (tmp_path / "made.onnx").read_bytes()
    assert (elsewhere / "made.onnx").read_bytes() == content
    assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["fp32", "autocast_fp16"])
def test_tensors_of_any_float_type_are_cast_by_way_of_float32(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    case = case_of(tmp_path, CAUSAL_UNET, OPTIONS[CAUSAL_UNET], lambda tensor: tensor.to(dtype))
    model = case.model(form)
    case.write(model, tmp_path / "made.onnx")
    assert (tmp_path / "made.onnx").read_bytes() == whole(case, model).SerializeToString(deterministic=True)
    case.judge(tmp_path / "made.onnx", model)


def test_tensors_that_are_not_contiguous(tmp_path: Path) -> None:
    case = case_of(
        tmp_path, CAUSAL_UNET, OPTIONS[CAUSAL_UNET], lambda each: each.T.contiguous().T if each.dim() == 2 else each
    )
    model = case.model("fp32")
    case.write(model, tmp_path / "made.onnx")
    assert (tmp_path / "made.onnx").read_bytes() == whole(case, model).SerializeToString(deterministic=True)


def test_numbers_that_become_0_are_counted(tmp_path: Path) -> None:
    case = case_of(tmp_path, CAUSAL_UNET, OPTIONS[CAUSAL_UNET], lambda each: each * 1e-9 if each.dim() == 2 else each)
    said: list[str] = []
    count = writer.write(case.model("autocast_fp16"), case.weights, PREFIX, tmp_path / "made.onnx", said.append)
    assert count > 0
    assert said == ["write", f"cast: {count:,} numbers become 0"]
    assert case.write(case.model("fp32"), tmp_path / "other.onnx") == 0


def test_numbers_that_overflow(tmp_path: Path) -> None:
    case = case_of(tmp_path, CAUSAL_UNET, OPTIONS[CAUSAL_UNET], lambda each: each * 1e6)
    with pytest.raises(VerificationError, match=r"has numbers that overflow in float16; export fp32 instead$"):
        case.write(case.model("autocast_fp16"), tmp_path / "made.onnx")


def test_numbers_that_are_nan(tmp_path: Path) -> None:
    case = case_of(tmp_path, CAUSAL_UNET, OPTIONS[CAUSAL_UNET], lambda each: each * float("nan"))
    with pytest.raises(
        VerificationError, match=r"flow\.pt: decoder\.estimator\..* has numbers that are NaN or infinite"
    ):
        case.write(case.model("fp32"), tmp_path / "made.onnx")


def test_a_weights_file_that_was_changed(tmp_path: Path) -> None:
    case = case_of(tmp_path, CAUSAL_UNET, OPTIONS[CAUSAL_UNET])
    model = case.model("fp32")
    case_of(tmp_path, CAUSAL_UNET, {**OPTIONS[CAUSAL_UNET], "num_heads": 1})
    with pytest.raises(CheckpointError, match=r"flow\.pt: was changed after it was planned; run again when"):
        case.write(model, tmp_path / "made.onnx")


def test_a_file_that_is_in_the_way_stays(tmp_path: Path) -> None:
    case = case_of(tmp_path, CAUSAL_UNET, OPTIONS[CAUSAL_UNET])
    (tmp_path / "made.onnx").write_text("mine")
    with pytest.raises(FileExistsError):
        case.write(case.model("fp32"), tmp_path / "made.onnx")
    assert (tmp_path / "made.onnx").read_text() == "mine"


def test_more_than_a_message_of_protobuf_can_have(tmp_path: Path) -> None:
    # The weights are described alone: none of them is made.
    case = Case(DIT, {"dim": 4096, "heads": 64, "depth": 22, "spk_dim": 80}, tmp_path / "flow.pt", {})
    with pytest.raises(
        BuildError, match=r"made\.onnx: would have [\d,]+ bytes, more than the 2,147,483,647 that an ONNX"
    ):
        case.write(case.model("fp32"), tmp_path / "made.onnx")
    assert not (tmp_path / "made.onnx").exists()
