"""Files by name, in a directory or behind a URL: the same from outside."""

import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from fsspec.config import conf

from cosyjit.store.backends import Local, Storage, storage
from tests.support.processes import ROOT, said, start
from tests.support.s3 import Answer, Cut, Service
from tests.support.stores import unique_url
from tests.support.tiers import sampled

if TYPE_CHECKING:
    import subprocess


@pytest.fixture(params=["directory", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        server: Service = request.getfixturevalue("s3")
        return server.url()
    return str(tmp_path / "root") if request.param == "directory" else unique_url()


@pytest.fixture
def place(root: str) -> Storage:
    return storage(root)


def names(place: Storage, folder: str = "") -> set[str]:
    return {entry.name for entry in place.entries(folder)}


def added(place: Storage, content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(content)
    place.add(tmp_path / "given", name)


def test_what_is_written_is_read_and_replaced_whole(place: Storage) -> None:
    for content in (b"one", b"", b"x" * 100_000):
        place.write("a/b/c.json", content)
        assert place.read("a/b/c.json") == content
    assert names(place) == {"a/b/c.json"}


def test_what_is_not_there_is_not_found(place: Storage) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            place.read("a/b")
        with pytest.raises(FileNotFoundError):
            place.open("a/b")
        with pytest.raises(FileNotFoundError):
            place.move("a/b", "c")
        place.remove("a/b")
        assert names(place) == names(place, "a") == set()
        place.write("other", b"")
        place.remove("other")


def test_a_local_file_is_taken_over_and_read_in_pieces(place: Storage, tmp_path: Path) -> None:
    content = os.urandom(300_001)
    added(place, content, "objects/aa/b", tmp_path)
    with place.open("objects/aa/b") as file:
        pieces = [file.read(1 << 17) for _ in range(4)]
        assert b"".join(pieces) == content
        assert [len(piece) for piece in pieces[:2]] == [1 << 17, 1 << 17]
    added(place, b"again", "objects/aa/b", tmp_path)
    assert place.read("objects/aa/b") == b"again"


def test_entries_have_names_sizes_and_times(place: Storage, tmp_path: Path) -> None:
    before = time.time() - 2
    place.write("a/one", b"1")
    place.write("a/b/two", b"22")
    place.write("ab/three", b"333")
    added(place, b"4444", "four", tmp_path)
    assert {(each.name, each.size) for each in place.entries()} == {
        ("a/one", 1),
        ("a/b/two", 2),
        ("ab/three", 3),
        ("four", 4),
    }
    assert names(place, "a") == {"a/one", "a/b/two"}
    assert all(before <= each.modified <= time.time() + 2 for each in place.entries())


def test_files_are_moved_and_removed(place: Storage) -> None:
    place.write("a", b"1")
    place.move("a", "damaged/a")
    assert names(place) == {"damaged/a"}
    assert place.read("damaged/a") == b"1"
    place.remove("damaged/a")
    assert names(place) == set()


def test_two_roots_are_two_places(root: str) -> None:
    one, beside = storage(root), storage(f"{root}b")
    one.write("name", b"1")
    assert names(beside) == set()
    beside.write("other", b"2")
    assert names(beside) == {"other"}
    assert names(one) == {"name"}


def test_what_others_write_and_remove_is_seen_at_once(root: str) -> None:
    one, other = storage(root), storage(root)
    for number in range(3):
        assert names(one) == names(other, "a") == set()
        other.write("a/name", b"%d" % number)
        assert names(one) == names(one, "a") == {"a/name"}
        assert one.read("a/name") == b"%d" % number
        one.remove("a/name")


def test_a_path_is_made_absolute_and_a_home_directory_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, path in (("root", tmp_path / "root"), ("~/root", tmp_path / "home" / "root"), ("/root", Path("/root"))):
        found = storage(given)
        assert isinstance(found, Local)
        assert found.root == path


def test_a_file_removed_while_a_directory_is_listed_is_passed_over(tmp_path: Path) -> None:
    place = storage(str(tmp_path))
    for number in range(100):
        (tmp_path / str(number)).touch()
    listing = place.entries()
    first = next(listing)
    for path in tmp_path.iterdir():
        path.unlink()
    assert [first, *listing] == [first]


def test_a_directory_that_cannot_be_listed_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="Not a directory"):
            list(storage(str(root)).entries())


UNPRIVILEGED = """
import os, sys
from cosyjit.store.backends import storage
if os.getuid() == 0:
    os.setuid(65534)
try:
    print(sorted(entry.name for entry in storage(sys.argv[1]).entries()))
except OSError as error:
    print(type(error).__name__)
"""


def test_a_folder_that_must_not_be_read_is_no_empty_one() -> None:
    with tempfile.TemporaryDirectory() as root:  # pytest's own directories are their owner's alone
        Path(root).chmod(0o755)
        place = storage(root)
        place.write("a/one", b"1")
        place.write("b/two", b"2")
        Path(root, "a").chmod(0)
        try:
            with start(UNPRIVILEGED, root, cwd=ROOT) as reader:
                assert said(reader) == "PermissionError"
        finally:
            Path(root, "a").chmod(0o755)


def test_a_url_of_this_machines_files_is_a_directory(tmp_path: Path) -> None:
    place = storage(f"file://{tmp_path}/root")
    place.write("a/b", b"1")
    assert (tmp_path / "root" / "a" / "b").read_bytes() == b"1"


# What is in a bucket.

LARGE: Final = 20 << 20
"""Enough for three parts."""


def large(directory: Path) -> Path:
    (directory / "large").write_bytes(os.urandom(1 << 20) * (LARGE >> 20))
    return directory / "large"


def test_a_large_file_goes_up_in_parts_and_comes_back(s3: Service, tmp_path: Path) -> None:
    url = s3.url()
    place = storage(url)
    content = large(tmp_path).read_bytes()
    place.add(tmp_path / "large", "objects/aa/b")
    assert s3.etag(f"{url}/objects/aa/b").endswith("-3")
    with place.open("objects/aa/b") as file:
        assert file.read() == content
    assert s3.uploads(url) == []


def test_a_file_is_visible_when_all_of_its_parts_have_arrived(s3: Service, tmp_path: Path) -> None:
    url = s3.url()
    beside = storage(url)
    beside.check()
    seen: list[tuple[str, object]] = []

    def look(method: str, _: str) -> None:
        if method in {"PUT", "POST"}:
            seen.append((method, outcome_of(beside)))

    with s3.proxied(look):
        storage(url).add(large(tmp_path), "objects/aa/b")
    assert seen == [("POST", "nothing"), *[("PUT", "nothing")] * 3, ("POST", "nothing")]
    assert outcome_of(beside) == LARGE


def outcome_of(place: Storage) -> object:
    """How many bytes whoever looks at a place finds in its one file, by a list and by reading; "nothing" if none."""
    listed = [entry.size for entry in place.entries()]
    try:
        with place.open("objects/aa/b") as file:
            read = [len(file.read())]
    except FileNotFoundError:
        read = []
    return "nothing" if listed == read == [] else read[0] if listed == read else (listed, read)


def is_part(number: int, method: str, path: str) -> bool:
    return method == "PUT" and f"partNumber={number}&" in f"{path}&"


def test_an_upload_that_fails_leaves_neither_a_file_nor_parts(s3: Service, tmp_path: Path) -> None:
    url = s3.url()
    before = storage(url)
    before.check()
    with s3.proxied(lambda method, path: Answer(403, "AccessDenied") if is_part(2, method, path) else None):
        place = storage(url)
        with pytest.raises(PermissionError, match="UploadPart is answered with 403, AccessDenied"):
            place.add(large(tmp_path), "objects/aa/b")
    assert outcome_of(before) == "nothing"
    assert s3.uploads(url) == []


def test_an_end_of_an_upload_whose_answer_is_lost_is_no_failure(s3: Service, tmp_path: Path) -> None:
    url = s3.url()
    ends = []

    def lose(method: str, path: str) -> Cut | None:
        if method == "POST" and "uploadId=" in path:
            ends.append(path)
            return Cut() if len(ends) == 1 else None
        return None

    with s3.proxied(lose):
        place = storage(url)
        place.add(large(tmp_path), "objects/aa/b")
        assert len(ends) > 1
        assert outcome_of(place) == LARGE


UPLOAD = """
import sys
from pathlib import Path
from cosyjit.store.backends import storage
storage(sys.argv[1]).add(Path(sys.argv[2]), "objects/aa/b")
"""


def test_a_kill_amid_an_upload_leaves_nothing_to_see_and_the_next_try_succeeds(s3: Service, tmp_path: Path) -> None:
    url, file = s3.url(), large(tmp_path)
    uploader: list[subprocess.Popen[str]] = []
    started = threading.Event()

    def kill(method: str, path: str) -> None:
        if is_part(2, method, path):
            started.wait(600)
            uploader[0].kill()

    with s3.proxied(kill):
        uploader.append(start(UPLOAD, url, file))
        started.set()
        with uploader[0] as process:
            process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL
    place = storage(url)
    assert outcome_of(place) == "nothing"
    place.add(file, "objects/aa/b")
    assert outcome_of(place) == LARGE


FAULTS: Final[dict[str, Answer | Cut]] = {
    "busy": Answer(503, "SlowDown"),
    "broken": Answer(500, "InternalError"),
    "too many": Answer(429, "TooManyRequests"),
    "no answer": Cut(),
    "half an answer": Cut(50_000),
}


@pytest.mark.parametrize(("method", "fault"), sampled([("PUT", "busy"), *(("GET", fault) for fault in FAULTS)], 3))
def test_what_may_pass_is_tried_again(method: str, fault: str, s3: Service, tmp_path: Path) -> None:
    asked: list[str] = []

    def fail_first(asks: str, path: str) -> Answer | Cut | None:
        if "list-type" in path:  # whether there is a bucket
            return None
        asked.append(asks)
        return FAULTS[fault] if asks == method and asked.count(method) == 1 else None

    url, content = s3.url(), os.urandom(100_000)
    with s3.proxied(fail_first):
        place = storage(url)
        added(place, content, "a", tmp_path)
        assert place.read("a") == content
    assert asked == (["PUT", "PUT", "GET"] if method == "PUT" else ["PUT", "GET", "GET"])


@pytest.mark.slow
def test_an_answer_that_breaks_off_amid_a_file_is_asked_for_again(s3: Service, tmp_path: Path) -> None:
    url, content = s3.url(), large(tmp_path).read_bytes()
    storage(url).add(tmp_path / "large", "a")
    asked: list[str] = []

    def cut(method: str, _: str) -> Cut | None:
        asked.append(method)
        return Cut(1_000_000) if asked.count("GET") == 3 else None

    with s3.proxied(cut), storage(url).open("a") as file:
        assert file.read() == content
    assert asked.count("GET") == 4  # one of them was to see whether there is a bucket


def test_what_fsspec_is_configured_with_is_heeded(s3: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.url()
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setitem(conf, "s3", {"endpoint_url": endpoint, "config_kwargs": {"user_agent_extra": "of/tests"}})
    storage(url).write("a", b"1")
    assert names(storage(url)) == {"a"}
