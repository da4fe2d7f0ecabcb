"""From what a caller names to a model directory's configuration."""

from itertools import combinations
from pathlib import Path

import pytest

from cosyjit.errors import SourceError
from cosyjit.families import CONFIG_FILES
from cosyjit.source import Source, open_source


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
    message = refused(tmp_path / "missing")
    assert "does not exist; give a model directory" in message
    assert all(name in message for name in CONFIG_FILES)


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
