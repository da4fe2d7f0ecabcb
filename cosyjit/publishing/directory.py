"""What a model directory shows: a set of artifacts under the names that the runtime reads, with those before it.

The files are copies of the store's objects, by reference where the file system can, because other exporters write such
names in place. What is damaged here is copied again from the store.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace as changed
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final

from cosyjit.documents import now
from cosyjit.errors import (
    BusyError,
    LaterSchemaError,
    OutputError,
    PublicationError,
    RecordError,
    SelectionError,
    StoreError,
)
from cosyjit.families import FAMILIES
from cosyjit.fs import files, hashing
from cosyjit.fs.identity import Identity
from cosyjit.processes.interrupts import note_changes
from cosyjit.processes.processors import processors
from cosyjit.provenance import record
from cosyjit.provenance.record import check_signed
from cosyjit.publishing import plans, publication
from cosyjit.publishing.condition import Checked, condition_of, condition_of_artifact, is_copy, is_real
from cosyjit.publishing.layout import MANIFEST, Layout, is_ours
from cosyjit.publishing.plans import OlderPlan, OutdatedPlan
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import Condition, Store, object_name

_LOG: Final = logging.getLogger("cosyjit")

_LARGEST: Final = 1 << 20
"""In bytes, what a manifest may take that stands in a directory, and so may be anyone's."""


class PublishedDirectory:
    """A directory, and the store that what it shows was published from.

    The live publication is the one that the directory shows, or showed when it was last whole.

    Attributes:
        path: the directory, absolute.
        store: where the artifacts and the history are kept.
    """

    def __init__(self, path: str | Path, store: Store | None = None) -> None:
        """Take a directory and its store; nothing is read or written.

        Args:
            path: the directory; it need not be there.
            store: the store of this user for None.
        """
        self.path: Final = files.absolute(Path(path))
        self.store: Final = store or Store()
        self._layout: Final = Layout(self.path)

    def __str__(self) -> str:
        return str(self.path)

    # What is there.

    def live(self) -> Publication | None:
        """The live publication; None if nothing was published that the directory or the store knows of."""
        identity = self._layout.live_set()
        found = None
        if identity is None:
            found = _parsed(self.path / MANIFEST)  # in a copy of a directory, whose links have become files
        elif re.fullmatch("[0-9a-f]{64}", identity):
            found = _parsed(self._layout.document(identity), identity) or publication.load(self.store, identity)
        return found or publication.head(self.store, self.path)

    def require_live(self) -> Publication:
        """The live publication.

        Raises:
            PublicationError: nothing was published there that the directory or the store knows of.
        """
        live = self.live()
        if live is not None:
            return live
        if os.path.lexists(self.path / MANIFEST):
            raise PublicationError(
                f"{self.path / MANIFEST}: is damaged, or not cosyjit's, and {self.store} does not know what was "
                "published there; name its store, or download it again"
            )
        raise PublicationError(
            f"{self.path}: nothing is published here from {self.store}; name its store, or export into it"
        )

    def history(self, last: int | None = None) -> list[Publication]:
        """The publications as far back as the store has them, the live one first.

        Args:
            last: how many at most, at least 1; the time that this takes goes with it. All of them for None.

        Raises:
            PublicationError: nothing was published there that the directory or the store knows of.
            SelectionError: `last` is less than 1.
            StoreError: there is no store.
        """
        if last is not None and last < 1:
            raise SelectionError(f"--last {last}: give 1 or more")
        live = self.require_live()
        self.store.check_there()
        return list(islice(publication.chain(self.store, live), None if last is None else min(last, sys.maxsize)))

    def check(self, *, reread: bool = False) -> tuple[Publication, list[Checked]]:
        """Look at each name of the live publication: of a single one, whatever is published meanwhile.

        Args:
            reread: read the files even if they are the ones that were read before.

        Returns:
            The publication, and the conditions of its artifacts and then of the manifest.

        Raises:
            PublicationError: nothing was published there that the directory or the store knows of.
            OutputError: the directory cannot be read.
        """
        try:
            while True:
                live = self.require_live()
                checked = self._checked(live, reread=reread)
                if all(each.condition == "intact" for each in checked) or self.require_live() == live:
                    return live, checked
        except PermissionError as error:
            raise OutputError(
                f"{error.filename}: cannot be read ({error.strerror}); let this user read the whole directory, or run "
                "as one who may"
            ) from None

    def _checked(self, live: Publication, *, reread: bool = False) -> list[Checked]:
        artifacts = [
            Checked(name, condition_of_artifact(self.path, name, each, self.store.digests, reread=reread))
            for name, each in live.artifacts.items()
        ]
        return [*artifacts, Checked(MANIFEST, self._condition_of_manifest(live))]

    def _condition_of_manifest(self, live: Publication) -> Condition:
        manifest = self.path / MANIFEST
        if not manifest.exists():
            return "missing"
        return "intact" if files.content(manifest, len(live.content)) == live.content else "damaged"

    def older_plans(self, live: Publication) -> list[OlderPlan]:
        """The plans in the directory that are older than the artifacts of a publication that it shows."""
        return plans.older(self._layout, live.artifacts)

    def outdated_plans(self, live: Publication | None, artifacts: Mapping[str, str | None]) -> list[OutdatedPlan]:
        """The plans that `publish` would put aside, as far as that can be told now.

        Args:
            live: the live publication.
            artifacts: what would be published: its SHA-256 by its names, None where nobody knows that yet.

        Raises:
            OutputError: a plan cannot be put aside, or the directory cannot be read.
        """
        try:
            if not self.path.is_dir():
                return []
            after = {name: each.sha256 for name, each in self._kept(live).items()}
            return plans.outdated(self._layout, live, {**after, **artifacts}, (), self.store.digests)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read ({error.strerror}); let this user read it") from None

    # Before the work.

    def obstacles(
        self,
        size: int = 0,
        names: Collection[str] = (),
        *,
        replace: bool = False,
        own: Collection[str] = (),
        hint: Callable[[Collection[str]], str | None] = lambda _: None,
    ) -> Iterator[OutputError]:
        """The errors that publishing would end with, as far as that can be told without writing.

        What only a write can tell, such as that the file system is read-only, is not among them.

        Args:
            size: how many bytes will be copied into the directory.
            names: what will be shown, folders with a slash at the end.
            replace: see `publish`.
            own: those that stand there as copies of what was published; see `copies`.
            hint: what else can be done where something stands under some of the names.
        """
        above = next(path for path in (self.path, *self.path.parents) if os.path.lexists(path))
        try:
            if not above.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{above.name} is not a directory")
            yield from self._layout.obstacles(names, hint, replace=replace, own=own)
        except OSError as error:
            yield OutputError(f"{self.path}: cannot be written to ({error.strerror}); publish into another directory")
            return
        try:
            shortage = files.shortage(self.path, size)
        except OSError:  # which will be said when it is made
            shortage = None
        if shortage:
            yield OutputError(f"{self.path}: {shortage}; make room, or publish into another directory")

    def check_kept(self, replaced: Collection[str], *, exporting: bool = False) -> None:
        """See that what the directory will go on showing can be shown out of the store.

        Args:
            replaced: the names that are going to be published anew.
            exporting: whether damaged objects are set aside and those in a bucket renewed; else nothing is changed.

        Raises:
            SignatureError: an artifact does not have the signature that the store requires.
            StoreError: one is whole neither in the store nor in the directory.
        """
        kept = {name: each for name, each in self._kept(self.live()).items() if name not in replaced}
        self._check_signed(kept)
        list(self._lacking(kept, self.store.check_or_set_aside if exporting else self.store.condition))

    def copies(
        self, names: Collection[str], artifacts: Mapping[str, Published], *, live: Publication | None = None
    ) -> frozenset[str]:
        """The names that are not links, but copies of published files and folders: cosyjit's own.

        That is how `cp -rL`, `rsync -L` and a download leave what a directory has shown. Such a folder has exactly the
        files of one that was published there, as far back as the directory and the store know, or that is going to be.

        Args:
            names: those to look at.
            artifacts: what is going to be published, by its names.
            live: the live publication, if the caller knows it.
        """
        real = [name for name in names if is_real(self.path / name)]
        if not real:
            return frozenset()
        lasts = (live or self.live(), publication.head(self.store, self.path))

        def published(name: str) -> Iterator[Published]:
            if name in artifacts:
                yield artifacts[name]
            for last in lasts:
                chain = publication.chain(self.store, last)
                yield from (each.artifacts[name] for each in chain if name in each.artifacts)

        digests = self.store.digests
        return frozenset(
            name for name in real if any(is_copy(self.path / name, each, digests) for each in published(name))
        )

    def is_staged(self, artifact: record.Record) -> bool:
        """Whether all files of an artifact are in the directory already, shown or not."""
        return all(os.path.lexists(self._layout.file(digest)) for digest in artifact.objects)

    def prepare(self) -> None:
        """Make the directory, if it is missing, ready for `stage` and `publish`.

        Raises:
            BusyError: others published there for longer than the store waits for them.
            OutputError: the directory cannot be made or written to.
        """
        with self._layout.writing(shared=True, wait=self.store.wait):
            pass

    def stage(self, artifact: Published, *, link: bool = False) -> None:
        """Copy an artifact to where `publish` will find it, unless it is there already; it is not shown.

        What is damaged there may be shown, with plans beside it; `publish` mends it.

        Args:
            link: see `publish`.

        Raises:
            OutputError: the directory cannot be written to.
            StoreError: an object is missing or damaged, or cannot be linked.
        """
        with self._layout.writing(shared=True, wait=self.store.wait):
            for digest in artifact.objects:
                if condition_of(self._layout.file(digest), digest, self.store.digests) == "damaged":
                    with Path(os.devnull).open("wb") as nowhere:  # to check the object: it must be intact then
                        self.store.fetch(digest, nowhere)
                else:
                    self._stage(digest, link=link)

    def _stage(self, digest: str, *, link: bool) -> None:
        path = self._layout.file(digest)
        there = not path.is_symlink() and condition_of(path, digest, self.store.digests) == "intact"
        if there and (link or not self.store.is_linked(digest, path)):
            return
        files.make_directory(path.parent)
        if path.is_dir() and not path.is_symlink():  # a stranger's, in the place of a file of ours
            files.remove(path)
        if link:
            self.store.link(digest, path)
            return
        with files.replacing(path) as file:
            self.store.fetch(digest, file)
            file.flush()
            before = Identity.written(file.fileno())
        self.store.digests.remember_sha256(path, digest, before, until_restart=True)

    def discard_staged(self) -> None:
        """Remove what was staged and is not shown; if others publish there now, they will."""
        if self.path.is_dir():
            with suppress(BusyError), self._layout.writing(wait=0):
                self._layout.clean()

    # Publishing.

    def publish(
        self, artifacts: Mapping[str, Published], source: str, *, link: bool = False, replace: bool = False
    ) -> Publication:
        """Show artifacts beside those of other names that are shown already: all of them or none.

        If they are shown already, no new publication is made, and what is damaged is mended. What the directory goes on
        showing from another store is copied into this one. The caller has entered the store with `Store.in_use`.

        Where a file changes that runtimes make plans from, the plans that are there are put aside first, under their
        names with a number: runtimes would use them in place of the new file. So are those of a damaged file, before
        it is mended.

        Args:
            artifacts: by the names of the runtime.
            source: what they were made from.
            link: whether files are to be hard links to the store's objects, on whose disk the directory must be then.
            replace: whether what others have put where a folder is to be shown is put aside, and not an error.

        Raises:
            OutputError: the directory cannot be written to; it shows what it did.
            SignatureError: an artifact has no record with a signature that the store requires.
            StoreError: an object is missing or damaged, or cannot be linked; the directory shows what it did.
        """
        with self._layout.writing(wait=self.store.wait):
            live = self.live()
            kept = {name: each for name, each in self._kept(live).items() if name not in artifacts}
            wanted = {**kept, **artifacts}
            self._check_signed(wanted)
            self._copy_into_store(kept)
            after = live
            if after is None or (after.artifacts, after.source) != (wanted, source):
                after = _following(live, source, wanted)
            elif self._is_as_published(after, link=link):
                head = publication.Head(self.path, after.identity, shown=True)
                if publication.read_head(self.store, self.path) != head:
                    # It may be a copy of another directory, or whoever was killed had named what is not shown.
                    self._renew(after, kept.values())
                    publication.save(self.store, after, self.path, shown=True)
                self._layout.clean()
                return after
            return self._switch(live, after, kept.values(), link=link, replace=replace)

    def rollback(self, to: int | None = None) -> Publication:
        """Show an earlier set again, as a new publication. Plans are put aside as in `publish`.

        Args:
            to: the number of the publication whose set it is; the one before the live one for None.

        Raises:
            PublicationError: there is no such publication, or none that is kept.
            SignatureError: an artifact of it has no record with a signature that the store requires.
            StoreError: an object of it is missing or damaged. As after any error, the directory shows what it did.
        """
        self.require_live()  # nothing is made where nothing was published
        self.store.check_there()
        with self.store.in_use(), self._layout.writing(wait=self.store.wait):
            live = self.require_live()
            number = to if to is not None else (live.restores or live.number) - 1
            earlier = publication.numbered(self.store, live, number, self.path)
            self._check_signed(earlier.artifacts)
            still = {name: each for name, each in earlier.artifacts.items() if live.artifacts.get(name) == each}
            self._copy_into_store(still)
            after = _following(live, earlier.source, earlier.artifacts, earlier.restores or earlier.number)
            return self._switch(live, after, earlier.artifacts.values())

    def _switch(
        self,
        live: Publication | None,
        after: Publication,
        unrecorded: Collection[Published],
        *,
        link: bool = False,
        replace: bool = False,
    ) -> Publication:
        """Bring the files of a publication here, and show it in place of the live one.

        Args:
            unrecorded: see `_renew`.
            link, replace: see `publish`.

        Returns:
            It, with what was put aside; where that is something, the live one does not stay the same.
        """
        members = {
            path: digest for name, each in after.artifacts.items() for path, digest in each.members(name).items()
        }
        dropped = live.artifacts.keys() - after.artifacts.keys() if live else set()
        folders = {name for name, each in after.artifacts.items() if each.files is not None}
        own = self.copies(folders | dropped, after.artifacts, live=live)
        self._layout.check_names(members, replace=replace, own=own)
        gone = {name for name in dropped if is_ours(self.path / name) or name in own}
        wanted = {name: each.sha256 for name, each in after.artifacts.items()}
        outdated = partial(plans.outdated, self._layout, live, wanted, gone, self.store.digests)
        # A file that is shown and damaged is mended where it is: it stands beside its plans as soon as it is staged.
        mended = [each for each in outdated() if plans.is_mended(self._layout, each.file, live, after)]
        note_changes("what is published is a whole set, the earlier or the new one; `cosyjit status` says which")
        self._layout.put_aside(plans.names(mended))
        plans.tell(self._layout, mended)
        with ThreadPoolExecutor(processors()) as pool:  # one copies while another waits for the disk
            list(pool.map(lambda digest: self._stage(digest, link=link), set(members.values())))
        self._renew(after, unrecorded)
        others = outdated()
        if mended or others:
            after = _following(live, after.source, after.artifacts) if after is live else after
            after = changed(after, aside=plans.names([*mended, *others]))
        # The store has to know of it before anyone sees it, or its objects could be collected.
        kept = publication.save(self.store, after, self.path, shown=False)
        self._layout.switch(after.identity, after.content, members, replace=replace, own=own, aside=plans.names(others))
        kept = kept and publication.save(self.store, after, self.path, shown=True)
        plans.tell(self._layout, others)
        if not kept:
            _LOG.warning(
                "%s: is read-only, so its history has not this publication; %s itself has", self.store, self.path
            )
        return after

    def _renew(self, after: Publication, unrecorded: Collection[Published]) -> None:
        """Keep what a publication names from being collected by another machine before that can see it.

        Args:
            unrecorded: artifacts of which the store may have no record: those from another store never had one here.

        Raises:
            StoreError: something else is missing.
        """

        def renew(artifact: Published) -> None:
            made = record.name_of(artifact.fingerprint)
            missing = [name for name in (*map(object_name, artifact.objects), made) if not self.store.renew(name)]
            for name in missing:
                if name != made or artifact not in unrecorded:
                    raise StoreError(f"{self.store}/{name}: is missing; export its checkpoint again to build it anew")

        with ThreadPoolExecutor(processors()) as pool:  # one asks while another waits for the answer
            list(pool.map(renew, after.artifacts.values()))

    def _is_as_published(self, live: Publication, *, link: bool) -> bool:
        """Whether the live publication is whole, a set, and not linked into the store unless that is asked for."""
        objects = [digest for each in live.artifacts.values() for digest in each.objects]
        linked = any(self.store.is_linked(digest, self._layout.file(digest)) for digest in objects)
        whole = all(each.condition == "intact" for each in self._checked(live))
        return whole and self._layout.live_set() == live.identity and (link or not linked)

    def _kept(self, live: Publication | None) -> dict[str, Published]:
        """What was published here and is to be shown further.

        What someone has taken away, or with it the whole directory, is not wanted back; nor is what he has put another
        file or folder in place of, which may be another model's.
        """
        artifacts = live.artifacts if live else {}
        return {
            name: each
            for name, each in artifacts.items()
            if is_ours(self.path / name) or is_copy(self.path / name, each, self.store.digests)
        }

    def _copy_into_store(self, artifacts: Mapping[str, Published]) -> None:
        """Let the store have what the directory goes on showing, where it was published from another store.

        Raises:
            StoreError: an object is whole neither in the store nor here, or the store cannot be written to.
        """
        for path, digest in self._lacking(artifacts, self.store.check_or_set_aside):
            if not self.store.read_only:
                _add_copy(self.store, path, digest)

    def _lacking(
        self, artifacts: Mapping[str, Published], check: Callable[[str], Condition]
    ) -> Iterator[tuple[Path, str]]:
        """The objects of artifacts that the store does not have: where they are whole here, and their digests.

        Raises:
            StoreError: an object is whole neither in the store nor here.
        """
        for name, artifact in artifacts.items():
            for member, digest in artifact.members(name).items():
                if check(digest) == "intact":
                    continue
                for path in (self._layout.file(digest), self.path / member):
                    if condition_of(path, digest, self.store.digests) == "intact":
                        yield path, digest
                        break
                else:
                    raise StoreError(
                        f"{self.path / member}: is not as it was published, and {self.store} has no object {digest}; "
                        f"export it again with this store{_options(name)}, or remove {self.path / name}"
                    )

    def _check_signed(self, artifacts: Mapping[str, Published]) -> None:
        for name, each in artifacts.items():
            check_signed(self.store, name, each.sha256, each.size, each.fingerprint)


def history(directory: str | Path, *, store: Store | None = None, last: int | None = None) -> list[Publication]:
    """The publications of a directory; see `PublishedDirectory.history`.

    Args:
        directory: where they were published.
        store: the one that they were published from; that of this user for None.
    """
    return PublishedDirectory(directory, store).history(last)


def rollback(directory: str | Path, to: int | None = None, *, store: Store | None = None) -> Publication:
    """Show an earlier set of a directory again; see `PublishedDirectory.rollback`.

    Args:
        directory: where it was published.
        store: the one that it was published from; that of this user for None.
    """
    return PublishedDirectory(directory, store).rollback(to)


def _parsed(path: Path, identity: str | None = None) -> Publication | None:
    """The publication in a document; None if there is none, or another one than is looked for."""
    content = files.content(path, _LARGEST)
    if content is None or identity not in (None, sha256(content).hexdigest()):
        return None
    try:
        return publication.parse(content, str(path))
    except LaterSchemaError:
        raise
    except RecordError:
        return None  # a stranger's, who may have named it for its digest


def _following(
    live: Publication | None, source: str, artifacts: Mapping[str, Published], restores: int | None = None
) -> Publication:
    return Publication(
        number=live.number + 1 if live else 1,
        published=now(),
        source=source,
        artifacts=dict(artifacts),
        previous=live.identity if live else None,
        restores=restores,
    )


def _add_copy(store: Store, path: Path, digest: str) -> None:
    """Copy a file into a store, where it is checked before it is an object."""
    try:
        with store.staging() as work:
            with (work / digest).open("wb+") as file:
                files.copy(path, file)
                file.seek(0)
                changed = hashing.sha256_of(file) != digest
            if changed:
                raise StoreError(f"{path}: was changed while it was copied into {store}; run again")
            store.add(work / digest, digest)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be copied into {store} ({error.strerror}); make room there, or name another store"
        ) from None


def _options(name: str) -> str:
    """How the component that is published under a name is named to an export; nothing for a name that none has."""
    parts = [part for family in FAMILIES for part in family.components]
    for made, precision in ((part, each) for part in parts for each in part.tolerances):
        if made.file_name(precision) == name:
            return f", --component {made.name}" + (f" --precision {precision}" if made.published is None else "")
    return ""
