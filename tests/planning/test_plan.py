"""What is to be exported, what of it the store has, and why it has not the rest."""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosyjit import CosyjitError, InputError, Planned, Store, plan
from cosyjit.errors import BuildError, CheckpointError, LaterSchemaError, TensorMismatchError
from cosyjit.planning.plan import compare, localize
from tests.support.checkpoints import change, moved, retrain, rewrite
from tests.support.files import flip
from tests.support.processes import snapshot
from tests.support.stores import object_path, put_planned, record_path

Copy = Callable[[Path], Path]

# Of the public runtime.
RUNTIME = {
    f"{name}.{half}.zip" for name in ("llm.text_encoder", "llm.llm", "flow.encoder") for half in ("fp32", "fp16")
}


def names(planned: Sequence[Planned]) -> list[str]:
    return [each.target.name for each in planned]


def states(planned: Sequence[Planned]) -> dict[str, str]:
    return {each.target.name: each.state for each in planned}


def reasons(planned: Sequence[Planned]) -> set[tuple[str, ...]]:
    return {each.reasons for each in planned}


def test_a_plan_has_the_targets_of_the_runtime_in_the_order_of_the_family(tiny: Path, tiny2: Path, tiny3: Path) -> None:
    before = snapshot(tiny)
    assert names(plan(tiny)) == [
        "llm.text_encoder.fp32",
        "llm.text_encoder.fp16",
        "llm.llm.fp32",
        "llm.llm.fp16",
        "flow.encoder.fp32",
        "flow.encoder.fp16",
    ]
    assert names(plan(tiny2)) == ["flow.encoder.fp32", "flow.encoder.fp16", "llm.vllm.bf16"]
    assert names(plan(tiny3)) == ["llm.vllm.bf16"]
    assert {each.target.file_name for each in plan(tiny)} == RUNTIME
    assert {each.target.device for each in plan(tiny)} == {"cpu"}
    assert snapshot(tiny) == before


@pytest.mark.parametrize(
    ("components", "precisions", "expected"),
    [
        (["llm.llm"], None, ["llm.llm.fp32", "llm.llm.fp16"]),
        (["flow.encoder", "llm.llm"], ["bf16"], ["llm.llm.bf16", "flow.encoder.bf16"]),
        (["llm.llm", "llm.llm"], ["bf16", "fp32", "bf16"], ["llm.llm.fp32", "llm.llm.bf16"]),
    ],
)
def test_a_selection_is_planned_once_each_and_in_the_usual_order(
    tiny: Path, components: list[str] | None, precisions: list[str] | None, expected: list[str]
) -> None:
    assert names(plan(tiny, components, precisions)) == expected


@pytest.mark.parametrize(("components", "precisions"), [([], None), (None, []), (["llm"], None), (None, ["fp8"])])
def test_a_selection_of_nothing_or_of_what_there_is_not_is_refused(
    tiny: Path, components: list[str] | None, precisions: list[str] | None
) -> None:
    with pytest.raises(InputError, match=r"choose from \w+"):
        plan(tiny, components, precisions)


def test_weight_bytes_are_those_of_the_tensors_in_the_checkpoint(tiny: Path) -> None:
    for target in (each.target for each in plan(tiny, precisions=["fp32", "fp16", "bf16"])):
        state = torch.load(tiny / target.component.weights, weights_only=True)
        kept = [tensor.numel() for name, tensor in state.items() if name.startswith(target.component.prefix)]
        assert target.weight_bytes == sum(kept) * {"fp32": 4, "fp16": 2, "bf16": 2}[target.precision.name] > 0


def test_what_was_never_exported_is_new(tiny: Path) -> None:
    planned = plan(tiny)
    assert set(states(planned).values()) == {"new"}
    assert reasons(planned) == {()}
    assert {each.record for each in planned} == {None}
    assert len({each.target.fingerprint.key for each in planned}) == 6


def test_what_the_store_has_is_fresh_and_comes_with_its_record(tiny: Path, store: Store) -> None:
    kept = put_planned(store, compare(tiny, precisions=["fp32"], store=store))
    planned = plan(tiny)
    assert states(planned) == {name: "fresh" if "fp32" in name else "new" for name in names(planned)}
    assert reasons(planned) == {()}
    for each in planned:
        if each.state == "fresh":
            assert each.record is not None
            assert each.record.sha256 == kept[each.target.file_name].sha256
            assert each.record.fingerprint == each.target.fingerprint


def test_another_store_knows_nothing_of_it(tiny: Path, store: Store, tmp_path: Path) -> None:
    put_planned(store, compare(tiny, store=store))
    assert set(states(plan(tiny, store=Store(tmp_path / "other"))).values()) == {"new"}


def resave(directory: Path) -> None:
    """Writes the weights anew, in another order and with what training leaves beside them."""
    for name in ("llm.pt", "flow.pt"):
        state = torch.load(directory / name, weights_only=True)
        before = (directory / name).read_bytes()
        torch.save({"epoch": 7, **dict(reversed(state.items()))}, directory / name)
        assert (directory / name).read_bytes() != before


def touch(directory: Path) -> None:
    for path in directory.iterdir():
        os.utime(path, ns=(1, 1))


def comment(directory: Path) -> None:
    rewrite(directory, "\nllm: ", "\n# A remark.\n\nllm: ")


def reorder(directory: Path) -> None:
    rewrite(
        directory,
        "macaron_style: False\n        use_dynamic_chunk: False\n",
        "use_dynamic_chunk: False\n        macaron_style: False\n",
    )


@pytest.mark.parametrize(
    "edit",
    [
        resave,
        touch,
        comment,
        reorder,
        lambda path: rewrite(path, "top_k: 25", "top_k: 50"),
        lambda path: rewrite(path, "inference_cfg_rate: 0.7", "inference_cfg_rate: 0.5"),
        lambda path: (path / "README.md").write_text("More."),
        lambda path: retrain(path, "llm.pt", "llm_decoder."),
    ],
    ids=["re-saved", "touched", "comment", "order", "sampler", "flow's sampler", "another file", "another part"],
)
def test_what_does_not_decide_the_bytes_leaves_all_fresh(
    tiny: Path, copy_of: Copy, store: Store, edit: Callable[[Path], object]
) -> None:
    directory = copy_of(tiny)
    put_planned(store, compare(directory, precisions=["fp16"], store=store))
    edit(directory)
    assert set(states(plan(directory, precisions=["fp16"])).values()) == {"fresh"}


def test_a_copied_and_a_moved_directory_are_fresh(tiny: Path, copy_of: Copy, store: Store) -> None:
    put_planned(store, compare(tiny, precisions=["fp16"], store=store))
    directory = copy_of(tiny)
    assert set(states(plan(directory, precisions=["fp16"])).values()) == {"fresh"}
    assert set(states(plan(moved(directory), precisions=["fp16"])).values()) == {"fresh"}


@pytest.mark.parametrize(
    ("file", "prefix", "component"),
    [
        ("llm.pt", "llm.", "llm.llm"),
        ("llm.pt", "text_encoder.", "llm.text_encoder"),
        ("flow.pt", "encoder.", "flow.encoder"),
    ],
)
def test_retraining_a_part_makes_that_part_stale_in_both_precisions_and_no_other(
    tiny: Path, copy_of: Copy, store: Store, file: str, prefix: str, component: str
) -> None:
    directory = copy_of(tiny)
    put_planned(store, compare(directory, store=store))
    count = retrain(directory, file, prefix)
    planned = plan(directory)
    assert {name for name, state in states(planned).items() if state != "fresh"} == {
        f"{component}.fp32",
        f"{component}.fp16",
    }
    for each in planned:
        if each.state == "stale":
            (reason,) = each.reasons
            assert re.fullmatch(rf"{count} of {count} tensors changed: \S+, \S+, \S+, …", reason)


def test_a_changed_tensor_is_named_without_the_prefix(tiny: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny)
    put_planned(store, compare(directory, store=store))
    change(directory, "llm.pt", lambda state: state["llm.after_norm.weight"].view(-1)[5].add_(1))
    before, now = plan(tiny, ["llm.llm"]), plan(directory, ["llm.llm"])
    count = len(now[0].target.fingerprint.tensors)
    assert set(states(before).values()) == {"fresh"}
    assert reasons(now) == {(f"1 of {count} tensors changed: after_norm.weight",)}


def test_a_tensor_changed_behind_an_unchanged_size_and_time_is_seen(tiny: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny)
    put_planned(store, compare(directory, store=store))
    path = directory / "flow.pt"
    stat = path.stat()
    tensor = torch.load(path, weights_only=True)["encoder.after_norm.weight"]
    with path.open("r+b") as file:
        file.seek(file.read().index(bytes(tensor.untyped_storage())))
        file.write(bytes(8))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    planned = plan(directory, precisions=["fp32"])
    assert {each.target.name: each.state for each in planned if each.state != "fresh"} == {"flow.encoder.fp32": "stale"}
    (count,) = (len(each.target.fingerprint.tensors) for each in planned if each.reasons)
    assert reasons(planned) == {(), (f"1 of {count} tensors changed: after_norm.weight",)}


def test_a_changed_option_is_named_with_both_values(tiny: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny)
    put_planned(store, compare(directory, store=store))
    rewrite(directory, "attention_dropout_rate: 0.1\n        normalize_before: True\n", "attention_dropout_rate: 0.2\n")
    planned = compare(directory, store=store)
    assert {name for name, state in states(planned).items() if state == "stale"} == {
        "flow.encoder.fp32",
        "flow.encoder.fp16",
    }
    assert reasons(planned) == {(), ("attention_dropout_rate 0.1 -> 0.2", "normalize_before true removed")}


def test_wider_layers_are_stale_for_the_option_and_for_the_tensors(tiny: Path, store: Store) -> None:
    (now,) = plan(tiny, ["flow.encoder"], ["fp32"])
    fingerprint = now.target.fingerprint
    narrower = {**fingerprint.config, "options": {**fingerprint.config["options"], "linear_units": 64}}
    name = "encoders.0.feed_forward.w_1.weight"
    tensors = {**fingerprint.tensors, name: fingerprint.tensors[name]._replace(shape=(64, 64))}
    put_planned(store, [now], config=narrower, tensors=tensors)
    (planned,) = plan(tiny, ["flow.encoder"], ["fp32"])
    assert planned.reasons == (f"1 of {len(tensors)} tensors changed: {name}", "linear_units 64 -> 128")


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("torch", "1.13.0", "torch 1.13.0 -> {torch}"),
        ("encoders", 0, "encoder code 0 -> {encoders}"),
        (
            "recipe",
            {"methods": [], "stages": ["script"]},
            'recipe: stages ["script"] -> ["script", "freeze", "optimize_for_inference"]',
        ),
    ],
)
def test_another_torch_other_code_and_another_recipe_are_reasons(
    tiny: Path, store: Store, part: str, value: object, reason: str
) -> None:
    planned = compare(tiny, ["llm.text_encoder"], store=store)
    put_planned(store, planned, **{part: value})
    now = planned[0].target.fingerprint
    expected = reason.format(torch=now.torch, encoders=now.encoders)
    assert reasons(plan(tiny, ["llm.text_encoder"])) == {(expected,)}


def test_the_tensors_of_which_there_are_more_or_fewer_are_reasons(tiny: Path, store: Store) -> None:
    planned = plan(tiny, ["flow.encoder"], ["fp16"])
    tensors = dict(planned[0].target.fingerprint.tensors)
    one = tensors.pop("after_norm.weight")
    put_planned(store, planned, tensors={**tensors, "before_norm.weight": one})
    (now,) = plan(tiny, ["flow.encoder"], ["fp16"])
    assert now.reasons == ("1 of 44 tensors added: after_norm.weight", "1 of 44 tensors removed: before_norm.weight")


def test_going_back_to_what_was_exported_before_is_fresh(tiny: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny)
    put_planned(store, compare(directory, store=store))
    retrain(directory, "flow.pt", "encoder.")
    put_planned(store, compare(directory, store=store))
    shutil.copy(tiny / "flow.pt", directory / "flow.pt")
    assert set(states(plan(directory)).values()) == {"fresh"}


def test_what_is_forced_is_stale_whatever_the_store_has(tiny: Path, store: Store) -> None:
    put_planned(store, compare(tiny, precisions=["fp32"], store=store))
    planned = plan(tiny, force=True)
    assert set(states(planned).values()) == {"stale"}
    assert reasons(planned) == {("forced",)}
    assert {each.record for each in planned} == {None}


ONE = (["llm.llm"], ["fp16"])


def test_a_missing_object_is_a_reason(tiny: Path, store: Store) -> None:
    (made,) = put_planned(store, compare(tiny, *ONE, store=store)).values()
    object_path(store, made.sha256).unlink()
    (planned,) = compare(tiny, *ONE, store=store)
    assert (planned.state, planned.reasons, planned.record) == ("stale", ("object missing",), None)


def test_a_damaged_object_is_a_reason_each_time_and_set_aside_by_an_export(tiny: Path, store: Store) -> None:
    (made,) = put_planned(store, compare(tiny, *ONE, store=store)).values()
    path = object_path(store, made.sha256)
    flip(path)
    content = path.read_bytes()
    for _ in range(2):
        (planned,) = compare(tiny, *ONE, store=store)
        assert (planned.state, planned.reasons, planned.record) == ("stale", ("object damaged",), None)
        assert path.read_bytes() == content
    (planned,) = compare(tiny, *ONE, store=store, exporting=True)
    assert (planned.state, planned.reasons, planned.record) == ("stale", ("object damaged",), None)
    assert not path.exists()
    assert store.local is not None
    (aside,) = (store.local / "damaged").iterdir()
    assert aside.read_bytes() == content


def test_a_missing_record_is_a_reason(tiny: Path, store: Store) -> None:
    (made,) = put_planned(store, compare(tiny, *ONE, store=store)).values()
    record_path(store, made.fingerprint).unlink()
    (planned,) = compare(tiny, *ONE, store=store)
    assert (planned.state, planned.reasons, planned.record) == ("stale", ("record missing",), None)


def _without(*path: str) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        document = json.loads(content)
        node = document
        for name in path[:-1]:
            node = node[name]
        del node[path[-1]]
        return json.dumps(document).encode()

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"\x00\xff",
        lambda content: content[:-20],
        lambda _: b"[]",
        lambda _: b"[" * 100_000,
        lambda content: content.replace(b'"precision": "fp16"', b'"precision": "fp32"'),
        _without("subject"),
        _without("predicate", "cosyjit_schema"),
        _without("predicate", "runDetails", "metadata", "cosyjit_figures"),
        _without("predicate", "runDetails", "metadata", "cosyjit_figures", "bytes"),
    ],
    ids=["empty", "bytes", "cut", "list", "deep", "other parts", "subject", "schema", "figures", "size"],
)
def test_a_damaged_record_is_a_reason_and_set_aside_by_who_builds(
    tiny: Path, store: Store, damage: Callable[[bytes], bytes]
) -> None:
    (made,) = put_planned(store, compare(tiny, *ONE, store=store)).values()
    path = record_path(store, made.fingerprint)
    content = damage(path.read_bytes())
    path.write_bytes(content)
    for exporting in (False, False, True):
        (planned,) = compare(tiny, *ONE, store=store, exporting=exporting)
        assert (planned.state, planned.reasons, planned.record) == ("stale", ("record damaged",), None)
    assert path.read_bytes() == content  # another process may be replacing it right now
    put_planned(store, [planned])
    assert store.local is not None
    assert [aside.read_bytes() for aside in (store.local / "damaged").iterdir()] == [content]


def test_the_record_of_another_target_is_a_damaged_one(tiny: Path, store: Store) -> None:
    kept = put_planned(store, compare(tiny, ["llm.llm"], store=store))
    one, other = (record_path(store, each.fingerprint) for each in kept.values())
    shutil.copy(one, other)
    assert sorted(reasons(plan(tiny, ["llm.llm"]))) == [(), ("record damaged",)]


def test_a_record_of_a_later_schema_is_refused_by_name_and_left_alone(tiny: Path, store: Store) -> None:
    (made,) = put_planned(store, compare(tiny, *ONE, store=store)).values()
    path = record_path(store, made.fingerprint)
    path.write_text(path.read_text().replace('"cosyjit_schema": 1', '"cosyjit_schema": 2'))
    content = path.read_bytes()
    with pytest.raises(LaterSchemaError, match=rf"{made.fingerprint}\.json: is of schema 2.* upgrade cosyjit"):
        compare(tiny, *ONE, store=store)
    assert path.read_bytes() == content
    assert set(states(plan(tiny, ["flow.encoder"])).values()) == {"new"}


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"fingerprint": 5}', b'{"fingerprint": "unknown"}'])
def test_a_damaged_word_on_the_last_export_costs_the_reasons_only(tiny: Path, store: Store, content: bytes) -> None:
    put_planned(store, compare(tiny, *ONE, store=store), torch="1.13.0")
    assert store.local is not None
    (path,) = (store.local / "latest").iterdir()
    path.write_bytes(content)
    (planned,) = compare(tiny, *ONE, store=store)
    assert (planned.state, planned.reasons) == ("new", ())


def test_a_plan_leaves_the_model_directory_alone(tiny: Path, store: Store) -> None:
    before = snapshot(tiny)
    put_planned(store, compare(tiny, store=store))
    plan(tiny)
    assert snapshot(tiny) == before


def test_weights_that_do_not_fit_are_refused_though_another_target_is_fresh(
    tiny: Path, copy_of: Copy, store: Store
) -> None:
    directory = copy_of(tiny)
    put_planned(store, compare(directory, store=store))
    change(directory, "flow.pt", lambda state: state.pop("encoder.after_norm.weight"))
    with pytest.raises(TensorMismatchError, match=r"1 missing: encoder\.after_norm\.weight"):
        plan(directory)
    assert set(states(plan(directory, ["llm.llm"])).values()) == {"fresh"}


@pytest.mark.parametrize(
    "edit",
    [
        os.unlink,
        os.utime,
        lambda path: os.truncate(path, 1000),
        lambda path: shutil.copy(path, path.with_name("copy")) and path.with_name("copy").replace(path),
    ],
    ids=["removed", "touched", "cut", "replaced by a copy"],
)
def test_a_target_knows_that_its_weights_are_not_those_any_more(
    tiny: Path, copy_of: Copy, edit: Callable[[Path], object]
) -> None:
    directory = copy_of(tiny)
    llm, flow = (each.target for each in plan(directory, ["llm.llm", "flow.encoder"], ["fp32"]))
    flow.check_unchanged()
    edit(directory / "flow.pt")
    llm.check_unchanged()
    with pytest.raises(CheckpointError, match=r"flow\.pt: was changed after it was planned; run again"):
        flow.check_unchanged()


def test_a_store_that_cannot_be_read_is_an_error_that_names_it(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(CosyjitError, match=r"/store: cannot be read or written \(Not a directory\)"):
        plan(tiny, store=Store(tmp_path / "store"))


# On another machine.


def test_a_target_that_was_planned_with_another_torch_is_not_built_here(tiny: Path, store: Store) -> None:
    target = plan(tiny, ["flow.encoder"], ["fp32"], store=store)[0].target
    there = replace(target, fingerprint=replace(target.fingerprint, torch="2.99.0"))
    with pytest.raises(BuildError) as error:
        localize(there, store)
    assert str(error.value).startswith("flow.encoder.fp32: was planned by another installation (torch 2.99.0 -> 2.")


def test_a_target_whose_files_were_touched_or_copied_is_the_same_here(
    tiny: Path, copy_of: Callable[[Path], Path], store: Store
) -> None:
    directory = copy_of(tiny)
    target = plan(directory, ["flow.encoder"], ["fp32"], store=store)[0].target
    assert localize(target, store) is target
    (directory / "flow.pt").touch()
    found = localize(target, store)
    assert found.is_unchanged()
    assert not target.is_unchanged()
    assert found.fingerprint.key == target.fingerprint.key


def test_a_target_whose_tensors_changed_is_not_built(tiny: Path, copy_of: Callable[[Path], Path], store: Store) -> None:
    directory = copy_of(tiny)
    target = plan(directory, ["flow.encoder"], ["fp32"], store=store)[0].target
    retrain(directory, "flow.pt", "encoder.")
    with pytest.raises(CheckpointError, match="was changed after it was planned"):
        localize(target, store)
