"""What is said when a server is not there, does not let anyone in, or fails: in one line, without a secret."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import boto3  # type: ignore[import-untyped]
import pytest
import requests
from fsspec.config import conf

from cosyjit.store.backends import storage
from cosyjit.store.remote_errors import UnavailableError
from tests.support.s3 import SECRET, Answer, Cut, Service

PASSWORD: Final = "pa55word"  # noqa: S105  (nobody's)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tries, and short ones, by what users may configure as well."""
    retries = {"mode": "legacy", "total_max_attempts": 1}
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"retries": retries, "read_timeout": 0.3}})


def refusal(url: str) -> OSError:
    """What is said to who reads there; it is not that there is no such file."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  (which one, the tests say)
        storage(url).read("records/a.json")
    error = caught.value
    assert not isinstance(error, FileNotFoundError)
    assert len(str(error).splitlines()) == 1
    assert SECRET not in repr(error)
    assert PASSWORD not in repr(error)
    return error


def test_a_bucket_that_is_not_there_is_no_empty_one(s3: Service) -> None:
    s3.url()
    assert str(refusal("s3://no-such-bucket/a")) == "there is no such bucket"
    place = storage("s3://no-such-bucket/a")
    for look in (lambda: list(place.entries()), lambda: place.open("a"), lambda: place.remove("a"), place.check):
        with pytest.raises(OSError, match="there is no such bucket"):
            look()


def test_a_bucket_that_goes_away_meanwhile_is_missed(s3: Service) -> None:
    url = s3.url()
    place = storage(url)
    place.check()
    s3.client.delete_bucket(Bucket=url.split("/")[2])
    for look in (lambda: list(place.entries()), lambda: place.read("a"), lambda: place.write("a", b"")):
        with pytest.raises(OSError, match="there is no such bucket"):
            look()


@pytest.fixture
def guarded(s3: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A server that lets those in alone whom it knows; this one may do nothing."""
    iam = boto3.client("iam", endpoint_url=s3.env["AWS_ENDPOINT_URL"])
    iam.create_user(UserName="nobody")
    key = iam.create_access_key(UserName="nobody")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    guard = f"{s3.env['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    requests.post(guard, b"0", timeout=60).raise_for_status()
    yield s3
    requests.post(guard, b"inf", timeout=60).raise_for_status()


@pytest.mark.slow
def test_who_may_not_look_is_told_so(guarded: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal("s3://bucket/a")
    assert isinstance(error, PermissionError)
    assert str(error) == "ListObjectsV2 is answered with 403, AccessDenied"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, guarded.env[name])
    assert str(refusal("s3://bucket/a")) == "ListObjectsV2 is answered with 403, InvalidAccessKeyId"


def test_who_may_look_and_not_write_is_told_so(s3: Service) -> None:
    url = s3.url()
    with s3.proxied(lambda method, _: Answer(403, "AccessDenied") if method == "PUT" else None):
        place = storage(url)
        assert list(place.entries()) == []
        with pytest.raises(PermissionError, match="PutObject is answered with 403, AccessDenied"):
            place.write("a", b"1")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_not_there_may_come_back(s3: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    url, port = s3.url(), free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    error = refusal(url)
    assert isinstance(error, UnavailableError)
    assert str(error) == f"no connection to 127.0.0.1:{port}"


FAULTS: Final[dict[str, tuple[Answer | Cut, str]]] = {
    "busy": (Answer(503, "SlowDown"), "ListObjectsV2 is answered with 503, SlowDown"),
    "too many": (Answer(429, "TooManyRequests"), "ListObjectsV2 is answered with 429, TooManyRequests"),
    "gateway": (Answer(502), "ListObjectsV2 is answered with 502"),
    "no answer": (Cut(), "no answer from 127.0.0.1"),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_may_do_better_later(fault: str, s3: Service) -> None:
    url = s3.url()
    said, words = FAULTS[fault]
    with s3.proxied(lambda *_: said):
        error = refusal(url)
    assert isinstance(error, UnavailableError)
    assert str(error).startswith(words)


@pytest.mark.usefixtures("impatient")
@pytest.mark.slow
def test_a_file_that_breaks_off_each_time_is_not_taken_for_its_beginning(s3: Service) -> None:
    url = s3.url()
    storage(url).write("a", bytes(100_000))
    with s3.proxied(lambda method, path: Cut(50_000) if method == "GET" and "list-type" not in path else None):
        place = storage(url)
        with pytest.raises(UnavailableError, match="broke off from the service"):
            place.read("a")
        with place.open("a") as file, pytest.raises(UnavailableError, match="broke off from the service"):
            file.read()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_server_that_never_answers_is_not_waited_for_for_ever(s3: Service) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
            assert isinstance(refusal(s3.url()), UnavailableError)


def test_no_credentials_are_no_server_that_fails(s3: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.url()
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "AWS_SECRET_ACCESS_KEY" in str(refusal(url))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    error = refusal(url)
    assert str(error) == "no credentials are found, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    assert not isinstance(error, UnavailableError)


PROFILES: Final = {
    "missing": "The config profile (missing) could not be found",
    "talkative": "AWS's configured credential source returned no credentials",
}


@pytest.mark.parametrize("profile", PROFILES)
def test_credentials_that_cannot_be_had_are_not_quoted(
    profile: str, s3: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = s3.url()
    (tmp_path / "config").write_text(
        f"[profile talkative]\ncredential_process = sh -c 'echo the key is {PASSWORD} >&2; exit 1'\n"
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", profile)
    assert str(refusal(url)) == PROFILES[profile]


ENDPOINTS: Final = {
    "nothing": "Invalid endpoint: nothing",
    "ftp://127.0.0.1": "Custom endpoint `ftp://127.0.0.1` was not a valid URI",
    f"http://me:{PASSWORD}@127.0.0.1": "Cannot combine AUTHORIZATION header with AUTH argument",
    f"http://me:{PASSWORD}@127.0.0.1:99999": "Custom endpoint `http://127.0.0.1:99999` was not a valid URI",
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_endpoint_that_is_none_is_said(endpoint: str, s3: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.url()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    error = refusal(url)
    assert str(error).startswith(ENDPOINTS[endpoint])
    assert not isinstance(error, UnavailableError)


@pytest.mark.usefixtures("impatient")
def test_a_server_without_a_certificate_is_not_trusted(s3: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.url()
    host = s3.env["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{host}")
    error = refusal(url)
    assert str(error) == f"no secure connection to {host}"
    assert not isinstance(error, UnavailableError)
