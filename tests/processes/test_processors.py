"""What of a machine's processors this process may use, and what they are."""

from pathlib import Path

from cosyjit.processes.processors import Processor, processor, quota


def group(root: Path, own: str, mounts: str) -> Path:
    """A machine whose process is in groups."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(own)
    (root / "proc" / "self" / "mountinfo").write_text(mounts)
    return root


SECOND = "0::/a/b\n", "1 0 0:1 / /group rw - cgroup2 cgroup2 rw\n"
FIRST = "4:cpu,cpuacct:/a\n", "1 0 0:1 / /group rw - cgroup cgroup rw,cpu,cpuacct\n"


def test_the_smallest_share_of_the_groups_above_counts(tmp_path: Path) -> None:
    root = group(tmp_path, *SECOND)
    for name, limit in (("a", "150000 100000"), ("a/b", "400000 100000")):
        (root / "group" / name).mkdir(parents=True)
        (root / "group" / name / "cpu.max").write_text(f"{limit}\n")
    assert quota(root) == 1.5


def test_no_limit_is_none(tmp_path: Path) -> None:
    root = group(tmp_path, *SECOND)
    (root / "group" / "a" / "b").mkdir(parents=True)
    (root / "group" / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert quota(root) is None
    assert quota(tmp_path / "nowhere") is None


def test_groups_of_version_1_have_two_files(tmp_path: Path) -> None:
    root = group(tmp_path, *FIRST)
    (root / "group" / "a").mkdir(parents=True)
    (root / "group" / "cpu.cfs_quota_us").write_text("-1\n")
    (root / "group" / "cpu.cfs_period_us").write_text("100000\n")
    assert quota(root) is None
    (root / "group" / "a" / "cpu.cfs_quota_us").write_text("50000\n")
    (root / "group" / "a" / "cpu.cfs_period_us").write_text("100000\n")
    assert quota(root) == 0.5


def test_the_first_processor_is_described(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(
        "processor\t: 0\nFeatures\t: fp asimd\n\nprocessor\t: 1\nFeatures\t: x\n"
    )
    assert processor(tmp_path) == Processor("", frozenset({"fp", "asimd"}))
    assert processor().features
