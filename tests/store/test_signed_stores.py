"""Stores whose records have to be signed: what has no signature is neither used nor published, by any command."""

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from cosyjit import Outcome, Planned, Published, Store, Target, documents, export, plan
from cosyjit.errors import LaterSchemaError, RecordError, SignatureError
from cosyjit.provenance import record
from cosyjit.provenance.fingerprint import canonical
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.signing import Signer
from tests.support.checkpoints import change
from tests.support.files import flip
from tests.support.keys import Pair, pair
from tests.support.processes import Run, shown, snapshot
from tests.support.stores import object_path, put_planned, record_path

ONE: Final = ["--component", "flow.encoder", "--precision", "fp16"]
NAME: Final = "flow.encoder.fp16.zip"


@pytest.fixture
def keys(tmp_path: Path) -> Pair:
    return pair(tmp_path)


@pytest.fixture
def planned(tiny2: Path, store: Store) -> tuple[Planned, ...]:
    return plan(tiny2, ["flow.encoder"], ["fp16"], store=store)


@pytest.fixture
def signed(planned: tuple[Planned, ...], store: Store, keys: Pair) -> dict[str, Published]:
    """What a store has that keeps and signs what is planned."""
    return put_planned(Store(store.root, sign=keys.private), planned)


def envelope_of(store: Store, key: str) -> dict[str, Any]:
    return dict(json.loads(record_path(store, key).read_bytes()))


def test_what_is_built_with_a_key_is_signed_and_then_all_commands_take_it(
    tiny2: Path, keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    required = ["--require-signature", keys.public]
    out = tmp_path / "out"
    first = run("export", tiny2, *ONE, "--publish", out, "--sign", keys.private, *required)
    assert first.status == 0
    again = run("export", tiny2, *ONE, "--publish", out, *required, "--json")
    assert [each["state"] for each in json.loads(again.out)["targets"]] == ["cached"]
    artifact = out / NAME
    for arguments in (
        ["plan", tiny2, *ONE, *required],
        ["verify", out, *required],
        ["verify", *required],
        ["lineage", artifact, *required],
    ):
        assert (run(*arguments).status, run(*arguments).err) == (0, "")

    (entry,) = store.entries("records")
    document = envelope_of(store, documents.stem(entry.name))
    assert {name: document[name] for name in document if name not in {"payload", "checksum"}} == {
        "payloadType": "application/vnd.in-toto+json",
        "signatures": document["signatures"],
    }
    # What --json prints is what was signed.
    printed = run("lineage", artifact, "--json").out
    assert json.loads(printed) == json.loads(base64.b64decode(document["payload"]))
    assert Signer(keys.private).keyid in run("lineage", artifact).out


@pytest.mark.usefixtures("signed")
def test_it_is_found_by_its_digest_too(planned: tuple[Planned, ...], store: Store, run: Run) -> None:
    made = record.load(store, planned[0].target.fingerprint.key)
    assert made is not None
    assert run("lineage", made.sha256).status == 0


def test_an_unsigned_record_is_not_used_and_nothing_changes(
    tiny2: Path, planned: tuple[Planned, ...], keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    put_planned(store, planned)
    assert run("export", tiny2, *ONE, "--publish", tmp_path / "out").status == 0
    before = snapshot(tmp_path / "out"), snapshot(Path(store.root))
    name = f"{store.root}/{record.name_of(planned[0].target.fingerprint.key)}"
    required = ["--require-signature", keys.public]
    for arguments in (
        ["plan", tiny2, *ONE, *required],
        ["export", tiny2, *ONE, "--publish", tmp_path / "out", *required],
        ["lineage", planned[0].target.fingerprint.key, *required],
    ):
        ran = run(*arguments)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err == (
            f"cosyjit: {name}: is not signed, and {keys.public} requires a signature; "
            "export where that key is, with --sign\n"
        )
    for arguments in (["verify", tmp_path / "out", *required], ["verify", store.root, *required]):
        ran = run(*arguments)
        assert ran.status == 1
        assert f"is not signed, and {keys.public} requires a signature" in ran.out
    assert (snapshot(tmp_path / "out"), snapshot(Path(store.root))) == before


def test_another_keys_record_is_not_used(
    tiny2: Path, planned: tuple[Planned, ...], store: Store, tmp_path: Path, run: Run
) -> None:
    theirs, ours = pair(tmp_path, "theirs"), pair(tmp_path, "ours")
    put_planned(Store(store.root, sign=theirs.private), planned)
    ran = run("export", tiny2, *ONE, "--publish", tmp_path / "out", "--require-signature", ours.public)
    assert ran.status == 2
    assert f"is signed by {Signer(theirs.private).keyid[:16]} alone, and {ours.public} requires" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_with_the_key_at_hand_it_is_built_again_and_signed(
    tiny2: Path, planned: tuple[Planned, ...], keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    put_planned(store, planned)
    both = ["--sign", keys.private, "--require-signature", keys.public]
    ran = run("export", tiny2, *ONE, "--publish", tmp_path / "out", *both, "--json")
    (target,) = json.loads(ran.out)["targets"]
    assert (target["state"], target["reasons"]) == ("built", ["record has no signature that is required"])
    assert run("verify", tmp_path / "out", "--require-signature", keys.public).status == 0


def test_what_would_be_built_and_not_signed_is_not_begun(
    tiny2: Path, keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    ran = run("export", tiny2, *ONE, "--publish", tmp_path / "out", "--require-signature", keys.public)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        f"cosyjit: flow.encoder.fp16: would be built, and {keys.public} requires a signature; "
        "export where that key is, with --sign\n"
    )
    assert store.objects() == set()
    assert not (tmp_path / "out").exists()


def forge(store: Store, key: str, changes: Callable[[dict[str, Any]], object]) -> None:
    """What one can do who may write to a store and has no key: change a record, and its checksum with it."""
    document = envelope_of(store, key)
    del document["checksum"]
    statement = json.loads(base64.b64decode(document["payload"]))
    changes(statement)
    document["payload"] = base64.b64encode(canonical(statement)).decode()
    record_path(store, key).write_bytes(documents.with_checksum(document))


def test_a_record_that_was_forged_with_its_checksum_is_refused(
    tiny2: Path,
    planned: tuple[Planned, ...],
    signed: dict[str, Published],
    keys: Pair,
    store: Store,
    tmp_path: Path,
    run: Run,
) -> None:
    alien = put_planned(store, planned, torch="alien")[NAME]  # an artifact of someone's own
    key = signed[NAME].fingerprint
    forge(store, key, lambda statement: statement["subject"][0]["digest"].update(sha256=alien.sha256))
    ran = run("export", tiny2, *ONE, "--publish", tmp_path / "out", "--require-signature", keys.public)
    assert ran.status == 2
    assert f"records/{key}.json: has a signature of other content, and" in ran.err
    assert not (tmp_path / "out").exists()
    # Without the key there is nothing by which it could be told.
    assert run("export", tiny2, *ONE, "--publish", tmp_path / "out").status == 0


def test_a_signed_record_that_stands_in_for_another_is_refused(
    planned: tuple[Planned, ...], signed: dict[str, Published], keys: Pair, store: Store
) -> None:
    older = put_planned(Store(store.root, sign=keys.private), planned, torch="older")[NAME]
    required = Store(store.root, require=keys.public)
    record_path(store, signed[NAME].fingerprint).write_bytes(record_path(store, older.fingerprint).read_bytes())
    with pytest.raises(RecordError, match="another fingerprint's"):
        record.load(required, signed[NAME].fingerprint)


@pytest.mark.usefixtures("planned")
def test_a_name_that_shows_another_signed_artifact_is_refused(
    signed: dict[str, Published], keys: Pair, store: Store, tmp_path: Path
) -> None:
    required = Store(store.root, require=keys.public)
    other = signed[NAME]._replace(sha256="0" * 64)
    for name, artifact in (("llm.llm.fp16.zip", signed[NAME]), (NAME, other)):
        with pytest.raises(SignatureError) as error:
            PublishedDirectory(tmp_path / "out", required).publish({name: artifact}, "/models/a")
        assert f"is of {NAME}, sha256 {signed[NAME].sha256}, and {keys.public} requires a signature" in str(error.value)
    PublishedDirectory(tmp_path / "out", required).publish(signed, "/models/a")
    assert [*shown(tmp_path / "out")] == [NAME]


def test_a_rollback_shows_nothing_unsigned(
    planned: tuple[Planned, ...], signed: dict[str, Published], keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    unsigned = put_planned(store, planned, torch="older")
    PublishedDirectory(out, store).publish(unsigned, "/models/a")
    PublishedDirectory(out, store).publish(signed, "/models/a")
    before = snapshot(out)
    ran = run("rollback", out, "--require-signature", keys.public)
    assert ran.status == 2
    assert f"records/{unsigned[NAME].fingerprint}.json: is not signed, and" in ran.err
    assert snapshot(out) == before
    assert run("rollback", out).status == 0
    ran = run("verify", out, "--require-signature", keys.public)
    assert ran.status == 1
    assert ran.out.startswith(f"{out / NAME}: {store.root}/records/")
    record_path(store, unsigned[NAME].fingerprint).unlink()
    assert "json: is missing, and" in run("verify", out, "--require-signature", keys.public).out


def test_what_else_a_directory_shows_has_to_be_signed_as_well(
    planned: tuple[Planned, ...], signed: dict[str, Published], keys: Pair, store: Store, tmp_path: Path
) -> None:
    unsigned = put_planned(store, planned, torch="older")[NAME]
    PublishedDirectory(tmp_path / "out", store).publish({"other.zip": unsigned}, "/models/a")
    with pytest.raises(SignatureError):
        PublishedDirectory(tmp_path / "out", Store(store.root, require=keys.public)).publish(signed, "/models/a")
    assert [*shown(tmp_path / "out")] == ["other.zip"]


def test_a_change_since_an_unsigned_record_is_new(
    tiny2: Path, keys: Pair, store: Store, copy_of: Callable[[Path], Path]
) -> None:
    """It is only said less of what has changed: an unsigned record says nothing that is to be believed."""
    directory = copy_of(tiny2)
    put_planned(store, plan(directory, ["flow.encoder"], ["fp16"], store=store))
    change(
        directory,
        "flow.pt",
        lambda state: state.update({"encoder.after_norm.weight": state["encoder.after_norm.weight"] + 1}),
    )
    (now,) = plan(directory, ["flow.encoder"], ["fp16"], store=Store(store.root, require=keys.public))
    assert (now.state, now.reasons) == ("stale", ("its last record has no signature that is required",))


def test_a_collection_with_required_signatures_removes_no_unsigned_record(
    planned: tuple[Planned, ...], keys: Pair, store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put_planned(store, planned)[NAME]
    monkeypatch.setenv("COSYJIT_REQUIRE_SIGNATURE", str(keys.public))
    assert run("gc", "--delete").status == 0
    assert object_path(store, made.sha256).exists()


def test_the_environment_can_name_the_keys(
    tiny2: Path, keys: Pair, planned: tuple[Planned, ...], store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_planned(store, planned)
    monkeypatch.setenv("COSYJIT_REQUIRE_SIGNATURE", str(keys.public))
    assert "is not signed" in run("plan", tiny2, *ONE).err
    monkeypatch.setenv("COSYJIT_SIGN", str(keys.private))
    assert "record has no signature" in " ".join(run("plan", tiny2, *ONE).out.split())


@pytest.mark.parametrize("option", ["--sign", "--require-signature"])
def test_a_file_that_is_no_key_is_refused_before_anything_is_done(
    option: str, tiny2: Path, tmp_path: Path, home: Path, run: Run
) -> None:
    ran = run("export", tiny2, option, tmp_path / "none")
    assert (ran.status, ran.err) == (
        2,
        f"cosyjit: {tmp_path / 'none'}: cannot be read (No such file or directory); name a file with a key\n",
    )
    assert not home.exists()


@pytest.mark.slow
def test_the_private_key_stands_nowhere(
    tiny2: Path, keys: Pair, store: Store, tmp_path: Path, home: Path, run: Run
) -> None:
    ran = run("export", tiny2, *ONE, "--publish", tmp_path / "out", "--sign", keys.private)
    (body,) = keys.private.read_text().splitlines()[1:-1]
    written = [*snapshot(home).values(), *snapshot(tmp_path / "out").values(), ran.out.encode(), ran.err.encode()]
    for secret in (body.encode(), base64.b64decode(body)[-32:]):
        assert [content for content in written if content and secret in content] == []
    assert len(store.objects()) == 1


def test_a_later_versions_envelope_is_left_alone(
    planned: tuple[Planned, ...], signed: dict[str, Published], keys: Pair, store: Store
) -> None:
    key = signed[NAME].fingerprint
    forge(store, key, lambda statement: statement["predicate"].update(cosyjit_schema=2))
    before = record_path(store, key).read_bytes()
    for opened in (store, Store(store.root, require=keys.public)):
        with pytest.raises(LaterSchemaError):
            record.load(opened, key)
        with pytest.raises(LaterSchemaError):
            plan(planned[0].target.source.directory, ["flow.encoder"], ["fp16"], store=opened)
    assert record_path(store, key).read_bytes() == before


@pytest.mark.slow
def test_a_key_signs_what_is_there_unsigned_by_building_it_again(
    tiny2: Path, planned: tuple[Planned, ...], keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    put_planned(store, planned)
    ran = run("export", tiny2, *ONE, "--publish", tmp_path / "out", "--sign", keys.private, "--json")
    (target,) = json.loads(ran.out)["targets"]
    assert (target["state"], target["reasons"]) == ("built", ["not signed with this key"])
    assert run("export", tiny2, *ONE, "--publish", tmp_path / "out", "--require-signature", keys.public).status == 0
    again = run("plan", tiny2, *ONE, "--sign", pair(tmp_path, "new").private, "--json")
    assert json.loads(again.out)["targets"][0]["reasons"] == ["not signed with this key"]


def test_what_else_is_shown_unsigned_is_said_before_anything_is_built(
    tiny2: Path, planned: tuple[Planned, ...], keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    unsigned = put_planned(store, planned, torch="older")[NAME]
    PublishedDirectory(tmp_path / "out", store).publish({"other.zip": unsigned}, "/models/a")
    both = ["--sign", keys.private, "--require-signature", keys.public]
    ran = run("export", tiny2, *ONE, "--publish", tmp_path / "out", *both)
    assert (ran.status, len(ran.err.splitlines())) == (2, 1)
    assert f"records/{unsigned.fingerprint}.json: is not signed, and" in ran.err
    assert store.objects() == {unsigned.sha256}


@pytest.mark.parametrize("name", ["llm.llm.fp32.zip", "vllm", "flow.encoder.fp32.zip"])
def test_a_name_of_the_runtime_that_is_in_no_publication_is_a_fault(
    name: str, signed: dict[str, Published], keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    PublishedDirectory(tmp_path / "out", store).publish(signed, "/models/a")
    (tmp_path / "out" / name).write_bytes(b"a stranger's")
    ran = run("verify", tmp_path / "out", "--require-signature", keys.public)
    assert (ran.status, ran.out) == (
        1,
        f"{tmp_path / 'out' / name}: does not belong to the publication, and no signed record names it\n",
    )
    assert run("verify", tmp_path / "out").status == 0


def test_a_publication_with_another_size_than_was_signed_is_refused(
    signed: dict[str, Published], keys: Pair, store: Store, tmp_path: Path
) -> None:
    required = Store(store.root, require=keys.public)
    with pytest.raises(SignatureError):
        PublishedDirectory(tmp_path / "out", required).publish({NAME: signed[NAME]._replace(size=7)}, "/models/a")


@pytest.mark.slow
def test_a_zip_of_no_record_is_refused_where_a_signature_is_required(
    tiny2: Path, keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    assert run("export", tiny2, *ONE, "--publish", tmp_path / "out").status == 0
    shutil.rmtree(Path(store.root, "records"))
    artifact = tmp_path / "out" / NAME
    ran = run("lineage", artifact, "--require-signature", keys.public)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"cosyjit: {artifact}: has no record in {store.root}, and {keys.public} requires")


@pytest.mark.parametrize(("mode", "group"), [(0o775, 12345), (0o777, -1)])
def test_what_others_remember_in_a_store_that_they_may_write_to_is_not_believed(
    mode: int, group: int, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    path.mkdir()
    assert Store(path).digests.directory == path / "digests"
    path.chmod(mode)
    shared_with(group, path)
    assert Store(path).digests.directory == Path(Store().root) / "digests"


def shared_with(group: int, path: Path) -> None:
    try:
        os.chown(path, -1, group)
    except PermissionError:
        pytest.skip("nobody but root can give a directory to a group that he is not in")


def test_work_in_hand_stands_where_others_may_not_write(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.mkdir()
    with Store(path).staging() as work:
        assert work.parent == path / "tmp"
    path.chmod(0o777)
    own = Path(Store().root) / "cache" / "tmp"
    with Store(path).staging() as work:
        assert work.parent == own
        assert work.stat().st_mode & 0o077 == 0
    own.parent.chmod(0o777)
    with Store(path).staging() as work:
        assert work.parent == Path(tempfile.gettempdir())


# What is signed is not lost.


def signed_for_real(tiny2: Path, keys: Pair, store: Store, out: Path) -> Outcome:
    """What a build comes to whose record a key has signed."""
    signing = Store(store.root, sign=keys.private)
    (outcome,) = export(tiny2, components=["flow.encoder"], precisions=["fp16"], publish=out, store=signing)
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
def test_an_object_that_is_damaged_after_the_plan_is_not_built_again_where_it_cannot_be_signed(
    tiny2: Path, keys: Pair, store: Store, tmp_path: Path, *, link: bool
) -> None:
    made = signed_for_real(tiny2, keys, store, tmp_path / "first").record
    assert made is not None
    path = record_path(store, made.fingerprint.key)
    before = path.read_bytes()
    stages = []

    def damage(_: Target, stage: str) -> None:
        stages.append(stage)
        if stage == "cached":
            flip(object_path(store, made.sha256))

    (outcome,) = export(
        tiny2,
        components=["flow.encoder"],
        precisions=["fp16"],
        publish=tmp_path / "out",
        store=Store(store.root, require=keys.public),
        link=link,
        progress=damage,
    )
    assert outcome.state == "failed"
    assert outcome.error == (
        f"flow.encoder.fp16: would be built, and {keys.public} requires a signature; "
        "export where that key is, with --sign"
    )
    assert stages == ["waiting", "cached", f"failed: {outcome.error}"]
    assert path.read_bytes() == before
    assert (store.objects(), shown(tmp_path / "out")) == (set(), {})


@pytest.mark.slow
@pytest.mark.parametrize("option", [[], ["--force"]], ids=["object damaged", "forced"])
def test_an_equal_artifact_that_is_built_without_the_key_keeps_its_signed_record(
    option: list[str], tiny2: Path, keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    made = signed_for_real(tiny2, keys, store, tmp_path / "first").record
    assert made is not None
    path = record_path(store, made.fingerprint.key)
    before = path.read_bytes()
    if not option:
        flip(object_path(store, made.sha256))
    ran = run("export", tiny2, *ONE, *option, "--publish", tmp_path / "out", "--json")
    assert [each["state"] for each in json.loads(ran.out)["targets"]] == ["built"]
    assert path.read_bytes() == before
    assert run("verify", tmp_path / "out", "--require-signature", keys.public).status == 0
    assert run("verify", "--require-signature", keys.public).status == 0


@pytest.mark.slow
def test_a_signed_record_of_another_artifact_is_not_given_up_for_an_unsigned_one(
    tiny2: Path, signed: dict[str, Published], keys: Pair, store: Store, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    PublishedDirectory(out, store).publish(signed, "/models/a")
    key = signed[NAME].fingerprint
    before = record_path(store, key).read_bytes(), shown(out)
    ran = run("export", tiny2, *ONE, "--force", "--publish", out, "--json")
    (target,) = json.loads(ran.out)["targets"]
    assert (ran.status, target["state"]) == (1, "failed")
    signer = Signer(keys.private).keyid[:16]
    assert target["error"] == (
        f"{store.root}/records/{key}.json: is signed by {signer}, and another artifact was built here, without a "
        "signature; export where that key is, with --sign, or name another store"
    )
    assert (record_path(store, key).read_bytes(), shown(out)) == before
    assert run("export", tiny2, *ONE, "--force", "--publish", out, "--sign", keys.private).status == 0
    assert run("verify", out, "--require-signature", keys.public).status == 0


@pytest.mark.slow
def test_a_record_that_is_signed_while_the_same_is_built_without_a_key_stays(
    tiny2: Path, planned: tuple[Planned, ...], keys: Pair, store: Store, tmp_path: Path
) -> None:
    """As by a machine that has lost the turn: it writes while this one still builds."""

    def sign(_: Target, stage: str) -> None:
        if stage == "verify":
            put_planned(Store(store.root, sign=keys.private), planned)

    (outcome,) = export(
        tiny2, components=["flow.encoder"], precisions=["fp16"], publish=tmp_path / "out", progress=sign
    )
    assert outcome.state == "failed"
    found = record.load(Store(store.root, require=keys.public), planned[0].target.fingerprint.key)
    assert found is not None
    assert found.signed_by == (Signer(keys.private).keyid,)


@pytest.mark.usefixtures("signed")
def test_a_signed_record_is_replaced_by_what_is_signed_anew(
    planned: tuple[Planned, ...], store: Store, tmp_path: Path
) -> None:
    new = pair(tmp_path, "new")
    put_planned(Store(store.root, sign=new.private), planned)
    found = record.load(Store(store.root, require=new.public), planned[0].target.fingerprint.key)
    assert found is not None
    assert found.signed_by == (Signer(new.private).keyid,)
