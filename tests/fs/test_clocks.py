"""Clocks that jump: what a store and a directory need stays, whatever times their files have."""

import os
from pathlib import Path
from typing import Final

import pytest

from cosyjit.operations import gc
from cosyjit.operations.verify import verify_store
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import Store
from tests.support.stores import add, files_of, is_whole, show

MOMENTS: Final = {"1970": 0, "2000": 946_684_800, "2096": 4 * 10**9}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_what_is_needed_is_not_collected_whatever_the_clock_showed(store: Store, tmp_path: Path, moment: int) -> None:
    """A clock that has jumped makes all files as old, or as young, as none is."""
    published = [show(store, tmp_path / "model", content) for content in (b"one", b"two")]
    unused = add(store, b"nobody wants it")
    assert store.local is not None
    for folder in (store.local, tmp_path / "model"):
        for path in folder.rglob("*"):
            os.utime(path, (moment, moment), follow_symlinks=False)
    before = files_of(store)
    gc.gc(store, delete=True)
    assert files_of(store) == before - (set() if moment == MOMENTS["2096"] else {f"objects/{unused[:2]}/{unused}"})
    assert all(is_whole(store, each) for each in published)
    assert verify_store(store) == []
    assert PublishedDirectory(tmp_path / "model", store).rollback().number == 3
