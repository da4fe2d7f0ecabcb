"""The page and the table of a run, in Markdown, for the flow: Prefect's UI shows them."""

from collections.abc import Iterable, Mapping, Sequence

from rich.filesize import decimal

from cosyjit.operations.trends import Point
from cosyjit.pipeline import Outcome
from cosyjit.provenance.record import Record
from cosyjit.reports.charts import Chart, as_image, svg
from cosyjit.reports.tables import closing_lines, counts, largest_error
from cosyjit.text import markdown


def run_rows(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """A row for each target of a run, for a table in Prefect; the longest column comes last.

    Prefect's UI reads the text of each cell as Markdown.
    """
    several = len({each.target.source.name for each in outcomes}) > 1
    return [
        ({"source": markdown(each.target.source.name)} if several else {}) | _outcome_row(each) for each in outcomes
    ]


def _outcome_row(outcome: Outcome) -> dict[str, str]:
    record = outcome.record
    speedup = record.figures.get("speedup") if record else None
    return {
        "component": outcome.target.component.name,
        "precision": outcome.target.precision.name,
        "state": outcome.state,
        "size": decimal(record.size) if record else "",
        "error": largest_error(record),
        "decode speed-up": f"{speedup:.2f}" if speedup else "",
        "sha256": record.sha256[:12] if record else "",
        "why": "; ".join(map(markdown, [outcome.error] if outcome.error else outcome.reasons)),
    }


def run_page(source: str, outcomes: Sequence[Outcome], known: Mapping[str, Sequence[Point]]) -> str:
    """The page of a run: what became of the targets, what they were made from, and charts over publications.

    Args:
        source: what was exported.
        outcomes: of its targets.
        known: the trends of the directory that it is published in.
    """
    lines = [
        f"# {markdown(source)}",
        "",
        counts(outcomes),
        *(f"- {each}" for each in closing_lines(outcomes, markdown)),
        "",
    ]
    lines += _markdown_table(
        ("artifact", "sha256", "fingerprint", "made from", "built with", "finished"),
        [_lineage_row(each.record) for each in outcomes if each.record],
    )
    if known:
        numbers = sorted({point.publication for points in known.values() for point in points})
        picture = svg(
            [
                Chart("size, MB", _chart_lines(known, numbers, "bytes", 1e-6)),
                Chart("largest error", _chart_lines(known, numbers, "absolute_error"), logarithmic=True),
                Chart("step, ms", _chart_lines(known, numbers, "step_seconds", 1e3)),
            ],
            [str(number) for number in numbers],
        )
        words = f"size, error and step time of publications {numbers[0]} to {numbers[-1]}"
        lines += ["", f"## Publications {numbers[0]} to {numbers[-1]}", "", as_image(picture, words)]
    return "\n".join(lines)


def failed_page(source: str, problem: str) -> str:
    """The page of a run that exported nothing, with the reason."""
    return f"# {markdown(source)}\n\n{markdown(problem)}"


def _chart_lines(
    known: Mapping[str, Sequence[Point]], numbers: Sequence[int], figure: str, unit: float = 1.0
) -> dict[str, list[float | None]]:
    """The lines of a chart: for each artifact that has the figure, its values, one for each publication."""
    found = {}
    for name, points in known.items():
        values = {each.publication: each.figures[figure] * unit for each in points if figure in each.figures}
        if values:
            found[name] = [values.get(number) for number in numbers]
    return found


def _lineage_row(record: Record) -> tuple[str, ...]:
    digests = f"`{record.sha256[:12]}`", f"`{record.fingerprint.key[:12]}`"
    materials = ", ".join(f"{markdown(each.name)} `{each.sha256[:12]}`" for each in record.materials)
    versions = markdown(", ".join(f"{name} {version}" for name, version in record.versions.items()))
    return markdown(record.name), *digests, materials, versions, markdown(record.finished)


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
