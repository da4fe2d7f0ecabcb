"""Results as tables and lines, for people at a terminal or with a log.

A table has columns and spaces alone, and what may be long stands in lines below it. Those of artifacts that exist fit
80 columns; nothing is cut or broken in one that does not, where it is printed as wide as `UNCUT`.

Lines are as they are: who shows them passes them through the function of `cosyjit.text` that his medium has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from cosyjit.building.make import Outcome
from cosyjit.doctor.finding import Finding
from cosyjit.errors import InputError
from cosyjit.operations.copy_store import Copied
from cosyjit.operations.diff import Diff, Difference
from cosyjit.operations.push import Pushed
from cosyjit.operations.status import Shown, Status
from cosyjit.operations.verify import Fault
from cosyjit.planning.plan import Planned
from cosyjit.planning.target import Target
from cosyjit.provenance.fingerprint import Change, tensor_words
from cosyjit.provenance.lineage import Lineage
from cosyjit.provenance.record import Record
from cosyjit.publishing.plans import OutdatedPlan
from cosyjit.publishing.publication import Publication
from cosyjit.store.backends import Entry
from cosyjit.text import listed, one_line, plain

UNCUT: Final = 100_000
"""The width of a console that cuts and breaks no cell, in columns."""

_FOUND: Final = 36
"""How wide the column of what was found out is, in columns; longer text is broken there."""

_NAMED: Final = 20
"""How many files of a collection are named for people."""

_WHOLE_SECONDS: Final = 10
"""From how many seconds on a time has no decimal."""

_STYLES: Final = {
    **dict.fromkeys(("built", "cached", "fresh", "current", "intact", "ok"), "green"),
    **dict.fromkeys(("new", "stale", "unknown", "changed", "note"), "yellow"),
    **dict.fromkeys(("failed", "damaged", "missing", "wrong"), "red"),
}
"""The colours of states, on a terminal."""


def outcomes_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each target of an export."""
    table = _table("component", "precision", "state", numbers=("size", "error", "time"))
    for each in outcomes:
        size = _size(each.record.size) if each.record else ""
        time = _time(each.seconds) if each.state == "built" else ""
        _add_row(table, *_component_and_precision(each.target), each.state, size, largest_error(each.record), time)
    return table


def reason_lines(shown: Sequence[Outcome | Planned | Shown]) -> list[str]:
    """Why targets, or the names that a directory shows, are in their states: a line for each that has reasons."""
    named = ((each.name if isinstance(each, Shown) else each.target.name, each.reasons) for each in shown)
    return [f"{name}: {'; '.join(reasons)}" for name, reasons in named if reasons]


def largest_error(record: Record | None) -> str:
    """The largest absolute error of an artifact as text; empty if it was not measured."""
    error = record.figures.get("absolute_error") if record else None
    return "" if error is None else f"{error:.1e}"


def summary(outcomes: Sequence[Outcome], *, cached: bool = True) -> str:
    """The table as text, and below it why each was built, and each error, or where the zips are.

    Args:
        outcomes: of an export.
        cached: whether what was cached has rows; if not, how much that was stands above the table.
    """
    shown = [each for each in outcomes if cached or each.state != "cached"]
    console = Console(width=UNCUT, color_system=None, force_terminal=False, emoji=False)
    with console.capture() as capture:
        if shown:
            console.print(outcomes_table(shown))
    above = [] if cached else [counts(outcomes)]
    table = [each.rstrip() for each in capture.get().splitlines()]
    return "\n".join([*above, *table, *map(plain, [*reason_lines(shown), *closing_lines(outcomes)])])


def counts(outcomes: Sequence[Outcome]) -> str:
    """How many were built and how many cached, as in "1 built, 5 cached"."""
    found = {state: sum(each.state == state for each in outcomes) for state in ("built", "cached", "failed")}
    return ", ".join(f"{count} {state}" for state, count in found.items() if count)


def closing_lines(outcomes: Sequence[Outcome], escaped: Callable[[str], str] = str) -> list[str]:
    """Each error in a line, what to know of what was made, and whether and where anything was published.

    Args:
        escaped: what errors and directories pass through, for a medium in which the rest of a line needs none of it.
    """
    failed = failed_lines(outcomes, escaped)
    if failed:
        kept = " What was built is kept." if any(each.state == "built" for each in outcomes) else ""
        return [*failed, f"Nothing was published; what was published before is as it was.{kept}"]
    lost = {each.target.name: each.record.figures.get("underflows", 0) for each in outcomes if each.record}
    notes = [f"{name}: {count:,.0f} numbers became 0 in the cast" for name, count in lost.items() if count]
    targets = [each.target for each in outcomes]
    loading = ((each.name, each.component.loading.get(each.precision.name)) for each in targets)
    notes += [f"{name}: {note}" for name, note in loading if note]
    directories = {str(each.path.parent): None for each in outcomes if each.path}
    return [*notes, *(f"Published in {escaped(directory)}" for directory in directories)]


def failed_lines(outcomes: Sequence[Outcome], escaped: Callable[[str], str] = str) -> list[str]:
    """The error of each target that failed, in a line."""
    return [f"{each.target.name}: {escaped(each.error or '')}" for each in outcomes if each.state == "failed"]


def plan_table(planned: Sequence[Planned]) -> Table:
    """A row for each target of a plan."""
    table = _table("component", "precision", "state")
    for each in planned:
        _add_row(table, *_component_and_precision(each.target), each.state)
    return table


def plan_count(planned: Sequence[Planned]) -> str:
    """How many targets are to be built, and why, as in "2 of 6 targets to build: 1 new, 1 stale"."""
    found = {state: sum(each.state == state for each in planned) for state in ("new", "stale")}
    if not any(found.values()):
        return f"Nothing is to be built: the store has {len(planned)} of {len(planned)} targets"
    states = ", ".join(f"{count} {state}" for state, count in found.items() if count)
    return f"{sum(found.values())} of {len(planned)} targets to build: {states}"


def obstacle_lines(obstacles: Sequence[InputError]) -> list[str]:
    """What an export would refuse, a line each."""
    return [f"An export would be refused: {each}" for each in obstacles]


def outdated_lines(plans: Sequence[OutdatedPlan]) -> list[str]:
    """Which TensorRT plans an export would put aside, a line each."""
    return [f"An export would put {each.name} aside as {each.kept}, since it changes {each.file}" for each in plans]


def status_table(status: Status) -> Table:
    """A row for each published name."""
    table = _table("name", "file", "state")
    for each in status.names:
        _add_row(table, each.name, each.condition, each.state)
    return table


def status_lines(status: Status, *, checked: bool) -> list[str]:
    """Which publication it is, from what, of an id, what that was taken for; and which plans are older than it.

    Args:
        checked: whether a hub was to be asked.
    """
    shown, source = status.publication, status.compared_with
    lines = [f"Publication {shown.number} of {shown.published}, from {shown.source}; manifest {status.manifest}"]
    if source is not None and source != shown.source:
        way = "" if checked else ", the last commit on this machine; --check-source asks the hub"
        lines.append(f"Compared with {source}{way}")
    return [
        *lines,
        *(
            f"{each.name} is older than {each.file}, and a runtime would use it; move it away, and the runtime makes "
            "a new one"
            for each in status.older_plans
        ),
    ]


def history_table(publications: Sequence[Publication], earlier: Publication | None = None) -> Table:
    """A row for each publication, with how many artifacts it changed against the one before.

    Args:
        publications: the latest first.
        earlier: the one before all of them.
    """
    table = _table("publication", "published", numbers=("artifacts", "changed"))
    for each, before in zip(publications, [*publications[1:], earlier], strict=True):
        back = f" (as {each.restores})" if each.restores else ""
        counts = str(len(each.artifacts)), str(len(_changed(each, before)))
        _add_row(table, f"{each.number}{back}", each.published, *counts)
    return table


def history_lines(publications: Sequence[Publication], earlier: Publication | None = None) -> list[str]:
    """What each publication changed, and from what it was made, a line each.

    Args:
        publications, earlier: as for the table.
    """
    return [
        f"{each.number}: from {each.source}; changed {', '.join(_changed(each, before)) or 'nothing'}"
        for each, before in zip(publications, [*publications[1:], earlier], strict=True)
    ]


def _changed(after: Publication, before: Publication | None) -> list[str]:
    """The names of which two publications have other artifacts, or only one has any."""
    known = before.artifacts if before else {}
    return [name for name in {**known, **after.artifacts} if known.get(name) != after.artifacts.get(name)]


def diff_table(diff: Diff) -> Table:
    """A row for each name of two publications."""
    table = _table("name", "state", numbers=("size before", "after"))
    for each in diff.artifacts:
        sizes = ("" if side is None else _size(side.size) for side in (each.before, each.after))
        _add_row(table, each.name, each.state, *sizes)
    return table


def diff_lines(diff: Diff) -> list[str]:
    """Which publications they are; and of each name that has changed what did, before and after."""
    lines = [f"Publication {each.number} of {each.published}, from {each.source}" for each in (diff.before, diff.after)]
    for each in diff.artifacts:
        if each.state == "changed":
            lines += [each.name, *(f"  {line}" for line in _difference_lines(each))]
    if all(each.state == "same" for each in diff.artifacts):
        lines.append("All artifacts are the same")
    return lines


def _difference_lines(difference: Difference) -> Iterator[str]:
    measured = [each for each in difference.figures if each.name not in _TIMES]
    pairs = [(each, each.shown) for each in (*difference.options, *difference.versions)]
    for each, (before, after) in (*pairs, *((each, _numbers(each)) for each in measured)):
        values = " -> ".join(map(_cut, filter(None, (before, after))))
        yield f"{_cut(each.name)} {values}{'' if each.state == 'changed' else f' {each.state}'}"
    if difference.before and difference.after and difference.before.sha256 == difference.after.sha256:
        yield "The bytes are the same"
    files = [f"file {each.name}" for each in difference.files]
    tensors = [each._replace(name=_cut(each.name)) for each in difference.tensors]
    yield from tensor_words(tensors, *(difference.count or (0, 0)))
    yield from [f"{listed(files)} changed"] if files else []
    yield from difference.problems


_TIMES: Final = {"seconds", "verify_seconds"}
"""How long builds took, which is another time each time."""

_LONGEST: Final = 120
"""How many characters of a name or value are shown to people; JSON has all of it."""


def _cut(text: str) -> str:
    return one_line(text, _LONGEST)


def _numbers(change: Change) -> tuple[str, str]:
    """The numbers before and after, with as many digits as tell them apart."""
    for digits in range(6, 17):
        before, after = (_number(each, digits) for each in (change.before, change.after))
        if before != after:
            return before, after
    return str(change.before), str(change.after)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def lineage_lines(trace: Lineage) -> list[str]:
    """What an artifact was made from; what belongs to a line stands below it, two spaces further in."""
    record = trace.record
    if record is None:
        unknown = f"{trace.sha256} (of no record in this store)"
        return [unknown, *_indented({"says of itself": trace.embedded or {}})]
    read = {f"{each.name} read": each.reading for each in record.materials if each.reading}
    parts: dict[str, Any] = {
        "sha256": record.sha256,
        "component": record.component,
        f"fingerprint {record.fingerprint.key}": record.fingerprint.parts,
        f"source {record.source}": {f"{each.name} sha256": each.sha256 for each in record.materials} | read,
        "built with": record.versions,
        "run": {"started": record.started, "finished": record.finished, **record.run},
        "measured": record.figures,
    }
    if record.signed_by:
        parts["signed, as it says, by"] = {"ed25519 key": ", ".join(record.signed_by)}
    own = "" if trace.same_bytes else f" (the file's own bytes are {trace.sha256})"
    return [f"{record.name}{own}", *_indented(parts)]


def _indented(values: Mapping[str, Any], depth: int = 1) -> Iterator[str]:
    """A line for each value behind its name, and for each mapping its name above its own lines."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield f"{'  ' * depth}{name}"
            yield from _indented(value, depth + 1)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{'  ' * depth}{name} {shown}"


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    """What is wrong with each file, a line each."""
    return [f"{each.name}: {each.problem}" for each in faults]


def copied_lines(done: Copied) -> list[str]:
    """What was left out, a line each, and what was copied."""
    copied = f"{len(done.copied)} files copied, {decimal(sum(each.size for each in done.copied))}"
    return [
        *fault_lines(done.left_out),
        f"{copied}; {len(done.present)} were there already, {len(done.left_out)} left out",
    ]


def pushed_lines(done: Pushed) -> list[str]:
    """What was removed, a line each, and where the publication is."""
    uploaded = f"{len(done.uploaded)} files uploaded, {decimal(sum(done.uploaded.values()))}"
    commit = f"{done.repository}: commit {done.commit} has publication {done.publication.number}"
    return [
        *(f"{name}: removed, since it is not shown any more" for name in done.removed),
        f"{commit}; {uploaded}; {len(done.present)} were there already",
    ]


def garbage_table(found: Sequence[Entry]) -> Table:
    """How many files there are below each folder of the store, and their bytes."""
    table = _table("folder", numbers=("files", "size"))
    for folder in sorted({each.name.split("/")[0] for each in found}):
        sizes = [each.size for each in found if each.name.split("/")[0] == folder]
        _add_row(table, folder, str(len(sizes)), _size(sum(sizes)))
    return table


def garbage_files(found: Sequence[Entry]) -> list[str]:
    """The names of the first files with their bytes, and how many more there are.

    Args:
        found: the largest first.
    """
    more = len(found) - _NAMED
    left = [f"and {more:,} more; --json names all"] if more > 0 else []
    return [*(f"{each.name} ({decimal(each.size)})" for each in found[:_NAMED]), *left]


def garbage_summary(found: Sequence[Entry], *, removed: bool) -> str:
    """What was freed, or would be."""
    size = decimal(sum(each.size for each in found))
    return (
        f"{len(found)} files removed, {size} freed"
        if removed
        else f"{len(found)} files, {size}, would go; run again with --delete to remove them"
    )


def findings_table(found: Sequence[Finding]) -> Table:
    """A row for each finding; a part is named once."""
    table = _table("part", "what", "state")
    table.add_column("found", max_width=_FOUND, overflow="fold")
    before = ""
    for each in found:
        _add_row(table, "" if each.part == before else each.part, each.name, each.state, _cut(_value(each)))
        before = each.part
    return table


def findings_lines(found: Sequence[Finding]) -> list[str]:
    """What the findings mean, and what to do, a line each; what is wrong comes last, and then how much that is."""
    wrong = [each for each in found if each.state == "wrong"]
    others = [each for each in found if each.state != "wrong"]
    count = f"{len(wrong)} wrong" if wrong else "Nothing is wrong"
    return [*advice_lines(others), *advice_lines(wrong), count]


def advice_lines(found: Sequence[Finding]) -> list[str]:
    """The advice of each finding that has some, a line each."""
    return [f"{each.part}, {each.name}: {each.advice}" for each in found if each.advice]


def _value(finding: Finding) -> str:
    value = finding.value
    if finding.unit == "bytes" and isinstance(value, int):
        return decimal(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _component_and_precision(target: Target) -> tuple[str, str]:
    return target.component.name, target.precision.name


def _size(size: int) -> str:
    """A size as it stands in a column, such as 4.0MB."""
    return decimal(size, separator="")


def _time(seconds: float) -> str:
    """A time as it stands in a column, such as 3.4s, or 123s."""
    return f"{seconds:.0f}s" if seconds >= _WHOLE_SECONDS else f"{seconds:.1f}s"


def _table(*texts: str, numbers: Sequence[str] = ()) -> Table:
    """A table without rows.

    Args:
        texts: the heads of its first columns.
        numbers: those of columns that are set to the right.
    """
    table = Table(*texts, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for each in numbers:
        table.add_column(each, justify="right")
    for column in table.columns:
        column.no_wrap = True
    return table


def _add_row(table: Table, *cells: str) -> None:
    """Add a row to a table: states in their colours, and texts as one line each, whatever they hold."""
    table.add_row(*(Text(plain(cell), _STYLES.get(cell, "")) for cell in cells))
