"""What a server is told over HTTP, and what is said when there is none: against servers that answer as asked to."""

import json
import socket
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from cosyjit.errors import ServerError
from cosyjit.prefect_api import UPDATED, Server, check_version
from tests.support.http import Asked, answering
from tests.support.processes import run_here


def as_prefect(asked: Asked) -> tuple[int, bytes]:
    return (200, b'"3.8.8"') if asked.path.endswith("/admin/version") else (204, b"")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def refused(url: str) -> str:
    with pytest.raises(ServerError) as error:
        Server(url).notify("/models/a", "CosyVoice")
    message = str(error.value)
    assert message.startswith(f"{url}: ")
    assert len(message.splitlines()) == 1
    return message


def test_the_event_names_the_source_and_its_family() -> None:
    with answering(as_prefect) as (url, asked):
        Server(url).notify("/models/a", "CosyVoice")
    version, told = asked
    assert (version.method, version.path) == ("GET", "/api/admin/version")
    assert (told.method, told.path) == ("POST", "/api/events")
    (event,) = told.body
    assert event["event"] == UPDATED
    assert event["resource"] == {
        "prefect.resource.id": "cosyjit.checkpoint./models/a",
        "prefect.resource.name": "/models/a",
        "cosyjit.source": "/models/a",
        "cosyjit.family": "CosyVoice",
    }
    occurred = datetime.fromisoformat(event["occurred"].replace("Z", "+00:00"))  # Python 3.10 does not read the Z
    assert datetime.now(timezone.utc) - occurred < timedelta(minutes=5)


def test_who_has_a_password_or_a_key_gives_it_and_nobody_else() -> None:
    with answering(as_prefect) as (url, asked):
        Server(url).notify("/models/a", "CosyVoice")
        Server(url, user="admin:secret:with a colon").notify("/models/a", "CosyVoice")
        Server(url, key="pnu_1").notify("/models/a", "CosyVoice")
    assert [one.authorization for one in asked if one.method == "POST"] == [
        None,
        "Basic YWRtaW46c2VjcmV0OndpdGggYSBjb2xvbg==",
        "Bearer pnu_1",
    ]


def test_where_nothing_listens_there_is_no_server() -> None:
    message = refused(f"http://127.0.0.1:{free_port()}/api")
    assert message.endswith(": no Prefect server is there; start it (`prefect server start`), or name one")


def test_a_server_without_tls_is_not_asked_for_ever() -> None:
    with answering(lambda _: (200, b"{}")) as (url, _):
        message = refused(url.replace("http:", "https:"))
    assert "/api: no TLS connection (wrong version number; REQUESTS_CA_BUNDLE names trusted certificates); " in message


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://127.0.0.1/api", "http://[::1"])
def test_what_is_no_url_is_said_to_be_none(url: str) -> None:
    assert "is not a URL; start it" in refused(url)


@pytest.mark.parametrize(
    ("status", "way_out"),
    [
        (401, "answers 401 Unauthorized; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"),
        (403, "answers 403 Forbidden; ask for the right to send events"),
        (404, "answers 404 Not Found; name the API of a Prefect server"),
        (500, "answers 500 Internal Server Error; look into the server's log"),
    ],
)
def test_a_server_that_refuses_is_quoted_with_the_way_out(status: int, way_out: str) -> None:
    with answering(lambda _: (status, b"{}")) as (url, _):
        assert way_out in refused(url)


def test_a_server_that_is_busy_is_asked_again() -> None:
    left = [2]

    def busy(asked: Asked) -> tuple[int, bytes]:
        if asked.method == "POST" and left[0]:
            left[0] -= 1
            return 503, b"{}"
        return as_prefect(asked)

    with answering(busy) as (url, asked):
        Server(url).notify("/models/a", "CosyVoice")
    events = [one.body[0]["id"] for one in asked if one.method == "POST"]
    assert len(events) == 3
    assert len(set(events)) == 1


@pytest.mark.parametrize("version", ["2.20.25", "3.0.0", "3.7.9"])
def test_an_older_server_is_told_to_be_upgraded_and_gets_no_event(version: str) -> None:
    with answering(lambda _: (200, json.dumps(version).encode())) as (url, asked):
        message = refused(url)
    assert message.endswith(f"Prefect {version} is older than 3.8, which cosyjit needs; upgrade the server")
    assert [one.method for one in asked] == ["GET"]


@pytest.mark.parametrize("version", ["3.8.0", "3.10.1", "3.8.8.dev3", "4.0.0"])
def test_a_newer_server_will_do(version: str) -> None:
    check_version("http://127.0.0.1/api", version)


@pytest.mark.parametrize("content", [b"<html>", b"", b"{}", b"null", b"7"])
def test_what_tells_no_version_is_no_prefect_server(content: bytes) -> None:
    with answering(lambda _: (200, content)) as (url, _):
        assert "is not a Prefect server" in refused(url)


def test_no_password_of_a_url_is_shown(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(lambda _: (401, b"{}")) as (url, _):
        secret = url.replace("//", "//admin:hunter2@")
        with pytest.raises(ServerError, match=f"^{url}: answers 401") as error:
            Server(secret).notify("/models/a", "CosyVoice")
        assert "hunter2" not in str(error.value)
    with answering(as_prefect) as (url, asked):
        ran = run_here(capsys, "notify", tiny, "--server", url.replace("//", "//admin:hunter2@"))
    assert ran.out == f"{url} knows that {tiny} was updated\n"
    assert asked[0].authorization == "Basic YWRtaW46aHVudGVyMg=="


def test_a_page_in_place_of_a_version_is_cut_short() -> None:
    with answering(lambda _: (200, b"<html>" + b"x" * 10_000)) as (url, _):
        assert len(refused(url)) < 200


# The command.


def test_the_command_tells_the_server_of_a_directory_by_its_whole_path(
    tiny: Path, tiny2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.parent)
    with answering(as_prefect) as (url, asked):
        monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:secret")
        ran = run_here(capsys, "notify", tiny.name)
        other = run_here(capsys, "notify", tiny2, "--server", url)
    assert (ran.status, ran.err) == (other.status, other.err) == (0, "")
    assert ran.out == f"{url} knows that {tiny} was updated\n"
    resources = [one.body[0]["resource"] for one in asked if one.method == "POST"]
    assert [(each["cosyjit.source"], each["cosyjit.family"]) for each in resources] == [
        (str(tiny), "CosyVoice"),
        (str(tiny2), "CosyVoice2"),
    ]
    assert {one.authorization for one in asked} == {"Basic YWRtaW46c2VjcmV0"}


def test_the_command_says_in_one_line_what_is_wrong_and_sends_nothing(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    with answering(as_prefect) as (url, asked):
        none = run_here(capsys, "notify", tiny)
        empty = run_here(capsys, "notify", tiny, "--server", "")
        dead = run_here(capsys, "notify", tiny, "--server", nowhere)
        missing = run_here(capsys, "notify", tmp_path / "missing", "--server", url)
    assert [ran.status for ran in (none, empty, dead, missing)] == [2, 2, 2, 2]
    assert none.err == empty.err == "cosyjit: no Prefect server is named; set PREFECT_API_URL or give --server\n"
    assert dead.err.startswith(f"cosyjit: {nowhere}: no Prefect server is there; ")
    assert "missing: does not exist; give a model directory" in missing.err
    assert asked == []
