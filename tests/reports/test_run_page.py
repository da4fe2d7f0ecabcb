"""The page and the table of a run."""

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from cosyjit import Outcome
from cosyjit.operations.trends import Point
from cosyjit.provenance.record import Material
from cosyjit.reports.run_page import failed_page, run_name, run_page, run_rows
from tests.reports.results import DIGEST, FIGURES, MARKUP, built, cached, failed, record, target


def test_a_row_of_a_run_has_what_the_table_of_its_page_shows() -> None:
    made = target("llm.llm", "fp16")
    figures = {**FIGURES, "step_seconds": 0.02, "speedup": 2.345}
    rows = run_rows(
        [
            Outcome(made, "built", ("torch 1 -> 2", "forced"), record(made, figures=figures), 1.0, Path("/m/a.zip")),
            cached("flow.encoder"),
            failed("llm.text_encoder", "the build process was killed by SIGKILL"),
        ]
    )
    assert rows[0] == {
        "target": "llm.llm.fp16",
        "state": "built",
        "why": "`torch 1 -> 2`\n\n`forced`",
        "size": "4.0 MB",
        "error": "1.2e-02",
        "speed-up": "2.35",
    }
    assert [row["state"] for row in rows] == ["built", "cached", "failed"]
    assert rows[1]["speed-up"] == ""
    assert rows[2] | {"why": "`the build process was killed by SIGKILL`", "size": "", "error": ""} == rows[2]


def test_a_long_reason_has_lines_since_the_ui_breaks_none() -> None:
    reason = "44 of 44 tensors changed: embed.out.0.weight, embed.out.0.bias, " + "x" * 50
    (row,) = run_rows([failed("llm.llm", reason)])
    lines = row["why"].split("\n\n")
    assert lines[0] == "`44 of 44 tensors changed:`"
    assert max(map(len, lines)) == 42
    assert "".join(lines).replace("`", "").replace(" ", "") == reason.replace(" ", "")


def test_rows_of_several_sources_begin_with_the_source() -> None:
    rows = run_rows([built("llm.llm", directory="/models/a"), built("llm.llm", directory="/models/b")])
    assert [row["source"] for row in rows] == ["`a`", "`b`"]
    assert [next(iter(row)) for row in rows] == ["source", "source"]


def test_the_page_says_what_was_made_from_what_and_draws_how_it_went() -> None:
    points = [Point(3, FIGURES), Point(4, {**FIGURES, "step_seconds": 0.02})]
    page = run_page("/models/m", [built("llm.llm"), cached("flow.encoder")], {"llm.llm.fp32.zip": points})
    lines = page.splitlines()
    assert lines[0] == "# `/models/m`"
    assert "1 built, 1 cached" in lines
    assert "- Published in `/models/m`" in lines
    row = next(line for line in lines if line.startswith("| `llm.llm.fp32.zip` |"))
    assert row == (
        f"| `llm.llm.fp32.zip` | built | `{DIGEST[:12]}` | `{target('llm.llm').fingerprint.key[:12]}` "
        "| `2026-01-02T03:04:06.789Z` |"
    )
    assert "## Made from\n\n- `llm.pt` `111111111111`\n" in page
    assert "## Built with\n\n- `cosyjit 1, torch 2, python 3`\n" in page
    assert "## Publications 3 to 4" in lines
    picture = base64.b64decode(page.rpartition("base64,")[2].rstrip(")")).decode()
    assert all(title in picture for title in ("size, MB", "largest error", "step, ms", "llm.llm.fp32.zip"))
    first = run_page("/models/m", [built("llm.llm")], {"llm.llm.fp32.zip": points[:1]})
    assert "## Publication 3" in first.splitlines()


def test_the_page_of_a_failure_without_publications_has_no_picture() -> None:
    page = run_page("/models/m", [failed("llm.llm", "it broke")], {})
    assert "- llm.llm.fp32: `it broke`" in page.splitlines()
    assert "Nothing was published" in page
    assert "base64" not in page


def test_nothing_in_a_page_is_taken_for_markup() -> None:
    page = run_page("a|b `c` <img src=x> [d](e) **f** # g", [failed("llm.llm", MARKUP)], {})
    assert page.splitlines()[0] == r"# `a`\|``b `c` <img src=x> [d](e) **f** # g``"
    assert f"- llm.llm.fp32: `{MARKUP}`" in page.splitlines()
    failure = failed_page("[d](e)", "no\n\n# ![such](http://example.com/x.png)")
    assert failure == "# `[d](e)`\n\n`no\\n\\n# ![such](http://example.com/x.png)`"


def test_what_only_some_artifacts_were_made_from_has_their_names() -> None:
    one, other = built("llm.llm"), built("flow.encoder")
    assert other.record is not None
    changed = replace(other, record=replace(other.record, materials=(Material("flow.pt", "file:///f", "2" * 64),)))
    lines = run_page("/models/m", [one, changed], {}).splitlines()
    assert "- `llm.pt` `111111111111`: `llm.llm.fp32.zip`" in lines
    assert "- `flow.pt` `222222222222`: `flow.encoder.fp32.zip`" in lines
    assert "- `cosyjit 1, torch 2, python 3`" in lines


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        (["/models/CosyVoice-300M"], "/models/CosyVoice-300M"),
        (["iic/CosyVoice-300M@v1.0"], "iic/CosyVoice-300M@v1.0"),
        (["/a/long/way/to/where/all/of/our/models/are/CosyVoice-300M"], "…/all/of/our/models/are/CosyVoice-300M"),
        (["/models/" + "x" * 50], "…" + "x" * 39),
        (["/a\x1b[31m\n"], r"/a\x1b[31m\n"),
        (["/models/a/", "iic/b@v1"], "2 sources: a, b@v1"),
        (["/one/a", "/two/a", "/two/b", "/two/c"], "4 sources: one/a, two/a, two/b, …"),
        (["a", "a"], "2 sources: a, a"),
    ],
)
def test_a_run_is_named_for_its_sources(sources: list[str], name: str) -> None:
    assert run_name(sources) == name
