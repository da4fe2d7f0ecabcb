"""The graph of a zip: all of its bytes but those that a checkpoint decides.

What TorchScript makes of an encoder follows from its class and options, its methods, the precision, the code and the
release of torch. Zips of two checkpoints differ in their weights, their embedded provenance, and what is computed of
both: the checksum of each member, twice, and the archive's id. So a graph that has been proven once gives the zip of
another checkpoint as torch would write it, without scripting anything, and what a zip has to be, byte by byte:

    header │ provenance │ checksum │ … │ header │ weight │ checksum │ … │ id │ … │ checksums in the directory │ end
    graph    gap          gap            graph    gap      gap            gap      gaps                         graph

The id is that of torch's writer: 20 digits for the names of the members and 20 for their checksums, combined in order
as boost combines hashes. The archive of PyTorch: https://pytorch.org/docs/stable/notes/serialization.html.
"""

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, get_args

from cosyjit import documents

PROOF: Final = 1
"""The version of what a graph is proven by. It is raised when that becomes stricter; graphs that were proven before are
not used then."""

Kind = Literal["weight", "provenance", "checksum", "id", "known"]

CHECKSUM_BYTES: Final = 4
ID_DIGITS: Final = 20
"""Those of each half of an id; the first half, for the names of members, is the name of its gap."""

MARK: Final = b"PK\7\x08"
"""What stands before the checksum behind a member. To torch's writer, all that begins so is a checksum."""

FIGURES: Final = {"step_seconds", "speedup"}
"""What is measured of a graph, and holds for all that are made of it."""

_ONCE: Final = {"weight", "provenance", "id"}
"""The kinds of gaps with a content of which a zip has one; of weights, one by each name."""

_LARGEST: Final = 64 << 20
"""The bytes of a graph's own, at most; those of the largest encoder take 0.2 MB."""


class Gap(NamedTuple):
    """A place in a zip whose bytes a checkpoint decides.

    Attributes:
        before: the bytes of the graph's own before it.
        kind: what stands there. Nothing stands where a checksum is known, since it is that of a member of the graph's
            own; it is here for the id.
        name: of a weight, its name in the encoder; of a checksum, the member that it is of; of a known one, itself.
        size: in bytes.
    """

    before: int
    kind: Kind
    name: str
    size: int


@dataclass(frozen=True)
class Graph:
    """All of a zip but what a checkpoint decides.

    Attributes:
        own: the bytes of the graph's own, joined.
        gaps: where they are apart, in order.
        figures: what was measured when it was proven and follows from it and the processor, such as the time of a step.
    """

    own: bytes
    gaps: tuple[Gap, ...]
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def size(self) -> int:
        """The size of a zip of it, in bytes."""
        return len(self.own) + sum(gap.size for gap in self.gaps)

    @property
    def document(self) -> dict[str, Any]:
        """The graph as JSON has it."""
        packed = base64.b64encode(zlib.compress(self.own, 9)).decode("ascii")
        return {"own": packed, "gaps": [list(gap) for gap in self.gaps], "figures": dict(self.figures)}

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> "Graph":
        """The graph in a JSON object.

        Raises:
            LookupError, TypeError, ValueError: the object is not a graph.
        """
        try:
            packed = base64.b64decode(document["own"], validate=True)
            inflater = zlib.decompressobj()
            own = inflater.decompress(packed, _LARGEST)
        except (zlib.error, binascii.Error) as error:
            raise ValueError(str(error)) from None
        if not inflater.eof or inflater.unused_data:
            raise ValueError("bytes that are cut short, or too many")
        gaps = tuple(_gap(each) for each in document["gaps"])
        places = [0, *(gap.before for gap in gaps), len(own)]
        if places != sorted(places):
            raise ValueError("gaps that are not in order")
        filled = [(gap.kind, gap.name if gap.kind == "weight" else "") for gap in gaps if gap.kind in _ONCE]
        if len(set(filled)) < len(filled):  # or a zip could be far larger than what it is filled with
            raise ValueError("several gaps for one content")
        figures = {name: documents.number(value) for name, value in document["figures"].items()}
        if not figures.keys() <= FIGURES:
            raise ValueError(f"figures of {', '.join(map(str, figures))}")
        return cls(own, gaps, figures)

    def contents(self, weights: Mapping[str, memoryview], provenance: bytes) -> Iterator[bytes | memoryview]:
        """The bytes of a zip, one piece after the other.

        Args:
            weights: the bytes of the cast weights, by their names in the encoder.
            provenance: what is embedded in it.

        Raises:
            ValueError: the weights or the provenance are not of the sizes that the graph has, or no writer of zips can
                have written the graph.
        """
        at = combined = crc = 0
        sums: dict[str, int] = {}
        for gap in self.gaps:
            yield self.own[at : gap.before]
            at = gap.before
            if gap.kind == "known":
                combined = _combined(combined, int(gap.name))
                continue
            if gap.kind == "checksum":
                if gap.name not in sums:  # the one behind the member; that in the directory comes later
                    sums[gap.name] = crc
                    combined = _combined(combined, crc)
                content: bytes | memoryview = sums[gap.name].to_bytes(CHECKSUM_BYTES, "little")
            else:
                content = _content(gap, weights, provenance, combined)
                crc = zlib.crc32(content)
            if len(content) != gap.size or content[: len(MARK)] == MARK:
                raise ValueError(f"a {gap.kind} of {len(content)} bytes where there are {gap.size}, or its mark")
            yield content
        yield self.own[at:]


def _gap(values: Any) -> Gap:
    before, kind, name, size = values
    if kind not in get_args(Kind):
        raise ValueError(f"{kind!r} is not a kind of gap")
    return Gap(documents.count(before), kind, documents.text(name), documents.count(size))


def _content(gap: Gap, weights: Mapping[str, memoryview], provenance: bytes, combined: int) -> bytes | memoryview:
    if gap.kind == "provenance":
        return provenance
    if gap.kind == "id":
        return f"{gap.name}{combined:0{ID_DIGITS}}".encode("ascii")
    if gap.name not in weights:
        raise ValueError(f"no weight {gap.name}")
    return weights[gap.name]


def _combined(combined: int, checksum: int) -> int:
    """The hash of checksums, with one more."""
    return (combined ^ (checksum + 0x9E3779B9 + (combined << 6) + (combined >> 2))) & 0xFFFFFFFFFFFFFFFF
