"""Slots for builds: no more at a time, in turn, and nobody waits whose export is cancelled."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from cosyjit.errors import BuildError
from cosyjit.processes.slots import Slots
from cosyjit.processes.worker import CancelScope
from tests.support.processes import wait_for


class Queue:
    """Threads that ask for slots, one after the other."""

    def __init__(self, slots: Slots, pool: ThreadPoolExecutor) -> None:
        self._slots, self._pool = slots, pool
        self.order: list[int] = []

    def ask(self, number: int, scope: CancelScope) -> "threading.Event":
        """Have a thread wait for a slot; it keeps it until the event is set."""
        leave = threading.Event()

        def work() -> None:
            with self._slots.taken(scope):
                self.order.append(number)
                assert leave.wait(600)

        waiting = len(self._slots._waiting)
        self._pool.submit(work)
        wait_for(lambda: number in self.order or len(self._slots._waiting) > waiting)
        return leave


@contextmanager
def queue(number: int) -> Iterator[Queue]:
    with ThreadPoolExecutor(8) as pool:
        yield Queue(Slots(number), pool)


def test_no_more_hold_slots_than_there_are_and_who_asks_first_is_served_first() -> None:
    with queue(2) as asking:
        leaving = [asking.ask(number, CancelScope()) for number in range(6)]
        assert sorted(asking.order) == [0, 1]
        for served, leave in enumerate(leaving[:4], start=3):
            leave.set()
            wait_for(lambda count=served: len(asking.order) == count)  # type: ignore[misc]
        assert asking.order[2:] == [2, 3, 4, 5]
        for leave in leaving:
            leave.set()


def test_who_waits_stops_when_its_export_is_cancelled_and_leaves_its_place_to_the_next() -> None:
    slots, scope = Slots(1), CancelScope()
    with slots.taken(CancelScope()), ThreadPoolExecutor(1) as pool:
        scope.cancel()
        with pytest.raises(BuildError, match=r"^stopped"), slots.taken(scope):
            pass
        scope = CancelScope()

        def wait() -> None:
            with slots.taken(scope):
                raise AssertionError("unreachable")

        waiting = pool.submit(wait)
        wait_for(lambda: slots._waiting)
        scope.cancel()
        with pytest.raises(BuildError, match=r"^stopped"):
            waiting.result(60)
    with slots.taken(CancelScope()):
        pass


def test_an_error_inside_gives_the_slot_back() -> None:
    slots = Slots(1)
    with pytest.raises(ZeroDivisionError), slots.taken(CancelScope()):
        raise ZeroDivisionError
    with slots.taken(CancelScope()):
        pass
