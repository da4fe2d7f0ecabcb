"""Hugging Face through its real client: what is listed, what comes, and what is said when it does not."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_hub_download, hf_hub_url

from cosyjit.errors import CosyjitError, OutputError, SourceError, SourceUnavailableError
from cosyjit.sources import hugging_face_client
from cosyjit.sources.hub import File, Listing, Model
from cosyjit.sources.hugging_face import download, listing, local_listing, url
from cosyjit.sources.ids import parse
from cosyjit.sources.source import Source, open_source, reopen
from tests.support.files import sha256
from tests.support.hugging_face import MODEL, Hub, git_sha1
from tests.support.processes import start

CONTENT: Final = bytes(range(256)) * 2000
CONFIG: Final = b"llm:\n"
NAMES: Final = ["cosyvoice.yaml", "llm.pt", "flow.pt"]
ASKED: Final = Model(MODEL, scheme="hf")
TOKEN: Final = "hf_0123456789"  # noqa: S105  (nobody's)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # The waits are for hubs that have something to recover from.
    monkeypatch.setattr(hugging_face_client, "_PAUSES", (0.0, 0.0))
    with Hub() as hub:
        hub.use(monkeypatch)
        hub.publish(MODEL, {"cosyvoice.yaml": CONFIG, "llm.pt": CONTENT, "README.md": b"read me"})
        yield hub


def refused(kind: type[CosyjitError] = SourceError, model: str = MODEL) -> str:
    """The message of the error that listing a model raises, one line."""
    with pytest.raises(kind) as error:
        listing(Model(model, scheme="hf"), NAMES)
    assert type(error.value) is kind
    return one_line(error.value)


def one_line(error: Exception) -> str:
    message = str(error)
    assert message.startswith(f"hf:{MODEL}")
    assert "\n" not in message
    return message


def file(name: str = "llm.pt") -> File:
    """A file as the hub lists it."""
    return next(each for each in listing(ASKED, NAMES).files if each.name == name)


# What is listed.


@pytest.mark.parametrize("text", [f"hf:{MODEL}", "hf:a/b@v1.0", "hf:a/b@refs/pr/1", f"hf:a/b@{'0' * 40}"])
def test_an_id_of_hugging_face_has_its_scheme(text: str) -> None:
    model = parse(text)
    assert model is not None
    assert (model.scheme, str(model)) == ("hf", text)
    assert parse(text.removeprefix("hf:")) == Model(model.id, model.revision)


@pytest.mark.parametrize(
    "text", ["hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/b@..", "hf://a/b", "HF:a/b", "xx:a/b", "hf:hf:a/b"]
)
def test_what_is_no_id_is_none(text: str) -> None:
    assert parse(text) is None


def test_each_file_has_its_size_and_digest_and_the_commit(hub: Hub) -> None:
    commit = hub.publish(MODEL, {"llm.pt": b"more"})
    files = (
        File("cosyvoice.yaml", len(CONFIG), "", commit, git_sha1(CONFIG)),
        File("llm.pt", 4, sha256(b"more"), commit),
    )
    assert listing(ASKED, NAMES) == Listing(commit, hub.endpoint, files)
    assert [each.kind for each in hub.requests] == ["info"]
    assert hub.requests[0].headers["user-agent"] == "cosyjit"


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub) -> None:
    first = listing(ASKED, NAMES)
    hub.tag(MODEL, "v1.0", first.revision)
    commit = hub.publish(MODEL, {"llm.pt": b"other"}, revision="feature/x")
    assert listing(Model(MODEL, "feature/x", "hf"), NAMES).revision == commit
    assert [listing(Model(MODEL, name, "hf"), NAMES) for name in ("v1.0", first.revision)] == [first, first]


def test_the_address_of_a_file_is_what_the_client_makes_of_it(hub: Hub) -> None:
    given = File("CosyVoice-BlankEN/a b.json", 1, "", "feature/x+y")
    assert url(hub.endpoint, ASKED, given) == hf_hub_url(MODEL, given.name, revision=given.revision)


@pytest.mark.parametrize(
    "change",
    [{"size": None}, {"size": -1}, {"size": "4"}, {"lfs": {}}, {"lfs": {"sha256": "../x", "size": 4}}, {"lfs": None}],
    ids=str,
)
def test_a_file_that_cannot_be_checked_is_refused(change: dict[str, Any], hub: Hub) -> None:
    def alter(info: dict[str, Any]) -> None:
        for each in info["siblings"]:
            if each["rfilename"] == "llm.pt":
                each |= {"blobId": "", **change}
                each["lfs"] = each["lfs"] and {**each["lfs"], **({"size": change["size"]} if "size" in change else {})}

    hub.altered = alter
    assert "llm.pt without its size and digest" in refused()


@pytest.mark.parametrize(
    "answer",
    [b"[]", b"{}", b'{"sha": "../x", "siblings": []}', b'{"sha": "a", "siblings": {}}', b'{"sha": 1, "siblings": []}'],
)
def test_an_answer_that_is_no_hubs_does_not_pass(answer: bytes, hub: Hub) -> None:
    hub.fail("info", content=answer)
    assert "does not answer as a hub does, or huggingface_hub " in refused()


def test_of_hostile_names_no_file_is_made(hub: Hub) -> None:
    names: list[Any] = ["../llm.pt", "/etc/passwd", "llm.pt\0", None, 7, ["llm.pt"]]
    hub.altered = lambda info: info.update(siblings=[{"rfilename": each} for each in names] + [None, []])
    assert listing(ASKED, NAMES).files == ()


# What is said when there is nothing.


def test_a_model_that_there_is_not_is_told_from_a_revision_that_there_is_not(hub: Hub) -> None:
    assert f"no such model on {hub.endpoint.removeprefix('http://')}, or a private one" in refused(
        SourceError, f"{MODEL}x"
    )
    hub.tag(MODEL, "v1.0", hub.publish(MODEL, {}))
    with pytest.raises(SourceError) as error:
        listing(Model(MODEL, "v2.0", "hf"), NAMES)
    assert one_line(error.value).endswith("it has main, v1.0")


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_gated_model_says_where_its_conditions_are_accepted(
    token: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.gated.add(MODEL)
    with pytest.raises(SourceError) as error:
        download(ASKED, file(), tmp_path)
    assert one_line(error.value) == (
        f"hf:{MODEL}: is gated; accept the conditions on {hub.endpoint}/{MODEL}, and log in as the user who did "
        "(set HF_TOKEN, or use `hf auth login`)"
    )
    if token:
        hub.accepted.add(token)
        assert download(ASKED, file(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "headers"),
    [(401, {"X-Error-Message": "Invalid credentials in Authorization header"}), (403, {"X-Error-Message": "disabled"})],
)
def test_who_has_no_access_is_told_to_log_in(status: int, headers: dict[str, str], hub: Hub) -> None:
    hub.fail("info", status=status, headers=headers)
    assert f"refuses access (HTTP {status}); log in as someone who has it (set HF_TOKEN" in refused()
    assert hub.count("info") == 1


@pytest.mark.parametrize("status", [400, 404, 418])
def test_what_the_hub_finds_wrong_is_no_reason_to_try_again(status: int, hub: Hub) -> None:
    hub.fail("info", status=status)
    assert f"(HTTP {status})" in refused()
    assert hub.count("info") == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_is_asked_again(status: int, hub: Hub) -> None:
    hub.fail("info", status=status, headers={"Retry-After": "0"})
    assert listing(ASKED, NAMES).files
    hub.fail("info", status=status, times=None)
    assert f"cannot be reached, or is busy (HTTP {status}); try again later" in refused(SourceUnavailableError)
    assert hub.count("info") == 2 + 3


@pytest.mark.parametrize(("asked", "waited"), [("30", 30.0), ("999999", 60.0), ("Wed, 21 Oct", 0.0), ("-1", 0.0)])
def test_a_hub_is_waited_for_as_long_as_it_asks_within_a_minute(asked: str, waited: float) -> None:
    assert hugging_face_client._pause(asked) == waited


def test_one_that_is_not_there_is_unavailable(hub: Hub) -> None:
    hub.stop()
    assert "(Connection refused); try again later" in refused(SourceUnavailableError)


def test_one_that_does_not_answer_is_unavailable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.fail("info", times=None, drip=3.0)
    assert "(no answer in time)" in refused(SourceUnavailableError)


def test_a_list_that_drips_is_unavailable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face_client, "_LONGEST_LIST", 0.05)
    hub.fail("info", times=None, drip=0.01)
    assert "(no answer in time)" in refused(SourceUnavailableError)


@pytest.mark.parametrize("endpoint", ["http://[", "http://127.0.0.1:port", "http://", "ftp://a", "a b"])
def test_an_address_that_is_none_is_one_line_too(endpoint: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert "correct HF_ENDPOINT" in refused()
    assert hub.requests == []


def test_a_page_in_place_of_an_answer_may_pass(hub: Hub) -> None:
    hub.fail("info", content=b"<html>back soon</html>")
    assert "does not answer as a hub does" in refused(SourceUnavailableError)


def test_a_list_without_an_end_is_refused(hub: Hub) -> None:
    hub.fail("info", endless=True)
    assert "answers with more than 4,194,304 bytes where a short list is expected; see whether HF_ENDP" in refused()


@pytest.mark.parametrize("status", [302, 404])
def test_of_an_error_or_a_redirection_nothing_is_read(status: int, hub: Hub) -> None:
    hub.fail("info", status=status, endless=True, unsized=True, headers={"Location": "/elsewhere"})
    assert "(HTTP 404)" in refused()


def test_redirections_come_to_an_end(hub: Hub) -> None:
    hub.fail("info", times=None, status=307, headers={"Location": f"/api/models/{MODEL}"})
    assert "refuses the request (HTTP 307)" in refused()
    assert hub.count("info") == 5


def test_a_model_that_was_renamed_is_found(hub: Hub) -> None:
    hub.fail("info", status=307, headers={"Location": f"/api/models/{MODEL}/revision/main?blobs=true"})
    assert listing(Model("FunAudioLLM/Older", None, "hf"), NAMES) == listing(ASKED, NAMES)


def test_an_encoding_that_nobody_asked_for_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.fail("info", content=b"0", headers={"Content-Encoding": "gzip"})
    assert "sends its answers in the encoding 'gzip', which was not requested; see" in refused()
    given = file()
    hub.fail("resolve", content=CONTENT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(SourceError, match="in the encoding"):
        download(ASKED, given, tmp_path)


# What comes.


@pytest.mark.parametrize("name", ["cosyvoice.yaml", "llm.pt"])
def test_a_file_comes_at_its_commit_though_the_branch_moves_on(name: str, hub: Hub, tmp_path: Path) -> None:
    given = file(name)
    hub.publish(MODEL, {"llm.pt": b"other", "cosyvoice.yaml": b"other"})
    expected = {"cosyvoice.yaml": CONFIG, "llm.pt": CONTENT}[name]
    assert download(ASKED, given, tmp_path / "in").read_bytes() == expected
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]


def test_a_commit_that_is_gone_is_said(hub: Hub, tmp_path: Path) -> None:
    given = file()
    hub.publish(MODEL, {"llm.pt": b"other"})
    hub.forget(MODEL, given.revision)
    with pytest.raises(SourceError) as error:
        download(ASKED, given, tmp_path)
    assert f"no longer has commit {given.revision}, which it listed; run again" in one_line(error.value)


def test_nothing_is_printed_or_logged_but_one_line(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    given = file()
    hub.fail("resolve", cut=1000)
    with caplog.at_level(logging.INFO, "cosyjit"):
        download(ASKED, given, tmp_path)
    assert capfd.readouterr() == ("", "")
    ours = [record.getMessage() for record in caplog.records if record.name == "cosyjit"]
    assert [line.partition(" of commit ")[0] for line in ours] == [f"hf:{MODEL}: downloading llm.pt"]


def test_a_download_that_breaks_off_goes_on_from_there_as_long_as_something_comes(hub: Hub, tmp_path: Path) -> None:
    given = file()
    hub.fail("resolve", cut=100_000, times=5)
    assert download(ASKED, given, tmp_path).read_bytes() == CONTENT
    assert hub.ranges == ["", *(f"bytes={number}00000-" for number in range(1, 6))]


def test_one_that_gets_no_further_is_given_up_and_goes_on_next_time(hub: Hub, tmp_path: Path) -> None:
    given = file()
    hub.fail("resolve", cut=300_000)
    hub.fail("resolve", cut=0, times=None)
    with pytest.raises(SourceUnavailableError) as error:
        download(ASKED, given, tmp_path)
    assert "cannot be reached, or is busy (the connection broke)" in one_line(error.value)
    hub.mend()
    assert download(ASKED, given, tmp_path).read_bytes() == CONTENT
    assert hub.ranges[-1] == "bytes=300000-"


def test_one_that_drips_is_given_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = file()
    monkeypatch.setattr(hugging_face_client, "_MINUTE", 0.02)
    monkeypatch.setattr(hugging_face_client, "_PAUSES", ())
    hub.fail("resolve", drip=0.01, content=CONTENT)
    with pytest.raises(SourceUnavailableError, match="hardly anything arrives"):
        download(ASKED, given, tmp_path)


@pytest.mark.parametrize("before", [b"x" * 300_000, b"x" * 600_000, b"x" * len(CONTENT)], ids=["short", "long", "same"])
def test_what_came_before_is_not_believed(before: bytes, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "llm.pt.incomplete").write_bytes(before)
    assert download(ASKED, file(), tmp_path).read_bytes() == CONTENT
    assert hub.ranges[-1] == ""


def test_a_server_without_ranges_begins_anew(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "llm.pt.incomplete").write_bytes(b"x" * 300_000)
    given = file()
    hub.fail("resolve", unsized=True, content=CONTENT)
    assert download(ASKED, given, tmp_path).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=300000-"]


@pytest.mark.parametrize(
    "what",
    [
        {"content": CONTENT[1:]},
        {"content": CONTENT + b"x"},
        {"content": CONTENT[:-1] + b"x"},
        {"endless": True},
        {"endless": True, "unsized": True},
        {"content": CONTENT, "headers": {"Content-Range": "bytes 7-9/10"}, "status": 206},
    ],
    ids=["short", "long", "other", "endless", "endless and unsized", "another range"],
)
def test_other_bytes_than_were_listed_are_refused(what: dict[str, Any], hub: Hub, tmp_path: Path) -> None:
    given = file()
    hub.fail("resolve", times=None, **what)
    with pytest.raises(SourceError) as error:
        download(ASKED, given, tmp_path)
    message = one_line(error.value)
    assert f"llm.pt of commit {given.revision} does not arrive as" in message
    assert f"lists it (512,000 bytes, SHA-256 {given.sha256})" in message
    assert list(tmp_path.iterdir()) == []


def test_a_small_file_of_other_bytes_is_refused_by_gits_id(hub: Hub, tmp_path: Path) -> None:
    given = file("cosyvoice.yaml")
    hub.fail("resolve", content=b"llm;\n")
    assert download(ASKED, given, tmp_path).read_bytes() == CONFIG  # what is right the second time
    hub.fail("resolve", content=b"llm;\n", times=None)
    with pytest.raises(SourceError, match=f"5 bytes, Git id {git_sha1(CONFIG)}"):
        download(ASKED, given, tmp_path)


def test_an_empty_file_comes(hub: Hub, tmp_path: Path) -> None:
    hub.publish(MODEL, {"cosyvoice.yaml": b""})
    assert download(ASKED, file("cosyvoice.yaml"), tmp_path).read_bytes() == b""
    assert hub.downloads == []


def test_a_full_disk_is_said_at_once(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "llm.pt.incomplete").symlink_to("/dev/full")
    with pytest.raises(OutputError) as error:
        download(ASKED, file(), tmp_path)
    assert "cannot be written (No space left on device); make room" in one_line(error.value)
    assert len(hub.downloads) == 1
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\)"):
        download(ASKED, file(), tmp_path / "file" / "in")


# Who asks.


def test_the_token_is_the_client_s_own_and_goes_to_the_hub_alone(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    assert "no such model on" in refused()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert download(ASKED, file(), tmp_path).read_bytes() == CONTENT
    *asked, elsewhere = hub.requests[1:]
    assert [each.kind for each in asked] == ["info", "resolve"]
    assert all(TOKEN in str(each.headers) for each in asked)
    assert elsewhere.kind == "bytes"
    assert TOKEN not in str(elsewhere.headers)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert "no such model on" in refused()


def test_a_login_is_enough_and_a_damaged_one_is_said(hub: Hub) -> None:
    hub.token = TOKEN
    path = Path(constants.HF_TOKEN_PATH)
    path.parent.mkdir(parents=True)
    path.write_text(f"{TOKEN}\n")
    assert listing(ASKED, NAMES).files
    path.write_bytes(b"\xff")
    assert "cannot be used (UnicodeDecodeError); correct" in refused()


def test_a_token_that_can_be_none_is_not_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\u20ac")
    message = refused()
    assert "correct HF_ENDPOINT and HF_TOKEN" in message
    assert TOKEN not in message
    assert hub.requests == []


def test_credentials_in_the_endpoint_go_no_further(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint.replace("//", "//user:secret@"))
    assert listing(ASKED, NAMES).endpoint == hub.endpoint
    assert "secret" not in refused(SourceError, f"{MODEL}x")
    hub.stop()
    assert "secret" not in refused(SourceUnavailableError)


def test_without_the_extra_it_is_said_how_to_install_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused() == f"hf:{MODEL}: needs a package that is missing; pip install 'cosyjit[hub]'"
    assert local_listing(ASKED, NAMES) is None
    assert hub.requests == []


def test_a_variable_that_the_client_cannot_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "huggingface_hub.constants")  # it reads them when it is imported
    monkeypatch.delattr(huggingface_hub, "constants")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "soon")
    with pytest.raises(SourceError, match=r"^huggingface_hub cannot read a variable .*'soon'\); correct .* with HF_$"):
        listing(ASKED, NAMES)


def test_a_client_that_is_told_to_be_offline_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so 127.0.0.1:" in refused(SourceUnavailableError)
    assert hub.requests == []


def test_the_settings_of_a_process_are_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code = "import sys; from cosyjit.sources.source import open_source; print(open_source(sys.argv[1]).name)"
    with start(code, f"hf:{MODEL}") as process:
        assert process.communicate(timeout=600) == (f"hf:{MODEL}\n", "")
    assert [each.kind for each in hub.requests] == ["info", "resolve"]


# What is kept on this machine.


def got(*names: str) -> Source:
    """The model with some of its files."""
    found = open_source(f"hf:{MODEL}")
    found.obtain(names or ["llm.pt"])
    return found


def shown(source: Source) -> dict[str, bytes]:
    """What stands in a snapshot, its description apart."""
    return {path.name: path.read_bytes() for path in source.directory.iterdir() if path.name != "snapshot.json"}


def test_a_model_is_kept_beside_those_of_the_other_hub(hub: Hub, home: Path) -> None:
    source = got()
    commit = source.directory.name
    assert source.name == f"hf:{MODEL}"
    assert source.pinned == f"hf:{MODEL}@{commit}"
    assert source.home == home / ".cache" / "cosyjit" / "huggingface" / MODEL
    assert source.uri("llm.pt") == f"{hub.endpoint}/{MODEL}/resolve/{commit}/llm.pt"
    assert source.file("cosyvoice.yaml").parent.name == git_sha1(CONFIG)
    assert shown(source) == {"cosyvoice.yaml": CONFIG, "llm.pt": CONTENT}
    assert hub.downloads == ["cosyvoice.yaml", "llm.pt"]
    hub.requests.clear()
    assert got() == source
    assert [each.kind for each in hub.requests] == ["info"]


def test_of_a_new_commit_what_has_changed_is_downloaded(hub: Hub) -> None:
    before = got()
    hub.requests.clear()
    hub.publish(MODEL, {"cosyvoice.yaml": b"flow:\n"})
    after = got()
    assert hub.downloads == ["cosyvoice.yaml"]
    assert after.file("llm.pt") == before.file("llm.pt")
    assert (shown(before)["cosyvoice.yaml"], shown(after)["cosyvoice.yaml"]) == (CONFIG, b"flow:\n")


@pytest.mark.parametrize("name", ["cosyvoice.yaml", "llm.pt"])
def test_a_file_that_someone_changed_is_fetched_again(name: str, hub: Hub) -> None:
    path = got().file(name)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    hub.requests.clear()
    assert shown(got()) == {"cosyvoice.yaml": CONFIG, "llm.pt": CONTENT}
    assert hub.downloads == [name]


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_the_last_copy_is_used(
    offline: bool, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = got()
    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.down()
    caplog.clear()
    assert got() == before
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "cosyjit"]
    assert f"; commit {before.directory.name} is used, which was current at 20" in warning
    with pytest.raises(SourceUnavailableError, match=r"or give a model directory that is there$"):
        open_source("hf:a/b")


def test_what_the_client_has_in_its_cache_is_used_there_and_outlasts_it(hub: Hub) -> None:
    theirs = Path(os.path.realpath(hf_hub_download(MODEL, "llm.pt")))
    hub.requests.clear()
    source = got()
    assert hub.downloads == ["cosyvoice.yaml"]
    assert source.file("llm.pt").samefile(theirs)
    hub.requests.clear()
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert shown(got())["llm.pt"] == CONTENT
    assert hub.downloads == []


def test_on_another_disk_it_is_linked_to_and_downloaded_once_it_is_gone(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    hf_hub_download(MODEL, "llm.pt")
    monkeypatch.setattr(Path, "hardlink_to", refuse)  # tests have one disk
    hub.requests.clear()
    assert got().file("llm.pt").is_symlink()
    assert hub.downloads == ["cosyvoice.yaml"]
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert shown(got())["llm.pt"] == CONTENT
    assert hub.downloads == ["cosyvoice.yaml", "llm.pt"]


def test_a_damaged_file_in_its_cache_is_not_used_and_left_as_it_is(hub: Hub) -> None:
    theirs = Path(os.path.realpath(hf_hub_download(MODEL, "llm.pt")))
    theirs.write_bytes(CONTENT[:-1] + b"x")
    hub.requests.clear()
    assert shown(got())["llm.pt"] == CONTENT
    assert hub.downloads == ["cosyvoice.yaml", "llm.pt"]
    assert theirs.read_bytes() == CONTENT[:-1] + b"x"


def test_offline_a_copy_in_its_cache_is_enough(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("llm.pt", "cosyvoice.yaml"):
        hf_hub_download(MODEL, name)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = got()
    assert shown(source) == {"cosyvoice.yaml": CONFIG, "llm.pt": CONTENT}
    assert f"; commit {source.directory.name} is used, which Hugging Face's client has" in caplog.text
    assert reopen(source.name, ask=False) == source
    assert reopen(source.pinned, ask=False).directory.name == source.directory.name
    with pytest.raises(SourceError, match=r"has no flow\.pt"):
        source.obtain(["flow.pt"])
    assert hub.requests == []


def test_a_description_says_which_digest_it_has(hub: Hub) -> None:
    source = got()
    described = json.loads((source.directory / "snapshot.json").read_text())
    commit = source.directory.name
    assert described["files"] == [
        {"name": "cosyvoice.yaml", "size": 5, "revision": commit, "git_sha1": git_sha1(CONFIG)},
        {"name": "llm.pt", "size": 512_000, "sha256": sha256(CONTENT), "revision": commit},
    ]
    hub.down()
    assert got() == source


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/b@../c", "hf://a/b"])
def test_what_is_meant_to_be_an_id_and_is_none_is_told_how_one_is_written(text: str, hub: Hub) -> None:
    with pytest.raises(SourceError) as error:
        open_source(text)
    assert str(error.value) == (
        f"{text}: is not a Hugging Face id; write one such as hf:FunAudioLLM/CosyVoice2-0.5B, or "
        "hf:FunAudioLLM/CosyVoice2-0.5B@main"
    )
    assert hub.requests == []
