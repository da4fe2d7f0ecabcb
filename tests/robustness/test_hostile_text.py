"""What strangers have written, through every command: nothing of it does anything to a terminal, or ends in a trace."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from cosyjit import documents, plan
from cosyjit.errors import ServerError
from cosyjit.prefect_api import Server
from cosyjit.provenance import latest, record
from cosyjit.provenance.fingerprint import key_of
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.publishing.layout import Layout
from cosyjit.publishing.publication import Publication, Published
from cosyjit.store.store import Store
from tests.support import stores
from tests.support.checkpoints import change, rewrite
from tests.support.files import sha256
from tests.support.hostile_text import HOSTILE
from tests.support.http import answering
from tests.support.modelscope import MODEL, Hub
from tests.support.processes import CONSOLE_SCRIPT, Ran, Run, finished, run_here, spawn
from tests.support.stores import put_planned

Copy = Callable[[Path], Path]

ONE: Final = ("--component", "flow.encoder", "--precision", "fp16")
KEY: Final = stores.fingerprint(b"first").key
NAMES: Final = [text.replace("\0", "").replace("\ud800", "\udcfe") for text in HOSTILE]
"""As parts of paths, which Linux lets be any bytes but 0."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command where there is nothing."""
    (tmp_path / "nowhere").mkdir()
    monkeypatch.chdir(tmp_path / "nowhere")
    home.mkdir(exist_ok=True)
    return lambda *arguments: run_here(capsys, *arguments)


def check(ran: Ran, *statuses: int) -> Ran:
    """See that a command came to its end, and has written lines of its own alone."""
    assert ran.status in statuses
    for text in (ran.out, ran.err):
        assert text.replace("\n", "").isprintable()
        assert re.search(r"(?m)^\W*(two|six|--- \| ---)", text) is None  # where lines of strangers would begin
    if ran.status == 2:
        assert ran.out == ""
        assert len(ran.err.splitlines()) == 1
    return ran


def answer(ran: Ran, *statuses: int) -> dict[str, Any]:
    """What a command that came to its end has said in JSON."""
    assert check(ran, *statuses).out.isascii()
    return dict(json.loads(ran.out))


# Names of directories.


@pytest.mark.usefixtures("home")
def test_whatever_directories_are_called_all_commands_come_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(tmp_path, *NAMES)
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    model, kept = place / "model", ("--store", place / "store")

    def cosyjit(*arguments: object) -> Ran:
        return run_here(capsys, *arguments)

    assert "model" in check(cosyjit("synth", "model"), 0).out
    assert "new" in check(cosyjit("plan", model, *ONE, *kept), 0).out
    assert "Published in " in check(cosyjit("export", "model", *ONE, *kept), 0).out
    (target,) = answer(cosyjit("export", model, *ONE, *kept, "--json"), 0)["targets"]
    assert (target["state"], target["path"]) == ("cached", str(model / "flow.encoder.fp16.zip"))
    assert "current" in check(finished(spawn(CONSOLE_SCRIPT, "status", model, *kept)), 0).out
    assert answer(cosyjit("status", model, *kept, "--json"), 0)["publication"]["source"] == str(model)
    check(cosyjit("history", model, *kept), 0)
    assert answer(cosyjit("history", model, *kept, "--json"), 0)["publications"][0]["source"] == str(model)
    assert check(cosyjit("verify", model, *kept), 0).out == "Nothing is wrong\n"
    assert check(cosyjit("verify", place / "store"), 0).out == "Nothing is wrong\n"
    check(cosyjit("rollback", model, *kept), 2)
    check(cosyjit("lineage", model / "flow.encoder.fp16.zip", *kept), 0)
    answer(cosyjit("lineage", model / "flow.encoder.fp16.zip", *kept, "--json"), 0)
    check(cosyjit("lineage", model / "flow.pt", *kept), 2)
    check(cosyjit("gc", *kept), 0)
    check(cosyjit("notify", model, "--server", "http://127.0.0.1:9/api"), 2)
    (model / "flow.encoder.fp16.zip").unlink()
    check(cosyjit("verify", model, *kept), 1)
    answer(cosyjit("verify", model, *kept, "--json"), 1)


def test_a_terminal_that_has_not_all_characters_shows_the_others_as_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    home.mkdir()
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ran = check(finished(spawn(CONSOLE_SCRIPT, "synth", tmp_path / "声音")), 0)
    assert ran.out == f"{tmp_path}/\\u58f0\\u97f3\n"


# What is given on the command line.

COMMANDS: Final[dict[str, Callable[[str], tuple[str, ...]]]] = {
    "source": lambda text: ("export", text),
    "component": lambda text: ("plan", ".", "--component", text),
    "publish": lambda text: ("plan", ".", "--publish", text),
    "key": lambda text: ("export", ".", "--sign", text),
    "trusted": lambda text: ("verify", "--require-signature", text),
    "directory": lambda text: ("status", text),
    "number": lambda text: ("rollback", ".", "--to", text),
    "history": lambda text: ("history", text),
    "diff": lambda text: ("diff", text),
    "numbers": lambda text: ("diff", ".", text),
    "part": lambda text: ("doctor", text),
    "place": lambda text: ("verify", f"./{text}"),
    "age": lambda text: ("gc", "--older-than", text),
    "artifact": lambda text: ("lineage", text),
    "family": lambda text: ("synth", "new", "--family", text),
    "server": lambda text: ("notify", ".", "--server", text),
    "option": lambda text: ("gc", f"--{text}"),
    "command": lambda text: (text,),
    "store": lambda text: ("gc", "--store", f"./{text}"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_is_asked_for_is_quoted_in_one_line(command: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in HOSTILE:  # also those that no argument of a process can be
        with Hub() as hub:
            hub.use(monkeypatch)
            check(run(*COMMANDS[command](text)), *((2,) if command != "store" else (0, 2)))


# Weights and configurations.


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_of_tensors_and_options_are_quoted_in_one_line(text: str, tiny: Path, copy_of: Copy, run: Run) -> None:
    directory = copy_of(tiny)
    change(directory, "flow.pt", lambda state: state.update({f"encoder.{text}": state["encoder.embed.out.0.bias"]}))
    assert "encoder." in check(run("export", directory, *ONE), 2).err
    if not any("\ud800" <= each <= "\udfff" for each in text):  # of which YAML has none
        rewrite(directory, "input_layer: 'linear'", f"input_layer: {json.dumps(text)}")
        assert "input_layer" in check(run("plan", directory, *ONE), 2).err


# Records.


def hostile_record(text: str, digest: str = "0" * 64, **others: Any) -> record.Record:
    """A record that says the same of everything."""
    return stores.record_of(
        digest,
        b"first",
        **{
            "name": text,
            "component": text,
            "source": text,
            "materials": (record.Material(text, text, "1" * 64, text),),
            "started": text,
            "finished": text,
            "figures": {"bytes": 5, text: 1.0},
            "run": {text: text},
            "versions": {text: text},
            **others,
        },
    )


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_record_is_shown_whatever_it_says(text: str, run: Run, store: Store) -> None:
    record.save(store, hostile_record(text))
    check(run("lineage", KEY), 0)
    assert answer(run("lineage", KEY, "--json"), 0)["predicate"]["runDetails"]["metadata"]["finishedOn"] == text
    check(run("verify"), 1)
    check(run("gc"), 0)


ODD: Final[dict[str, Callable[[dict[str, Any]], object]]] = {
    "config": lambda parts: parts.update(config=["class", "options"]),
    "class": lambda parts: parts["config"].update({"class": None}),
    "options": lambda parts: parts["config"].update(options="none"),
    "overrides": lambda parts: parts["config"].update(overrides=[1]),
    "recipe": lambda parts: parts.update(recipe=7),
    "precision": lambda parts: parts.update(precision={}),
    "torch": lambda parts: parts.update(torch=None),
    "encoders": lambda parts: parts.update(encoders="1"),
    "depth": lambda parts: parts["config"]["options"].update(deep=nested(300)),
    "more depth": lambda parts: parts["config"]["options"].update(deep=nested(900)),
}


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("what", ODD)
def test_a_record_of_an_odd_form_is_damaged_whatever_leads_to_it(
    what: str, tiny: Path, run: Run, store: Store, tmp_path: Path
) -> None:
    (planned,) = plan(tiny, ["flow.encoder"], ["fp16"], store=store)
    ((name, artifact),) = put_planned(store, [planned]).items()
    assert store.local is not None
    path = store.local / record.name_of(artifact.fingerprint)
    document = json.loads(path.read_text())
    path.unlink()
    document.pop("checksum")
    parameters = document["predicate"]["buildDefinition"]["internalParameters"]
    ODD[what](parameters["parts"])
    with deep():
        key = parameters["fingerprint"] = key_of(parameters["parts"])
        (store.local / record.name_of(key)).write_bytes(documents.with_checksum(document))
    target = planned.target
    latest.write(store, target.source.name, f"{target.name} {target.device}", key)
    directory = tmp_path / "shown"
    directory.mkdir()
    PublishedDirectory(directory, store).publish({name: artifact._replace(fingerprint=key)}, str(tiny))

    assert "damaged" in check(run("lineage", key), 2).err
    assert "damaged" in check(run("verify"), 1).out
    assert "record missing" in check(run("status", directory), 1).out
    assert "its last record is missing" in check(run("plan", tiny, *ONE), 0).out


@contextmanager
def deep() -> Iterator[None]:
    """Lets Python write what it cannot read again."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 10**400, -(10**30), 1e300])
def test_a_record_of_numbers_beyond_all_sizes_is_damaged(number: float, run: Run, store: Store) -> None:
    record.save(store, stores.record_of("0" * 64, b"first", figures={"bytes": 5, "seconds": number}))
    assert "damaged" in check(run("lineage", KEY), 2).err


# Directories of strangers.


def forge(directory: Path, text: str, store: Store, number: int = 1) -> Publication:
    """What a stranger shows in a directory, as his own cosyjit would: with a text in place of all that may be one."""
    content = b"first"
    digest = sha256(content)
    artifacts = {"llm.llm.fp32.zip": Published(digest, len(content), KEY)}
    forged = Publication(number, text, text, artifacts, "4" * 64)
    with Layout(directory).writing():
        Layout(directory).file(digest).parent.mkdir(exist_ok=True)
        Layout(directory).file(digest).write_bytes(content)
        Layout(directory).switch(forged.identity, forged.content, {"llm.llm.fp32.zip": digest})
    assert publication.head(store, directory) is None
    return forged


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_manifest_is_shown_whatever_it_says(text: str, run: Run, store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "strange"
    directory.mkdir()
    forge(directory, text, store)
    record.save(store, hostile_record(text, source="elsewhere"))
    found = answer(run("status", directory, "--json"), 1)
    assert found["publication"]["source"] == found["publication"]["published"] == text
    for command in (("status",), ("status", "--check-source")):
        assert "unknown" in check(run(*command, directory), 1).out
    for command in (("history",), ("verify",), ("verify", "--json"), ("history", "--json")):
        check(run(*command, directory), 0)
    check(run("rollback", directory), 2)
    check(run("gc"), 0)


def test_files_of_strangers_in_a_store_are_shown_whatever_they_are_called(run: Run, store: Store) -> None:
    assert store.local is not None
    for folder in (
        "objects/ab",
        "records",
        "publications",
        "heads",
        "latest",
        "damaged",
        "tmp",
        "locks",
        "digests",
        "x",
    ):
        for name in NAMES:
            path = store.local / folder / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"{}")
    for name in NAMES:
        (store.local / name).mkdir(exist_ok=True, parents=True)
        (store.local / name / name.replace("/", "_")).write_bytes(b"")
    check(run("verify"), 1)
    answer(run("verify", "--json"), 1)
    check(run("gc", "--older-than", "0s"), 0, 2)


# What servers answer.


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_the_hub_answers_is_quoted_in_one_line(
    text: str, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as hub:
        hub.use(monkeypatch)
        commit = hub.publish(MODEL, {path.name: path for path in tiny.iterdir()})
        hub.tag(MODEL, text, commit)
        assert "has no revision v9" in check(run("plan", f"{MODEL}@v9", *ONE), 2).err
        hub.altered = lambda entry: entry.update(dict.fromkeys(("Sha256", "Type", "Revision"), text))
        check(run("plan", MODEL, *ONE), 2)
        hub.altered = lambda entry: entry.update(Size=text)
        check(run("plan", MODEL, *ONE), 2)
        hub.fail("listing", content=json.dumps({"Code": text, "Data": text, "Message": text}).encode(), times=None)
        check(run("plan", MODEL, *ONE), 2)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_prefects_server_answers_is_quoted_in_one_line(text: str, tiny: Path, run: Run) -> None:
    for version in (text, f"3.1 {text}", f"3.1{text * 1000}"):
        content = json.dumps(version).encode()
        with answering(lambda _, content=content: (200, content)) as (url, _):  # type: ignore[misc]
            assert len(check(run("notify", tiny, "--server", url), 2).err) < 1000


def test_a_source_that_is_not_utf_8_is_told_to_no_server() -> None:
    with answering(lambda _: (200, b'"3.8.8"')) as (url, asked), pytest.raises(ServerError) as error:
        Server(url).notify(os.fsdecode(b"/models/\xff"), "CosyVoice")
    assert (
        str(error.value)
        == r"/models/\udcff: is not UTF-8, so a server cannot be told of it; give the directory another name"
    )
    assert asked == []
