"""The hub through its real client: what is listed, what comes, and what is said when it does not."""

import logging
import re
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cosyjit.errors import CosyjitError, OutputError, SourceError, SourceUnavailableError
from cosyjit.sources import snapshots
from cosyjit.sources.hub import File, Listing, Model
from cosyjit.sources.ids import parse
from cosyjit.sources.modelscope import download, listing, url
from cosyjit.text import without_password
from tests.support.files import sha256
from tests.support.modelscope import MODEL, Hub, Kind, download_url, log_in
from tests.support.processes import start

CONTENT = bytes(range(256)) * 2000
NAMES = ["cosyvoice.yaml", "llm.pt", "flow.pt"]
ASKED = Model(MODEL)
TOKEN = "ms-0123456789"  # noqa: S105  (nobody's)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.use(monkeypatch)
        hub.publish(MODEL, {"cosyvoice.yaml": b"llm:\n", "llm.pt": CONTENT, "README.md": b"read me"})
        yield hub


def refused(kind: type[CosyjitError], *model: str) -> str:
    """The message of the error that listing a model raises, one line."""
    with pytest.raises(kind) as error:
        listing(Model(*model or (MODEL,)), NAMES)
    assert type(error.value) is kind
    return one_line(error.value)


def one_line(error: Exception) -> str:
    message = str(error)
    assert message.startswith(MODEL)
    assert "\n" not in message
    return message


def file(name: str, found: Listing) -> File:
    return next(each for each in found.files if each.name == name)


# What names a model.


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("iic/CosyVoice-300M", Model("iic/CosyVoice-300M")),
        ("iic/CosyVoice2-0.5B@v1.0", Model("iic/CosyVoice2-0.5B", "v1.0")),
        ("a/b_c@feature/x-1", Model("a/b_c", "feature/x-1")),
        ("a/b@" + "0" * 40, Model("a/b", "0" * 40)),
    ],
)
def test_an_id_may_have_a_revision(text: str, model: Model) -> None:
    assert parse(text) == model
    assert str(model) == text


HOSTILE = [
    *(
        "",
        "a",
        "a/",
        "/a",
        "a/b/c",
        "a//b",
        "./a/b",
        "../a",
        "a/..",
        "../../etc",
        "/etc/passwd",
        "~/b",
        "~a/b",
        "a b/c",
    ),
    *(
        "a/b@",
        "a/b@..",
        "a/b@../c",
        "a/b@c/..",
        "a/b@/etc",
        "a/b@c/",
        "a/b@c//d",
        "a/b@.",
        "a/b@c/.d",
        "a/b@c@d",
        "@",
        "@a",
    ),
    *(
        "a/b\n",
        "a/b@c\n",
        "a\n/b",
        "a/b\0",
        "a/b@c\0",
        "a/b@%2e%2e",
        "a/b?c",
        "a/b#c",
        "a\\b",
        "http://a/b",
        "\uff41/b",
        "a/b@\uff43",
    ),
    *(f"{'a' * 97}/b", f"a/{'b' * 97}", f"a/b@{'c' * 97}", ".a/b", "a/.b", "-a/b"),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_id_is_none(text: str) -> None:
    assert parse(text) is None


PARTS = st.text("ab0.-_/@+%~\n\0 \\", max_size=12)


@given(st.builds("{}/{}@{}".format, PARTS, PARTS, PARTS) | st.builds("{}/{}".format, PARTS, PARTS) | st.text())
@example("a/b@c/d")
def test_whatever_names_a_model_names_a_directory_of_its_own(text: str) -> None:
    model = parse(text)
    if model is not None:
        assert str(model) == text
        home = snapshots.home(model)
        root = snapshots.home(Model("a/b")).parents[1]
        assert home.parents[1] == root
        assert home.resolve() == root.resolve() / home.parent.name / home.name
        assert all(len(part.encode()) <= 255 and part.isprintable() for part in home.parts)


@given(st.sets(st.from_regex(r"[a-c]/[a-c](@[a-c](/[a-c]|%2F[a-c])?)?", fullmatch=True)))
def test_no_two_ids_share_a_home(texts: set[str]) -> None:
    models = {model for model in map(parse, texts) if model is not None}
    assert len({snapshots.home(model) for model in models}) == len(models)


# What is listed.


def test_each_file_has_its_size_digest_and_commit(hub: Hub) -> None:
    first = listing(ASKED, NAMES)
    latest = hub.publish(MODEL, {"llm.pt": b"more"})
    found = listing(ASKED, NAMES)
    assert found == Listing(latest, hub.endpoint, found.files)
    assert [each.name for each in found.files] == ["cosyvoice.yaml", "llm.pt"]
    assert file("cosyvoice.yaml", found) == file("cosyvoice.yaml", first)
    assert file("llm.pt", found) == File("llm.pt", 4, sha256(b"more"), latest)
    assert [each.kind for each in hub.requests] == ["listing", "listing"]


def test_of_folders_those_are_listed_that_have_files_of_need(hub: Hub) -> None:
    names = ["llm.pt", "CosyVoice-BlankEN/config.json", "absent/vocab.json"]
    contents = {
        "llm.pt": CONTENT,
        "CosyVoice-BlankEN/config.json": b"{}",
        "CosyVoice-BlankEN/deep/x": b"",
        "asset/a": b"",
    }
    hub.publish(MODEL, {**contents, "llm": b"not a folder"})
    hub.requests.clear()
    found = listing(ASKED, names)
    assert [each.name for each in found.files] == names[:2]
    assert file("CosyVoice-BlankEN/config.json", found).sha256 == sha256(b"{}")
    assert [(each.kind, each.name, each.recursive) for each in hub.requests] == [
        ("listing", "", False),
        ("listing", "CosyVoice-BlankEN", False),
    ]


def test_the_commit_of_the_whole_is_that_of_the_newest_change_to_anything(hub: Hub) -> None:
    before = listing(ASKED, NAMES)
    after = hub.publish(MODEL, {"README.md": b"read me again"})
    assert listing(ASKED, NAMES) == before._replace(revision=after)


def test_of_changes_at_one_time_it_is_always_the_same(hub: Hub) -> None:
    hub.altered = lambda entry: entry.update(CommittedDate=1)
    latest = hub.publish(MODEL, {"llm.pt": b"more"})
    commits = {latest, file("cosyvoice.yaml", listing(ASKED, NAMES)).revision}
    assert listing(ASKED, NAMES).revision == max(commits)


@pytest.mark.parametrize("revision", [None, "", 7, "../../x", "a b", "x" * 97], ids=str)
def test_where_the_hub_names_no_commits_it_is_what_was_asked_for(revision: object, hub: Hub) -> None:
    hub.altered = lambda entry: entry.update(Revision=revision)
    found = listing(ASKED, NAMES)
    assert {found.revision, *(each.revision for each in found.files)} == {"master"}


def test_dates_are_not_needed(hub: Hub) -> None:
    hub.altered = lambda entry: entry.pop("CommittedDate")
    found = listing(ASKED, NAMES)
    assert found.revision == file("llm.pt", found).revision


def test_a_directory_of_a_name_is_no_file(hub: Hub) -> None:
    hub.altered = lambda entry: entry.update(Type="tree") if entry["Name"] == "llm.pt" else None
    assert [each.name for each in listing(ASKED, NAMES).files] == ["cosyvoice.yaml"]


@pytest.mark.parametrize(
    "change",
    [{"Sha256": ""}, {"Sha256": None}, {"Sha256": "abc"}, {"Size": None}, {"Size": -1}, {"Size": "4"}],
    ids=str,
)
def test_a_file_that_cannot_be_checked_is_refused(change: dict[str, Any], hub: Hub) -> None:
    hub.altered = lambda entry: entry.update(change) if entry["Name"] == "llm.pt" else None
    assert "llm.pt without its size and SHA-256" in refused(SourceError)


def test_digests_may_stand_in_capitals(hub: Hub) -> None:
    before = listing(ASKED, NAMES)
    hub.altered = lambda entry: entry.update(Sha256=entry["Sha256"].upper())
    assert listing(ASKED, NAMES) == before


def test_a_branch_may_have_a_slash_in_its_name(hub: Hub) -> None:
    commit = hub.publish(MODEL, {"llm.pt": b"other"}, revision="feature/x")
    assert listing(Model(MODEL, "feature/x"), NAMES).revision == commit
    assert hub.requests[-1].revision == "feature/x"


def test_the_address_of_a_file_is_what_the_client_makes_of_it(hub: Hub) -> None:
    found = listing(ASKED, NAMES)
    where = url(found.endpoint, ASKED, File("a b.pt", 1, "", "feature/x+y"))
    assert where == download_url(MODEL, "a b.pt", "feature/x+y")
    assert hub.requests[1:] == []


# What is said when there is nothing.


def test_a_model_that_there_is_not_is_told_from_a_revision_that_there_is_not(hub: Hub) -> None:
    message = refused(SourceError, f"{MODEL}x")
    assert f"no such model on {hub.endpoint.removeprefix('http://')}" in message
    assert "MODELSCOPE_API_TOKEN" in message
    hub.tag(MODEL, "v1.0", hub.publish(MODEL, {}))
    assert "has no revision v2.0" in refused(SourceError, MODEL, "v2.0")
    assert refused(SourceError, MODEL, "v2.0").endswith("it has master, v1.0")
    assert hub.count("revisions") == 3


def test_of_many_revisions_some_are_named(hub: Hub) -> None:
    commit = hub.publish(MODEL, {})
    for number in range(30):
        hub.tag(MODEL, f"v{number}", commit)
    assert refused(SourceError, MODEL, "v30").endswith("v7, v8 and 21 more")


@pytest.mark.parametrize("status", [401, 403])
def test_who_has_no_access_is_told_to_log_in(status: int, hub: Hub) -> None:
    hub.fail("listing", status=status)
    assert f"refuses access (HTTP {status}); log in as someone who has it (set MODELSCOPE_API_TOKEN" in refused(
        SourceError
    )


def test_what_the_hub_finds_wrong_is_no_reason_to_try_again(hub: Hub) -> None:
    hub.fail("listing", status=400)
    assert "refuses the request (HTTP 400)" in refused(SourceError)
    assert hub.count("listing") == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_is_asked_again(status: int, hub: Hub) -> None:
    hub.fail("listing", status=status, headers={"Retry-After": "0"})
    assert listing(ASKED, NAMES).files
    assert hub.count("listing") == 2


@pytest.mark.parametrize("status", [429, 502])
def test_one_that_stays_busy_is_unavailable(status: int, hub: Hub) -> None:
    hub.fail("listing", status=status, times=None, headers={"Retry-After": "0"})
    assert f"cannot be reached, or is busy (HTTP {status}); try again later" in refused(SourceUnavailableError)


def test_one_that_is_not_there_is_unavailable(hub: Hub) -> None:
    hub.stop()
    assert "(Connection refused); try again later" in refused(SourceUnavailableError)


def test_no_hub_is_found_under_a_name_that_there_is_not(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://nowhere.invalid")
    assert "nowhere.invalid cannot be reached" in refused(SourceUnavailableError)
    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["http://[", "http://127.0.0.1:port", "http://"])
def test_an_address_that_is_none_is_one_line_too(endpoint: str, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", endpoint)
    assert "correct MODELSCOPE_ENDPOINT" in refused(SourceError)
    assert hub.requests == []


def test_a_damaged_login_is_said(hub: Hub) -> None:
    log_in(TOKEN)
    (Path.home() / ".modelscope" / "credentials" / "cookies").write_bytes(b"")
    assert "or log in again" in refused(SourceError)
    assert hub.requests == []


def test_a_page_in_place_of_an_answer_may_pass(hub: Hub) -> None:
    hub.fail("listing", content=b"<html>back soon</html>")
    assert "does not answer as a hub does" in refused(SourceUnavailableError)


SPACES: Final = 200_000_000
"""In bytes: as many as a list could have between its entries, and none is due to have."""


@cache
def packed(encoding: str, size: int = SPACES) -> bytes:
    """A list that unpacks to so many bytes, which are mostly spaces."""
    packer = zlib.compressobj(9, zlib.DEFLATED, {"gzip": 31, "deflate": 15}[encoding])
    blocks = [packer.compress(b'{"Code": 200, "Data": {"Files": [')]
    blocks += [packer.compress(b" " * 1_000_000) for _ in range(size // 1_000_000)]
    return b"".join([*blocks, packer.compress(b"]}}"), packer.flush()])


PEAK = """
import logging, resource, sys
from cosyjit.errors import CosyjitError
from cosyjit.sources.hub import File, Model
from cosyjit.sources.modelscope import download, listing
from pathlib import Path

logging.getLogger("modelscope_hub").addHandler(logging.NullHandler())
import modelscope_hub, cosyjit.sources.responses
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    if sys.argv[2:]:
        download(Model(sys.argv[1]), File("llm.pt", 512_000, "0" * 64, "master"), Path(sys.argv[2]))
    listing(Model(sys.argv[1]), ["llm.pt"])
except CosyjitError as error:
    print(f"{type(error).__name__}: {error}")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status", "encoding"),
    [
        ("listing", 200, "gzip"),
        ("listing", 200, "deflate"),
        ("listing", 200, "identity"),
        ("listing", 302, "gzip"),
        ("listing", 404, "gzip"),
        ("listing", 403, "identity"),
        ("revisions", 200, "gzip"),
        ("revisions", 400, "deflate"),
        ("download", 200, "gzip"),
        ("download", 302, "identity"),
        ("download", 400, "gzip"),
    ],
)
def test_an_answer_is_bounded_before_it_is_unpacked_or_parsed(
    hub: Hub, tmp_path: Path, kind: Kind, status: int, encoding: str
) -> None:
    if kind == "revisions":
        hub.fail("listing", times=None, status=404)
    body = b" " * SPACES if encoding == "identity" else packed(encoding)
    headers = {"Content-Encoding": encoding, "Location": f"{hub.endpoint}/elsewhere"}
    as_usual = status == 200 and kind != "revisions"
    hub.fail(kind, times=None, status=0 if as_usual else status, content=body, headers=headers)
    with start(PEAK, MODEL, *([tmp_path] if kind == "download" else [])) as process:
        out, err = process.communicate(timeout=600)
    said, grown = out.splitlines()
    assert err == ""
    assert said.split(":")[0] in {"SourceError", "SourceUnavailableError"}
    assert int(grown) < 40_000  # in KB; what was sent is 195,000 of these
    if status == 200 and kind != "download":
        assert "answers with more than 4,194,304 bytes where a short list is expected; see whether MODELSCOPE_" in said


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_packed_list_is_read_as_any(hub: Hub, encoding: str) -> None:
    content = packed(encoding, 1_000_000)
    hub.fail("listing", content=content, headers={"Content-Encoding": encoding})
    assert listing(ASKED, NAMES).files == ()


def test_a_damaged_packed_list_is_said(hub: Hub) -> None:
    hub.fail("listing", times=None, content=b"\x1f\x8bno gzip", headers={"Content-Encoding": "gzip"})
    assert "does not answer as a hub does" in refused(SourceError)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_an_encoding_that_nobody_asked_for_is_refused(hub: Hub, tmp_path: Path, encoding: str) -> None:
    hub.fail("listing", times=None, content=b"0", headers={"Content-Encoding": encoding})
    assert f"sends its answers in the encoding {encoding!r}, which was not requested; see" in refused(SourceError)
    hub.mend()
    found = file("llm.pt", listing(ASKED, NAMES))
    hub.fail("download", times=None, content=CONTENT, headers={"Content-Encoding": encoding})
    with pytest.raises(SourceError, match="in the encoding"):
        download(ASKED, found, tmp_path)


@pytest.mark.parametrize("answer", [b"[1]", b'{"Data": [1]}', b'{"Data": {"Files": {"a": 1}}}'])
def test_an_answer_that_is_no_hubs_does_not_pass_and_no_older_copy_is_taken_for_it(answer: bytes, hub: Hub) -> None:
    hub.fail("listing", content=answer)
    assert "does not answer as a hub does, or modelscope-hub 0." in refused(SourceError)


# What comes.


def test_a_file_comes_at_its_commit_though_the_branch_moves_on(hub: Hub, tmp_path: Path) -> None:
    found = file("llm.pt", listing(ASKED, NAMES))
    hub.publish(MODEL, {"llm.pt": b"other"})
    assert download(ASKED, found, tmp_path / "in").read_bytes() == CONTENT
    assert hub.requests[-1].revision == found.revision


def test_nothing_is_printed_or_logged_but_one_line(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("download", cut=1000)
    with caplog.at_level(logging.INFO, "cosyjit"):
        download(ASKED, file("llm.pt", listing(ASKED, NAMES)), tmp_path)
    assert capfd.readouterr() == ("", "")
    ours = [record.getMessage() for record in caplog.records if record.name == "cosyjit"]
    assert [line.partition(" of commit ")[0] for line in ours] == [f"{MODEL}: downloading llm.pt"]


def test_a_download_that_breaks_off_goes_on_from_there(hub: Hub, tmp_path: Path) -> None:
    hub.fail("download", cut=300_000)
    assert download(ASKED, file("llm.pt", listing(ASKED, NAMES)), tmp_path).read_bytes() == CONTENT
    assert hub.ranges == ["", "bytes=300000-"]


def test_it_goes_on_as_long_as_something_comes(hub: Hub, tmp_path: Path) -> None:
    # The client is told to try twice.
    hub.fail("download", cut=100_000, times=5)
    assert download(ASKED, file("llm.pt", listing(ASKED, NAMES)), tmp_path).read_bytes() == CONTENT
    assert hub.ranges == ["", *(f"bytes={number}00000-" for number in range(1, 6))]


def test_one_that_gets_no_further_is_given_up_and_goes_on_next_time(hub: Hub, tmp_path: Path) -> None:
    found = file("llm.pt", listing(ASKED, NAMES))
    hub.fail("download", cut=300_000)
    hub.fail("download", cut=0, times=None)
    with pytest.raises(SourceUnavailableError) as error:
        download(ASKED, found, tmp_path)
    assert "cannot be reached, or is busy" in one_line(error.value)
    hub.mend()
    assert download(ASKED, found, tmp_path).read_bytes() == CONTENT
    assert hub.ranges[-1] == "bytes=300000-"


def test_what_came_before_is_not_believed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "llm.pt.incomplete").write_bytes(b"x" * 300_000)
    assert download(ASKED, file("llm.pt", listing(ASKED, NAMES)), tmp_path).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=300000-", ""]


def test_a_busy_hub_is_waited_for(hub: Hub, tmp_path: Path) -> None:
    found = file("llm.pt", listing(ASKED, NAMES))
    hub.fail("download", status=429, headers={"Retry-After": "1"})
    assert download(ASKED, found, tmp_path).read_bytes() == CONTENT
    assert len(hub.downloads) == 2


@pytest.mark.slow
@pytest.mark.parametrize("content", [CONTENT[1:], CONTENT + b"x", CONTENT[:-1] + b"x"], ids=["short", "long", "other"])
def test_other_bytes_than_were_listed_are_refused(content: bytes, hub: Hub, tmp_path: Path) -> None:
    found = file("llm.pt", listing(ASKED, NAMES))
    hub.fail("download", content=content, times=None)
    with pytest.raises(SourceError) as error:
        download(ASKED, found, tmp_path)
    message = one_line(error.value)
    assert f"llm.pt of commit {found.revision} does not arrive as" in message
    assert f"lists it (512,000 bytes, SHA-256 {found.sha256})" in message
    assert len(hub.downloads) in {2, 3}
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_digest_that_is_wrong_once_is_right_the_next_time(hub: Hub, tmp_path: Path) -> None:
    hub.fail("download", content=CONTENT[:-1] + b"x")
    assert download(ASKED, file("llm.pt", listing(ASKED, NAMES)), tmp_path).read_bytes() == CONTENT


def test_a_file_that_is_gone_meanwhile_is_said(hub: Hub, tmp_path: Path) -> None:
    found = file("llm.pt", listing(ASKED, NAMES))
    hub.fail("download", status=404)
    with pytest.raises(SourceError) as error:
        download(ASKED, found, tmp_path)
    assert "no longer has what it listed" in one_line(error.value)


def test_a_full_disk_is_said_at_once(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "llm.pt.incomplete").symlink_to("/dev/full")
    with pytest.raises(OutputError) as error:
        download(ASKED, file("llm.pt", listing(ASKED, NAMES)), tmp_path)
    assert "cannot be written (No space left on device); make room" in one_line(error.value)
    assert len(hub.downloads) == 1


def test_a_directory_that_cannot_be_made_is_said(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as error:
        download(ASKED, file("llm.pt", listing(ASKED, NAMES)), tmp_path / "file" / "in")
    assert "cannot be written (Not a directory)" in one_line(error.value)
    assert hub.downloads == []


# Who asks.


def test_the_token_is_the_client_s_own_and_goes_to_the_hub_alone(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token, hub.redirecting = TOKEN, True
    assert "refuses access (HTTP 401)" in refused(SourceError)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", hub.token)
    assert download(ASKED, file("llm.pt", listing(ASKED, NAMES)), tmp_path).read_bytes() == CONTENT
    *asked, elsewhere = hub.requests
    assert [each.kind for each in asked[1:]] == ["listing", "download"]
    assert all(hub.token in str(each.headers) for each in asked[1:])
    assert elsewhere.kind == "bytes"
    assert hub.token not in str(elsewhere.headers)


def test_a_login_is_enough(hub: Hub) -> None:
    hub.token = TOKEN
    log_in(TOKEN)
    assert listing(ASKED, NAMES).files


def test_a_token_that_can_be_none_is_not_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", f"{TOKEN}\n")
    message = refused(SourceError)
    assert re.search(r"cannot be used \((InvalidHeader|ValueError)\); correct", message)  # as requests has it
    assert TOKEN not in message
    assert hub.requests == []


def test_credentials_in_the_endpoint_go_no_further(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.endpoint.replace("//", "//user:secret@"))
    assert listing(ASKED, NAMES).endpoint == hub.endpoint
    assert "secret" not in refused(SourceError, f"{MODEL}x")
    hub.stop()
    assert "secret" not in refused(SourceUnavailableError)


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("https://modelscope.cn", "https://modelscope.cn"),
        ("https://a:b@modelscope.cn:81/hub", "https://modelscope.cn:81/hub"),
        ("https://a@b@c", "https://c"),
    ],
)
def test_an_endpoint_is_shown_without_them(endpoint: str, shown: str) -> None:
    assert without_password(endpoint) == shown


def test_where_the_client_looks_for_a_faster_way_it_asks_the_hub_alone(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_DOWNLOAD_INTRA_CLOUD", "true")
    download(ASKED, file("llm.pt", listing(ASKED, NAMES)), tmp_path)
    assert [each.kind for each in hub.requests] == ["listing", "other", "download"]


def test_the_client_is_imported_by_who_needs_it_alone(hub: Hub, tiny: Path) -> None:
    code = (
        "import sys; from cosyjit.sources.source import open_source; open_source(sys.argv[1]); "
        "print('modelscope_hub' in sys.modules)"
    )
    answers = []
    for source in (tiny, MODEL):
        with start(code, source) as process:
            answers.append(process.communicate(timeout=600))
    assert answers == [("False\n", ""), ("True\n", "")]
    assert hub.downloads == ["cosyvoice.yaml"]
