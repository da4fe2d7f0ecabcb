"""Nobody but owner and group may write to what is made, whatever the umask; it lets others do no more than that."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cosyjit.fs import files, locks
from cosyjit.processes import memory
from tests.support.modelscope import MODEL, Hub
from tests.support.processes import ROOT, finished, snapshot, spawn

EVERYTHING: Final = """
import os, sys
from pathlib import Path

os.umask(int(sys.argv[1], 8))
folder, model = Path(sys.argv[2]), sys.argv[3]

import cosyjit
from cosyjit.synth.synth import synth

store, published = cosyjit.Store(folder / "stores" / "one"), folder / "published" / "here"
synthesized = synth(folder / "made" / "model", "cosyvoice")
for precision in ("fp32", "fp16"):
    (made,) = cosyjit.export(
        synthesized, components=["flow.encoder"], precisions=[precision], store=store, publish=published
    )
    assert made.state == "built", made
cosyjit.rollback(published, store=store)
assert cosyjit.gc(store, older_than=0, keep=1, delete=True)
(made,) = cosyjit.export(model, components=["flow.encoder"], precisions=["fp32"], store=store)
assert made.state == "cached", made
cosyjit.export(synthesized, components=["flow.encoder"], precisions=["fp32"], store=store, link=True)
"""


_CLIENT: Final = {".modelscope", "modelscope"}
"""The directories that ModelScope's own client makes in a home: `.modelscope`, and `.cache/modelscope`."""


def made(folder: Path) -> Iterator[tuple[Path, int]]:
    """All that was made below a folder, links excepted, with its mode."""
    for path in sorted(folder.rglob("*")):
        clients = path.name in _CLIENT and path.parent in {folder, folder / ".cache"}
        if not path.is_symlink() and not clients:
            yield path, stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def hub(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.publish(MODEL, {path.name: path for path in tiny.iterdir()})
        hub.use(monkeypatch)
        yield hub


@pytest.mark.parametrize(
    "umask", ["000", pytest.param("077", marks=pytest.mark.stress), pytest.param("002", marks=pytest.mark.stress)]
)
@pytest.mark.usefixtures("hub")
def test_nothing_that_is_made_lets_others_write(umask: str, home: Path, tmp_path: Path) -> None:
    home.mkdir()
    ran = finished(spawn(sys.executable, "-c", EVERYTHING, umask, tmp_path, MODEL, cwd=ROOT))
    assert (ran.status, ran.out) == (0, ""), ran.err
    found = {path: mode for folder in (tmp_path, home) for path, mode in made(folder)}
    assert len([path for path in found if path.is_relative_to(home / ".cache" / "cosyjit" / "modelscope")]) > 5
    assert (home / ".cache" / "cosyjit" / "locks" / "memory").is_dir()
    taken = int(umask, 8) | stat.S_IWOTH
    assert {str(path): oct(mode) for path, mode in found.items() if mode & taken} == {}
    objects = {path: mode for path, mode in found.items() if path.parent.parent.name == "objects"}
    assert objects
    assert {path: oct(mode) for path, mode in objects.items() if mode & 0o222} == {}
    if umask == "002":  # what a group shares, all of it can change
        shared = {path: mode for path, mode in found.items() if path.is_dir() and tmp_path in path.parents}
        assert {str(path): oct(mode) for path, mode in shared.items() if mode & 0o070 != 0o070} == {}


def test_a_directory_of_ones_own_is_made_for_oneself(tmp_path: Path) -> None:
    files.make_private(tmp_path / "a" / "own")
    assert stat.S_IMODE((tmp_path / "a" / "own").stat().st_mode) == 0o700
    files.make_private(tmp_path / "a" / "own")


@pytest.mark.parametrize("how", ["link", "file", "all may write", "another's"])
def test_a_directory_that_others_could_have_made_is_not_used(how: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "theirs.5").write_bytes(b"theirs")
    own = tmp_path / "own"
    if how == "link":
        own.symlink_to("there")
    elif how == "file":
        own.write_bytes(b"theirs")
    else:
        there.rename(own)
        if how == "all may write":
            own.chmod(0o777)
        else:
            try:
                os.chown(own, 12345, -1)
            except PermissionError:
                pytest.skip("nobody but root can give a directory away")
    before = snapshot(tmp_path)
    with pytest.raises(PermissionError, match="is not this user's own"):
        files.make_private(own)
    with memory.reserved(own, 1, 1):  # as it would be without notes
        memory.tidy(own)
    assert snapshot(tmp_path) == before


def test_a_lock_that_is_a_link_is_none(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match="Too many levels of symbolic links"), locks.locked(tmp_path / "lock"):
        pass
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        locks.is_free(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()
