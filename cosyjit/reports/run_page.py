"""The page and the table of a run, in Markdown, for the flow: Prefect's UI shows them."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from rich.filesize import decimal

from cosyjit.building.make import Outcome
from cosyjit.operations.trends import Point
from cosyjit.provenance.record import Record
from cosyjit.reports.charts import Chart, as_image, svg
from cosyjit.reports.tables import closing_lines, counts, largest_error
from cosyjit.text import listed, markdown, plain

_LONGEST: Final = 40
"""Of a short name of a source, and of a line in a cell of a table, in characters."""


def run_name(sources: Sequence[str]) -> str:
    """The name of a run: its source, with the revision that an id may have; of several, how many there are as well."""
    return _short(sources[0]) if len(sources) == 1 else f"{len(sources)} sources: {listed(short_names(sources))}"


def short_names(sources: Sequence[str]) -> list[str]:
    """The ends of sources, with as many parts of their paths as tell them apart, in at most 40 characters each."""
    parts = [each.rstrip("/").split("/") for each in sources]
    depth = 1
    while depth < max(map(len, parts), default=0) and len({tuple(each[-depth:]) for each in parts}) < len(set(sources)):
        depth += 1
    return [_short("/".join(each[-depth:])) for each in parts]


def _short(source: str) -> str:
    """A source in at most 40 characters, of which the last parts of a path tell the most."""
    text = plain(source)
    if len(text) <= _LONGEST:
        return text
    tail = text[1 - _LONGEST :]
    return f"…{tail[max(0, tail.find('/')) :]}"


def run_rows(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """A row for each target of a run, for a table in Prefect.

    Prefect's UI reads the text of each cell as Markdown, and breaks no line of it: what is long has paragraphs, and
    stands before what may be cut off.
    """
    sources = list(dict.fromkeys(each.target.source.name for each in outcomes))
    names = dict(zip(sources, short_names(sources), strict=True)) if len(sources) > 1 else {}
    return [
        ({"source": markdown(names[each.target.source.name])} if names else {}) | _outcome_row(each)
        for each in outcomes
    ]


def _outcome_row(outcome: Outcome) -> dict[str, str]:
    record = outcome.record
    speedup = record.figures.get("speedup") if record else None
    reasons = [outcome.error] if outcome.error else outcome.reasons
    return {
        "target": outcome.target.name,
        "state": outcome.state,
        "why": "\n\n".join(markdown(each) for reason in reasons for each in textwrap.wrap(plain(reason), _LONGEST)),
        "size": decimal(record.size) if record else "",
        "error": largest_error(record),
        "speed-up": f"{speedup:.2f}" if speedup else "",
    }


def run_page(source: str, outcomes: Sequence[Outcome], known: Mapping[str, Sequence[Point]]) -> str:
    """The page of a run: what became of the targets, what they were made from, and charts over publications.

    Tables have no more columns than Prefect's UI shows beside each other, since it breaks no line in a cell.

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
    records = [each.record for each in outcomes if each.record]
    lines += _markdown_table(
        ("artifact", "state", "sha256", "fingerprint", "finished"),
        [_lineage_row(each.record, each.state) for each in outcomes if each.record],
    )
    lines += _grouped("Made from", records, _materials)
    lines += _grouped("Built with", records, _versions)
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
        title = f"Publications {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"Publication {numbers[0]}"
        lines += ["", f"## {title}", "", as_image(picture, f"{title}: size, error and step time")]
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


def _lineage_row(record: Record, state: str) -> tuple[str, ...]:
    digests = f"`{record.sha256[:12]}`", f"`{record.fingerprint.key[:12]}`"
    return markdown(record.name), state, *digests, markdown(record.finished)


def _materials(record: Record) -> list[str]:
    return [f"{markdown(each.name)} `{each.sha256[:12]}`" for each in record.materials]


def _versions(record: Record) -> list[str]:
    return [markdown(", ".join(f"{name} {version}" for name, version in record.versions.items()))]


def _grouped(title: str, records: Sequence[Record], parts: Callable[[Record], list[str]]) -> list[str]:
    """A heading and a list of what records have in common, each with the names of those that have it, if not all do."""
    names: dict[str, list[str]] = {}
    for record in records:
        for part in parts(record):
            names.setdefault(part, []).append(markdown(record.name))
    found = [f"- {part}{'' if len(of) == len(records) else ': ' + ', '.join(of)}" for part, of in names.items()]
    return ["", f"## {title}", "", *found] if found else []


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
