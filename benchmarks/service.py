"""What the flow costs of which nothing has changed, in a warm process against a running server.

    python -m benchmarks.service DIRECTORY [ROUNDS]

The flow over one checkpoint and over up to fifty, tiny ones, in turn with a flow that has one empty task for each
target; medians. Planning and publishing are two more tasks of each checkpoint.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from cosyjit import Store, pipeline
from cosyjit.processes import worker
from cosyjit.synth.synth import synth

SOURCES: Final = (1, 10, 50)
TARGETS: Final = 6

_FLOWS: Final = """
import json, sys, time
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner
from cosyjit import pipeline
from cosyjit.flows.export import export

@task
def nothing():
    pass

@flow(task_runner=ThreadPoolTaskRunner(max_workers=pipeline.workers()))
def empty(count):
    for future in [nothing.submit() for _ in range(count)]:
        future.result()

rounds, counts, targets, *sources = sys.argv[1:]
figures = []
for count in json.loads(counts):
    for number in range(int(rounds) + 1):
        begun = time.perf_counter()
        empty(count * int(targets))
        between = time.perf_counter()
        state = export(sources[:count], return_state=True)
        ended = time.perf_counter()
        assert state.message == f"{count * int(targets)} cached", state.message
        if number:  # the first warms up
            figures.append((count, between - begun, ended - between))
        time.sleep(1 + count / 10)  # the server writes down what it was told of the tasks
print(json.dumps(figures))
"""


@contextmanager
def server(home: Path) -> Iterator[dict[str, str]]:
    """A server on loopback; the environment of its clients."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(f"{url}/health")
            yield environment
        finally:
            process.terminate()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 120
    while not _answers(url):
        if time.monotonic() > deadline:
            raise TimeoutError(url)
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url):  # noqa: S310  (loopback)
            return True
    except OSError:
        return False


def flows(work: Path, sources: list[Path], rounds: int) -> Table:
    """The flow, beside one of as many empty tasks, over more and more checkpoints of which nothing has changed."""
    with server(work / "prefect") as environment:
        ran = subprocess.run(
            [sys.executable, "-c", _FLOWS, str(rounds), json.dumps(SOURCES), str(TARGETS), *map(str, sources)],
            env={**environment, "COSYJIT_STORE": str(work / "store")},
            stdout=subprocess.PIPE,
            check=True,
        )
    figures = json.loads(ran.stdout.splitlines()[-1])
    headings = ("checkpoints", "targets", "empty tasks, s", "export, s", "more, s", "export, ms a target")
    table = Table(*headings, title="the flow, nothing changed", title_justify="left")
    for count in SOURCES:
        rows = [(empty, export) for each, empty, export in figures if each == count]
        empty, export = (statistics.median(row[at] for row in rows) for at in (0, 1))
        more = statistics.median(export - empty for empty, export in rows)
        each = 1000 * export / count / TARGETS
        row = (str(count), str(count * TARGETS), f"{empty:.2f}", f"{export:.2f}", f"{more:.2f}", f"{each:.0f}")
        table.add_row(*row)
    return table


def main(directory: Path, rounds: int) -> None:
    """Make the checkpoints and their artifacts, run the rounds, print the figures."""
    work = directory / "service"
    shutil.rmtree(work, ignore_errors=True)
    first = synth(work / "0", "cosyvoice", "tiny")
    sources = [first, *(Path(shutil.copytree(first, work / str(number))) for number in range(1, max(SOURCES)))]
    for source in sources:
        pipeline.export(source, store=Store(work / "store"))
    worker.stop()
    Console(highlight=False).print(flows(work, sources, rounds))
    shutil.rmtree(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)  # noqa: PLR2004
