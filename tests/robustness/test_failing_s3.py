"""An S3 that fails amid a command: one line, nothing wrong is stored or shown, and the next try succeeds."""

import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import pytest
from fsspec.config import conf

from cosyjit import history
from cosyjit.building.artifact import Built
from cosyjit.operations.verify import verify_directory, verify_store
from cosyjit.store import leases
from cosyjit.store.store import Store
from tests.robustness.scenarios import played
from tests.support.checkpoints import retrain
from tests.support.processes import Ran, run_here, shown
from tests.support.s3 import Answer, Cut, Fault, Gone, Service, Short

FAULTS: Final[dict[str, Fault]] = {
    "broken": Answer(500, "InternalError"),
    "busy": Answer(503, "SlowDown"),
    "no answer": Cut(),
    "half an answer": Cut(30),
    "a shorter answer": Short(7),
    "a shorter answer and a checksum": Short(7, summed=True),
    "gone": Gone(),
}

_AHEAD: Final = 2 * 86_400
"""In s, how far a collector's clock is ahead, so that what was just written counts as old."""


class Request(NamedTuple):
    """What a request is for, without what differs from one attempt to the next."""

    method: str
    kind: str


def request(method: str, path: str) -> Request:
    place, _, query = path.partition("?")
    name = re.sub(r"\b[0-9a-f]{2}/[0-9a-f]{8,}|[0-9a-f]{8,}", "#", place.partition("/a/prefix/")[2])
    words = [word for word in ("list-type", "uploads", "uploadId", "partNumber") if word in query]
    return Request(method, " ".join([name, *words]).strip())


class Failing:
    """A watch that lets a fault happen to the first request of a kind and, if it lasts, to all after that.

    Attributes:
        seen: the requests since it was set.
        struck: how many of them it happened to.
    """

    def __init__(self) -> None:
        self.set(None)

    def set(self, at: Request | None, fault: Fault | None = None, *, lasting: bool = False) -> None:
        self.seen: list[Request] = []
        self.struck = 0
        self._at, self._fault, self._lasting = at, fault, lasting

    def __call__(self, method: str, path: str) -> Fault | None:
        asked = request(method, path)
        self.seen.append(asked)
        if asked != self._at if not self.struck else not self._lasting:
            return None
        self.struck += 1
        return self._fault


class State(NamedTuple):
    """What a bucket and a directory hold."""

    objects: dict[str, bytes]
    directory: Path


class Bench:
    """A bucket behind a proxy that may fail, a directory to publish into, and a source.

    Attributes:
        failing: decides what the proxy does.
        url: of the store.
        directory: shows what is published.
        source: a model directory, to be changed.
    """

    def __init__(
        self, s3: Service, url: str, folder: Path, source: Path, failing: Failing, run: Callable[..., Ran]
    ) -> None:
        self.failing, self.url, self.source, self.run = failing, url, source, run
        self.directory = folder / "published"
        self.directory.mkdir()
        self._client, self._bucket, self._folder = s3.client, url.split("/")[2], folder

    def export(self) -> Ran:
        return self.run("export", self.source, *self.flow, "--publish", self.directory, *self.kept)

    @property
    def flow(self) -> tuple[str, str]:
        return "--component", "flow.encoder"

    @property
    def kept(self) -> tuple[str, str]:
        return "--store", self.url

    def state(self) -> State:
        kept = self._folder / uuid.uuid4().hex
        shutil.copytree(self.directory, kept, symlinks=True)
        return State({key: self._content(key) for key in self._keys()}, kept)

    def restore(self, state: State) -> None:
        now = {key: self._content(key) for key in self._keys()}
        for key in now.keys() - state.objects.keys():
            self._client.delete_object(Bucket=self._bucket, Key=key)
        for key, content in state.objects.items():
            if now.get(key) != content:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=content)
        shutil.rmtree(self.directory)
        shutil.copytree(state.directory, self.directory, symlinks=True)

    def _keys(self) -> list[str]:
        return [each["Key"] for each in self._client.list_objects_v2(Bucket=self._bucket).get("Contents", [])]

    def _content(self, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read())

    def damaged(self) -> list[str]:
        """What was set aside; no command of these tests has a reason to."""
        return [key for key in self._keys() if "/damaged/" in key]


class Scenario(NamedTuple):
    """What was done before, and a command.

    Attributes:
        before: how many exports of a source that was changed meanwhile.
        command: its words.
        status: its exit status if S3 answers. What `status` looks at was retrained.
    """

    before: int
    command: Callable[[Bench], Sequence[object]]
    status: int = 0


def _export(bench: Bench) -> Sequence[object]:
    return "export", bench.source, *bench.flow, "--publish", bench.directory, *bench.kept


SCENARIOS: Final[dict[str, Scenario]] = {
    "export first": Scenario(0, _export),
    "export what has changed": Scenario(1, _export),
    "plan": Scenario(1, lambda bench: ("plan", *_export(bench)[1:])),
    "rollback": Scenario(2, lambda bench: ("rollback", bench.directory, "--to", "1", *bench.kept)),
    "status": Scenario(2, lambda bench: ("status", bench.directory, *bench.kept), 1),
    "history": Scenario(2, lambda bench: ("history", bench.directory, *bench.kept)),
    "verify": Scenario(2, lambda bench: ("verify", bench.url)),
    "gc": Scenario(3, lambda bench: ("gc", "--delete", "--keep", "1", *bench.kept)),
}


@pytest.fixture
def bench(
    s3: Service,
    tiny: Path,
    copy_of: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """Builds are played back; the clients try twice, without long waits between, and the dead are missed soon."""
    monkeypatch.setattr("cosyjit.store.leases.held", partial(leases.held, period=2))
    monkeypatch.setattr("cosyjit.processes.worker.run", played)
    monkeypatch.setattr("cosyjit.processes.worker.prepare", lambda: None)
    monkeypatch.setattr("cosyjit.operations.gc.time", SimpleNamespace(time=lambda: time.time() + _AHEAD))
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"retries": {"mode": "legacy", "total_max_attempts": 1}}})
    failing = Failing()

    def run(*words: object) -> Ran:
        # Another machine each time, so that nothing is known that was not asked for.
        monkeypatch.setenv("HOME", str(tmp_path / "homes" / uuid.uuid4().hex))
        return run_here(capsys, *words)

    url = s3.url()
    with s3.proxied(failing):
        yield Bench(s3, url, tmp_path, copy_of(tiny), failing, run)


def prepare(bench: Bench, scenario: Scenario) -> list[Any]:
    """Do what comes before a scenario; gives what the directory showed after each step."""
    seen = [shown(bench.directory)]
    for _ in range(scenario.before):
        assert bench.export().status == 0
        seen.append(shown(bench.directory))
        retrain(bench.source, "flow.pt", "encoder.")
    return seen


def check_attempts(bench: Bench, name: str, faults: Sequence[str]) -> None:
    """Run a scenario's command once for each kind of its requests, which fail from there on, and then once more.

    Each kind has the next of the faults.
    """
    seen = prepare(bench, SCENARIOS[name])
    before, command, status = bench.state(), SCENARIOS[name].command(bench), SCENARIOS[name].status
    bench.failing.set(None)
    whole = bench.run(*command)
    assert whole.status == status, whole
    asked = list(dict.fromkeys(bench.failing.seen))
    assert asked
    if name.startswith("export") or name == "rollback":
        seen.append(shown(bench.directory))
    after = shown(bench.directory)
    for kind, fault in zip(asked, cycle(faults), strict=False):
        case = kind, fault
        bench.restore(before)
        bench.failing.set(kind, FAULTS[fault], lasting=True)
        ran = bench.run(*command)
        assert bench.failing.struck, case
        bench.failing.set(None)
        check_outcome(bench, ran, case)
        assert shown(bench.directory) in seen, case
        again = bench.run(*command)
        assert again.status == status, (case, again)
        assert shown(bench.directory) == after, case
        assert bench.damaged() == [], case
        assert verify_store(Store(bench.url)) == [], case


def check_outcome(bench: Bench, ran: Ran, case: tuple[Request, str]) -> None:
    assert "Traceback" not in ran.err, (case, ran)
    assert ran.status in {0, 1, 2}, (case, ran)
    if ran.status == 2:
        assert ran.err.startswith("cosyjit: "), (case, ran)
        assert ran.err.count("\n") == 1, (case, ran)
        assert bench.url in ran.err, (case, ran)
    assert bench.damaged() == [], (case, ran)
    store = Store(bench.url)
    if not store.entries():  # the command has failed before it wrote anything
        assert ran.status != 0, (case, ran)
        assert list(bench.directory.glob("*.json")) == [], (case, ran)
        return
    assert verify_store(store) == [], (case, ran)
    if (bench.directory / "cosyjit.json").exists():
        assert verify_directory(bench.directory, store=store) == [], (case, ran)


@pytest.mark.stress
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_command_that_s3_fails_is_one_line_and_succeeds_the_next_time(name: str, bench: Bench) -> None:
    first = list(SCENARIOS).index(name) % len(FAULTS)
    faults = list(FAULTS)
    check_attempts(bench, name, [*faults[first:], *faults[:first]])


@pytest.mark.parametrize(("name", "fault"), [("plan", "gone"), ("history", "a shorter answer")])
def test_some_commands_that_s3_fails_are_one_line_and_succeed_the_next_time(
    name: str, fault: str, bench: Bench
) -> None:
    check_attempts(bench, name, [fault])


def test_a_shorter_answer_is_not_taken_for_the_end_of_what_was_published(bench: Bench) -> None:
    prepare(bench, SCENARIOS["rollback"])
    shutil.rmtree(bench.directory)
    bench.directory.mkdir()
    bench.failing.set(Request("GET", "publications/#.json"), Short(7), lasting=True)
    ran = bench.export()
    assert (ran.status, bench.failing.struck > 0) == (2, True)
    assert ran.err.startswith(f"cosyjit: {bench.url}: cannot be reached now (an answer has ")
    bench.failing.set(None)
    assert bench.export().status == 0
    assert [each.number for each in history(bench.directory, store=Store(bench.url))] == [3, 2, 1]


@pytest.mark.parametrize("fault", ["half an answer", "a shorter answer", "a shorter answer and a checksum"])
def test_an_object_that_arrives_in_part_is_not_set_aside(fault: str, bench: Bench) -> None:
    prepare(bench, SCENARIOS["rollback"])
    bench.failing.set(Request("GET", "objects/#"), FAULTS[fault], lasting=True)
    shutil.rmtree(bench.directory)
    bench.directory.mkdir()
    ran = bench.run("rollback", bench.directory, "--to", "1", *bench.kept)
    assert (ran.status, bench.failing.struck > 0) == (2, True)
    assert ran.err.startswith(f"cosyjit: {bench.url}: cannot be reached now (an answer ")
    bench.failing.set(None)
    assert bench.damaged() == []
    assert bench.run("rollback", bench.directory, "--to", "1", *bench.kept).status == 0


def large(function: Callable[..., object], *arguments: Any, **options: object) -> object:
    """What builds give that are played back, of three parts' size."""
    result = played(function, *arguments, **options)
    if isinstance(result, Built):
        result.path.write_bytes(result.path.read_bytes() * (1 << 20))
    return result


def test_a_server_that_goes_away_amid_an_upload_has_it_collected_later(
    bench: Bench, s3: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosyjit.processes.worker.run", large)
    bench.failing.set(Request("PUT", "objects/# uploadId partNumber"), Gone(), lasting=True)
    ran = bench.export()
    assert (ran.status, bench.failing.struck > 0) == (1, True)
    assert "Traceback" not in ran.err
    bench.failing.set(None)
    assert s3.uploads(bench.url)
    assert (Store(bench.url).entries("objects"), verify_store(Store(bench.url))) == ([], [])
    assert shown(bench.directory) == {}
    assert bench.export().status == 0
    assert verify_store(Store(bench.url)) == verify_directory(bench.directory, store=Store(bench.url)) == []
    assert bench.run("gc", "--delete", *bench.kept).status == 0
    assert s3.uploads(bench.url) == []
