"""Publications of a store, and what is shown of them."""

from typing import Final

from cosyjit import documents
from cosyjit.publishing import publication
from cosyjit.publishing.publication import Publication, Published
from cosyjit.reports import as_json, tables
from tests.fuzz._showing import show
from tests.support.mutations import mutator
from tests.support.stores import NAME

_FIRST: Final = Publication(1, "2026-01-02T03:04:05.678Z", "/models/a", {NAME: Published("a" * 64, 5, "0" * 32)})
_SECOND: Final = Publication(2, _FIRST.published, "iic/CosyVoice-300M", {**_FIRST.artifacts}, _FIRST.identity, 1)
_ENDLESS: Final = _FIRST.content.replace(b'"number": 1', b'"number": Infinity')
SEEDS: Final = [_FIRST.content, _SECOND.content, _ENDLESS]


def read(content: bytes) -> None:
    found = publication.parse(content, "store/publications/x.json")
    show(tables.history_table([found, _FIRST]), *tables.history_lines([found, _FIRST]))
    as_json.history([found]).encode("ascii")


mutate = mutator(SEEDS, documents.dump)
