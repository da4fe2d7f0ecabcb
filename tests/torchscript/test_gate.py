"""The gate before the store: what it lets pass, and that it names what is wrong with what it refuses."""

import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cosyjit import Store, export, plan
from cosyjit.building import zips
from cosyjit.encoders.layers import Linear
from cosyjit.encoders.quantized import QuantizedLinear, quantize
from cosyjit.encoders.registry import build_encoder
from cosyjit.errors import VerificationError
from cosyjit.families import FAMILIES, PRECISIONS, Precision, Tolerance
from cosyjit.metrics import Metrics
from cosyjit.provenance.record import load
from cosyjit.torchscript import calls, script, structure
from cosyjit.torchscript import gate as verify
from tests.encoders.cases import CONFIGURATIONS, Configuration
from tests.encoders.vectors import ours
from tests.support import faulty_encoders
from tests.support.checkpoints import change, eager
from tests.support.judged import Fault, cast_encoder, component_in, judged, refusal, saved
from tests.support.processes import run_here, shown
from tests.support.stores import files_of, litter
from tests.support.tiers import sampled

Copy = Callable[[Path], Path]

TARGETS: Final = [
    (family.name, component.name, precision)
    for family in FAMILIES
    for component in family.components
    if component.kind == "zip" and not component.on_request
    for precision in component.tolerances
]
ALWAYS: Final = {("llm.llm", "fp32"), ("llm.llm", "int8"), ("llm.text_encoder", "fp16")}
"""Those of the targets that are built in the first tier."""

NUMBER: Final = r"[\d.e+-]+"


def weight(encoder: nn.Module, name: str) -> Tensor:
    return encoder.get_parameter(name).detach()


def in_block(module: str) -> str:
    return f"encoders.1.{module}.weight"


# What is right.


@pytest.mark.parametrize(
    ("family", "name", "precision"),
    [pytest.param(*each, marks=[pytest.mark.slow] if each[1:] not in ALWAYS else []) for each in TARGETS],
)
def test_an_artifact_of_every_component_passes_at_every_precision(
    family: str, name: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    directory: Path = request.getfixturevalue("tiny" if family == "CosyVoice" else "tiny2")
    encoder = eager(directory, name)
    before = {each: tensor.clone() for each, tensor in encoder.state_dict().items()}
    path = saved(directory, name, precision, tmp_path)
    content = path.read_bytes()
    metrics = judged(path, directory, name, precision, encoder)
    tolerance = component_in(directory, name).tolerances[precision]
    assert 0 <= metrics.absolute <= tolerance.absolute
    assert 0 <= metrics.relative <= tolerance.relative
    assert tolerance.cosine <= metrics.cosine <= 1 + 1e-9
    if precision != "fp32":  # whose numbers are the encoder's own
        assert metrics.absolute > 1e-6
        assert metrics.relative > 1e-6
        assert metrics.cosine < 1 - 1e-12
    assert path.read_bytes() == content
    assert all(torch.equal(tensor, before[each]) for each, tensor in encoder.state_dict().items())


@pytest.mark.slow
def test_nothing_but_the_code_of_the_faulty_encoders_is_refused_without_their_fault(
    tiny: Path, tiny2: Path, tmp_path: Path
) -> None:
    cases: list[tuple[Path, str, Fault]] = [
        (tiny, "llm.llm", faulty_encoders.Streaming),
        (tiny, "llm.llm", faulty_encoders.astray),
        (tiny2, "flow.encoder", faulty_encoders.Upsampling),
        (tiny2, "flow.encoder", faulty_encoders.astray),
    ]
    for directory, name, kind in cases:
        path = saved(directory, name, "fp32", tmp_path, kind)
        assert refusal(path, directory, name, "fp32") == "the artifact's code is not that of its encoder"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_half_precisions_are_computed_over_a_real_length_where_the_processor_can(
    precision: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []

    def noted(*arguments: Any, **options: Any) -> Iterator[calls.Call]:
        for call in calls.calls(*arguments, **options):
            names.append(call.name)
            yield call

    monkeypatch.setattr(verify, "calls", noted)
    judged(saved(tiny, "flow.encoder", precision, tmp_path), tiny, "flow.encoder", precision)
    native = verify.has_arithmetic(getattr(torch, PRECISIONS[precision].dtype))
    assert ("forward over 333 frames" in names) is (native and precision != "fp32")
    assert len(names) > ("forward over 333 frames" in names)


# The file.


def test_an_artifact_without_its_method_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = script.save(script.optimize(eager(tiny, "llm.llm")), tmp_path)
    assert refusal(path, tiny, "llm.llm", "fp32") == "the artifact has no method forward_chunk"


def damage(path: Path, ending: str, how: Callable[[bytes], bytes]) -> None:
    """Changes the stored bytes of the largest member of a zip with such a name, and nothing else of the file."""
    with zipfile.ZipFile(path) as archive:
        members = [each for each in archive.infolist() if re.search(ending, each.filename)]
    member = max(members, key=lambda each: each.compress_size)
    content = bytearray(path.read_bytes())
    header = content[member.header_offset : member.header_offset + 30]
    start = (
        member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    )
    stored = slice(start, start + member.compress_size)
    after = how(bytes(content[stored]))
    assert len(after) == member.compress_size
    assert after != content[stored]
    content[stored] = after
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive, pytest.raises((zipfile.BadZipFile, zlib.error)):
        archive.read(member)


def inverted(content: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in content)


@pytest.mark.parametrize("member", [r"\.py$", r"/data\.pkl$"])
def test_an_artifact_whose_code_is_damaged_does_not_load(member: str, tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "llm.llm", "fp16", tmp_path)
    damage(path, member, inverted)
    assert re.match(r"the artifact does not load \(.+\)$", refusal(path, tiny, "llm.llm", "fp16"))


@pytest.mark.parametrize("precision", sampled(["fp32", "fp16", "int8", "bf16"], 2))
def test_an_artifact_whose_weights_are_damaged_is_refused(precision: str, tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "llm.llm", precision, tmp_path)
    damage(path, r"/constants/\d+$", inverted)
    assert refusal(path, tiny, "llm.llm", precision)


@pytest.mark.parametrize("padded", [False, True])
def test_an_artifact_that_is_cut_short_does_not_load(padded: bool, tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "llm.llm", "fp32", tmp_path)
    size = path.stat().st_size
    os.truncate(path, size - 2000)  # what is left is more than the weights
    if padded:
        os.truncate(path, size)
    assert re.match(r"the artifact does not load \(.+\)$", refusal(path, tiny, "llm.llm", "fp32"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_artifact_with_bytes_behind_its_end_does_not_load(precision: str, tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "llm.llm", precision, tmp_path)
    with path.open("ab") as file:
        file.write(b"more")
    said = refusal(path, tiny, "llm.llm", precision)
    assert said.startswith("the artifact does not load (has a comment or other bytes behind its end")


def test_a_file_that_is_no_zip_does_not_load(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / script.ARCHIVE
    path.write_bytes(bytes(500_000))
    assert "the artifact does not load (" in refusal(path, tiny, "llm.llm", "fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_artifact_much_smaller_than_its_weights_is_refused(precision: str, tiny: Path, tmp_path: Path) -> None:
    encoder = cast_encoder(tiny, "llm.llm", precision)
    weight_bytes = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    path = script.save(
        script.optimize(encoder, ["forward_chunk"], structure.placeholders(structure.weights_of(encoder))), tmp_path
    )
    assert refusal(path, tiny, "llm.llm", precision) == (
        f"the artifact has {path.stat().st_size:,} bytes for weights of {weight_bytes:,}"
    )


def test_an_artifact_twice_as_large_as_its_weights_is_refused(tiny2: Path, tmp_path: Path) -> None:
    path = saved(tiny2, "flow.encoder", "fp16", tmp_path, nn.Module.float)
    weight_bytes = sum(tensor.nbytes for tensor in cast_encoder(tiny2, "flow.encoder", "fp16").state_dict().values())
    assert path.stat().st_size > 2 * weight_bytes
    assert refusal(path, tiny2, "flow.encoder", "fp16") == (
        f"the artifact has {path.stat().st_size:,} bytes for weights of {weight_bytes:,}"
    )


# The numbers.


def test_a_weight_that_is_off_is_refused_with_the_call_the_figure_and_the_bound(tiny: Path, tmp_path: Path) -> None:
    def move(encoder: nn.Module) -> None:
        weight(encoder, in_block("feed_forward.w_1"))[5, 7] += 0.01

    path = saved(tiny, "llm.llm", "fp32", tmp_path, move)
    other = eager(tiny, "llm.llm")
    move(other)
    xs, lengths = calls._random(1, 1, 1, 64), torch.tensor([1])
    with torch.inference_mode():
        off = float((other(xs, lengths)[0] - eager(tiny, "llm.llm")(xs, lengths)[0]).abs().max())
    found = re.fullmatch(
        rf"forward over 1 frames, float32 inputs: ys: the largest absolute error is ({NUMBER}), more than 0\.0001",
        refusal(path, tiny, "llm.llm", "fp32"),
    )
    assert found
    assert 0.0001 < off < 0.01
    assert float(found[1]) == pytest.approx(off, rel=0.06)  # two digits are shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (faulty_encoders.Forgetful, "ys of call 2, 1 frames behind 16: "),
        (faulty_encoders.Unremembering, "ys of call 2, 1 frames behind 16: "),
        (faulty_encoders.ShortOfMemory, "ys of call 7, 4 frames behind 21: "),
        (faulty_encoders.Unmasked, "ys of call 7, 4 frames behind 21: "),
        (faulty_encoders.Mislaying, "att_cache of call 6, 1 frames behind 20: "),
    ],
)
def test_a_fault_in_streaming_alone_is_refused_with_the_first_call_that_has_it(
    kind: type[faulty_encoders.Streaming], where: str, tiny: Path, tmp_path: Path
) -> None:
    path = saved(tiny, "llm.llm", "fp32", tmp_path, kind)
    assert re.fullmatch(
        rf"forward_chunk, float32 inputs: {where}the largest absolute error is {NUMBER}, more than {NUMBER}",
        refusal(path, tiny, "llm.llm", "fp32"),
    )


@pytest.mark.parametrize("kind", [faulty_encoders.Cutting, faulty_encoders.Shifting])
def test_a_cache_that_is_not_kept_as_it_was_given_is_refused(
    kind: type[faulty_encoders.Streaming], tiny: Path, tmp_path: Path
) -> None:
    path = saved(tiny, "llm.llm", "fp32", tmp_path, lambda encoder: kind(encoder, 500))
    assert refusal(path, tiny, "llm.llm", "fp32") == (
        "forward_chunk, float32 inputs: "
        "what att_cache of call 13, 2 frames behind 1040, keeps differs from the encoder's"
    )


def limit_attention(encoder: Any) -> None:
    """Lets a frame see the first 64 alone, which nobody notices who has no more."""
    assert encoder.static_chunk_size == 0
    encoder.static_chunk_size = 64


@pytest.mark.parametrize("precision", sampled(["fp32", "fp16", "bf16"], 3))
def test_a_fault_that_only_long_sequences_show_is_refused(precision: str, tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "flow.encoder", precision, tmp_path, limit_attention)
    assert refusal(path, tiny, "flow.encoder", precision) == "the artifact's code is not that of its encoder"


def test_a_fault_that_only_padding_shows_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "flow.encoder", "fp32", tmp_path, faulty_encoders.BlindToPadding)
    assert refusal(path, tiny, "flow.encoder", "fp32").startswith(
        "forward over 3 and 2 frames, float32 inputs: ys: the largest absolute error is "
    )


def never_streaming(encoder: Any) -> None:
    """Lets a call without `streaming` see everything."""
    encoder.offline_chunk_size = 0


def another_chunk(encoder: Any) -> None:
    encoder.offline_chunk_size -= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "precision"), [(never_streaming, "fp32"), (another_chunk, "fp32"), (another_chunk, "fp16")]
)
def test_a_chunked_artifact_that_attends_otherwise_is_refused(
    fault: Fault, precision: str, tiny2: Path, tmp_path: Path
) -> None:
    path = saved(tiny2, "flow.encoder.chunked", precision, tmp_path, fault)
    problem = refusal(path, tiny2, "flow.encoder.chunked", precision)
    if precision == "fp32":
        assert problem.startswith("forward over 151 and 76 frames, float32 inputs: ys: the largest absolute error is ")
    else:
        assert problem == "the artifact's code is not that of its encoder"


def test_a_chunked_artifact_does_not_pass_for_the_usual_one(tiny2: Path, tmp_path: Path) -> None:
    path = saved(tiny2, "flow.encoder.chunked", "fp32", tmp_path)
    assert refusal(path, tiny2, "flow.encoder", "fp32").startswith(
        "forward over 76 and 39 frames, float32 inputs: ys: "
    )


def test_another_mask_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "flow.encoder", "fp32", tmp_path, faulty_encoders.MaskingNothing)
    assert refusal(path, tiny, "flow.encoder", "fp32") == (
        "forward over 3 and 2 frames, float32 inputs: mask differs from the encoder's"
    )


def test_another_shape_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "flow.encoder", "fp32", tmp_path, faulty_encoders.Shortening)
    assert refusal(path, tiny, "flow.encoder", "fp32") == (
        "forward over 1 frames, float32 inputs: ys is (1, 63) instead of (1, 64)"
    )


def test_a_fault_that_only_autocast_shows_is_refused_in_bf16(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "flow.encoder", "bf16", tmp_path, faulty_encoders.WrongUnderAutocast)
    assert refusal(path, tiny, "flow.encoder", "bf16") == "the artifact's code is not that of its encoder"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (faulty_encoders.NotStreaming, "forward over 76 and 39 frames, streaming"),
        (faulty_encoders.WithoutContext, "forward over 3 and 2 frames, streaming with context"),
    ],
)
def test_an_option_of_forward_that_does_nothing_is_refused(
    kind: type[faulty_encoders.Upsampling], call: str, tiny2: Path, tmp_path: Path
) -> None:
    path = saved(tiny2, "flow.encoder", "fp32", tmp_path, kind)
    assert refusal(path, tiny2, "flow.encoder", "fp32").startswith(
        f"{call}, float32 inputs: ys: the largest absolute error is "
    )


# What a half artifact holds.


def move_by_one_unit(encoder: nn.Module) -> None:
    weight(encoder, in_block("feed_forward.w_1")).view(torch.int16)[3, 4] += 1


def transpose(encoder: nn.Module) -> None:
    square = weight(encoder, in_block("self_attn.linear_pos"))
    square.copy_(square.t().clone())


def negate_a_bias(encoder: nn.Module) -> None:
    weight(encoder, "after_norm.bias").neg_()


@pytest.mark.parametrize(
    ("fault", "shape"), sampled([(move_by_one_unit, (64, 128)), (transpose, (64, 64)), (negate_a_bias, (64,))], 3)
)
def test_a_half_artifact_whose_numbers_are_not_its_tensors_is_refused(
    fault: Fault, shape: tuple[int, ...], tiny: Path, tmp_path: Path
) -> None:
    path = saved(tiny, "llm.llm", "fp16", tmp_path, fault)
    said = refusal(path, tiny, "llm.llm", "fp16")
    found = re.fullmatch(r"a constant of the artifact's forward, (\(.*\)), is not the cast of its tensor", said)
    assert found
    assert sorted(map(int, re.findall(r"\d+", found[1]))) == sorted(shape)


def test_a_half_artifact_that_holds_other_types_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "llm.llm", "fp16", tmp_path, nn.Module.bfloat16)
    assert refusal(path, tiny, "llm.llm", "fp16") == "the artifact's code is not that of its encoder"


# What is no number.

UNSOUND: Final = "export a checkpoint whose weights are sound"


def overflow(encoder: nn.Module) -> None:
    """Moves a factor from one weight to the one before, so that nothing changes but what is between the two."""
    for name in ("feed_forward.w_1", "feed_forward.w_2"):
        weight(encoder, in_block(name)).mul_(1e5 if name.endswith("w_1") else 1e-5)


def test_hidden_values_that_overflow_in_fp16_are_refused_and_the_way_out_works(tiny: Path, tmp_path: Path) -> None:
    encoder = eager(tiny, "llm.llm")
    overflow(encoder)
    assert script.check_cast(*casts(encoder.state_dict(), "fp16"), PRECISIONS["fp16"]) >= 0  # all weights fit
    path = saved_as(encoder, tiny, "fp16", tmp_path)
    said = refusal(path, tiny, "llm.llm", "fp16", encoder)
    assert re.fullmatch(
        r"forward over [\d and]+ frames, float16 inputs: ys has [\d,]+ of [\d,]+ numbers NaN or infinite", said
    )
    for precision in ("bf16", "fp32"):
        judged(saved_as(encoder, tiny, precision, tmp_path), tiny, "llm.llm", precision, encoder)


def casts(tensors: dict[str, Tensor], precision: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return tensors, script.cast(tensors, getattr(torch, PRECISIONS[precision].dtype))


def saved_as(encoder: nn.Module, directory: Path, precision: str, into: Path) -> Path:
    """An artifact of such an encoder's weights."""

    def fill(other: nn.Module) -> None:
        other.load_state_dict(casts(encoder.state_dict(), precision)[1], assign=True)

    return saved(directory, "llm.llm", precision, into, fill)


def spoil(encoder: nn.Module) -> None:
    weight(encoder, in_block("feed_forward.w_1"))[3, 4] = math.nan


def test_an_artifact_that_gives_no_numbers_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "llm.llm", "fp32", tmp_path, spoil)
    assert refusal(path, tiny, "llm.llm", "fp32") == (
        "forward over 1 frames, float32 inputs: ys has 64 of 64 numbers NaN or infinite"
    )


def test_an_encoder_that_gives_no_numbers_itself_is_named(tiny: Path, tmp_path: Path) -> None:
    encoder = eager(tiny, "llm.llm")
    spoil(encoder)
    path = saved(tiny, "llm.llm", "fp32", tmp_path)
    assert refusal(path, tiny, "llm.llm", "fp32", encoder, UNSOUND) == (
        "forward over 1 frames, float32 inputs: ys of the encoder itself has 64 of 64 numbers NaN or infinite"
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_checkpoint_with_a_nan_is_named_as_the_cause_before_anything_is_scripted(
    precision: str, tiny: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(tiny)
    change(directory, "llm.pt", lambda state: state["llm.encoders.1.feed_forward.w_1.weight"][3].fill_(math.nan))
    stages: list[str] = []
    (outcome,) = export(
        directory, components=["llm.llm"], precisions=[precision], progress=lambda _, stage: stages.append(stage)
    )
    assert outcome.error == (
        f"64 numbers of 1 tensors are NaN or infinite (encoders.1.feed_forward.w_1.weight); {UNSOUND}"
    )
    assert stages == ["waiting", "load", f"failed: {outcome.error}"]


# What hardly shows, and what no comparison of numbers shows.


def test_a_damaged_bit_that_hardly_shows_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "llm.llm", "fp32", tmp_path)
    damage(path, r"/constants/\d+$", lambda content: bytes([content[0] ^ 1, *content[1:]]))
    assert re.fullmatch(
        r"the artifact does not load \(archive/constants/\d+ is damaged\)", refusal(path, tiny, "llm.llm", "fp32")
    )


def test_a_call_that_raises_is_named(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "llm.llm", "fp32", tmp_path, faulty_encoders.Raising)
    assert refusal(path, tiny, "llm.llm", "fp32").startswith("forward_chunk, float32 inputs")


def test_results_of_another_type_are_refused(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, "flow.encoder", "fp32", tmp_path, faulty_encoders.Widening)
    assert refusal(path, tiny, "flow.encoder", "fp32") == (
        "forward over 1 frames, float32 inputs: ys is torch.float64 instead of torch.float32"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (name, precision)
        for number, name in enumerate(CONFIGURATIONS)
        for precision in ("fp32", ("fp16", "bf16")[number % 2])  # the two differ in the name of their type
    ],
)
def test_the_contents_of_an_artifact_are_those_of_its_encoder_whatever_the_options(
    name: str, precision: str, tmp_path: Path
) -> None:
    see_the_structure(CONFIGURATIONS[name], precision, tmp_path)


def see_the_structure(configuration: Configuration, precision: str, into: Path) -> None:
    encoder = ours(*configuration)
    half = build_encoder(*configuration)
    half.load_state_dict(casts(encoder.state_dict(), precision)[1], assign=True)
    methods = [method for method in calls._METHODS if hasattr(encoder, method)]
    path = script.save(script.optimize(half, methods), into)
    gate = verify._Gate(Tolerance(1, 1, 0), PRECISIONS[precision])
    assert structure.compare(path, gate.load(path), encoder, methods, PRECISIONS[precision]).problem is None


# Checkpoints of other forms, all sound.

every_precision = pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])


def of_type(directory: Path, dtype: torch.dtype) -> Path:
    """Casts all weights of a model directory."""
    for name in ("llm.pt", "flow.pt"):
        change(directory, name, lambda state: state.update(script.cast(state, dtype)))
    return directory


def passes(directory: Path, precision: str, into: Path) -> None:
    """Build and verify the language model of a directory as its own processes do, in this one."""
    (planned,) = plan(directory, ["llm.llm"], [precision])
    built = zips.build(planned.target, None, into, lambda _: None)
    figures, _, _ = zips._verify(planned.target, None, built.path, b"", lambda _: None)
    assert figures["cosine"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        # A tensor is first read as float32, whatever its type; what comes then is the same of all types.
        *((torch.float16, precision) for precision in ("fp32", "fp16", "int8")),
        *((torch.bfloat16, precision) for precision in ("fp32", "bf16")),
        *((torch.float64, precision) for precision in ("fp32", "fp16")),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_type_passes(
    dtype: torch.dtype, precision: str, tiny: Path, copy_of: Copy, tmp_path: Path
) -> None:
    passes(of_type(copy_of(tiny), dtype), precision, tmp_path)


@pytest.mark.slow
def test_all_of_a_checkpoint_of_another_type_is_exported(tiny: Path, copy_of: Copy) -> None:
    outcomes = export(of_type(copy_of(tiny), torch.bfloat16), precisions=["fp32", "fp16", "bf16", "int8"])
    assert [outcome.error for outcome in outcomes] == [None] * 10


@pytest.mark.slow
@every_precision
def test_a_checkpoint_with_untrained_norms_and_without_biases_passes(
    precision: str, tiny: Path, copy_of: Copy, tmp_path: Path
) -> None:
    # Freezing keeps one constant of several equal ones.
    directory = copy_of(tiny)

    def reset(state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            if tensor.ndim == 1:
                tensor.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("linear_out.weight"):
                tensor.copy_(torch.eye(tensor.size(0)))

    change(directory, "llm.pt", reset)
    passes(directory, precision, tmp_path)


@pytest.mark.slow
@every_precision
def test_a_checkpoint_with_the_same_weights_in_every_block_passes(
    precision: str, tiny: Path, copy_of: Copy, tmp_path: Path
) -> None:
    directory = copy_of(tiny)

    def tie(state: dict[str, Tensor]) -> None:
        for name in state:
            state[name] = state[re.sub(r"encoders\.\d+\.", "encoders.0.", name)].clone()

    change(directory, "llm.pt", tie)
    passes(directory, precision, tmp_path)


def zeros_of_both_signs(state: dict[str, Tensor]) -> None:
    state["llm.encoders.0.norm1.bias"].fill_(0.0)
    state["llm.encoders.0.self_attn.linear_out.bias"].fill_(-0.0)


def zeros_in_a_block(state: dict[str, Tensor]) -> None:
    for name in ("w_1", "w_2"):
        state[f"llm.encoders.1.feed_forward.{name}.weight"].fill_(0.0)


def transposed_weights(state: dict[str, Tensor]) -> None:
    square = "llm.encoders.{}.self_attn.linear_{}.weight".format
    state[square(0, "out")] = state[square(0, "pos")].t().clone()
    state[square(1, "out")] = state[square(0, "out")].t().clone()


def weights_of_other_strides(state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.ndim == 2 and ".encoders.1." in name:
            state[name] = state[name.replace(".1.", ".0.")].t().clone().t()


def the_same_number_everywhere(state: dict[str, Tensor]) -> None:
    for tensor in state.values():
        tensor.fill_(0.1)


def biases_that_underflow(state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name.endswith("bias"):
            tensor.mul_(1e-12)


@pytest.mark.parametrize(
    "precision", ["fp32", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fp16", "int8"))]
)
@pytest.mark.parametrize(
    "equal",
    sampled(
        [
            zeros_of_both_signs,
            zeros_in_a_block,
            transposed_weights,
            weights_of_other_strides,
            the_same_number_everywhere,
            biases_that_underflow,
        ],
        3,
    ),
)
def test_weights_that_freezing_takes_for_equal_pass(
    equal: Callable[[dict[str, Tensor]], None], precision: str, tiny: Path, copy_of: Copy, tmp_path: Path
) -> None:
    directory = copy_of(tiny)
    change(directory, "llm.pt", equal)
    passes(directory, precision, tmp_path)


@pytest.mark.parametrize("fault", sampled([move_by_one_unit, negate_a_bias], 2))
def test_a_fault_beside_weights_that_freezing_takes_for_equal_is_refused(
    fault: Fault, tiny: Path, copy_of: Copy, tmp_path: Path
) -> None:
    directory = copy_of(tiny)
    change(directory, "llm.pt", zeros_in_a_block)
    path = saved(directory, "llm.llm", "fp16", tmp_path, fault)
    assert "the artifact" in refusal(path, directory, "llm.llm", "fp16")


@pytest.mark.parametrize("precision", sampled(["fp32", "fp16", "bf16"], 3))
def test_what_freezing_computes_is_taken_for_no_weight(precision: str, tmp_path: Path) -> None:
    # A convolution of one frame, with the norm behind it folded into it, has the shape of a vector.
    options = {"causal": True, "cnn_module_kernel": 1, "cnn_module_norm": "batch_norm"}
    see_the_structure(CONFIGURATIONS["causal convolution"].having(**options), precision, tmp_path)


# The cast.


def test_weights_that_overflow_are_counted_and_named() -> None:
    tensors = {
        "one": torch.tensor([1e6, 1.0, -1e6]),
        "small": torch.ones(2),
        "two": torch.tensor([[65504.0, 65520.0]]),
    }
    with pytest.raises(VerificationError) as caught:
        script.check_cast(*casts(tensors, "fp16"), PRECISIONS["fp16"])
    assert str(caught.value) == "3 numbers of 2 tensors overflow in float16 (one, two); export bf16 or fp32 instead"
    assert script.check_cast(*casts(tensors, "bf16"), PRECISIONS["bf16"]) == 0


@pytest.mark.parametrize(("count", "names"), [(3, "w0, w1, w2"), (4, "w0, w1, w2, …")])
def test_of_many_tensors_that_overflow_three_are_named(count: int, names: str) -> None:
    tensors = {f"w{number}": torch.full((600,), 1e5) for number in range(count)}
    with pytest.raises(VerificationError) as caught:
        script.check_cast(*casts(tensors, "fp16"), PRECISIONS["fp16"])
    assert f"{600 * count:,} numbers of {count} tensors overflow in float16 ({names}); " in str(caught.value)


def test_numbers_that_become_zero_are_counted() -> None:
    least = 2.0**-24  # the smallest that fp16 has; half of it is rounded to the even one, which is 0
    tensors = {
        "many": torch.tensor([0.0, -0.0, least, least / 2, -least / 2, 0.51 * least, 1e-30]),
        "one": torch.tensor([[1e-9, 1.0]]),
        "none": torch.tensor(1.0),
    }
    assert script.check_cast(*casts(tensors, "fp16"), PRECISIONS["fp16"]) == 4
    assert script.check_cast(*casts(tensors, "bf16"), PRECISIONS["bf16"]) == 0


def test_where_nothing_is_cast_nothing_is_counted() -> None:
    tensors = {
        "float": torch.tensor([3e38, 1e-45, 0.0]),
        "count": torch.tensor(70_000),
        "flag": torch.ones(1) > 0,
    }
    assert script.check_cast(*casts(tensors, "fp32"), PRECISIONS["fp32"]) == 0
    del tensors["float"]
    assert script.check_cast(*casts(tensors, "fp16"), PRECISIONS["fp16"]) == 0


# The metrics.

# Not so near to 0 that squares would vanish.
numbers = st.floats(-1e3, 1e3).map(lambda number: round(number, 6))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """What was found and what was expected: from equal to unlike."""
    expected = draw(st.lists(numbers, min_size=1, max_size=6))
    size = draw(st.sampled_from([0.0, 1e-6, 1e-3, 1.0]))
    return [each + round(size * draw(st.floats(-1, 1)), 12) for each in expected], expected


def independent(found: Sequence[float], expected: Sequence[float]) -> Metrics:
    ours, theirs = np.array(found, np.float64), np.array(expected, np.float64)
    off, norm, other = (math.sqrt(math.fsum(vector * vector)) for vector in (ours - theirs, theirs, ours))
    if norm == 0 or other == 0:  # an angle there is only between two
        return Metrics(float(np.abs(ours - theirs).max()), off / norm if norm else float(off > 0), float(norm == other))
    return Metrics(float(np.abs(ours - theirs).max()), off / norm, math.fsum(ours * theirs) / (norm * other))


tolerances = st.builds(
    Tolerance, st.sampled_from([1e-7, 1e-2, 2.0]), st.sampled_from([1e-6, 1e-2, 2.0]), st.sampled_from([-1.0, 0.9999])
)


def gate_of(tolerance: Tolerance, precision: Precision = PRECISIONS["fp16"]) -> Any:
    return verify._Gate(tolerance, precision)


@given(calls=st.lists(pairs(), min_size=1, max_size=4), tolerance=tolerances)
@settings(deadline=None)
def test_the_figures_are_the_worst_of_all_calls_and_each_is_held_to_the_tolerance(
    calls: list[tuple[list[float], list[float]]], tolerance: Tolerance
) -> None:
    gate, so_far = gate_of(tolerance), Metrics()
    for found, expected in calls:
        metrics = independent(found, expected)
        scale = max(1.0, math.sqrt(math.fsum(each * each for each in expected) / len(expected)))
        sides = [
            (metrics.absolute, scale * tolerance.absolute),
            (metrics.relative, tolerance.relative),
            (1 - metrics.cosine, 1 - tolerance.cosine),
        ]
        # Where both are the same but for rounding, either answer is right.
        assume(all(abs(value - bound) > 1e-9 * bound + 1e-13 for value, bound in sides))
        found_one = [("ys", torch.tensor([found], dtype=torch.float64))]
        expected_one = [("ys", torch.tensor([expected], dtype=torch.float64))]
        if any(value > bound for value, bound in sides):
            with pytest.raises(
                VerificationError, match=r"^a call: ys: the .* is .*, more than .*; export bf16 or fp32"
            ):
                gate.compare("a call", found_one, expected_one)
            assert gate.metrics == so_far
            return
        gate.compare("a call", found_one, expected_one)
        so_far = Metrics(
            max(so_far.absolute, metrics.absolute),
            max(so_far.relative, metrics.relative),
            min(so_far.cosine, metrics.cosine),
        )
        assert gate.metrics == pytest.approx(so_far, rel=1e-9, abs=1e-13)
        so_far = gate.metrics


LOOSE: Final = Tolerance(9.0, 9.0, -9.0)


@given(shape=st.lists(st.integers(1, 3), min_size=1, max_size=3), data=st.data())
@settings(deadline=None)
def test_masks_have_to_be_equal(shape: list[int], data: st.DataObject) -> None:
    expected = torch.tensor(data.draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape))))
    found = expected.clone()
    gate = gate_of(LOOSE)
    gate.compare("a call", [("mask", found.view(shape))], [("mask", expected.view(shape))])
    assert gate.metrics == Metrics()
    place = data.draw(st.integers(0, found.numel() - 1))
    found[place] = ~found[place]
    with pytest.raises(VerificationError, match=r"^a call: mask differs from the encoder's; "):
        gate.compare("a call", [("mask", found.view(shape))], [("mask", expected.view(shape))])


@given(one=st.lists(st.integers(0, 3), max_size=3), other=st.lists(st.integers(0, 3), max_size=3))
@settings(deadline=None)
def test_shapes_have_to_be_equal(one: list[int], other: list[int]) -> None:
    found, expected = [("ys", torch.ones(one))], [("ys", torch.ones(other))]
    gate = gate_of(LOOSE)
    if one == other:
        gate.compare("a call", found, expected)
    else:
        with pytest.raises(VerificationError) as caught:
            gate.compare("a call", found, expected)
        assert str(caught.value).startswith(f"a call: ys is {tuple(one)} instead of {tuple(other)}; ")


def test_as_many_results_are_compared_as_are_expected() -> None:
    with pytest.raises(ValueError, match="longer"):
        gate_of(LOOSE).compare("a call", [], [("ys", torch.ones(1))])


# Weights of 8 bits.


def quantized_product(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """What a dynamically quantized linear map gives: weights of 8 bits by row, inputs of 7 bits by call; in float64."""
    scales = (matrix.double().abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-30)
    weights = (matrix.double() / scales).round().clamp(-128, 127) * scales
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    unit = (high - low) / 127
    zero = round(-low / unit)
    inputs = ((x.double() / unit).round() + zero).clamp(0, 127) - zero
    return inputs * unit @ weights.t() + bias.double()


@pytest.mark.parametrize("shape", [(1, 1, 64), (1, 17, 64), (3, 5, 64)])
@pytest.mark.parametrize("shift", [0.0, 2.0, 50.0])
def test_a_quantized_product_is_that_of_rounded_weights_and_inputs(shape: tuple[int, ...], shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, bias = torch.randn(40, 64, generator=generator), torch.randn(40, generator=generator)
    matrix[7] *= 1000  # each row has a scale of its own
    matrix[8] *= 0.001
    x = torch.randn(shape, generator=generator) + shift
    with torch.inference_mode():
        found = QuantizedLinear(matrix, bias)(x)
    expected = quantized_product(x, matrix, bias)
    assert (found.shape, found.dtype) == ((*shape[:2], 40), torch.float32)
    rows = (found.double() - expected).flatten(0, 1).norm(dim=0) / expected.flatten(0, 1).norm(dim=0)
    assert float(rows.max()) < 1e-5
    exact = x.double() @ matrix.double().t() + bias.double()
    assert float((found.double() - exact).norm() / exact.norm()) > 1e-4  # and that is not the product of the numbers


def test_a_row_of_zeros_gives_the_bias() -> None:
    matrix, bias = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4.0)
    matrix[2] = 0.0
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = QuantizedLinear(matrix, bias)(x)
    assert found.isfinite().all()
    assert torch.equal(found[..., 2], torch.full((1, 3), 2.0))


def test_quantize_replaces_all_linear_maps_but_those_of_positions(tiny: Path) -> None:
    encoder = eager(tiny, "llm.llm")
    before = dict(encoder.named_modules())
    linear = {name for name, module in before.items() if isinstance(module, Linear)}
    positions = {name for name in before if name.endswith("linear_pos")}
    assert len(linear) == 1 + 3 * 4
    assert len(positions) == 3
    quantize(encoder)
    after = dict(encoder.named_modules())
    assert after.keys() == before.keys()
    assert {name for name, module in after.items() if isinstance(module, QuantizedLinear)} == linear
    assert all(after[name] is before[name] for name in before.keys() - linear)
    assert all(isinstance(after[name], nn.Linear) for name in positions)


# From end to end.


def let_overflow(directory: Path) -> None:
    """Changes a checkpoint so that its `llm.llm` is as good as before in fp32, and overflows in fp16."""

    def move(state: dict[str, Tensor]) -> None:
        state["llm.encoders.1.feed_forward.w_1.weight"] *= 1e5
        state["llm.encoders.1.feed_forward.w_2.weight"] *= 1e-5

    change(directory, "llm.pt", move)


def key_of(directory: Path, precision: str) -> str:
    (planned,) = plan(directory, ["llm.llm"], [precision])
    return planned.target.fingerprint.key


REFUSED: Final = (
    r"forward over [\d and]+ frames, float16 inputs: ys has [\d,]+ of [\d,]+ numbers NaN or infinite; "
    r"export bf16 or fp32 instead"
)


def test_what_the_gate_refuses_is_neither_stored_nor_published(tiny: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny)
    assert [each.state for each in export(directory, components=["llm.llm"])] == ["built", "built"]
    let_overflow(directory)
    published, stored = shown(directory), files_of(store)
    fp32, fp16 = export(directory, components=["llm.llm"])
    assert (fp32.target.name, fp32.state, fp32.error) == ("llm.llm.fp32", "built", None)
    assert (fp16.target.name, fp16.state, fp16.record, fp16.path) == ("llm.llm.fp16", "failed", None, None)
    assert re.fullmatch(REFUSED, fp16.error or "")
    assert shown(directory) == published
    assert load(store, key_of(directory, "fp16")) is None
    assert load(store, key_of(directory, "fp32")) == fp32.record
    new = files_of(store) - stored
    assert [name for name in new if name.startswith("objects/")] == [
        f"objects/{fp32.record.sha256[:2]}/{fp32.record.sha256}" if fp32.record else None
    ]
    assert litter(store) == []


def test_weights_that_overflow_fail_before_anything_is_scripted(tiny: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny)

    def enlarge(state: dict[str, Tensor]) -> None:
        state["llm.encoders.1.feed_forward.w_1.weight"][0, 0] = 1e6

    change(directory, "llm.pt", enlarge)
    told: list[str] = []
    (failed,) = export(
        directory, components=["llm.llm"], precisions=["fp16"], progress=lambda _, stage: told.append(stage)
    )
    assert failed.error == (
        "1 numbers of 1 tensors overflow in float16 (encoders.1.feed_forward.w_1.weight); export bf16 or fp32 instead"
    )
    assert (failed.state, told) == ("failed", ["waiting", "load", f"failed: {failed.error}"])
    assert load(store, key_of(directory, "fp16")) is None
    assert {path.suffix for path in directory.iterdir()}.isdisjoint({".zip"})


def test_the_command_line_says_in_a_line_what_was_refused(
    tiny: Path, copy_of: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copy_of(tiny)
    let_overflow(directory)
    ran = run_here(capsys, "export", directory, "--component", "llm.llm", "--precision", "fp16")
    assert ran.status == 1
    lines = [line for line in (ran.out + ran.err).splitlines() if re.fullmatch(f"llm.llm.fp16: {REFUSED}", line)]
    assert len(lines) == 1
    assert not list(directory.glob("*.zip"))


# What is embedded.


@pytest.mark.parametrize(
    "embedded", [{}, {"cosyjit.json": b"another"}, {"cosyjit.json": b"its own", "more": b""}], ids=str
)
def test_other_provenance_than_its_own_is_refused(embedded: dict[str, bytes], tiny: Path, tmp_path: Path) -> None:
    component = component_in(tiny, "flow.encoder")
    path = script.save(script.optimize(eager(tiny, "flow.encoder"), component.methods), tmp_path, embedded)
    size = path.stat().st_size
    with pytest.raises(VerificationError, match="the provenance that is embedded in the artifact is not its own"):
        verify.verify(
            path, eager(tiny, "flow.encoder"), component, PRECISIONS["fp32"], size, size, provenance=b"its own"
        )
