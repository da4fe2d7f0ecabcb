"""The commands that look and say what they see: what changed, and what a report of a problem should hold."""

from pathlib import Path

from cosyjit.cli import configuration_file
from cosyjit.cli.answers import FAILED
from cosyjit.cli.console import show, show_json
from cosyjit.cli.options import Integer, JsonOption, RequireSignatureOption, StoreOption
from cosyjit.operations import diff as comparing
from cosyjit.reports import as_json, tables
from cosyjit.store.store import Store


def diff(
    directory: Path,
    before: Integer | None = None,
    after: Integer | None = None,
    *,
    store: StoreOption = None,
    require_signature: RequireSignatureOption = None,
    json: JsonOption = False,
) -> int:
    """Show what changed between two publications of a directory, and why.

    Of each artifact that changed: tensors, options, versions, size, errors and the time of a step, before and after.
    The exit status is 0 if all could be compared, whatever changed, and 1 if a record is missing or cannot be used.

    Parameters
    ----------
    directory
        The directory of the publications.
    before
        The number of a publication, from history. The one before the other by default.
    after
        The number of the other publication. The current one by default.
    store
        As for export.
    require_signature
        Use no record that none of the public keys in this file has signed.
    json
        Print one JSON object and nothing else. It names all tensors.
    """
    found = comparing.diff(directory, before, after, store=Store(store, require=require_signature))
    if json:
        show_json(as_json.diff(found))
    else:
        problems = [f"{each.name}: {problem}" for each in found.artifacts for problem in each.problems]
        show(tables.diff_table(found), *tables.diff_lines(found), errors=problems)
    return 0 if found.complete else FAILED


def doctor(*parts: str, store: StoreOption = None, json: JsonOption = False) -> int:
    """Show what a report of a problem should hold: versions, machine, store, servers and settings.

    Nothing is changed, and no password, token or key is shown. It takes some seconds, in which processes import torch
    and Prefect, and the store and servers are asked. The exit status is 0 if nothing is wrong, and 1 otherwise.

    Parameters
    ----------
    parts
        What to look at: versions, system, processors, memory, torch, store, cache, prefect, hubs or settings; several
        may be given. All of them by default.
    store
        As for export.
    json
        Print one JSON object and nothing else.
    """
    from cosyjit.doctor.doctor import doctor as examine  # what no other command needs

    found = examine(parts, store=store, configuration=configuration_file.used())
    wrong = [each for each in found if each.state == "wrong"]
    if json:
        show_json(as_json.findings(found))
    else:
        show(tables.findings_table(found), *tables.findings_lines(found), errors=tables.advice_lines(wrong))
    return FAILED if wrong else 0
