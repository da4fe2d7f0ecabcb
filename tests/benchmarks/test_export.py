"""That `benchmarks.export` measures what it says, with a tiny model."""

import time
from pathlib import Path

import pytest
import torch

from benchmarks import children, export
from cosyjit.processes import worker
from cosyjit.processes.worker import Progress


def works(progress: Progress) -> str:
    """Spends processor time in two stages, one of them twice, and says something else in between."""
    for stage in ("load", "cast: 3 numbers become 0", "verify", "load"):
        progress(stage)
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
    return "done"


def test_processor_seconds_are_those_of_the_stages_of_a_process() -> None:
    told: list[str] = []
    result, seconds = worker.run(children.metered, works, progress=told.append)
    assert result == "done"
    assert told == ["load", "cast: 3 numbers become 0", "verify", "load"]
    assert set(seconds) == {"load", "verify"}
    assert seconds["load"] >= 3 * 0.02
    assert seconds["verify"] >= 0.02


def test_training_changes_the_tensors_with_a_prefix_and_replaces_the_file(tmp_path: Path) -> None:
    path, before = tmp_path / "llm.pt", {"llm.a": torch.zeros(3), "llm.n": torch.tensor(1), "text.b": torch.ones(2)}
    torch.save(before, path)
    file = path.stat().st_ino
    children.retrain(path, ["llm."], 0, lambda _: None)
    after = torch.load(path, weights_only=True)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["llm.a"]
    assert path.stat().st_ino != file
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_round_has_each_kind_of_export_beside_its_yardsticks(tiny: Path, tmp_path: Path) -> None:
    turns = export._round(tiny, tmp_path / "work", 0)
    new = {way: (turn.export.zips, turn.export.of_graphs) for way, turn in turns.items()}
    assert new == {
        "cold, no graphs": (6, 0),
        "flow.pt retrained": (2, 2),
        "llm.llm retrained": (2, 2),
        "cold, with graphs": (6, 6),
    }
    for turn in turns.values():
        assert len(turn.export.stages) == turn.export.zips
        assert 0 < turn.export.of("load", "script", "save") + turn.export.of("verify") < turn.export.processor
        assert turn.write.size == turn.export.size > 0
        assert turn.plain.size > 0
        assert turn.plain.processor > 0
    for table in (export._totals([turns]), export._processors([turns])):
        assert table.row_count == 4
    assert export._stages([turns]).row_count == 6 + 2 + 2 + 6
    assert not (tmp_path / "work").exists()
