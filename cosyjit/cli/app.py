"""The command line: parse, call, print."""

import logging
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import App, CycloptsError, Parameter, Token, convert

from cosyjit import __version__, pipeline, settings
from cosyjit.building import preflight
from cosyjit.cli import copying, flags, looking, service
from cosyjit.cli.answers import FAILED, TO_BUILD, Answer, error_document, exit_status, show_answers
from cosyjit.cli.configuration_file import ConfigurationFile
from cosyjit.cli.console import ConsoleHandler, show, show_json, show_script, stages, tell
from cosyjit.cli.options import (
    Integer,
    JsonOption,
    NamesOption,
    PublishOption,
    RequireSignatureOption,
    SignOption,
    SourceArgument,
    SourcesArgument,
    StoreOption,
    WaitOption,
)
from cosyjit.errors import CosyjitError, InputError, OutputError, SelectionError, ServerError, log_cause
from cosyjit.fs.files import absolute
from cosyjit.operations import gc as collection
from cosyjit.operations import status as inspection
from cosyjit.operations.verify import is_store, verify_directory, verify_store
from cosyjit.planning import plan as planning
from cosyjit.planning.plan import Planned
from cosyjit.processes.interrupts import deferred, note_changes
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
    help="Runtime artifacts of CosyVoice checkpoints.",
    version=__version__,
    version_flags=["--version", "-V"],
)


@app.command
def export(
    source: SourcesArgument,
    *,
    component: NamesOption = None,
    precision: NamesOption = None,
    publish: PublishOption = None,
    store: StoreOption = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    build: Annotated[bool, Parameter(name="--build", negative="--no-build")] = True,
    link: Annotated[bool, Parameter(negative="")] = False,
    replace: Annotated[bool, Parameter(negative="")] = False,
    sign: SignOption = None,
    require_signature: RequireSignatureOption = None,
    wait: WaitOption = None,
    json: JsonOption = False,
) -> int:
    """Build what has changed in a model directory, or in several, and publish it.

    The exit status is 0 if all is well, 1 if a target failed, 2 if the input cannot be exported; of several model
    directories, the largest.

    Parameters
    ----------
    source
        A model directory, cosyvoice.yaml, cosyvoice2.yaml or cosyvoice3.yaml with its weights files; or an id on
        ModelScope, such as iic/CosyVoice-300M or iic/CosyVoice-300M@v1.0, or on Hugging Face, such as
        hf:FunAudioLLM/CosyVoice2-0.5B. May be repeated: an error of one does not stop the others.
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
            (
                tables.outcomes_table(outcomes),
                *tables.reason_lines(outcomes),
                *tables.closing_lines(outcomes),
            ),
            FAILED if any(outcome.state == "failed" for outcome in outcomes) else 0,
            tables.failed_lines(outcomes),
        )

    return show_answers("source", source, answer, json=json)


@app.command
def plan(
    source: SourcesArgument,
    *,
    component: NamesOption = None,
    precision: NamesOption = None,
    publish: PublishOption = None,
    store: StoreOption = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    replace: Annotated[bool, Parameter(negative="")] = False,
    sign: SignOption = None,
    require_signature: RequireSignatureOption = None,
    exit_code: Annotated[bool, Parameter(negative="")] = False,
    json: JsonOption = False,
) -> int:
    """Show what an export would build, and why, and what in the directory it would refuse to replace, or put aside.

    Nothing is built or published. Files of a hub's model that are not on this machine yet are downloaded.

    Parameters
    ----------
    source, component, precision, publish, store, force, replace, sign, require_signature, json
        As for export.
    exit_code
        Let the exit status be 0 if nothing is to be built, 2 if something is, and 1 if there is an error, in the input
        as well, or if an export would be refused.
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
            (
                tables.plan_table(planned),
                *tables.reason_lines(planned),
                *tables.obstacle_lines(obstacles),
                *tables.outdated_lines(outdated),
                tables.plan_count(planned),
            ),
            _status_of_plan(planned, obstacles) if exit_code else 0,
            tables.obstacle_lines(obstacles),
        )

    return show_answers("source", source, answer, json=json, detailed=exit_code)


def _status_of_plan(planned: Sequence[Planned], obstacles: Sequence[InputError]) -> int:
    if obstacles:
        return FAILED
    return TO_BUILD if any(each.record is None for each in planned) else 0


@app.command
def status(
    directory: Annotated[list[str], Parameter(negative="")],
    *,
    check_source: Annotated[bool, Parameter(negative="")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """Show what is published in a directory, or in several, what it was made from, and whether it is as it should be.

    The exit status is 0 if it is current and undamaged, and 1 if something is damaged, missing, out of date or unknown.

    Parameters
    ----------
    directory
        The directory, by the path that was given to the export; may be repeated.
    check_source
        Ask the hub for the current state of an id. Otherwise the directory is compared with the state that the last
        plan or export on this machine has seen.
    store, json
        As for export.
    """
    opened = Store(store)
    pipeline.check_sources(directory)

    def answer(name: str) -> Answer:
        state = inspection.status(name, store=opened, check_source=check_source)
        return Answer(
            as_json.status(state),
            (
                tables.status_table(state),
                *tables.reason_lines(state.names),
                *tables.status_lines(state, checked=check_source),
            ),
            0 if state.well else FAILED,
        )

    return show_answers("directory", directory, answer, json=json)


@app.command
def history(
    directory: Path, *, last: Integer | None = None, store: StoreOption = None, json: JsonOption = False
) -> int:
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
        earlier = publication.before(opened, publications[-1])
        show(tables.history_table(publications, earlier), *tables.history_lines(publications, earlier))
    return 0


app.command(looking.diff)


@app.command
def rollback(
    directory: Path,
    *,
    to: Integer | None = None,
    store: StoreOption = None,
    require_signature: RequireSignatureOption = None,
    wait: WaitOption = None,
    json: JsonOption = False,
) -> int:
    """Publish an earlier set again, from the store. Nothing is built.

    Parameters
    ----------
    directory
        The directory of the publication.
    to
        The number of the publication, from history. The one before the current by default.
    store, require_signature, wait, json
        As for export.
    """
    made = publishing.rollback(directory, to, store=Store(store, require=require_signature, wait=wait))
    if json:
        show_json(as_json.rollback(made))
    else:
        show(f"Publication {made.number}, with the artifacts of publication {made.restores}")
    return 0


@app.command
def verify(
    place: str | None = None,
    *,
    deep: Annotated[bool, Parameter(negative="")] = False,
    store: StoreOption = None,
    require_signature: RequireSignatureOption = None,
    json: JsonOption = False,
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
        faults = verify_directory(place, store=opened, deep=deep, memory=settings.memory() if deep else None)
    if json:
        show_json(as_json.faults(faults))
    else:
        lines = tables.fault_lines(faults)
        show(*lines or ["Nothing is wrong"], errors=lines)
    return FAILED if faults else 0


def _age(kind: type[timedelta], tokens: Sequence[Token]) -> timedelta:
    """The age that a text such as 7d names."""
    given = tokens[0].value
    if re.fullmatch(r"\d+([.]\d+)?", given):
        raise SelectionError(f"--older-than {given}: has no unit; give one, such as {given}d or {given}h")
    try:
        age: timedelta = convert(kind, tokens)
    except (CycloptsError, ValueError, OverflowError):
        raise SelectionError(f"--older-than {given}: is not an age; give one, such as 7d or 12h") from None
    if age < timedelta(0):
        raise SelectionError(f"--older-than {given}: keep files for 0s or longer")
    return age


@app.command
def gc(
    *,
    keep: Integer = collection.KEEP,
    older_than: Annotated[timedelta, Parameter(converter=_age)] = timedelta(seconds=collection.OLDER_THAN),
    delete: Annotated[bool, Parameter(negative="")] = False,
    store: StoreOption = None,
    wait: WaitOption = None,
    json: JsonOption = False,
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
            *([tables.garbage_table(garbage)] if garbage else []),
            *tables.garbage_files(garbage),
            tables.garbage_summary(garbage, removed=delete),
        )
    return 0


app.command(copying.copy_store)
app.command(copying.push)


@app.command
def lineage(
    artifact: str,
    *,
    store: StoreOption = None,
    require_signature: RequireSignatureOption = None,
    json: JsonOption = False,
) -> int:
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
        show(*tables.lineage_lines(traced))
    return FAILED if traced.record and not traced.same_bytes else 0


@app.command
def notify(
    source: SourceArgument,
    *,
    server: Annotated[str | None, Parameter(env_var=settings.SERVER)] = None,
    json: JsonOption = False,
) -> int:
    """Tell a Prefect server that a checkpoint was updated. Deployments that wait for this event export it.

    Parameters
    ----------
    source
        As for export.
    server
        The URL of the server's API, such as http://127.0.0.1:4200/api.
    json
        Print one JSON object and nothing else.
    """
    from cosyjit.prefect_api import Server  # an HTTP client, which nothing else here needs

    if not server:
        raise ServerError(f"no Prefect server is named; set {settings.SERVER} or give --server")
    checkpoint = open_checkpoint(open_source(source))
    api = Server(server, *settings.credentials())
    note_changes("the server may know of it; it does no harm to tell it again")
    api.notify(checkpoint.source.name, checkpoint.family.name)
    if json:
        show_json(as_json.notified(checkpoint.source.name, checkpoint.family.name, api.shown))
    else:
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
    seed: Integer = 0,
    force: Annotated[bool, Parameter(negative="")] = False,
    json: JsonOption = False,
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
    json
        Print one JSON object and nothing else.
    """
    path = absolute(directory)
    leave_lost_directory()
    set_environment()
    ignore_missing_numpy()
    with deferred():
        from cosyjit.synth.synth import synth as write

    written = write(path, family, size, seed, force=force)
    if json:
        show_json(as_json.synthesized(written, family, size, seed))
    else:
        show(str(written))
    return 0


@app.command
def completion(shell: Literal["bash", "zsh", "fish"]) -> int:
    """Print a script that lets a shell complete commands and options. docs/command-line.md says how to install it.

    Parameters
    ----------
    shell
        The shell that runs it.
    """
    show_script(app.generate_completion(shell=shell))
    return 0


@app.meta.default
def _with_options(
    *command: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")] = False,
) -> Any:
    """Take the options of all commands, and run a command.

    Parameters
    ----------
    verbose
        Show the traceback of each error and of its causes on standard error. COSYJIT_LOG=debug does the same.
    quiet
        Show only errors, on standard error, and the object of --json.
    """
    if verbose and quiet:
        raise SelectionError("--verbose and --quiet: exclude each other; give one of them")
    if verbose or quiet:
        _LOG.setLevel(logging.DEBUG if verbose else logging.ERROR)
    return app(command, **_CALLED)


def main(arguments: Sequence[str] | None = None, *, is_ending: Callable[[], bool] = lambda: False) -> None:
    """Run the command line, and end the process. Each error in the input becomes one line on standard error.

    Where the process is ending by a signal, errors are not told: they may come of the signal.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    flags.OBJECT.is_printed = False
    _LOG.handlers = [ConsoleHandler()]
    app.config = ConfigurationFile(app, tell)
    _LOG.setLevel(logging.INFO)
    try:
        if settings.debug():
            _LOG.setLevel(logging.DEBUG)
        status: Any = app.meta(arguments, **_CALLED)
    except (CosyjitError, CycloptsError, OverflowError) as error:  # the last of numbers that are too large
        log_cause(error)
        status = flags.status_of_error(arguments, exit_status(error))
        if not is_ending():
            _tell(error, arguments, status)
    sys.exit(status)


def _tell(error: Exception, arguments: Sequence[str], status: int) -> None:
    """Show an error in a line on standard error, and to a program as an object on standard output."""
    if flags.is_json_due(arguments):
        with suppress(OutputError):  # the exit status says it as well
            show_json(error_document(error, status))
    tell(one_line(str(error)))
