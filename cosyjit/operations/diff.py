"""What changed between two publications of a directory, and why, by the records of their artifacts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from cosyjit.errors import LaterSchemaError, PublicationError, RecordError, SignatureError, log_cause
from cosyjit.provenance import record
from cosyjit.provenance.fingerprint import Change, changes, code_changes, option_changes
from cosyjit.provenance.record import Record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import Store


@dataclass(frozen=True)
class Difference:
    """A name that one of two publications has, or both.

    Attributes:
        name: the file name of the runtime.
        state: "same" if both have the same artifact under it; "added" or "removed" if only one has any.
        before, after: the artifacts; None where there is none.
        count: how many tensors the artifacts were made from, before and after; None where no record tells.
        tensors: those that an artifact was made from; the values have dtype, shape and digest.
        options: the component, class and options of the configuration, precision, device and recipe.
        versions: of cosyjit, torch and Python, and that of the code for this class and its options ("encoder code").
        figures: what was measured, such as bytes, absolute_error, cosine and step_seconds.
        files: of a folder, the digests of its files.
        problems: why something of these cannot be told, such as a record that is missing.
    """

    name: str
    state: Literal["added", "removed", "changed", "same"]
    before: Published | None
    after: Published | None
    count: tuple[int, int] | None = None
    tensors: tuple[Change, ...] = ()
    options: tuple[Change, ...] = ()
    versions: tuple[Change, ...] = ()
    figures: tuple[Change, ...] = ()
    files: tuple[Change, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diff:
    """What changed between two publications.

    Attributes:
        before, after: the publications, which may be one.
        artifacts: all names of both.
    """

    before: Publication
    after: Publication
    artifacts: tuple[Difference, ...]

    @property
    def complete(self) -> bool:
        """Whether all could be compared: no record was missing or refused."""
        return not any(each.problems for each in self.artifacts)


def diff(
    directory: str | Path, before: int | None = None, after: int | None = None, *, store: Store | None = None
) -> Diff:
    """Compare two publications of a directory. Nothing is changed.

    Args:
        directory: where they were published.
        before: the number of the one; that before the other for None.
        after: the number of the other; that of the live one for None. It may be the earlier one, or the same.
        store: the one that they were published from; that of this user for None. If it requires signatures, nothing is
            told of a record that has none.

    Raises:
        PublicationError: nothing was published there with this store, or nothing of such a number is kept.
        StoreError: the store cannot be read.
    """
    published = PublishedDirectory(directory, store)
    store, live = published.store, published.require_live()
    store.check_there()
    second = live if after is None else publication.numbered(store, live, after, published.path)
    first = publication.before(store, second) if before is None else None
    if before is not None:
        first = publication.numbered(store, live, before, published.path)
    if first is None:
        raise PublicationError(
            f"{published.path}: publication {second.number} has none before it that is kept; give the number of another"
        )
    names = sorted({*first.artifacts, *second.artifacts})
    differences = (_difference(store, name, first, second) for name in names)
    return Diff(first, second, tuple(differences))


_OTHER: Final = "its record is of other bytes, which were built again later; its figures are left out"


def _difference(store: Store, name: str, first: Publication, second: Publication) -> Difference:
    before, after = first.artifacts.get(name), second.artifacts.get(name)
    if before is None or after is None:
        return Difference(name, "added" if before is None else "removed", before, after)
    if before == after:
        return Difference(name, "same", before, after)
    found = Difference(
        name,
        "changed",
        before,
        after,
        figures=tuple(changes({"bytes": before.size}, {"bytes": after.size})),
        files=tuple(changes(before.files or {}, after.files or {})),
    )
    was, now = _record(store, before), _record(store, after)
    problems = {first.number: was if isinstance(was, str) else "", second.number: now if isinstance(now, str) else ""}
    if isinstance(was, Record) and isinstance(now, Record):
        own = was.sha256 == before.sha256, now.sha256 == after.sha256
        problems = {each.number: "" if is_own else _OTHER for each, is_own in zip((first, second), own, strict=True)}
        found = _explained(found, was, now, measured=all(own))
    told = tuple(f"publication {number}: {problem}" for number, problem in problems.items() if problem)
    return replace(found, problems=told)


def _record(store: Store, artifact: Published) -> Record | str:
    """The record of an artifact, or why there is none."""
    try:
        return record.load(store, artifact.fingerprint) or "its record is missing; `cosyjit gc` may have removed it"
    except LaterSchemaError as error:
        log_cause(error)
        return "its record is a later version's; upgrade cosyjit"
    except SignatureError as error:
        log_cause(error)
        return "its record has no signature that is required"
    except RecordError as error:
        log_cause(error)
        return "its record is damaged; `cosyjit verify` names it"


def _explained(found: Difference, was: Record, now: Record, *, measured: bool) -> Difference:
    """A difference with all that two records tell of it.

    Args:
        measured: whether the records are those of these very artifacts; if not, only their fingerprints tell of them.
    """
    versions = changes(was.versions, now.versions) if measured else []
    told = {each.name for each in versions}
    return replace(
        found,
        count=(len(was.fingerprint.tensors), len(now.fingerprint.tensors)),
        tensors=tuple(_tensors(was, now)),
        options=(
            *changes({"component": was.component}, {"component": now.component}),
            *option_changes(was.fingerprint, now.fingerprint),
        ),
        versions=(
            *versions,
            *(each for each in code_changes(was.fingerprint, now.fingerprint) if each.name not in told),
        ),
        figures=(*found.figures, *(changes(_figures(was), _figures(now)) if measured else ())),
    )


def _figures(of: Record) -> Mapping[str, float]:
    """What was measured of an artifact; its size stands in the publication."""
    return {name: value for name, value in of.figures.items() if name != "bytes"}


def _tensors(was: Record, now: Record) -> Iterator[Change]:
    for each in changes(was.fingerprint.tensors, now.fingerprint.tensors):
        before, after = (None if digest is None else digest._asdict() for digest in (each.before, each.after))
        yield each._replace(before=before, after=after)
