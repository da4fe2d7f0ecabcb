"""The provenance of an artifact: what it was made from, by what, and what was measured of it.

A record is an in-toto Statement v1 (https://in-toto.io/Statement/v1) with the SLSA provenance v1 predicate
(https://slsa.dev/spec/v1.0/provenance). A part of it is embedded in the artifact itself, so
that a stray file can be traced. That part has no time, path or run, so that equal inputs give equal bytes.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from cosyjit import documents
from cosyjit.errors import LaterSchemaError, RecordError, SignatureError
from cosyjit.fs.hashing import sha256_of_folder
from cosyjit.provenance import statements
from cosyjit.provenance.fingerprint import Fingerprint, canonical
from cosyjit.store.signing import TrustedKeys
from cosyjit.store.store import Store
from cosyjit.weights.tensor_digests import TensorDigest

PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILD: Final = "urn:cosyjit:torchscript:v1"
BUILDER: Final = "urn:cosyjit:builder"

_EMBEDDED_SCHEMA: Final = 1
"""The schema of the embedded provenance. It is part of every artifact's bytes, so it has a number of its own."""

EMBEDDED_NAME: Final = "cosyjit.json"
"""The name of the embedded provenance: among the extra files of a TorchScript archive, or in the metadata of an ONNX
file."""


class Material(NamedTuple):
    """A file that an artifact was made from: its name, its URI, and the SHA-256 of its bytes.

    Attributes:
        reading: how the names of tensors in it were read, unless unchanged; see `cosyjit.weights.fit.Reading`.
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
    """The versions of cosyjit, torch and Python in this process."""
    return {"cosyjit": version("cosyjit"), "torch": version("torch"), "python": platform.python_version()}


@dataclass(frozen=True)
class Record:
    """The provenance of an artifact.

    Attributes:
        name: the file name by which the runtime finds it.
        sha256: the digest of its bytes.
        fingerprint: all that decides its bytes.
        component: the name of the component that it is of.
        source: the model directory.
        materials: the files that were read.
        started, finished: the times of the build, in the form of RFC 3339.
        figures: what was measured, such as bytes, weight_bytes and seconds.
        run: the identifiers of the Prefect run, if there was one.
        versions: those of cosyjit, torch and Python.
        files: the digests of a folder's files by their names; None for a file.
        signed_by: the identifiers of the keys that signed it, as the file claims. Only `load` with a store that
            requires signatures verifies one of them.
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
        """The digests of the objects in the store that the artifact consists of."""
        return (self.sha256,) if self.files is None else tuple(self.files.values())

    @property
    def size(self) -> int:
        """The size of the artifact, in bytes."""
        return int(self.figures["bytes"])

    @property
    def _subjects(self) -> list[tuple[str, str]]:
        """The name and digest of the artifact; for a folder, those of its files follow."""
        files = sorted((self.files or {}).items())
        return [(self.name, self.sha256), *((f"{self.name}/{name}", digest) for name, digest in files)]

    @property
    def statement(self) -> dict[str, Any]:
        """The in-toto statement."""
        return self._statement(self.fingerprint.tensors)

    def _statement(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The statement with given values as the tensors of its fingerprint."""
        fingerprint = self.fingerprint
        return {
            "_type": statements.TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in self._subjects],
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
                    "resolvedDependencies": [material.descriptor for material in self.materials],
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
        """Whether the document that the record was read from equals its statement.

        To compare them as JSON would take as long as all other checks, so they are compared as Python values. For the
        texts and values that a record takes from its document, Python's `==` is exact, except for the count and the
        lists that are checked here.

        Args:
            document: the document that the record was read from.
        """
        internal = document["predicate"]["buildDefinition"]["internalParameters"]
        counted = type(internal["parts"]["tensors"]["count"]) is int
        listed = all(type(tensor) is list and type(tensor[1]) is list for tensor in internal["tensors"].values())
        return counted and listed and self._statement(internal["tensors"]) == document


def parse(content: bytes, where: str, trusted: TrustedKeys | None = None) -> Record:
    """The record in a file.

    Args:
        content: the content of the file.
        where: the beginning of messages.
        trusted: the keys of which one must have signed the record; for None, a signature is not required.

    Raises:
        LaterSchemaError: a later version of cosyjit wrote it.
        SignatureError: none of the keys signed it.
        RecordError: it is damaged.
    """
    with statements.reading(where):
        document, envelope = statements.opened(content, where, trusted)
        return _record(document, tuple(envelope.signatures) if envelope else ())


def _subjects(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The name and digest of the artifact; for a folder, those of its files follow."""
    subjects = document["subject"]
    return [(documents.text(one["name"]), documents.digest(one["digest"]["sha256"], 64)) for one in subjects]


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
                documents.text(material["name"]),
                documents.text(material["uri"]),
                documents.digest(material["digest"]["sha256"], 64),
                documents.text(material.get("annotations", {}).get("reading", "")),
            )
            for material in definition["resolvedDependencies"]
        ),
        started=documents.text(metadata["startedOn"]),
        finished=documents.text(metadata["finishedOn"]),
        figures={name: documents.number(value) for name, value in metadata["cosyjit_figures"].items()},
        run={name: documents.text(value) for name, value in metadata["cosyjit_run"].items()},
        versions={name: documents.text(value) for name, value in details["builder"]["version"].items()},
        files={documents.text(name.removeprefix(f"{subject[0]}/"), documents.MEMBER): digest for name, digest in others}
        or None,
        signed_by=signed_by,
    )
    if record.files and sha256_of_folder(record.files) != record.sha256:
        raise ValueError("the digest of a folder is not that of its files")
    if record.size < 0 or record.fingerprint.key != internal["fingerprint"]:
        raise ValueError("the fingerprint is not that of its parts")
    if not record.agrees_with(document):
        raise ValueError("not as cosyjit writes it")
    return record


def _check_parts(parts: Mapping[str, Any]) -> None:
    """Check the form of the parts that plans compare one by one."""
    config = parts["config"]
    documents.text(config["class"])
    mappings = config["options"], config.get("overrides", {}), parts["recipe"]
    if not all(isinstance(mapping, dict) for mapping in mappings):
        raise TypeError("the options, overrides or recipe are not objects")
    for name in ("precision", "device", "torch"):
        documents.text(parts[name])
    documents.count(parts["encoders"])


def name_of(key: str) -> str:
    """The name, in a store, of the record of a fingerprint."""
    return f"records/{key}.json"


def load(store: Store, key: str) -> Record | None:
    """The record of a fingerprint; None if there is none.

    Raises:
        LaterSchemaError: a later version of cosyjit wrote it.
        SignatureError: it lacks the signature that the store requires.
        RecordError: it is damaged, or belongs to another fingerprint.
    """
    content = store.read(name_of(key))
    if content is None:
        return None
    where = f"{store}/{name_of(key)}"
    return _named(parse(content, where, store.trusted), key, where)


def objects(store: Store, key: str) -> tuple[str, ...] | None:
    """The digests of the objects that the record of a fingerprint names; None if there is no record.

    It checks less of the statement than `load`, in a third of the time, since a collection calls it for every record.
    Whatever it names is kept.

    Raises:
        LaterSchemaError, SignatureError, RecordError: as `load`.
    """
    content = store.read(name_of(key))
    if content is None:
        return None
    where = f"{store}/{name_of(key)}"
    with statements.reading(where):
        document, _ = statements.opened(content, where, store.trusted)
        if document["predicate"]["buildDefinition"]["internalParameters"]["fingerprint"] != key:
            raise _of_another(where)
        (_, artifact), *members = _subjects(document)
        return tuple(digest for _, digest in members) or (artifact,)


def _of_another(where: str) -> RecordError:
    return documents.damaged_error(where, "another fingerprint's")


def save(store: Store, record: Record) -> Record:
    """Write a record after the object that it names, signed if the store has a key.

    Without a key, a signed record is not replaced: for an equal artifact it is as good, and for another artifact an
    unsigned record must not replace it. A damaged record is set aside. Callers hold `Store.build_lock`, so that no
    other process writes a record of the same fingerprint.

    Returns:
        The record that the store has now.

    Raises:
        LaterSchemaError: a later version of cosyjit wrote the present record.
        SignatureError: the present record is signed and belongs to another artifact, and the store does not have a key.
    """
    name = name_of(record.fingerprint.key)
    before = _before(store, record.fingerprint.key)
    if before is not None and before.signed_by and store.signer is None:
        if (before.name, before.sha256, before.size) == (record.name, record.sha256, record.size):
            return before
        signers = ", ".join(keyid[:16] for keyid in before.signed_by)
        raise SignatureError(
            f"{store}/{name}: is signed by {signers}, and another artifact was built here, without a signature; "
            "export where that key is, with --sign, or name another store"
        )
    store.write(name, statements.content(record.statement, store.signer))
    return record


def _before(store: Store, key: str) -> Record | None:
    """The present record of a fingerprint, whoever signed it; None if there is none, or it is damaged."""
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
    """The record, after a check that it belongs to a fingerprint."""
    if record.fingerprint.key != key:
        raise _of_another(where)
    return record


def check_signed(store: Store, name: str, sha256: str, size: int, key: str) -> None:
    """Check, if the store requires signatures, that an artifact is the one of its signed record.

    Args:
        name: the file name that it is published under.
        sha256: the digest of its bytes.
        size: the number of its bytes.
        key: that of its fingerprint.

    Raises:
        SignatureError: the record lacks the signature, is missing, or belongs to another artifact.
    """
    if store.trusted is None:
        return
    record = load(store, key)
    if record is None or (record.name, record.sha256, record.size) != (name, sha256, size):
        problem = "missing" if record is None else f"of {record.name}, sha256 {record.sha256}"
        raise SignatureError(
            f"{store}/{name_of(key)}: is {problem}, and {store.trusted.path} requires a signature for {name}, "
            f"sha256 {sha256}; export its checkpoint again where that key is, with --sign"
        )


def embedded_provenance(fingerprint: Fingerprint) -> bytes:
    """The provenance that is embedded in a zip or an ONNX file: the fingerprint and its parts, as canonical JSON."""
    return canonical({"fingerprint": fingerprint.key, "parts": fingerprint.parts, "schema": _EMBEDDED_SCHEMA})
