"""What earlier versions wrote is read by this one; what a later one has written is said to be, and left alone."""

import json
import shutil
from pathlib import Path
from typing import Final

import pytest

from cosyjit import Store, documents
from cosyjit.errors import LaterSchemaError
from cosyjit.operations.gc import gc
from cosyjit.operations.verify import verify_directory, verify_store
from cosyjit.planning.plan import plan
from cosyjit.provenance import record
from cosyjit.provenance.lineage import lineage
from cosyjit.publishing.directory import PublishedDirectory
from tests.support.files import sha256
from tests.support.processes import Run, shown, snapshot
from tests.support.stores import put_planned, record_path

WRITTEN: Final = Path(__file__).parent / "written"
VERSIONS: Final = sorted(path.name for path in WRITTEN.iterdir())
FLOW, TEXT = "flow.encoder.fp16.zip", "llm.text_encoder.fp16.zip"


@pytest.fixture(params=VERSIONS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version has written: see `tests.robustness.upgrades`."""
    return Path(shutil.copytree(WRITTEN / request.param, tmp_path / "written", symlinks=True))


@pytest.fixture
def store(written: Path) -> Store:
    return Store(written / "store")


def test_every_document_is_read_and_nothing_is_wrong(written: Path, store: Store) -> None:
    before = snapshot(written / "published"), store.entries("publications")
    assert (verify_store(store), verify_directory(written / "published", store=store)) == ([], [])
    records = [record.load(store, documents.stem(entry.name)) for entry in store.entries("records")]
    assert sorted(each.name for each in records if each) == [FLOW, FLOW, TEXT]
    assert gc(store, keep=3, older_than=0) == []
    assert (snapshot(written / "published"), store.entries("publications")) == before


def test_its_history_is_there_and_can_be_gone_back_to(written: Path, store: Store) -> None:
    directory = written / "published"
    history = PublishedDirectory(directory, store).history()
    assert [(each.number, sorted(each.artifacts)) for each in history] == [
        (3, [FLOW, TEXT]),
        (2, [FLOW, TEXT]),
        (1, [TEXT]),
    ]
    before = shown(directory)
    PublishedDirectory(directory, store).rollback(2)
    assert {name: sha256(content) for name, content in shown(directory).items()} == {
        name: each.sha256 for name, each in history[1].artifacts.items()
    }
    PublishedDirectory(directory, store).rollback(3)
    assert shown(directory) == before


def test_signatures_hold(written: Path) -> None:
    required = Store(written / "store", require=written / "signer.pub.pem")
    problems = [each.problem for each in verify_directory(written / "published", store=required)]
    assert len(problems) == 1
    assert f"is not signed, and {written / 'signer.pub.pem'} requires a signature" in problems[0]
    traced = lineage(str(written / "published" / FLOW), store=required)
    assert traced.record is not None
    assert required.trusted is not None
    assert traced.record.signed_by == required.trusted.keyids


def test_an_artifact_leads_to_what_it_was_made_from(written: Path, store: Store) -> None:
    for name in (FLOW, TEXT):
        found = lineage(str(written / "published" / name), store=store)
        assert found.same_bytes
        assert found.record is not None
        assert found.record.materials[0].name == "cosyvoice.yaml"


def test_a_later_versions_record_is_said_to_be_and_left_alone(tiny: Path, home: Path, tmp_path: Path, run: Run) -> None:
    store = Store(home / ".cache" / "cosyjit")
    planned = plan(tiny, ["flow.encoder"], ["fp16"], store=store)
    made = put_planned(store, planned)
    one = [tiny, "--component", "flow.encoder", "--precision", "fp16"]
    assert run("export", *one, "--publish", tmp_path / "out").status == 0
    path = record_path(store, made[FLOW].fingerprint)
    later = {"predicate": {"cosyjit_schema": documents.SCHEMA + 1, "new": True}, "checksum": "of another kind"}
    path.write_bytes(json.dumps(later).encode())
    before = snapshot(Path(store.root)), snapshot(tmp_path / "out")
    message = (
        f"{path}: is of schema {documents.SCHEMA + 1}, and this cosyjit reads up to {documents.SCHEMA}; upgrade cosyjit"
    )
    for arguments in (
        ["plan", *one],
        ["export", *one, "--publish", tmp_path / "out"],
        ["gc", "--delete", "--older-than", "0s"],
        ["lineage", made[FLOW].fingerprint],
    ):
        ran = run(*arguments)
        assert (ran.status, ran.out, ran.err) == (2, "", f"cosyjit: {message}\n")
    ran = run("verify")
    assert (ran.status, ran.out.split(": ", 1)[1]) == (1, f"{message}\n")
    with pytest.raises(LaterSchemaError):
        record.load(store, made[FLOW].fingerprint)
    assert (snapshot(Path(store.root)), snapshot(tmp_path / "out")) == before
