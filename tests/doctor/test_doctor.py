"""The command that says what a report of a problem should hold."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.operations.test_looking import everything
from tests.support.processes import CONSOLE_SCRIPT, Ran, Run, finished, spawn

QUICK = ("versions", "system", "processors", "memory", "store", "cache", "settings")
"""The parts that need neither torch nor Prefect nor a server."""


def test_the_parts_that_are_asked_for_are_shown_in_their_order(run: Run, home: Path) -> None:
    home.mkdir()
    ran = run("doctor", *reversed(QUICK), "--json")
    assert (ran.status, ran.err) == (0, "")
    assert everything(home) == {}
    found = json.loads(ran.out)
    assert found["well"] is True
    assert tuple(dict.fromkeys(each["part"] for each in found["findings"])) == QUICK
    assert {"part", "name", "value", "state", "advice", "unit"} == set().union(*found["findings"])
    assert all(each["state"] in {"ok", "note"} for each in found["findings"])


def test_what_is_wrong_makes_the_status_1_and_is_told_last(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSYJIT_MEMORY", "much")
    ran = run("doctor", "store", "settings", "--store", "nosuch://bucket")
    assert (ran.status, ran.err) == (1, "")
    *_, first, second, last = ran.out.splitlines()
    assert first.startswith("store, there: nosuch://bucket: is not a store (")
    assert second.startswith("settings, COSYJIT_MEMORY: COSYJIT_MEMORY=much: is not an amount")
    assert last == "2 wrong"
    assert json.loads(run("doctor", "store", "--store", "nosuch://bucket", "--json").out)["well"] is False


def test_a_part_that_there_is_not_is_refused(run: Run) -> None:
    ran = run("doctor", "stores")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("cosyjit: stores: is not a part of the report; give one of versions, system, ")


def test_whatever_variables_say_is_shown_as_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSYJIT_DASK", "\x1b[31mred\x07\u202e [bold]x[/bold]")
    monkeypatch.setenv("COSYJIT_\x1b[31mX", "1")
    ran = run("doctor", "settings")
    assert ran.status == 0
    assert ran.out.replace("\n", "").isprintable()
    assert "[bold]x[/bold]" in ran.out


def test_the_configuration_file_and_the_store_that_it_names_are_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cosyjit.toml").write_text('\ufeffstore = "kept"\ndoctor.parts = ["store", "settings"]\n')
    monkeypatch.chdir(tmp_path)
    found = json.loads(run("doctor", "--json").out)["findings"]
    told = {(each["part"], each["name"]): each["value"] for each in found}
    assert told["settings", "configuration file"] == str(tmp_path / "cosyjit.toml")
    assert told["store", "place"] == str(tmp_path / "kept")


@pytest.mark.slow
def test_all_of_it_is_found_out_where_nothing_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("MODELSCOPE_ENDPOINT", "HF_ENDPOINT", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ran = finished(spawn(CONSOLE_SCRIPT, "doctor", "--json"))
    assert (ran.status, ran.err) == (0, "")
    found = {(each["part"], each["name"]): each for each in json.loads(ran.out)["findings"]}
    assert found["torch", "version"]["value"]
    assert found["torch", "GPUs"]["value"] is not None
    assert found["prefect", "server"]["value"] is None
    assert found["hubs", "ModelScope"]["state"] == "note"
    assert everything(tmp_path / "home") == {}


MOUNTED = 'cd "$0"; mkdir -p home/.cache/cosyjit; mount -t tmpfs -o size=1m tmpfs home/.cache/cosyjit; {}; exec "$@"'


def mounted(prepare: str, folder: Path, *command: object) -> Ran:
    """Runs a command whose store is on a file system of its own, which only it sees."""
    for unshare in (["--mount"], ["--map-root-user", "--mount"]):
        ran = finished(spawn("unshare", *unshare, "sh", "-ec", MOUNTED.format(prepare), folder, *command))
        if "mount:" not in ran.err and "unshare:" not in ran.err:
            return ran
    pytest.skip("nothing can be mounted here")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "status", "value", "says"),
    [
        ("dd if=/dev/zero of=home/.cache/cosyjit/lock 2>/dev/null || true", 1, False, "No space left on device"),
        ("mount -o remount,ro home/.cache/cosyjit", 0, False, "nothing new can be built"),
        ("true", 0, True, ""),
    ],
    ids=["full", "read-only", "in memory"],
)
def test_a_disk_that_takes_nothing_is_told(
    prepare: str, status: int, value: bool, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    ran = mounted(prepare, tmp_path, sys.executable, "-m", "cosyjit", "doctor", "store", "cache", "--json")
    assert (ran.status, ran.err) == (status, "")
    found = {each["name"]: each for each in json.loads(ran.out)["findings"] if each["part"] == "store"}
    assert found["writable"]["value"] is value
    assert says in found["writable"]["advice"]
    assert found["file system"]["value"] == "tmpfs"
    if value:
        assert found["digests of its files"]["state"] == "note"


@pytest.mark.slow
def test_a_store_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "lock").write_text("")
    (tmp_path / "store").chmod(0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"] if os.geteuid() == 0 else []
    ran = finished(spawn(*drop, CONSOLE_SCRIPT, "doctor", "store", "--store", tmp_path / "store", "--json"))
    (tmp_path / "store").chmod(0o700)
    assert (ran.status, ran.err) == (1, "")
    assert "Permission denied" in ran.out
