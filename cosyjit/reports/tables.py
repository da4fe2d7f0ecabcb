"""Results as tables, lines and trees, for people at a terminal or with a log.

Lines are as they are: who shows them passes them through the function of `cosyjit.text` that his medium has.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from cosyjit.doctor.finding import Finding
from cosyjit.errors import InputError
from cosyjit.operations.copy_store import Copied
from cosyjit.operations.diff import Diff, Difference
from cosyjit.operations.status import Status
from cosyjit.pipeline import Outcome
from cosyjit.planning.plan import Planned
from cosyjit.planning.target import Target
from cosyjit.provenance.fingerprint import Change, tensor_words
from cosyjit.provenance.lineage import Lineage
from cosyjit.provenance.record import Record
from cosyjit.publishing.plans import OutdatedPlan
from cosyjit.publishing.publication import Publication
from cosyjit.store.backends import Entry
from cosyjit.text import listed, one_line, plain

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
        size = decimal(each.record.size) if each.record else ""
        seconds = f"{each.seconds:.1f}" if each.state == "built" else ""
        _add_row(
            table,
            *_component_and_precision(each.target),
            each.state,
            each.reasons,
            size,
            largest_error(each.record),
            _smallest_cosine(each.record),
            seconds,
        )
    return table


def largest_error(record: Record | None) -> str:
    """The largest absolute error of an artifact as text; empty if it was not measured."""
    error = record.figures.get("absolute_error") if record else None
    return "" if error is None else f"{error:.1e}"


def _smallest_cosine(record: Record | None) -> str:
    """The smallest cosine of an artifact as text; empty if it was not measured."""
    cosine = record.figures.get("cosine") if record else None
    return "" if cosine is None else f"{cosine:.6f}"


def summary(outcomes: Sequence[Outcome], *, cached: bool = True) -> str:
    """The table as text, and below it each error, or where the zips are.

    Args:
        outcomes: of an export.
        cached: whether what was cached has rows; if not, how much that was stands above the table.
    """
    shown = [each for each in outcomes if cached or each.state != "cached"]
    console = Console(width=120, color_system=None, force_terminal=False, emoji=False)
    with console.capture() as capture:
        if shown:
            console.print(outcomes_table(shown))
    above = [] if cached else [counts(outcomes)]
    return "\n".join([*above, *capture.get().rstrip().splitlines(), *map(plain, closing_lines(outcomes))])


def counts(outcomes: Sequence[Outcome]) -> str:
    """How many were built and how many cached, as in "1 built, 5 cached"."""
    found = {state: sum(each.state == state for each in outcomes) for state in ("built", "cached", "failed")}
    return ", ".join(f"{count} {state}" for state, count in found.items() if count)


def closing_lines(outcomes: Sequence[Outcome], escaped: Callable[[str], str] = str) -> list[str]:
    """Each error in a line, what to know of what was made, and whether and where anything was published.

    Args:
        escaped: what errors and directories pass through, for a medium in which the rest of a line needs none of it.
    """
    failed = [f"{each.target.name}: {escaped(each.error or '')}" for each in outcomes if each.state == "failed"]
    if failed:
        return [*failed, "Nothing was published; what was published before is as it was. What could be built is kept."]
    lost = {each.target.name: each.record.figures.get("underflows", 0) for each in outcomes if each.record}
    notes = [f"{name}: {count:,.0f} numbers became 0 in the cast" for name, count in lost.items() if count]
    targets = [each.target for each in outcomes]
    loading = ((each.name, each.component.loading.get(each.precision.name)) for each in targets)
    notes += [f"{name}: {note}" for name, note in loading if note]
    directories = {str(each.path.parent): None for each in outcomes if each.path}
    return [*notes, *(f"Published in {escaped(directory)}" for directory in directories)]


def plan_table(planned: Sequence[Planned]) -> Table:
    """A row for each target of a plan."""
    table = Table("component", "precision", "state", "why")
    for each in planned:
        _add_row(table, *_component_and_precision(each.target), each.state, each.reasons)
    return table


def obstacle_lines(obstacles: Sequence[InputError]) -> list[str]:
    """What an export would refuse, a line each."""
    return [f"An export would be refused: {each}" for each in obstacles]


def outdated_lines(plans: Sequence[OutdatedPlan]) -> list[str]:
    """Which TensorRT plans an export would put aside, a line each."""
    return [f"An export would put {each.name} aside as {each.kept}, since it changes {each.file}" for each in plans]


def status_table(status: Status) -> Table:
    """A row for each published name."""
    table = Table("name", "file", "state", "why")
    for each in status.names:
        _add_row(table, each.name, each.condition, each.state, each.reasons)
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
        _add_row(table, f"{each.number}{back}", each.published, count, changed, each.source)
    return table


def diff_table(diff: Diff) -> Table:
    """A row for each name of two publications."""
    table = Table("name", "state")
    table.add_column("bytes before", justify="right")
    table.add_column("after", justify="right")
    for each in diff.artifacts:
        sizes = ("" if side is None else decimal(side.size) for side in (each.before, each.after))
        _add_row(table, each.name, each.state, *sizes)
    return table


def diff_details(diff: Diff) -> list[RenderableType]:
    """Which publications they are; and of each name that has changed a table of what did, and lines below it."""
    shown: list[RenderableType] = [
        f"Publication {each.number} of {each.published}, from {each.source}" for each in (diff.before, diff.after)
    ]
    for each in diff.artifacts:
        if each.state == "changed":
            shown += [each.name, *_difference_parts(each)]
    if all(each.state == "same" for each in diff.artifacts):
        shown.append("All artifacts are the same")
    return shown


def _difference_parts(difference: Difference) -> Iterator[RenderableType]:
    table = Table("what", "before", "after")
    for each in (*difference.options, *difference.versions):
        _add_row(table, *map(_cut, (each.name, *each.shown)))
    for each in difference.figures:
        if each.name not in _TIMES:
            _add_row(table, _cut(each.name), *_numbers(each))
    if table.row_count:
        yield table
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


def lineage_tree(trace: Lineage) -> Tree:
    """What an artifact was made from, as a tree."""
    record = trace.record
    if record is None:
        tree = Tree(_printable_lines(f"{trace.sha256} (of no record in this store)"))
        _add_branch(tree, "says of itself", trace.embedded or {})
        return tree
    tree = Tree(
        _printable_lines(
            record.name if trace.same_bytes else f"{record.name} (the file's own bytes are {trace.sha256})"
        )
    )
    tree.add(_printable_lines(f"sha256 {record.sha256}"))
    tree.add(_printable_lines(f"component {record.component}"))
    _add_branch(tree, f"fingerprint {record.fingerprint.key}", record.fingerprint.parts)
    read = {f"{each.name} read": each.reading for each in record.materials if each.reading}
    _add_branch(
        tree, f"source {record.source}", {f"{each.name} sha256": each.sha256 for each in record.materials} | read
    )
    _add_branch(tree, "built with", record.versions)
    _add_branch(tree, "run", {"started": record.started, "finished": record.finished, **record.run})
    _add_branch(tree, "measured", record.figures)
    if record.signed_by:
        _add_branch(tree, "signed, as it says, by", {"ed25519 key": ", ".join(record.signed_by)})
    return tree


def copied_lines(done: Copied) -> list[str]:
    """What was left out, a line each, and what was copied."""
    copied = f"{len(done.copied)} files copied, {decimal(sum(each.size for each in done.copied))}"
    return [
        *(f"{each.name}: {each.problem}" for each in done.left_out),
        f"{copied}; {len(done.present)} were there already, {len(done.left_out)} left out",
    ]


def garbage_table(found: Sequence[Entry]) -> Table:
    """How many files there are below each folder of the store, and their bytes."""
    table = Table("folder")
    table.add_column("files", justify="right")
    table.add_column("bytes", justify="right")
    for folder in sorted({each.name.split("/")[0] for each in found}):
        sizes = [each.size for each in found if each.name.split("/")[0] == folder]
        _add_row(table, folder, str(len(sizes)), decimal(sum(sizes)))
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
    table = Table("part", "what", "state", "found")
    before = ""
    for each in found:
        _add_row(table, "" if each.part == before else each.part, each.name, each.state, _cut(_value(each)))
        before = each.part
    return table


def findings_lines(found: Sequence[Finding]) -> list[str]:
    """What the findings mean, and what to do, a line each; what is wrong comes last."""
    said = [each for each in found if each.advice]
    ordered = [each for wrong in (False, True) for each in said if (each.state == "wrong") == wrong]
    wrong = sum(each.state == "wrong" for each in found)
    count = f"{wrong} wrong" if wrong else "Nothing is wrong"
    return [*(f"{each.part}, {each.name}: {each.advice}" for each in ordered), count]


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


def _add_row(table: Table, *cells: str | Iterable[str]) -> None:
    """Add a row to a table. A cell of several texts has a line for each."""
    table.add_row(*(_printable_lines(*([cell] if isinstance(cell, str) else cell)) for cell in cells))


def _printable_lines(*lines: str) -> Text:
    """A cell, or a label of a tree, with a line for each text, whatever the texts hold."""
    return Text("\n".join(map(plain, lines)))


def _add_branch(tree: Tree, label: str, values: Any) -> None:
    """Add a branch with a leaf for each value, and a branch for each dictionary."""
    branch = tree.add(_printable_lines(label))
    for name, value in values.items():
        if isinstance(value, dict):
            _add_branch(branch, name, value)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            branch.add(_printable_lines(f"{name} {shown}"))
