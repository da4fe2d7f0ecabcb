"""Looking does not write: plan, status, verify and lineage leave a store and a directory as they are, damage included.

What they remember of digests is a cache, and no content of either.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from cosyjit import Publication, Store, plan
from cosyjit.provenance import latest, record
from cosyjit.publishing import publication
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import object_name
from tests.support.files import flip
from tests.support.processes import Ran, Run
from tests.support.s3 import Service
from tests.support.stores import put_planned

ONE: Final = (["flow.encoder"], ["fp16"])
OPTIONS: Final = ("--component", "flow.encoder", "--precision", "fp16")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where artifacts are published."""
    (tmp_path / "published").mkdir()
    return tmp_path / "published"


def published(store: Store, source: Path, directory: Path) -> Publication:
    """Have an artifact in a store, and publish it."""
    made = put_planned(store, plan(source, *ONE, store=store))
    return PublishedDirectory(directory, store).publish(made, str(source))


def parts(store: Store, directory: Path, shown: Publication) -> dict[str, str]:
    """The names in a store of each kind of file that a publication needs."""
    ((_, artifact),) = shown.artifacts.items()
    (reference,) = (entry.name for entry in store.entries("latest"))
    assert latest.read(store, reference) == artifact.fingerprint
    return {
        "object": object_name(artifact.sha256),
        "record": record.name_of(artifact.fingerprint),
        "head": publication._head(directory),
        "publication": publication.name_of(shown.identity),
        "latest": reference,
    }


def looks(run: Run, source: Path, directory: Path, store: Store, shown: Publication) -> list[Ran]:
    """Run each command that only looks."""
    ((name, artifact),) = shown.artifacts.items()
    commands = [
        ("plan", source, *OPTIONS, "--publish", directory, "--json"),
        ("status", directory, "--json"),
        ("verify", directory),
        ("verify",),
        ("lineage", artifact.sha256),
        ("lineage", artifact.fingerprint),
        ("lineage", directory / name),
    ]
    return [run(*command, "--store", store.root) for command in commands]


def reasons(ran: Ran) -> list[str]:
    """Why the one target of a plan is not fresh."""
    ((target,),) = [json.loads(ran.out)["targets"]]
    return list(target["reasons"])


def everything(*roots: Path) -> dict[Path, Any]:
    """All below some directories but remembered digests: what is in it, and what else a write would change."""
    paths = [path for root in roots for path in sorted(root.rglob("*")) if "digests" not in path.parts]
    return {path: _seen(path) for path in paths}


def _seen(path: Path) -> tuple[object, ...]:
    stat = path.lstat()
    if path.is_symlink():
        return stat.st_ino, stat.st_mtime_ns, path.readlink()
    if path.is_dir():
        return (stat.st_ino,)
    return stat.st_ino, stat.st_mode, stat.st_mtime_ns, path.read_bytes()


LOCAL: Final[dict[str, Callable[[Path], object] | None]] = {
    "nothing": None,
    **{f"{part} damaged": flip for part in ("object", "record", "head", "publication", "latest")},
    **{f"{part} missing": Path.unlink for part in ("object", "record", "head", "publication", "latest")},
    "published file damaged": flip,
    "manifest damaged": flip,
}

REASONS: Final = {
    "object damaged": ["object damaged"],
    "object missing": ["object missing"],
    "record damaged": ["record damaged"],
    "record missing": ["record missing"],
}
"""What a plan says of damage; of any other it says nothing."""

NO_FAULTS: Final = {"record missing", "latest damaged", "latest missing"}
"""What neither a status nor a verification finds wrong."""


@pytest.mark.slow
@pytest.mark.parametrize("damage", LOCAL)
def test_looking_twice_changes_nothing_of_a_local_store_and_says_the_same(
    damage: str, run: Run, tiny2: Path, home: Path, store: Store, directory: Path
) -> None:
    shown = published(store, tiny2, directory)
    assert store.local is not None
    (name,) = shown.artifacts
    places = {part: store.local / file for part, file in parts(store, directory, shown).items()}
    places |= {"published file": (directory / name).resolve(), "manifest": (directory / "cosyjit.json").resolve()}
    change = LOCAL[damage]
    if change:
        change(places[damage.rpartition(" ")[0]])
    before = everything(home, directory)
    first = looks(run, tiny2, directory, store, shown)
    assert everything(home, directory) == before
    assert looks(run, tiny2, directory, store, shown) == first
    assert everything(home, directory) == before
    assert reasons(first[0]) == REASONS.get(damage, []) if first[0].status == 0 else damage == "head damaged"
    assert any(ran.status for ran in first[1:4]) == (damage not in {"nothing", *NO_FAULTS})


def test_looking_for_a_store_makes_none(run: Run, tiny2: Path, home: Path, store: Store) -> None:
    for command in (("status", tiny2), ("verify",), ("lineage", "0" * 64)):
        assert run(*command).status == 2
    assert everything(home) == {}
    assert run("plan", tiny2, *OPTIONS).status == 0
    assert store.local is not None
    assert [path.name for path in store.local.iterdir()] == ["digests"]
    assert set(everything(home)) == {store.local.parent, store.local}


def bucket(s3: Service, store: Store) -> dict[str, tuple[str, object]]:
    """The keys in a store's bucket, the digests of their contents, and when they were last written."""
    name = store.root.removeprefix("s3://").partition("/")[0]
    listed = s3.client.list_objects_v2(Bucket=name)["Contents"]
    return {each["Key"]: (each["ETag"], each["LastModified"]) for each in listed}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["nothing", "object", "record", "head", "publication", "latest"])
def test_looking_twice_changes_nothing_of_a_bucket_and_says_the_same(
    damage: str, run: Run, tiny2: Path, home: Path, directory: Path, s3: Service
) -> None:
    store = Store(s3.url())
    shown = published(store, tiny2, directory)
    if damage != "nothing":
        store.write(parts(store, directory, shown)[damage], b"nothing")
    s3.age(store.root, 2 * store.grace)  # so that an export would renew it
    before = (bucket(s3, store), everything(home, directory))
    first = looks(run, tiny2, directory, store, shown)
    assert (bucket(s3, store), everything(home, directory)) == before
    assert looks(run, tiny2, directory, store, shown) == first
    assert (bucket(s3, store), everything(home, directory)) == before


def test_the_plan_of_an_export_renews_what_it_finds_in_a_bucket(tiny2: Path, directory: Path, s3: Service) -> None:
    store = Store(s3.url())
    shown = published(store, tiny2, directory)
    names = parts(store, directory, shown)
    s3.age(store.root, 2 * store.grace)
    before = bucket(s3, store)
    (planned,) = plan(tiny2, *ONE, store=store)
    assert planned.state == "fresh"
    assert bucket(s3, store) == before
    (planned,) = plan(tiny2, *ONE, store=store, exporting=True)
    assert planned.state == "fresh"
    after = bucket(s3, store)
    renewed = {key for key in before if after[key] != before[key]}
    assert {key.removeprefix("a/prefix/") for key in renewed} == {names["object"], names["record"]}
