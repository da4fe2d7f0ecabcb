"""What is kept of the hub's models on this machine: fetched once, whole, checked, and found again."""

import json
import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cosyjit.errors import OutputError, SourceError, SourceUnavailableError
from cosyjit.fs import locks
from cosyjit.sources.hub import Model
from cosyjit.sources.source import Source, open_source, reopen
from tests.support.files import sha256
from tests.support.modelscope import MODEL, Hub
from tests.support.processes import start, wait_for

CONFIG = b"llm:\n"
LLM = b"llm" * 200_000
FLOW = b"flow" * 1000
TOKEN = "ms-0123456789"  # noqa: S105  (nobody's)

FETCH = """
import sys
from cosyjit.sources.source import open_source, reopen
source = open_source(sys.argv[1])
source.obtain(["llm.pt"])
print(source.pinned)
"""
"""Gets a model's configuration and llm.pt, and says which commit that was."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.use(monkeypatch)
        hub.publish(MODEL, {"cosyvoice.yaml": CONFIG, "llm.pt": LLM, "flow.pt": FLOW, "README.md": b"read me"})
        yield hub


def got(source: str = MODEL, *names: str) -> Source:
    """A source with some of its files, all by default."""
    found = open_source(source)
    found.obtain(names or ["llm.pt", "flow.pt"])
    return found


def shown(source: Source) -> dict[str, bytes]:
    """What stands in a snapshot, its description apart."""
    return {path.name: path.read_bytes() for path in source.directory.iterdir() if path.name != "snapshot.json"}


def root(source: Source) -> Path:
    return source.home.parents[1]


def kept(source: Source) -> set[str]:
    """The commits of the snapshots in a home."""
    return {path.name for path in (source.home / "snapshots").iterdir()}


def bytes_read() -> int:
    """How many bytes this process has read of files."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_link_that_cannot_be_made_leaves_nothing(hub: Hub) -> None:
    source = open_source(MODEL)
    (source.directory / "llm.pt" / "someone's").mkdir(parents=True)
    with pytest.raises(OutputError, match="Is a directory"):
        source.obtain(["llm.pt"])
    assert hub.downloads == ["cosyvoice.yaml", "llm.pt"]
    assert {path.name for path in source.directory.iterdir()} == {"cosyvoice.yaml", "llm.pt"}


# One revision after the other.


def test_what_is_needed_is_downloaded_and_nothing_else(hub: Hub) -> None:
    source = open_source(MODEL)
    assert hub.downloads == ["cosyvoice.yaml"]
    source.obtain(["flow.pt"])
    assert hub.downloads == ["cosyvoice.yaml", "flow.pt"]
    assert shown(source) == {"cosyvoice.yaml": CONFIG, "flow.pt": FLOW}
    assert source.config.read_bytes() == CONFIG
    source.obtain(["llm.pt"])
    assert shown(source) == {"cosyvoice.yaml": CONFIG, "flow.pt": FLOW, "llm.pt": LLM}
    assert hub.count("listing") == 1


def test_where_nothing_is_new_one_request_is_made_and_nothing_is_read(hub: Hub) -> None:
    before = got()
    hub.requests.clear()
    seen = bytes_read()
    assert got() == before
    assert bytes_read() - seen < len(LLM) / 4
    assert [each.kind for each in hub.requests] == ["listing"]


def test_of_a_new_revision_what_has_changed_is_downloaded(hub: Hub) -> None:
    before = got()
    hub.requests.clear()
    commit = hub.publish(MODEL, {"llm.pt": b"new"})
    after = got()
    assert hub.downloads == ["llm.pt"]
    assert after.pinned == f"{MODEL}@{commit}"
    assert (after.name, after.home) == (before.name, before.home)
    assert shown(after) == {"cosyvoice.yaml": CONFIG, "flow.pt": FLOW, "llm.pt": b"new"}
    assert shown(before)["llm.pt"] == LLM
    assert after.file("flow.pt") == before.file("flow.pt")
    assert (after.directory / "flow.pt").samefile(before.directory / "flow.pt")


def test_a_change_to_other_files_is_a_new_revision_of_the_same_bytes(hub: Hub) -> None:
    before = got()
    hub.requests.clear()
    hub.publish(MODEL, {"README.md": b"read me again"})
    after = got()
    assert hub.downloads == []
    assert after.pinned != before.pinned
    assert {name: after.file(name) for name in shown(after)} == {name: before.file(name) for name in shown(before)}
    assert after.uri("llm.pt") == before.uri("llm.pt")


def test_a_tag_stays_what_it_is_and_shares_what_is_the_same(hub: Hub) -> None:
    hub.tag(MODEL, "v1.0", got().pinned.partition("@")[2])
    hub.publish(MODEL, {"llm.pt": b"new"})
    got()
    hub.requests.clear()
    tagged = got(f"{MODEL}@v1.0")
    assert hub.downloads == []
    assert shown(tagged)["llm.pt"] == LLM
    assert tagged.name == f"{MODEL}@v1.0"
    assert tagged.home.name == "CosyVoice-300M@v1.0"


def test_a_commit_can_be_asked_for(hub: Hub) -> None:
    before = got()
    hub.publish(MODEL, {"llm.pt": b"new"})
    pinned = got(before.pinned)
    assert pinned.name == pinned.pinned == before.pinned
    assert shown(pinned) == shown(before)


def test_a_branch_with_a_slash_has_one_directory(hub: Hub) -> None:
    hub.publish(MODEL, {"cosyvoice.yaml": CONFIG}, revision="feature/x")
    source = open_source(f"{MODEL}@feature/x")
    assert source.home.name == "CosyVoice-300M@feature%2Fx"
    assert source.home.parent.name == "iic"


def test_a_directory_that_is_reached_by_two_paths_loses_nothing(
    hub: Hub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got()
    for path in root(got()).rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    (tmp_path / "elsewhere").symlink_to(home)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    hub.publish(MODEL, {"llm.pt": b"new"})
    source = got()
    left = list((source.home / "snapshots").iterdir())
    assert len(left) == 2
    assert all((directory / name).is_file() for directory in left for name in ("cosyvoice.yaml", "llm.pt", "flow.pt"))


def test_what_could_not_be_removed_goes_with_the_next_export(hub: Hub) -> None:
    source = got()
    for content in (b"1", b"2", b"3"):
        hub.publish(MODEL, {"llm.pt": content})
        with locks.locked(root(source) / ".lock", shared=True):  # someone else is at work
            source = got()
    assert len(kept(source)) == 4
    got()
    assert len(kept(source)) == 2


def test_the_two_newest_stay(hub: Hub) -> None:
    sources = [got()]
    for number in range(3):
        hub.publish(MODEL, {"llm.pt": f"{number}".encode()})
        sources.append(got())
    assert kept(sources[-1]) == {source.directory.name for source in sources[-2:]}
    assert [source.file("llm.pt").exists() for source in sources] == [False, False, True, True]
    assert shown(sources[-1]) == {"cosyvoice.yaml": CONFIG, "flow.pt": FLOW, "llm.pt": b"2"}
    assert shown(sources[-2]) == {"cosyvoice.yaml": CONFIG, "flow.pt": FLOW, "llm.pt": b"1"}


def test_what_another_home_has_stays(hub: Hub) -> None:
    hub.tag(MODEL, "v1.0", got().directory.name)
    tagged = got(f"{MODEL}@v1.0")
    for number in range(3):
        hub.publish(MODEL, {"llm.pt": f"{number}".encode()})
        got()
    assert shown(tagged)["llm.pt"] == LLM


def test_a_branch_that_goes_back_is_what_it_was(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    first = got()
    second = hub.publish(MODEL, {"llm.pt": b"new"})
    got()
    hub.tag(MODEL, "master", first.directory.name)
    hub.requests.clear()
    assert got() == first
    assert hub.downloads == []
    hub.down()
    caplog.clear()
    assert got() == first
    assert second not in caplog.text


def test_old_leavings_are_cleared_away(hub: Hub) -> None:
    source = got()
    left = [
        root(source) / ".incoming" / "x" / "y",
        root(source) / ".files" / "x" / "y",
        source.home / "snapshots" / "x",
    ]
    young = [path.with_name("young") for path in left]
    for path in (*left, *young):
        path.mkdir(parents=True)
    for path in left:
        for each in (path, path.parent):
            os.utime(each, (0, 0))
    os.utime(source.home / "snapshots")
    hub.publish(MODEL, {"llm.pt": b"new"})
    got()
    assert [path.exists() for path in (*left, *young)] == [False] * 3 + [False, False, True]
    assert shown(source)["llm.pt"] == LLM


# What someone has changed.


@pytest.mark.parametrize("name", ["llm.pt", "cosyvoice.yaml"])
@pytest.mark.parametrize(
    "content", [b"", LLM[:-1] + b"x", CONFIG[:-1] + b"x", None], ids=["cut", "llm", "yaml", "gone"]
)
def test_a_file_that_someone_changed_is_fetched_again(name: str, content: bytes | None, hub: Hub) -> None:
    path = got().directory / name
    if content is None:
        path.resolve().unlink()
    else:
        path.write_bytes(content)
    hub.requests.clear()
    assert shown(got()) == {"cosyvoice.yaml": CONFIG, "flow.pt": FLOW, "llm.pt": LLM}
    assert hub.downloads == [name]


@pytest.mark.parametrize("there", ["file", "link", "nothing"])
def test_a_name_that_someone_changed_is_put_right(there: str, hub: Hub, tmp_path: Path) -> None:
    path = got().directory / "llm.pt"
    path.unlink()
    if there == "file":
        path.write_bytes(b"other")
    elif there == "link":
        path.symlink_to(tmp_path)
    hub.requests.clear()
    assert shown(got())["llm.pt"] == LLM
    assert hub.downloads == []


def test_a_removed_snapshot_is_made_again(hub: Hub) -> None:
    source = got()
    for path in source.directory.iterdir():
        path.unlink()
    source.directory.rmdir()
    hub.requests.clear()
    source.obtain(["llm.pt"])
    assert shown(source) == {"cosyvoice.yaml": CONFIG, "llm.pt": LLM}
    assert hub.requests == []


def change(source: Source, **values: Any) -> None:
    """Change the description of a snapshot."""
    path = source.directory / "snapshot.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"schema": 99},
        {"schema": None},
        {"number": "x"},
        {"model": "other/model"},
        {"revision": "../x"},
        {"files": 7},
        {"files": [{"name": "../llm.pt", "size": 1, "sha256": "0" * 64, "revision": "a"}]},
        {"files": [{"name": "llm.pt", "size": 1, "sha256": "../x", "revision": "a"}]},
    ],
    ids=str,
)
def test_a_damaged_description_is_not_believed_and_written_anew(values: dict[str, Any], hub: Hub) -> None:
    source = got()
    described = (source.directory / "snapshot.json").read_text()
    change(source, **values)
    hub.down()
    with pytest.raises(SourceUnavailableError):
        open_source(MODEL)
    hub.mend()
    assert got() == source
    again = json.loads((source.directory / "snapshot.json").read_text())
    assert {**again, "resolved": ""} == {**json.loads(described), "resolved": ""}


# While the hub is down.


@pytest.mark.parametrize("status", [0, 429, 500])
def test_the_last_copy_is_used_with_a_warning(status: int, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    before = got()
    if status:
        hub.fail("listing", status=status, times=None, headers={"Retry-After": "0"})
    else:
        hub.stop()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "cosyjit"):
        assert got() == before
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "cosyjit"]
    reason = f"HTTP {status}" if status else "Connection refused"
    assert warning.startswith(
        f"{MODEL}: {hub.endpoint.removeprefix('http://')} cannot be reached, or is busy ({reason})"
    )
    assert f"; commit {before.directory.name} is used, which was current at 20" in warning
    assert "\n" not in warning


@pytest.mark.parametrize("source", [MODEL, f"{MODEL}@v1.0", "iic/other"])
def test_without_a_copy_of_what_is_asked_for_there_is_nothing(source: str, hub: Hub) -> None:
    open_source(MODEL)  # its weights were not asked for
    hub.down()
    with pytest.raises(SourceUnavailableError, match=r"HTTP 503.*, or give a model directory that is there$") as error:
        open_source(source)
    assert str(error.value).startswith(f"{source}: ")


def test_a_copy_that_lacks_what_is_needed_is_none(hub: Hub) -> None:
    got(MODEL, "flow.pt")
    hub.down()
    assert got(MODEL, "flow.pt")
    with pytest.raises(SourceUnavailableError, match="HTTP 503"):
        got(MODEL, "llm.pt")


def test_a_copy_that_someone_changed_is_none(hub: Hub) -> None:
    got().file("llm.pt").write_bytes(b"other")
    hub.down()
    with pytest.raises(SourceUnavailableError, match="HTTP 503"):
        got()


@pytest.mark.parametrize("status", [401, 404])
def test_a_hub_that_refuses_is_believed(status: int, hub: Hub) -> None:
    got()
    hub.fail("listing", status=status, times=None)
    with pytest.raises(SourceError) as error:
        open_source(MODEL)
    assert type(error.value) is SourceError


def test_a_revision_that_never_came_whole_is_not_the_last(hub: Hub) -> None:
    before = got()
    hub.publish(MODEL, {"llm.pt": b"new"})
    open_source(MODEL)
    hub.down()
    assert got() == before


# Where nothing may be downloaded.


def test_a_look_downloads_nothing_and_says_what_is_new(hub: Hub) -> None:
    got()
    hub.publish(MODEL, {"llm.pt": b"new"})
    hub.requests.clear()
    source = reopen(MODEL, ask=True)
    source.obtain(["flow.pt"])
    with pytest.raises(SourceError) as error:
        source.obtain(["llm.pt", "flow.pt"])
    assert str(error.value) == (
        f"{source.pinned}: llm.pt of this revision is not on this machine yet; export {MODEL} to fetch and compare it"
    )
    assert [each.kind for each in hub.requests] == ["listing"]


def test_a_look_at_another_configuration_says_so(hub: Hub) -> None:
    got()
    commit = hub.publish(MODEL, {"cosyvoice.yaml": b"new"})
    with pytest.raises(SourceError, match=f"{commit}: cosyvoice.yaml of this revision is not on this machine"):
        reopen(MODEL, ask=True)


def test_a_look_is_not_what_is_used_while_the_hub_is_down(hub: Hub) -> None:
    before = got()
    hub.publish(MODEL, {"README.md": b"read me again"})
    looked = reopen(MODEL, ask=True)
    looked.obtain(["llm.pt"])
    assert looked.pinned != before.pinned
    hub.down()
    assert open_source(MODEL).pinned == before.pinned
    assert reopen(MODEL, ask=True).pinned == before.pinned


# What goes wrong.


@pytest.mark.slow
def test_other_bytes_never_stand_in_a_snapshot(hub: Hub) -> None:
    hub.fail("download", name="flow.pt", content=b"x" * len(FLOW), times=None)
    source = open_source(MODEL)
    with pytest.raises(SourceError, match=r"flow.pt of commit .* does not arrive as"):
        source.obtain(["flow.pt"])
    assert shown(source) == {"cosyvoice.yaml": CONFIG}
    hub.mend()
    source.obtain(["flow.pt"])
    assert shown(source)["flow.pt"] == FLOW


def test_a_file_that_the_model_has_not_is_said(hub: Hub) -> None:
    hub.publish(MODEL, {"llm.pt": None})
    with pytest.raises(SourceError, match=r"^iic/CosyVoice-300M@[0-9a-f]{40}: has no llm.pt; "):
        got()


def test_what_there_is_no_room_for_is_not_begun(hub: Hub) -> None:
    hub.altered = lambda entry: entry.update(Size=10**16) if entry["Name"] == "llm.pt" else None
    source = open_source(MODEL)
    with pytest.raises(OutputError) as error:
        source.obtain(["llm.pt"])
    assert str(error.value).startswith(f"{source.pinned}: 10,000,000,000 MB are to be written and ")
    assert "llm.pt" not in hub.downloads


def test_a_cache_that_cannot_be_written_is_one_line(hub: Hub, home: Path) -> None:
    home.mkdir()
    (home / ".cache").touch()
    with pytest.raises(OutputError, match=r"/.cache/cosyjit/modelscope: cannot be written to \(File exists\)"):
        open_source(MODEL)
    assert hub.downloads == []


def incomplete(home: Path) -> int:
    """How much has come of llm.pt."""
    return sum(path.stat().st_size for path in home.rglob("llm.pt.incomplete"))


def test_a_process_that_is_killed_amid_a_download_leaves_it_to_the_next(hub: Hub, home: Path) -> None:
    over = threading.Event()
    hub.fail("download", name="llm.pt", cut=400_000, until=over)
    with start(FETCH, MODEL) as process:
        wait_for(lambda: incomplete(home) > 200_000)
        process.send_signal(signal.SIGKILL)
    over.set()
    assert list(home.rglob("snapshots/*/llm.pt")) == []
    source = got()
    assert shown(source)["llm.pt"] == LLM
    assert hub.downloads == ["cosyvoice.yaml", "llm.pt", "llm.pt", "flow.pt"]
    begun = int(hub.ranges[2].removeprefix("bytes=").removesuffix("-"))
    assert 200_000 < begun <= 400_000
    assert list((root(source) / ".incoming").iterdir()) == []


def test_of_two_processes_one_downloads(hub: Hub, home: Path) -> None:
    both = threading.Event()
    hub.fail("download", name="llm.pt", cut=400_000, until=both)
    with start(FETCH, MODEL) as first, start(FETCH, MODEL) as second:
        wait_for(lambda: hub.count("listing") == 2 and incomplete(home))
        both.set()
        answers = [process.communicate(timeout=600) for process in (first, second)]
    assert answers == [(f"{open_source(MODEL).pinned}\n", "")] * 2
    assert sorted(hub.downloads) == ["cosyvoice.yaml", "llm.pt"]


def test_of_many_threads_one_downloads(hub: Hub) -> None:
    found: list[Source] = []
    threads = [threading.Thread(target=lambda: found.append(got())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(map(str, found)) == {str(got())}
    assert sorted(hub.downloads) == ["cosyvoice.yaml", "flow.pt", "llm.pt"]


# On another machine.


def test_it_is_the_same_commit_there_in_a_place_of_its_own(
    hub: Hub, homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = got()
    sent = pickle.dumps(here)
    assert pickle.loads(sent) == here
    hub.publish(MODEL, {"llm.pt": b"new"})
    hub.requests.clear()
    monkeypatch.setenv("HOME", str(homes / "elsewhere"))
    there = pickle.loads(sent)
    assert (there.name, there.pinned, there.uri("llm.pt")) == (here.name, here.pinned, here.uri("llm.pt"))
    assert (homes / "elsewhere") in there.directory.parents
    assert there.config == there.directory / "cosyvoice.yaml"
    assert hub.requests == []
    there.obtain(["llm.pt"])
    assert hub.downloads == ["cosyvoice.yaml", "llm.pt"]
    assert shown(there) == {"cosyvoice.yaml": CONFIG, "llm.pt": LLM}


def test_no_token_and_no_path_stands_in_what_is_kept_sent_or_said(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    with caplog.at_level(logging.DEBUG):
        source = got()
        hub.fail("download", times=None, status=403)
        source.file("flow.pt").unlink()
        with pytest.raises(SourceError) as error:
            source.obtain(["flow.pt"])
        hub.stop()
        with pytest.raises(SourceUnavailableError) as unavailable:
            got()
    sent = pickle.dumps((source, error.value, unavailable.value))
    assert os.fsencode(home) not in pickle.dumps(source)
    assert TOKEN.encode() not in sent
    for text in (caplog.text, repr(source), source.uri("llm.pt"), repr(error.value), repr(unavailable.value)):
        assert TOKEN not in text
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_bytes_stand_under_their_digest(hub: Hub) -> None:
    source = got()
    assert source.file("llm.pt") == root(source) / ".files" / sha256(LLM) / "llm.pt"
    assert (source.directory / "llm.pt").resolve() == source.file("llm.pt").resolve()
    assert not (source.directory / "llm.pt").readlink().is_absolute()  # another machine may have it mounted elsewhere
    assert source.snapshot is not None
    assert source.snapshot.model == Model(MODEL)
    assert hub.downloads == ["cosyvoice.yaml", "llm.pt", "flow.pt"]
