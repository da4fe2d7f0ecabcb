"""From what a caller names to a configuration: in a model directory, or of a model of the hub."""

import pickle
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from cosyjit.errors import SourceError
from cosyjit.families import CONFIG_FILES
from cosyjit.source import Source, open_source, reopen
from tests.hubs import MODEL, Hub

WAYS = "give a model directory, with one of {} in it, or a ModelScope id such as iic/CosyVoice-300M"


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
    assert message.startswith(f"{source}: ")
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
    assert refused("missing").startswith("missing: does not exist")


@pytest.mark.parametrize("name", ["cosyvoice.yaml", "llm.pt"])
def test_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert "is a file; give a model directory" in refused(tmp_path / name)


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
        (tmp_path / name).touch()
    assert f"{' and '.join(names)} stand side by side; keep the one" in refused(tmp_path)


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
    assert reopen(source.name) == source


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
    (tmp_path / MODEL).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert reopen(source.name) == source
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
    hub.publish(MODEL, {"cosyvoice2.yaml": b"llm:\n"})
    with pytest.raises(SourceError, match=r"cosyvoice.yaml and cosyvoice2.yaml stand side by side; keep the one"):
        open_source(MODEL)
    assert hub.downloads == []
