"""Of which type the file system at a path is."""

from pathlib import Path

from cosyjit.fs.mounts import file_system

MOUNTS = """22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /tmp/of\\040mine rw - nfs4 server:/x rw
24 22 0:6 / /tmp/of\\040mine/deep rw - tmpfs tmpfs rw
25 24 0:7 / /tmp/of\\040mine/deep rw - overlay overlay rw
"""


def test_the_mount_that_is_nearest_above_a_path_counts_and_of_two_the_later(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "mountinfo").write_text(MOUNTS)
    assert file_system(Path("/home"), tmp_path) == "ext4"
    assert file_system(Path("/tmp/of mine/x"), tmp_path) == "nfs4"  # noqa: S108  (of no file that is there)
    assert file_system(Path("/tmp/of mine/deep/x"), tmp_path) == "overlay"  # noqa: S108
    assert file_system(Path("/tmp/of mine, another"), tmp_path) == "ext4"  # noqa: S108


def test_the_type_is_told_here_and_nothing_without_proc(tmp_path: Path) -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(tmp_path)
    assert file_system(tmp_path, tmp_path) == ""
