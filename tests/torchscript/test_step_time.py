"""What a step of decoding takes, as a record has it."""

from pathlib import Path

import pytest

from cosyjit import Store, export


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_record_of_what_decodes_in_steps_says_what_a_step_takes(precision: str, tiny: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (made,) = export(tiny, components=["llm.llm"], precisions=[precision], publish=tmp_path / "out", store=store)
    assert made.record is not None
    figures = made.record.figures
    assert 0 < figures["step_seconds"] < figures["verify_seconds"] < figures["seconds"]
    assert figures["speedup"] > 0


def test_the_record_of_what_does_not_says_nothing_of_it(tiny: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (made,) = export(tiny, components=["flow.encoder"], precisions=["fp32"], publish=tmp_path / "out", store=store)
    assert made.record is not None
    assert not {"step_seconds", "speedup"} & set(made.record.figures)
