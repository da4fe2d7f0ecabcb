"""Directories to publish into that a stranger has made: nothing outside of them is changed, whatever is in them."""

import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cosyjit.errors import CosyjitError, OutputError
from cosyjit.fs import files
from cosyjit.operations import gc, status
from cosyjit.operations.verify import verify_directory
from cosyjit.publishing import layout
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.layout import Layout
from cosyjit.store.store import Store
from tests.support.files import sha256
from tests.support.processes import snapshot
from tests.support.stores import put

ARTIFACTS: Final = {"0.zip": b"first", "1.zip": b"second"}
FOLDER: Final = {"config.json": b"first", "model.safetensors": b"third"}
DIGEST: Final = sha256(ARTIFACTS["0.zip"])
MEMORY: Final = Path("/dev/shm")  # noqa: S108  (quicker than a disk, for so many small files)
SHOWN: Final = "5" * 64
"""A set's name, in place of the real one where there is one."""

PLACES: Final = (
    ".cosyjit",
    *(f".cosyjit/{name}" for name in ("sets", "files", "current", ".0.tmp")),
    *(f".cosyjit/sets/{name}" for name in (SHOWN, "before.1", "x\ny", "é")),
    *(f".cosyjit/sets/{SHOWN}/{name}" for name in ("cosyjit.json", "0.zip", ".0.tmp", "other")),
    *(f".cosyjit/files/{name}" for name in (DIGEST, "other", ".0.tmp")),
    *(f".cosyjit/sets/{SHOWN}/vllm{name}" for name in ("", "/config.json", "/other", "/.0.tmp", "/deep", "/deep/file")),
    *("0.zip", "1.zip", "cosyjit.json", ".0.tmp", "vllm", "vllm/config.json", "vllm/deep", "vllm.1", "vllm.2"),
)
"""What a stranger puts something at, from the top down."""

LINKS: Final = (
    *("../outside", "../../outside", "../../../outside", "../../../../outside", "../outside/sets", "../outside/file"),
    *("../../outside/sets", "../../outside/file", "../../outside/new", "../../outside/sets/deep"),
    *(f"sets/{SHOWN}", "sets/..", "sets/.", "sets", "sets/", "sets/before.1", f"./sets/{SHOWN}", "sets/x\ny", "sets/é"),
    *(f"sets/{SHOWN}/", "sets/../../../outside", ".", "..", "/", "/dev/zero", "loop", ".cosyjit/current/0.zip"),
    *(f"../../files/{DIGEST}", ".cosyjit/current", "current", "ABSOLUTE", "ABSOLUTE/file", "ABSOLUTE/sets/deep"),
    *(".cosyjit/current/vllm", "../../../../outside/sets", "../../../../outside/file", f"../../../files/{DIGEST}"),
)
"""Where links lead; ABSOLUTE stands for the path of what is outside."""

OUTSIDE: Final = ("file", "cosyjit.json", "0.zip", ".0.tmp", "sets/deep/file", "sets/.0.tmp", "sets/deep/.0.tmp")
"""Files that are nobody's business."""

_things = st.one_of(
    st.sampled_from(["directory", "file", "hard link", "pipe", "whole file"]),
    st.sampled_from(LINKS).map("-> {}".format),
)
_trees = st.dictionaries(st.sampled_from(PLACES), _things, max_size=4)


class Scene(NamedTuple):
    """A stranger's directory, and what is beside it."""

    store: Store
    directory: Path
    outside: Path


def prepare(folder: Path, tree: Mapping[str, str], store: Store, *, published: bool = False) -> Scene:
    """Make what a stranger has made, where nothing was published or something was."""
    scene = Scene(store, folder / "model", folder / "outside")
    scene.directory.mkdir()
    for name in OUTSIDE:
        path = scene.outside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nobody's business")
    if published:
        _publish(scene, "0.zip", folder=True)
    shown = Layout(scene.directory).live_set() or SHOWN
    for place in PLACES:
        if place in tree:
            with suppress(OSError):  # there is something else above it
                _make(scene.directory / place.replace(SHOWN, shown), tree[place].replace(SHOWN, shown), scene.outside)
    return scene


def _make(path: Path, thing: str, outside: Path) -> None:
    if any(above.is_symlink() for above in path.parents):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    files.remove(path)
    if thing == "directory":
        path.mkdir()
    elif thing == "file":
        path.write_bytes(b"anything")
    elif thing == "whole file":
        path.write_bytes(ARTIFACTS["0.zip"])
    elif thing == "pipe":
        os.mkfifo(path)
    elif thing == "hard link":
        os.link(outside / "file", path)
    else:
        path.symlink_to(thing.removeprefix("-> ").replace("ABSOLUTE", str(outside)))


def modes(folder: Path) -> dict[str, int]:
    return {str(path): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


ACTIONS: Final[Mapping[str, Callable[[Scene], object]]] = {
    "publish one": lambda scene: _publish(scene, "0.zip"),
    "publish": lambda scene: _publish(scene, "0.zip", "1.zip"),
    "publish a folder": lambda scene: _publish(scene, "0.zip", folder=True),
    "replace": lambda scene: _publish(scene, folder=True, replace=True),
    "link": lambda scene: _publish(scene, "0.zip", link=True),
    "bring": lambda scene: PublishedDirectory(scene.directory, scene.store).stage(put(scene.store, ARTIFACTS["0.zip"])),
    "roll back": lambda scene: PublishedDirectory(scene.directory, scene.store).rollback(),
    "discard": lambda scene: PublishedDirectory(scene.directory).discard_staged(),
    "status": lambda scene: status.status(scene.directory, store=scene.store),
    "history": lambda scene: PublishedDirectory(scene.directory, scene.store).history(),
    "audit": lambda scene: verify_directory(scene.directory, store=scene.store),
    "collect": lambda scene: gc.gc(scene.store, older_than=0, delete=True),
}


def _publish(scene: Scene, *names: str, folder: bool = False, link: bool = False, replace: bool = False) -> None:
    with scene.store.in_use():
        artifacts = {name: put(scene.store, ARTIFACTS[name]) for name in names}
        contents = {name: ARTIFACTS[name] for name in names}
        if folder:
            artifacts["vllm"] = put(scene.store, FOLDER)
            contents |= {f"vllm/{name}": content for name, content in FOLDER.items()}
        PublishedDirectory(scene.directory, scene.store).publish(artifacts, "/models/a", link=link, replace=replace)
        for name, content in contents.items():
            assert (scene.directory / name).read_bytes() == content
            real = (scene.directory / name).resolve()  # what somebody has put there is left if it is the same
            assert real == scene.directory / name or real.is_relative_to(scene.directory / ".cosyjit" / "files")
        if folder:
            assert sorted(path.name for path in (scene.directory / "vllm").iterdir()) == sorted(FOLDER)


@contextmanager
def not_for_ever(seconds: int = 20) -> Iterator[None]:
    """Ends what waits for somebody to write to a pipe."""

    def end(*_: object) -> None:
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def without_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads these directories who would have to be waited for."""
    monkeypatch.setattr(layout, "_GRACE", 0.0)


def check(tree: Mapping[str, str], actions: list[str], *, published: bool) -> int:
    """Do something in a stranger's directory; gives how often it came through."""
    through = 0
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)
        scene = prepare(folder, tree, Store(folder / "store"), published=published)
        before = snapshot(scene.outside), modes(scene.outside)
        for action in actions:
            with not_for_ever(), suppress(CosyjitError):
                ACTIONS[action](scene)
                through += 1
            assert (snapshot(scene.outside), modes(scene.outside)) == before, action
            assert sorted(path.name for path in folder.iterdir() if path.name != "store") == ["model", "outside"]
    return through


_CURRENT: Final = {".cosyjit/sets": "directory", ".cosyjit/files": "directory"}
_EXAMPLES: Final[tuple[Mapping[str, str], ...]] = (
    {".cosyjit": "-> ../outside"},
    {".cosyjit/files": "-> ../../outside"},
    {".cosyjit/sets": "-> ../../outside/sets"},
    {".cosyjit/current": "-> ../../outside"},
    {".cosyjit/current": "-> ../../outside/sets/deep", **_CURRENT},
    {".cosyjit/current": "-> sets/..", **_CURRENT},
    {".cosyjit/current": f"-> sets/{SHOWN}", f".cosyjit/sets/{SHOWN}": "-> ../../../outside"},
)


@pytest.mark.parametrize("tree", _EXAMPLES, ids=lambda tree: next(iter(tree.items())))
@pytest.mark.parametrize("action", ["publish", "discard", "bring"])
def test_a_link_out_of_the_directory_is_named_and_left(tree: Mapping[str, str], action: str, tmp_path: Path) -> None:
    scene = prepare(tmp_path, tree, Store(tmp_path / "store"))
    before = snapshot(scene.directory), snapshot(scene.outside)
    with pytest.raises(OutputError, match=r"/\.cosyjit.*: is not as cosyjit makes it, .*; remove it, and run again"):
        ACTIONS[action](scene)
    assert (snapshot(scene.directory), snapshot(scene.outside)) == before


_VLLM: Final = f".cosyjit/sets/{SHOWN}/vllm"
_actions = st.lists(st.sampled_from([*ACTIONS]), min_size=1, max_size=3)


@settings(deadline=None, max_examples=50)
@given(tree=_trees, actions=_actions, published=st.booleans())
@example(tree={"cosyjit.json": "pipe", "0.zip": "pipe"}, actions=["publish", "status", "publish one"], published=True)
@example(tree={f".cosyjit/sets/{SHOWN}": "-> ../../../outside"}, actions=["status", "publish one"], published=True)
@example(tree={_VLLM: "-> ../../../../outside"}, actions=["status", "publish a folder"], published=True)
@example(tree={_VLLM: "-> ../../../../outside", "0.zip": "file"}, actions=["publish a folder"], published=True)
@example(tree={f"{_VLLM}/deep": "-> /", f"{_VLLM}/other": "pipe"}, actions=["publish a folder"], published=True)
@example(tree={f"{_VLLM}/other": "pipe", "0.zip": "file"}, actions=["publish a folder"], published=True)
@example(tree={"0.zip": "whole file"}, actions=["publish one"], published=True)
@example(tree={"vllm": "-> ../outside"}, actions=["publish a folder", "replace"], published=False)
@example(tree={"vllm/deep": "-> ../../outside", "vllm.1": "directory"}, actions=["replace"], published=True)
def test_nothing_outside_a_strangers_directory_is_changed(
    tree: dict[str, str], actions: list[str], *, published: bool
) -> None:
    check(tree, actions, published=published)


@pytest.mark.stress
@settings(deadline=None, max_examples=1000)
@given(tree=_trees, actions=_actions, published=st.booleans())
def test_nothing_outside_is_changed_in_a_thousand_directories(
    tree: dict[str, str], actions: list[str], *, published: bool
) -> None:
    check(tree, actions, published=published)


def test_all_of_it_comes_through_where_nobody_has_been() -> None:
    assert check({}, [*ACTIONS], published=False) == len(ACTIONS)


def test_folders_in_folders_without_end_are_an_error_in_one_line(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    (directory / ".cosyjit" / "sets" / "x").mkdir(parents=True)
    at = os.open(directory / ".cosyjit" / "sets" / "x", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    try:
        with pytest.raises(OutputError, match="too many directories"):
            PublishedDirectory(directory).discard_staged()
    finally:  # pytest could not remove them either
        top = directory / ".cosyjit" / "sets" / "x"
        while (top / "d").exists():
            (top / "d").rename(top.with_name("below"))
            top.rmdir()
            top.with_name("below").rename(top)


def test_a_link_to_a_directory_is_published_into(tmp_path: Path) -> None:
    scene = prepare(tmp_path, {}, Store(tmp_path / "store"))
    link = tmp_path / "link"
    link.symlink_to("model")
    with scene.store.in_use():
        PublishedDirectory(link, scene.store).publish({"0.zip": put(scene.store, b"first")}, "/models/a")
    assert (scene.directory / "0.zip").read_bytes() == b"first"
    assert link.is_symlink()
