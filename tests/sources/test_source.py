"""From what a caller names to a configuration: in a model directory, or of a model of the hub."""

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cosyjit import documents
from cosyjit.errors import SelectionError, SourceError, SourceUnavailableError
from cosyjit.families import CONFIG_FILES, FAMILIES
from cosyjit.fs import files
from cosyjit.selection import select
from cosyjit.sources import snapshots
from cosyjit.sources.hub import File, Model
from cosyjit.sources.ids import parse
from cosyjit.sources.snapshots import Snapshot
from cosyjit.sources.source import Source, open_source, reopen
from cosyjit.text import plain
from tests.support.modelscope import MODEL, Hub

WAYS = (
    "give a model directory, with one of {} in it, or a ModelScope id such as iic/CosyVoice-300M, or a Hugging Face id "
    "such as hf:FunAudioLLM/CosyVoice2-0.5B"
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.use(monkeypatch)
        hub.publish(MODEL, {"cosyvoice.yaml": b"llm:\n", "llm.pt": b"llm"})
        yield hub


def refused(source: str | Path) -> str:
    """The message of the error that opening raises; it is one line that begins with the source."""
    with pytest.raises(SourceError) as error:
        open_source(source)
    message = str(error.value)
    assert message.startswith(f"{plain(str(source))}: ")
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_each_published_name_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert open_source(tmp_path) == open_source(str(tmp_path)) == Source(tmp_path, tmp_path / name)


def test_a_relative_source_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cosyvoice.yaml").touch()
    monkeypatch.chdir(tmp_path)
    opened = open_source("model")
    monkeypatch.chdir("/")
    assert opened == Source(tmp_path / "model", tmp_path / "model" / "cosyvoice.yaml")
    assert opened.config.is_file()


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cosyvoice2.yaml").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~").directory == tmp_path


def test_a_link_to_a_directory_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cosyvoice.yaml").touch()
    (tmp_path / "link").symlink_to("model")
    assert open_source(tmp_path / "link").config.is_file()


def test_other_files_are_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "cosyvoice.yaml").touch()
    (tmp_path / "cosyvoice4.yaml").touch()
    (tmp_path / "cosyvoice2.yaml").mkdir()
    assert open_source(tmp_path).config.name == "cosyvoice.yaml"


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing").endswith(f": does not exist; {WAYS.format(', '.join(CONFIG_FILES))}")


def test_a_missing_directory_is_named_as_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("missing").startswith(f"missing: the directory {tmp_path}/missing does not exist; give a model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert refused("~/missing").startswith(f"~/missing: the directory {tmp_path}/missing does not exist; give a model")


def test_a_file_is_refused_with_the_model_directory_that_it_is_in(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").touch()
    assert refused(tmp_path / "llm.pt").startswith(f"{tmp_path}/llm.pt: is a file; give a model directory, with one of")
    (tmp_path / "cosyvoice.yaml").touch()
    for name in ("cosyvoice.yaml", "llm.pt"):
        says = f"{tmp_path / name}: is a file; give the model directory that it is in, {tmp_path}"
        assert refused(tmp_path / name) == says


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "does not exist" in refused(tmp_path / "file" / "model")


@pytest.mark.parametrize(
    "source", ["x" * 300, "~nobody-of-this-name/model", "a\0b"], ids=["too long", "unknown user", "null character"]
)
def test_what_can_be_no_path_is_refused(source: str) -> None:
    refused(source)


def test_a_directory_without_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").touch()
    (tmp_path / "cosyvoice.yml").touch()
    message = refused(tmp_path)
    assert "no configuration in this directory" in message
    assert all(name in message for name in CONFIG_FILES)


@pytest.mark.parametrize("names", [*combinations(CONFIG_FILES, 2), CONFIG_FILES])
def test_configurations_side_by_side_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text(f"# {name}")
    assert f"{' and '.join(names)} stand side by side and differ; keep the one" in refused(tmp_path)


@pytest.mark.parametrize("names", [*combinations(CONFIG_FILES, 2), CONFIG_FILES])
def test_configurations_of_the_same_bytes_are_one_by_the_first_name(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in reversed(names):
        (tmp_path / name).write_text("llm:")
    assert open_source(tmp_path) == Source(tmp_path, tmp_path / names[0])


def test_configurations_too_large_to_be_compared_are_refused(tmp_path: Path) -> None:
    for name in CONFIG_FILES[:2]:
        (tmp_path / name).write_bytes(b"#" * (1 << 17))
    assert "stand side by side and differ; keep the one" in refused(tmp_path)


def test_a_directory_is_named_for_itself_and_has_all_of_it_at_hand(tmp_path: Path) -> None:
    (tmp_path / "cosyvoice.yaml").touch()
    source = open_source(tmp_path)
    assert source.name == source.pinned == str(tmp_path)
    assert source.home == source.directory == tmp_path
    assert source.file("llm.pt") == tmp_path / "llm.pt"
    assert source.uri("a b.pt") == f"file://{tmp_path}/a%20b.pt"
    source.obtain(["llm.pt"])
    assert [path.name for path in tmp_path.iterdir()] == ["cosyvoice.yaml"]
    assert pickle.loads(pickle.dumps(source)) == source
    assert reopen(source.name, ask=True) == source


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "circle"])
def test_what_is_no_file_is_no_configuration(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "cosyvoice.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(SourceError) as error:
        open_source(tmp_path)
    kind = "a link that leads nowhere" if kind == "circle" else "not a file"
    assert str(error.value) == f"{path}: is {kind}; put the configuration there"


HOSTILE: Final = st.text(st.sampled_from("ab0.-_/@+%~\n\0 \\:\u2024\uff0e\ud800\u202e"), max_size=20) | st.sampled_from(
    [
        "..",
        "/etc/passwd",
        "../../x",
        "a/..",
        "llm.pt/../x",
        "llm.pt\0",
        "%2e%2e/x",
        "..\\x",
        "x" * 5000,
        ".",
        "",
        "~root",
    ]
)
LISTED: Final = st.sampled_from(["llm.pt", "cosyvoice.yaml"])
SNAPSHOT: Final = Snapshot(
    Model(MODEL),
    "c" * 40,
    "https://hub",
    tuple(File(name, 5, "0" * 64, "c" * 40) for name in ("llm.pt", "cosyvoice.yaml")),
)


@given(HOSTILE | LISTED)
def test_of_a_model_there_are_the_files_that_are_listed_and_no_others(name: str) -> None:
    source = Source(SNAPSHOT.directory, SNAPSHOT.directory / "cosyvoice.yaml", SNAPSHOT)
    asks: tuple[Callable[[str], object], ...] = (source.file, source.uri, lambda each: source.obtain([each]))
    for ask in asks:
        if name in {"llm.pt", "cosyvoice.yaml"}:
            assert Path(SNAPSHOT.path(name)).is_relative_to(
                Path.home() / ".cache" / "cosyjit" / "modelscope" / ".files"
            )
        else:
            with pytest.raises(SourceError) as error:
                ask(name)
            assert str(error.value).isprintable()
    assert not Path.home().exists()


@given(HOSTILE)
def test_whatever_a_source_is_called_what_comes_is_an_error_of_one_line(name: str) -> None:
    assume(parse(name) is None)
    with pytest.raises(SourceError) as error:
        open_source(name)
    assert str(error.value).isprintable()


@given(st.lists(HOSTILE, max_size=3), st.lists(HOSTILE, max_size=3))
def test_components_and_precisions_are_those_of_the_tables(components: list[str], precisions: list[str]) -> None:
    with pytest.raises(SelectionError) as error:
        select(FAMILIES[0], components, precisions)
    assert str(error.value).isprintable()


SAID: Final[dict[str, Any]] = {
    "schema": documents.SCHEMA,
    "model": MODEL,
    "revision": "c" * 40,
    "endpoint": "https://hub",
    "number": 1,
    "resolved": "2026-01-02T03:04:05+00:00",
    "files": [
        {"name": name, "size": 5, "sha256": "0" * 64, "revision": "c" * 40} for name in ("llm.pt", "cosyvoice.yaml")
    ],
}


def described(document: dict[str, Any]) -> list[Snapshot]:
    """What is found of a description that stands where its commit's does."""
    directory = replace(SNAPSHOT, revision=document["revision"]).directory
    files.write(directory / snapshots.DOCUMENT, documents.dump(document))
    return [each.snapshot for each in snapshots._known(SNAPSHOT.model)]


def test_a_description_of_what_was_downloaded_is_believed() -> None:
    assert described(SAID) == [SNAPSHOT]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"revision": revision} for revision in ("\u2028", "a b", "a\\b", "-", "x" * 97, "\x1b[31m")),
        *({"endpoint": "https://hub\x1b[31m"}, {"resolved": "\x1b[31m"}, {"number": -1}, {"number": 1.5}),
        *({"files": [{**SAID["files"][0], "name": name}]} for name in ("../x", "/etc/passwd", "llm.pt\0", "a/llm.pt")),
        *({"files": [{**SAID["files"][0], "size": size}]} for size in (-1, 10**400, "5", True)),
        *({"files": [{**SAID["files"][0], "revision": revision}]} for revision in ("..", "../x", "\u202e")),
        {"files": [{**SAID["files"][0], "sha256": "../" + "0" * 61}]},
    ],
    ids=repr,
)
def test_a_description_that_cosyjit_would_not_write_is_none(wrong: dict[str, Any]) -> None:
    assert described({**SAID, **wrong}) == []


# Of the hub.


def test_an_id_is_a_model_of_the_hub(hub: Hub, home: Path) -> None:
    source = open_source(MODEL)
    assert open_source(Path(MODEL)) == source
    commit = hub.requests[1].revision
    kept = home / ".cache" / "cosyjit" / "modelscope"
    assert source.name == MODEL
    assert source.pinned == f"{MODEL}@{commit}"
    assert source.home == kept / MODEL
    assert source.directory == kept / MODEL / "snapshots" / commit
    assert source.config == source.directory / "cosyvoice.yaml"
    assert source.uri("llm.pt") == f"{hub.endpoint}/api/v1/models/{MODEL}/repo?Revision={commit}&FilePath=llm.pt"
    assert hub.downloads == ["cosyvoice.yaml"]


def test_a_directory_that_is_there_is_no_id(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MODEL).mkdir(parents=True)
    (tmp_path / MODEL / "cosyvoice2.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert open_source(MODEL) == Source(tmp_path / MODEL, tmp_path / MODEL / "cosyvoice2.yaml")
    assert hub.requests == []


def test_what_was_named_an_id_once_stays_one(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(MODEL)
    assert source.snapshot is not None
    (tmp_path / MODEL).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert reopen(source.name, ask=True).snapshot == replace(source.snapshot, download=False)
    assert hub.count("listing") == 2


def test_a_file_that_is_there_is_no_id_either(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "iic").mkdir()
    (tmp_path / MODEL).touch()
    monkeypatch.chdir(tmp_path)
    assert refused(MODEL).startswith(f"{MODEL}: is a file; give a model directory")
    assert hub.requests == []


@pytest.mark.parametrize(
    "source",
    [
        "missing",
        "a/b/c",
        "./a/b",
        "../a/b",
        "a/b@../../etc",
        "a/b@/etc/passwd",
        "a/b@x\ny",
        "a/b@x\0",
        "/a/b",
        "https://a/b",
    ],
)
def test_what_is_neither_is_refused_without_asking(source: str, hub: Hub, home: Path) -> None:
    with pytest.raises(SourceError) as error:
        open_source(source)
    assert str(error.value).endswith(WAYS.format(", ".join(CONFIG_FILES)))
    assert len(str(error.value).splitlines()) == 1
    assert hub.requests == []
    assert not home.exists()


def test_a_model_without_configuration_is_refused(hub: Hub) -> None:
    commit = hub.publish("iic/other", {"llm.pt": b"llm", "cosyvoice.yml": b""})
    with pytest.raises(SourceError) as error:
        open_source("iic/other")
    assert (
        str(error.value)
        == f"iic/other@{commit}: no configuration among its files; it needs one of {', '.join(CONFIG_FILES)}"
    )


def test_a_model_with_two_configurations_is_refused(hub: Hub) -> None:
    hub.publish(MODEL, {"cosyvoice2.yaml": b"llm: 2\n"})
    with pytest.raises(SourceError, match=r"cosyvoice.yaml and cosyvoice2.yaml stand side by side and differ; keep"):
        open_source(MODEL)
    assert hub.downloads == []


def test_a_model_with_one_configuration_under_two_names_has_one(hub: Hub) -> None:
    hub.publish(MODEL, {"cosyvoice2.yaml": b"llm:\n"})
    source = open_source(MODEL)
    assert source.config == source.directory / "cosyvoice.yaml"
    assert pickle.loads(pickle.dumps(source)) == source
    assert hub.downloads == ["cosyvoice.yaml"]


LOST: Final = "models/CosyVoice-300M"
"""A directory that has the form of an id, and is not there."""


def test_of_a_directory_that_is_not_there_it_is_said_first_that_it_is_not_there(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    host = hub.endpoint.removeprefix("http://")
    begins = f"{LOST}: the directory {tmp_path}/{LOST} does not exist; as a ModelScope id: "
    assert refused(LOST).startswith(f"{begins}no such model on {host}, or a private one; give a model directory")
    hub.token = "secret"  # noqa: S105
    assert refused(LOST).startswith(f"{begins}{host} refuses access (HTTP 401); log in")
    hub.down()
    with pytest.raises(SourceUnavailableError) as error:  # tried again, for it may be an id
        open_source(LOST)
    assert str(error.value).startswith(f"{begins}{host} cannot be reached, or is busy (HTTP 503); try again later")
    assert str(error.value).endswith("or give a model directory that is there")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://[")
    assert refused(LOST).startswith(f"{begins}the settings of the ModelScope client cannot be used")


def test_of_what_was_an_id_once_no_directory_is_said_to_be_missing(hub: Hub) -> None:
    hub.down()
    with pytest.raises(SourceUnavailableError) as error:
        reopen("iic/other", ask=True)
    assert str(error.value).startswith(f"iic/other: {hub.endpoint.removeprefix('http://')} cannot be reached")


def test_a_link_that_leads_nowhere_is_no_name_of_the_hub(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iic").mkdir()
    (tmp_path / "iic" / "CosyVoice-300M").symlink_to("/mnt/gone")
    (tmp_path / "models").symlink_to("models")
    for name, link in (("iic/CosyVoice-300M", "iic/CosyVoice-300M"), ("models/any", "models")):
        with pytest.raises(SourceError) as error:
            open_source(name)
        assert str(error.value) == f"{name}: {tmp_path / link} is a link that leads nowhere; restore what it leads to"
    (tmp_path / "here").symlink_to(tiny)
    assert open_source("here").directory == tmp_path / "here"


def test_a_directory_in_place_of_the_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "cosyvoice.yaml").mkdir()
    with pytest.raises(SourceError, match=r"cosyvoice\.yaml: is not a file; put the configuration there"):
        open_source(tmp_path)
