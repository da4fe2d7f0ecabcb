"""What an export would refuse, and what it would put aside: told of a plan before anything is written."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from cosyjit.building.packages import check_packages
from cosyjit.errors import InputError, OutputError, SignatureError, StoreError
from cosyjit.planning.plan import Planned, check_apart
from cosyjit.planning.target import Target
from cosyjit.provenance.record import Record
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.plans import OutdatedPlan
from cosyjit.publishing.publication import Published
from cosyjit.store.store import Store


def publication_directory(planned: Sequence[Planned], publish: str | Path | None, store: Store) -> PublishedDirectory:
    """Where a plan is published: in the directory given, or the home of the source: for a model directory, itself."""
    return PublishedDirectory(planned[0].target.source.home if publish is None else publish, store)


def obstacles(
    planned: Sequence[Planned],
    *,
    publish: str | Path | None = None,
    store: Store | None = None,
    replace: bool = False,
) -> tuple[InputError, ...]:
    """The errors that `export` would end with for a plan, such as a folder of others in the place of its own.

    Nothing is written, so errors that only a write can cause, such as a read-only directory, are not found.

    Args:
        planned: from `plan`.
        publish, store, replace: see `export`.

    Returns:
        The errors; `export` would raise the first one. None of an empty plan.
    """
    if not planned:
        return ()
    return tuple(obstacles_in(planned, publication_directory(planned, publish, store or Store()), replace=replace))


def outdated_plans(
    planned: Sequence[Planned], *, publish: str | Path | None = None, store: Store | None = None
) -> tuple[OutdatedPlan, ...]:
    """The TensorRT plans that `export` would put aside, since it changes the files that runtimes made them from.

    What is built anew is taken to differ from what is published, unless it has the same fingerprint. Nothing is
    written, and the names under which plans would be kept are those that are free now.

    Args:
        planned: from `plan`.
        publish, store: see `export`.

    Returns:
        The plans; none where `obstacles` has a reason why they cannot be told.
    """
    if not planned:
        return ()
    with suppress(InputError):
        return _outdated_plans(planned, publication_directory(planned, publish, store or Store()))
    return ()


def _outdated_plans(planned: Sequence[Planned], directory: PublishedDirectory) -> tuple[OutdatedPlan, ...]:
    live = directory.live()
    shown = {each.fingerprint: each.sha256 for each in live.artifacts.values()} if live else {}
    artifacts = {
        each.target.file_name: each.record.sha256 if each.record else shown.get(each.target.fingerprint.key)
        for each in planned
    }
    return tuple(directory.outdated_plans(live, artifacts))


def obstacles_in(
    planned: Sequence[Planned], directory: PublishedDirectory, *, replace: bool, exporting: bool = False
) -> Iterator[InputError]:
    """What is in the way of a plan: in the installation, in the store, with signatures, and then in the directory."""
    store = directory.store
    names = [each.target.file_name for each in planned]
    new = [each.target for each in planned if each.record is None]
    reused = {each.target: each.record for each in planned if each.record}
    size = sum(each.weight_bytes for each in new)
    kinds = {each.component.kind: each for each in reversed(new)}
    checks: list[Callable[[], None]] = [
        *(partial(check_packages, each) for each in kinds.values()),
        lambda: _check_writable(new, store),
        lambda: check_signer(new, store),
        lambda: check_apart(store, directory.path),
        lambda: directory.check_kept(names, exporting=exporting),
        lambda: store.check_room(size) if size else None,
    ]
    yield from filter(None, map(_refusal, checks))
    copied = size + sum(each.size for each in reused.values() if not directory.is_staged(each))
    folders = {each.target.file_name for each in planned if each.target.component.is_folder}
    own = directory.copies(folders, {target.file_name: published(target, each) for target, each in reused.items()})
    marked = [f"{name}/" if name in folders else name for name in names]
    yield from directory.obstacles(copied, marked, replace=replace, own=own, hint=partial(_hint, planned))
    try:
        _outdated_plans(planned, directory)
    except OutputError as error:
        yield error
    except StoreError:  # which was said of what the directory shows
        pass


def _refusal(check: Callable[[], None]) -> InputError | None:
    try:
        check()
    except InputError as error:
        return error
    return None


def _hint(planned: Sequence[Planned], taken: Collection[str]) -> str | None:
    """The options of an export that leaves alone all that stands under names of its own; None if there are none."""
    targets = [each.target for each in planned]
    left_out = [each for each in targets if each.file_name in taken]
    if {each.file_name for each in left_out} != set(taken):
        return None  # that of the manifest is among them
    options = {"--component": {each: each.component.name for each in targets}}
    if not any(each.component.published for each in left_out):  # else it is in the way at other precisions as well
        options["--precision"] = {each: each.precision.name for each in targets}
    for option, names in options.items():
        gone = {names[each] for each in left_out}
        others = [f"{option} {name}" for name in dict.fromkeys(names.values()) if name not in gone]
        if others:
            return f"with {' '.join(others)}, which leaves {'it' if len(taken) == 1 else 'all of these'} alone"
    return None


def _check_writable(targets: Sequence[Target], store: Store) -> None:
    if targets and store.read_only:
        names = ", ".join(each.name for each in targets)
        raise StoreError(f"{store}: is read-only, and {names} would be built into it; name another store")


def check_signer(targets: Sequence[Target], store: Store) -> None:
    """Make sure that what is going to be built can be signed, if it has to be."""
    if targets and store.trusted and not store.signer:
        raise SignatureError(
            f"{', '.join(each.name for each in targets)}: would be built, and {store.trusted.path} requires a "
            "signature; export where that key is, with --sign"
        )


def published(target: Target, made: Record) -> Published:
    """The artifact of a target, as a publication names it."""
    return Published(made.sha256, made.size, target.fingerprint.key, made.files)
