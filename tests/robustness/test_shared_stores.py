"""Stores that strangers may write to: nothing outside is changed, and nothing but what a digest is of is published."""

import ctypes
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from cosyjit import Published, Store
from cosyjit.errors import StoreError
from cosyjit.operations import status
from cosyjit.provenance import record
from cosyjit.publishing.directory import PublishedDirectory
from tests.support.files import sha256
from tests.support.keys import Pair, pair
from tests.support.processes import Run, shown, snapshot
from tests.support.stores import NAME, add, age, litter, object_path, put, record_of, show

ONE: Final = ["--component", "flow.encoder", "--precision", "fp16"]
GOOD, BAD = b"what was signed" * 1000, b"what was not..." * 1000


@pytest.fixture
def shared(tmp_path: Path) -> Store:
    """A store that others may write to."""
    path = tmp_path / "store"
    path.mkdir()
    path.chmod(0o777)
    return Store(path)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of somebody's, with what looks like a store's in it."""
    path = tmp_path / "victim"
    digest = sha256(b"mine")
    for name in ("mine", "cosyjit-abcdefgh/mine", f"{digest[:2]}/{digest}", digest, f"{'0' * 32}.json", "00", "ab"):
        if not (path / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"mine")
    (path / ".." / "mine").write_bytes(b"mine")
    for each in path.rglob("*"):
        os.utime(each, (1e9, 1e9))
    return path


OTHER_FOLDERS: Final = ("records", "heads", "latest", "publications", "objects/00", "damaged")
"""Those that stand in the same place in a store of one's own as in a shared one, and are opened in the same way."""

FOLDERS: Final = [
    *(("tmp", False), ("tmp", True), ("objects", False)),
    *(
        pytest.param(folder, exclusive, marks=pytest.mark.stress)
        for folder, exclusive in (
            *((folder, bool(number % 2)) for number, folder in enumerate(OTHER_FOLDERS)),
            *((folder, each) for folder in ("locks", "digests", "tmp/cosyjit-abcdefgh") for each in (False, True)),
        )
    ),
]


@pytest.mark.parametrize(("folder", "exclusive"), FOLDERS)
def test_no_folder_of_a_store_is_followed_that_is_a_link(
    folder: str, exclusive: bool, tiny2: Path, shared: Store, victim: Path, tmp_path: Path, run: Run
) -> None:
    if exclusive:
        Path(shared.root).chmod(0o755)
    out = tmp_path / "out"
    show(shared, out, b"one", b"two")
    age(shared, 1e8)
    shutil.rmtree(Path(shared.root, folder), ignore_errors=True)
    Path(shared.root, folder).parent.mkdir(exist_ok=True)
    Path(shared.root, folder).symlink_to(victim)
    before = snapshot(victim)
    at = ("--store", shared.root)
    for arguments in (
        ["gc", *at, "--delete", "--older-than", "0s"],
        ["export", tiny2, *ONE, "--publish", tmp_path / "other", *at],
        ["export", tiny2, *ONE, "--publish", tmp_path / "other", *at, "--force"],
        ["rollback", out, *at],
        ["status", out, *at],
        ["verify", out, *at],
        ["verify", *at],
        ["history", out, *at],
        ["gc", *at, "--delete", "--older-than", "0s"],
    ):
        ran = run(*arguments)
        assert ran.status in {0, 1, 2}
        if ran.status == 2:
            assert len(ran.err.splitlines()) == 1
        assert snapshot(victim) == before, arguments
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["lock", "gate"])
def test_a_lock_that_is_a_link_or_a_pipe_is_said(name: str, shared: Store, tmp_path: Path, run: Run) -> None:
    path = Path(shared.root, name)
    for make in (partial(path.symlink_to, tmp_path / "elsewhere"), partial(os.mkfifo, path)):
        make()
        ran = run("gc", "--store", shared.root, "--delete")
        assert (ran.status, ran.out) == (2, "")
        assert f"{shared.root}: cannot be read or written ({name}: " in ran.err
        assert not (tmp_path / "elsewhere").exists()
        path.unlink()


THINGS: Final[dict[str, Callable[[Path], object]]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize(
    ("thing", "folder"),
    [
        *(("pipe", "records"), ("device", "objects")),
        *(
            pytest.param(thing, folder, marks=pytest.mark.stress)
            for number, thing in enumerate(THINGS)
            # All documents are opened by one function.
            for folder in ("objects", "records", ("publications", "heads", "latest")[number % 3])
        ),
    ],
)
def test_what_is_no_file_keeps_nobody_waiting(
    thing: str, folder: str, tiny2: Path, shared: Store, tmp_path: Path, run: Run
) -> None:
    out, at = tmp_path / "out", ("--store", shared.root)
    assert run("export", tiny2, *ONE, "--publish", out, *at).status == 0
    age(shared, 1e8)
    (path,) = [each for each in Path(shared.root, folder).rglob("*") if each.is_file()]
    path.unlink()
    THINGS[thing](path)
    found = run("verify", *at)
    assert thing == "folder" or (found.status, str(path.relative_to(shared.root)) in found.out) == (1, True)
    for arguments in (
        ["status", out, *at],
        ["history", out, *at],
        ["gc", *at, "--older-than", "0s"],
        ["plan", tiny2, *at],
    ):
        assert run(*arguments).status in {0, 1, 2}
    exported = run("export", tiny2, *ONE, "--publish", out, *at)
    if exported.status:
        assert folder in {"heads", "publications"} or thing == "folder"
        if folder == "latest":  # it is one target's, which fails
            assert (exported.status, exported.err) == (1, "")
        else:
            assert (exported.status, len(exported.err.splitlines())) == (2, 1)
        assert path.name in "".join((exported.out + exported.err).split())
    assert run("gc", *at, "--older-than", "0s", "--delete").status in {0, 2}
    assert run("verify", out, *at).status in {0, 1, 2}


# Between the look and the copy.

_LIBC: Final = ctypes.CDLL(None)
_HERE, _EXCHANGE = -100, 2


@contextmanager
def exchanged(one: Path, other: Path) -> Iterator[None]:
    """Someone exchanges two folders all the time."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            _LIBC.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("link", [False, True])
def test_what_is_published_is_what_its_digest_is_of_whatever_is_exchanged(
    link: bool, shared: Store, tmp_path: Path
) -> None:
    published = put(shared, GOOD)
    path = object_path(shared, published.sha256)
    evil = path.parent.with_name("evil")
    evil.mkdir()
    (evil / path.name).write_bytes(BAD)
    done = 0
    for number in range(60):
        out = tmp_path / str(number)
        with exchanged(path.parent, evil), suppress(StoreError):
            PublishedDirectory(out, shared).publish({NAME: published}, "/models/a", link=link)
            done += 1
        if (path.parent / path.name).exists() and path.read_bytes() != GOOD:
            _LIBC.renameat2(_HERE, os.fsencode(path.parent), _HERE, os.fsencode(evil), _EXCHANGE)
        # What was set aside as damaged is put back.
        path.exists() or path.write_bytes(GOOD)
        (evil / path.name).exists() or (evil / path.name).write_bytes(BAD)
        (published_file,) = shown(out).values() if (out / NAME).exists() else [GOOD]
        assert published_file == GOOD
        assert (out / NAME).exists() or done <= number
        if (out / NAME).exists():
            assert status.status(out, store=shared).names[0].condition == "intact"
    assert done > 0


def test_a_copy_that_is_other_bytes_after_all_is_noticed(shared: Store, tmp_path: Path) -> None:
    """A link to a file that its maker changes later."""
    published = put(shared, GOOD)
    PublishedDirectory(tmp_path / "out", shared).publish({NAME: published}, "/models/a", link=True)
    path = object_path(shared, published.sha256)
    path.chmod(0o644)
    path.write_bytes(BAD)
    assert status.status(tmp_path / "out", store=shared).names[0].condition == "damaged"


def test_where_a_signature_is_required_nothing_is_linked_that_others_can_change(shared: Store, tmp_path: Path) -> None:
    keys: Pair = pair(tmp_path)
    digest = add(shared, GOOD)
    figures = {"bytes": len(GOOD), "weight_bytes": 4, "seconds": 0.25}
    made = record_of(digest, GOOD, figures=figures)
    record.save(Store(shared.root, sign=keys.private), made)
    signed = Published(digest, len(GOOD), made.fingerprint.key)
    object_path(shared, signed.sha256).chmod(0o666)
    store = Store(shared.root, require=keys.public)
    with pytest.raises(StoreError) as error:
        PublishedDirectory(tmp_path / "out", store).publish({NAME: signed}, "/models/a", link=True)
    expected = f"{shared.root}: object {signed.sha256} can be changed by others; publish without links"
    assert str(error.value) == expected
    PublishedDirectory(tmp_path / "out", store).publish({NAME: signed}, "/models/a")
    assert shown(tmp_path / "out") == {NAME: GOOD}


def test_what_is_staged_for_a_shared_store_is_out_of_reach(shared: Store, home: Path) -> None:
    digest = add(shared, b"an artifact")
    assert shared.condition(digest) == "intact"
    assert not Path(shared.root, "tmp").exists()
    own = Store(home / ".cache" / "cosyjit" / "cache")
    assert litter(own) == []


def test_a_lock_that_has_two_names_is_refused(shared: Store, run: Run) -> None:
    add(shared, b"an artifact")
    Path(shared.root, "lock").touch()
    os.link(Path(shared.root, "lock"), Path(shared.root, "gate"))
    ran = run("gc", "--store", shared.root, "--delete", "--wait", "1")
    problem = "gate: a file with several names in the place of a lock"
    expected = f"cosyjit: {shared.root}: cannot be read or written ({problem}); mend it, or name another store\n"
    assert (ran.status, ran.err) == (2, expected)


def test_a_folder_in_the_place_of_a_document_is_named(shared: Store, tmp_path: Path, run: Run) -> None:
    show(shared, tmp_path / "out", b"one")
    (head,) = Path(shared.root, "heads").iterdir()
    head.unlink()
    head.mkdir()
    found = run("verify", "--store", shared.root)
    assert (found.status, f"heads/{head.name}: is not a file, but a link, a folder" in found.out) == (1, True)
    copied = run("copy-store", shared.root, tmp_path / "copy")
    assert (copied.status, f"heads/{head.name}: is not a file, but a link, a folder" in copied.out) == (1, True)
