"""Outcomes for people (a table) and for programs (JSON)."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cosyjit.pipeline import Outcome


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each target."""
    result = Table("component", "precision", "state")
    result.add_column("bytes", justify="right")
    result.add_column("seconds", justify="right")
    for outcome in outcomes:
        target, artifact = outcome.target, outcome.artifact
        measured = (decimal(artifact.bytes), f"{artifact.seconds:.1f}") if artifact else ("", "")
        result.add_row(target.component.name, target.precision.name, outcome.state, *measured)
    return result


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table as text, and below it each error, or where the zips are."""
    console = Console(width=100, color_system=None, force_terminal=False, emoji=False)
    with console.capture() as capture:
        console.print(table(outcomes))
    return "\n".join([capture.get().rstrip(), *closing(outcomes)])


def closing(outcomes: Sequence[Outcome]) -> list[str]:
    """Each error in a line, and whether and where anything was published."""
    failed = [f"{outcome.target.name}: {outcome.error}" for outcome in outcomes if outcome.state == "failed"]
    if failed:
        return [*failed, "Nothing was published; what was published before is as it was."]
    directories = {str(outcome.path.parent): None for outcome in outcomes if outcome.path}
    return [f"Published in {directory}" for directory in directories]


def as_json(outcomes: Sequence[Outcome]) -> str:
    """One object, `{"targets": [...]}`; what a target does not have is null."""
    return json.dumps({"targets": [_entry(outcome) for outcome in outcomes]}, indent=2)


def _entry(outcome: Outcome) -> dict[str, Any]:
    artifact = outcome.artifact
    return {
        "component": outcome.target.component.name,
        "precision": outcome.target.precision.name,
        "device": outcome.target.device,
        "state": outcome.state,
        "path": str(outcome.path) if outcome.path else None,
        "sha256": artifact.sha256 if artifact else None,
        "bytes": artifact.bytes if artifact else None,
        "seconds": round(artifact.seconds, 3) if artifact else None,
        "error": outcome.error,
    }
