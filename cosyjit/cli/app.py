"""The command line: parse, call, print."""

import logging
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from cosyjit import __version__, pipeline, settings
from cosyjit.cli.console import Told, show, show_json, stages, tell
from cosyjit.errors import BuildError, CosyjitError, ResourceError, ServerError
from cosyjit.fs.files import absolute
from cosyjit.operations import copy_store as copying
from cosyjit.operations import gc as collection
from cosyjit.operations import status as inspection
from cosyjit.operations import verify as audit
from cosyjit.planning import plan as planning
from cosyjit.processes.interrupts import deferred
from cosyjit.processes.worker import ignore_missing_numpy, leave_lost_directory
from cosyjit.provenance import lineage as tracing
from cosyjit.publishing import publication
from cosyjit.publishing import publish as publishing
from cosyjit.reports import as_json, tables
from cosyjit.sources.checkpoint import open_checkpoint
from cosyjit.sources.source import open_source
from cosyjit.store.store import Store
from cosyjit.text import one_line

FAILED = 1
"""The exit status when a target could not be built, or the system did not give what that takes."""

BAD_INPUT = 2
"""The exit status when what was given cannot be exported as it is."""

app = App(
    name="cosyjit",
    help="TorchScript artifacts of CosyVoice's encoders.",
    version=__version__,
)


_Store = Annotated[str | None, Parameter(name="--store", env_var=settings.STORE)]
_Sign = Annotated[Path | None, Parameter(name="--sign", env_var=settings.SIGN)]
_Required = Annotated[Path | None, Parameter(name="--require-signature", env_var=settings.REQUIRE_SIGNATURE)]
_Wait = Annotated[float | None, Parameter(name="--wait", env_var=settings.WAIT)]
_Json = Annotated[bool, Parameter(name="--json", negative="")]
_Names = Annotated[list[str] | None, Parameter(negative="")]
_Source = Annotated[str, Parameter(name=["--source", "--model-dir", "--model_dir"])]


@app.command
def export(
    source: _Source,
    *,
    component: _Names = None,
    precision: _Names = None,
    publish: Path | None = None,
    store: _Store = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    link: Annotated[bool, Parameter(negative="")] = False,
    replace: Annotated[bool, Parameter(negative="")] = False,
    sign: _Sign = None,
    require_signature: _Required = None,
    wait: _Wait = None,
    json: _Json = False,
) -> int:
    """Build what has changed of a model directory, and publish it.

    Exits with 0 if all is well, 1 if a target failed, 2 if the input cannot be exported.

    Parameters
    ----------
    source
        A model directory, cosyvoice.yaml, cosyvoice2.yaml or cosyvoice3.yaml with its weights files; or a ModelScope
        id, such as iic/CosyVoice-300M or iic/CosyVoice-300M@v1.0.
    component
        What to export, such as llm.text_encoder; may be repeated. By default all but those made on request alone.
    precision
        fp32, fp16, bf16 or, of llm.llm, int8; may be repeated. fp32 and fp16 by default, and of llm.vllm bf16.
    publish
        Where to put the zips. Beside the checkpoint by default.
    store
        Where artifacts are kept: a directory or an fsspec URL. ~/.cache/cosyjit by default.
    force
        Build even what has not changed.
    link
        Publish hard links to the store's files, not copies: for directories that nobody else writes to.
    replace
        Put a folder that others have written where vllm/ is to be published aside, and publish there.
    sign
        Sign the records of what is built with the private key in this file, of ed25519 in PEM.
    require_signature
        Use and publish only what one of the public keys in this file has signed.
    wait
        How long other processes that use the store or the directory are waited for at most, in seconds. As long as it
        takes by default; what is waited for is said after two seconds.
    json
        Print one JSON object and nothing else.
    """
    with stages() as progress:
        outcomes = pipeline.export(
            source,
            components=component,
            precisions=precision,
            directory=publish,
            store=Store(store, sign=sign, require=require_signature, wait=wait),
            force=force,
            link=link,
            replace_others=replace,
            memory=settings.memory(),
            progress=progress,
        )
    if json:
        show_json(as_json.outcomes(outcomes))
    else:
        show(tables.outcomes_table(outcomes), *tables.closing_lines(outcomes))
    return FAILED if any(outcome.state == "failed" for outcome in outcomes) else 0


@app.command
def plan(
    source: _Source,
    *,
    component: _Names = None,
    precision: _Names = None,
    publish: Path | None = None,
    store: _Store = None,
    sign: _Sign = None,
    require_signature: _Required = None,
    json: _Json = False,
) -> int:
    """Show what an export would build, and why, and what of the directory it would refuse.

    Nothing is built or published; of an id, what is not at hand is downloaded.

    Parameters
    ----------
    source, component, precision, publish, store, sign, require_signature, json
        As for export.
    """
    kept = Store(store, sign=sign, require=require_signature)
    planned = planning.plan(source, component, precision, store=kept)
    obstacles = pipeline.obstacles(planned, publish, store=kept)
    if json:
        show_json(as_json.plan(planned, obstacles))
    else:
        show(tables.plan_table(planned), *tables.obstacle_lines(obstacles))
    return 0


@app.command
def status(
    directory: Path,
    *,
    check_source: Annotated[bool, Parameter(negative="")] = False,
    store: _Store = None,
    json: _Json = False,
) -> int:
    """Show what a directory has published, from what, and whether that is current and undamaged.

    Exits with 0 if it is, 1 if something is damaged, missing, out of date or unknown.

    Parameters
    ----------
    directory
        Where it is published, by the path that it was exported to.
    check_source
        Ask the hub what an id that was exported into the directory is now; otherwise nobody is asked, and it is
        compared with as it was when it was last planned or exported here.
    store, json
        As for export.
    """
    found = inspection.status(absolute(directory), Store(store), check_source=check_source)
    if json:
        show_json(as_json.status(found))
    else:
        show(tables.status_table(found), *tables.status_lines(found, checked=check_source))
    return 0 if found.well else FAILED


@app.command
def history(directory: Path, *, last: int | None = None, store: _Store = None, json: _Json = False) -> int:
    """List the publications of a directory, the latest first.

    Parameters
    ----------
    directory
        Where they were published.
    last
        How many at most. All of them by default.
    store, json
        As for export.
    """
    kept = Store(store)
    found = publishing.history(kept, absolute(directory), last)
    if json:
        show_json(as_json.history(found))
    else:
        show(tables.history_table(found, publication.before(kept, found[-1])))
    return 0


@app.command
def rollback(
    directory: Path,
    *,
    to: int | None = None,
    store: _Store = None,
    require_signature: _Required = None,
    wait: _Wait = None,
) -> int:
    """Publish an earlier set again, from the store: nothing is built.

    Parameters
    ----------
    directory
        Where it was published.
    to
        The number of the publication, from history. The one before the current by default.
    store, require_signature, wait
        As for export.
    """
    after = publishing.rollback(Store(store, require=require_signature, wait=wait), absolute(directory), to)
    show(f"Publication {after.number}, with the artifacts of publication {after.restores}")
    return 0


@app.command
def verify(
    place: str | None = None, *, store: _Store = None, require_signature: _Required = None, json: _Json = False
) -> int:
    """Read a directory's published files, or all of a store, again, and check their digests and signatures.

    Exits with 0 if nothing is wrong, 1 after a list of what is.

    Parameters
    ----------
    place
        A directory that shows a publication, or a store; the store by default.
    store, json
        As for export.
    require_signature
        What none of the public keys in this file has signed is wrong.
    """
    kept = Store(store, require=require_signature)
    if place is None:
        faults = audit.audit_store(kept)
    elif audit.is_store(place):
        faults = audit.audit_store(Store(place, require=require_signature))
    else:
        faults = audit.audit_directory(kept, absolute(Path(place)))
    if json:
        show_json(as_json.faults(faults))
    else:
        show(*[f"{fault.name}: {fault.problem}" for fault in faults] or ["Nothing is wrong"])
    return FAILED if faults else 0


@app.command
def gc(
    *,
    keep: int = collection.KEEP,
    older_than: timedelta = timedelta(seconds=collection.OLDER_THAN),
    delete: Annotated[bool, Parameter(negative="")] = False,
    store: _Store = None,
    wait: _Wait = None,
    json: _Json = False,
) -> int:
    """Show what in the store no publication in reach refers to; with --delete, remove it.

    The largest files are named; all are with --json.

    Parameters
    ----------
    keep
        How many publications of each directory stay in reach.
    older_than
        What is younger stays as well: 7d, 12h, 30m, 0s.
    delete
        Remove what is found.
    store, wait, json
        As for export.
    """
    found = collection.collect(Store(store, wait=wait), keep=keep, older_than=older_than.total_seconds(), remove=delete)
    if json:
        show_json(as_json.garbage(found, removed=delete))
    else:
        show(tables.garbage_table(found), *tables.garbage_files(found), tables.garbage_summary(found, removed=delete))
    return 0


@app.command
def copy_store(source: str, to: str, *, wait: _Wait = None, json: _Json = False) -> int:
    """Copy a store to another place, such as a bucket or back, with all that was published from it.

    Exits with 0 if all of it is there then, 1 after a list of what was left out, such as what is damaged. What is there
    already stays, so that it can be run again.

    Parameters
    ----------
    source
        The store to copy: a directory or an fsspec URL.
    to
        The store to copy it to. It is used in place of the first with --store, or COSYJIT_STORE.
    wait
        As for export.
    json
        Print one JSON object and nothing else.
    """
    done = copying.copy_store(Store(source, wait=wait), Store(to, wait=wait))
    if json:
        show_json(as_json.copied(done))
    else:
        show(*tables.copied_lines(done))
    return FAILED if done.left_out else 0


@app.command
def lineage(artifact: str, *, store: _Store = None, require_signature: _Required = None, json: _Json = False) -> int:
    """Show what an artifact was made from.

    Exits with 1 if a file has other bytes than the record of its fingerprint names.

    Parameters
    ----------
    artifact
        The path of a zip or of a folder, its SHA-256, or a fingerprint.
    store, require_signature
        As for export.
    json
        Print the record as it is kept: an in-toto statement.
    """
    found = tracing.trace(Store(store, require=require_signature), artifact)
    if json:
        show_json(as_json.lineage(found))
    else:
        show(tables.lineage_tree(found))
    return FAILED if found.record and not found.same_bytes else 0


@app.command
def notify(source: _Source, *, server: Annotated[str | None, Parameter(env_var=settings.SERVER)] = None) -> int:
    """Tell a Prefect server that a checkpoint was updated: deployments that wait for that export it.

    Parameters
    ----------
    source
        As for export.
    server
        The URL of the server's API, such as http://127.0.0.1:4200/api.
    """
    from cosyjit.prefect_api import Server  # an HTTP client, which nothing else here needs

    if not server:
        raise ServerError(f"no Prefect server is named; set {settings.SERVER} or give --server")
    opened = open_checkpoint(open_source(source))
    told = Server(server, *settings.credentials())
    told.notify(opened.source.name, opened.family.name)
    show(f"{told.shown} knows that {opened.source.name} was updated")
    return 0


@app.command
def synth(
    directory: Path,
    *,
    family: str = "cosyvoice",
    size: str = "tiny",
    seed: int = 0,
    force: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write a complete model directory with random weights, for trying things out.

    Parameters
    ----------
    directory
        Where to write it: a new or an empty directory.
    family
        cosyvoice, cosyvoice2 or cosyvoice3.
    size
        tiny, or full for the published sizes.
    seed
        Other seeds give other weights.
    force
        Write into a directory that is not empty, and replace the files of the same names there.
    """
    path = absolute(directory)
    leave_lost_directory()
    ignore_missing_numpy()
    with deferred():
        from cosyjit.synth.synth import synth as write

    show(str(write(path, family, size, seed, force=force)))
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; each error that is the input's becomes one line on standard error."""
    logger = logging.getLogger("cosyjit")
    logger.handlers = [Told()]
    logger.setLevel(logging.INFO)
    try:
        status: Any = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CosyjitError, CycloptsError, OverflowError) as error:  # the last of numbers that are too large
        tell(one_line(str(error)))
        status = FAILED if isinstance(error, BuildError | ResourceError) else BAD_INPUT
    sys.exit(status)
