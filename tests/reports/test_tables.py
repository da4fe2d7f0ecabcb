"""Results as tables, as lines and as trees."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from cosyjit import Change, Diff, Difference, Outcome, Publication, Published, Shown, Status
from cosyjit.doctor.finding import Finding
from cosyjit.errors import OutputError
from cosyjit.provenance.lineage import Lineage
from cosyjit.provenance.record import embedded_provenance
from cosyjit.publishing.plans import OlderPlan, OutdatedPlan
from cosyjit.reports import tables
from cosyjit.store.backends import Entry
from tests.reports.results import DIGEST, FIGURES, MARKUP, built, cached, failed, planned, publication, record, target


def text_of(shown: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def cells(shown: RenderableType) -> list[list[str]]:
    """The rows of a table, the head first."""
    rows = [row.replace("┃", "│") for row in text_of(shown).splitlines() if row[0] in "│┃"]
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows]


def test_the_table_has_a_row_for_each_target_with_what_is_known_of_it() -> None:
    assert cells(
        tables.outcomes_table([built("llm.llm", "fp16"), cached("llm.llm"), failed("flow.encoder", "no")])
    ) == [
        ["component", "precision", "state", "why", "bytes", "error", "cosine", "seconds"],
        ["llm.llm", "fp16", "built", "torch 1 -> 2", "4.0 MB", "1.2e-02", "0.999877", "12.3"],
        ["llm.llm", "fp32", "cached", "", "4.0 MB", "1.2e-02", "0.999877", ""],
        ["flow.encoder", "fp32", "failed", "", "", "", "", ""],
    ]


def test_the_table_has_no_error_of_an_artifact_from_before_there_was_a_gate() -> None:
    made = target("llm.llm")
    kept = record(made, figures={"bytes": 4_007_654, "weight_bytes": 1_000_000, "seconds": 12.346})
    row = cells(tables.outcomes_table([Outcome(made, "cached", (), kept, 0.1)]))[1]
    assert row == ["llm.llm", "fp32", "cached", "", "4.0 MB", "", "", ""]


def test_numbers_that_became_0_are_told_of() -> None:
    made = target("llm.llm", "fp16")
    outcome = Outcome(made, "built", (), record(made, figures={**FIGURES, "underflows": 1234}), 1.0, Path("/m/a.zip"))
    assert tables.closing_lines([outcome]) == ["llm.llm.fp16: 1,234 numbers became 0 in the cast", "Published in /m"]


def test_whoever_loads_a_folder_in_fp32_is_told_what_vllm_does_to_it() -> None:
    made = target("llm.vllm", "fp32", family="CosyVoice2")
    (note, _) = tables.closing_lines([Outcome(made, "cached", (), record(made), 1.0, Path("/m/vllm"))])
    assert note == 'llm.vllm.fp32: vLLM casts it to bf16 as it loads it, unless it is given dtype="float32"'


def test_counts_leave_out_what_there_is_none_of() -> None:
    assert tables.counts([built("llm.llm"), cached("flow.encoder"), cached("llm.llm")]) == "1 built, 2 cached"
    assert tables.counts([cached("flow.encoder")]) == "1 cached"
    assert tables.counts([failed("flow.encoder", "no"), built("llm.llm")]) == "1 built, 1 failed"


def test_a_plan_has_every_reason_in_its_table() -> None:
    reasons = (MARKUP, "object missing")
    assert cells(tables.plan_table([planned(*reasons), planned()])) == [
        ["component", "precision", "state", "why"],
        ["llm.llm", "fp32", "stale", MARKUP],
        ["", "", "", "object missing"],
        ["llm.llm", "fp32", "new", ""],
    ]
    refused = OutputError(f"{MARKUP}: is in the way")
    assert tables.obstacle_lines([refused]) == [f"An export would be refused: {refused}"]
    assert tables.outdated_lines([OutdatedPlan("a.plan", "a.onnx", "a.plan.2")]) == [
        "An export would put a.plan aside as a.plan.2, since it changes a.onnx"
    ]


def test_a_status_has_each_name_in_its_table() -> None:
    one = publication(1, a="1", b="2")
    found = Status(one, (Shown("a.zip", "damaged", "stale", (MARKUP,)), Shown("b.zip", "intact", "current")), "missing")
    assert cells(tables.status_table(found)) == [
        ["name", "file", "state", "why"],
        ["a.zip", "damaged", "stale", MARKUP],
        ["b.zip", "intact", "current", ""],
    ]


def test_a_status_says_what_an_id_was_taken_for_and_who_tells_what_it_is_now() -> None:
    one = Publication(2, "2026-01-02", "iic/a", {})
    line = "Publication 2 of 2026-01-02, from iic/a; manifest intact"
    found = Status(one, (), "intact", "iic/a@abc")
    hint = "Compared with iic/a@abc, the last commit on this machine; --check-source asks the hub"
    assert tables.status_lines(found, checked=False) == [line, hint]
    assert tables.status_lines(found, checked=True) == [line, "Compared with iic/a@abc"]
    assert tables.status_lines(Status(one, (), "intact", "iic/a"), checked=False) == [line]
    assert tables.status_lines(Status(one, (), "intact"), checked=False) == [line]
    older = Status(one, (), "intact", older_plans=(OlderPlan("a.plan", "a.onnx"),))
    assert not older.well
    assert tables.status_lines(older, checked=False) == [
        line,
        "a.plan is older than a.onnx, and a runtime would use it; move it away, and the runtime makes a new one",
    ]


def test_a_history_tells_what_each_publication_changed_and_restored() -> None:
    chain = [publication(3, 1, a="1"), publication(2, a="2", b="3"), publication(1, a="1")]
    assert cells(tables.history_table(chain)) == [
        ["publication", "published", "artifacts", "changed", "source"],
        ["3 (as 1)", "2026-01-03", "1", "a.zip", f"/{MARKUP}"],
        ["", "", "", "b.zip", ""],
        ["2", "2026-01-02", "2", "a.zip", f"/{MARKUP}"],
        ["", "", "", "b.zip", ""],
        ["1", "2026-01-01", "1", "a.zip", f"/{MARKUP}"],
    ]
    assert cells(tables.history_table(chain[:1], chain[1])) == cells(tables.history_table(chain))[:3]


def difference(**values: Any) -> Difference:
    """A name that has changed."""
    before, after = (Published(digit * 64, size, "k" * 32) for digit, size in (("1", 4_007_654), ("2", 4_007_655)))
    return Difference("a.zip", "changed", before, after, **values)


def test_a_diff_has_each_name_and_of_what_changed_the_values_before_and_after() -> None:
    changed = difference(
        count=(4, 5),
        tensors=(
            *(Change(f"{MARKUP}{number}", "changed", {}, {}) for number in range(4)),
            Change("new" + 200 * "x", "added", after={}),
        ),
        options=(
            Change("units", "changed", 1, "1"),
            Change(MARKUP, "removed", None),
            Change("long", "added", None, 900 * "y"),
        ),
        versions=(Change("torch", "changed", "2.13.0", "2.14.0"),),
        figures=(
            Change("bytes", "changed", 4_007_654, 4_007_655),
            Change("absolute_error", "changed", 0.0123456789, 0.0123456788),
            Change("cosine", "changed", 0.99987654, 0.5),
            Change("step_seconds", "added", after=0.00123),
            Change("seconds", "changed", 1.0, 2.0),
        ),
        files=tuple(Change(name, "changed", "1", "2") for name in "abcd"),
        problems=("publication 1: its record is damaged",),
    )
    same = Difference("b.zip", "same", changed.before, changed.before)
    gone = Difference("c.zip", "removed", changed.before, None)
    found = Diff(publication(1, a="1"), publication(2, a="2"), (changed, same, gone))
    assert cells(tables.diff_table(found)) == [
        ["name", "state", "bytes before", "after"],
        ["a.zip", "changed", "4.0 MB", "4.0 MB"],
        ["b.zip", "same", "4.0 MB", "4.0 MB"],
        ["c.zip", "removed", "4.0 MB", ""],
    ]
    first, second, name, table, *lines = tables.diff_details(found)
    assert (first, second, name) == (
        f"Publication 1 of 2026-01-01, from /{MARKUP}",
        f"Publication 2 of 2026-01-02, from /{MARKUP}",
        "a.zip",
    )
    assert not isinstance(table, str)
    rows = [row for row in cells(table) if row[0]]
    assert rows[:-5] == [
        ["what", "before", "after"],
        ["units", "1", '"1"'],
        [MARKUP, "null", ""],
        ["long", "", rows[3][2]],
    ]
    assert rows[-5:] == [
        ["torch", "2.13.0", "2.14.0"],
        ["bytes", "4,007,654", "4,007,655"],
        ["absolute_error", "0.0123456789", "0.0123456788"],
        ["cosine", "0.999877", "0.5"],
        ["step_seconds", "", "0.00123"],
    ]
    assert lines == [
        f"4 of 5 tensors changed: {MARKUP}0, {MARKUP}1, {MARKUP}2, …",
        f"1 of 5 tensors added: new{117 * 'x'}…",
        "file a, file b, file c, … changed",
        "publication 1: its record is damaged",
    ]


def test_a_diff_says_where_other_inputs_gave_the_same_bytes() -> None:
    before, after = (Published("1" * 64, 5, key * 32) for key in "ab")
    changed = Difference("vllm", "changed", before, after, versions=(Change("torch", "changed", "1", "2"),))
    *_, last = tables.diff_details(Diff(publication(1, a="1"), publication(2, a="2"), (changed,)))
    assert last == "The bytes are the same"


def test_a_diff_of_a_set_with_itself_says_that_nothing_changed() -> None:
    one = publication(1, a="1")
    known = Published("1" * 64, 5, "k" * 32)
    *_, last = tables.diff_details(Diff(one, one, (Difference("a.zip", "same", known, known),)))
    assert last == "All artifacts are the same"


def test_findings_are_rows_by_part_and_what_is_wrong_is_told_last() -> None:
    found = [
        Finding("store", "place", MARKUP, "wrong", f"{MARKUP}: mend it"),
        Finding("store", "free", 4_000_000, "note", "is little", "bytes"),
        Finding("torch", "GPUs", []),
        Finding("torch", "flags", ["a", "b"]),
        Finding("torch", "there", value=True),
        Finding("torch", "none", None),
        Finding("torch", "count", 2),
    ]
    assert cells(tables.findings_table(found)) == [
        ["part", "what", "state", "found"],
        ["store", "place", "wrong", MARKUP],
        ["", "free", "note", "4.0 MB"],
        ["torch", "GPUs", "ok", "none"],
        ["", "flags", "ok", "a, b"],
        ["", "there", "ok", "yes"],
        ["", "none", "ok", "none"],
        ["", "count", "ok", "2"],
    ]
    assert tables.findings_lines(found) == ["store, free: is little", f"store, place: {MARKUP}: mend it", "1 wrong"]
    assert tables.findings_lines(found[2:]) == ["Nothing is wrong"]


def test_a_lineage_names_all_that_the_record_does() -> None:
    made = record(target("llm.llm"), run={"prefect_flow_run": "run 1"}, source=f"/{MARKUP}")
    text = text_of(tables.lineage_tree(Lineage(made)))
    for said in (
        made.name,
        f"sha256 {DIGEST}",
        f"fingerprint {made.fingerprint.key}",
        "linear_units 128",
        f"torch {made.fingerprint.torch}",
        "methods forward_chunk",
        f"source /{MARKUP}",
        f"llm.pt sha256 {'1' * 64}",
        "python 3",
        "started 2026-01-02T03:04:05.678Z",
        "prefect_flow_run run 1",
        "bytes 4007654",
    ):
        assert f"{said}\n" in text


def test_the_lineage_of_a_file_of_other_bytes_says_so() -> None:
    made = record(target("llm.llm"))
    said = json.loads(embedded_provenance(made.fingerprint))
    assert f"the file's own bytes are {'9' * 64}" in text_of(tables.lineage_tree(Lineage(made, said, "9" * 64)))
    assert text_of(tables.lineage_tree(Lineage(made, said, DIGEST))) == text_of(tables.lineage_tree(Lineage(made)))


def test_a_lineage_without_a_record_is_what_the_file_says_of_itself() -> None:
    made = target("llm.llm").fingerprint
    said = json.loads(embedded_provenance(made))
    text = text_of(tables.lineage_tree(Lineage(None, said, DIGEST)))
    assert f"{DIGEST} (of no record in this store)" in text
    assert f"fingerprint {made.key}\n" in text
    assert "linear_units 128\n" in text


def test_garbage_is_counted_by_folder() -> None:
    found = [Entry("objects/ab/abc", 3_000_000, 1.0), Entry("objects/cd/cde", 1_000_000, 1.0), Entry("tmp/x", 5, 1.0)]
    assert cells(tables.garbage_table(found)) == [
        ["folder", "files", "bytes"],
        ["objects", "2", "4.0 MB"],
        ["tmp", "1", "5 bytes"],
    ]
    assert tables.garbage_summary(found, removed=True) == "3 files removed, 4.0 MB freed"
    assert "run again with --delete" in tables.garbage_summary(found, removed=False)


def test_the_largest_files_of_a_collection_are_named() -> None:
    found = [Entry(f"objects/{MARKUP}\x1b{number}", 1000 * number, 1.0) for number in range(22, 0, -1)]
    lines = tables.garbage_files(found)
    assert lines[:2] == [f"objects/{MARKUP}\x1b22 (22.0 kB)", f"objects/{MARKUP}\x1b21 (21.0 kB)"]
    assert lines[20:] == ["and 2 more; --json names all"]
    assert tables.garbage_files(found[:20]) == lines[:20]
    assert tables.garbage_files([]) == []


def test_the_closing_lines_name_the_directory_once() -> None:
    assert tables.closing_lines([built("llm.llm"), built("flow.encoder")]) == ["Published in /models/m"]


def test_the_closing_lines_give_each_error_and_say_that_nothing_was_published() -> None:
    outcomes = [failed("llm.llm", "first"), built("flow.encoder", published=False), failed("llm.llm", "second", "fp16")]
    *errors, last = tables.closing_lines(outcomes)
    assert errors == ["llm.llm.fp32: first", "llm.llm.fp16: second"]
    assert last.startswith("Nothing was published")


@pytest.mark.parametrize("text", [MARKUP, "x" * 500, "语音" * 100], ids=["markup", "long", "wide"])
def test_directories_and_errors_are_shown_as_they_are(text: str) -> None:
    published = [built("llm.llm", directory=f"/{text}")]
    assert tables.closing_lines(published) == [f"Published in /{text}"]
    assert tables.summary(published).splitlines()[-1] == f"Published in /{text}"
    broken = [failed("llm.llm", text), built("flow.encoder", published=False)]
    assert tables.closing_lines(broken)[0] == f"llm.llm.fp32: {text}"
    assert tables.summary(broken).splitlines()[-2:] == tables.closing_lines(broken)


def test_the_summary_is_plain_text_with_the_table_first() -> None:
    text = tables.summary([built("llm.llm")])
    assert "\x1b" not in text
    assert text.splitlines()[0].startswith("┏")
    assert [line.split()[1] for line in text.splitlines() if "4.0 MB" in line] == ["llm.llm"]


def test_the_summary_is_plain_text_even_where_colour_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    text = tables.summary([built("llm.llm")])
    assert "\x1b" not in text
    assert "4.0 MB" in text


def test_a_summary_without_what_was_cached_counts_that() -> None:
    text = tables.summary([cached("llm.llm"), built("flow.encoder")], cached=False)
    assert text.splitlines()[0] == "1 built, 1 cached"
    assert "flow.encoder" in text
    assert "llm.llm" not in text
    assert tables.summary([cached("llm.llm")], cached=False).splitlines() == ["1 cached", "Published in /models/m"]
