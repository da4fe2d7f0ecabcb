"""How a directory switches from one whole set to another, whatever stood there before."""

import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosyjit.errors import OutputError
from cosyjit.fs import files
from cosyjit.publishing import layout
from cosyjit.publishing.layout import Layout
from tests.support.processes import finished, shown, snapshot, start, wait_for

FIRST: Final = {"a.zip": b"a 1", "b.zip": b"b 1"}
SECOND: Final = {"a.zip": b"a 2", "c.zip": b"c 2"}


def show(directory: Path, name: str, contents: Mapping[str, bytes], document: bytes = b"{}") -> None:
    """Bring files and show them."""
    with Layout(directory).writing():
        members = {member: sha256(content).hexdigest() for member, content in contents.items()}
        for member, content in contents.items():
            files.write(Layout(directory).file(members[member]), content)
        Layout(directory).switch(name, document, members)


def test_a_set_is_shown_by_links_through_one_link(directory: Path) -> None:
    show(directory, "one", FIRST, b"document")
    digests = {name: sha256(content).hexdigest() for name, content in FIRST.items()}
    assert snapshot(directory) == {
        ".cosyjit": None,
        ".cosyjit/current": b"-> sets/one",
        ".cosyjit/files": None,
        **{f".cosyjit/files/{digests[name]}": content for name, content in FIRST.items()},
        ".cosyjit/sets": None,
        ".cosyjit/sets/one": None,
        ".cosyjit/sets/one/cosyjit.json": b"document",
        **{f".cosyjit/sets/one/{name}": b"-> ../../files/" + digests[name].encode() for name in FIRST},
        "cosyjit.json": b"-> .cosyjit/current/cosyjit.json",
        **{name: f"-> .cosyjit/current/{name}".encode() for name in FIRST},
    }
    assert Layout(directory).live_set() == "one"
    assert Layout(directory).document("one").read_bytes() == b"document"


def test_another_set_takes_its_place_and_leaves_nothing_of_it(directory: Path) -> None:
    show(directory, "one", FIRST, b"1")
    show(directory, "two", SECOND, b"2")
    assert shown(directory) == SECOND
    assert (directory / layout.MANIFEST).read_bytes() == b"2"
    assert Layout(directory).live_set() == "two"
    as_it_is = {path: content for path, content in snapshot(directory).items() if "two" not in path}
    show(directory, "three", SECOND, b"2")
    assert {path: content for path, content in snapshot(directory).items() if "three" not in path} == {
        **as_it_is,
        ".cosyjit/current": b"-> sets/three",
    }


def test_nothing_is_shown_where_nothing_was(directory: Path) -> None:
    assert Layout(directory).live_set() is None
    assert Layout(directory / "missing").live_set() is None


def test_what_stood_there_before_is_no_set(directory: Path) -> None:
    """An end between the two steps of the first publication: as a kill leaves it."""
    (directory / "a.zip").write_bytes(b"theirs")
    show(directory, "before.one", {}, b"")
    assert Layout(directory).live_set() is None


def test_a_directory_at_a_name_is_refused_and_nothing_changed(directory: Path) -> None:
    show(directory, "one", FIRST)
    (directory / "c.zip").mkdir()
    as_it_was = snapshot(directory)
    with Layout(directory).writing(), pytest.raises(OutputError, match=r"c\.zip: is a directory; move it away"):
        Layout(directory).check_names(["a.zip", "c.zip"])
    assert snapshot(directory) == as_it_was


NAMES: Final = ("a.zip", "b.zip", layout.MANIFEST)
_sets = st.dictionaries(st.sampled_from(NAMES[:2]), st.sampled_from([b"1", b"2", b"3"]), max_size=2)
_others = st.tuples(st.sampled_from(NAMES), st.sampled_from(["file", "link", "dangling", "in place", "gone"]))


def disturb(path: Path, how: str) -> None:
    """What another program does to a name."""
    if how == "in place" and path.exists():
        path.write_bytes(b"theirs")
        return
    path.unlink(missing_ok=True)
    if how == "file":
        path.write_bytes(b"theirs")
    elif how == "link":
        path.symlink_to("theirs")
    elif how == "dangling":
        path.symlink_to("nowhere")


@pytest.mark.stress
@settings(deadline=None, max_examples=25)
@given(st.lists(st.one_of(_sets, _others), max_size=8))
def test_whatever_others_do_a_set_is_shown_whole_and_alone(steps: list[dict[str, bytes] | tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / "theirs").write_bytes(b"theirs")
        theirs: dict[str, bytes] = {"theirs": b"theirs"}
        for number, step in enumerate(steps):
            if isinstance(step, tuple):
                disturb(directory / step[0], step[1])
                theirs = {**theirs, step[0]: b"theirs"}
                continue
            show(directory, f"set {number}", step, b"%d" % number)
            theirs = {name: content for name, content in theirs.items() if name not in {*step, layout.MANIFEST}}
            found = shown(directory)
            assert {name: found.get(name) for name in step} == step
            assert (directory / layout.MANIFEST).read_bytes() == b"%d" % number
            assert found.keys() <= {*step, *theirs}
            assert found["theirs"] == b"theirs"
            state = directory / ".cosyjit"
            assert [path.name for path in (state / "sets").iterdir()] == [f"set {number}"]
            kept = {path.name for path in (state / "files").iterdir()} if step else set()
            assert kept == {sha256(content).hexdigest() for content in step.values()}


@pytest.mark.parametrize("before", [True, False], ids=["published before", "new"])
def test_what_a_killed_process_left_is_removed(directory: Path, *, before: bool) -> None:
    if before:
        show(directory, "one", FIRST)
        as_it_was = snapshot(directory)
    else:
        as_it_was = {}
        (directory / ".cosyjit").mkdir()
    state = directory / ".cosyjit"
    for folder in ("sets/half", "files", "sets/before.1"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "files" / ".digest.uuid.tmp").write_bytes(b"ha")
    (state / "files" / "digest").write_bytes(b"brought")
    (state / "sets" / "half" / "a.zip").symlink_to("../../files/digest")
    (state / ".uuid.tmp").symlink_to("sets/half")
    (directory / ".uuid.tmp").symlink_to(".cosyjit/current/a.zip")
    if before:
        (state / "sets" / "one" / ".uuid.tmp").symlink_to("../../files/digest")
        (state / "sets" / "one" / ".cosyjit.json.uuid.tmp").write_bytes(b"{")
    with Layout(directory).writing():
        Layout(directory).clean()
    assert snapshot(directory) == as_it_was


def test_links_of_a_first_set_that_was_never_shown_are_removed(directory: Path) -> None:
    (directory / ".cosyjit").mkdir()
    (directory / "a.zip").symlink_to(".cosyjit/current/a.zip")
    with Layout(directory).writing():
        Layout(directory).clean()
    assert snapshot(directory) == {}


# Locks.

HOLD: Final = """
import sys
from pathlib import Path
from cosyjit.publishing.layout import Layout
with Layout(Path(sys.argv[1])).writing(shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    input()
"""


@pytest.mark.parametrize(
    ("held", "wanted", "waits"),
    [
        ("alone", "alone", True),
        ("alone", "shared", True),
        ("shared", "alone", True),
        ("shared", "shared", False),
    ],
)
def test_who_is_alone_waits_for_all_and_all_for_him(directory: Path, held: str, wanted: str, *, waits: bool) -> None:
    entered = threading.Event()

    def enter() -> None:
        with Layout(directory).writing(shared=wanted == "shared"):
            entered.set()

    with start(HOLD, directory, held) as holder, ThreadPoolExecutor(1) as pool:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        entering = pool.submit(enter)
        if waits:
            assert not entered.wait(0.2)
        else:
            entering.result(60)
        holder.kill()  # a lock goes with its process
        entering.result(60)


def test_a_state_that_is_removed_while_others_wait_for_it_is_made_again(directory: Path) -> None:
    with start(HOLD, directory, "alone") as holder, ThreadPoolExecutor(1) as pool:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waiting = pool.submit(show, directory, "one", FIRST)
        descriptors = Path("/proc/self/fd")
        state = directory / ".cosyjit"
        wait_for(lambda: any(_leads_to(path, state) for path in descriptors.iterdir()))
        shutil.rmtree(state)
        finished_holder = holder.communicate("\n", timeout=600)
        assert finished_holder == ("", "")
        waiting.result(60)
    assert shown(directory) == FIRST
    assert Layout(directory).live_set() == "one"


def _leads_to(path: Path, target: Path) -> bool:
    try:
        return path.readlink() == target
    except FileNotFoundError:  # closed meanwhile
        return False


MANY: Final = """
import sys
from hashlib import sha256
from pathlib import Path
from cosyjit.fs import files
from cosyjit.publishing.layout import Layout
directory = Path(sys.argv[1])
input()
for number in range(10):
    with Layout(directory).writing():
        content = f"{sys.argv[2]} {number}".encode()
        digest = sha256(content).hexdigest()
        files.write(Layout(directory).file(digest), content)
        Layout(directory).switch(sys.argv[2] + str(number), content, {"a.zip": digest, "b.zip": digest})
        assert (directory / "a.zip").read_bytes() == (directory / "b.zip").read_bytes() == content
    with Layout(directory).writing():
        Layout(directory).clean()
"""


@pytest.mark.slow
def test_processes_that_show_and_clean_at_the_same_time_leave_one_whole_set(directory: Path) -> None:
    running = [start(MANY, directory, who) for who in range(3)]
    for each in running:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in running:
        ran = finished(each)
        assert (ran.status, ran.err) == (0, "")
    found = shown(directory)
    assert found["a.zip"] == found["b.zip"] == (directory / layout.MANIFEST).read_bytes()
    assert os.listdir(directory / ".cosyjit" / "sets") == [Layout(directory).live_set()]  # noqa: PTH208


def test_a_file_among_the_sets_is_in_nobodys_way_and_removed(tmp_path: Path) -> None:
    directory = tmp_path / "out"
    with Layout(directory).writing():
        pass
    (directory / ".cosyjit" / "sets").mkdir()
    (directory / ".cosyjit" / "sets" / ".DS_Store").write_bytes(b"")
    with Layout(directory).writing():
        Layout(directory).clean()
    assert not (directory / ".cosyjit" / "sets" / ".DS_Store").exists()
