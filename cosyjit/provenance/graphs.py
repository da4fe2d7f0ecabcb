"""The proven graphs in a store: what the zips of many checkpoints have in common, verified with one of them.

A graph is kept by the parts of a fingerprint but for the tensors, by the kind of processor that it was verified on,
since another kind computes by other code, and by the version of what it was proven by. It names the artifact that was
last made of it. It is a statement as records are, with a predicate of its own.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from cosyjit import documents
from cosyjit.errors import LaterSchemaError, StoreError, log_cause
from cosyjit.processes import processors
from cosyjit.provenance import statements
from cosyjit.provenance.fingerprint import Fingerprint, canonical, key_of
from cosyjit.provenance.record import current_versions
from cosyjit.store.signing import Envelope
from cosyjit.store.store import Store
from cosyjit.torchscript.graph import PROOF, Graph

PREDICATE: Final = "urn:cosyjit:graph:v1"


def name_of(fingerprint: Fingerprint) -> str:
    """The name, in a store, of the graph of a fingerprint's artifact, as verified on this machine's processors."""
    return f"graphs/{key_of(_parts(fingerprint))}.json"


def _parts(fingerprint: Fingerprint) -> dict[str, Any]:
    parts = {name: part for name, part in fingerprint.parts.items() if name != "tensors"}
    return {**parts, "processor": processors.kind(), "proof": PROOF}


def load(store: Store, fingerprint: Fingerprint) -> Graph | None:
    """The proven graph of a fingerprint's artifact; None if there is none that can be relied on.

    A store that requires signatures relies on one that a trusted key has signed. Where artifacts are signed and
    nothing is required, the key that is going to sign must have signed the graph, too.
    """
    name = name_of(fingerprint)
    where = f"{store}/{name}"
    try:
        content = store.read(name)
        if content is None:
            return None
        predicate, envelope = _predicate(content, where, store)
        with statements.reading(where):
            if predicate["parts"] != _parts(fingerprint):
                raise documents.damaged_error(where, "another graph's")
            graph = Graph.parse(predicate["graph"])
    except StoreError as error:  # an export does without
        log_cause(error)
        return None
    if store.signer and not store.trusted and not (envelope and store.signer.has_signed(envelope)):
        return None
    return graph


def _predicate(content: bytes, where: str, store: Store | None) -> tuple[Mapping[str, Any], Envelope | None]:
    """The predicate of a graph's statement, and its envelope; signatures are checked if a store requires them."""
    with statements.reading(where):
        document, envelope = statements.opened(content, where, store.trusted if store else None)
        if document["predicateType"] != PREDICATE:
            raise documents.damaged_error(where, f"a predicate of type {document['predicateType']!r}")
        predicate: Mapping[str, Any] = document["predicate"]
        if key_of(predicate["parts"]) != documents.stem(where):
            raise documents.damaged_error(where, "another graph's")
        return predicate, envelope


def artifact(store: Store, name: str) -> str:
    """The key of the fingerprint of the artifact that was last made of a graph.

    Args:
        name: of the graph, in the store.

    Raises:
        LaterSchemaError: a later version of cosyjit wrote it.
        RecordError: it is missing or damaged.
    """
    where = f"{store}/{name}"
    content = store.read(name)
    if content is None:
        raise documents.damaged_error(where, "missing")
    predicate, _ = _predicate(content, where, None)
    with statements.reading(where):
        Graph.parse(predicate["graph"])
        return documents.digest(predicate["fingerprint"], 32)


def save(store: Store, fingerprint: Fingerprint, graph: Graph) -> None:
    """Keep the graph of an artifact, whose record has been written.

    Without a key, a signed graph is not replaced, nor is one of a later version. Nothing else needs it: if it cannot be
    written, the next export does without.
    """
    name = name_of(fingerprint)
    try:
        content = store.read(name)
        envelope = None if content is None else _predicate(content, f"{store}/{name}", None)[1]
    except LaterSchemaError:
        return
    except StoreError:
        envelope = None
    if envelope and store.signer is None:
        return
    document = graph.document
    statement = {
        "_type": statements.TYPE,
        "subject": [{"name": "graph", "digest": {"sha256": hashlib.sha256(canonical(document)).hexdigest()}}],
        "predicateType": PREDICATE,
        "predicate": {
            "parts": _parts(fingerprint),
            "fingerprint": fingerprint.key,
            "verified": documents.now(),
            "versions": current_versions(),
            "graph": document,
            "cosyjit_schema": documents.SCHEMA,
        },
    }
    try:
        store.write(name, statements.content(statement, store.signer))
    except StoreError as error:
        log_cause(error)
