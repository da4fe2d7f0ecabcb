"""Whether hubs and the Prefect server answer: against servers on this machine, which others are asked for."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from cosyjit.doctor.finding import Finding, look
from cosyjit.doctor.servers import probes
from tests.support.http import Asked, answering
from tests.test_prefect_api import as_prefect, free_port


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name of the environment's own leads anywhere else."""
    for name in ("HF_HUB_OFFLINE", "MODELSCOPE_ENDPOINT", "HF_ENDPOINT", "PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the client reads the environment when it is imported


def hubs() -> dict[str, Finding]:
    return {each.name: each for each in look([each for each in probes() if each.part == "hubs"])}


def prefect() -> dict[str, Finding]:
    return {each.name: each for each in look([each for each in probes() if each.part == "prefect"])}


def test_hubs_that_answer_are_well_whatever_they_say_and_nothing_secret_is_sent(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    home.mkdir()
    (home / ".netrc").write_text("machine 127.0.0.1 login me password s3cr3t\n")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HF_TOKEN", "s3cr3t")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "s3cr3t")
    with answering(lambda _: (404, b"")) as (url, asked):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        found = hubs()
    assert found["ModelScope"] == Finding("hubs", "ModelScope", url)
    assert found["Hugging Face"] == Finding("hubs", "Hugging Face", url)
    assert len(asked) == 2
    assert "s3cr3t" not in repr(asked)
    assert [each.authorization for each in asked] == [None, None]


def test_hubs_that_do_not_answer_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: Asked) -> tuple[int, bytes]:
        return 503, b""

    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://me:s3cr3t@127.0.0.1:{free_port()}")
    with answering(busy) as (url, _):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        found = hubs()
    assert found["ModelScope"].state == found["Hugging Face"].state == "note"
    assert found["ModelScope"].advice.startswith("there is no connection; ")
    assert "s3cr3t" not in repr(found)
    assert found["Hugging Face"].advice == "answers with HTTP 503; try again later"
    monkeypatch.setattr(constants, "ENDPOINT", "no URL")
    assert hubs()["Hugging Face"].advice.startswith("is not a URL that can be asked; ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hubs()["Hugging Face"].state == "ok"


@pytest.mark.slow
def test_the_prefect_server_that_is_named_is_asked(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    home.mkdir()
    assert prefect()["server"] == Finding(
        "prefect", "server", None, "ok", "none is named; a run or `cosyjit serve` starts one of its own"
    )
    with answering(as_prefect) as (url, asked):
        monkeypatch.setenv("PREFECT_API_URL", url.replace("//", "//me:s3cr3t@"))
        monkeypatch.setenv("PREFECT_API_KEY", "pnu_s3cr3t")
        found = prefect()
    assert (found["server"].value, found["server"].state) == (url, "ok")
    assert found["server's version"].value == "3.8.8"
    assert found["home"].value == "~/.prefect"
    assert {each.authorization for each in asked} <= {"Bearer pnu_s3cr3t", "Basic bWU6czNjcjN0"}
    assert "s3cr3t" not in repr(found)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    found = prefect()
    assert found["server"].state == "wrong"
    assert "no Prefect server is there; start it" in found["server"].advice
    monkeypatch.setenv("PREFECT_API_URL", "7")
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "many")
    assert prefect()["server"].state == "wrong"
