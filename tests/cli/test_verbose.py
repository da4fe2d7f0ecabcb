"""What `--verbose` and COSYJIT_LOG add to the one line of an error: the causes, and no secret."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import torch

from tests.support.modelscope import MODEL, Hub
from tests.support.processes import CONSOLE_SCRIPT, Ran, Run, finished, spawn
from tests.support.s3 import SECRET, Service

Copy = Callable[[Path], Path]

TRACEBACK: Final = "cosyjit: Traceback (most recent call last):\n"
PASSWORD: Final = "pa55word"  # noqa: S105  (nobody's)


def causes(run: Run, *command: object) -> str:
    """The debug log of a command that is refused; without `-v` there is but the line that ends it."""
    quiet = run(*command)
    assert (quiet.status, quiet.out, quiet.err.count("\n")) == (2, "", 1)
    loud = run(*command, "-v")
    assert (loud.status, loud.out) == (2, "")
    assert loud.err.startswith(TRACEBACK)
    assert loud.err.endswith(quiet.err)
    return loud.err.removesuffix(quiet.err)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("cosyvoice.yaml", b"a: [", "ruamel.yaml.parser.ParserError: "),
        ("cosyvoice.yaml", b"\xff", "UnicodeDecodeError: "),
        ("flow.pt", b"PK\3\4 and no more", "ValueError: "),
        ("flow.pt", None, "FileNotFoundError: "),
    ],
)
def test_the_causes_of_a_file_that_is_refused_are_shown(
    run: Run, tiny: Path, copy_of: Copy, name: str, content: bytes | None, cause: str
) -> None:
    directory = copy_of(tiny)
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    shown = causes(run, "plan", directory, "--component", "flow.encoder")
    assert cause in shown
    assert shown.index(cause) < shown.index("cosyjit.errors.")


@pytest.mark.parametrize("arguments", [("--verbose", "plan"), ("plan", "--verbose"), ("-v", "plan")])
def test_the_option_stands_before_or_behind_the_command(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments, tmp_path / "nowhere")
    assert ran.err.startswith(TRACEBACK)
    assert ran.status == 2


def test_the_option_is_in_the_help_of_each_command(run: Run) -> None:
    for command in ("export", "plan", "status", "verify", "gc", "lineage", "notify", "synth"):
        assert "--verbose" in run(command, "--help").out


def test_the_environment_asks_for_the_same(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("plan", tmp_path / "nowhere", "-v")
    monkeypatch.setenv("COSYJIT_LOG", "debug")
    assert run("plan", tmp_path / "nowhere") == expected
    monkeypatch.setenv("COSYJIT_LOG", "info")
    assert run("plan", tmp_path / "nowhere").err.count("\n") == 1
    monkeypatch.setenv("COSYJIT_LOG", "loud")
    assert run("plan", tmp_path / "nowhere") == Ran(
        2, "", "cosyjit: COSYJIT_LOG=loud: is not a level of the log; give debug or info\n"
    )


def test_text_from_outside_is_escaped_line_by_line(run: Run, tmp_path: Path) -> None:
    shown = causes(run, "plan", tmp_path / "\x1b[31m \u202e")
    assert "\\x1b[31m" in shown
    assert shown.replace("\n", "").isprintable()
    assert {line[:4] for line in shown.splitlines()[1:]} == {"    "}


def test_a_fault_that_ends_the_process_has_its_cause_too(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = 'cd "$0" && rmdir "$0" && exec "$@"'
    ran = finished(spawn("sh", "-c", line, tmp_path / "gone", CONSOLE_SCRIPT, "plan", ".", "-v"))
    assert ran.status == 2
    assert ran.err.startswith(TRACEBACK)
    assert "FileNotFoundError: " in ran.err


def test_a_fault_in_a_store_that_is_listed_has_its_cause_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "store" / "records").mkdir(parents=True)
    (tmp_path / "store" / "records" / f"{'0' * 32}.json").write_text("{")
    ran = run("verify", "--store", tmp_path / "store", "-v")
    assert ran.status == 1
    assert "json.decoder.JSONDecodeError: " in ran.err
    assert "Traceback" not in run("verify", "--store", tmp_path / "store").err


def test_a_target_that_fails_has_the_traceback_of_its_process(run: Run, tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    weights = torch.load(directory / "flow.pt")
    torch.save(
        {name: each * 1e9 if each.is_floating_point() else each for name, each in weights.items()},
        directory / "flow.pt",
    )
    command = ("export", directory, "--component", "flow.encoder", "--precision", "fp16")
    quiet = run(*command)
    assert (quiet.status, quiet.err) == (1, "")
    ran = run(*command, "-v")
    assert ran.status == 1
    assert "Traceback (most recent call last):\n" in ran.err
    assert "in check_cast\n" in ran.err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.use(monkeypatch)
        yield hub


def test_what_a_hub_is_told_is_no_secret_in_the_log(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", f"ms-{SECRET}")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.endpoint.replace("//", f"//someone:{PASSWORD}@"))
    shown = causes(run, "plan", MODEL)  # which the hub does not have
    assert "modelscope_hub.errors.NotExistError" in shown
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", f"ms-{SECRET}\r\nmore")
    broken = causes(run, "plan", MODEL)
    assert "Invalid" in broken
    for text in (shown, broken):
        assert SECRET not in text
        assert PASSWORD not in text


@pytest.mark.slow
def test_what_a_bucket_is_told_is_no_secret_in_the_log(run: Run, s3: Service) -> None:
    s3.url()
    shown = causes(run, "verify", "--store", "s3://no-such-bucket/a")
    assert "botocore.errorfactory.NoSuchBucket: An error occurred (NoSuchBucket)" in shown
    assert SECRET not in shown


def test_what_a_prefect_server_is_told_is_no_secret_in_the_log(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", f"{SECRET}\nmore")
    shown = causes(run, "notify", tiny, "--server", f"http://someone:{PASSWORD}@127.0.0.1:1/api?token={SECRET}")
    assert "requests.exceptions.InvalidHeader: " in shown
    assert SECRET not in shown
    assert PASSWORD not in shown
    monkeypatch.delenv("PREFECT_API_KEY")
    shown = causes(run, "notify", tiny, "--server", f"http://someone:{PASSWORD}@127.0.0.1:1/api?token={SECRET}")
    assert "requests.exceptions.ConnectionError: " in shown
    assert SECRET not in shown
    assert PASSWORD not in shown
