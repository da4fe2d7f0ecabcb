"""Sets of names, whole or not at all, and what staging leaves behind: nothing."""

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cosyjit.errors import OutputError
from cosyjit.publish import publish, staging
from tests.calls import snapshot, start, wait_for

NAMES = ("llm.text_encoder.fp32.zip", "llm.llm.fp32.zip", "flow.encoder.fp32.zip", "flow.encoder.fp16.zip")

Snapshot = dict[str, bytes | None]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory with a file of its own."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "llm.pt").write_bytes(b"weights")
    return path


def put(directory: Path, content: bytes, names: Sequence[str] = NAMES) -> list[Path]:
    """Publish files of these names, each with the content given and its name."""
    with staging(directory) as work:
        files = {}
        for name in names:
            (work / f"for {name}").mkdir()
            files[name] = work / f"for {name}" / "archive.zip"
            files[name].write_bytes(content + name.encode())
        return publish(files, directory)


def published(content: bytes, names: Sequence[str] = NAMES) -> Snapshot:
    """What `put` leaves in a directory."""
    return {name: content + name.encode() for name in names}


def test_a_set_appears_under_its_names_and_nothing_else_does(directory: Path) -> None:
    assert put(directory, b"1") == [directory / name for name in NAMES]
    assert snapshot(directory) == {"llm.pt": b"weights", **published(b"1")}


def test_a_set_replaces_the_one_before_and_leaves_other_names(directory: Path) -> None:
    put(directory, b"1")
    put(directory, b"2", NAMES[1:3])
    assert snapshot(directory) == {"llm.pt": b"weights", **published(b"1"), **published(b"2", NAMES[1:3])}


@pytest.mark.parametrize("position", range(len(NAMES)))
@pytest.mark.parametrize("before", [True, False], ids=["replacing", "new"])
def test_a_name_that_cannot_be_written_leaves_all_names_as_they_were(
    directory: Path, position: int, *, before: bool
) -> None:
    if before:
        put(directory, b"1")
        (directory / NAMES[position]).unlink()
    (directory / NAMES[position]).mkdir()
    as_it_was = snapshot(directory)
    with pytest.raises(OutputError, match="cannot be written to"):
        put(directory, b"2")
    assert snapshot(directory) == as_it_was


def test_a_file_that_is_missing_leaves_all_names_as_they_were(directory: Path) -> None:
    put(directory, b"1")
    as_it_was = snapshot(directory)
    with staging(directory) as work:
        (work / "new").write_bytes(b"2")
        with pytest.raises(OutputError):
            publish({NAMES[0]: work / "new", NAMES[1]: work / "missing"}, directory)
    assert snapshot(directory) == as_it_was


@pytest.mark.parametrize("target", ["llm.pt", "nowhere"])
def test_a_link_is_put_back_when_a_later_name_cannot_be_written(directory: Path, target: str) -> None:
    (directory / NAMES[0]).symlink_to(target)
    (directory / NAMES[1]).mkdir()
    as_it_was = snapshot(directory)
    with pytest.raises(OutputError):
        put(directory, b"2")
    assert snapshot(directory) == as_it_was


@pytest.mark.parametrize("target", ["llm.pt", "nowhere"])
def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(directory: Path, target: str) -> None:
    (directory / NAMES[0]).symlink_to(target)
    put(directory, b"1")
    assert snapshot(directory) == {"llm.pt": b"weights", **published(b"1")}


def test_a_hard_link_of_the_file_before_keeps_its_content(directory: Path, tmp_path: Path) -> None:
    put(directory, b"1")
    os.link(directory / NAMES[0], tmp_path / "kept.zip")
    put(directory, b"2")
    assert (tmp_path / "kept.zip").read_bytes() == published(b"1")[NAMES[0]]
    assert snapshot(directory) == {"llm.pt": b"weights", **published(b"2")}


def test_a_reader_sees_one_of_the_whole_files_at_any_time(directory: Path) -> None:
    contents = [bytes([digit]) * 200_000 for digit in b"123"]
    whole = {content + NAMES[0].encode() for content in contents}
    put(directory, contents[0], NAMES[:1])
    stop = threading.Event()

    def read() -> set[bytes]:
        seen: set[bytes] = set()
        while not stop.is_set():
            seen.add((directory / NAMES[0]).read_bytes())
        return seen

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(read)
        for number in range(100):
            put(directory, contents[number % 3], NAMES[:1])
        stop.set()
        assert reading.result(60) <= whole


PUBLISH_MANY = """
import sys
from pathlib import Path
from cosyjit.publish import publish, staging
directory = Path(sys.argv[1])
with staging(directory) as work:
    files = {path.name: work / path.name for path in sorted(directory.glob("name*"))}
    for file in files.values():
        file.write_text("new")
    publish(files, directory)
"""


def test_an_interrupt_amid_a_set_leaves_a_whole_set(directory: Path) -> None:
    names = [directory / f"name {number:04}" for number in range(3000)]
    for name in names:
        name.write_text("old")
    with start(PUBLISH_MANY, directory) as publisher:
        wait_for(lambda: names[0].read_text() == "new")
        publisher.send_signal(signal.SIGINT)
        publisher.communicate(timeout=60)
    assert len({name.read_text() for name in names}) == 1


def test_staging_is_inside_the_directory_and_removed_with_all_in_it(directory: Path) -> None:
    with staging(directory) as work:
        assert work.parent == directory
        (work / "part").mkdir()
        (work / "part" / "file").write_bytes(b"x")
    assert snapshot(directory) == {"llm.pt": b"weights"}


def test_staging_that_fails_is_removed_and_its_error_passed_on(directory: Path) -> None:
    def fail_after_writing(file: Path) -> None:
        file.write_bytes(b"x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), staging(directory) as work:
        fail_after_writing(work / "file")
    assert snapshot(directory) == {"llm.pt": b"weights"}


def test_a_directory_made_for_a_publication_stays_with_it(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b", b"1", NAMES[:1])
    assert snapshot(tmp_path / "a") == {"b": None, f"b/{NAMES[0]}": b"1" + NAMES[0].encode()}


def test_directories_made_in_vain_are_removed(tmp_path: Path) -> None:
    with staging(tmp_path / "a" / "b") as work:
        assert work.is_dir()
    assert snapshot(tmp_path) == {}
    (tmp_path / "a").mkdir()
    with pytest.raises(ZeroDivisionError), staging(tmp_path / "a" / "b" / "c"):
        raise ZeroDivisionError
    assert snapshot(tmp_path) == {"a": None}


def test_stagings_at_the_same_time_do_not_disturb_each_other(directory: Path) -> None:
    def stage(number: int) -> int:
        with staging(directory) as work:
            (work / "file").write_text(str(number))
            return int((work / "file").read_text())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(stage, range(1000))) == list(range(1000))
    assert snapshot(directory) == {"llm.pt": b"weights"}


def test_a_set_for_which_there_is_no_room_is_refused_before_anything_is_written(directory: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"are to be written and [\d,]+ MB are free; make room"),
        staging(directory, size=2**62),
    ):
        pytest.fail("there is no such disk")
    assert snapshot(directory) == {"llm.pt": b"weights"}


def test_publications_at_the_same_time_leave_one_whole_set(directory: Path) -> None:
    for _ in range(50):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda content: put(directory, content), [b"1", b"2", b"3", b"4"]))
        found = {name: content for name, content in snapshot(directory).items() if name != "llm.pt"}
        assert found in [published(content) for content in (b"1", b"2", b"3", b"4")]


STAGE = """
import sys
from pathlib import Path
from cosyjit.publish import staging
with staging(Path(sys.argv[1])) as work:
    (work / "half").write_bytes(b"half a file")
    print(work, flush=True)
    input()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_uses_is_not(directory: Path) -> None:
    with start(STAGE, directory) as killed, start(STAGE, directory) as live:
        assert killed.stdout is not None
        assert live.stdout is not None
        left, used = Path(killed.stdout.readline().strip()), Path(live.stdout.readline().strip())
        killed.kill()
        killed.wait(60)
        assert (left / "half").exists()
        put(directory, b"1")
        assert not left.exists()
        assert (used / "half").read_bytes() == b"half a file"
        live.communicate("\n", timeout=60)
        assert live.returncode == 0
    assert snapshot(directory) == {"llm.pt": b"weights", **published(b"1")}


def test_names_that_only_look_like_staging_are_left_alone(directory: Path) -> None:
    (directory / ".cosyjit-notes").write_bytes(b"mine")
    (directory / ".cosyjit-link").symlink_to("nowhere")
    as_it_was = snapshot(directory)
    with staging(directory):
        pass
    assert snapshot(directory) == as_it_was


@pytest.mark.parametrize(
    "place",
    ["model/llm.pt", "model/llm.pt/below", "/proc/nope", "/proc/nope/below", "n" * 300, f"a/{'n' * 300}"],
    ids=lambda place: place[:20],
)
def test_a_directory_that_cannot_be_is_named_in_one_line(directory: Path, place: str) -> None:
    path = directory.parent / place
    as_it_was = snapshot(directory.parent)
    with pytest.raises(OutputError) as caught, staging(path):
        pytest.fail("staged")
    assert str(caught.value).startswith(f"{path}: cannot be written to (")
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(directory.parent) == as_it_was
