"""Results as tables, as lines, as trees and as JSON."""

import base64
import io
import json
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console, RenderableType

from cosyjit import Fault, Outcome, Planned, Publication, Published, Record, Shown, Status, Target
from cosyjit.errors import OutputError
from cosyjit.families import FAMILIES, PRECISIONS
from cosyjit.fs.identity import Identity
from cosyjit.operations.trends import Point
from cosyjit.provenance.fingerprint import Fingerprint, fingerprint
from cosyjit.provenance.lineage import Trace
from cosyjit.provenance.record import Material, embedded_provenance
from cosyjit.reports import report
from cosyjit.reports.report import closing, counts, outcomes_json, outcomes_table, summary
from cosyjit.sources.source import Source
from cosyjit.store.backends import Entry
from cosyjit.weights.digests import TensorDigest

MARKUP: Final = "[red]x[/red] :smile: [link=y] \\[z] {0} %s"
"""What rich, `format` and `%` would each make something else of."""

DIGEST: Final = "0123456789abcdef" * 4


def target(name: str, precision: str = "fp32", directory: str = "/models/m") -> Target:
    component = next(component for component in FAMILIES[0].components if component.name == name)
    source = Source(Path(directory), Path(directory, "cosyvoice.yaml"))
    half = PRECISIONS[precision]
    made = fingerprint(component, {"linear_units": 128}, half, "cpu", {f"{component.prefix}w": TENSOR})
    return Target(source, component, {}, half, made, Identity(1, 2, 3, 4), {"cosyvoice.yaml": DIGEST})


FIGURES: Final = {
    "bytes": 4_007_654,
    "weight_bytes": 1_000_000,
    "seconds": 12.346,
    "absolute_error": 0.01234,
    "relative_error": 0.002,
    "cosine": 0.99987654,
    "underflows": 0,
    "verify_seconds": 4.5,
}

TENSOR: Final = TensorDigest("float32", (500, 500), "f" * 32)


def record(made: Target, **changes: Any) -> Record:
    known: dict[str, Any] = {
        "name": made.file_name,
        "sha256": DIGEST,
        "fingerprint": made.fingerprint,
        "component": made.component.name,
        "source": str(made.source.directory),
        "materials": (Material("llm.pt", "file:///models/m/llm.pt", "1" * 64),),
        "started": "2026-01-02T03:04:05.678Z",
        "finished": "2026-01-02T03:04:06.789Z",
        "figures": FIGURES,
        "versions": {"cosyjit": "1", "torch": "2", "python": "3"},
    }
    return Record(**{**known, **changes})


def built(name: str, precision: str = "fp32", directory: str = "/models/m", *, published: bool = True) -> Outcome:
    made = target(name, precision, directory)
    path = Path(directory, made.file_name) if published else None
    return Outcome(made, "built", ("torch 1 -> 2",), record(made), 12.34567, path)


def cached(name: str) -> Outcome:
    made = target(name)
    return Outcome(made, "cached", (), record(made), 0.01234, Path("/models/m", made.file_name))


def failed(name: str, error: str, precision: str = "fp32") -> Outcome:
    return Outcome(target(name, precision), "failed", error=error)


def text_of(shown: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def cells(shown: RenderableType) -> list[list[str]]:
    """The rows of a table, the head first."""
    rows = [row.replace("┃", "│") for row in text_of(shown).splitlines() if row[0] in "│┃"]
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows]


def test_json_of_what_was_built_has_every_field_and_no_other() -> None:
    assert json.loads(outcomes_json([built("llm.llm", "fp16")])) == {
        "targets": [
            {
                "component": "llm.llm",
                "precision": "fp16",
                "device": "cpu",
                "fingerprint": target("llm.llm", "fp16").fingerprint.key,
                "state": "built",
                "reasons": ["torch 1 -> 2"],
                "path": "/models/m/llm.llm.fp16.zip",
                "sha256": DIGEST,
                "bytes": 4_007_654,
                "figures": FIGURES,
                "seconds": 12.346,
                "error": None,
            }
        ]
    }


def test_json_of_what_failed_has_null_for_what_there_is_not() -> None:
    assert json.loads(outcomes_json([failed("flow.encoder", "the build process was killed by SIGKILL")])) == {
        "targets": [
            {
                "component": "flow.encoder",
                "precision": "fp32",
                "device": "cpu",
                "fingerprint": target("flow.encoder").fingerprint.key,
                "state": "failed",
                "reasons": [],
                "path": None,
                "sha256": None,
                "bytes": None,
                "figures": None,
                "seconds": None,
                "error": "the build process was killed by SIGKILL",
            }
        ]
    }


def test_json_of_what_was_built_in_vain_has_its_digest_and_no_path() -> None:
    (entry, other) = json.loads(outcomes_json([built("llm.llm", published=False), failed("flow.encoder", "no")]))[
        "targets"
    ]
    assert (entry["state"], entry["path"], entry["sha256"]) == ("built", None, DIGEST)
    assert (other["state"], other["error"]) == ("failed", "no")


def test_json_keeps_the_order_and_any_text() -> None:
    outcomes = [failed("llm.llm", f'"{MARKUP}"\n\t\\ 语音'), built("llm.text_encoder", directory=f"/{MARKUP}/语音")]
    targets = json.loads(outcomes_json(outcomes))["targets"]
    assert [entry["component"] for entry in targets] == ["llm.llm", "llm.text_encoder"]
    assert targets[0]["error"] == f'"{MARKUP}"\n\t\\ 语音'
    assert targets[1]["path"] == f"/{MARKUP}/语音/llm.text_encoder.fp32.zip"


def test_json_of_nothing_is_an_empty_list() -> None:
    assert json.loads(outcomes_json([])) == {"targets": []}


def test_the_table_has_a_row_for_each_target_with_what_is_known_of_it() -> None:
    assert cells(outcomes_table([built("llm.llm", "fp16"), cached("llm.llm"), failed("flow.encoder", "no")])) == [
        ["component", "precision", "state", "why", "bytes", "error", "cosine", "seconds"],
        ["llm.llm", "fp16", "built", "torch 1 -> 2", "4.0 MB", "1.2e-02", "0.999877", "12.3"],
        ["llm.llm", "fp32", "cached", "", "4.0 MB", "1.2e-02", "0.999877", ""],
        ["flow.encoder", "fp32", "failed", "", "", "", "", ""],
    ]


def test_the_table_has_no_error_of_an_artifact_from_before_there_was_a_gate() -> None:
    made = target("llm.llm")
    kept = record(made, figures={"bytes": 4_007_654, "weight_bytes": 1_000_000, "seconds": 12.346})
    row = cells(outcomes_table([Outcome(made, "cached", (), kept, 0.1)]))[1]
    assert row == ["llm.llm", "fp32", "cached", "", "4.0 MB", "", "", ""]


def test_numbers_that_became_0_are_told_of() -> None:
    made = target("llm.llm", "fp16")
    outcome = Outcome(made, "built", (), record(made, figures={**FIGURES, "underflows": 1234}), 1.0, Path("/m/a.zip"))
    assert report.closing([outcome]) == ["llm.llm.fp16: 1,234 numbers became 0 in the cast", "Published in /m"]


def test_counts_leave_out_what_there_is_none_of() -> None:
    assert counts([built("llm.llm"), cached("flow.encoder"), cached("llm.llm")]) == "1 built, 2 cached"
    assert counts([cached("flow.encoder")]) == "1 cached"
    assert counts([failed("flow.encoder", "no"), built("llm.llm")]) == "1 built, 1 failed"


def planned(*reasons: str) -> Planned:
    return Planned(target("llm.llm"), "stale" if reasons else "new", reasons)


def test_a_plan_has_every_reason_in_its_table_and_its_json() -> None:
    reasons = (MARKUP, "object missing")
    assert cells(report.plan_table([planned(*reasons), planned()])) == [
        ["component", "precision", "state", "why"],
        ["llm.llm", "fp32", "stale", MARKUP],
        ["", "", "", "object missing"],
        ["llm.llm", "fp32", "new", ""],
    ]
    refused = OutputError(f"{MARKUP}: is in the way")
    assert report.plan_lines([refused]) == [f"An export would be refused: {refused}"]
    assert json.loads(report.plan_json([planned(*reasons)], [refused])) == {
        "obstacles": [str(refused)],
        "targets": [
            {
                "component": "llm.llm",
                "precision": "fp32",
                "device": "cpu",
                "fingerprint": target("llm.llm").fingerprint.key,
                "state": "stale",
                "reasons": list(reasons),
            }
        ],
    }


def publication(number: int, restores: int | None = None, **artifacts: str) -> Publication:
    members = {f"{name}.zip": Published(digest * 64, 5, "k" * 32) for name, digest in artifacts.items()}
    return Publication(number, f"2026-01-0{number}", f"/{MARKUP}", members, None, restores)


def test_a_status_has_each_name_in_its_table_and_its_json() -> None:
    one = publication(1, a="1", b="2")
    found = Status(one, (Shown("a.zip", "damaged", "stale", (MARKUP,)), Shown("b.zip", "whole", "current")), "missing")
    assert cells(report.status_table(found)) == [
        ["name", "file", "state", "why"],
        ["a.zip", "damaged", "stale", MARKUP],
        ["b.zip", "whole", "current", ""],
    ]
    assert json.loads(report.status_json(found)) == {
        "publication": {"identity": one.identity, **json.loads(one.content)},
        "manifest": "missing",
        "compared_with": None,
        "names": [
            {"name": "a.zip", "file": "damaged", "state": "stale", "reasons": [MARKUP]},
            {"name": "b.zip", "file": "whole", "state": "current", "reasons": []},
        ],
    }


def test_a_status_says_what_an_id_was_taken_for_and_who_tells_what_it_is_now() -> None:
    one = Publication(2, "2026-01-02", "iic/a", {})
    line = "Publication 2 of 2026-01-02, from iic/a; manifest whole"
    found = Status(one, (), "whole", "iic/a@abc")
    hint = "Compared with iic/a@abc, the last commit on this machine; --check-source asks the hub"
    assert report.status_lines(found, checked=False) == [line, hint]
    assert report.status_lines(found, checked=True) == [line, "Compared with iic/a@abc"]
    assert report.status_lines(Status(one, (), "whole", "iic/a"), checked=False) == [line]
    assert report.status_lines(Status(one, (), "whole"), checked=False) == [line]


def test_a_history_tells_what_each_publication_changed_and_restored() -> None:
    chain = [publication(3, 1, a="1"), publication(2, a="2", b="3"), publication(1, a="1")]
    assert cells(report.history_table(chain)) == [
        ["publication", "published", "artifacts", "changed", "source"],
        ["3 (as 1)", "2026-01-03", "1", "a.zip", f"/{MARKUP}"],
        ["", "", "", "b.zip", ""],
        ["2", "2026-01-02", "2", "a.zip", f"/{MARKUP}"],
        ["", "", "", "b.zip", ""],
        ["1", "2026-01-01", "1", "a.zip", f"/{MARKUP}"],
    ]
    assert cells(report.history_table(chain[:1], chain[1])) == cells(report.history_table(chain))[:3]
    found = json.loads(report.history_json(chain))["publications"]
    assert [each["identity"] for each in found] == [each.identity for each in chain]
    assert [(each["number"], each["restores"]) for each in found] == [(3, 1), (2, None), (1, None)]
    assert found[1]["artifacts"]["b.zip"] == {"sha256": "3" * 64, "bytes": 5, "fingerprint": "k" * 32}


def test_a_lineage_names_all_that_the_record_does() -> None:
    made = record(target("llm.llm"), run={"prefect_flow_run": "run 1"}, source=f"/{MARKUP}")
    text = text_of(report.lineage_tree(Trace(made)))
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
    assert json.loads(report.lineage_json(Trace(made))) == json.loads(json.dumps(made.statement))


def test_the_lineage_of_a_file_of_other_bytes_says_so() -> None:
    made = record(target("llm.llm"))
    said = json.loads(embedded_provenance(made.fingerprint))
    assert f"the file's own bytes are {'9' * 64}" in text_of(report.lineage_tree(Trace(made, said, "9" * 64)))
    assert text_of(report.lineage_tree(Trace(made, said, DIGEST))) == text_of(report.lineage_tree(Trace(made)))


def test_a_lineage_without_a_record_is_what_the_file_says_of_itself() -> None:
    made: Fingerprint = target("llm.llm").fingerprint
    said = json.loads(embedded_provenance(made))
    text = text_of(report.lineage_tree(Trace(None, said, DIGEST)))
    assert f"{DIGEST} (of no record in this store)" in text
    assert f"fingerprint {made.key}\n" in text
    assert "linear_units 128\n" in text
    assert json.loads(report.lineage_json(Trace(None, said, DIGEST))) == said


def test_faults_are_named_in_json() -> None:
    assert json.loads(report.faults_json([Fault("a", MARKUP)])) == {"faults": [{"name": "a", "problem": MARKUP}]}


def test_garbage_is_counted_by_folder_and_listed_in_json() -> None:
    found = [Entry("objects/ab/abc", 3_000_000, 1.0), Entry("objects/cd/cde", 1_000_000, 1.0), Entry("tmp/x", 5, 1.0)]
    assert cells(report.garbage_table(found)) == [
        ["folder", "files", "bytes"],
        ["objects", "2", "4.0 MB"],
        ["tmp", "1", "5 bytes"],
    ]
    assert report.garbage_line(found, removed=True) == "3 files removed, 4.0 MB freed"
    assert "run again with --delete" in report.garbage_line(found, removed=False)
    assert json.loads(report.garbage_json(found[2:], removed=False)) == {
        "files": [{"name": "tmp/x", "bytes": 5}],
        "bytes": 5,
        "removed": False,
    }


def test_the_largest_files_of_a_collection_are_named() -> None:
    found = [Entry(f"objects/{MARKUP}\x1b{number}", 1000 * number, 1.0) for number in range(22, 0, -1)]
    lines = report.garbage_lines(found)
    assert lines[:2] == [f"objects/{MARKUP}\x1b22 (22.0 kB)", f"objects/{MARKUP}\x1b21 (21.0 kB)"]
    assert lines[20:] == ["and 2 more; --json names all"]
    assert report.garbage_lines(found[:20]) == lines[:20]
    assert report.garbage_lines([]) == []


def test_the_closing_lines_name_the_directory_once() -> None:
    assert closing([built("llm.llm"), built("flow.encoder")]) == ["Published in /models/m"]


def test_the_closing_lines_give_each_error_and_say_that_nothing_was_published() -> None:
    outcomes = [failed("llm.llm", "first"), built("flow.encoder", published=False), failed("llm.llm", "second", "fp16")]
    *errors, last = closing(outcomes)
    assert errors == ["llm.llm.fp32: first", "llm.llm.fp16: second"]
    assert last.startswith("Nothing was published")


@pytest.mark.parametrize("text", [MARKUP, "x" * 500, "语音" * 100], ids=["markup", "long", "wide"])
def test_directories_and_errors_are_shown_as_they_are(text: str) -> None:
    published = [built("llm.llm", directory=f"/{text}")]
    assert closing(published) == [f"Published in /{text}"]
    assert summary(published).splitlines()[-1] == f"Published in /{text}"
    broken = [failed("llm.llm", text), built("flow.encoder", published=False)]
    assert closing(broken)[0] == f"llm.llm.fp32: {text}"
    assert summary(broken).splitlines()[-2:] == closing(broken)


def test_the_summary_is_plain_text_with_the_table_first() -> None:
    text = summary([built("llm.llm")])
    assert "\x1b" not in text
    assert text.splitlines()[0].startswith("┏")
    assert [line.split()[1] for line in text.splitlines() if "4.0 MB" in line] == ["llm.llm"]


def test_the_summary_is_plain_text_even_where_colour_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    text = summary([built("llm.llm")])
    assert "\x1b" not in text
    assert "4.0 MB" in text


# The page of a run.


def test_a_row_of_a_run_has_what_the_table_of_its_page_shows() -> None:
    made = target("llm.llm", "fp16")
    figures = {**FIGURES, "step_seconds": 0.02, "speedup": 2.345}
    rows = report.run_rows(
        [
            Outcome(made, "built", ("torch 1 -> 2", "forced"), record(made, figures=figures), 1.0, Path("/m/a.zip")),
            cached("flow.encoder"),
            failed("llm.text_encoder", "the build process was killed by SIGKILL"),
        ]
    )
    assert rows[0] == {
        "component": "llm.llm",
        "precision": "fp16",
        "state": "built",
        "why": "`torch 1 -> 2`; `forced`",
        "size": "4.0 MB",
        "error": "1.2e-02",
        "decode speed-up": "2.35",
        "sha256": DIGEST[:12],
    }
    assert [row["state"] for row in rows] == ["built", "cached", "failed"]
    assert rows[1]["decode speed-up"] == ""
    assert (
        rows[2] | {"why": "`the build process was killed by SIGKILL`", "size": "", "error": "", "sha256": ""} == rows[2]
    )


def test_rows_of_several_sources_begin_with_the_source() -> None:
    rows = report.run_rows([built("llm.llm", directory="/models/a"), built("llm.llm", directory="/models/b")])
    assert [row["source"] for row in rows] == ["`/models/a`", "`/models/b`"]
    assert [next(iter(row)) for row in rows] == ["source", "source"]


def test_the_page_says_what_was_made_from_what_and_draws_how_it_went() -> None:
    points = [Point(3, FIGURES), Point(4, {**FIGURES, "step_seconds": 0.02})]
    page = report.run_page("/models/m", [built("llm.llm"), cached("flow.encoder")], {"llm.llm.fp32.zip": points})
    lines = page.splitlines()
    assert lines[0] == "# `/models/m`"
    assert "1 built, 1 cached" in lines
    assert "- Published in `/models/m`" in lines
    row = next(line for line in lines if line.startswith("| `llm.llm.fp32.zip` |"))
    assert row == (
        f"| `llm.llm.fp32.zip` | `{DIGEST[:12]}` | `{target('llm.llm').fingerprint.key[:12]}` "
        "| `llm.pt` `111111111111` | `cosyjit 1, torch 2, python 3` | `2026-01-02T03:04:06.789Z` |"
    )
    assert "## Publications 3 to 4" in lines
    picture = base64.b64decode(page.rpartition("base64,")[2].rstrip(")")).decode()
    assert all(title in picture for title in ("size, MB", "largest error", "step, ms", "llm.llm.fp32.zip"))


def test_the_page_of_a_failure_without_publications_has_no_picture() -> None:
    page = report.run_page("/models/m", [failed("llm.llm", "it broke")], {})
    assert "- llm.llm.fp32: `it broke`" in page.splitlines()
    assert "Nothing was published" in page
    assert "base64" not in page


def test_nothing_in_a_page_is_taken_for_markup() -> None:
    page = report.run_page("a|b `c` <img src=x> [d](e) **f** # g", [failed("llm.llm", MARKUP)], {})
    assert page.splitlines()[0] == r"# `a`\|``b `c` <img src=x> [d](e) **f** # g``"
    assert f"- llm.llm.fp32: `{MARKUP}`" in page.splitlines()
    failure = report.failed_page("[d](e)", "no\n\n# ![such](http://example.com/x.png)")
    assert failure == "# `[d](e)`\n\n`no\\n\\n# ![such](http://example.com/x.png)`"
