"""What a push does to a repository of a hub, through the hub's real client, and what it refuses."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import pytest

from cosyjit import Fault, documents, lineage, push, verify_directory
from cosyjit.errors import (
    FileChangedError,
    LaterSchemaError,
    PublicationError,
    RepositoryChangedError,
    SelectionError,
    SignatureError,
    SourceError,
    SourceUnavailableError,
)
from cosyjit.provenance import record
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.publication import Publication
from cosyjit.store.store import Store
from tests.support import hugging_face, modelscope
from tests.support.files import sha256
from tests.support.keys import pair
from tests.support.processes import CONSOLE_SCRIPT, Run, finished, spawn, wait_for
from tests.support.stores import put, record_path

LARGE: Final = bytes(range(256)) * 1000
ZIP: Final = "llm.llm.fp32.zip"
FOLDER: Final = {"config.json": b"{}", "model.safetensors": LARGE[::-1]}
SOURCE: Final = "iic/CosyVoice-300M@0123abc"
TOKEN: Final = "ms-0123456789"  # noqa: S105  (nobody's)
OWN: Final = "someone/CosyVoice-TorchScript"
OTHERS: Final = {"README.md": b"of others", "cosyjit-records.txt": b"theirs", "notes/a.txt": b"as well"}


def slow(*values: Any) -> Any:
    """A case that proves again what another one of its test proves."""
    return pytest.param(*values, marks=pytest.mark.slow)


class Side(NamedTuple):
    """A hub, how users name a repository there, and what differs from hub to hub.

    Attributes:
        listing: the kind of request that lists what there is.
        variable: the environment variable of a token.
        login: what logs in.
        moved: the status of an answer to a commit whose branch has moved.
    """

    hub: modelscope.Hub | hugging_face.Hub
    model: str
    to: str
    listing: Any
    variable: str
    login: str
    moved: int

    @property
    def files(self) -> dict[str, bytes]:
        """What the branch has."""
        return self.hub.files(self.model)

    @property
    def kinds(self) -> list[str]:
        """The kinds of requests since the last call."""
        kinds = [str(each.kind) for each in self.hub.requests]
        self.hub.requests.clear()
        return kinds

    def commit(self, **files: bytes | None) -> str:
        """Let others commit files."""
        return self.hub.publish(self.model, {name.replace("__", "/"): each for name, each in files.items()})


@pytest.fixture(params=["modelscope", "hugging_face"])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    """A hub with a repository; nobody waits between two attempts."""
    yield from entered(of_modelscope if request.param == "modelscope" else of_hugging_face, monkeypatch)


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    """One such hub, for what does not differ from hub to hub."""
    yield from entered(of_modelscope, monkeypatch)


def of_modelscope(monkeypatch: pytest.MonkeyPatch) -> Side:
    from modelscope_hub import constants  # noqa: PLC0415  (see tests.support.modelscope)

    monkeypatch.setattr(constants, "UPLOAD_BLOB_RETRY_MAX_DELAY_SECONDS", 0)
    login = "set MODELSCOPE_API_TOKEN, or use `modelscope login`"
    return Side(modelscope.Hub(), OWN, OWN, "listing", "MODELSCOPE_API_TOKEN", login, 409)


def of_hugging_face(monkeypatch: pytest.MonkeyPatch) -> Side:
    from huggingface_hub.utils import _http  # noqa: PLC0415  (an extra)

    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))
    return Side(hugging_face.Hub(), OWN, f"hf:{OWN}", "info", "HF_TOKEN", "set HF_TOKEN, or use `hf auth login`", 412)


def entered(made_of: Callable[[pytest.MonkeyPatch], Side], monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    made = made_of(monkeypatch)
    with made.hub as hub:
        hub.use(monkeypatch)
        hub.publish(OWN, OTHERS)
        yield made


def publish(store: Store, directory: Path, zipped: bytes = LARGE, *, folder: bool = True) -> Publication:
    """Publish a zip, and with it a folder."""
    with store.in_use():
        artifacts = {ZIP: put(store, zipped, name=ZIP, source=SOURCE)}
        if folder:
            artifacts["vllm"] = put(store, FOLDER)
        return PublishedDirectory(directory, store).publish(artifacts, SOURCE)


def expected(store: Store, live: Publication, zipped: bytes = LARGE) -> dict[str, bytes]:
    """The files of a push."""
    records = {f"cosyjit-records/{each.fingerprint}.json" for each in live.artifacts.values()}
    kept = {name: store.read(name.replace("cosyjit-records", "records")) or b"" for name in records}
    folder = {f"vllm/{name}": content for name, content in FOLDER.items()} if "vllm" in live.artifacts else {}
    return {ZIP: zipped, **folder, **kept, "cosyjit.json": live.content}


def pull(side: Side, directory: Path) -> Path:
    """Write what the branch has as a download does: plain files."""
    for name, content in side.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def test_the_set_its_manifest_and_its_records_become_visible_by_one_commit(
    side: Side, store: Store, directory: Path, run: Run
) -> None:
    live = publish(store, directory)
    ran = run("push", directory, "--to", side.to, "--json")
    wanted = expected(store, live)
    found = json.loads(ran.out)
    assert ran.status == 0
    assert side.files == {**OTHERS, **wanted}
    assert side.kinds.count("commit") == 1
    assert found["uploaded"] == [{"name": name, "bytes": len(wanted[name])} for name in pushed_order(found, wanted)]
    assert (found["present"], found["removed"]) == ([], [])
    assert found["publication"]["identity"] == live.identity
    assert found["repository"].removeprefix(side.to).startswith("@")
    assert found["endpoint"] == side.hub.endpoint
    assert len(found["commit"]) == 40
    told = [line.rpartition(": uploading ")[2] for line in ran.err.splitlines()]
    assert told == [f"{ZIP} (0.3 MB)", "vllm/model.safetensors (0.3 MB)"]

    again = run("push", directory, "--to", side.to)
    assert side.kinds == [side.listing]
    assert again.err == ""
    assert again.out.endswith(
        f": commit {found['commit']} has publication 1; 0 files uploaded, 0 bytes; 6 were there already\n"
    )


def pushed_order(found: dict[str, Any], wanted: dict[str, bytes]) -> list[str]:
    names = [each["name"] for each in found["uploaded"]]
    assert sorted(names) == sorted(wanted)
    return names


def test_another_set_brings_what_is_new_and_takes_away_what_is_shown_no_more(
    side: Side, store: Store, directory: Path
) -> None:
    first = publish(store, directory)
    push(directory, side.to, store=store)
    before = side.files
    second = publish(store, directory, b"changed" + LARGE)
    side.kinds.clear()
    done = push(directory, side.to, store=store)
    old, new = (f"cosyjit-records/{each.artifacts[ZIP].fingerprint}.json" for each in (first, second))
    assert set(done.uploaded) == {ZIP, new, "cosyjit.json"}
    assert done.removed == (old,)
    assert side.files == {**OTHERS, **expected(store, second, b"changed" + LARGE)}
    assert side.kinds.count("upload") == 1
    PublishedDirectory(directory, store).rollback()
    assert push(directory, side.to, store=store).removed == (new,)
    assert {**side.files, "cosyjit.json": b""} == {**before, "cosyjit.json": b""}
    (directory / "vllm").unlink()
    assert push_of_one(store, directory, side) == {"vllm/config.json", "vllm/model.safetensors"}


def push_of_one(store: Store, directory: Path, side: Side) -> set[str]:
    """Publish the zip alone, where the folder was taken away; gives what a push removes, but for records."""
    publish(store, directory, folder=False)
    return {each for each in push(directory, side.to, store=store).removed if not each.startswith("cosyjit-records/")}


def test_a_push_that_is_cut_shows_nothing_and_goes_on(side: Side, store: Store, directory: Path) -> None:
    live = publish(store, directory)
    failure = side.hub.fail("upload", name=sha256(FOLDER["model.safetensors"]), times=None, cut=1000)
    with pytest.raises(SourceUnavailableError) as error:
        push(directory, side.to, store=store)
    assert str(error.value).startswith(f"{side.to}@")
    assert "cannot be reached, or is busy" in str(error.value)
    assert side.files == OTHERS
    assert side.kinds.count("commit") == 0
    failure.times = 0
    push(directory, side.to, store=store)
    assert side.kinds.count("upload") == 1
    assert side.files == {**OTHERS, **expected(store, live)}


@pytest.mark.slow
@pytest.mark.parametrize("what", [{"cut": 1000}, {"status": 503}])
def test_an_upload_is_tried_again(side: Side, store: Store, directory: Path, what: dict[str, int]) -> None:
    live = publish(store, directory, folder=False)
    side.hub.fail("upload", **what)
    push(directory, side.to, store=store)
    assert side.kinds.count("upload") == 2
    assert side.files == {**OTHERS, **expected(store, live)}


def test_a_push_sends_the_token_and_says_nothing_of_bars_whatever_the_client_is_told(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = publish(store, directory, folder=False)
    for side in entered(of_hugging_face, monkeypatch):
        side.hub.writer = TOKEN
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)  # of what only reads
        bars = import_module("huggingface_hub.utils.tqdm")
        monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", False)  # of which it warns
        push(directory, side.to, store=store)
        assert side.files == {**OTHERS, **expected(store, live)}
        assert [each.headers.get("authorization") for each in side.hub.requests if each.kind == "info"] == [None]


@pytest.mark.slow
def test_a_tag_is_not_pushed_to(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, directory, folder=False)
    for side in entered(of_hugging_face, monkeypatch):
        side.hub.tag(OWN, "v1", side.commit())
        with pytest.raises(
            SourceError, match=rf"^{side.to}@v1: v1 is not a branch on 127\.0\.0\.1:.*; push to a branch$"
        ):
            push(directory, f"{side.to}@v1", store=store)


@pytest.mark.slow
def test_an_upload_that_is_refused_shows_nothing(side: Side, store: Store, directory: Path) -> None:
    publish(store, directory, folder=False)
    side.hub.fail("upload", status=403)
    with pytest.raises(SourceError, match=rf"^{side.to}@.*: 127\.0\.0\.1:.* refuses access \(HTTP 403\); log in"):
        push(directory, side.to, store=store)
    assert side.files == OTHERS
    assert side.kinds.count("commit") == 0


@pytest.mark.slow
def test_a_push_that_is_killed_shows_nothing_and_goes_on(side: Side, store: Store, directory: Path) -> None:
    live = publish(store, directory)
    released = threading.Event()
    side.hub.fail("upload", name=sha256(FOLDER["model.safetensors"]), cut=1000, until=released)
    with spawn(CONSOLE_SCRIPT, "push", directory, "--to", side.to) as process:
        wait_for(lambda: sum(each.kind == "upload" for each in side.hub.requests) == 2)
        process.kill()
    released.set()
    assert side.files == OTHERS
    side.kinds.clear()
    ran = finished(spawn(CONSOLE_SCRIPT, "push", directory, "--to", side.to))
    assert ran.status == 0
    assert side.kinds.count("upload") == 1
    assert side.files == {**OTHERS, **expected(store, live)}


# Others push as well.


def test_what_others_push_meanwhile_stays(side: Side, store: Store, directory: Path) -> None:
    live = publish(store, directory)
    on(side, "upload", lambda: side.commit(new=b"theirs"))
    push(directory, side.to, store=store)
    assert side.kinds.count("upload") == 2
    assert side.files == {**OTHERS, "new": b"theirs", **expected(store, live)}


@pytest.mark.slow
def test_a_hub_whose_branch_moves_at_the_commit_is_asked_again(side: Side, store: Store, directory: Path) -> None:
    live = publish(store, directory)
    body = {"Code": 10030000001, "Message": "branch changed, please retry", "Success": False}
    status = 400 if isinstance(side.hub, modelscope.Hub) else side.moved
    side.hub.fail("commit", status=status, content=json.dumps(body).encode())
    push(directory, side.to, store=store)
    assert side.kinds.count("commit") == 2
    assert side.files == {**OTHERS, **expected(store, live)}


@pytest.mark.slow
def test_one_who_pushes_all_the_time_is_named_in_a_line(side: Side, store: Store, directory: Path, run: Run) -> None:
    publish(store, directory, folder=False)
    side.hub.fail("commit", status=side.moved, content=b"{}", times=None)
    with pytest.raises(RepositoryChangedError):
        push(directory, side.to, store=store)
    ran = run("push", directory, "--to", side.to)
    assert ran.status == 2
    assert ran.err.splitlines()[-1].endswith(": others push to it at the same time; run again")
    assert side.files == OTHERS


def on(side: Side, kind: str, do: Callable[[], object]) -> None:
    """Do something once, before the first request of a kind is answered."""

    def meanwhile(request: Any) -> None:
        if request.kind == kind:
            side.hub.meanwhile = lambda _: None
            do()

    side.hub.meanwhile = meanwhile


# Files of others.


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({ZIP: b"of another exporter", "vllm__extra.bin": b"theirs"}, f"{ZIP}, vllm/extra.bin"),
        ({"cosyjit.json": b"{}\n"}, "cosyjit.json"),
        slow({"cosyjit.json": b" " * (1 << 21)}, "cosyjit.json"),
        slow({"vllm": b"a file"}, "vllm"),
        slow({f"{ZIP}__a": b"a folder"}, f"{ZIP}/a"),
        slow({"cosyjit-records": b"a file"}, "cosyjit-records"),
    ],
)
def test_what_is_not_of_a_push_is_replaced_only_if_that_is_asked_for(
    one: Side, store: Store, directory: Path, run: Run, files: dict[str, bytes], named: str
) -> None:
    live = publish(store, directory)
    one.commit(**files)
    before = one.files
    ran = run("push", directory, "--to", one.to)
    assert ran.status == 2
    assert f": {named} there is not" in ran.err
    assert ran.err.endswith("remove it, push to another branch, or give --replace\n")
    assert one.files == before
    assert "upload" not in one.kinds
    ran = run("push", directory, "--to", one.to, "--replace")
    assert ran.status == 0
    assert one.files == {**OTHERS, **expected(store, live)}


def test_what_others_changed_of_a_push_is_mended(one: Side, store: Store, directory: Path) -> None:
    live = publish(store, directory)
    push(directory, one.to, store=store)
    one.commit(**{ZIP: b"changed", "vllm__config.json": None})
    assert set(push(directory, one.to, store=store).uploaded) == {ZIP, "vllm/config.json"}
    assert one.files == {**OTHERS, **expected(store, live)}


def test_records_that_no_manifest_names_stay(one: Side, store: Store, directory: Path) -> None:
    publish(store, directory)
    one.commit(**{"cosyjit-records__notes.txt": b"theirs"})
    push(directory, one.to, store=store)
    assert one.files["cosyjit-records/notes.txt"] == b"theirs"


def test_a_manifest_of_a_later_version_is_left(one: Side, store: Store, directory: Path) -> None:
    publish(store, directory)
    one.commit(**{"cosyjit.json": documents.dump({"schema": 99})})
    with pytest.raises(LaterSchemaError, match="upgrade cosyjit"):
        push(directory, one.to, store=store, replace=True)


# What is published.


def test_nothing_damaged_is_pushed(one: Side, store: Store, directory: Path, run: Run) -> None:
    publish(store, directory)
    (directory / ZIP).resolve().write_bytes(b"changed")
    ran = run("push", directory, "--to", one.to)
    assert ran.status == 2
    assert ran.err == (
        f"cosyjit: {directory / ZIP}: is damaged, so nothing is pushed; export again to mend it, or go back to an "
        "earlier set with cosyjit rollback\n"
    )
    assert one.kinds == []


@pytest.mark.parametrize(
    "content", [LARGE[:-1] + b"?", slow(LARGE[:100]), slow(b"")], ids=["other", "shorter", "empty"]
)
def test_a_file_that_changes_during_a_push_is_not_committed(
    side: Side, store: Store, directory: Path, content: bytes
) -> None:
    publish(store, directory)
    path = (directory / ZIP).resolve()
    on(side, "batch", lambda: path.write_bytes(content))
    with pytest.raises(FileChangedError, match=rf"^{ZIP}: is not as it was published \(.*\); export again to mend it"):
        push(directory, side.to, store=store)
    assert side.files == OTHERS
    assert sha256(content) not in side.hub.uploads


def test_a_directory_without_a_publication_is_named(one: Side, store: Store, directory: Path) -> None:
    with pytest.raises(PublicationError, match="nothing is published here"):
        push(directory, one.to, store=store)
    assert one.kinds == []


def test_an_artifact_without_a_record_is_not_pushed(one: Side, store: Store, directory: Path, tmp_path: Path) -> None:
    publish(store, directory)
    with pytest.raises(PublicationError, match=f"{ZIP}: has no record in .*; name the store"):
        push(directory, one.to, store=Store(tmp_path / "another"))
    assert one.kinds == []


# Where to.


@pytest.mark.parametrize("to", ["", "name", "a/b/c", "/models/a", "../b", "a/b@", "a/b\n", "s3://bucket/a"])
def test_what_is_not_an_id_is_named(one: Side, store: Store, directory: Path, to: str) -> None:
    publish(store, directory)
    with pytest.raises(SelectionError, match=r"^--to .*: is not an id of a model; give one such as"):
        push(directory, to, store=store)
    assert one.kinds == []


def test_a_repository_and_a_branch_have_to_exist(side: Side, store: Store, directory: Path, run: Run) -> None:
    publish(store, directory)
    ran = run("push", directory, "--to", side.to.replace(OWN, "iic/other"))
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "no such model on 127.0.0.1:" in ran.err
    assert side.login in ran.err
    ran = run("push", directory, "--to", f"{side.to}@other")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert re.search("has no (branch|revision) other on 127.0.0.1:", ran.err)
    ran = run("push", directory, "--to", f"{side.to}@{'0' * 40}")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "names a commit; name a branch" in ran.err


@pytest.mark.slow
def test_another_branch_is_pushed_to(side: Side, store: Store, directory: Path) -> None:
    live = publish(store, directory)
    side.hub.publish(OWN, {"a": b"b"}, "tests/nightly")
    push(directory, f"{side.to}@tests/nightly", store=store)
    assert side.files == OTHERS
    assert side.hub.files(OWN, "tests/nightly") == {"a": b"b", **expected(store, live)}


@pytest.mark.parametrize("token", [slow(""), "another-token"])
def test_one_who_may_not_write_is_told_how_to_log_in_and_no_token_is_shown(
    side: Side, store: Store, directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    publish(store, directory)
    side.hub.writer = TOKEN
    monkeypatch.setenv(side.variable, token)
    ran = run("--verbose", "push", directory, "--to", side.to)
    assert ran.status == 2
    assert re.search(r"refuses access \(HTTP 40|no such model on", ran.err.splitlines()[-1])
    assert side.login in ran.err.splitlines()[-1]
    assert side.files == OTHERS
    monkeypatch.setenv(side.variable, TOKEN)
    side.hub.fail("upload", times=None, cut=10)
    failed = run("--verbose", "push", directory, "--to", side.to)
    side.hub.mend()
    done = run("--verbose", "push", directory, "--to", side.to, "--json")
    assert (failed.status, done.status) == (2, 0)
    shown = "".join([*ran[1:], *failed[1:], *done[1:]])
    assert [secret for secret in (TOKEN, "another-token", "s3cret") if secret in shown] == []
    assert [name for name, content in side.files.items() if TOKEN.encode() in content] == []


# Strange answers.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["listing", "batch", "commit", "download"])
@pytest.mark.parametrize(
    "content", [b"<html>", b"[]", b'{"Data": {"Files": [1], "objects": [1]}, "files": [1], "objects": [1]}', b"0"]
)
def test_a_strange_answer_is_one_line_and_changes_nothing(
    side: Side, store: Store, directory: Path, run: Run, kind: Any, content: bytes
) -> None:
    publish(store, directory)
    if kind == "download":
        side.commit(**{"cosyjit.json": publish(store, directory.parent / "other", b"another").content})
    before = side.files
    others = {"listing": [side.listing], "batch": ["preupload", "batch"], "download": ["resolve"]}
    for each in others.get(kind, [kind]) if isinstance(side.hub, hugging_face.Hub) else [kind]:
        side.hub.fail(each, status=200, content=content, times=None)
        ran = run("push", directory, "--to", side.to)
        side.hub.mend()
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.splitlines()[-1].startswith("cosyjit: ")
        assert [line for line in ran.err.splitlines() if not re.search(": (up|down)loading ", line)][1:] == []
        assert side.files == before


def test_nothing_is_uploaded_over_a_connection_that_is_not_encrypted(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, directory)
    with modelscope.Hub() as hub:
        hub.use(monkeypatch)
        hub.publish(OWN, OTHERS)
        place = {"oid": sha256(LARGE), "actions": {"upload": {"href": "ftp://127.0.0.1/a"}}}
        hub.fail("batch", status=200, content=json.dumps({"Data": {"objects": [place]}}).encode())
        with pytest.raises(SourceError, match=f"wants {ZIP} over a connection that is not encrypted"):
            push(directory, OWN, store=store)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "problem"),
    [({"uploadMode": "regular"}, "wants .* in the commit itself"), ({"shouldIgnore": True}, f"ignores {ZIP}")],
)
def test_a_hub_that_wants_a_large_file_in_a_commit_or_ignores_it_gets_nothing(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], problem: str
) -> None:
    publish(store, directory, LARGE * 70, folder=False)

    def alter(found: dict[str, Any]) -> None:
        if found.get("path") == ZIP:
            found.update(answer)

    with hugging_face.Hub() as hub:
        hub.use(monkeypatch)
        hub.publish(OWN, OTHERS)
        hub.altered = alter
        with pytest.raises(SourceError, match=problem):
            push(directory, f"hf:{OWN}", store=store)
        assert hub.files(OWN) == OTHERS


# What is downloaded.


def test_a_directory_that_was_downloaded_is_verified_and_traced_and_pushed_without_a_store(
    one: Side, store: Store, directory: Path, tmp_path: Path
) -> None:
    publish(store, directory)
    push(directory, one.to, store=store)
    pulled, none = pull(one, tmp_path / "pulled"), Store(tmp_path / "none")
    assert verify_directory(pulled, store=none) == []
    made = lineage(pulled / "vllm", store=none).record
    assert made is not None
    assert (made.name, made.source) == ("vllm", "/models/a")
    one.kinds.clear()
    assert push(pulled, one.to, store=none).uploaded == {}
    assert one.kinds == [one.listing]
    key = PublishedDirectory(directory, store).require_live().artifacts[ZIP].fingerprint
    path = pulled / "cosyjit-records" / f"{key}.json"
    path.write_bytes(b"{}\n")
    (fault,) = verify_directory(pulled, store=none)
    assert fault.name == str(path)
    assert fault.problem.startswith("is damaged")
    path.unlink()
    assert verify_directory(pulled, store=none) == [Fault(str(path), "missing")]
    assert verify_directory(pulled, store=store) == []
    path.mkdir()
    unreadable = Fault(str(path), "is not a record that can be read; download it again")
    assert verify_directory(pulled, store=none) == [unreadable]
    (pulled / "cosyjit.json").write_bytes(b"{")
    with pytest.raises(
        PublicationError, match=r"pulled/cosyjit.json: is damaged, or not cosyjit's.*download it again$"
    ):
        verify_directory(pulled, store=none)


def test_signatures_travel_with_the_records(one: Side, store: Store, directory: Path, tmp_path: Path, run: Run) -> None:
    keys, others = pair(tmp_path), pair(tmp_path, "other")
    signing = Store(store.root, sign=keys.private)
    publish(signing, directory)
    push(directory, one.to, store=Store(store.root, require=keys.public))
    pulled = pull(one, tmp_path / "pulled")
    none = tmp_path / "none"
    assert run("verify", pulled, "--store", none, "--require-signature", keys.public).out == "Nothing is wrong\n"
    refused = run("verify", pulled, "--store", none, "--require-signature", others.public)
    assert refused.status == 1
    assert refused.out.count(" alone, and ") == 2
    # Another artifact, with a manifest and a record that fit it, is not the one that was signed.
    (pulled / ZIP).write_bytes(b"changed")
    assert run("verify", pulled, "--store", none, "--require-signature", keys.public).status == 1
    unsigned = Store(tmp_path / "unsigned")
    live = publish(unsigned, tmp_path / "hostile", b"changed")
    for name, content in expected(unsigned, live, b"changed").items():
        (pulled / name).write_bytes(content)
    assert run("verify", pulled, "--store", none).status == 0
    refused = run("verify", pulled, "--store", none, "--require-signature", keys.public)
    assert refused.status == 1
    assert "is not signed" in refused.out


def test_what_is_not_signed_is_not_pushed_where_a_signature_is_required(
    one: Side, store: Store, directory: Path, tmp_path: Path
) -> None:
    publish(store, directory)
    with pytest.raises(SignatureError, match="is not signed"):
        push(directory, one.to, store=Store(store.root, require=pair(tmp_path).public))
    assert one.kinds == []


def test_the_records_that_were_pushed_name_source_and_commit(one: Side, store: Store, directory: Path) -> None:
    live = publish(store, directory)
    push(directory, one.to, store=store)
    name = f"cosyjit-records/{live.artifacts[ZIP].fingerprint}.json"
    assert one.files[name] == record_path(store, live.artifacts[ZIP].fingerprint).read_bytes()
    made = record.parse(one.files[name], name)
    assert (made.source, made.sha256) == (SOURCE, sha256(LARGE))
