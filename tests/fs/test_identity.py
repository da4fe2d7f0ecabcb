"""What is remembered of a file is true of the bytes that it has now, whoever changes them, and how."""

import mmap
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import torch

from cosyjit.errors import FileChangedError
from cosyjit.fs import identity
from cosyjit.fs.digests import Digests
from cosyjit.fs.identity import Identity, settle
from cosyjit.weights.tensor_digests import are_remembered, read_tensors
from tests.support.file_changes import is_remembered, is_stamped, need_stamps, walk
from tests.support.files import other_device, sha256_of
from tests.support.processes import ROOT, finished, said, spawn, start, wait_for

COARSE: Final = 6
"""CLOCK_MONOTONIC_COARSE."""


def holds(path: Path) -> bool:
    """Whether whatever is done to a file from now on shows."""
    with path.open("rb") as file:
        (found,) = settle([file.fileno()])
    return found


def test_a_digest_is_that_of_the_bytes_whatever_was_done_to_them(memory: Digests, tmp_path: Path) -> None:
    assert walk(memory, tmp_path, steps=1000, seed=0) > 10


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_digest_is_that_of_the_bytes_after_thousands_of_changes(memory: Digests, tmp_path: Path, seed: int) -> None:
    assert walk(memory, tmp_path, steps=8000, seed=seed) > 100


def test_a_mapping_that_stays_open_and_is_written_again_shows(memory: Digests, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        for value in range(1, 5):
            mapping[5] = value  # the page is in memory only, and was written to before it was read
            assert memory.sha256(path) == sha256_of(path)
            assert is_remembered(memory, path)
            mapping[5] = value + 100
            assert memory.sha256(path) == sha256_of(path)


def test_a_mapping_that_is_written_to_changes_the_digests_of_tensors(memory: Digests, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"x": torch.ones(64)}, path)
    at = path.read_bytes().index(torch.ones(64).numpy().tobytes())
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[at] = 1
        before = read_tensors(memory, [path])[path].tensors
        assert are_remembered(memory, path)
        mapping[at] = 2
        assert not are_remembered(memory, path)
        assert read_tensors(memory, [path])[path].tensors != before


SLOW: Final = """
import mmap, os, sys
path, source = sys.argv[1:]
with open(source, "rb") as file, open(path, "r+b") as target:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    content = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    content.madvise(mmap.MADV_RANDOM)  # page by page from the disk, as it is written
    print("begun", flush=True)
    assert os.pwrite(target.fileno(), content, 0) == len(content)
"""


def test_a_long_write_that_is_under_way_is_waited_for(memory: Digests, tmp_path: Path) -> None:
    path, source = tmp_path / "file", tmp_path / "source"
    size = 24 << 20
    path.write_bytes(b"1" * size)
    source.write_bytes(b"2" * size)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    before = Identity.of(path)
    with start(SLOW, path, source) as writer:
        assert said(writer) == "begun"
        wait_for(lambda: Identity.of(path) != before)  # stamped, and then no more
        found = memory.sha256(path)
        assert writer.wait(600) == 0
    assert found == sha256_of(path)
    assert memory.sha256(path) == sha256_of(path)


def test_a_file_that_changes_all_the_time_has_no_digest(memory: Digests, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))

    def ask_often() -> None:
        for _ in range(5000):
            memory.sha256(path)

    code = "import sys\nprint(flush=True)\nwhile True:\n    open(sys.argv[1], 'r+b').write(b'12')"
    with start(code, path) as writer:
        assert said(writer) == ""
        with pytest.raises(FileChangedError, match="was changed while it was read"):
            ask_often()
        writer.kill()
        writer.communicate()
    assert memory.sha256(path) == sha256_of(path)


def test_the_clock_of_the_stamps_moves_on_before_a_file_is_read(memory: Digests, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for value in range(20):
        path.write_bytes(bytes([value]))
        before = time.clock_gettime_ns(COARSE)
        memory.sha256(path)
        assert time.clock_gettime_ns(COARSE) > before


@pytest.mark.parametrize("moment", [0, 1, 10**9, 4 * 10**18], ids=["1970", "a tick later", "a second", "2096"])
def test_files_of_any_time_are_remembered(memory: Digests, tmp_path: Path, moment: int) -> None:
    # Clocks of other machines, and of this one, may have shown anything; and backups put times back.
    path = tmp_path / "file"
    path.write_bytes(b"1")
    os.utime(path, ns=(moment, moment))
    assert memory.sha256(path) == sha256_of(path)
    assert is_remembered(memory, path)
    path.write_bytes(b"2")
    os.utime(path, ns=(moment, moment))
    assert not is_remembered(memory, path)


# A name.


def test_a_written_file_is_remembered_by_the_name_that_it_is_given(memory: Digests, tmp_path: Path) -> None:
    path, name = tmp_path / "file", tmp_path / "name"
    path.write_bytes(b"1")
    with path.open("rb") as file:
        before = Identity.written(file.fileno())
    path.replace(name)
    memory.remember_sha256(name, "1" * 64, before)
    assert memory.sha256(name) == "1" * 64


@pytest.mark.parametrize("change", ["written", "replaced", "longer"])
def test_a_written_file_that_was_changed_before_it_is_remembered_is_not(
    memory: Digests, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    with path.open("rb") as file:
        before = Identity.written(file.fileno())
    if change == "replaced":
        path.rename(tmp_path / "other")
    path.write_bytes(b"11" if change == "longer" else b"2")
    memory.remember_sha256(path, "1" * 64, before)
    assert memory.sha256(path) == sha256_of(path)


# File systems.


def test_nothing_is_remembered_of_files_in_memory(tmp_path: Path) -> None:
    with other_device(tmp_path) as folder:
        if is_stamped(folder):
            pytest.skip("it is no tmpfs")
        memory = Digests(tmp_path / "memory")
        path = folder / "a.pt"
        torch.save({"x": torch.ones(64)}, path)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            at = path.read_bytes().index(torch.ones(64).numpy().tobytes())
            for value in range(1, 4):
                mapping[at] = value  # after the first time, this changes nothing that `stat` tells
                assert memory.sha256(path) == sha256_of(path)
                assert read_tensors(memory, [path])[path] == read_tensors(Digests(tmp_path / "none"), [path])[path]
                with path.open("rb") as complete:
                    memory.remember_sha256(path, sha256_of(path), Identity.written(complete.fileno()))
                assert not are_remembered(memory, path)
                assert not is_remembered(memory, path)


def test_what_has_no_times_of_its_own_holds_nothing() -> None:
    assert not holds(Path("/proc/self/status"))
    reading, writing = os.pipe()
    try:
        assert settle([reading]) == [False]
    finally:
        os.close(reading)
        os.close(writing)


MOUNTED: Final = """
import sys
from pathlib import Path
from tests.support.file_changes import is_stamped, walk
from cosyjit.fs.digests import Digests

folder = Path(sys.argv[1])
found = is_stamped(folder)
if found:
    walk(Digests(Path(sys.argv[2])), folder, 150, 5)
print(found)
"""


def mounted(command: str, folder: Path, memory: Path) -> str:
    """Whether times are relied on in a mount that only a child process sees, made by a command."""
    prepare = f'cd "$0"; mkdir -p lower upper work mount memory; {command}'
    script = 'sh -ec "$0" "$1" || exit 77; exec "$2" -c "$3" "$1/mount" "$4"'
    for unshare in (["--mount"], ["--map-root-user", "--mount"]):
        arguments = [*unshare, "sh", "-c", script, prepare, folder, sys.executable, MOUNTED, memory]
        with suppress(FileNotFoundError):
            ran = finished(spawn("unshare", *arguments, cwd=ROOT))
            if ran.status == 0 or "Traceback" in ran.err:
                return ran.out.strip() or ran.err
    pytest.skip("nothing can be mounted here")


OVERLAY: Final = 'mount -t overlay overlay -o lowerdir=lower,upperdir="$PWD"/{0}upper,workdir="$PWD"/{0}work{1} mount'
"""To be completed by where the upper layer is, and by options."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (OVERLAY.format("", ""), "True"),
        (OVERLAY.format("", ",volatile"), "True"),
        (
            "mount -t tmpfs tmpfs memory; mkdir memory/upper memory/work; " + OVERLAY.format("memory/", ""),
            "False",
        ),
        ("mount -t tmpfs tmpfs mount", "False"),
        ("truncate -s 8M image; mkfs.ext4 -q -I 128 image >image.log 2>&1; mount -o loop image mount", "False"),
        ("truncate -s 8M image; mkfs.ext4 -q image; mount -o loop image mount", "True"),
    ],
    ids=["overlay", "volatile overlay", "overlay on tmpfs", "tmpfs", "stamps of whole seconds", "ext4"],
)
def test_files_are_remembered_where_the_file_system_keeps_the_times_as_it_should(
    command: str, expected: str, tmp_path: Path
) -> None:
    need_stamps(tmp_path)
    assert mounted(command, tmp_path, tmp_path / "remembered") == expected


def test_without_the_clock_of_the_stamps_nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_stamps(tmp_path)
    (tmp_path / "file").write_bytes(b"a")
    assert holds(tmp_path / "file")
    monkeypatch.setattr(identity, "_CLOCK", 99)  # which no kernel has
    assert not holds(tmp_path / "file")
