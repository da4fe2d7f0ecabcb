"""The command line: parse, call, print."""

import logging
import re
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import App, CycloptsError, Parameter, Token, convert

from cosyjit import __version__, pipeline, preflight, settings
from cosyjit.cli import looking, service
from cosyjit.cli.answers import FAILED, Answer, exit_status, show_answers
from cosyjit.cli.configuration_file import ConfigurationFile
from cosyjit.cli.console import ConsoleHandler, show, show_json, stages, tell
from cosyjit.errors import CosyjitError, SelectionError, ServerError, log_cause
from cosyjit.fs.files import absolute
from cosyjit.operations import copy_store as copying
from cosyjit.operations import gc as collection
from cosyjit.operations import status as inspection
from cosyjit.operations.verify import is_store, verify_directory, verify_store
from cosyjit.planning import plan as planning
from cosyjit.processes.interrupts import deferred
from cosyjit.processes.worker import ignore_missing_numpy, leave_lost_directory, set_environment
from cosyjit.provenance import lineage as tracing
from cosyjit.publishing import directory as publishing
from cosyjit.publishing import publication
from cosyjit.reports import as_json, tables
from cosyjit.sources.checkpoint import open_checkpoint
from cosyjit.sources.source import open_source
from cosyjit.store.store import Store
from cosyjit.text import one_line

_LOG: Final = logging.getLogger("cosyjit")

_CALLED: Final[dict[str, Any]] = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}
"""How cyclopts runs a command: its errors and results are for `main` to handle."""

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
_Sources = Annotated[list[str], Parameter(name=["--source", "--model-dir", "--model_dir"], negative="")]


@app.command
def export(
    source: _Sources,
    *,
    component: _Names = None,
    precision: _Names = None,
    publish: Path | None = None,
    store: _Store = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    build: Annotated[bool, Parameter(name="--build", negative="--no-build")] = True,
    link: Annotated[bool, Parameter(negative="")] = False,
    replace: Annotated[bool, Parameter(negative="")] = False,
    sign: _Sign = None,
    require_signature: _Required = None,
    wait: _Wait = None,
    json: _Json = False,
) -> int:
    """Build what has changed in a model directory, or in several, and publish it.

    The exit status is 0 if all is well, 1 if a target failed, 2 if the input cannot be exported; of several model
    directories, the largest.

    Parameters
    ----------
    source
        A model directory, cosyvoice.yaml, cosyvoice2.yaml or cosyvoice3.yaml with its weights files; or a ModelScope
        id, such as iic/CosyVoice-300M or iic/CosyVoice-300M@v1.0. May be repeated: an error of one does not stop the
        others.
    component
        A component to export, such as llm.text_encoder or flow.decoder.estimator, or a pattern such as 'llm.*'; may be
        repeated. By default those that the runtime reads with load_jit and load_vllm; "all" for those on request as
        well.
    precision
        fp32, fp16, bf16 or, of llm.llm, int8, or a pattern; may be repeated. fp32 and fp16 by default, and of llm.vllm
        and llm.hf bf16; "all" for all, and of llm.vllm and llm.hf for their default.
        flow.decoder.estimator has fp32, its default, autocast_fp16, fp32.dynamic_batch and, except for CosyVoice,
        streaming.fp32 and streaming.autocast_fp16. A component is left out at a precision that it does not have.
    publish
        Where to put the artifacts of one source. Beside the checkpoint by default.
    store
        The store of artifacts: a directory or an fsspec URL. ~/.cache/cosyjit by default.
    force
        Build even what has not changed.
    build
        With --no-build, publish what the store has; if it lacks something, nothing is published, and the exit status
        is 1. No process is started, and torch is not imported.
    link
        Publish hard links to the store's files instead of copies. Use this only if nobody else writes to the directory.
    replace
        If somebody else's folder is in the place of vllm/ or hf_merged/, move it aside and publish there.
    sign
        Sign the records of new artifacts with the private key in this file (ed25519, PEM).
    require_signature
        Use and publish only artifacts that one of the public keys in this file has signed.
    wait
        The longest time to wait for other processes that use the store or the directory, in seconds. As long as it
        takes by default. After two seconds, a line names the process that is waited for.
    json
        Print one JSON object and nothing else; of several sources, one that lists theirs.
    """
    with stages() as progress:
        exported = pipeline.export_each(
            source,
            component,
            precision,
            publish=publish,
            store=Store(store, sign=sign, require=require_signature, wait=wait),
            force=force,
            build=build,
            link=link,
            replace=replace,
            memory=settings.memory(),
            progress=progress,
        )
    results = {str(each.source): each for each in exported}

    def answer(name: str) -> Answer:
        outcomes, error = results[name].outcomes, results[name].error
        if error is not None:
            raise error
        return Answer(
            as_json.outcomes(outcomes),
            (tables.outcomes_table(outcomes), *tables.closing_lines(outcomes)),
            FAILED if any(outcome.state == "failed" for outcome in outcomes) else 0,
        )

    return show_answers("source", source, answer, json=json)


@app.command
def plan(
    source: _Sources,
    *,
    component: _Names = None,
    precision: _Names = None,
    publish: Path | None = None,
    store: _Store = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    replace: Annotated[bool, Parameter(negative="")] = False,
    sign: _Sign = None,
    require_signature: _Required = None,
    json: _Json = False,
) -> int:
    """Show what an export would build, and why, and what in the directory it would refuse to replace, or put aside.

    Nothing is built or published. Files of a ModelScope id that are not on this machine yet are downloaded.

    Parameters
    ----------
    source, component, precision, publish, store, force, replace, sign, require_signature, json
        As for export.
    """
    opened = Store(store, sign=sign, require=require_signature)
    pipeline.check_sources(source, publish)

    def answer(name: str) -> Answer:
        planned = planning.plan(name, component, precision, store=opened, force=force)
        obstacles = preflight.obstacles(planned, publish=publish, store=opened, replace=replace)
        for obstacle in obstacles:
            log_cause(obstacle)
        outdated = preflight.outdated_plans(planned, publish=publish, store=opened)
        return Answer(
            as_json.plan(planned, obstacles, outdated),
            (tables.plan_table(planned), *tables.obstacle_lines(obstacles), *tables.outdated_lines(outdated)),
        )

    return show_answers("source", source, answer, json=json)


@app.command
def status(
    directory: Annotated[list[str], Parameter(negative="")],
    *,
    check_source: Annotated[bool, Parameter(negative="")] = False,
    store: _Store = None,
    json: _Json = False,
) -> int:
    """Show what is published in a directory, or in several, what it was made from, and whether it is as it should be.

    The exit status is 0 if it is current and undamaged, and 1 if something is damaged, missing, out of date or unknown.

    Parameters
    ----------
    directory
        The directory, by the path that was given to the export; may be repeated.
    check_source
        Ask the hub for the current state of a ModelScope id. Otherwise the directory is compared with the state that
        the last plan or export on this machine has seen.
    store, json
        As for export.
    """
    opened = Store(store)
    pipeline.check_sources(directory)

    def answer(name: str) -> Answer:
        state = inspection.status(name, store=opened, check_source=check_source)
        return Answer(
            as_json.status(state),
            (tables.status_table(state), *tables.status_lines(state, checked=check_source)),
            0 if state.well else FAILED,
        )

    return show_answers("directory", directory, answer, json=json)


@app.command
def history(directory: Path, *, last: int | None = None, store: _Store = None, json: _Json = False) -> int:
    """List the publications of a directory, the latest first.

    Parameters
    ----------
    directory
        The directory of the publications.
    last
        The largest number of publications to list. All of them by default.
    store, json
        As for export.
    """
    opened = Store(store)
    publications = publishing.history(directory, store=opened, last=last)
    if json:
        show_json(as_json.history(publications))
    else:
        show(tables.history_table(publications, publication.before(opened, publications[-1])))
    return 0


app.command(looking.diff)


@app.command
def rollback(
    directory: Path,
    *,
    to: int | None = None,
    store: _Store = None,
    require_signature: _Required = None,
    wait: _Wait = None,
) -> int:
    """Publish an earlier set again, from the store. Nothing is built.

    Parameters
    ----------
    directory
        The directory of the publication.
    to
        The number of the publication, from history. The one before the current by default.
    store, require_signature, wait
        As for export.
    """
    made = publishing.rollback(directory, to, store=Store(store, require=require_signature, wait=wait))
    show(f"Publication {made.number}, with the artifacts of publication {made.restores}")
    return 0


@app.command
def verify(
    place: str | None = None,
    *,
    deep: Annotated[bool, Parameter(negative="")] = False,
    store: _Store = None,
    require_signature: _Required = None,
    json: _Json = False,
) -> int:
    """Read the published files of a directory, or a whole store, and check their digests and signatures.

    The exit status is 0 if nothing is wrong; otherwise the faults are listed, and it is 1.

    Parameters
    ----------
    place
        A directory with a publication, or a store. The store of --store by default.
    deep
        Also compare each artifact with its checkpoint again, as thoroughly as when nothing of it had been proven.
        For a directory; the checkpoint has to be at hand.
    store, json
        As for export.
    require_signature
        Report every artifact that none of the public keys in this file has signed.
    """
    opened = Store(store, require=require_signature)
    if deep and (place is None or is_store(place)):
        raise SelectionError("--deep: compares what a directory shows with its checkpoint; name the directory")
    if place is None:
        faults = verify_store(opened)
    elif is_store(place):
        faults = verify_store(Store(place, require=require_signature))
    else:
        faults = verify_directory(place, store=opened, deep=deep)
    if json:
        show_json(as_json.faults(faults))
    else:
        show(*[f"{fault.name}: {fault.problem}" for fault in faults] or ["Nothing is wrong"])
    return FAILED if faults else 0


def _age(kind: type[timedelta], tokens: Sequence[Token]) -> timedelta:
    """The age that a text such as 7d names."""
    given = tokens[0].value
    if re.fullmatch(r"\d+([.]\d+)?", given):
        raise SelectionError(f"--older-than {given}: has no unit; give one, such as {given}d or {given}h")
    age: timedelta = convert(kind, tokens)
    if age < timedelta(0):
        raise SelectionError(f"--older-than {given}: keep files for 0s or longer")
    return age


@app.command
def gc(
    *,
    keep: int = collection.KEEP,
    older_than: Annotated[timedelta, Parameter(converter=_age)] = timedelta(seconds=collection.OLDER_THAN),
    delete: Annotated[bool, Parameter(negative="")] = False,
    store: _Store = None,
    wait: _Wait = None,
    json: _Json = False,
) -> int:
    """Show the files of the store that no recent publication refers to; with --delete, remove them.

    The largest files are named; with --json, all of them.

    Parameters
    ----------
    keep
        How many publications of each directory count as recent.
    older_than
        Keep files that are younger than this, such as 7d, 12h, 30m or 0s.
    delete
        Remove these files.
    store, wait, json
        As for export.
    """
    opened = Store(store, wait=wait)
    garbage = collection.gc(opened, keep=keep, older_than=older_than.total_seconds(), delete=delete)
    if json:
        show_json(as_json.garbage(garbage, removed=delete))
    else:
        show(
            tables.garbage_table(garbage),
            *tables.garbage_files(garbage),
            tables.garbage_summary(garbage, removed=delete),
        )
    return 0


@app.command
def copy_store(source: str, to: str, *, wait: _Wait = None, json: _Json = False) -> int:
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
        show(*tables.copied_lines(copied))
    return FAILED if copied.left_out else 0


@app.command
def lineage(artifact: str, *, store: _Store = None, require_signature: _Required = None, json: _Json = False) -> int:
    """Show what an artifact was made from.

    The exit status is 1 if the bytes of a file differ from those in the record of its fingerprint.

    Parameters
    ----------
    artifact
        The path of a zip, an ONNX file or a folder, its SHA-256, or a fingerprint.
    store, require_signature
        As for export.
    json
        Print the record as it is stored: an in-toto statement.
    """
    traced = tracing.lineage(artifact, store=Store(store, require=require_signature))
    if json:
        show_json(as_json.lineage(traced))
    else:
        show(tables.lineage_tree(traced))
    return FAILED if traced.record and not traced.same_bytes else 0


@app.command
def notify(source: _Source, *, server: Annotated[str | None, Parameter(env_var=settings.SERVER)] = None) -> int:
    """Tell a Prefect server that a checkpoint was updated. Deployments that wait for this event export it.

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
    checkpoint = open_checkpoint(open_source(source))
    api = Server(server, *settings.credentials())
    api.notify(checkpoint.source.name, checkpoint.family.name)
    show(f"{api.shown} knows that {checkpoint.source.name} was updated")
    return 0


app.command(looking.doctor)
app.command(service.serve)
app.command(service.init)
app.command(service.alert)


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
        The directory to write: a new or an empty one.
    family
        cosyvoice, cosyvoice2 or cosyvoice3.
    size
        tiny, small for a language model that vLLM takes on a CPU, or full for the published sizes.
    seed
        The seed of the random weights.
    force
        Write into a directory that is not empty, and replace files of the same names.
    """
    path = absolute(directory)
    leave_lost_directory()
    set_environment()
    ignore_missing_numpy()
    with deferred():
        from cosyjit.synth.synth import synth as write

    show(str(write(path, family, size, seed, force=force)))
    return 0


@app.meta.default
def _with_options(
    *command: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False,
) -> Any:
    """Take the options of all commands, and run a command.

    Parameters
    ----------
    verbose
        Show the traceback of each error and of its causes on standard error. COSYJIT_LOG=debug does the same.
    """
    if verbose:
        _LOG.setLevel(logging.DEBUG)
    return app(command, **_CALLED)


def main(arguments: Sequence[str] | None = None, *, is_ending: Callable[[], bool] = lambda: False) -> None:
    """Run the command line, and end the process. Each error in the input becomes one line on standard error.

    Where the process is ending by a signal, errors are not told: they may come of the signal.
    """
    _LOG.handlers = [ConsoleHandler()]
    app.config = ConfigurationFile(app, tell)
    _LOG.setLevel(logging.INFO)
    try:
        if settings.debug():
            _LOG.setLevel(logging.DEBUG)
        status: Any = app.meta(arguments, **_CALLED)
    except (CosyjitError, CycloptsError, OverflowError) as error:  # the last of numbers that are too large
        log_cause(error)
        if not is_ending():
            tell(one_line(str(error)))
        status = exit_status(error)
    sys.exit(status)
