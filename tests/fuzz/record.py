"""Records of a store, and what is shown of them."""

from typing import Any, Final

from cosyjit import documents
from cosyjit.provenance import record
from cosyjit.provenance.fingerprint import key_of
from cosyjit.provenance.lineage import Lineage
from cosyjit.reports import as_json, tables
from tests.fuzz._showing import show
from tests.support.mutations import mutator, resealed
from tests.support.stores import record_of

_STATEMENTS: Final = [
    record_of("f" * 64).statement,
    record_of("a" * 64, 1, run={"flow": "0", "task": "1"}, source="iic/CosyVoice-300M@v1").statement,
]
SEEDS: Final = [
    *(documents.with_checksum(each) for each in _STATEMENTS),
    documents.with_checksum(record_of("f" * 64, source="\ud800\x1b[31m").statement),
    documents.with_checksum(record_of("f" * 64, figures={"bytes": float("inf")}).statement),
]


def read(content: bytes) -> None:
    trace = Lineage(record.parse(content, "store/records/x.json"))
    show(*tables.lineage_lines(trace))
    as_json.lineage(trace).encode("ascii")


def _rekeyed(document: dict[str, Any]) -> bytes:
    """A record whose fingerprint is that of its parts, so that what it says is looked at."""
    parameters = document["predicate"]["buildDefinition"]["internalParameters"]
    parameters["fingerprint"] = key_of(parameters["parts"])
    return resealed(document)


mutate = mutator(SEEDS, documents.dump, resealed, _rekeyed)
