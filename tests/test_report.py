"""Outcomes as a table, as lines and as JSON."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cosyjit import Artifact, Outcome, Target
from cosyjit.families import FAMILIES, PRECISIONS
from cosyjit.report import as_json, closing, summary, table
from cosyjit.source import Source

MARKUP = "[red]x[/red] :smile: [link=y] \\[z] {0} %s"
"""What rich, `format` and `%` would each make something else of."""

DIGEST = "0123456789abcdef" * 4


def target(name: str, precision: str = "fp32", directory: str = "/models/m") -> Target:
    component = next(component for component in FAMILIES[0].components if component.name == name)
    source = Source(Path(directory), Path(directory, "cosyvoice.yaml"))
    return Target(source, component, {}, PRECISIONS[precision], 1_000_000)


def built(name: str, precision: str = "fp32", directory: str = "/models/m", *, published: bool = True) -> Outcome:
    made = target(name, precision, directory)
    artifact = Artifact(made, Path(directory, ".cosyjit-x", "archive.zip"), DIGEST, 4_007_654, 12.34567)
    return Outcome(made, "built", Path(directory, made.file_name) if published else None, artifact=artifact)


def failed(name: str, error: str, precision: str = "fp32") -> Outcome:
    return Outcome(target(name, precision), "failed", error=error)


def drawn(outcomes: list[Outcome]) -> str:
    """The table as a terminal of ordinary width would show it."""
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(table(outcomes))
    return capture.get()


def test_json_of_what_was_built_has_every_field_and_no_other() -> None:
    assert json.loads(as_json([built("llm.llm", "fp16")])) == {
        "targets": [
            {
                "component": "llm.llm",
                "precision": "fp16",
                "device": "cpu",
                "state": "built",
                "path": "/models/m/llm.llm.fp16.zip",
                "sha256": DIGEST,
                "bytes": 4_007_654,
                "seconds": 12.346,
                "error": None,
            }
        ]
    }


def test_json_of_what_failed_has_null_for_what_there_is_not() -> None:
    assert json.loads(as_json([failed("flow.encoder", "the build process was killed by SIGKILL")])) == {
        "targets": [
            {
                "component": "flow.encoder",
                "precision": "fp32",
                "device": "cpu",
                "state": "failed",
                "path": None,
                "sha256": None,
                "bytes": None,
                "seconds": None,
                "error": "the build process was killed by SIGKILL",
            }
        ]
    }


def test_json_of_what_was_built_in_vain_has_its_digest_and_no_path() -> None:
    (entry, other) = json.loads(as_json([built("llm.llm", published=False), failed("flow.encoder", "no")]))["targets"]
    assert (entry["state"], entry["path"], entry["sha256"]) == ("built", None, DIGEST)
    assert (other["state"], other["error"]) == ("failed", "no")


def test_json_keeps_the_order_and_any_text() -> None:
    outcomes = [failed("llm.llm", f'"{MARKUP}"\n\t\\ 语音'), built("llm.text_encoder", directory=f"/{MARKUP}/语音")]
    targets = json.loads(as_json(outcomes))["targets"]
    assert [entry["component"] for entry in targets] == ["llm.llm", "llm.text_encoder"]
    assert targets[0]["error"] == f'"{MARKUP}"\n\t\\ 语音'
    assert targets[1]["path"] == f"/{MARKUP}/语音/llm.text_encoder.fp32.zip"


def test_json_of_nothing_is_an_empty_list() -> None:
    assert json.loads(as_json([])) == {"targets": []}


def test_the_table_has_a_row_for_each_target_with_what_is_known_of_it() -> None:
    _, head, _, *rows, _ = drawn([built("llm.llm", "fp16"), failed("flow.encoder", "no")]).splitlines()
    cells = [[cell.strip() for cell in row.replace("┃", "│").split("│")[1:-1]] for row in (head, *rows)]
    assert cells == [
        ["component", "precision", "state", "bytes", "seconds"],
        ["llm.llm", "fp16", "built", "4.0 MB", "12.3"],
        ["flow.encoder", "fp32", "failed", "", ""],
    ]


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
