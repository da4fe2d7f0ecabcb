"""Weights files made from a seed: true to the formats but for a few liberties, each of which some reader may refuse.

A file is a tree of values written as a pickle, and a container around it: an archive or the form before torch 1.6. Of
both, a case takes a few `QUIRKS`, or none; a case now and then has some wrong bytes besides.
"""

import random
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from tests.support.hostile_weights import End, Part, archive

_STORAGES: Final = {
    "FloatStorage": ("float32", 4),
    "DoubleStorage": ("float64", 8),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
}

QUIRKS: Final = (
    # Of pickles.
    *(
        "protocol",
        "later instructions",
        "python 2 texts",
        "accented python 2 texts",
        "memo",
        "junk",
        "old instructions",
    ),
    *("long numbers", "strange keys", "repeated keys", "other values", "forbidden", "states", "row at the top"),
    *("old names", "deep", "cycle"),
    # Of tensors.
    *("strides", "overlapping", "out of storage", "many dimensions", "negative", "expanded", "offset", "empty"),
    *("rebuilders", "attributes", "changed", "quantized", "metadata", "sparse", "other types", "gradient"),
    # Of storages.
    *("two types", "two sizes", "wrong size", "untyped", "odd keys", "location", "texts as bytes", "numbers as a flag"),
    # Of archives.
    *("deflated", "descriptors", "wide", "padding", "comment", "before", "after", "duplicate", "case", "other folder"),
    *("no folder", "header name", "header size", "header place", "sum", "big", "no order", "flags", "method"),
    *("extra members", "folders", "directory order", "missing storage", "disk", "entries", "torchscript", "fields"),
    *("marked as a folder", "types as keys"),
    *("deep folder", "gap", "nested"),
    # Of what was before archives.
    *("legacy", "legacy order", "legacy views", "legacy rest", "legacy count", "legacy big", "legacy version"),
    *("legacy machine", "legacy missing key"),
    "damage",
)
"""The liberties that a file may take."""


class _Storage(NamedTuple):
    key: str
    kind: str
    content: bytes

    @property
    def size(self) -> int:
        return _STORAGES[self.kind][1]

    @property
    def numbers(self) -> int:
        return len(self.content) // self.size


@dataclass
class Case:
    """A file, and what is known of it.

    Attributes:
        seed: that it was made from.
        quirks: the liberties that it was allowed; whether it took them is up to chance.
        content: its bytes.
    """

    seed: int
    quirks: frozenset[str]
    content: bytes = field(repr=False)


def case(seed: int) -> Case:
    """The file of a seed."""
    chance = random.Random(seed)  # noqa: S311  (no secret)
    quirks = frozenset(chance.sample(QUIRKS, chance.choice((0, 1, 1, 2, 2, 3, 4, 6))))
    if any(quirk.startswith("legacy") for quirk in quirks) or chance.random() < 0.12:
        quirks |= {"legacy"}
    content = _File(chance, quirks).content()
    if "damage" in quirks and content:
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 5))):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        content = bytes(changed[: chance.choice((len(changed), len(changed), chance.randrange(len(changed))))])
    return Case(seed, quirks, content)


class _File:
    def __init__(self, chance: random.Random, quirks: frozenset[str]) -> None:
        self._chance, self._quirks = chance, quirks
        self._legacy = "legacy" in quirks
        self._storages = [self._storage(number) for number in range(chance.randint(1, 4))]
        self._writer = _Writer(chance, quirks, self._storages)

    def _storage(self, number: int) -> _Storage:
        kind = self._chance.choice(list(_STORAGES))
        size = self._chance.choice((0, 1, 6, 12, 24, 24, 40)) * _STORAGES[kind][1]
        most = 2 if kind == "BoolStorage" else 256
        content = bytes(self._chance.randrange(most) for _ in range(size))
        odd = ("weight", "00", "é", "a/b", "7 ", "Ω", "-1", ".data")
        key = self._chance.choice(odd) + str(number) if "odd keys" in self._quirks else str(number)
        return _Storage(key, kind, content)

    def content(self) -> bytes:
        state = self._writer.state()
        return self._legacy_file(state) if self._legacy else self._archive(state)

    # Archives.

    def _archive(self, state: bytes) -> bytes:
        chance, quirks = self._chance, self._quirks
        folder = b"a/b/" if "deep folder" in quirks else b"archive/"
        folder = b"" if "no folder" in quirks else folder
        parts = [Part(folder + b"data.pkl", state)]
        if "no order" not in quirks:
            parts.append(Part(folder + b"byteorder", b"big" if "big" in quirks else b"little"))
        parts += [Part(folder + f"data/{each.key}".encode(), each.content) for each in self._storages]
        parts.append(Part(folder + b"version", b"3\n"))
        if "torchscript" in quirks:
            parts.insert(
                chance.randrange(len(parts)), Part(folder + chance.choice((b"constants.pkl", b"Constants.pkl")))
            )
        if "extra members" in quirks:
            extra = (
                b".format_version",
                b".storage_alignment",
                b".data/serialization_id",
                b"x",
                b"data/x",
                b"code/a.py",
            )
            parts += [Part(folder + name, chance.choice((b"1", b"64", b"", b"99"))) for name in chance.sample(extra, 2)]
        if "folders" in quirks:
            parts[:0] = [Part(folder), Part(folder + b"data/")][: chance.randint(1, 2)]
        if "missing storage" in quirks:
            parts = [part for part in parts if not part.name.endswith(b"/0")]
        for quirk, change in _CHANGES.items():
            if quirk in quirks:
                parts = change(parts, chance)
        return self._put_together(parts)

    def _put_together(self, parts: Sequence[Part]) -> bytes:
        chance, quirks = self._chance, self._quirks
        end = End(wide="wide" in quirks)
        if "comment" in quirks:
            end = replace(end, comment=chance.choice((b"comment", b"PK\5\6", End().of(0, 0, 0), b"x" * 300)))
        if "entries" in quirks:
            end = replace(end, entries=max(0, len(parts) + chance.choice((-1, 1))))
        if "disk" in quirks:
            end = replace(end, disk=1)
        before = chance.choice((b"\0", b"PK\3\4", b"#!/bin/sh\n")) if "before" in quirks else b""
        after = chance.choice((b"\0", b"\n", b"PK\5\6", bytes(70_000))) if "after" in quirks else b""
        made = archive(parts, end, before, after)
        if "directory order" not in quirks or len(parts) < 2:
            return made
        turned = archive([*parts[1:], parts[0]], end, before, after)
        return turned if turned[:4] == b"PK\3\4" else made

    # What was before archives.

    def _legacy_file(self, state: bytes) -> bytes:
        chance, quirks, plain = self._chance, self._quirks, _Writer(self._chance, frozenset(), self._storages)
        used = [each for each in self._storages if each.key in self._writer.used]
        if "legacy order" in quirks:
            chance.shuffle(used)
        keys = [each.key for each in used]
        if "legacy missing key" in quirks and keys:
            keys = chance.choice((keys[1:], [*keys, "unknown"], [*keys, keys[0]]))
        version = 1000 if "legacy version" in quirks else 1001
        machine = {
            "protocol_version": plain.number(version),
            "little_endian": b"\x89" if "legacy big" in quirks else b"\x88",
            "type_sizes": b"}",
        }
        if "legacy machine" in quirks:
            del machine[chance.choice(list(machine))]
        magic = plain.number(0x1950A86A20F9469CFC6C)
        first = [b"\x80\2" + value + b"." for value in (magic, plain.number(version), plain.dictionary(machine))]
        last = b"\x80\2](" + b"".join(map(plain.text, keys)) + b"e."
        first, last = [plain.resolved(each) for each in first], plain.resolved(last)
        content = b"".join((*first, state, last))
        for each in used:
            count = each.numbers + (chance.choice((-1, 1)) if "legacy count" in quirks else 0)
            content += struct.pack("<q", count) + each.content
        return content + (chance.choice((b"\0", b"PK\5\6", bytes(30))) if "legacy rest" in quirks else b"")


# Changes to the members of an archive.


def _one(change: Callable[[Part, random.Random], Part]) -> Callable[[list[Part], random.Random], list[Part]]:
    """A change to one member, or to all of them."""

    def apply(parts: list[Part], chance: random.Random) -> list[Part]:
        at = chance.choice((None, chance.randrange(len(parts))))
        return [change(part, chance) if at in {None, number} else part for number, part in enumerate(parts)]

    return apply


def _deflated(part: Part, chance: random.Random) -> Part:
    packer = zlib.compressobj(chance.choice((0, 1, 9)), wbits=-zlib.MAX_WBITS)
    packed = packer.compress(part.content) + packer.flush()
    size, crc = len(part.content), zlib.crc32(part.content)
    return replace(part, content=packed, method=8, size=size, packed=len(packed), crc=crc, header_size=len(packed))


def _described(part: Part, chance: random.Random) -> Part:
    """The sizes behind what the member holds, with or without their signature, in four bytes each or in eight."""
    if part.method or part.size is not None:
        return part
    size, crc = len(part.content), zlib.crc32(part.content)
    wide = chance.random() < 0.3
    sizes = struct.pack("<IQQ" if wide else "<3I", crc, size, size)
    content = part.content + chance.choice((b"PK\7\x08", b"")) + sizes
    return replace(
        part, content=content, size=size, crc=crc, flags=part.flags | 8, header_size=chance.choice((0, size))
    )


def _duplicated(parts: list[Part], chance: random.Random) -> list[Part]:
    one = chance.choice(parts)
    return [*parts, replace(one, content=chance.choice((one.content, one.content[::-1], b"")))]


def _in_another_case(parts: list[Part], chance: random.Random) -> list[Part]:
    at = chance.randrange(len(parts))
    other = replace(parts[at], name=parts[at].name.upper())
    return [*parts, other] if chance.random() < 0.5 else [*parts[:at], other, *parts[at + 1 :]]


def _gap(parts: list[Part], chance: random.Random) -> list[Part]:
    """Bytes that belong to no member behind one."""
    at = chance.randrange(len(parts))
    part = parts[at]
    if part.size is not None:
        return parts
    size, crc = len(part.content), zlib.crc32(part.content)
    parts[at] = replace(part, content=part.content + bytes(20), size=size, header_size=size, crc=crc)
    return parts


def _nested(parts: list[Part], _: random.Random) -> list[Part]:
    """An archive within a member."""
    return [*parts, Part(parts[0].name + b".zip", archive([Part(b"archive/data.pkl", b"\x80\2}.")]))]


_CHANGES: Final[dict[str, Callable[[list[Part], random.Random], list[Part]]]] = {
    "deflated": _one(_deflated),
    "descriptors": _one(_described),
    "duplicate": _duplicated,
    "case": _in_another_case,
    "gap": _gap,
    "nested": _nested,
    "wide": _one(lambda part, _: replace(part, wide=True)),
    "padding": _one(
        lambda part, chance: replace(part, padding=b"FB" + struct.pack("<H", n := chance.choice((0, 60))) + bytes(n))
    ),
    "fields": _one(
        lambda part, chance: replace(part, fields=chance.choice((b"\x75\x70\4\0abcd", b"\1\0\0\0", b"\xfe\xca\1")))
    ),
    "other folder": _one(lambda part, _: replace(part, name=b"other/" + part.name.partition(b"/")[2])),
    "header name": _one(
        lambda part, chance: replace(part, header_name=chance.choice((b"x", part.name.upper(), b"archive/data/1")))
    ),
    "header size": _one(lambda part, chance: replace(part, header_size=chance.choice((0, 1, 1 << 31, 0xFFFFFFFF)))),
    "header place": _one(lambda part, chance: replace(part, offset=chance.choice((0, 1, 30, 1 << 20)))),
    "marked as a folder": _one(lambda part, _: replace(part, attributes=0x10)),
    "sum": _one(lambda part, _: replace(part, crc=1)),
    "flags": _one(lambda part, chance: replace(part, flags=part.flags | chance.choice((1, 8, 0x20, 0x800, 0x2000)))),
    "method": _one(lambda part, chance: replace(part, method=chance.choice((9, 12, 14, 99)))),
}


# Pickles.

_UTILS: Final = "torch._utils"

_PLACE: Final = b"\0<value>"
_PLACES: Final = re.compile(re.escape(_PLACE) + rb"(.{4})", re.DOTALL)
"""Where a value is going to stand that may be in the memo: what is, is known when the order of all of them is."""


class _Writer:
    """Writes values as instructions of a pickle, choosing among those that come to the same.

    Attributes:
        used: the keys of the storages that were written.
    """

    def __init__(self, chance: random.Random, quirks: frozenset[str], storages: Sequence[_Storage]) -> None:
        self._chance, self._quirks, self._storages = chance, quirks, storages
        self._values: list[bytes] = []
        self._memo: list[tuple[int, bytes]] = []
        self._at = 0
        self.used: set[str] = set()

    def _may(self, quirk: str, share: float = 0.5) -> bool:
        return quirk in self._quirks and self._chance.random() < share

    def state(self) -> bytes:
        """The whole pickle."""
        chance = self._chance
        protocol = chance.choice((0, 1, 3, 4, 5, 6)) if "protocol" in self._quirks else 2
        value = self._dictionary_of_tensors(chance.randint(1, 5))
        nested = chance.random()
        if nested < 0.25:
            name = chance.choice(("state_dict", "model", "a"))
            value = self.dictionary({name: value, "epoch": self.number(3)})
        if "row at the top" in self._quirks:
            value = chance.choice((b"]" + value + b"a", value + b"\x85", value + b"N0", b"N" + value))
        start = bytes([0x80, protocol])
        if self._may("later instructions"):
            start += b"\x95" + struct.pack("<Q", len(value) + 1)
        return (b"" if protocol < 2 and chance.random() < 0.8 else start) + self.resolved(value) + b"."

    def _dictionary_of_tensors(self, count: int) -> bytes:
        entries: list[tuple[bytes, bytes]] = []
        for number in range(count):
            name = self.text(self._chance.choice((f"llm.{number}.weight", f"n{number}", f"é{number}", "", "a b")))
            value = self._tensor() if self._chance.random() < 0.85 else self._value(2)
            entries.append((name, value))
        if "repeated keys" in self._quirks:
            entries.append((entries[0][0], self._tensor()))
        if "types as keys" in self._quirks:
            entries.append((self.named("torch", self._chance.choice(("FloatStorage", "float32"))), self._tensor()))
        if "strange keys" in self._quirks:
            keys = (
                b"N",
                b"\x88",
                self.number(7),
                b"G" + struct.pack(">d", 0.5),
                b")",
                self.number(2**70),
                self.row((b"N",)),
            )
            entries.insert(0, (self._chance.choice(keys), self._tensor()))
        if "other values" in self._quirks:
            entries.append((self.text("others"), self._value(4)))
        if self._may("cycle", 0.9):
            return b"}r\0\0\1\0" + self._set(entries) + self.text("self") + b"j\0\0\1\0s"
        ordered = self._chance.random() < 0.5
        value = (self.named("collections", "OrderedDict") + b")R" if ordered else b"}") + self._set(entries)
        if ordered and self._chance.random() < 0.3:
            value += self.dictionary({"_metadata": self.named("collections", "OrderedDict") + b")R"}) + b"b"
        if self._may("states"):
            value += self._chance.choice((b"}", b"N", self.dictionary({"keys": b"N"}), b"]")) + b"b"
        return value

    def _set(self, entries: Sequence[tuple[bytes, bytes]]) -> bytes:
        if self._chance.random() < 0.3:
            return b"".join(key + value + b"s" for key, value in entries)
        return b"(" + b"".join(key + value for key, value in entries) + b"u"

    # Values by instructions.

    def text(self, value: str) -> bytes:
        encoded = value.encode("utf-8", "surrogatepass")
        if self._may("python 2 texts") and encoded.isascii() and len(encoded) < 256:
            return b"U" + bytes([len(encoded)]) + encoded
        if self._may("accented python 2 texts") and len(encoded) < 256:
            return b"U" + bytes([len(encoded)]) + encoded
        if self._may("later instructions") and len(encoded) < 256:
            return (
                self._chance.choice((b"\x8c" + bytes([len(encoded)]), b"\x8d" + struct.pack("<Q", len(encoded))))
                + encoded
            )
        if self._may("old instructions"):
            return b"V" + value.encode("raw-unicode-escape") + b"\n"
        return self._remembered(b"X" + struct.pack("<I", len(encoded)) + encoded)

    def number(self, value: int) -> bytes:
        if self._may("old instructions"):
            return self._chance.choice((b"I%d\n", b"L%dL\n")) % value
        if 0 <= value < 256 and self._chance.random() < 0.7:
            return b"K" + bytes([value])
        if 0 <= value < 65536 and self._chance.random() < 0.7:
            return b"M" + struct.pack("<H", value)
        if -(2**31) <= value < 2**31 and not self._may("long numbers"):
            return b"J" + struct.pack("<i", value)
        length = value.bit_length() // 8 + 1 + (3 if "long numbers" in self._quirks else 0)
        encoded = value.to_bytes(length, "little", signed=True)
        if self._may("long numbers", 0.3):
            return b"\x8b" + struct.pack("<I", length) + encoded
        return b"\x8a" + bytes([length]) + encoded

    def named(self, module: str, name: str) -> bytes:
        if self._may("later instructions"):
            return self.text(module) + self.text(name) + b"\x93"
        if self._may("old names") and module == "torch._tensor":
            module = "torch.tensor"
        return self._remembered(b"c" + module.encode() + b"\n" + name.encode() + b"\n")

    def row(self, items: Iterable[bytes]) -> bytes:
        """A tuple."""
        values = list(items)
        if len(values) <= 3 and self._chance.random() < 0.7:
            return b"".join(values) + (b")", b"\x85", b"\x86", b"\x87")[len(values)]
        return b"(" + self._junk() + b"".join(values) + b"t"

    def dictionary(self, entries: dict[str, bytes]) -> bytes:
        return b"}" + self._set([(self.text(name), value) for name, value in entries.items()])

    def _junk(self) -> bytes:
        """What leaves the stack as it was."""
        if not self._may("junk", 0.3):
            return b""
        return self._chance.choice((b"N0", b"K\x010", b"(NN1", b"]0", b"N20" + b"0"))

    def _remembered(self, value: bytes) -> bytes:
        """A value that is going to be put into the memo or, if it was, perhaps brought from there."""
        self._values.append(value)
        return _PLACE + struct.pack("<I", len(self._values) - 1)

    def resolved(self, content: bytes) -> bytes:
        """What was written, with the values that the memo may have."""
        return _PLACES.sub(lambda found: self._resolved(self._values[struct.unpack("<I", found[1])[0]]), content)

    def _next(self) -> int:
        self._at += self._chance.choice((1, 1, 1, 300)) if "memo" in self._quirks else 1
        return self._at

    def _resolved(self, value: bytes) -> bytes:
        known = [index for index, content in self._memo if content == value]
        if known and self._chance.random() < 0.5:
            index = known[-1]
            return b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)
        if self._chance.random() < 0.5:
            return value
        if self._may("memo", 0.2):  # the place of another, whose value is gone
            index = self._chance.choice([index for index, _ in self._memo] or [1])
            self._memo = [each for each in self._memo if each[0] != index]
        elif self._may("memo", 0.1):
            return value + b"\x94" if "later instructions" in self._quirks else value
        else:
            index = self._next()
        self._memo.append((index, value))
        if index < 256 and self._chance.random() < 0.8:
            return value + b"q" + bytes([index])
        return value + b"r" + struct.pack("<I", index)

    # Tensors.

    def _storage(self) -> tuple[bytes, _Storage]:
        chance, storage = self._chance, self._chance.choice(self._storages)
        kind, numbers = storage.kind, storage.numbers
        if self._may("two types"):
            kind = chance.choice(list(_STORAGES))
            if chance.random() < 0.5:
                numbers = len(storage.content) // _STORAGES[kind][1]
        if self._may("two sizes") or self._may("wrong size", 0.9):
            numbers = max(0, numbers + chance.choice((-1, -2, 1, 5)))
        if self._may("numbers as a flag"):
            return self.row(
                (self.text("storage"), self.named("torch", kind), self.text(storage.key), self.text("cpu"), b"\x88")
            ) + b"Q", storage
        name = self.named("torch", kind)
        if self._may("untyped"):
            name, numbers = self.named("torch.storage", "UntypedStorage"), len(storage.content)
        location = chance.choice(("cuda:0", "mps", "meta", "cpu:0", "", "nowhere")) if self._may("location") else "cpu"
        word = b"U\7storage" if self._may("texts as bytes") else self.text("storage")
        values = [word, name, self.text(storage.key), self.text(location), self.number(numbers)]
        if self._legacy:
            values.append(self._view(storage))
        self.used.add(storage.key)
        return self.row(values) + b"Q", storage

    @property
    def _legacy(self) -> bool:
        return "legacy" in self._quirks

    def _view(self, storage: _Storage) -> bytes:
        if not self._may("legacy views"):
            return b"N"
        return self.row((self.text(f"view{storage.key}"), self.number(0), self.number(storage.numbers)))

    def _tensor(self) -> bytes:
        chance = self._chance
        written, storage = self._storage()
        numbers = storage.numbers
        offset = chance.randint(0, numbers // 2) if self._may("offset", 0.8) else 0
        shape = self._shape(numbers - offset)
        stride = self._stride(shape, numbers - offset)
        if self._may("out of storage"):
            offset += chance.choice((1, numbers, 2**40))
        if self._may("negative"):
            at = chance.choice((0, 1))
            shape = [-each for each in shape] if at else shape
            stride = stride if at else [-each for each in stride]
        values = [written, self.number(offset), self.row(map(self.number, shape)), self.row(map(self.number, stride))]
        return self._junk() + self._rebuilt(values)

    def _shape(self, numbers: int) -> list[int]:
        chance = self._chance
        if self._may("empty"):
            return chance.choice(([0], [0, 3], [2, 0, 5], [0, 2**40]))
        if self._may("many dimensions"):
            return [1] * chance.choice((10, 63, 64, 65, 70))
        if not numbers:
            return [0]
        if chance.random() < 0.15:
            return []
        rows = chance.choice([each for each in range(1, numbers + 1) if numbers % each == 0])
        return chance.choice(([numbers], [rows, numbers // rows], [1, rows], [rows, 1, numbers // rows]))

    def _stride(self, shape: Sequence[int], numbers: int) -> list[int]:
        chance = self._chance
        steps, step = [], 1
        for size in reversed(shape):
            steps.append(step)
            step *= max(size, 1)
        steps.reverse()
        if self._may("strides") and len(shape) == 2:
            steps = [1, shape[0]]
        if self._may("overlapping") and numbers:
            steps = [chance.randint(0, 1) for _ in shape]
        if self._may("expanded"):
            steps = [0] * len(shape)
        if "many dimensions" in self._quirks:
            steps = [chance.choice((1, 2**62)) for _ in shape]
        return steps

    def _call(self, module: str, name: str, *arguments: bytes) -> bytes:
        return self.named(module, name) + self.row(arguments) + b"R"

    def _rebuilt(self, values: list[bytes]) -> bytes:
        """A tensor of a storage, an offset, a shape and steps, made in one of the ways that there are."""
        more = [b"\x88" if self._may("gradient") else b"\x89", self._call("collections", "OrderedDict")]
        made = self._made(values, more)
        if self._may("rebuilders"):
            made = self._call(_UTILS, "_rebuild_parameter", made, *more)
        elif self._may("rebuilders", 0.2):
            made = self.named("torch.nn.parameter", "Parameter") + made + b"\x85" + self._chance.choice((b"R", b"\x81"))
        if self._may("attributes"):
            made = self._attributed(made, values, more)
        if self._may("changed"):
            made += self.row(values) + b"b"
        if self._may("sparse"):
            layout = self._call("torch.serialization", "_get_layout", self.text("torch.sparse_coo"))
            data = self.row((made, made, self.row((self.number(3),))))
            made = self._call(_UTILS, "_rebuild_sparse_tensor", layout, data)
        return made

    def _made(self, values: list[bytes], more: list[bytes]) -> bytes:
        chance = self._chance
        if self._may("rebuilders"):
            return self._call(_UTILS, "_rebuild_tensor", *values)
        if self._may("other types"):
            dtype = chance.choice(("float32", "uint16", "float8_e4m3fn", "int8", "complex32", "bfloat16"))
            return self._call(_UTILS, "_rebuild_tensor_v3", *values, *more, self.named("torch", dtype))
        if self._may("quantized"):
            scheme = self.named("torch", "per_tensor_affine") + b"G" + struct.pack(">d", 0.1) + self.number(0) + b"\x87"
            return self._call(_UTILS, "_rebuild_qtensor", *values, scheme, *more)
        metadata = []
        if self._may("metadata"):
            conjugated, negated = (self.dictionary({name: b"\x88"}) for name in ("conj", "neg"))
            metadata.append(chance.choice((b"}", b"N", conjugated, negated)))
        return self._call(_UTILS, "_rebuild_tensor_v2", *values, *more, *metadata)

    def _attributed(self, made: bytes, values: list[bytes], more: list[bytes]) -> bytes:
        chance = self._chance
        state = chance.choice((b"}", self.dictionary({"tag": b"N"}), self.dictionary({"data": b"N"}), b"N"))
        if chance.random() < 0.5:
            return self._call(_UTILS, "_rebuild_parameter_with_state", made, *more, state)
        function, arguments = chance.choice(
            (
                (self.named(_UTILS, "_rebuild_tensor_v2"), [*values, *more]),
                (self.named(_UTILS, "_rebuild_tensor"), values),
                (self.named(_UTILS, "_rebuild_parameter"), [made, *more]),
                (self.named(_UTILS, "_rebuild_tensor_v3"), [*values, *more, self.named("torch", "uint16")]),
                (self.named("torch.nn.parameter", "Parameter"), [made]),
            )
        )
        kind = self.named("torch", "Tensor")
        return self._call("torch._tensor", "_rebuild_from_type_v2", function, kind, self.row(arguments), state)

    def _value(self, depth: int) -> bytes:
        """Anything that may stand beside tensors."""
        chance = self._chance
        plain: list[Callable[[], bytes]] = [
            lambda: b"N",
            lambda: b"\x88",
            lambda: b"\x89",
            lambda: self.number(chance.choice((0, 1, -1, 255, 256, 65536, -(2**31), 2**40, -(2**63), 2**100))),
            lambda: b"G" + struct.pack(">d", chance.choice((0.5, -0.0, float("inf"), float("nan")))),
            lambda: self.text(chance.choice(("", "a", "é", "\ud800", "\0", "x" * 300))),
            lambda: b")",
            lambda: b"]",
            lambda: b"}",
        ]
        others: list[Callable[[], bytes]] = [
            lambda: (
                b"\x8f" if chance.random() < 0.5 else self.named("builtins", "set") + self.row((b"]" + b"K\1a",)) + b"R"
            ),
            lambda: self.named("__builtin__", "set") + self.row((b"]" + self.number(3) + b"a",)) + b"R",
            lambda: self.named("collections", "Counter") + self.row((self.dictionary({"a": self.number(2)}),)) + b"R",
            lambda: self.named("_codecs", "encode") + self.row((self.text("\xff\0"), self.text("latin1"))) + b"R",
            lambda: self.named("builtins", "bytearray") + self.row((b"]K\1a",)) + b"R",
            lambda: self.named("builtins", "complex") + self.row((b"G" + bytes(8), b"G" + bytes(8))) + b"R",
            lambda: self.named("torch", "Size") + self.row((self.row((self.number(2),)),)) + b"R",
            lambda: self.named("torch", "device") + self.row((self.text("cpu"),)) + b"R",
            lambda: self.named("torch", chance.choice(("float32", "int64", "float8_e5m2", "int1", "quint8", "bits8"))),
            lambda: self.named("torch", chance.choice(("FloatTensor", "Tensor", "FloatStorage"))),
            lambda: self.named("collections", "defaultdict") + self.row((b"N",)) + b"R",
            lambda: self.named("pathlib", "PurePosixPath") + self.row((self.text("a"),)) + b"R",
            lambda: (
                self.named("collections", "OrderedDict")
                + self.row((b"]" + self.text("a") + self.number(1) + b"\x86a",))
                + b"R"
            ),
            lambda: (
                self.named("collections", "OrderedDict")
                + self.row((b"]" + self.row((self.text("a"), self._tensor())) + b"a",))
                + b"R"
            ),
            lambda: b"C\3abc",
            lambda: self._storage()[0],
        ]
        if self._may("forbidden", 0.3):
            return self.named(*chance.choice((("os", "system"), ("torch", "load"), ("builtins", "eval"), ("a", "B"))))
        if depth and chance.random() < 0.4:
            items = [self._value(depth - 1) for _ in range(chance.randint(0, 4))]
            if self._may("deep"):
                return b"(" * 3 + b"".join(items) + b"t" * 3
            return chance.choice(
                (
                    lambda: self.row(items),
                    lambda: b"](" + b"".join(items) + b"e",
                    lambda: b"]" + b"".join(item + b"a" for item in items),
                    lambda: self.dictionary({f"k{number}": item for number, item in enumerate(items)}),
                    self._tensor,
                    lambda: self._dictionary_of_tensors(2),
                )
            )()
        return chance.choice(plain + (others if "other values" in self._quirks else []))()
