"""What the environment sets: no secret is shown, and what cannot be used is wrong."""

from pathlib import Path

import pytest

from cosyjit import settings
from cosyjit.doctor.environment import OWN, _configuration, probes
from cosyjit.doctor.finding import Finding, look
from tests.support.keys import pair


def found() -> dict[str, tuple[object, str]]:
    return {each.name: (each.value, each.state) for each in look(probes(None))}


def advice(name: str) -> str:
    return next(each.advice for each in look(probes(None)) if each.name == name)


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv(settings.WEBHOOK, "https://hooks.example.com/T000/s3cr3t")
    monkeypatch.setenv("COSYJIT_UNKNOWN", "s3cr3t")
    monkeypatch.setenv("PREFECT_API_URL", "https://me:s3cr3t@prefect.example.com/api?api_key=s3cr3t")
    monkeypatch.setenv("PREFECT_API_KEY", "s3cr3t")
    monkeypatch.setenv("https_proxy", "http://me:s3cr3t@proxy:3128")
    monkeypatch.setenv("COSYJIT_DASK", "tls://me:s3cr3t@dask:8786")
    monkeypatch.setenv("COSYJIT_STORE", f"{home}/store")
    told = found()
    assert "s3cr3t" not in repr(look(probes(None)))
    assert told[settings.WEBHOOK] == ("set", "ok")
    assert told["COSYJIT_UNKNOWN"] == ("set", "note")
    assert told["PREFECT_API_URL"] == ("https://prefect.example.com/api?api_key=…", "ok")
    assert told["https_proxy"] == ("http://proxy:3128", "ok")
    assert told["COSYJIT_DASK"] == ("tls://dask:8786", "ok")
    assert told["COSYJIT_STORE"] == ("~/store", "ok")
    assert "PREFECT_API_KEY" not in told


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (settings.MEMORY, "much", "COSYJIT_MEMORY=much: is not an amount of memory"),
        (settings.WAIT, "long", "COSYJIT_WAIT=long: is not a number of seconds"),
        (settings.LOG, "loud", "COSYJIT_LOG=loud: is not a level of the log"),
        (settings.SIGN, "/nowhere", "/nowhere: "),
        (settings.REQUIRE_SIGNATURE, "/nowhere", "/nowhere: "),
    ],
)
def test_what_cannot_be_used_is_wrong(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert found()[name] == (value, "wrong")
    assert advice(name).startswith(says)
    monkeypatch.setenv(name, "")
    assert found()[name] == ("", "ok")


def test_keys_that_can_be_used_are_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = pair(tmp_path)
    monkeypatch.setenv(settings.SIGN, str(keys.private))
    monkeypatch.setenv(settings.REQUIRE_SIGNATURE, str(keys.public))
    assert found()[settings.SIGN] == (str(keys.private), "ok")
    assert found()[settings.REQUIRE_SIGNATURE] == (str(keys.public), "ok")


def test_all_variables_of_the_settings_are_known() -> None:
    assert {settings.STORE, settings.MEMORY, settings.DASK, settings.WEBHOOK, settings.LOG} <= OWN


def test_the_configuration_file_is_named() -> None:
    assert list(_configuration(None)) == [Finding("settings", "configuration file", None)]
    (named,) = _configuration(Path("/p/cosyjit.toml"))
    assert named.value == "/p/cosyjit.toml"
