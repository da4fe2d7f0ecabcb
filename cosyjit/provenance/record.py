"""The lineage of an artifact: what it was made from, by what, and how it came out.

A record is an in-toto Statement v1 (https://in-toto.io/Statement/v1) with the SLSA provenance v1 predicate
(https://slsa.dev/spec/v1.0/provenance). A short form of it, which names no time, path or run, stands in the artifact
itself, so that equal inputs keep equal bytes and a stray file can be traced.
"""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from cosyjit import documents
from cosyjit.errors import LaterSchemaError, RecordError, SignatureError
from cosyjit.fs.files import sha256_of_folder
from cosyjit.provenance.fingerprint import Fingerprint, canonical
from cosyjit.store import signing
from cosyjit.store.signing import Envelope, Trusted
from cosyjit.store.store import Store
from cosyjit.weights.digests import TensorDigest

STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILD: Final = "urn:cosyjit:torchscript:v1"
BUILDER: Final = "urn:cosyjit:builder"

_SHORT_FORM_SCHEMA: Final = 1
"""A part of every artifact's bytes, and so no other number's."""

SHORT_FORM: Final = "cosyjit.json"
"""The name of the short form among a TorchScript archive's extra files."""


class Material(NamedTuple):
    """A file that an artifact was made from: its name, where it was, and the SHA-256 of its bytes.

    Attributes:
        reading: how the names of tensors in it were read, where not as they stand; see `cosyjit.weights.fit.Reading`.
    """

    name: str
    uri: str
    sha256: str
    reading: str = ""

    @property
    def descriptor(self) -> dict[str, Any]:
        """The in-toto resource descriptor."""
        annotations = {"annotations": {"reading": self.reading}} if self.reading else {}
        return {"name": self.name, "uri": self.uri, "digest": {"sha256": self.sha256}, **annotations}


def current_versions() -> dict[str, str]:
    """Of what builds here."""
    return {"cosyjit": version("cosyjit"), "torch": version("torch"), "python": platform.python_version()}


@dataclass(frozen=True)
class Record:
    """What an artifact was made from.

    Attributes:
        name: the file name by which the runtime finds it.
        sha256: the digest of its bytes.
        fingerprint: all that decides these.
        component: what it is.
        source: the model directory.
        materials: the files that were read.
        started, finished: when, as RFC 3339 has it.
        figures: what was measured: bytes, weight_bytes, seconds.
        run: the identifiers of the Prefect run, where there was one.
        versions: of cosyjit, torch and Python.
        files: of a folder, the digests of its files by their names.
        signed_by: the identifiers of the keys that have signed it, as it says; only `load` with a store that requires
            signatures has checked one.
    """

    name: str
    sha256: str
    fingerprint: Fingerprint
    component: str
    source: str
    materials: tuple[Material, ...]
    started: str
    finished: str
    figures: Mapping[str, float]
    run: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=current_versions)
    files: Mapping[str, str] | None = None
    signed_by: tuple[str, ...] = field(default=(), compare=False)

    @property
    def objects(self) -> tuple[str, ...]:
        """The digests of the store's objects that the artifact consists of."""
        return (self.sha256,) if self.files is None else tuple(self.files.values())

    @property
    def bytes(self) -> int:
        """The artifact's size."""
        return int(self.figures["bytes"])

    @property
    def _subjects(self) -> list[tuple[str, str]]:
        """The artifact; and of a folder, its files behind it."""
        files = sorted((self.files or {}).items())
        return [(self.name, self.sha256), *((f"{self.name}/{name}", digest) for name, digest in files)]

    @property
    def statement(self) -> dict[str, Any]:
        """The in-toto statement."""
        return self._statement(self.fingerprint.tensors)

    def _statement(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The same with its fingerprint's tensors as they are given."""
        fingerprint = self.fingerprint
        return {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": each}} for name, each in self._subjects],
            "predicateType": PREDICATE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD,
                    "externalParameters": {
                        "source": self.source,
                        "component": self.component,
                        "precision": fingerprint.precision,
                        "device": fingerprint.device,
                    },
                    "internalParameters": {
                        "fingerprint": fingerprint.key,
                        "parts": fingerprint.parts,
                        "tensors": tensors,
                    },
                    "resolvedDependencies": [each.descriptor for each in self.materials],
                },
                "runDetails": {
                    "builder": {"id": BUILDER, "version": dict(self.versions)},
                    "metadata": {
                        **({"invocationId": "/".join(self.run.values())} if self.run else {}),
                        "startedOn": self.started,
                        "finishedOn": self.finished,
                        "cosyjit_run": dict(self.run),
                        "cosyjit_figures": dict(self.figures),
                    },
                },
                "cosyjit_schema": documents.SCHEMA,
            },
        }

    def agrees_with(self, document: Mapping[str, Any]) -> bool:
        """Whether the document that it was read from says what its statement does, and nothing else.

        Writing both to compare them would take as long as all other checks. A record has the texts and values of its
        document themselves, for which Python's `==` is exact, but for the number and the lists that are looked at here.

        Args:
            document: has what a record is read from.
        """
        internal = document["predicate"]["buildDefinition"]["internalParameters"]
        counted = type(internal["parts"]["tensors"]["count"]) is int
        listed = all(type(each) is list and type(each[1]) is list for each in internal["tensors"].values())
        return counted and listed and self._statement(internal["tensors"]) == document


def parse(content: bytes, where: str, trusted: Trusted | None = None) -> Record:
    """The record that a file describes.

    Args:
        content: the file's.
        where: what messages begin with.
        trusted: the keys of which one has to have signed it; none has to for None.

    Raises:
        LaterSchemaError: a later version has written it.
        SignatureError: none of the keys has signed it.
        RecordError: it is damaged.
    """
    with _reading(where):
        document, envelope = _opened(content, where, trusted)
        return _record(document, tuple(envelope.signatures) if envelope else ())


def _opened(content: bytes, where: str, trusted: Trusted | None) -> tuple[dict[str, Any], Envelope | None]:
    """The statement in a record's file, and the envelope that it is in."""
    stored = documents.load(content, where)
    envelope = signing.opened(stored) if signing.is_envelope(stored) else None
    document = documents.load(envelope.payload, where) if envelope else stored
    documents.check_schema(document["predicate"]["cosyjit_schema"], where)
    kept = documents.without_checksum(stored, content, where)
    if trusted is not None:
        trusted.check(envelope, where)
    if envelope is None:
        return kept, None
    _check_as_written(envelope, kept, document)
    return document, envelope


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Let what is missing in a document, or of another type, be told as damage."""
    try:
        yield
    except RecordError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise documents.damaged_error(where, f"{type(error).__name__}: {error}") from None


def _check_as_written(envelope: Envelope, kept: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    if (envelope.document, envelope.payload) != (kept, canonical(document)):
        raise ValueError("not as cosyjit writes it")


def statement_in(content: bytes) -> bytes:
    """The text of the statement in a record's file, unchecked; what is none is given as it is."""
    try:
        document = json.loads(content)
        return signing.opened(document).payload if signing.is_envelope(document) else content
    except (LookupError, TypeError, ValueError, RecursionError):
        return content


def _subjects(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The artifact's name and digest; and of a folder, those of its files behind it."""
    return [
        (documents.text(each["name"]), documents.digest(each["digest"]["sha256"], 64)) for each in document["subject"]
    ]


def _record(document: Mapping[str, Any], signed_by: tuple[str, ...]) -> Record:
    subject, *others = _subjects(document)
    predicate = document["predicate"]
    definition, details = predicate["buildDefinition"], predicate["runDetails"]
    external, internal, metadata = (
        definition["externalParameters"],
        definition["internalParameters"],
        details["metadata"],
    )
    parts = internal["parts"]
    _check_parts(parts)
    record = Record(
        name=subject[0],
        sha256=subject[1],
        fingerprint=Fingerprint(
            tensors={
                name: TensorDigest(documents.text(dtype), tuple(map(documents.count, shape)), documents.text(digest))
                for name, (dtype, shape, digest) in internal["tensors"].items()
            },
            precision=documents.text(parts["precision"]),
            device=documents.text(parts["device"]),
            **{part: parts[part] for part in ("config", "recipe", "encoders", "torch")},
        ),
        component=documents.text(external["component"]),
        source=documents.text(external["source"]),
        materials=tuple(
            Material(
                documents.text(each["name"]),
                documents.text(each["uri"]),
                documents.digest(each["digest"]["sha256"], 64),
                documents.text(each.get("annotations", {}).get("reading", "")),
            )
            for each in definition["resolvedDependencies"]
        ),
        started=documents.text(metadata["startedOn"]),
        finished=documents.text(metadata["finishedOn"]),
        figures={name: _number(value) for name, value in metadata["cosyjit_figures"].items()},
        run={name: documents.text(value) for name, value in metadata["cosyjit_run"].items()},
        versions={name: documents.text(value) for name, value in details["builder"]["version"].items()},
        files={documents.text(name.removeprefix(f"{subject[0]}/"), documents.MEMBER): each for name, each in others}
        or None,
        signed_by=signed_by,
    )
    if record.files and sha256_of_folder(record.files) != record.sha256:
        raise ValueError("the digest of a folder is not that of its files")
    if record.bytes < 0 or record.fingerprint.key != internal["fingerprint"]:
        raise ValueError("the fingerprint is not that of its parts")
    if not record.agrees_with(document):
        raise ValueError("not as cosyjit writes it")
    return record


def _check_parts(parts: Mapping[str, Any]) -> None:
    """See that what plans compare part by part has the form that they rely on."""
    config = parts["config"]
    documents.text(config["class"])
    mappings = config["options"], config.get("overrides", {}), parts["recipe"]
    if not all(isinstance(each, dict) for each in mappings):
        raise TypeError("options, overrides or a recipe that are no objects")
    for name in ("precision", "device", "torch"):
        documents.text(parts[name])
    documents.count(parts["encoders"])


def _number(value: object) -> int | float:
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not -documents.LARGEST < value < documents.LARGEST
    ):
        raise TypeError(f"{str(value)[:100]!r} is no number")
    return value


def name_of(key: str) -> str:
    """The name of the record of a fingerprint in a store."""
    return f"records/{key}.json"


def load(store: Store, key: str) -> Record | None:
    """The record of a fingerprint; None if there is none.

    Raises:
        LaterSchemaError: a later version has written it.
        SignatureError: it has not the signature that the store requires.
        RecordError: it is damaged, or another fingerprint's.
    """
    content = store.read(name_of(key))
    if content is None:
        return None
    where = f"{store}/{name_of(key)}"
    return _named(parse(content, where, store.trusted), key, where)


def objects(store: Store, key: str) -> tuple[str, ...] | None:
    """The digests of the objects that the record of a fingerprint names; None if there is no record.

    What `load` refuses for its statement alone, this may read: it takes a third of the time, and a collection, which
    keeps what it names, asks it of every record.

    Raises:
        LaterSchemaError, SignatureError, RecordError: as `load`.
    """
    content = store.read(name_of(key))
    if content is None:
        return None
    where = f"{store}/{name_of(key)}"
    with _reading(where):
        document, _ = _opened(content, where, store.trusted)
        if document["predicate"]["buildDefinition"]["internalParameters"]["fingerprint"] != key:
            raise _of_another(where)
        (_, artifact), *members = _subjects(document)
        return tuple(digest for _, digest in members) or (artifact,)


def _of_another(where: str) -> RecordError:
    return documents.damaged_error(where, "another fingerprint's")


def save(store: Store, record: Record) -> Record:
    """Write a record, after the object that it names; signed, where the store has a key for that.

    Without a key, a signed record stays: that of an equal artifact says all that there is to say, and that of another
    artifact is not given up for one that nobody has signed. A damaged record is set aside. To be called within
    `Store.turn`, in which nobody else writes a record of the same fingerprint.

    Returns:
        The record that the store has then.

    Raises:
        LaterSchemaError: a later version has written the record that is there.
        SignatureError: a key has signed the record that is there, of another artifact, and the store has no key.
    """
    name = name_of(record.fingerprint.key)
    before = _before(store, record.fingerprint.key)
    if before is not None and before.signed_by and store.signer is None:
        if (before.name, before.sha256, before.bytes) == (record.name, record.sha256, record.bytes):
            return before
        signers = ", ".join(keyid[:16] for keyid in before.signed_by)
        raise SignatureError(
            f"{store}/{name}: is signed by {signers}, and another artifact was built here, without a signature; "
            "export where that key is, with --sign, or name another store"
        )
    statement = record.statement
    document = store.signer.sign(canonical(statement)).document if store.signer else statement
    store.write(name, documents.with_checksum(document))
    return record


def _before(store: Store, key: str) -> Record | None:
    """The record that another one is going to replace, whoever signed it; None if there is none, or a damaged one."""
    name = name_of(key)
    try:
        content = store.read(name)
        return None if content is None else _named(parse(content, f"{store}/{name}"), key, f"{store}/{name}")
    except LaterSchemaError:
        raise
    except RecordError:
        store.set_aside(name)
        return None


def _named(record: Record, key: str, where: str) -> Record:
    """A record, which has to be that of a fingerprint."""
    if record.fingerprint.key != key:
        raise _of_another(where)
    return record


def check_signed(store: Store, name: str, sha256: str, size: int, key: str) -> None:
    """Make sure, where the store requires signatures, that an artifact is what a signed record says.

    Args:
        name: the file name that it is to be shown by.
        sha256: the digest of its bytes.
        size: how many there are.
        key: its fingerprint's.

    Raises:
        SignatureError: the record has no such signature, there is none, or it is of another artifact.
    """
    if store.trusted is None:
        return
    found = load(store, key)
    if found is None or (found.name, found.sha256, found.bytes) != (name, sha256, size):
        problem = "missing" if found is None else f"of {found.name}, sha256 {found.sha256}"
        raise SignatureError(
            f"{store}/{name_of(key)}: is {problem}, and {store.trusted.path} requires a signature for {name}, "
            f"sha256 {sha256}; export its checkpoint again where that key is, with --sign"
        )


def short_form(fingerprint: Fingerprint) -> bytes:
    """What an artifact says of itself."""
    return canonical({"fingerprint": fingerprint.key, "parts": fingerprint.parts, "schema": _SHORT_FORM_SCHEMA})
