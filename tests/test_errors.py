"""The tree of errors: as drawn, one line each, and the same on the other side of a process boundary."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from botocore.exceptions import CredentialRetrievalError  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from cosyjit import errors
from cosyjit.errors import (
    ConfigError,
    CosyjitError,
    StoreError,
    TensorMismatchError,
    UnsupportedOptionError,
    log_cause,
    trace,
)


def below(kind: type[CosyjitError]) -> Iterator[type[CosyjitError]]:
    """A class of the tree and all that derive from it, top down."""
    yield kind
    for derived in kind.__subclasses__():
        yield from below(derived)


CLASSES: Final = [kind for kind in dict.fromkeys(below(CosyjitError)) if kind.__module__ == errors.__name__]
PLAIN: Final = [kind for kind in CLASSES if kind.__init__ is CosyjitError.__init__]

ANYTHING: Final = st.text(st.characters(exclude_categories=()))
LINES: Final = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), min_size=1)
NAMES: Final = st.lists(LINES.filter(lambda name: len(name) < 100), max_size=3)
"""Of tensors; longer ones are shortened where they are shown."""
OPTION_ERRORS: Final = st.builds(UnsupportedOptionError, LINES, LINES, LINES, LINES | st.just(""))
MISMATCHES: Final = st.builds(TensorMismatchError, LINES, NAMES, NAMES, NAMES)
HOSTILE: Final = st.builds(UnsupportedOptionError, ANYTHING, ANYTHING, ANYTHING) | st.builds(
    TensorMismatchError, ANYTHING, st.lists(ANYTHING, max_size=3), st.just([]), st.just([])
)
ERRORS: Final = st.one_of(OPTION_ERRORS, MISMATCHES, HOSTILE, *(st.builds(kind, ANYTHING) for kind in PLAIN))


def passed_on(error: CosyjitError, protocol: int) -> CosyjitError:
    found = pickle.loads(pickle.dumps(error, protocol))
    assert isinstance(found, CosyjitError)
    return found


COPIES: Final[list[Callable[[CosyjitError], CosyjitError]]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda error, protocol=protocol: passed_on(error, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
]


def test_the_drawn_tree_is_the_tree() -> None:
    drawn: list[tuple[str, str | None]] = []
    parents: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.lstrip(" │├└─").split()
        if words and words[0].endswith("Error"):
            column = line.index(words[0])
            parents = {indent: name for indent, name in parents.items() if indent < column}
            drawn.append((words[0], parents[max(parents)] if parents else None))
            parents[column] = words[0]
    actual = [(kind.__name__, None if kind is CosyjitError else kind.__bases__[0].__name__) for kind in CLASSES]
    assert sorted(drawn, key=str) == sorted(actual, key=str)


def test_every_exception_of_the_module_is_in_the_tree() -> None:
    exceptions = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, BaseException)]
    assert set(exceptions) == set(CLASSES)


def test_every_class_is_tried() -> None:
    assert {*PLAIN, UnsupportedOptionError, TensorMismatchError} == set(CLASSES)


@given(ERRORS)
def test_errors_survive_pickling_and_copying(error: CosyjitError) -> None:
    for duplicate in COPIES:
        found = duplicate(error)
        assert found is not error
        assert type(found) is type(error)
        assert str(found) == str(error)
        assert found.args == error.args
        assert vars(found) == vars(error)


@given(ERRORS)
def test_messages_are_one_line_that_does_nothing_to_a_terminal(error: CosyjitError) -> None:
    assert len(str(error).splitlines()) <= 1
    assert str(error).isprintable()


def test_what_is_not_printable_is_escaped() -> None:
    hostile = "a\nb\x1b[31m\u202e\u2028\ud800 \u00e9"
    assert str(CosyjitError(hostile)) == "a\\nb\\x1b[31m\\u202e\\u2028\\ud800 \u00e9"


def test_another_error_is_quoted_in_a_line_of_some_length() -> None:
    assert errors.line(ValueError(" a\n b ")) == "a b"
    assert errors.line(ValueError()) == "ValueError"
    assert len(errors.line(ValueError("x" * 10**6))) < 400


@given(OPTION_ERRORS)
def test_an_option_error_says_all_that_it_carries(error: UnsupportedOptionError) -> None:
    message = str(error)
    assert message.endswith(f"option {error.option} is {error.value}; supported: {error.supported}")
    assert message.startswith(f"{error.where}: option " if error.where else "option ")


@given(MISMATCHES)
def test_a_mismatch_lists_every_tensor_and_counts_them(error: TensorMismatchError) -> None:
    message = str(error)
    assert message.startswith(f"{error.where}: ")
    for tensors, kind in (
        (error.missing, "missing"),
        (error.unexpected, "unexpected"),
        (error.misshapen, "of another shape"),
    ):
        assert (f"{len(tensors)} {kind}: {', '.join(tensors)}" in message) is bool(tensors)


def test_a_mismatch_leaves_out_the_kinds_that_there_are_none_of() -> None:
    message = str(TensorMismatchError("llm.pt: llm.llm", [], ["a", "b"], []))
    assert "(2 unexpected: a, b)" in message
    assert "missing" not in message
    assert "shape" not in message


def test_a_trace_has_no_text_of_a_command_that_was_to_give_credentials() -> None:
    printed = CredentialRetrievalError(provider="custom-process", error_msg="a5ecret")
    error = StoreError("s3://bucket: cannot be reached")
    error.__context__ = printed
    shown = trace(error)
    assert shown.startswith("CredentialRetrievalError\n")
    assert "a5ecret" not in shown


def test_a_trace_of_causes_in_a_circle_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    assert trace(one) == "ValueError: other\n\nValueError: one"


def test_the_debug_log_has_no_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "cosyjit")
    log_cause(ConfigError("a \x1b[31mred\x07 key"))
    (record,) = caplog.records
    assert record.getMessage().splitlines()[-1].endswith("ConfigError: a \\x1b[31mred\\x07 key")
    assert record.getMessage().replace("\n", "").isprintable()
