"""The store and the user's own directory beside it: where they are, what is in them, and whether they can be used."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from cosyjit.doctor.finding import Finding, Probe, State, shown
from cosyjit.errors import StoreError, log_cause
from cosyjit.fs import files
from cosyjit.fs.identity import settle
from cosyjit.fs.mounts import file_system
from cosyjit.sources.ids import HUBS
from cosyjit.store.store import DEFAULT_ROOT, Store

_LITTLE: Final = 10_000_000_000
"""In bytes. The artifacts of a model at all precisions take about as much."""

_REACHED: Final = 30.0
"""In s, how long a store may take to answer: a client of S3 asks again and again."""

_COUNTED: Final = 10.0
"""In s, after which files are counted no longer, of which a bucket may have millions."""


def probes(given: str | None) -> list[Probe]:
    """The looks at a store, and at the directory where this user's downloads, copies and digests are.

    Args:
        given: the path or URL of the store; that of this user for None.
    """
    return [
        Probe("store", "there", partial(_store, given), _REACHED),
        Probe("store", "objects", partial(_objects, given), _COUNTED, "note"),
        Probe("cache", "place", _cache),
        Probe("cache", "sizes", _sizes, _COUNTED, "note"),
    ]


def _store(given: str | None) -> Iterator[Finding]:
    store = Store(given)
    yield Finding("store", "place", shown(store.root))
    if store.is_there():
        yield Finding("store", "there", True)
    else:
        yield Finding("store", "there", False, "note", "there is none yet; the first export makes it")
    if store.local is not None:
        yield from _disk("store", store.local)
        if not store.is_private:
            advice = "others can write to it; artifacts are built below ~/.cache/cosyjit, and their bytes are checked"
            yield Finding("store", "private", False, "note", advice)
    yield _writable(store)
    yield from _digests(store)


def _writable(store: Store) -> Finding:
    if store.read_only:
        advice = "serves plan, status, verify and exports of what it has, and nothing new can be built"
        return Finding("store", "writable", False, "note", advice)
    try:
        tried = store.try_write()
    except StoreError as error:
        log_cause(error)
        return Finding("store", "writable", False, "wrong", str(error))
    if not tried:
        return Finding("store", "writable", None, "ok", "cannot be tried here without leaving something")
    return Finding("store", "writable", True)


def _digests(store: Store) -> Iterator[Finding]:
    """Where digests are remembered, and whether those of files in the store are."""
    directory = store.digests.directory
    above = files.nearest_directory(directory)
    if os.access(above, os.W_OK):
        yield Finding("store", "digests in", shown(directory))
    else:
        advice = f"{shown(above)} cannot be written to, so nothing is remembered, and files are read each time"
        yield Finding("store", "digests in", shown(directory), "note", advice)
    if store.local is None:
        return
    with suppress(OSError), files.unnamed(files.nearest_directory(store.local)) as file:  # else it cannot be told
        file.write(b"\n")
        (remembered,) = settle([file.fileno()])
        advice = "" if remembered else "this file system does not tell for sure whether a file has changed"
        name = "digests of its files"
        yield Finding("store", name, "remembered" if remembered else "taken each time", _note(not remembered), advice)


def _note(given: bool) -> State:
    return "note" if given else "ok"


def _disk(part: str, place: Path) -> Iterator[Finding]:
    """The file system where a directory is, or would be."""
    directory = files.nearest_directory(place)
    yield Finding(part, "file system", file_system(directory) or None)
    disk = shutil.disk_usage(directory)
    if disk.total:  # a file system without a disk has no size
        little = disk.free < _LITTLE
        advice = "is less than the artifacts of a model may take" if little else ""
        yield Finding(part, "free", disk.free, _note(little), advice, "bytes")


def _objects(given: str | None) -> Iterator[Finding]:
    with suppress(StoreError):  # which the look at its place says
        store = Store(given)
        objects = store.entries("objects")
        yield Finding("store", "objects", len(objects))
        yield Finding("store", "size", sum(each.size for each in objects), unit="bytes")
        yield Finding("store", "records", len(store.entries("records")))


def _cache() -> Iterator[Finding]:
    place = files.absolute(Path(DEFAULT_ROOT))
    yield Finding("cache", "place", shown(place))
    yield from _disk("cache", place)


def _sizes() -> Iterator[Finding]:
    for name, folders in (("downloads", [hub.FOLDER for hub in HUBS]), ("copies of remote objects", ["cache"])):
        places = (files.absolute(Path(DEFAULT_ROOT)) / folder for folder in folders)
        yield Finding("cache", name, sum(map(_size, places)), unit="bytes")


def _size(directory: Path) -> int:
    """The bytes of all files below a directory; 0 if there is none."""
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # another process has just removed it
                size += Path(folder, name).lstat().st_size
    return size
