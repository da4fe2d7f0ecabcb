"""Objects and documents: kept whole, checked, shared between processes, on a disk or behind a URL."""

import io
import os
import pickle
import signal
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import pytest
from fsspec.config import conf

from cosyjit.errors import StoreError, StoreUnavailableError, TransientError
from cosyjit.operations import gc
from cosyjit.operations.verify import verify_store
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import DEFAULT_ROOT, Store, object_name
from cosyjit.text import plain
from tests.support.files import other_device, sha256
from tests.support.processes import said, snapshot, start, wait_for, waits_for_a_lock
from tests.support.s3 import SECRET, Service
from tests.support.stores import add, elsewhere, fetched, files_of, object_path, unique_url

if TYPE_CHECKING:
    import subprocess

CONTENT = b"an artifact's bytes"
DIGEST = sha256(CONTENT)


@pytest.fixture(params=["directory", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind."""
    if request.param == "s3":
        server: Service = request.getfixturevalue("s3")
        return Store(server.url())
    return Store(tmp_path / "store" if request.param == "directory" else unique_url())


def staged(directory: Path, content: bytes = CONTENT) -> Path:
    path = directory / "staged"
    path.write_bytes(content)
    return path


def write_behind(store: Store, name: str, content: bytes) -> None:
    """Change a file of a store as nobody should, a local one in place."""
    if store.local is None:
        store.write(name, content)
    else:
        (store.local / name).chmod(0o644)
        (store.local / name).write_bytes(content)


def test_an_object_is_kept_under_its_digest_and_comes_back(kept: Store, tmp_path: Path) -> None:
    assert kept.condition(DIGEST) == "missing"
    assert add(kept, CONTENT) == DIGEST
    assert files_of(kept) == {object_name(DIGEST)}
    assert kept.condition(DIGEST) == "intact"
    assert fetched(kept, DIGEST, tmp_path / "copy") == CONTENT
    assert kept.objects() == {DIGEST}
    assert [(entry.name, entry.size) for entry in kept.entries("objects")] == [(object_name(DIGEST), len(CONTENT))]
    with kept.open(object_name(DIGEST)) as file:
        assert file.read(2) + file.read() == CONTENT


def test_the_same_object_added_twice_is_one(kept: Store) -> None:
    add(kept, CONTENT)
    before = kept.entries("objects")
    add(kept, CONTENT)
    assert kept.entries("objects") == before


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_objects_of_any_size_come_back(size: int, kept: Store, tmp_path: Path) -> None:
    content = os.urandom(size)
    assert fetched(kept, add(kept, content), tmp_path / "copy") == content


def test_an_object_is_fetched_to_the_end_of_a_file(kept: Store, tmp_path: Path) -> None:
    add(kept, CONTENT)
    with (tmp_path / "file").open("wb") as file:
        file.write(b"before ")
        kept.fetch(DIGEST, file)
        file.write(b" after")
    assert (tmp_path / "file").read_bytes() == b"before " + CONTENT + b" after"


def test_a_missing_object_is_said_to_be_missing(kept: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        fetched(kept, DIGEST, tmp_path / "copy")
    assert str(error.value) == (
        f"{kept.root}: object {DIGEST} is missing; export its checkpoint again to build it anew"
    )
    with pytest.raises(StoreError):
        kept.open(object_name(DIGEST))


def test_a_copy_of_a_damaged_object_is_refused_and_the_object_stays_if_that_is_asked_for(
    kept: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(kept, CONTENT)
    write_behind(kept, object_name(DIGEST), b"other")
    for _ in range(2):
        with (tmp_path / "copy").open("wb") as file, pytest.raises(StoreError, match=f"object {DIGEST} is damaged"):
            elsewhere(kept, monkeypatch, tmp_path).fetch(DIGEST, file, set_aside=False)
    assert files_of(kept) == {object_name(DIGEST)}


def test_several_objects_are_whole_if_each_is(kept: Store) -> None:
    digests = [add(kept, b"1"), add(kept, b"2")]
    assert kept.condition_of_all([]) == kept.condition_of_all(digests) == "intact"
    assert kept.check_all_or_set_aside(digests) == "intact"
    kept.remove(object_name(digests[1]))
    assert kept.condition_of_all(digests) == kept.check_all_or_set_aside(digests) == "missing"


@pytest.mark.parametrize("other", [b"an artifact's Bytes", b"", CONTENT + b"x", CONTENT[:-1]])
def test_a_damaged_object_is_never_given_and_is_set_aside(
    other: bytes, kept: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(kept, CONTENT)
    write_behind(kept, object_name(DIGEST), other)
    with pytest.raises(StoreError) as error:
        fetched(elsewhere(kept, monkeypatch, tmp_path), DIGEST, tmp_path / "copy")
    assert str(error.value) == (
        f"{kept.root}: object {DIGEST} is damaged; export its checkpoint again to build it anew"
    )
    (aside,) = files_of(kept)
    assert aside.startswith("damaged/")
    assert kept.read(aside) == other
    assert kept.condition(DIGEST) == "missing"
    add(kept, CONTENT)
    assert fetched(kept, DIGEST, tmp_path / "copy") == CONTENT
    assert files_of(kept) == {aside, object_name(DIGEST)}


def test_documents_are_read_replaced_and_removed(kept: Store) -> None:
    assert kept.read("records/a.json") is None
    for content in (b"{}", b"[]"):
        kept.write("records/a.json", content)
        assert kept.read("records/a.json") == content
    assert [entry.name for entry in kept.entries("records")] == ["records/a.json"]
    kept.remove("records/a.json")
    kept.remove("records/a.json")
    assert files_of(kept) == set()


def test_what_is_set_aside_twice_is_there_twice(kept: Store) -> None:
    for content in (b"1", b"2"):
        kept.write("records/a.json", content)
        kept.set_aside("records/a.json")
    kept.set_aside("records/a.json")
    assert sorted(kept.read(name) or b"" for name in files_of(kept)) == [b"1", b"2"]


def test_staging_is_removed_with_what_is_in_it(kept: Store) -> None:
    def fail(work: Path) -> None:
        (work / "part").mkdir()
        (work / "part" / "file").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), kept.staging() as work:
        fail(work)
    assert not work.exists()


def test_no_store_has_room_for_all_bytes(kept: Store) -> None:
    kept.check_room(1)
    with pytest.raises(StoreError, match=r"MB are to be written and [\d,]+ MB are free; make room") as error:
        kept.check_room(2**62)
    assert str(error.value).startswith(f"{kept.root}: ")


def test_turns_are_taken_and_a_store_is_used_and_left(kept: Store) -> None:
    for _ in range(2):
        with kept.in_use(), kept.build_lock("ab" * 16):
            add(kept, CONTENT)
        with kept.exclusive():
            kept.remove(object_name(DIGEST))


def test_a_store_survives_pickling(kept: Store) -> None:
    kept.write("records/a.json", b"1")
    again = pickle.loads(pickle.dumps(kept))
    assert (again.root, again.local, again.read("records/a.json")) == (kept.root, kept.local, b"1")
    assert str(again) == kept.root


def test_the_default_store_is_in_the_home_directory(home: Path) -> None:
    assert Store().root == str(home / ".cache" / "cosyjit") == str(Path(DEFAULT_ROOT).expanduser())
    assert Store("").root == Store(None).root
    assert snapshot(home) == {}


def test_looking_makes_no_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "store")
    store.check_room(1)
    assert store.read("records/a.json") is None
    assert store.condition(DIGEST) == "missing"
    assert store.entries() == []
    store.remove("records/a.json")
    assert snapshot(tmp_path) == {}


# A directory's objects.


def test_local_objects_are_read_only_and_have_the_mode_that_umask_asks_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    modes = []
    for mask in (0o022, 0o077, 0o027):
        before = os.umask(mask)
        try:
            modes.append(stat.S_IMODE(object_path(store, add(store, b"mask %o" % mask)).stat().st_mode))
        finally:
            os.umask(before)
    assert modes == [0o444, 0o400, 0o440]


def test_an_object_comes_from_another_device(tmp_path: Path) -> None:
    with other_device(tmp_path) as memory:
        store = Store(tmp_path / "store")
        before = os.umask(0o027)
        try:
            store.add(staged(memory), DIGEST)
        finally:
            os.umask(before)
        assert stat.S_IMODE(object_path(store, DIGEST).stat().st_mode) == 0o440
        assert fetched(store, DIGEST, memory / "copy") == CONTENT
        assert files_of(store) == {object_name(DIGEST)}


def test_tampering_is_seen_even_if_all_times_are_restored_that_can_be(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    add(store, CONTENT)
    path = object_path(store, DIGEST)
    assert store.condition(DIGEST) == "intact"
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"A")
    path.chmod(stat.S_IMODE(before.st_mode))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    for _ in range(2):
        assert store.condition(DIGEST) == "damaged"
    assert store.check_or_set_aside(DIGEST) == "damaged"
    assert store.condition(DIGEST) == "missing"


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.mkdir(),
        lambda path: (path / "below").mkdir(parents=True),
        os.mkfifo,
    ],
    ids=["link", "device", "folder", "folders", "pipe"],
)
def test_what_is_no_file_is_no_object(put: Callable[[Path], object], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    path = object_path(store, DIGEST)
    path.parent.mkdir(parents=True)
    put(path)
    for _ in range(2):
        assert store.condition(DIGEST) == "damaged"
    assert store.check_or_set_aside(DIGEST) == "damaged"
    assert store.condition(DIGEST) == "missing"
    assert len(list(Path(store.root, "damaged").iterdir())) == 1
    add(store, CONTENT)
    assert path.read_bytes() == CONTENT


def bytes_read() -> int:
    """How much this process has read so far."""
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


def test_a_whole_object_is_not_read_again_and_a_touched_one_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = add(store, bytes(5_000_000))

    def looked() -> int:
        before = bytes_read()
        assert store.condition(digest) == "intact"
        return bytes_read() - before

    assert looked() < 1_000_000
    object_path(store, digest).touch()
    assert looked() > 5_000_000
    store = Store(store.root)
    assert looked() < 1_000_000


def test_a_link_is_another_name_of_the_object(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    add(store, CONTENT)
    store.link(DIGEST, tmp_path / "link")
    assert (tmp_path / "link").samefile(object_path(store, DIGEST))
    assert store.condition(DIGEST) == "intact"


def test_what_cannot_be_linked_is_refused_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(StoreError, match=f"{DIGEST} cannot be linked; publish without links"):
        store.link(DIGEST, tmp_path / "link")
    add(store, CONTENT)
    with pytest.raises(StoreError, match=r"no links into .* \(No such file or directory\); publish without links"):
        store.link(DIGEST, tmp_path / "missing" / "link")
    with other_device(tmp_path) as memory:
        with pytest.raises(StoreError, match=r"no links into .* \(Invalid cross-device link\); publish without links"):
            store.link(DIGEST, memory / "link")
        assert list(memory.iterdir()) == []
    write_behind(store, object_name(DIGEST), b"other")
    with pytest.raises(StoreError):
        store.link(DIGEST, tmp_path / "link")
    remote = Store(unique_url())
    add(remote, CONTENT)
    with pytest.raises(StoreError, match=f"{DIGEST} cannot be linked; publish without links"):
        remote.link(DIGEST, tmp_path / "link")


@pytest.mark.slow
def test_an_object_that_is_linked_elsewhere_while_it_is_read_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    size = 200 << 20
    with store.staging() as work:
        with (work / "large").open("wb") as file:
            file.truncate(size)
        digest = sha256(bytes(size))
        store.add(work / "large", digest)
    path = object_path(store, digest)
    path.touch()  # so that it has to be read
    checking = "import sys; from cosyjit.store.store import Store; print(Store(sys.argv[1]).condition(sys.argv[2]))"
    with start(checking, store.root, digest) as reader:
        wait_for(lambda: str(path) in opened_by(reader.pid))
        os.link(path, tmp_path / "link")
        assert said(reader) == "intact"
    assert path.is_file()


def opened_by(pid: int) -> list[str]:
    try:
        return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:  # closed meanwhile
        return []


# Processes.

ADD = """
import sys
from pathlib import Path
from cosyjit.store.store import Store
store = Store(sys.argv[1])
with store.in_use(), store.staging() as work:
    (work / "artifact").write_bytes(bytes(5_000_000))
    print("ready", flush=True)
    input()
    store.add(work / "artifact", sys.argv[2])
print(store.condition(sys.argv[2]))
"""


@pytest.mark.slow
def test_eight_processes_add_the_same_object_at_once(tmp_path: Path) -> None:
    store, digest = Store(tmp_path / "store"), sha256(bytes(5_000_000))
    adders = [start(ADD, store.root, digest) for _ in range(8)]
    assert [said(adder) for adder in adders] == ["ready"] * 8
    for adder in adders:
        assert adder.stdin is not None
        adder.stdin.write("\n")
        adder.stdin.flush()
    ends = [(adder.communicate(timeout=600), adder.returncode) for adder in adders]
    assert ends == [(("intact\n", ""), 0)] * 8
    assert files_of(store) == {object_name(digest)}
    assert digest == sha256(object_path(store, digest).read_bytes())


KILLED = """
import resource, sys
from pathlib import Path
from cosyjit.store.store import Store
from tests.support.processes import die_at, forked
from tests.support.stores import add
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for step in range(1000):
    store = Store(Path(sys.argv[1], str(step)))
    def work():
        die_at(step)
        with store.in_use():
            add(store, bytes(100_000))
            store.write("records/a.json", b"{}")
    status = forked(work)
    print(status, flush=True)
    if not status:
        break
"""


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_whole_files_or_none_and_the_next_try_succeeds(tmp_path: Path) -> None:
    with start(KILLED, tmp_path) as killer:
        out, err = killer.communicate(timeout=600)
    statuses = [int(line) for line in out.split()]
    assert err == ""
    assert statuses == [-signal.SIGKILL] * (len(statuses) - 1) + [0]
    assert len(statuses) > 12
    digest = sha256(bytes(100_000))
    seen = set()
    for step in range(len(statuses)):
        store = Store(tmp_path / str(step))
        shown = {name for name in files_of(store) if not name.endswith(".tmp")}
        assert shown <= {object_name(digest), "records/a.json"}
        assert "records/a.json" not in shown or object_name(digest) in shown
        seen.add(len(shown))
        assert store.condition(digest) == ("intact" if object_name(digest) in shown else "missing")
        assert store.read("records/a.json") in {None, b"{}"}
        with store.in_use():
            assert list((tmp_path / str(step)).glob("tmp/*")) == []
            add(store, bytes(100_000))
        assert store.condition(digest) == "intact"
    assert seen == {0, 1, 2}


USE = """
import sys
from cosyjit.store.store import Store
store = Store(sys.argv[1])
with getattr(store, sys.argv[2])(*sys.argv[3:]):
    if sys.argv[2] == "in_use":
        with store.staging() as work:
            (work / "half").write_bytes(b"half")
            print(work, flush=True)
            input()
    else:
        print("entered", flush=True)
        input()
"""


@pytest.mark.parametrize("end", ["return", "kill"])
def test_who_wants_to_be_alone_waits_for_every_user(end: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with start(USE, store.root, "in_use") as first, start(USE, store.root, "in_use") as second:
        assert Path(said(first)).is_dir()
        assert Path(said(second)).is_dir()
        with start(USE, store.root, "exclusive") as alone:
            for user in (first, second):
                wait_for(lambda: waits_for_a_lock(alone.pid))
                leave(user, end)
            assert said(alone) == "entered"
            with start(USE, store.root, "in_use") as late:
                wait_for(lambda: waits_for_a_lock(late.pid))
                leave(alone, end)
                assert Path(said(late)).is_dir()
                leave(late, "return")


def leave(process: "subprocess.Popen[str]", end: str = "return") -> None:
    if end == "kill":
        process.kill()
        process.wait(600)
    else:
        process.communicate("\n", timeout=600)


def test_who_wants_to_be_alone_is_not_passed_by(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with start(USE, store.root, "in_use") as first:
        assert said(first)
        with start(USE, store.root, "exclusive") as alone:
            wait_for(lambda: waits_for_a_lock(alone.pid))
            with start(USE, store.root, "in_use") as late:
                wait_for(lambda: waits_for_a_lock(late.pid))
                leave(first)
                assert said(alone) == "entered"
                leave(alone)
                assert said(late)
                leave(late)


JOIN = """
import sys
from cosyjit.store.store import Store
with Store(sys.argv[1]).in_use(joining=True):
    print("joined", flush=True)
    input()
"""


def test_who_is_waited_for_by_a_user_passes_by_who_wants_to_be_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with start(USE, store.root, "in_use") as first:
        assert said(first)
        with start(USE, store.root, "exclusive") as alone:
            wait_for(lambda: waits_for_a_lock(alone.pid))
            with start(JOIN, store.root) as joining:
                assert said(joining) == "joined"
                leave(first)
                assert waits_for_a_lock(alone.pid)
                leave(joining)
                assert said(alone) == "entered"
                leave(alone)


def test_what_a_killed_process_left_goes_once_nobody_is_at_work(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with start(USE, store.root, "in_use") as killed, start(USE, store.root, "in_use") as live:
        left, used = Path(said(killed)), Path(said(live))
        killed.kill()
        killed.wait(600)
        with store.in_use():
            assert (left / "half").read_bytes() == b"half"
            assert (used / "half").read_bytes() == b"half"
        leave(live)
        assert not used.exists()
    assert left.exists()
    with store.in_use():
        assert not left.exists()


@pytest.mark.parametrize(("key", "waits"), [("ab" * 16, True), ("ac" * 16, False)])
def test_the_same_is_built_in_turn_and_something_else_is_not_waited_for(key: str, waits: bool, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with start(USE, store.root, "build_lock", "ab" * 16) as first:
        assert said(first) == "entered"
        with start(USE, store.root, "build_lock", key) as second:
            if waits:
                wait_for(lambda: waits_for_a_lock(second.pid))
                first.kill()
            assert said(second) == "entered"
            leave(second)
        first.kill()


# Memory.

LARGE = """
import hashlib, sys
from pathlib import Path
from cosyjit.store.store import Store
from tests.support.processes import peak
memory, root = Path(sys.argv[1]), sys.argv[2]
size = 300_000_000
with (memory / "large").open("wb") as file:
    file.truncate(size)
digest = hashlib.sha256()
for _ in range(300):
    digest.update(bytes(1_000_000))
store = Store(root)
before = peak()
store.add(memory / "large", digest.hexdigest())
(memory / "large").unlink(missing_ok=True)
with (memory / "copy").open("wb") as file:
    store.fetch(digest.hexdigest(), file)
print((memory / "copy").stat().st_size, peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_object(tmp_path: Path) -> None:
    with other_device(tmp_path) as memory, start(LARGE, memory, tmp_path / "store") as process:
        out, err = process.communicate(timeout=600)
    assert err == ""
    size, grown = map(int, out.split())
    assert size == 300_000_000
    assert grown < 20_000_000


# Stores that cannot be.


@pytest.fixture
def occupied(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


PLACES = ["file", "file/below", "/proc/nope", "/proc/nope/below", "loop/below", "n" * 300, f"a/{'n' * 300}"]

CHANGES: dict[str, Callable[[Store], object]] = {
    "write": lambda store: store.write("records/a.json", b"{}"),
    "add": lambda store: add(store, CONTENT),
    "staging": lambda store: store.staging().__enter__(),
    "in_use": lambda store: store.in_use().__enter__(),
    "build_lock": lambda store: store.build_lock("ab" * 16).__enter__(),
    "exclusive": lambda store: store.exclusive().__enter__(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: repr(place)[1:13])
def test_a_store_that_cannot_be_written_is_named_in_one_line(place: str, change: str, occupied: Path) -> None:
    before = (occupied / "file").read_bytes()
    store = Store(occupied / place)
    with pytest.raises(StoreError) as error:
        CHANGES[change](store)
    assert str(error.value).startswith(f"{occupied / place}: cannot be read or written (")
    assert str(error.value).endswith("); mend it, or name another store")
    assert len(str(error.value).splitlines()) == 1
    assert (occupied / "file").read_bytes() == before


LOOKS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("records/a.json"),
    "condition": lambda store: store.condition(DIGEST),
    "check_or_set_aside": lambda store: store.check_or_set_aside(DIGEST),
    "entries": lambda store: store.entries(),
    "entries below": lambda store: store.entries("heads"),
    "objects": lambda store: list(store.objects()),
    "remove": lambda store: store.remove("records/a.json"),
    "set_aside": lambda store: store.set_aside("records/a.json"),
    "open": lambda store: store.open(object_name(DIGEST)),
}


LOCAL_LOOKS: dict[str, Callable[[Store], object]] = {**LOOKS, "check_room": lambda store: store.check_room(1)}


@pytest.mark.parametrize("look", LOCAL_LOOKS)
@pytest.mark.parametrize("place", ["file", "file/below", "loop/below", "n" * 300], ids=lambda place: place[:10])
def test_a_store_that_cannot_be_read_is_named_in_one_line(place: str, look: str, occupied: Path) -> None:
    store = Store(occupied / place)
    with pytest.raises(StoreError) as error:
        LOCAL_LOOKS[look](store)
    assert str(error.value).startswith(f"{occupied / place}: cannot be read or written (")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "root",
    ["nope://x", "s4://bucket/x", "~nobody-of-this-name/x", "a\0b", "s3://", "s3:///x", "s3://b//x", "s3://a b/x"],
)
def test_what_is_no_store_is_refused_in_one_line(root: str) -> None:
    with pytest.raises(StoreError) as error:
        Store(root)
    message = str(error.value)
    assert message.startswith(f"{plain(root)}: is not a store (")
    assert message.endswith("); give a directory or an fsspec URL")
    assert len(message.splitlines()) == 1


FULL = """
import resource, sys
from pathlib import Path
from cosyjit.errors import StoreError
from cosyjit.store.store import Store
from tests.support.stores import add
store, other = Store(sys.argv[1]), Path(sys.argv[2], "large")
other.write_bytes(bytes(300_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for work in (lambda: store.write("records/a.json", bytes(200_000)), lambda: store.add(other, sys.argv[3])):
    try:
        work()
    except StoreError as error:
        print(error)
"""


def test_a_disk_that_takes_no_more_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.write("records/a.json", b"{}")
    digest = sha256(bytes(300_000))
    with other_device(tmp_path) as memory, start(FULL, store.root, memory, digest) as writer:
        out, err = writer.communicate(timeout=600)
    assert err == ""
    assert out.splitlines() == [
        f"{store.root}: cannot be read or written ({name}: File too large); mend it, or name another store"
        for name in ("records/a.json", f"objects/{digest[:2]}/{digest}")
    ]
    assert files_of(store) == {"records/a.json"}
    assert store.read("records/a.json") == b"{}"
    assert store.condition(digest) == "missing"


def test_a_full_disk_elsewhere_is_not_the_stores_fault(kept: Store) -> None:
    digest = add(kept, bytes(4 << 20))
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("wb") as file:
        kept.fetch(digest, file)
    assert kept.condition(digest) == "intact"


def test_the_digests_of_a_url_are_remembered_on_this_machine(home: Path) -> None:
    assert Store(unique_url()).digests.directory == home / ".cache" / "cosyjit" / "digests"


def test_what_cannot_be_remembered_is_only_read_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    add(store, CONTENT)
    for memory in (tmp_path / "store" / "digests").iterdir():
        memory.unlink()
    (tmp_path / "store" / "digests").rmdir()
    (tmp_path / "store" / "digests").write_bytes(b"in the way")
    assert store.condition(DIGEST) == "intact"
    assert fetched(store, DIGEST, tmp_path / "copy") == CONTENT


@pytest.mark.parametrize(
    ("root", "shown"),
    [
        ("s3://key:pa55@bucket/x", "s3://…@bucket/x"),
        ("s3://key:pa/55@bucket/x", "s3://…@bucket/x"),
        ("sftp://me:pa55@host/x", "sftp://…@host/x"),
        ("ftp://me:pa55@host:21/x@y", "ftp://…@y"),
    ],
)
def test_a_url_with_a_password_is_refused_and_not_quoted(root: str, shown: str) -> None:
    with pytest.raises(StoreError) as error:
        Store(root)
    assert str(error.value).startswith(f"{shown}: is not a store (")
    assert "55" not in repr(error.value)


WITHOUT_S3FS = """
import sys
sys.modules["s3fs"] = None
from cosyjit.errors import StoreError
from cosyjit.store.store import Store
try:
    Store("s3://bucket/x")
except StoreError as error:
    print(error)
"""


def test_who_has_no_s3fs_is_told_what_to_install() -> None:
    with start(WITHOUT_S3FS) as process:
        out, err = process.communicate(timeout=600)
    assert (out, err) == ("s3://bucket/x: needs a package that is missing; install cosyjit[s3]\n", "")


# What others share: a store in a bucket, and this machine's copies of its objects.


@pytest.fixture
def shared(s3: Service) -> Store:
    return Store(s3.url())


def test_no_secret_is_in_a_pickle(shared: Store) -> None:
    add(shared, CONTENT)
    assert SECRET.encode() not in pickle.dumps(shared)
    assert SECRET not in repr(vars(shared))


def test_what_was_fetched_once_is_not_asked_for_again(
    shared: Store, s3: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(shared, CONTENT)
    asked: list[tuple[str, str]] = []
    with s3.proxied(lambda *request: asked.append(request)):
        other = elsewhere(shared, monkeypatch, tmp_path)
        for store in (other, other, Store(other.root)):
            assert fetched(store, DIGEST, tmp_path / "copy") == CONTENT
    assert [method for method, path in asked if path.endswith(DIGEST)] == ["HEAD", "HEAD", "GET"]
    assert len(asked) == 4  # and one whether there is a bucket


def test_what_was_just_added_is_not_downloaded(s3: Service, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []
    with s3.proxied(lambda *request: asked.append(request)):
        store = Store(s3.url())
        add(store, CONTENT)
        assert fetched(store, DIGEST, tmp_path / "copy") == CONTENT
    assert "GET" not in {method for method, path in asked if path.endswith(DIGEST)}


def test_what_is_built_for_a_shared_store_is_renamed_into_its_copies(shared: Store) -> None:
    assert shared.local is None
    assert shared.cache is not None
    with shared.staging() as work:
        inode = staged(work).stat().st_ino
        shared.add(work / "staged", DIGEST)
    assert object_path(shared.cache, DIGEST).stat().st_ino == inode
    assert files_of(shared) == files_of(shared.cache) == {object_name(DIGEST)}


def test_an_object_that_the_bucket_has_already_is_copied_here(
    shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(shared, CONTENT)
    before = shared.entries()
    other = elsewhere(shared, monkeypatch, tmp_path)
    add(other, CONTENT)
    assert shared.entries() == before
    assert other.cache is not None
    assert other.cache.condition(DIGEST) == "intact"


def test_a_damaged_copy_is_set_aside_and_downloaded_again(shared: Store, tmp_path: Path) -> None:
    add(shared, CONTENT)
    assert shared.cache is not None
    for content in (b"other", CONTENT[:-1]):
        write_behind(shared.cache, object_name(DIGEST), content)
        assert fetched(shared, DIGEST, tmp_path / "copy") == CONTENT
        assert shared.cache.condition(DIGEST) == "intact"
    assert len(shared.cache.entries("damaged")) == 2
    assert files_of(shared) == {object_name(DIGEST)}


def test_an_object_that_is_missing_is_not_made_up_for_by_copies_of_others(shared: Store, tmp_path: Path) -> None:
    add(shared, b"other")
    with pytest.raises(StoreError, match=f"{DIGEST} is missing"):
        fetched(shared, DIGEST, tmp_path / "copy")
    assert shared.cache is not None
    assert list((shared.cache.local or Path()).glob("tmp/*")) == []


@pytest.mark.slow
def test_a_home_that_takes_no_copies_is_done_without(
    shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/nope")
    store = Store(shared.root)
    store.check_room(1)
    with store.in_use(), store.build_lock("ab" * 16):
        assert add(store, CONTENT) == DIGEST
        for _ in range(2):
            assert fetched(store, DIGEST, tmp_path / "copy") == CONTENT
    with store.staging() as work:
        assert work.is_relative_to(tempfile.gettempdir())


FETCH_WITHIN = """
import resource, sys
from cosyjit.store.store import Store
store = Store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store.fetch(sys.argv[2], sys.stdout.buffer)
"""


@pytest.mark.slow
def test_a_home_that_is_full_is_done_without(
    shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Service
) -> None:
    assert s3.env.items() <= os.environ.items()
    digest = add(shared, b"x" * 300_000)
    other = elsewhere(shared, monkeypatch, tmp_path)
    with start(FETCH_WITHIN, other.root, digest) as process:
        out, err = process.communicate(timeout=600)
    assert (err, sha256(out.encode())) == ("", digest)
    assert other.cache is not None
    assert files_of(other.cache) == set()


AT_HOME = "import os, sys; os.environ['HOME'] = sys.argv.pop(1)\n"


@pytest.mark.slow
def test_machines_that_add_the_same_object_at_once_add_one(shared: Store, tmp_path: Path) -> None:
    digest = sha256(bytes(5_000_000))
    adders = [start(AT_HOME + ADD, tmp_path / str(number), shared.root, digest) for number in range(2)]
    assert [said(adder) for adder in adders] == ["ready"] * 2
    ends = []
    for adder in adders:
        assert adder.stdin is not None
        adder.stdin.write("\n")
        adder.stdin.flush()
    for adder in adders:
        out, err = adder.communicate(timeout=600)
        ends.append((out, err, adder.returncode))
    assert ends == [("intact\n", "", 0)] * 2
    assert files_of(shared) == {object_name(digest)}
    assert fetched(Store(shared.root), digest, tmp_path / "copy") == bytes(5_000_000)


@pytest.mark.slow
def test_two_machines_take_turns(s3: Service, tmp_path: Path) -> None:
    url, key = s3.url(), "ab" * 16
    asked: list[tuple[str, str]] = []
    with start(AT_HOME + USE, tmp_path / "first", url, "build_lock", key) as first:
        assert said(first) == "entered"
        with (
            s3.proxied(lambda *request: asked.append(request)),
            start(AT_HOME + USE, tmp_path / "second", url, "build_lock", key) as second,
        ):
            wait_for(lambda: sum(path.endswith(key) for _, path in asked) > 5)
            assert second.poll() is None
            with Store(url).build_lock("ac" * 16):
                leave(first)
            assert said(second) == "entered"
            leave(second)
    assert Store(url).entries() == []


def test_the_processes_of_one_machine_take_turns_by_its_own_locks() -> None:
    url = unique_url()  # of which each process has its own
    with start(USE, url, "build_lock", "ab" * 16) as first:
        assert said(first) == "entered"
        with start(USE, url, "build_lock", "ab" * 16) as second:
            wait_for(lambda: waits_for_a_lock(second.pid))
            leave(first)
            assert said(second) == "entered"
            leave(second)


REMOTE: dict[str, Callable[[Store], object]] = {
    **LOOKS,
    **{name: change for name, change in CHANGES.items() if name not in {"staging", "exclusive"}},
    "fetch": lambda store: store.fetch(DIGEST, io.BytesIO()),
    "verify": verify_store,
    "history": lambda store: PublishedDirectory(Path("/nowhere"), store).history(),
    "gc": gc.gc,
}


def test_a_bucket_that_is_not_there_is_no_empty_store(s3: Service, home: Path) -> None:
    assert s3.env.items() <= os.environ.items()
    store = Store("s3://no-such-bucket/a")
    for work in REMOTE.values():
        with pytest.raises(StoreError) as error:
            work(store)
        assert not isinstance(error.value, StoreUnavailableError)
        assert str(error.value) == (
            "s3://no-such-bucket/a: cannot be read or written (there is no such bucket); mend it, or name another store"
        )
    assert not (home / ".cache" / "cosyjit" / "cache" / "objects").exists()


def test_a_server_that_is_not_there_is_worth_another_try(s3: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"retries": {"total_max_attempts": 1}}})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = Store("s3://bucket/a")
    for work in REMOTE.values():
        with pytest.raises(StoreUnavailableError) as error:
            work(store)
        again = pickle.loads(pickle.dumps(error.value))
        assert isinstance(again, TransientError)
        assert str(again) == "s3://bucket/a: cannot be reached now (no connection to 127.0.0.1:1); try again later"
        assert s3.env["AWS_SECRET_ACCESS_KEY"] not in repr(again)


class Meddling(io.FileIO):
    """A file that changes another one before anything is written to it, and puts that one's time back."""

    def __init__(self, path: Path, other: Path) -> None:
        super().__init__(path, "wb")
        self._other = other

    def flush(self) -> None:
        if self._other.exists() and self._other.read_bytes() == b"an artifact":
            before = self._other.stat()
            self._other.chmod(0o600)
            self._other.write_bytes(b"AN ARTIFACT")
            os.utime(self._other, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_object_that_is_changed_between_the_look_and_the_copy_is_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = add(store, b"an artifact")
    with Meddling(tmp_path / "copy", object_path(store, digest)) as file, pytest.raises(StoreError) as error:
        store.fetch(digest, cast("BinaryIO", file))
    assert str(error.value) == f"{store.root}: object {digest} was changed while it was read; run again"
