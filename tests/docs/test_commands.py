"""The blocks `sh` and `python` of each page are run as they are written, in their order, in a directory of its own.

There, `CosyVoice-300M` and `CosyVoice2-0.5B` are tiny models, and `iic/CosyVoice-300M` is one of a ModelScope on
loopback. The store has what exports of these would build, but for what is signed.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from cosyjit.store.store import Store
from tests.support.builds import Builds
from tests.support.modelscope import MODEL, Hub
from tests.support.pages import PAGES, Block, blocks_of, name_of
from tests.support.processes import CONSOLE_SCRIPT, ROOT

ELSEWHERE: Final = {ROOT / "docs" / "prefect.md", ROOT / "README.zh-CN.md"}
"""Pages whose blocks are run by tests/flows/test_installed.py and tests/flows/service.py, or are those of README.md."""

FOREIGN: Final = {"cosyvoice", "vllm", "transformers"}
"""What blocks of Python that are not run import: what is not here, or takes a model that is not."""

NOT_RUN: Final = {
    "CONTRIBUTING.md": [
        "make .venv/.installed",  # by .ci/run
        ".venv/bin/python -m pytest tests/store/test_store.py",
        ".venv/bin/python -m pytest tests/store/test_store.py -k damaged",
        ".venv/bin/python -m pytest -n 2 tests/encoders",
        ".venv/bin/python -m tests.robustness.upgrades tests/robustness/written/<version>",
    ],
    "README.md": [
        "make demo",  # it installs, as the others here do
        "make test",
        "pip install -c constraints.txt .",
        "pip install -c constraints.txt '.[s3,dask,signing,onnx,hf,hub,otel]'",
    ],
    "README.zh-CN.md": [
        "make demo",
        "make test",
        "pip install -c constraints.txt .",
        "pip install -c constraints.txt '.[s3,dask,signing,onnx,hf,hub,otel]'",
    ],
    "docs/command-line.md": ["cosyjit completion bash", "cosyjit completion zsh", "cosyjit completion fish"],
    "docs/configuration.md": [
        "cosyjit export CosyVoice2-0.5B --store s3://models/cosyjit",  # tests/cli have it with a store on loopback
        "cosyjit export CosyVoice2-0.5B --store s3://models/cosyjit --no-build",
    ],
    "docs/containers.md": ["docker build", "docker run", "prefect work-pool get-default-base-job-template"],
    "docs/hf.md": ["vllm serve hf_merged"],
    "docs/hubs.md": [  # tests/cli has pushes to hubs on loopback
        "cosyjit push CosyVoice-300M --to owner/name",
        "cosyjit push CosyVoice-300M --to hf:owner/name@nightly",
        "hf download owner/name",
        "cosyjit verify voice",
        "cosyjit lineage voice/llm.llm.fp16.zip",
    ],
    "docs/looking.md": ["cosyjit doctor", "cosyjit doctor --json"],  # they ask the real hubs
    "docs/metrics.md": [  # tests/test_telemetry.py has exporters of its own
        "pip install 'cosyjit[otel]'",
        "cosyjit synth CosyVoice-tiny",
        "opentelemetry-instrument --traces_exporter console",
        "export OTEL_SERVICE_NAME=cosyjit",
        "opentelemetry-instrument cosyjit export CosyVoice-tiny",
    ],
    "docs/prefect.md": [
        "cosyjit serve /models/CosyVoice-300M",  # tests/flows/test_installed.py serves another one
        "cosyjit notify /models/CosyVoice-300M",
        "curl -X POST $PREFECT_API_URL/events",
    ],
    "docs/tensorrt.md": [
        "trtexec --onnx=flow.decoder.estimator.fp32.onnx",
        "trtexec --onnx=flow.decoder.estimator.fp32.dynamic",
    ],
    "docs/vllm.md": ["pip install --no-deps ."],  # tests/vllm/test_plugin.py
}
"""The beginnings of the commands in blocks `console`: those that no test runs as they are. Docker, TensorRT, vLLM and
the hubs are not here; installations take minutes."""


class Transcript(NamedTuple):
    """A block `console` with a command of ours and what it prints."""

    command: str
    output: str


def commands_of(block: Block) -> list[str]:
    """The commands of a block `console`, without comments."""
    return [re.sub(r"\s+# .*", "", line[2:]) for line in block.content.splitlines() if line.startswith("$ ")]


def transcript_of(block: Block) -> Transcript | None:
    """A block as a transcript; None if it is not one."""
    first, _, output = block.content.partition("\n")
    if block.language != "console" or not first.startswith("$ cosyjit ") or not output or "\n$ " in f"\n{output}":
        return None
    return Transcript(first.removeprefix("$ "), output)


def runs(block: Block) -> bool:
    """Whether a block is run."""
    imported = set(re.findall(r"^(?:from|import) (\w+)", block.content, flags=re.MULTILINE))
    return block.language == "sh" or (block.language == "python" and not imported & FOREIGN)


def script(page: Path) -> str:
    """What a shell runs for a page."""
    parts = [
        block.content if block.language == "sh" else f"python - <<'PYTHON'\n{block.content}PYTHON\n"
        for block in blocks_of(page)
        if runs(block)
    ]
    return "\n".join(parts)


RUN: Final = [page for page in PAGES if page not in ELSEWHERE and script(page)]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, tiny: Path, tiny2: Path) -> Path:
    """The directory of a store with what the pages export, built once."""
    builds = Builds(tmp_path_factory.mktemp("builds"))
    directory = tmp_path_factory.mktemp("stocked") / "store"
    store = Store(directory)
    builds.stock(store, tiny)
    builds.stock(store, tiny, ["llm.llm"], ["int8"])
    builds.stock(store, tiny, ["flow.encoder"], ["bf16"])
    builds.stock(store, tiny2)
    builds.stock(store, tiny2, ["llm.vllm", "llm.hf"], ["fp16"])
    builds.stock(store, tiny2, ["llm.hf"], ["bf16"])
    builds.stock(store, tiny2, ["flow.decoder.estimator"], ["fp32", "autocast_fp16"])
    return directory


@pytest.fixture(scope="module")
def hub(tiny: Path) -> Iterator[Hub]:
    """A ModelScope with the tiny model."""
    with Hub() as hub:
        for model in (MODEL, f"{MODEL}-SFT"):
            hub.publish(model, {str(path.relative_to(tiny)): path for path in tiny.rglob("*") if path.is_file()})
        yield hub


@pytest.fixture
def place(
    tmp_path: Path, home: Path, stocked: Path, hub: Hub, tiny: Path, tiny2: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The directory of a page, and the environment of its commands."""
    hub.use(monkeypatch)
    monkeypatch.setenv("PATH", f"{CONSOLE_SCRIPT.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "80")
    for name in [name for name in os.environ if name.startswith("COSYJIT_")]:
        monkeypatch.delenv(name)
    shutil.copytree(tiny, tmp_path / "CosyVoice-300M")
    shutil.copytree(tiny2, tmp_path / "CosyVoice2-0.5B")
    shutil.copytree(stocked, home / ".cache" / "cosyjit")
    return tmp_path


def ran(place: Path, text: str) -> str:
    """What a shell prints that runs a text; each command of it has to succeed."""
    command = ["/bin/bash", "-euxo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def shape(output: str) -> list[str]:
    """The words of an output in their order; numbers are 0, and paths are /, since another machine has others."""
    return re.sub(r"\d+(?:\.\d+)?(?:e-\d+)?[kMG]?", "0", re.sub(r"/\S*", "/", output)).split()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_commands_of_a_page_succeed(page: Path, place: Path) -> None:
    ran(place, script(page))


@pytest.mark.slow
def test_the_transcripts_are_what_is_printed(place: Path, home: Path) -> None:
    shutil.rmtree(home)  # what a page shows was built
    transcripts = [told for told in map(transcript_of, blocks_of(ROOT / "README.md")) if told is not None]
    assert transcripts
    for told in transcripts:
        assert shape(ran(place, told.command)) == shape(told.output), told.command


def test_what_is_not_run_is_known() -> None:
    found = {
        name_of(page): [
            command
            for block in blocks_of(page)
            if block.language == "console" and transcript_of(block) is None
            for command in commands_of(block)
        ]
        for page in PAGES
    }
    found = {page: commands for page, commands in found.items() if commands}
    assert found.keys() == NOT_RUN.keys()
    for page, commands in found.items():
        pairs = list(zip(commands, NOT_RUN[page], strict=True))
        assert [command for command, known in pairs if not command.startswith(known)] == []
