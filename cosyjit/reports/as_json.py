"""Results as JSON, for programs: each function gives one object, in ASCII."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from cosyjit.building.make import Outcome
from cosyjit.doctor.finding import Finding
from cosyjit.errors import InputError
from cosyjit.operations.copy_store import Copied
from cosyjit.operations.diff import Diff, Difference
from cosyjit.operations.push import Pushed
from cosyjit.operations.status import Status
from cosyjit.operations.verify import Fault
from cosyjit.planning.plan import Planned
from cosyjit.planning.target import Target
from cosyjit.provenance.lineage import Lineage
from cosyjit.publishing.plans import OutdatedPlan
from cosyjit.publishing.publication import Publication
from cosyjit.store.backends import Entry


def outcomes(results: Sequence[Outcome]) -> str:
    """One object, `{"targets": [...]}`; what a target does not have is null."""
    return _indented({"targets": [_outcome_object(each) for each in results]})


def _outcome_object(outcome: Outcome) -> dict[str, Any]:
    record = outcome.record
    return {
        **_target_object(outcome.target),
        "state": outcome.state,
        "reasons": list(outcome.reasons),
        "path": str(outcome.path) if outcome.path else None,
        "sha256": record.sha256 if record else None,
        "bytes": record.size if record else None,
        "figures": dict(record.figures) if record else None,
        "seconds": round(outcome.seconds, 3) if record else None,
        "error": outcome.error,
    }


def plan(planned: Sequence[Planned], obstacles: Sequence[InputError], outdated: Sequence[OutdatedPlan]) -> str:
    """One object, `{"targets": [...], "obstacles": [...], "outdated_plans": [...]}`.

    The second are what an export would refuse, a line each; the third, the TensorRT plans that it would put aside.
    """
    return _indented(
        {
            "targets": [
                {**_target_object(each.target), "state": each.state, "reasons": list(each.reasons)} for each in planned
            ],
            "obstacles": [str(each) for each in obstacles],
            "outdated_plans": [each._asdict() for each in outdated],
        }
    )


def _target_object(target: Target) -> dict[str, Any]:
    return {
        "component": target.component.name,
        "precision": target.precision.name,
        "device": target.device,
        "fingerprint": target.fingerprint.key,
        **({} if target.reading.is_plain else {"reading": str(target.reading)}),
    }


def status(found: Status) -> str:
    """One object: the publication, and what became of each name of it."""
    return _indented(
        {
            "publication": _publication_object(found.publication),
            "manifest": found.manifest,
            "compared_with": found.compared_with,
            "names": [
                {"name": each.name, "file": each.condition, "state": each.state, "reasons": list(each.reasons)}
                for each in found.names
            ],
            "older_plans": [each._asdict() for each in found.older_plans],
        }
    )


def history(publications: Sequence[Publication]) -> str:
    """One object, `{"publications": [...]}`."""
    return _indented({"publications": [_publication_object(each) for each in publications]})


def rollback(made: Publication) -> str:
    """One object, `{"publication": {...}}`: the new one, with the number of that whose artifacts it shows again."""
    return _indented({"publication": _publication_object(made)})


def _publication_object(publication: Publication) -> dict[str, Any]:
    return {"identity": publication.identity, **json.loads(publication.content)}


def diff(found: Diff) -> str:
    """One object: the two publications, and what became of each name; `docs/looking.md` describes it."""
    return _indented(
        {
            "before": _side_object(found.before),
            "after": _side_object(found.after),
            "artifacts": [_difference_object(each) for each in found.artifacts],
        }
    )


def _side_object(side: Publication) -> dict[str, Any]:
    return {"number": side.number, "identity": side.identity, "published": side.published, "source": side.source}


def _difference_object(difference: Difference) -> dict[str, Any]:
    groups = ("tensors", "options", "versions", "figures", "files")
    return {
        "name": difference.name,
        "state": difference.state,
        "before": difference.before.document if difference.before else None,
        "after": difference.after.document if difference.after else None,
        **{group: [each._asdict() for each in getattr(difference, group)] for group in groups},
        "problems": list(difference.problems),
    }


def lineage(trace: Lineage) -> str:
    """The record as it is kept, or what the artifact says of itself if the store has none."""
    return _indented(trace.record.statement if trace.record else trace.embedded)


def faults(found: Sequence[Fault]) -> str:
    """One object, `{"faults": [...]}`."""
    return _indented({"faults": [each._asdict() for each in found]})


def copied(done: Copied) -> str:
    """One object: the files that were copied, those that were there already, and those that were left out."""
    return _indented(
        {
            "copied": [{"name": each.name, "bytes": each.size} for each in done.copied],
            "present": list(done.present),
            "left_out": [each._asdict() for each in done.left_out],
        }
    )


def pushed(done: Pushed) -> str:
    """One object: the publication, where it was pushed to, and what became of each file there."""
    return _indented(
        {
            "publication": _publication_object(done.publication),
            "repository": done.repository,
            "endpoint": done.endpoint,
            "commit": done.commit,
            "uploaded": [{"name": name, "bytes": size} for name, size in done.uploaded.items()],
            "present": list(done.present),
            "removed": list(done.removed),
        }
    )


def garbage(found: Sequence[Entry], *, removed: bool) -> str:
    """One object: the files, their bytes, and whether they are gone."""
    files = [{"name": each.name, "bytes": each.size} for each in found]
    return _indented({"files": files, "bytes": sum(each.size for each in found), "removed": removed})


def notified(source: str, family: str, server: str) -> str:
    """One object: the checkpoint, and the server that knows of it."""
    return _indented({"source": source, "family": family, "server": server})


def synthesized(directory: Path, family: str, size: str, seed: int) -> str:
    """One object: the model directory, and what it was made by."""
    return _indented({"directory": str(directory), "family": family, "size": size, "seed": seed})


def written(paths: Sequence[Path]) -> str:
    """One object, `{"files": [...]}`."""
    return _indented({"files": [str(each) for each in paths]})


def alerts(automations: Sequence[str]) -> str:
    """One object, `{"automations": [...]}`."""
    return _indented({"automations": list(automations)})


_PLURALS: Final = {"source": "sources", "directory": "directories"}


def several(kind: str, documents: Sequence[tuple[str, str]]) -> str:
    """One object, such as `{"sources": [{"source": "…", …}]}`: of each source, its name, and then its own object.

    Args:
        kind: the word for what they are: "source", or "directory".
        documents: the names, and what the functions above give.
    """
    return _indented({_PLURALS[kind]: [{kind: name, **json.loads(document)} for name, document in documents]})


def findings(found: Sequence[Finding]) -> str:
    """One object, `{"well": true, "findings": [...]}`; `docs/looking.md` describes it."""
    wrong = any(each.state == "wrong" for each in found)
    return _indented({"well": not wrong, "findings": [asdict(each) for each in found]})


def _indented(document: Any) -> str:
    return json.dumps(document, indent=2)
