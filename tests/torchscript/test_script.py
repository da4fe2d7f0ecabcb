"""From an encoder to a zip, and what is left as it was on the way."""

import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from cosyjit import build, plan
from cosyjit.families import FAMILIES, Component
from cosyjit.torchscript.script import ARCHIVE, cast, deprecations_ignored, optimize, save
from tests.support.checkpoints import eager

COMPONENTS: Final = [
    (family, component) for family in FAMILIES for component in family.components if component.kind == "zip"
]
LENGTHS: Final = torch.tensor([9, 5], dtype=torch.int32)


@pytest.fixture(scope="module")
def language_model(tiny: Path) -> nn.Module:
    """The eager `llm.llm`."""
    return eager(tiny, "llm.llm")


@pytest.fixture(scope="module")
def streaming(language_model: nn.Module) -> torch.jit.ScriptModule:
    """The optimized `llm.llm` with its `forward_chunk`."""
    return optimize(language_model, ["forward_chunk"])


def frames(size: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 9, size, generator=torch.Generator().manual_seed(seed))


def loaded(path: Path) -> Any:
    with deprecations_ignored():
        return torch.jit.load(path)


def methods_of(module: torch.jit.ScriptModule) -> set[str]:
    return set(module._c._method_names())


# In torch._C: a function that reads the switch, if there is one, and one that sets it and may give its value before.
SWITCHES: Final = (
    ("_jit_get_inline_everything_mode", "_jit_set_inline_everything_mode"),
    ("_jit_texpr_dynamic_shape_enabled", "_jit_set_texpr_dynamic_shape_enabled"),
    ("_jit_texpr_fuser_enabled", "_jit_set_texpr_fuser_enabled"),
    ("_jit_texpr_reductions_enabled", "_jit_set_texpr_reductions_enabled"),
    (None, "_jit_set_autocast_mode"),
    (None, "_jit_set_profiling_executor"),
    (None, "_jit_set_profiling_mode"),
)


def switches() -> dict[str, Any]:
    """What of torch and Python holds for the whole process and could be turned on the way."""
    found = {}
    for getter, setter in SWITCHES:
        turn = getattr(torch._C, setter)
        found[setter] = getattr(torch._C, getter)() if getter else turn(True)
        turn(found[setter])
    strategy = torch._C._jit_set_fusion_strategy([("STATIC", 1)])
    torch._C._jit_set_fusion_strategy(strategy)
    return found | {
        "autocast": torch._C._is_any_autocast_enabled(),
        "dtype": torch.get_default_dtype(),
        "fusion strategy": strategy,
        "grad": torch.is_grad_enabled(),
        "graph executor": torch._C._get_graph_executor_optimize(),
        "random numbers": torch.random.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "warnings": list(warnings.filters),
    }


@contextmanager
def turned(on: bool) -> Iterator[None]:
    """All switches on or all off, and the others at one of two values."""
    before = switches()
    try:
        for _, setter in SWITCHES:
            getattr(torch._C, setter)(on)
        torch._C._jit_set_fusion_strategy([("STATIC", 1), ("DYNAMIC", 3)] if on else [("DYNAMIC", 2)])
        torch.set_default_dtype(torch.float32 if on else torch.float64)
        torch.set_num_threads(1 if on else 2)
        with torch.set_grad_enabled(on), torch.autocast("cpu", enabled=on), torch.random.fork_rng(devices=[]):
            torch.rand(1)
            yield
    finally:
        for _, setter in SWITCHES:
            getattr(torch._C, setter)(before[setter])
        torch._C._jit_set_fusion_strategy(before["fusion strategy"])
        torch.set_default_dtype(before["dtype"])
        torch.set_num_threads(before["threads"])


def test_cast_changes_floating_point_tensors_and_no_others() -> None:
    tensors = {
        "weight": torch.randn(2, 3),
        "half": torch.ones(2).half(),
        "count": torch.tensor(7),
        "flag": torch.ones(1) > 0,
    }
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    found = cast(tensors, torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "weight": torch.bfloat16,
        "half": torch.bfloat16,
        "count": torch.int64,
        "flag": torch.bool,
    }
    assert torch.equal(found["weight"], before["weight"].bfloat16())
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_cast_to_the_same_type_copies_nothing() -> None:
    tensors = {"weight": torch.randn(2, 3), "view": torch.randn(4, 4).t()[1:], "count": torch.tensor(7)}
    found = cast(tensors, torch.float32)
    assert found is not tensors
    for name, tensor in tensors.items():
        assert found[name].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        assert torch.equal(found[name], tensor)


def test_a_changed_cast_does_not_reach_its_input() -> None:
    weight = torch.ones(3)
    cast({"weight": weight}, torch.float16)["weight"].zero_()
    assert torch.equal(weight, torch.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "component"), COMPONENTS, ids=lambda each: each.name)
def test_an_artifact_keeps_the_methods_asked_for_and_no_others(
    family: Any, component: Component, tiny: Path, tiny2: Path, tmp_path: Path
) -> None:
    encoder = eager(tiny if family is FAMILIES[0] else tiny2, component.name)
    module = loaded(save(optimize(encoder, component.methods), tmp_path))
    assert methods_of(module) == {"forward", *component.methods}


def test_a_method_that_is_not_asked_for_is_not_kept(language_model: nn.Module, tmp_path: Path) -> None:
    module = loaded(save(optimize(language_model), tmp_path))
    assert hasattr(language_model, "forward_chunk")
    assert methods_of(module) == {"forward"}
    assert not hasattr(module, "forward_chunk")


def test_the_artifact_computes_what_the_encoder_computes(
    language_model: nn.Module, streaming: torch.jit.ScriptModule, tmp_path: Path
) -> None:
    module = loaded(save(streaming, tmp_path))
    xs = frames(64)
    with torch.inference_mode():
        expected, expected_mask = language_model(xs, LENGTHS)
        ys, mask = module(xs, LENGTHS)
    torch.testing.assert_close(ys, expected, rtol=0, atol=1e-5)
    assert torch.equal(mask, expected_mask)


def test_the_encoder_is_left_as_it_was(tiny: Path) -> None:
    encoder, xs = eager(tiny, "llm.llm"), frames(64)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    modules = [(name, type(module)) for name, module in encoder.named_modules()]
    with torch.inference_mode():
        expected, _ = encoder(xs, LENGTHS)
    optimize(encoder, ["forward_chunk"])
    with torch.inference_mode():
        ys, _ = encoder(xs, LENGTHS)
    assert torch.equal(ys, expected)
    assert not encoder.training
    assert [(name, type(module)) for name, module in encoder.named_modules()] == modules
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_encoder_can_be_optimized_twice(language_model: nn.Module, streaming: torch.jit.ScriptModule) -> None:
    again = optimize(language_model, ["forward_chunk"])
    xs = frames(64)
    with torch.inference_mode():
        torch.testing.assert_close(again(xs, LENGTHS)[0], streaming(xs, LENGTHS)[0], rtol=0, atol=1e-6)
    assert methods_of(again) == methods_of(streaming)


@pytest.mark.parametrize("on", [True, False])
def test_no_process_wide_switch_is_touched(on: bool, language_model: nn.Module, tmp_path: Path) -> None:
    with turned(on):
        before = switches()
        save(optimize(language_model, ["forward_chunk"]), tmp_path)
        assert switches() == before


def test_making_a_zip_warns_of_nothing_and_leaves_the_filters_as_they_were(
    language_model: nn.Module, tmp_path: Path
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        save(optimize(language_model), tmp_path)
        loaded(tmp_path / ARCHIVE)
        assert warnings.filters == filters
        assert [str(each.message) for each in caught] == []


# The words of torch 2.13 and 2.15; the last are those for Python 3.14, on which nothing was run.
@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize(
    "message",
    [
        "`torch.jit.script` is deprecated. Please switch to `torch.compile` or `torch.export`.",
        "`torch.jit.freeze` is deprecated. Please use `torch.compile` instead.",
        "`torch.jit.load` is not supported in Python 3.14+ and may break. Please switch to `torch.export`.",
    ],
)
def test_the_deprecation_of_torchscript_is_silenced_in_all_its_forms(message: str, category: type[Warning]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with deprecations_ignored():
            warnings.warn(message, category, stacklevel=1)
        assert caught == []
        warnings.warn(message, category, stacklevel=1)
        assert [str(each.message) for each in caught] == [message]


@pytest.mark.parametrize(
    "warning",
    [
        FutureWarning("`torch.jit.load` reads files that it should not"),
        FutureWarning("torch.load: `torch.jit.load` is deprecated. Use another."),
        UserWarning("`torch.jit.load` is deprecated. Please switch to `torch.export`."),
    ],
    ids=str,
)
def test_no_other_warning_is_silenced(warning: Warning) -> None:
    with pytest.warns(type(warning), match="torch"), deprecations_ignored():
        warnings.warn(warning, stacklevel=1)


def test_weights_are_stored_once(streaming: torch.jit.ScriptModule, tiny: Path, tmp_path: Path) -> None:
    weights = sum(tensor.nbytes for tensor in eager(tiny, "llm.llm").state_dict().values())
    with zipfile.ZipFile(save(streaming, tmp_path)) as archive:
        stored = sum(each.file_size for each in archive.infolist() if "/constants/" in each.filename)
    assert weights <= stored < 1.01 * weights


def test_the_file_and_its_root_folder_have_one_name(streaming: torch.jit.ScriptModule, tmp_path: Path) -> None:
    path = save(streaming, tmp_path)
    assert path == tmp_path / ARCHIVE
    assert list(tmp_path.iterdir()) == [path]
    with zipfile.ZipFile(path) as archive:
        assert {Path(name).parts[0] for name in archive.namelist()} == {Path(ARCHIVE).stem}


def test_extra_files_stand_in_the_archive_and_change_nothing_else(
    streaming: torch.jit.ScriptModule, tmp_path: Path
) -> None:
    content = {"note.json": b'{"a": 1}', "other": bytes(range(256))}
    (tmp_path / "with").mkdir()
    with zipfile.ZipFile(save(streaming, tmp_path)) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    path = save(streaming, tmp_path / "with", content)
    with zipfile.ZipFile(path) as archive:
        added = {name: archive.read(name) for name in archive.namelist() if name.partition("/")[2].startswith("extra/")}
        names = set(archive.namelist())
    assert added == {f"{Path(ARCHIVE).stem}/extra/{name}": each for name, each in content.items()}
    assert names - added.keys() == members.keys()
    xs = frames(64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(path)(xs, LENGTHS)[0], streaming(xs, LENGTHS)[0], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llm.llm.fp32", "llm.text_encoder.fp16", "flow.encoder.bf16"])
def test_two_processes_build_equal_bytes(name: str, tiny: Path, tmp_path: Path) -> None:
    component, _, precision = name.rpartition(".")
    [planned] = plan(tiny, [component], [precision])
    digests = set()
    for directory in (tmp_path / "first", tmp_path / "a second one"):
        directory.mkdir()
        artifact = build(planned.target, directory)
        assert artifact.path == directory / name / ARCHIVE
        assert artifact.size == artifact.path.stat().st_size
        assert artifact.sha256 == sha256(artifact.path.read_bytes()).hexdigest()
        digests.add(artifact.sha256)
    assert len(digests) == 1


@pytest.mark.slow
def test_equal_model_directories_build_equal_bytes(tiny: Path, copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    digests = set()
    for directory in (tiny, copy_of(tiny)):
        [planned] = plan(directory, ["flow.encoder"], ["fp16"])
        assert planned.target.source.directory == directory
        into = tmp_path / f"from {directory.parent.name}"
        into.mkdir()
        digests.add(build(planned.target, into).sha256)
    assert len(digests) == 1
