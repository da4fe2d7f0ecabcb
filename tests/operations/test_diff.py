"""What changed between two publications, and why."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosyjit import Change, Diff, Difference, Published, PublishedDirectory, Store, diff, plan
from cosyjit.errors import PublicationError
from cosyjit.provenance import record
from cosyjit.weights.tensor_digests import TensorDigest
from tests.operations.test_looking import everything
from tests.support.hostile_text import HOSTILE
from tests.support.keys import pair
from tests.support.processes import Run
from tests.support.s3 import Service
from tests.support.stores import FIGURES, VERSIONS, fingerprint, put, put_planned, record_path

NAME = "llm.llm.fp32.zip"


def put_one(store: Store, content: bytes, figures: dict[str, float] | None = None, **others: Any) -> Published:
    """An artifact whose figures have its size."""
    return put(store, content, figures={**FIGURES, "bytes": len(content), **(figures or {})}, **others)


def publish(store: Store, directory: Path, *sets: dict[str, Published]) -> None:
    """Show sets one after the other, and nothing of one in the next."""
    shown: dict[str, Published] = {}
    for each in sets:
        for name in shown.keys() - each.keys():
            (directory / name).unlink()
        PublishedDirectory(directory, store).publish(each, "/models/a")
        shown = each


def only(found: Diff) -> Difference:
    (difference,) = found.artifacts
    return difference


def retrained(**changes: Any) -> Any:
    """A fingerprint with another tensor, one more and one less, and other options and code."""
    was = fingerprint()
    tensors = {
        "embed.weight": TensorDigest("float32", (3, 4), "f" * 32),
        "bias": TensorDigest("float32", (4,), "e" * 32),
    }
    options = {"linear_units": 4096, "pos": None}
    given = {"tensors": tensors, "config": {**was.config, "options": options}, "encoders": 2, "torch": "2.14.0"}
    return replace(was, **{**given, **changes})


@pytest.fixture
def two(store: Store, directory: Path) -> tuple[Published, Published]:
    """Two artifacts, of which a directory has shown the one and then the other."""
    before = put_one(store, b"before", {"absolute_error": 0.012, "step_seconds": 0.001}, fingerprint=fingerprint())
    after = put_one(
        store,
        b"afterwards",
        {"absolute_error": 0.013, "step_seconds": 0.002, "cosine": 0.99},
        fingerprint=retrained(),
        versions={**VERSIONS, "cosyjit": "2", "torch": "2.14.0"},
    )
    publish(store, directory, {NAME: before}, {NAME: after})
    return before, after


def test_of_what_changed_each_tensor_option_version_and_figure_has_its_values(
    two: tuple[Published, Published], store: Store, directory: Path
) -> None:
    found = diff(directory, store=store)
    assert (found.before.number, found.after.number, found.complete) == (1, 2, True)
    ours = only(found)
    assert (ours.name, ours.state, (ours.before, ours.after)) == (NAME, "changed", two)
    was = fingerprint().tensors
    assert ours.count == (2, 2)
    assert ours.tensors == (
        Change(
            "embed.weight",
            "changed",
            was["embed.weight"]._asdict(),
            TensorDigest("float32", (3, 4), "f" * 32)._asdict(),
        ),
        Change("step", "removed", was["step"]._asdict()),
        Change("bias", "added", after=TensorDigest("float32", (4,), "e" * 32)._asdict()),
    )
    assert ours.options == (
        Change("linear_units", "changed", 2048, 4096),
        Change("dropout_rate", "removed", 0.1),
        Change("pos", "added"),
    )
    assert ours.versions == (
        Change("cosyjit", "changed", "1", "2"),
        Change("torch", "changed", "2", "2.14.0"),
        Change("encoder code", "changed", 1, 2),
    )
    assert ours.figures == (
        Change("bytes", "changed", 6, 10),
        Change("absolute_error", "changed", 0.012, 0.013),
        Change("step_seconds", "changed", 0.001, 0.002),
        Change("cosine", "added", after=0.99),
    )


def test_names_come_go_and_stay(store: Store, directory: Path) -> None:
    a, b, c = put(store, b"a"), put(store, b"b"), put(store, b"c")
    publish(store, directory, {"a.zip": a, "b.zip": b}, {"b.zip": b, "c.zip": c})
    found = diff(directory, store=store)
    assert [(each.name, each.state, each.before, each.after) for each in found.artifacts] == [
        ("a.zip", "removed", a, None),
        ("b.zip", "same", b, b),
        ("c.zip", "added", None, c),
    ]
    assert [each.state for each in diff(directory, 2, 1, store=store).artifacts] == ["added", "same", "removed"]


def test_numbers_are_those_of_the_history(store: Store, directory: Path) -> None:
    publish(store, directory, *({"a.zip": put(store, str(number).encode())} for number in range(4)))
    PublishedDirectory(directory, store).rollback(2)

    def numbers(*given: int | None) -> tuple[int, int, str]:
        found = diff(directory, *given, store=store)
        return found.before.number, found.after.number, only(found).state

    assert numbers() == (4, 5, "changed")
    assert numbers(2) == (2, 5, "same")  # which it restores
    assert numbers(1, 3) == (1, 3, "changed")
    assert numbers(None, 3) == (2, 3, "changed")
    assert numbers(3, 1) == (3, 1, "changed")
    assert numbers(5) == (5, 5, "same")
    assert numbers(2, 2) == (2, 2, "same")


def test_a_number_that_is_not_kept_is_refused_in_one_line(store: Store, directory: Path, run: Run) -> None:
    publish(store, directory, {"a.zip": put(store, b"a")})
    refused = {
        (): f"{directory}: publication 1 has none before it that is kept; give the number of another",
        ("0",): f"{directory}: there is no publication 0; kept are 1 to 1",
        ("1", "7"): f"{directory}: there is no publication 7; kept are 1 to 1",
    }
    for given, message in refused.items():
        ran = run("diff", directory, *given, "--store", store.root)
        assert (ran.status, ran.out, ran.err) == (2, "", f"cosyjit: {message}\n")
    assert run("diff", directory, "1", "--", "-1").status == 2
    assert "x" in run("diff", directory, "x").err


def test_a_directory_that_shows_nothing_is_refused(store: Store, directory: Path) -> None:
    with pytest.raises(PublicationError, match=f"^{directory}: nothing is published here from {store}"):
        diff(directory, store=store)


def remove(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    path.write_bytes(b"{}")


def write_later(path: Path) -> None:
    path.write_text(path.read_text().replace('"cosyjit_schema": 1', '"cosyjit_schema": 2'))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (remove, "its record is missing; `cosyjit gc` may have removed it"),
        (damage, "its record is damaged; `cosyjit verify` names it"),
        (write_later, "its record is a later version's; upgrade cosyjit"),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_without_a_record_there_is_the_size_and_what_the_record_is(
    change: Callable[[Path], None],
    says: str,
    number: int,
    two: tuple[Published, Published],
    store: Store,
    directory: Path,
    run: Run,
) -> None:
    change(record_path(store, two[number - 1].fingerprint))
    found = diff(directory, store=store)
    assert not found.complete
    ours = only(found)
    assert ours.problems == (f"publication {number}: {says}",)
    assert (ours.tensors, ours.options, ours.versions) == ((), (), ())
    assert ours.figures == (Change("bytes", "changed", 6, 10),)
    ran = run("diff", directory, "--store", store.root)
    assert (ran.status, ran.err) == (1, "")
    assert f"  {ours.problems[0]}" in ran.out.splitlines()


def test_a_record_of_bytes_that_were_built_again_tells_of_its_fingerprint_alone(
    two: tuple[Published, Published], store: Store, directory: Path
) -> None:
    kept = record.load(store, two[0].fingerprint)
    assert kept is not None
    store.remove(record.name_of(two[0].fingerprint))
    record.save(store, replace(kept, sha256="9" * 64, figures={**kept.figures, "bytes": 7}))
    ours = only(diff(directory, store=store))
    assert ours.problems == (
        "publication 1: its record is of other bytes, which were built again later; its figures are left out",
    )
    assert ours.figures == (Change("bytes", "changed", 6, 10),)
    assert [each.name for each in ours.versions] == ["encoder code", "torch"]
    assert len(ours.tensors) == len(ours.options) == 3


def test_where_signatures_are_required_nothing_is_told_of_a_record_without_one(
    two: tuple[Published, Published], store: Store, directory: Path, tmp_path: Path, run: Run
) -> None:
    keys = pair(tmp_path)
    ran = run("diff", directory, "--store", store.root, "--require-signature", keys.public, "--json")
    (ours,) = json.loads(ran.out)["artifacts"]
    problem = "its record has no signature that is required"
    assert (ran.status, ours["problems"]) == (1, [f"publication 1: {problem}", f"publication 2: {problem}"])
    assert ours["tensors"] == ours["options"] == []
    assert two[0].fingerprint == ours["before"]["fingerprint"]


def test_of_a_folder_the_files_are_compared(store: Store, directory: Path) -> None:
    before = put(store, {"config.json": b"1", "model.safetensors": b"2"})
    after = put(store, {"config.json": b"1", "model.safetensors": b"3", "vocab.json": b"4"})
    publish(store, directory, {"vllm": before}, {"vllm": after})
    ours = only(diff(directory, store=store))
    assert [(each.name, each.state) for each in ours.files] == [
        ("model.safetensors", "changed"),
        ("vocab.json", "added"),
    ]


def test_models_of_two_families_that_share_a_name_differ_in_all(
    tiny: Path, tiny2: Path, store: Store, directory: Path, run: Run
) -> None:
    for model in (tiny, tiny2):
        planned = plan(model, ["flow.encoder"], ["fp16"], store=store)
        PublishedDirectory(directory, store).publish(put_planned(store, planned), str(model))
    ours = only(diff(directory, store=store))
    assert ("class", "changed") in [(each.name, each.state) for each in ours.options]
    assert {each.state for each in ours.tensors} == {"added", "removed", "changed"}
    ran = run("diff", directory, "--store", store.root)
    assert (ran.status, ran.err) == (0, "")
    assert "tensors removed: " in ran.out


def test_json_has_all_of_it(two: tuple[Published, Published], store: Store, directory: Path, run: Run) -> None:
    ran = run("diff", directory, "--json", "--store", store.root)
    assert ran.status == 0
    found = json.loads(ran.out)
    assert (found["before"]["number"], found["after"]["number"]) == (1, 2)
    (ours,) = found["artifacts"]
    assert (ours["state"], ours["before"], ours["after"]) == ("changed", two[0].document, two[1].document)
    assert ours["tensors"][1] == {
        "name": "step",
        "state": "removed",
        "before": {"dtype": "int64", "shape": [], "digest": "0" * 32},
        "after": None,
    }
    assert ours["options"][0] == {"name": "linear_units", "state": "changed", "before": 2048, "after": 4096}
    assert ours["problems"] == []


def test_diff_changes_nothing(
    two: tuple[Published, Published], store: Store, home: Path, directory: Path, run: Run
) -> None:
    damage(record_path(store, two[0].fingerprint))
    before = everything(home, directory)
    first = run("diff", directory, "--store", store.root)
    assert run("diff", directory, "--store", store.root) == first
    assert everything(home, directory) == before


@pytest.mark.slow
def test_what_strangers_have_written_is_shown_as_text(store: Store, directory: Path, run: Run) -> None:
    for text in HOSTILE:
        named = {name: TensorDigest("float32", (1,), "1" * 32) for name in (text, f"{text} 2")}
        was = replace(fingerprint(), tensors=named, config={"class": text, "options": {text: text}}, torch=text)
        now = replace(was, tensors={text: TensorDigest(text, (2,), "2" * 32)}, config={"class": "b", "options": {}})
        publish(
            store,
            directory,
            {NAME: put_one(store, b"1", {text: 1}, fingerprint=was, versions={text: text}, component=text)},
            {NAME: put_one(store, b"2", {text: 2}, fingerprint=now, versions={text: "2"}, component="b")},
        )
        ran = run("diff", directory, "--store", store.root)
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.replace("\n", "").isprintable()
        ran = run("diff", directory, "--store", store.root, "--json")
        assert ran.out.isascii()
        assert json.loads(ran.out)["artifacts"][0]["options"][0]["before"] == text


@pytest.mark.slow
def test_the_history_in_a_bucket_is_compared(directory: Path, s3: Service, run: Run) -> None:
    store = Store(s3.url())
    before, after = (put_one(store, content, fingerprint=fingerprint(content)) for content in (b"1", b"22"))
    publish(store, directory, {NAME: before}, {NAME: after})
    ran = run("diff", directory, "--store", store.root)
    assert (ran.status, ran.err) == (0, "")
    assert "  1 of 2 tensors changed: embed.weight" in ran.out.splitlines()
    store.remove(record.name_of(before.fingerprint))
    assert run("diff", directory, "--store", store.root).status == 1
