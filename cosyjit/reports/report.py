"""Results for people (tables, lines, the pages of a run) and for programs (JSON).

Lines are as they are: who shows them passes them through the function of `cosyjit.text` that his medium has.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from cosyjit.errors import InputError
from cosyjit.operations.copy_store import Copied
from cosyjit.operations.status import Status
from cosyjit.operations.trends import Point
from cosyjit.operations.verify import Fault
from cosyjit.pipeline import Outcome
from cosyjit.planning.plan import Planned, Target
from cosyjit.provenance.lineage import Trace
from cosyjit.provenance.record import Record
from cosyjit.publishing.publication import Publication
from cosyjit.reports.charts import Chart, as_image, svg
from cosyjit.store.backends import Entry
from cosyjit.text import markdown, plain

_NAMED: Final = 20
"""How many files of a collection are named for people."""


def outcomes_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each target of an export."""
    table = Table("component", "precision", "state", "why")
    table.add_column("bytes", justify="right")
    table.add_column("error", justify="right")
    table.add_column("cosine", justify="right")
    table.add_column("seconds", justify="right")
    for each in outcomes:
        size = decimal(each.record.bytes) if each.record else ""
        seconds = f"{each.seconds:.1f}" if each.state == "built" else ""
        _row(table, *_names(each.target), each.state, each.reasons, size, *_errors(each.record), seconds)
    return table


def _errors(made: Record | None) -> tuple[str, str]:
    """The largest absolute error, and the smallest cosine, of an artifact that was verified."""
    figures = made.figures if made else {}
    error, cosine = figures.get("absolute_error"), figures.get("cosine")
    return "" if error is None else f"{error:.1e}", "" if cosine is None else f"{cosine:.6f}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table as text, and below it each error, or where the zips are."""
    console = Console(width=120, color_system=None, force_terminal=False, emoji=False)
    with console.capture() as capture:
        console.print(outcomes_table(outcomes))
    return "\n".join([capture.get().rstrip(), *map(plain, closing(outcomes))])


def counts(outcomes: Sequence[Outcome]) -> str:
    """How many were built and how many cached, as in "1 built, 5 cached"."""
    found = {state: sum(each.state == state for each in outcomes) for state in ("built", "cached", "failed")}
    return ", ".join(f"{count} {state}" for state, count in found.items() if count)


def closing(outcomes: Sequence[Outcome], escaped: Callable[[str], str] = str) -> list[str]:
    """Each error in a line, and whether and where anything was published.

    Args:
        escaped: what errors and directories pass through, for a medium in which the rest of a line needs none of it.
    """
    failed = [f"{each.target.name}: {escaped(each.error or '')}" for each in outcomes if each.state == "failed"]
    if failed:
        return [*failed, "Nothing was published; what was published before is as it was. What could be built is kept."]
    lost = {each.target.name: each.record.figures.get("underflows", 0) for each in outcomes if each.record}
    notes = [f"{name}: {count:,.0f} numbers became 0 in the cast" for name, count in lost.items() if count]
    directories = {str(each.path.parent): None for each in outcomes if each.path}
    return [*notes, *(f"Published in {escaped(directory)}" for directory in directories)]


def outcomes_json(outcomes: Sequence[Outcome]) -> str:
    """One object, `{"targets": [...]}`; what a target does not have is null."""
    return _json({"targets": [_outcome(each) for each in outcomes]})


def _outcome(outcome: Outcome) -> dict[str, Any]:
    made = outcome.record
    return {
        **_target(outcome.target),
        "state": outcome.state,
        "reasons": list(outcome.reasons),
        "path": str(outcome.path) if outcome.path else None,
        "sha256": made.sha256 if made else None,
        "bytes": made.bytes if made else None,
        "figures": dict(made.figures) if made else None,
        "seconds": round(outcome.seconds, 3) if made else None,
        "error": outcome.error,
    }


def run_rows(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """What became of each target, as a run's page in Prefect shows it; what is long stands on the right.

    Prefect's UI takes the text of each cell for Markdown.
    """
    several = len({each.target.source.name for each in outcomes}) > 1
    return [({"source": markdown(each.target.source.name)} if several else {}) | _run_row(each) for each in outcomes]


def _run_row(outcome: Outcome) -> dict[str, str]:
    made = outcome.record
    error, _ = _errors(made)
    speedup = made.figures.get("speedup") if made else None
    component, precision = _names(outcome.target)
    return {
        "component": component,
        "precision": precision,
        "state": outcome.state,
        "size": decimal(made.bytes) if made else "",
        "error": error,
        "decode speed-up": f"{speedup:.2f}" if speedup else "",
        "sha256": made.sha256[:12] if made else "",
        "why": "; ".join(map(markdown, [outcome.error] if outcome.error else outcome.reasons)),
    }


def run_page(source: str, outcomes: Sequence[Outcome], known: Mapping[str, Sequence[Point]]) -> str:
    """What a run came to, what was made from what, and how figures went from publication to publication, in Markdown.

    Args:
        source: what was exported.
        outcomes: of its targets.
        known: the trends of the directory that it is published in.
    """
    lines = [f"# {markdown(source)}", "", counts(outcomes), *(f"- {each}" for each in closing(outcomes, markdown)), ""]
    lines += _markdown_table(
        ("artifact", "sha256", "fingerprint", "made from", "built with", "finished"),
        [_lineage_row(each.record) for each in outcomes if each.record],
    )
    if known:
        numbers = sorted({point.publication for points in known.values() for point in points})
        picture = svg(
            [
                Chart("size, MB", _lines(known, numbers, "bytes", 1e-6)),
                Chart("largest error", _lines(known, numbers, "absolute_error"), logarithmic=True),
                Chart("step, ms", _lines(known, numbers, "step_seconds", 1e3)),
            ],
            [str(number) for number in numbers],
        )
        words = f"size, error and step time of publications {numbers[0]} to {numbers[-1]}"
        lines += ["", f"## Publications {numbers[0]} to {numbers[-1]}", "", as_image(picture, words)]
    return "\n".join(lines)


def failed_page(source: str, problem: str) -> str:
    """The same of a source of which nothing was exported, with the reason."""
    return f"# {markdown(source)}\n\n{markdown(problem)}"


def _lines(
    known: Mapping[str, Sequence[Point]], numbers: Sequence[int], figure: str, unit: float = 1.0
) -> dict[str, list[float | None]]:
    """One figure of each artifact that has it, at each publication."""
    found = {}
    for name, points in known.items():
        values = {each.publication: each.figures[figure] * unit for each in points if figure in each.figures}
        if values:
            found[name] = [values.get(number) for number in numbers]
    return found


def _lineage_row(made: Record) -> tuple[str, ...]:
    digests = f"`{made.sha256[:12]}`", f"`{made.fingerprint.key[:12]}`"
    materials = ", ".join(f"{markdown(each.name)} `{each.sha256[:12]}`" for each in made.materials)
    versions = markdown(", ".join(f"{name} {version}" for name, version in made.versions.items()))
    return markdown(made.name), *digests, materials, versions, markdown(made.finished)


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def plan_table(planned: Sequence[Planned]) -> Table:
    """A row for each target of a plan."""
    table = Table("component", "precision", "state", "why")
    for each in planned:
        _row(table, *_names(each.target), each.state, each.reasons)
    return table


def plan_lines(obstacles: Sequence[InputError]) -> list[str]:
    """What an export would refuse, a line each."""
    return [f"An export would be refused: {each}" for each in obstacles]


def plan_json(planned: Sequence[Planned], obstacles: Sequence[InputError]) -> str:
    """One object, `{"targets": [...], "obstacles": [...]}`; the second are what an export would refuse, a line each."""
    return _json(
        {
            "targets": [
                {**_target(each.target), "state": each.state, "reasons": list(each.reasons)} for each in planned
            ],
            "obstacles": [str(each) for each in obstacles],
        }
    )


def _target(target: Target) -> dict[str, Any]:
    return {
        "component": target.component.name,
        "precision": target.precision.name,
        "device": target.device,
        "fingerprint": target.fingerprint.key,
        **({} if target.reading.is_plain else {"reading": str(target.reading)}),
    }


def _names(target: Target) -> tuple[str, str]:
    return target.component.name, target.precision.name


def _row(table: Table, *cells: str | Iterable[str]) -> None:
    """Add a row to a table for a terminal or a log. A cell of several texts has a line for each."""
    table.add_row(*(_text(*([cell] if isinstance(cell, str) else cell)) for cell in cells))


def _text(*lines: str) -> Text:
    return Text("\n".join(map(plain, lines)))


def status_table(status: Status) -> Table:
    """A row for each published name."""
    table = Table("name", "file", "state", "why")
    for each in status.names:
        _row(table, each.name, each.condition, each.state, each.reasons)
    return table


def status_lines(status: Status, *, checked: bool) -> list[str]:
    """Which publication it is, from what, and of an id, what that was taken for.

    Args:
        checked: whether a hub was to be asked.
    """
    shown, source = status.publication, status.compared_with
    lines = [f"Publication {shown.number} of {shown.published}, from {shown.source}; manifest {status.manifest}"]
    if source is not None and source != shown.source:
        way = "" if checked else ", the last commit on this machine; --check-source asks the hub"
        lines.append(f"Compared with {source}{way}")
    return lines


def status_json(status: Status) -> str:
    """One object: the publication, and what became of each name of it."""
    return _json(
        {
            "publication": _publication(status.publication),
            "manifest": status.manifest,
            "compared_with": status.compared_with,
            "names": [
                {"name": each.name, "file": each.condition, "state": each.state, "reasons": list(each.reasons)}
                for each in status.names
            ],
        }
    )


def history_table(publications: Sequence[Publication], earlier: Publication | None = None) -> Table:
    """A row for each publication, with what it changed against the one before.

    Args:
        publications: the latest first.
        earlier: the one before all of them.
    """
    table = Table("publication", "published", "artifacts", "changed", "source")
    for each, before in zip(publications, [*publications[1:], earlier], strict=True):
        known = before.artifacts if before else {}
        changed = [name for name in {**known, **each.artifacts} if known.get(name) != each.artifacts.get(name)]
        back = f" (as {each.restores})" if each.restores else ""
        count = str(len(each.artifacts))
        _row(table, f"{each.number}{back}", each.published, count, changed, each.source)
    return table


def history_json(publications: Sequence[Publication]) -> str:
    """One object, `{"publications": [...]}`."""
    return _json({"publications": [_publication(each) for each in publications]})


def _publication(publication: Publication) -> dict[str, Any]:
    return {"identity": publication.identity, **json.loads(publication.content)}


def lineage_tree(trace: Trace) -> Tree:
    """What an artifact was made from, as a tree."""
    made = trace.record
    if made is None:
        tree = Tree(_text(f"{trace.sha256} (of no record in this store)"))
        _branch(tree, "says of itself", trace.embedded or {})
        return tree
    tree = Tree(_text(made.name if trace.same_bytes else f"{made.name} (the file's own bytes are {trace.sha256})"))
    tree.add(_text(f"sha256 {made.sha256}"))
    tree.add(_text(f"component {made.component}"))
    _branch(tree, f"fingerprint {made.fingerprint.key}", made.fingerprint.parts)
    read = {f"{each.name} read": each.reading for each in made.materials if each.reading}
    _branch(tree, f"source {made.source}", {f"{each.name} sha256": each.sha256 for each in made.materials} | read)
    _branch(tree, "built with", made.versions)
    _branch(tree, "run", {"started": made.started, "finished": made.finished, **made.run})
    _branch(tree, "measured", made.figures)
    if made.signed_by:
        _branch(tree, "signed, as it says, by", {"ed25519 key": ", ".join(made.signed_by)})
    return tree


def lineage_json(trace: Trace) -> str:
    """The record as it is kept, or what the artifact says of itself if the store has none."""
    return _json(trace.record.statement if trace.record else trace.embedded)


def faults_json(faults: Sequence[Fault]) -> str:
    """One object, `{"faults": [...]}`."""
    return _json({"faults": [each._asdict() for each in faults]})


def copied_lines(done: Copied) -> list[str]:
    """What was left out, a line each, and what was copied."""
    counts = f"{len(done.copied)} files copied, {decimal(sum(each.size for each in done.copied))}"
    return [
        *(f"{each.name}: {each.problem}" for each in done.left_out),
        f"{counts}; {len(done.present)} were there already, {len(done.left_out)} left out",
    ]


def copied_json(done: Copied) -> str:
    """One object: the files that were copied, those that were there already, and those that were left out."""
    return _json(
        {
            "copied": [{"name": each.name, "bytes": each.size} for each in done.copied],
            "present": list(done.present),
            "left_out": [each._asdict() for each in done.left_out],
        }
    )


def garbage_table(found: Sequence[Entry]) -> Table:
    """How many files there are below each folder of the store, and their bytes."""
    table = Table("folder")
    table.add_column("files", justify="right")
    table.add_column("bytes", justify="right")
    for folder in sorted({each.name.split("/")[0] for each in found}):
        sizes = [each.size for each in found if each.name.split("/")[0] == folder]
        _row(table, folder, str(len(sizes)), decimal(sum(sizes)))
    return table


def garbage_lines(found: Sequence[Entry]) -> list[str]:
    """The names of the first files with their bytes, and how many more there are.

    Args:
        found: the largest first.
    """
    more = len(found) - _NAMED
    left = [f"and {more:,} more; --json names all"] if more > 0 else []
    return [*(f"{each.name} ({decimal(each.size)})" for each in found[:_NAMED]), *left]


def garbage_line(found: Sequence[Entry], *, removed: bool) -> str:
    """What was freed, or would be."""
    size = decimal(sum(each.size for each in found))
    return (
        f"{len(found)} files removed, {size} freed"
        if removed
        else f"{len(found)} files, {size}, would go; run again with --delete to remove them"
    )


def garbage_json(found: Sequence[Entry], *, removed: bool) -> str:
    """One object: the files, their bytes, and whether they are gone."""
    files = [{"name": each.name, "bytes": each.size} for each in found]
    return _json({"files": files, "bytes": sum(each.size for each in found), "removed": removed})


def _branch(tree: Tree, label: str, values: Any) -> None:
    branch = tree.add(_text(label))
    for name, value in values.items():
        if isinstance(value, dict):
            _branch(branch, name, value)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            branch.add(_text(f"{name} {shown}"))


def _json(document: Any) -> str:
    return json.dumps(document, indent=2)
