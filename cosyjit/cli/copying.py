"""The commands that bring what there is to another place: a store, or the repository of a hub."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cosyjit.cli.answers import FAILED
from cosyjit.cli.console import show, show_json
from cosyjit.cli.options import JsonOption, RequireSignatureOption, StoreOption, WaitOption
from cosyjit.operations import copy_store as copying
from cosyjit.operations import push as pushing
from cosyjit.reports import as_json, tables
from cosyjit.store.store import Store


def copy_store(source: str, to: str, *, wait: WaitOption = None, json: JsonOption = False) -> int:
    """Copy a store to another place, such as a bucket, with all that was published from it.

    The exit status is 0 if everything was copied; otherwise the files that were left out, such as damaged ones, are
    listed, and it is 1. Files that the other store already has are not copied again.

    Parameters
    ----------
    source
        The store to copy: a directory or an fsspec URL.
    to
        The store to copy it to. To use it afterwards, name it with --store or COSYJIT_STORE.
    wait
        As for export.
    json
        Print one JSON object and nothing else.
    """
    copied = copying.copy_store(Store(source, wait=wait), Store(to, wait=wait))
    if json:
        show_json(as_json.copied(copied))
    else:
        show(*tables.copied_lines(copied), errors=tables.fault_lines(copied.left_out))
    return FAILED if copied.left_out else 0


def push(
    directory: Path,
    *,
    to: str,
    replace: Annotated[bool, Parameter(negative="")] = False,
    store: StoreOption = None,
    require_signature: RequireSignatureOption = None,
    json: JsonOption = False,
) -> int:
    """Push what a directory shows, with cosyjit.json and the records of its artifacts, to a repository of a hub.

    Only what is not there yet is uploaded, and all of it becomes visible by one commit. A push that was cut goes on
    where it was. What was pushed there before and is not shown any more is removed; the files of others stay.

    Parameters
    ----------
    directory
        The directory of the publication.
    to
        A ModelScope id, such as owner/name or owner/name@branch, or a Hugging Face id, such as hf:owner/name. The
        repository and the branch have to exist.
    replace
        Replace files of others that have the names of published ones, and remove those that are in their way.
    store, json
        As for export.
    require_signature
        Push only artifacts that one of the public keys in this file has signed.
    """
    opened = Store(store, require=require_signature)
    done = pushing.push(directory, to, store=opened, replace=replace)
    if json:
        show_json(as_json.pushed(done))
    else:
        show(*tables.pushed_lines(done))
    return 0
