"""Leases: an owner is alone while it lives, and no longer."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cosyjit.fs.waits import Wait
from cosyjit.store import leases
from cosyjit.store.backends import Remote, storage
from tests.support.processes import said, start, wait_for
from tests.support.s3 import Answer, Cut, Service
from tests.support.stores import unique_url

NAME: Final = "locks/ab"


class Watched(Remote):
    """Knows how often it has been read."""

    reads = 0

    def read(self, name: str) -> bytes:
        self.reads += 1
        return super().read(name)


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest) -> Remote:
    if request.param == "s3":
        server: Service = request.getfixturevalue("s3")
        return remote(server.url())
    return remote(unique_url())


def remote(url: str) -> Remote:
    found = storage(url)
    assert isinstance(found, Remote)
    return found


def names(place: Remote) -> set[str]:
    return {entry.name for entry in place.entries()}


@contextmanager
def waiting(place: Remote, period: float = leases.PERIOD) -> Iterator[threading.Event]:
    """Someone who wants a lease, and has it for a moment; gives what tells that it was had, as it is in the end."""
    had = threading.Event()

    def wait() -> None:
        with leases.held(place, NAME, period):
            had.set()

    thread = threading.Thread(target=wait)
    thread.start()
    yield had
    thread.join(600)
    assert had.is_set()


def test_a_lease_is_a_file_while_it_is_held(place: Remote) -> None:
    for _ in range(2):
        with leases.held(place, NAME):
            assert names(place) == {NAME}
        assert names(place) == set()


def test_a_lease_is_given_back_after_an_error(place: Remote) -> None:
    with pytest.raises(ZeroDivisionError), leases.held(place, NAME):
        raise ZeroDivisionError
    assert names(place) == set()


def test_who_comes_second_waits_until_the_first_is_done() -> None:
    url = unique_url()
    other = Watched(url)
    with ExitStack() as second, leases.held(remote(url), NAME):
        had = second.enter_context(waiting(other))
        wait_for(lambda: other.reads > 5)
        assert not had.is_set()
    assert names(other) == set()


def test_who_waits_can_give_up() -> None:
    place = remote(unique_url())

    class GivenUpError(Exception):
        pass

    def give_up() -> None:
        raise GivenUpError

    with leases.held(place, NAME):
        with pytest.raises(GivenUpError), leases.held(place, NAME, wait=Wait(NAME, check=give_up)):
            pass
        assert names(place) == {NAME}


def test_a_lease_that_is_renewed_is_waited_for_as_long_as_it_takes() -> None:
    url, period = unique_url(), 1.2
    place = remote(url)
    with ExitStack() as second, leases.held(place, NAME, period):
        had = second.enter_context(waiting(remote(url), period))
        wait_for(lambda: place.read(NAME).split()[1] == b"9")  # one and a half periods
        assert not had.is_set()


def test_a_lease_that_stays_as_it_is_is_a_dead_owners() -> None:
    place = remote(unique_url())
    place.write(NAME, b"someone 5\n")
    with leases.held(place, NAME, 0.3):
        assert not place.read(NAME).startswith(b"someone")
    assert names(place) == set()


def test_of_two_that_wait_for_a_dead_owner_each_has_it_in_the_end() -> None:
    url = unique_url()
    remote(url).write(NAME, b"someone 5\n")
    with waiting(remote(url), 0.3), waiting(remote(url), 0.3):
        pass
    assert names(remote(url)) == set()


HOLD = """
from cosyjit.store import leases
from cosyjit.store.backends import storage
import sys
with leases.held(storage(sys.argv[1]), sys.argv[2], float(sys.argv[3])):
    print("held", flush=True)
    input()
"""


@pytest.mark.slow
def test_a_killed_owners_lease_is_taken_over(s3: Service) -> None:
    url, period = s3.url(), 1
    place = remote(url)
    with start(HOLD, url, NAME, period) as owner:
        assert said(owner) == "held"
        owner.kill()
    assert owner.returncode == -signal.SIGKILL
    left = place.read(NAME)
    with leases.held(place, NAME, period):
        assert place.read(NAME).split()[0] != left.split()[0]
    assert names(place) == set()


def test_who_has_lost_a_lease_leaves_the_new_owners_alone() -> None:
    place = remote(unique_url())
    with leases.held(place, NAME, 0.3):
        place.write(NAME, b"someone 0\n")
        threading.Event().wait(0.2)  # in which it would be renewed
        assert place.read(NAME) == b"someone 0\n"
    assert place.read(NAME) == b"someone 0\n"


def test_a_lease_that_someone_has_removed_is_not_written_again() -> None:
    place = remote(unique_url())
    with leases.held(place, NAME, 0.3):
        place.remove(NAME)
        threading.Event().wait(0.2)
        assert names(place) == set()
    assert names(place) == set()


def test_a_lease_that_cannot_be_given_back_is_no_error(s3: Service) -> None:
    url = s3.url()
    with s3.proxied(lambda method, _: Answer(403, "AccessDenied") if method == "DELETE" else None):
        place = remote(url)
        with leases.held(place, NAME):
            pass
        assert names(place) == {NAME}


def test_an_owner_whose_creation_was_not_answered_does_not_wait_for_itself(s3: Service) -> None:
    url = s3.url()
    asked: list[str] = []

    def lose_first(method: str, _: str) -> Cut | None:
        asked.append(method)
        return Cut() if method == "PUT" and asked.count("PUT") == 1 else None

    with s3.proxied(lose_first), leases.held(remote(url), NAME):
        taken = list(asked)
    assert (taken.count("PUT"), taken.count("DELETE")) == (2, 0)


class Plain(MemoryFileSystem):  # type: ignore[misc]
    """Knows no exclusive creation."""

    protocol = "plain"

    def pipe_file(self, path: str, value: bytes) -> None:
        super().pipe_file(path, value)


def test_where_no_file_can_be_created_for_oneself_alone_nobody_waits() -> None:
    fsspec.register_implementation("plain", Plain, clobber=True)
    place = remote(unique_url().replace("memory", "plain"))
    with leases.held(place, NAME), leases.held(place, NAME):
        assert names(place) == set()
