"""What an encoder gives is computed once for all precisions of a component, and compared with each."""

import gc
import io
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from cosyjit.building import zips
from cosyjit.errors import VerificationError
from cosyjit.families import PRECISIONS
from cosyjit.planning.plan import plan
from cosyjit.processes.worker import CancelScope
from cosyjit.synth.synth import synth
from cosyjit.torchscript.calls import STEP, Call, calls
from cosyjit.torchscript.expected import Expected
from cosyjit.torchscript.gate import has_arithmetic, verify
from tests.support.checkpoints import eager
from tests.support.judged import PROVENANCE, component_in, saved


class Counting:
    """An encoder that counts how often it is called."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.count = encoder, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        return self.encoder(*arguments, **options)

    def forward_chunk(self, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        return self.encoder.forward_chunk(*arguments, **options)


def ran(encoder: Any, content: bytes, precision: str) -> tuple[int, bytes]:
    """How often an encoder runs for a precision, given what is known; and what is known then."""
    counting = Counting(encoder)
    expected = Expected(counting, content)  # type: ignore[arg-type]
    native = has_arithmetic(getattr(torch, PRECISIONS[precision].dtype))
    for call in calls(encoder, [STEP], "branches" if native else "few", real=native and precision != "fp32"):
        expected.of(call)
    return counting.count, expected.content()


def test_what_is_known_is_not_computed_again(tiny: Path) -> None:
    encoder = eager(tiny, "llm.llm")
    with torch.inference_mode():
        alone, fewer = ran(encoder, b"", "fp16")
        _, known = ran(encoder, b"", "fp32")
        behind, more = ran(encoder, known, "fp16")
        again, none = ran(encoder, more, "fp16")
    assert 0 < behind < alone
    assert (again, none) == (0, b"")
    assert max(map(len, (fewer, known))) < len(more)


def test_outputs_are_the_same_from_another_process(tiny: Path) -> None:
    encoder = eager(tiny, "llm.llm")
    with torch.inference_mode():
        before = Expected(encoder)
        for call in calls(encoder, [STEP], "branches"):
            before.of(call)
        after = Expected(encoder, before.content())
        for call in calls(encoder, [STEP], "branches"):
            for (label, ours), (name, theirs) in zip(after.of(call), call.run(encoder, torch.float32), strict=True):
                assert label == name
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_calls_of_one_key_give_the_same(tiny: Path, stream: bool) -> None:
    encoder = eager(tiny, "llm.llm")
    ways: dict[str, list[Call]] = {}
    for extent in ("branches", "few"):
        for real in (False, True):
            for call in calls(encoder, [STEP], extent, real=real, stream=stream):
                ways.setdefault(call.key, []).append(call)
    assert len(ways) == len({call.name for same in ways.values() for call in same}) + 1  # the method, in two extents
    with torch.inference_mode():
        for same in ways.values():
            first, *others = [[tensor for _, tensor in call.run(encoder, torch.float32)] for call in same]
            for other in others:
                assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_artifact_is_compared_with_what_is_known(precision: str, tiny: Path, tmp_path: Path) -> None:
    component, encoder = component_in(tiny, "flow.encoder"), eager(tiny, "flow.encoder")
    path = saved(tiny, "flow.encoder", precision, tmp_path)
    with torch.inference_mode():
        expected = Expected(encoder)
        for call in calls(encoder, (), "branches"):
            expected.of(call)
        wrong = torch.load(io.BytesIO(expected.content()), weights_only=True)
    for key, outputs in wrong.items():
        wrong[key] = [(label, tensor if tensor.dtype == torch.bool else -tensor) for label, tensor in outputs]
    file = io.BytesIO()
    torch.save(wrong, file)
    size = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    size = size * PRECISIONS[precision].item_size // 4
    with pytest.raises(VerificationError, match=r"^forward over .* the .* more than"):
        verify(
            path,
            encoder,
            component,
            PRECISIONS[precision],
            size,
            size,
            provenance=PROVENANCE,
            expected=Expected(encoder, file.getvalue()),
        )


@pytest.mark.slow
def test_the_precisions_of_an_export_share_what_their_encoder_gives(tiny: Path, tmp_path: Path) -> None:
    scope = CancelScope()
    known = []
    for precision in ("fp32", "fp16", "bf16"):
        (planned,) = plan(tiny, ["flow.encoder"], [precision])
        directory = tmp_path / precision
        directory.mkdir()
        built = zips.build(planned.target, None, directory, lambda _: None)
        alone = zips.prove(planned.target, None, built.path, None, None)
        shared = zips.prove(planned.target, None, built.path, None, scope)
        assert alone.figures == shared.figures
        (content,) = zips._EXPECTED[scope].values()
        known.append(len(content))
    assert 0 < known[0] <= known[1] <= known[2]  # whichever of them the processor has arithmetic for
    gone = weakref.ref(scope)
    del scope
    gc.collect()
    assert gone() is None  # nor is what was kept by it


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.slow
def test_another_checkpoint_does_not_share_them(
    most: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zips, "_MOST", most)
    scope = CancelScope()
    for directory in (tiny, synth(tmp_path / "other", "cosyvoice", "tiny", seed=1)):
        (planned,) = plan(directory, ["flow.encoder"], ["fp32"])
        into = tmp_path / f"of {directory.name}"
        into.mkdir()
        built = zips.build(planned.target, None, into, lambda _: None)
        zips.prove(planned.target, None, built.path, None, scope)
    assert len(zips._EXPECTED[scope]) == most
