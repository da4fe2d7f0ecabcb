"""Looks at things that may fail or take for ever: what they had found counts, and the others are not held up."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosyjit.doctor.finding import Finding, Probe, look, shown
from cosyjit.errors import StoreError


def test_findings_come_in_the_order_of_the_probes_whoever_is_first() -> None:
    second = threading.Event()

    def waiting() -> Iterator[Finding]:
        second.wait()
        yield Finding("a", "1", 1)

    def setting() -> Iterator[Finding]:
        yield Finding("b", "2", 2)
        second.set()

    assert look([Probe("a", "1", waiting), Probe("b", "2", setting)]) == (Finding("a", "1", 1), Finding("b", "2", 2))


def test_a_look_that_fails_says_why_after_what_it_had_found_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "s3cr3t")

    def failing() -> Iterator[Finding]:
        yield Finding("a", "1", 1)
        raise ZeroDivisionError("of s3cr3t\nand https://me:pw@host/x")

    def refusing() -> Iterator[Finding]:
        yield Finding("c", "e", "http://h/?token=t0k", "note", "of s3cr3t, http://h/?token=t0k")
        raise StoreError("store: is not one; name another")

    assert look([Probe("a", "b", failing), Probe("c", "d", refusing)]) == (
        Finding("a", "1", 1),
        Finding("a", "b", None, "wrong", "cannot be found out (ZeroDivisionError: of … and https://host/x)"),
        Finding("c", "e", "http://h/?token=…", "note", "of …, http://h/?token=…"),
        Finding("c", "d", None, "wrong", "store: is not one; name another"),
    )


def test_a_look_that_takes_too_long_is_left_alone() -> None:
    ended = threading.Event()

    def endless() -> Iterator[Finding]:
        yield Finding("a", "1", 1)
        ended.wait()

    found = look([Probe("a", "b", endless, 0.01, "note")])
    ended.set()
    assert found == (Finding("a", "1", 1), Finding("a", "b", None, "note", "was not found out within 0.01 s"))


def test_the_home_directory_has_no_name_in_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert shown("/home/someone/.cache/x") == "~/.cache/x"
    assert shown(Path("/home/someone")) == "~"
    assert shown("/home/someoneelse/x") == "/home/someoneelse/x"
    assert shown("s3://bucket/x") == "s3://bucket/x"
    monkeypatch.setenv("HOME", "/")
    assert shown("/x") == "/x"
