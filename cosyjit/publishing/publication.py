"""The sets of artifacts that directories show or showed, as the store keeps them.

A publication is a document named by the SHA-256 of its own content, which names the one before it: a chain, which
nobody can change in the middle. The store's `heads/` have the last of each directory.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import xxhash

from cosyjit import documents
from cosyjit.errors import PublicationError
from cosyjit.fs.hashing import sha256_of_folder
from cosyjit.store.store import FORMS, Store

_FILE: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.(zip|onnx)"
_FOLDER: Final = r"[a-z][a-z_]{0,199}"
_NAME: Final = r"(?s)[^/\0]{1,255}"


class Published(NamedTuple):
    """An artifact in a publication.

    Attributes:
        sha256: the digest of its bytes; of a folder, see `cosyjit.fs.hashing.sha256_of_folder`.
        size: how many bytes there are.
        fingerprint: its key.
        files: of a folder, the digests of its files by their names.
    """

    sha256: str
    size: int
    fingerprint: str
    files: Mapping[str, str] | None = None

    @property
    def objects(self) -> tuple[str, ...]:
        """The digests of its objects in the store."""
        return (self.sha256,) if self.files is None else tuple(self.files.values())

    def members(self, name: str) -> dict[str, str]:
        """The digests of its files, by their paths in a directory that shows it under a name."""
        if self.files is None:
            return {name: self.sha256}
        return {f"{name}/{file}": digest for file, digest in self.files.items()}

    @property
    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        document: dict[str, Any] = {"sha256": self.sha256, "bytes": self.size, "fingerprint": self.fingerprint}
        if self.files is not None:
            document["files"] = dict(sorted(self.files.items()))
        return document


@dataclass(frozen=True)
class Publication:
    """A set of artifacts that a directory shows or showed.

    Attributes:
        number: counted in its directory from 1.
        published: when, as RFC 3339 has it.
        source: the model directory that the last artifacts to come in were made from.
        artifacts: by the file names of the runtime.
        previous: the identity of the publication before it; None for the first.
        restores: the number of an earlier publication which it is the same as, after a rollback.
        aside: plans that were put aside when it was shown, since they were not made from its artifacts: by their names,
            those that they are kept under.
    """

    number: int
    published: str
    source: str
    artifacts: Mapping[str, Published]
    previous: str | None = None
    restores: int | None = None
    aside: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """The document."""
        aside = {"aside": dict(sorted(self.aside.items()))} if self.aside else {}
        artifacts = {name: each.document for name, each in sorted(self.artifacts.items())}
        return documents.dump(
            {
                "schema": documents.SCHEMA,
                "number": self.number,
                "published": self.published,
                "source": self.source,
                "artifacts": artifacts,
                "previous": self.previous,
                "restores": self.restores,
                **aside,
            }
        )

    @property
    def identity(self) -> str:
        """The SHA-256 of the document."""
        return hashlib.sha256(self.content).hexdigest()


def parse(content: bytes, where: str) -> Publication:
    """The publication that a document describes.

    Raises:
        LaterSchemaError: a later version has written it.
        RecordError: it is damaged. The messages begin with `where`.
    """
    document = documents.read(content, where)
    try:
        publication = _publication(document)
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise documents.damaged_error(where, f"{type(error).__name__}: {error}") from None
    if publication.content != content:
        raise documents.damaged_error(where, "not as cosyjit writes it")
    return publication


def _publication(document: Mapping[str, Any]) -> Publication:
    previous, restores = document["previous"], document["restores"]
    return Publication(
        number=documents.count(document["number"]),
        published=documents.text(document["published"]),
        source=documents.text(document["source"]),
        artifacts={name: _published(name, each) for name, each in document["artifacts"].items()},
        previous=None if previous is None else documents.digest(previous, 64),
        restores=None if restores is None else documents.count(restores),
        aside={
            documents.text(name, _NAME): documents.text(to, _NAME) for name, to in document.get("aside", {}).items()
        },
    )


def _published(name: str, document: Mapping[str, Any]) -> Published:
    sha256, fingerprint = documents.digest(document["sha256"], 64), documents.digest(document["fingerprint"], 32)
    documents.text(name, _FOLDER if "files" in document else _FILE)
    if "files" not in document:
        return Published(sha256, documents.count(document["bytes"]), fingerprint)
    files = {
        documents.text(each, documents.MEMBER): documents.digest(found, 64) for each, found in document["files"].items()
    }
    if sha256_of_folder(files) != sha256:
        raise ValueError("the digest of a folder is not that of its files")
    return Published(sha256, documents.count(document["bytes"]), fingerprint, files)


def name_of(identity: str) -> str:
    """The name of a publication in a store."""
    return f"publications/{identity}.json"


def load(store: Store, identity: str) -> Publication | None:
    """A publication of the store; None if it is not there, or not what its name says."""
    content = store.read(name_of(identity))
    if content is None or hashlib.sha256(content).hexdigest() != identity:
        return None
    return parse(content, f"{store}/{name_of(identity)}")


class Head(NamedTuple):
    """The last publication of a directory, by its identity, and whether the directory has shown it."""

    directory: Path
    publication: str
    shown: bool


def save(store: Store, publication: Publication, directory: Path, *, shown: bool) -> bool:
    """Write a publication, and make it the head of its directory; called before and after the directory shows it.

    Returns:
        Whether the store has it; False of one that can only be read.
    """
    head = Head(directory.absolute(), publication.identity, shown)
    known = read_head(store, directory)
    named = known is not None and known.publication == publication.identity
    # Written anew, it is not collected before it is named.
    lacking = not named or load(store, publication.identity) is None
    if lacking and not store.write_if_allowed(name_of(publication.identity), publication.content):
        return False
    if known != head:
        document = {**head._asdict(), "directory": str(head.directory), "schema": documents.SCHEMA}
        return store.write_if_allowed(_head(directory), documents.with_checksum(document))
    return True


def _head(directory: Path) -> str:
    return f"heads/{xxhash.xxh3_128_hexdigest(os.fsencode(directory.absolute()))}.json"


def head(store: Store, directory: Path) -> Publication | None:
    """The last publication that a directory has shown, as far as the store knows."""
    found = read_head(store, directory)
    last = load(store, found.publication) if found is not None else None
    if last is None or found is None or found.shown:
        return last
    return before(store, last)


def read_head(store: Store, directory: Path) -> Head | None:
    """The head of a directory in the store; None if it has none.

    Raises:
        LaterSchemaError: a later version has written it.
        RecordError: it is damaged.
    """
    content = store.read(_head(directory))
    return None if content is None else parse_head(content, store, _head(directory))


def is_of(store: Store, directory: Path, publication: Publication) -> bool:
    """Whether the head of a directory in the store is a publication, or leads to it.

    What the directory says itself does not count: a stranger may have written it.

    Raises:
        StoreError: the store cannot be read, or what it has of this directory is damaged.
    """
    found = read_head(store, directory)
    last = None if found is None else load(store, found.publication)
    return any(each.identity == publication.identity for each in chain(store, last))


def heads(store: Store) -> Iterator[Head]:
    """The last publications of all directories."""
    for entry in store.entries("heads"):
        own = re.fullmatch(FORMS["heads"], entry.name)  # a file of another name is not a head
        content = store.read(entry.name) if own else None
        if content is not None:
            yield parse_head(content, store, entry.name)


def parse_head(content: bytes, store: Store, name: str) -> Head:
    """The head that a document of a store describes.

    Raises:
        LaterSchemaError: a later version has written it.
        RecordError: it is damaged, or another directory's.
    """
    where = f"{store}/{name}"
    document = documents.read_with_checksum(content, where)
    try:
        directory = Path(documents.text(document["directory"], r"(?s)/[^\0]*"))
        found = Head(directory, documents.digest(document["publication"], 64), document["shown"] is True)
        named = _head(directory)
    except (LookupError, ValueError) as error:
        raise documents.damaged_error(where, f"{type(error).__name__}: {error}") from None
    if named != name:
        raise documents.damaged_error(where, "another directory's")
    return found


def before(store: Store, publication: Publication) -> Publication | None:
    """The publication before another one; None if that is the first, or the store does not have it any more."""
    return None if publication.previous is None else load(store, publication.previous)


def chain(store: Store, publication: Publication | None) -> Iterator[Publication]:
    """A publication and those before it, as far back as the store has them; each is read when it is asked for."""
    while publication is not None:
        yield publication
        publication = before(store, publication)


def numbered(store: Store, last: Publication, number: int, where: Path) -> Publication:
    """The publication of a number, among the last one and those before it as far back as the store has them.

    Args:
        where: the directory that shows them, for the message.

    Raises:
        PublicationError: there is none of that number, or it is not kept.
    """
    oldest = last
    for each in chain(store, last):  # no further than to it: a history may be long
        if each.number == number:
            return each
        oldest = each
    raise PublicationError(f"{where}: there is no publication {number}; kept are {oldest.number} to {last.number}")
