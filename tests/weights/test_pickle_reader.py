"""The reader of pickles: what the standard library reads of data, and nothing that runs."""

import collections
import contextlib
import io
import pickle
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosyjit.weights.formats import UnsupportedFormError
from cosyjit.weights.pickle_reader import ForbiddenError, Globals, Other, loads
from cosyjit.weights.torch_files import _KNOWN
from tests.support.gadgets import INSTRUCTED, NAMED, PICKLED
from tests.support.hostile_weights import call, dictionary, named, number, pickled, row, text
from tests.support.processes import ROOT, finished, spawn, start

DOCUMENTED: Final = (
    *(ForbiddenError, UnsupportedFormError, ValueError, TypeError, AttributeError, LookupError, struct.error),
)
"""What a damaged pickle may raise."""

PROTOCOLS: Final = (2, 3, 4, 5)

KEYS: Final = (
    st.text(max_size=5) | st.integers(1 - 2**60, 2**60 - 1) | st.booleans() | st.none() | st.floats(allow_nan=False)
)
SCALARS: Final = KEYS | st.integers(-(2**2039), 2**2039 - 1) | st.text(st.characters(codec="utf-8"))
DATA: Final = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=5).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def nothing(identifier: object) -> object:
    raise AssertionError(f"the pickle refers to {identifier}")


def read(pickled: bytes, known: Globals | None = None, persistent: Callable[[Any], Any] = nothing) -> Any:
    return loads(pickled, known or {}, persistent).value


@given(DATA)
def test_plain_data_is_what_the_standard_library_reads(value: Any) -> None:
    dumps = pickle.dumps, pickle._dumps  # type: ignore[attr-defined]  # that in Python
    for content in (dump(value, protocol) for dump in dumps for protocol in PROTOCOLS):
        found, expected = read(content), pickle.loads(content)
        assert found == expected == value
        assert repr(found) == repr(expected)  # which tells 1, 1.0 and True apart, at any depth


@given(st.floats())
def test_floats_keep_every_bit(value: float) -> None:
    assert struct.pack("<d", read(pickle.dumps(value, 2))) == struct.pack("<d", value)


def test_lone_surrogates_come_through() -> None:
    assert read(pickle.dumps("a\ud800", 2)) == "a\ud800"


def test_long_lists_and_many_remembered_objects_come_through() -> None:
    words = [f"word {i}" for i in range(3000)]
    value = {"all": words, "again": words[::-1], "by word": {word: [word] for word in words}}
    found = read(pickle.dumps(value, 2))
    assert found == value
    assert found["all"][0] is found["again"][-1]


def test_what_is_shared_stays_shared() -> None:
    inner: list[Any] = [1]
    inner.append(inner)
    found = read(pickle.dumps({"a": inner, "b": inner}, 2))
    assert found["a"] is found["b"]
    assert found["a"][1] is found["a"]


def test_strings_of_python_2_are_taken_for_utf_8_as_torch_does() -> None:
    assert read(b"\x80\x02U\x03a.b.") == "a.b"
    assert read(b"\x80\x02U\x03a\xc3\xa9.") == "aé"
    with pytest.raises(ValueError, match=r"^'utf-8' codec can't decode"):
        read(b"\x80\x02U\x02a\xe9.")


def test_known_names_are_called_with_what_the_pickle_gives() -> None:
    pickled = pickle.dumps([collections.OrderedDict(a=1), Path, complex(1, 2)], 2)
    known = {("collections", "OrderedDict"): dict, ("pathlib", "Path"): "a path", ("__builtin__", "complex"): max}
    assert read(pickled, known) == [{"a": 1}, "a path", 2.0]


def test_what_the_pickle_only_refers_to_is_asked_for() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("set", sorted(value)) if isinstance(value, set) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump([{2, 1}, {"a": {3}}])
    found = read(buffer.getvalue(), persistent=lambda identifier: identifier)
    assert found == [("set", [1, 2]), {"a": ("set", [3])}]


def test_attributes_are_left_out() -> None:
    value = collections.OrderedDict(a=1)
    value._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as torch's state dictionaries have it
    assert read(pickle.dumps(value, 2), {("collections", "OrderedDict"): dict}) == {"a": 1}


@pytest.mark.parametrize("gadget", PICKLED)
def test_what_would_run_code_is_refused_and_named(gadget: Callable[[str], object], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickled = pickle.dumps({"a": [1, gadget(str(marker))]}, 2)
    with pytest.raises(ForbiddenError, match=r"^(posix\.system|tests\.support\.gadgets\.(touch|Restored))$"):
        read(pickled, {("collections", "OrderedDict"): dict})
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists()


LOADING: Final = """
import pickle, sys
from pathlib import Path
from tests.support.gadgets import INSTRUCTED

for number, instructions in enumerate(INSTRUCTED.values()):
    marker = Path(sys.argv[1], str(number))
    try:
        pickle.loads(b"\\x80\\4" + instructions(str(marker)) + b".")
    except Exception:
        pass
    assert marker.exists(), number
"""


@pytest.mark.stress
def test_the_standard_library_runs_what_is_refused_here(tmp_path: Path) -> None:
    ran = finished(spawn(sys.executable, "-c", LOADING, tmp_path, cwd=ROOT))
    assert (ran.status, ran.err) == (0, "")
    assert len(list(tmp_path.iterdir())) == len(INSTRUCTED)


@pytest.mark.parametrize("start", [b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5", b""], ids=["2", "3", "4", "5", "none"])
@pytest.mark.parametrize("name", INSTRUCTED)
def test_no_instructions_run_anything(name: str, start: bytes, tmp_path: Path) -> None:
    value = INSTRUCTED[name](str(tmp_path / "marker"))
    for instructions in (value, dictionary({"a": value}), row(value), b"}" + value + b"b", b"}" + value + b"Ns"):
        with pytest.raises((ForbiddenError, UnsupportedFormError, ValueError)):
            read(start + instructions + b".", _KNOWN)
    assert not (tmp_path / "marker").exists()


OLDER: Final = r"^has a pickle of another protocol than 2 to 5; load it, and save it again$"


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize("gadget", PICKLED)
def test_no_pickle_of_an_older_protocol_is_read(gadget: Callable[[str], object], protocol: int, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormError, match=OLDER):
        read(pickle.dumps(gadget(str(tmp_path / "marker")), protocol), _KNOWN)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", NAMED, ids=lambda name: name[:40])
def test_what_others_name_to_run_code_is_not_known(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    for value in (
        named(module, attribute),
        call(named(module, attribute), text("a")),
        b"](" + named(module, attribute),
    ):
        with pytest.raises(ForbiddenError):
            read(pickled(value), _KNOWN)


@pytest.mark.parametrize("name", ["builtins\neval", "os\nsystem", "collections\nOrderedDict.update", "\n", "a\nb"])
def test_every_name_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(ForbiddenError) as error:
        read(b"\x80\x02c" + name.encode() + b"\n.", {("collections", "OrderedDict"): dict})
    assert str(error.value) == ".".join(name.split("\n"))


@pytest.mark.parametrize("start", [b"", b"\x80", b"\x80\x01", b"\x80\x06", b"\x80\xff"])
def test_other_protocols_are_refused(start: bytes) -> None:
    with pytest.raises((UnsupportedFormError, ValueError, IndexError)):
        read(start + b"]." if len(start) > 1 else start)


KNOWN: Final = (
    b"q\x72hKX(tRQ\x85\x86\x87)\x89MJjc}ubN\x88\x8aGU]aes.\x94\x8c\x81\x93\x95C\x8f\x90\x9101\x8dTB\x8e\x96\x8b"
)
"""The instructions of protocol 2, and those that later ones and Python 2 use besides."""


@pytest.mark.parametrize("code", sorted(set(range(256)) - set(KNOWN)))
def test_other_instructions_are_refused(code: int) -> None:
    with pytest.raises(ValueError, match=rf"^instruction {code:#04x} in the pickle$"):
        read(b"\x80\x02]" + bytes([code]) + b"aaaa\n.")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_not_read_is_passed_over(protocol: int) -> None:
    known = {
        ("_codecs", "encode"): lambda *_: Other("bytes"),
        **{
            (module, name): lambda *_, name=name: Other(name)
            for module in ("builtins", "__builtin__")
            for name in NAMES
        },
    }
    value = {
        "set": {1, (2, "a")},
        "frozenset": frozenset([(1, 2)]),
        "bytes": b"\0\xff" * 200,
        "bytearray": bytearray(b"abc"),
        (1, (2, 3)): "a key that is a tuple",
        frozenset("ab"): "a key that is a set",
        2**70: "a key that is too large a number",
        "last": [1],
    }
    kinds = {name: Other(name) for name in ("set", "frozenset", "bytes", "bytearray")}
    assert read(pickle.dumps(value, protocol), known) == {**kinds, "last": [1]}


NAMES: Final = ("set", "frozenset", "bytes", "bytearray")


def test_what_stands_behind_a_pickle_is_found() -> None:
    first, second = pickle.dumps([1], 4), pickle.dumps([2], 2)
    found = loads(b"ab" + first + second, {}, nothing, 2)
    assert (found.value, found.end) == ([1], 2 + len(first))
    assert loads(b"ab" + first + second, {}, nothing, found.end) == ([2], 2 + len(first) + len(second))


def test_a_name_is_told_from_what_a_pickle_is_as_a_whole() -> None:
    for content, whole in (
        (named("a", "b"), True),
        (text("a") + text("b") + b"\x93", True),
        (b"]" + named("a", "b"), False),
    ):
        with pytest.raises(ForbiddenError) as error:
            read(pickled(content))
        assert (error.value.name, error.value.whole) == ("a.b", whole)


@pytest.mark.parametrize("value", [text("x"), b"\x8f", b"K\1"], ids=["text", "set", "number"])
def test_names_are_texts(value: bytes) -> None:
    with pytest.raises((TypeError, ForbiddenError)):
        read(pickled(value + text("b") + b"\x93"), {("b", "b"): 1})


@pytest.mark.parametrize("rest", [b"", b".", b"]", b"]].", b"(.", b"K", b"X\xff\xff\xff\xffa.", b"\x8a\xff\x01.", b"c"])
def test_what_is_cut_short_or_left_over_is_damage(rest: bytes) -> None:
    with pytest.raises(DOCUMENTED):
        read(b"\x80\x02" + rest)


def attempt(pickled: bytes) -> None:
    with contextlib.suppress(*DOCUMENTED):
        read(pickled, {("collections", "OrderedDict"): dict, ("a", "b"): len}, lambda identifier: identifier[0])


VALUE: Final = {"a": [1, 300, -7, 2**40, 1.5, None, True, "é"], "b": (1, (2, 3)), "c": collections.OrderedDict(x=[()])}
SAMPLE: Final = pickle.dumps(VALUE, 2)


def test_the_sample_that_is_damaged_is_whole() -> None:
    assert read(SAMPLE, {("collections", "OrderedDict"): dict}) == VALUE


@pytest.mark.parametrize("length", range(len(SAMPLE)))
def test_a_truncated_pickle_is_damage(length: int) -> None:
    with pytest.raises(DOCUMENTED):
        read(SAMPLE[:length], {("collections", "OrderedDict"): dict})


@given(st.data())
def test_damage_raises_nothing_but_what_is_documented(data: st.DataObject) -> None:
    content = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    attempt(bytes(content))


INSTRUCTIONS: Final = st.lists(
    st.sampled_from(
        [*(bytes([code]) for code in b"(tRQ\x85\x86\x87)\x89}ubN\x88]aes"), b"q\0", b"h\0", b"K\1", b"U\1a", b"ca\nb\n"]
    ),
    max_size=30,
)


@given(st.binary(max_size=50) | INSTRUCTIONS.map(b"".join))
def test_anything_raises_nothing_but_what_is_documented(content: bytes) -> None:
    attempt(b"\x80\x02" + content)
    attempt(b"\x80\x02" + content + b".")


def test_a_huge_index_of_the_memo_costs_no_memory() -> None:
    pickled = b"\x80\x02]r\xff\xff\xff\xffj\xff\xff\xff\xff\x86."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read(pickled) == ([], [])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_attributes_are_those_of_a_dictionary_or_of_what_is_passed_over() -> None:
    # To others, these are what a tensor is made of anew.
    for value in (b"]", row(number(1)), named("a", "b") + b")R", text("x"), named("a", "c")):
        with pytest.raises(UnsupportedFormError, match=r"\(a (list|tuple|int|str|Other) that is changed\)"):
            read(pickled(value + b"}b"), {("a", "b"): int, ("a", "c"): Other("Tensor, sparse")})
    assert read(pickled(named("a", "b") + b"}b"), {("a", "b"): Other("Namespace")}) == Other("Namespace")


@pytest.mark.parametrize("arguments", [text("abc"), b"]K\1a", b"}", number(7), row(*[b"N"] * 17)], ids=repr)
def test_a_call_without_a_few_arguments_is_refused(arguments: bytes) -> None:
    with pytest.raises(UnsupportedFormError, match=r"\(a call with no arguments, or too many\)"):
        read(pickled(named("a", "b") + arguments + b"R"), {("a", "b"): lambda *given: given})


def test_keys_are_numbers_that_have_a_hash_of_their_own() -> None:
    largest = 2**60 - 1
    assert read(pickle.dumps({largest: 1, -largest: 2, 0: 3}, 2)) == {largest: 1, -largest: 2, 0: 3}
    for key in (2**60, -(2**60), 2**61 - 1, 2**2000):
        assert read(pickle.dumps({key: 1, "a": 2}, 2)) == {"a": 2}


DEEP: Final = b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns."
"""A dictionary whose key is a tuple in a tuple in a tuple."""

WIDE: Final = b"\x80\x02})" + b"q\1h\1\x86" * 64 + b"Ns."
"""A dictionary whose key is a pair of twice the same pair, and so on: to hash it takes 2^64 steps."""


MODULUS: Final = sys.hash_info.modulus
COLLIDING: Final = pickled(b"}(" + b"".join(number(i * MODULUS) + b"N" for i in range(1, 150_000)) + b"u")
"""A dictionary of numbers that all have the hash 0."""

ARGUMENTS: Final = pickled(row(*[b"N"] * 1_000_000) + b"q\1](" + (named("a", "b") + b"h\1R") * 100_000 + b"e")
"""A hundred thousand calls with a million arguments each."""

CHARACTERS: Final = pickled(text("x" * 1_000_000) + b"q\1](" + (named("a", "b") + b"h\1R") * 100_000 + b"e")
"""The same with the characters of a string."""

NAMES_ON_A_STACK: Final = pickled(text("a") + b"q\0" + text("b") + b"q\1" + b")" * 1_000_000 + b"h\0h\1\x930" * 150_000)
"""A hundred and fifty thousand names, each on top of a million values."""

LARGE: Final = 1 << 20
LARGE_KEYS: Final = pickled(b"}\x8b" + struct.pack("<I", LARGE) + b"\x80" * LARGE + b"q\0N" + b"s" + b"h\0Ns" * 200_000)
"""One negative number of a million bytes, as a key again and again."""

COSTLY: Final = {
    "deep": DEEP,
    "wide": WIDE,
    "colliding": COLLIDING,
    "arguments": ARGUMENTS,
    "characters": CHARACTERS,
    "names on a stack": NAMES_ON_A_STACK,
    "large keys": LARGE_KEYS,
}

BOUNDED: Final = """
import resource, sys

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from cosyjit.weights.formats import UnsupportedFormError
from cosyjit.weights.pickle_reader import loads

try:
    loads(open(sys.argv[1], 'rb').read(), {("a", "b"): lambda *given: None}, None)
    print('read')
except (UnsupportedFormError, ValueError):
    print('refused')
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTLY)
def test_what_costs_more_than_its_size_neither_ends_nor_holds_up_the_process(name: str, tmp_path: Path) -> None:
    (tmp_path / "pickled").write_bytes(COSTLY[name])
    with start(BOUNDED, tmp_path / "pickled") as process:
        out, _ = process.communicate()
    assert (process.returncode, out) == (
        0,
        "refused\n" if name in {"arguments", "characters", "names on a stack"} else "read\n",
    )


MOST: Final = {
    "dictionaries": b"}" * (2 << 20),
    "marks": b"(" * (2 << 20),
    "lists within lists": b"]" * (1 << 20) + b"a" * ((1 << 20) - 1),
    "tuples within tuples": b")" + b"\x85" * (2 << 20),
    "remembered": b"".join(b"]r" + struct.pack("<I", i) for i in range((2 << 20) // 6)),
    "entries": b"}" + b"".join(b"}K\1K\1s" for _ in range((2 << 20) // 6)),
    "large numbers": (b"\x8a\1\1" + b"J\1\2\3\4") * ((2 << 20) // 8),
}
"""Pickles of 2 MB that describe as much as they can."""


@pytest.mark.stress
@pytest.mark.parametrize("name", MOST)
def test_a_pickle_takes_a_hundred_times_its_size_at_most(name: str, tmp_path: Path) -> None:
    (tmp_path / "pickled").write_bytes(pickled(MOST[name]))
    code = BOUNDED.replace("1 << 30", "300 << 20").replace("ValueError)", "ValueError, IndexError)")
    with start(code, tmp_path / "pickled") as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out in {"read\n", "refused\n"}
