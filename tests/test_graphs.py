"""Proven graphs: what they save an export, what they are never relied on for, and who keeps them."""

import base64
import os
import shutil
import signal
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from cosyjit import Outcome, Store, copy_store, documents, export, gc, plan, verify_directory, verify_store
from cosyjit.building.build import prove
from cosyjit.planning.target import Target
from cosyjit.processes import processors
from cosyjit.processes.memory import reservations_directory
from cosyjit.provenance import graphs, record, statements
from cosyjit.provenance.record import Record
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.coordination import PRIVATE_ROOT
from cosyjit.store.signing import Signer
from cosyjit.torchscript.graph import PROOF, Graph
from tests.support.builds import Builds
from tests.support.checkpoints import change, retrain, rewrite
from tests.support.keys import pair
from tests.support.processes import RESERVE, Run, said, start
from tests.support.processes import builds as builders
from tests.support.stores import age, put

Copy = Callable[[Path], Path]

ONE: Final[dict[str, Any]] = {"components": ["llm.text_encoder"], "precisions": ["fp16"]}
MONTH: Final = 30 * 86_400.0


@pytest.fixture
def directory(tiny: Path, copy_of: Copy, store: Store, builds: Builds) -> Path:
    """A model directory of which one artifact has been exported; the store has its graph."""
    directory = copy_of(tiny)
    builds.stock(store, directory, **ONE)
    graph = builds.store.read(name_of(directory))
    assert graph is not None
    store.write(name_of(directory), graph)
    assert outcome_of(directory).state == "cached"
    retrain(directory, "llm.pt", "text_encoder.")
    return directory


def exported(directory: Path, store: Store | None = None, **options: Any) -> Mapping[str, float]:
    """The figures of the one artifact that an export has built."""
    outcome = outcome_of(directory, store, **options)
    assert (outcome.state, outcome.error) == ("built", None)
    assert outcome.record is not None
    return outcome.record.figures


def outcome_of(directory: Path, store: Store | None = None, **options: Any) -> Outcome:
    (outcome,) = export(directory, store=store, **(ONE | options))
    return outcome


def name_of(directory: Path) -> str:
    (planned,) = plan(directory, **ONE)
    return graphs.name_of(planned.target.fingerprint)


def edit(store: Store, name: str, change: Callable[[dict[str, Any]], object], signer: Signer | None = None) -> None:
    """Write a graph's document anew, with a right checksum."""
    content = store.read(name)
    assert content is not None
    document, _ = statements.opened(content, name, None)
    change(document)
    store.write(name, statements.content(document, signer))


def test_other_weights_of_a_proven_graph_are_written_without_scripting(directory: Path, store: Store) -> None:
    stages: list[str] = []
    figures = exported(directory, progress=lambda _, stage: stages.append(stage))
    assert figures["of_graph"] == 1
    assert stages == ["waiting", "load", "save", "verify", "built"]
    assert figures["cosine"] > 0.9999
    quick = (directory / "llm.text_encoder.fp16.zip").read_bytes()
    stages.clear()
    assert exported(directory, force=True, progress=lambda _, stage: stages.append(stage))["of_graph"] == 0
    assert stages == ["waiting", "load", "script", "save", "verify", "built"]
    assert (directory / "llm.text_encoder.fp16.zip").read_bytes() == quick
    assert verify_store(store) == []


@pytest.mark.slow
def test_the_time_of_a_step_is_that_of_the_graph(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    first = exported(directory, components=["llm.llm"])
    retrain(directory, "llm.pt", "llm.")
    second = exported(directory, components=["llm.llm"])
    assert (first["of_graph"], second["of_graph"]) == (0, 1)
    assert {each: second[each] for each in ("step_seconds", "speedup")} == {
        each: first[each] for each in ("step_seconds", "speedup")
    }


def another_processor(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    processors.kind.cache_clear()


def another_proof(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(graphs, "PROOF", PROOF + 1)


def other_options(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    rewrite(directory, "static_chunk_size: 1\n    llm:", "static_chunk_size: 3\n    llm:")


@pytest.mark.parametrize(
    "differ",
    [another_processor, another_proof, pytest.param(other_options, marks=pytest.mark.slow)],
    ids=lambda each: each.__name__,
)
def test_a_graph_is_that_of_its_options_its_processor_and_its_proof(
    differ: Callable[[Path, pytest.MonkeyPatch], None], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = name_of(directory)
    try:
        differ(directory, monkeypatch)
        assert name_of(directory) != before
        assert exported(directory)["of_graph"] == 0
    finally:
        monkeypatch.undo()
        processors.kind.cache_clear()


@pytest.mark.slow
def test_quantized_weights_do_not_have_a_graph(tiny: Path, copy_of: Copy, store: Store) -> None:
    directory = copy_of(tiny)
    quantized: dict[str, Any] = {"components": ["llm.llm"], "precisions": ["int8"]}
    exported(directory, **quantized)
    retrain(directory, "llm.pt", "llm.")
    assert exported(directory, **quantized)["of_graph"] == 0
    assert store.entries("graphs") == []


@pytest.mark.slow
def test_equal_weights_are_scripted_since_freezing_merges_them(directory: Path) -> None:
    def alike(state: dict[str, Any]) -> None:
        name = "text_encoder.encoders.{}.feed_forward.w_1.weight"
        state[name.format(0)] = state[name.format(1)].clone()

    change(directory, "llm.pt", alike)
    assert exported(directory)["of_graph"] == 0
    quick = (directory / "llm.text_encoder.fp16.zip").read_bytes()
    exported(directory, force=True)
    assert (directory / "llm.text_encoder.fp16.zip").read_bytes() == quick


@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_weights_that_overflow_in_the_encoder_are_refused(precision: str, directory: Path) -> None:
    exported(directory, precisions=[precision])

    def grow(state: dict[str, Any]) -> None:
        for name in ("w_1.weight", "w_2.weight"):
            state[f"text_encoder.encoders.0.feed_forward.{name}"] *= {"fp16": 1e3, "fp32": 1e22}[precision]

    change(directory, "llm.pt", grow)
    outcome = outcome_of(directory, precisions=[precision])
    assert outcome.state == "failed"
    assert "NaN or infinite" in str(outcome.error)


@pytest.mark.slow
def test_weights_that_overflow_on_a_later_frame_are_refused(tiny2: Path, copy_of: Copy) -> None:
    """A tap that meets only padding in the shortest sequences."""
    directory = copy_of(tiny2)
    options: dict[str, Any] = {"components": ["flow.encoder"], "precisions": ["fp32"]}
    exported(directory, **options)
    change(directory, "flow.pt", lambda state: state["encoder.pre_lookahead_layer.conv1.weight"][:, :, 3].mul_(1e38))
    outcome = outcome_of(directory, **options)
    assert outcome.state == "failed"
    assert "NaN or infinite" in str(outcome.error)


@pytest.mark.slow
def test_weights_that_overflow_at_far_positions_are_refused(tiny: Path, copy_of: Copy) -> None:
    """Scores of positions, which are near 0 up to the lengths of `forward`, and infinite 1,040 frames back."""
    directory = copy_of(tiny)
    options: dict[str, Any] = {"components": ["llm.llm"], "precisions": ["fp32"]}
    exported(directory, **options)

    def grow(state: dict[str, Any]) -> None:
        attention = "llm.encoders.0.self_attn."
        state[f"{attention}linear_pos.weight"][:, -12::2] = 6e37  # the sines of the lowest frequencies
        state[f"{attention}pos_bias_v"] = state[f"{attention}pos_bias_v"].abs() * 0.01 + 1
        for name in ("linear_q.weight", "linear_q.bias"):
            state[attention + name] *= 1e-4

    change(directory, "llm.pt", grow)
    outcome = outcome_of(directory, **options)
    assert outcome.state == "failed"
    assert "behind 1040 of the encoder itself has" in str(outcome.error)


@pytest.mark.slow
def test_a_weight_that_is_its_own_transpose_is_scripted(directory: Path) -> None:
    def symmetric(state: dict[str, Any]) -> None:
        name = "text_encoder.encoders.0.self_attn.linear_out.weight"
        state[name] = torch.zeros_like(state[name])

    change(directory, "llm.pt", symmetric)
    assert exported(directory)["of_graph"] == 0


def strided(state: dict[str, Any]) -> None:
    name = "text_encoder.encoders.0.feed_forward.w_1.weight"
    state[name] = state[name].t().contiguous().t()


def of_one_row(state: dict[str, Any]) -> None:
    name = "text_encoder.embed.out.0.bias"
    state[name] = state[name][:1].expand(state[name].shape)


@pytest.mark.slow
@pytest.mark.parametrize("edit", [strided, of_one_row], ids=lambda edit: edit.__name__)
def test_equal_numbers_give_equal_bytes_however_they_stand_in_memory(
    edit: Callable[[dict[str, Any]], None], directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    change(directory, "llm.pt", edit)
    exported(directory, precisions=["fp32"])
    state = torch.load(directory / "llm.pt", weights_only=True)
    torch.save(
        {name: each.clone(memory_format=torch.contiguous_format) for name, each in state.items()}, directory / "llm.pt"
    )
    quick = (directory / "llm.text_encoder.fp32.zip").read_bytes()
    exported(directory, precisions=["fp32"], force=True)
    assert (directory / "llm.text_encoder.fp32.zip").read_bytes() == quick


def another_code(document: dict[str, Any]) -> None:
    """Changes a number in the code, which is packed, and puts it back as whoever can write to the store."""
    graph = document["predicate"]["graph"]
    own = zlib.decompress(base64.b64decode(graph["own"]))
    at = own.index(b"PK\1\2")
    graph["own"] = base64.b64encode(zlib.compress(own[:at] + b"PK\1\3" + own[at + 4 :])).decode()


def other_weights(document: dict[str, Any]) -> None:
    """Exchanges the places of two weights of one size."""
    gaps = document["predicate"]["graph"]["gaps"]
    weights = [gap for gap in gaps if gap[1] == "weight" and gap[3] == 64 * 2]
    weights[0][2], weights[1][2] = weights[1][2], weights[0][2]


def another_checksum(document: dict[str, Any]) -> None:
    """Puts a wrong checksum of the provenance into the directory: torch does not look at it, zipfile does."""
    graph = document["predicate"]["graph"]
    gaps = graph["gaps"]
    own = zlib.decompress(base64.b64decode(graph["own"]))
    last = max(at for at, gap in enumerate(gaps) if gap[1] == "checksum" and "/extra/" in gap[2])
    at = gaps.pop(last)[0]
    for gap in gaps[last:]:
        gap[0] += 4
    graph["own"] = base64.b64encode(zlib.compress(own[:at] + b"\1\2\3\4" + own[at:])).decode()


@pytest.mark.parametrize(
    "fault",
    [another_code, *(pytest.param(each, marks=pytest.mark.slow) for each in (other_weights, another_checksum))],
    ids=lambda fault: fault.__name__,
)
def test_a_graph_that_does_not_give_the_encoder_is_made_anew(
    fault: Callable[[dict[str, Any]], None], directory: Path, store: Store
) -> None:
    name = name_of(directory)
    whole = store.read(name)
    edit(store, name, fault)
    stages: list[str] = []
    assert exported(directory, progress=lambda _, stage: stages.append(stage))["of_graph"] == 0
    assert stages == ["waiting", "load", "save", "verify", "load", "script", "save", "verify", "built"]
    assert graph_in(store, name) == graph_in_content(whole)


def test_a_graph_whose_zip_ends_the_process_is_made_anew(directory: Path) -> None:
    stages: list[str] = []

    def kill(_: Target, stage: str) -> None:
        stages.append(stage)
        if stages == ["waiting", "load", "save", "verify"]:
            os.kill(max(builders(os.getpid())), signal.SIGKILL)

    assert exported(directory, progress=kill)["of_graph"] == 0
    assert stages == ["waiting", "load", "save", "verify", "load", "script", "save", "verify", "built"]


def graph_in(store: Store, name: str) -> Graph:
    return graph_in_content(store.read(name))


def graph_in_content(content: bytes | None) -> Graph:
    assert content is not None
    document, _ = statements.opened(content, "", None)
    return Graph.parse(document["predicate"]["graph"])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def a_large_file(path: Path) -> None:
    os.truncate(path, 65 << 20)


def a_file_for_all(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.touch()


@pytest.mark.parametrize(
    "put",
    [a_folder, *(pytest.param(each, marks=pytest.mark.slow) for each in (a_link, a_large_file, a_file_for_all))],
    ids=lambda put: put.__name__,
)
def test_what_stands_in_a_graphs_place_stops_no_export(
    put: Callable[[Path], None], directory: Path, store: Store
) -> None:
    assert store.local is not None
    put(store.local / name_of(directory))
    assert exported(directory)["of_graph"] == 0


DAMAGES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "cut short": lambda content: content[:-20],
    "empty": lambda _: b"",
    "of one other byte": lambda content: content.replace(b"graph:v1", b"graph:v2"),
    "not a statement": lambda _: documents.with_checksum({"schema": 1}),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(each, marks=[pytest.mark.slow] if number else []) for number, each in enumerate(DAMAGES)]
)
def test_a_damaged_graph_is_reported_and_made_anew(damage: str, directory: Path, store: Store) -> None:
    name = name_of(directory)
    content = store.read(name)
    assert content is not None
    store.write(name, DAMAGES[damage](content))
    ((where, problem),) = verify_store(store)
    assert (where, "is damaged (" in problem) == (name, True)
    assert exported(directory)["of_graph"] == 0
    assert verify_store(store) == []
    retrain(directory, "llm.pt", "text_encoder.")
    assert exported(directory)["of_graph"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("field", ["parts", "processor"])
def test_a_graph_in_anothers_place_is_not_relied_on(field: str, directory: Path, store: Store) -> None:
    def change(document: dict[str, Any]) -> None:
        parts = document["predicate"]["parts"]
        parts["precision" if field == "parts" else "processor"] = "another"

    name = name_of(directory)
    edit(store, name, change)
    assert [fault.name for fault in verify_store(store)] == [name]
    assert exported(directory)["of_graph"] == 0


def test_a_graph_of_a_later_version_is_neither_relied_on_nor_replaced(directory: Path, store: Store) -> None:
    name = name_of(directory)
    edit(store, name, lambda document: document["predicate"].update(cosyjit_schema=2))
    later = store.read(name)
    assert exported(directory)["of_graph"] == 0
    assert store.read(name) == later


# Signatures.


@pytest.mark.slow
def test_where_signatures_are_required_only_a_signed_graph_is_relied_on(
    directory: Path, store: Store, tmp_path: Path
) -> None:
    keys, others = pair(tmp_path), pair(tmp_path, "other")
    signing = Store(store.root, sign=keys.private, require=keys.public)
    assert exported(directory, signing)["of_graph"] == 0  # the graph was not signed
    retrain(directory, "llm.pt", "text_encoder.")
    assert exported(directory, signing)["of_graph"] == 1
    retrain(directory, "llm.pt", "text_encoder.")
    name = name_of(directory)
    edit(store, name, lambda _: None, Signer(others.private))
    assert exported(directory, signing)["of_graph"] == 0


@pytest.mark.slow
def test_who_signs_relies_on_what_the_same_key_has_signed(directory: Path, store: Store, tmp_path: Path) -> None:
    keys, others = pair(tmp_path), pair(tmp_path, "other")
    signing, another = Store(store.root, sign=keys.private), Store(store.root, sign=others.private)
    assert exported(directory, signing)["of_graph"] == 0
    retrain(directory, "llm.pt", "text_encoder.")
    assert exported(directory, another)["of_graph"] == 0
    retrain(directory, "llm.pt", "text_encoder.")
    assert exported(directory, another)["of_graph"] == 1


@pytest.mark.slow
def test_a_signed_graph_is_relied_on_without_a_key_and_stays(directory: Path, store: Store, tmp_path: Path) -> None:
    exported(directory, Store(store.root, sign=pair(tmp_path).private))
    signed = store.read(name_of(directory))
    retrain(directory, "llm.pt", "text_encoder.")
    assert exported(directory)["of_graph"] == 1
    assert store.read(name_of(directory)) == signed


# Who keeps them.


def test_a_graph_stays_as_long_as_the_record_of_its_last_artifact(directory: Path, store: Store) -> None:
    name = name_of(directory)
    exported(directory)
    retrain(directory, "llm.pt", "text_encoder.")
    exported(directory)
    age(store, MONTH)
    gc(store, keep=1, older_than=86_400.0, delete=True)
    assert store.has(name)
    for entry in store.entries("records"):
        store.remove(entry.name)
    age(store, MONTH)
    assert name in [entry.name for entry in gc(store, keep=1, older_than=86_400.0)]


@pytest.mark.slow
def test_a_copied_store_has_the_graphs(directory: Path, store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    copied = copy_store(store, other)
    assert name_of(directory) in [entry.name for entry in copied.copied]
    assert copied.left_out == ()
    assert exported(directory, other)["of_graph"] == 1
    assert name_of(directory) in copy_store(store, other).present


@pytest.mark.slow
def test_a_graph_whose_record_is_gone_is_not_copied(directory: Path, store: Store, tmp_path: Path) -> None:
    for entry in store.entries("records"):
        store.remove(entry.name)
    assert name_of(directory) in [fault.name for fault in copy_store(store, Store(tmp_path / "other")).left_out]


# All of it again.


def test_verifying_deeply_compares_with_the_checkpoint(directory: Path, run: Run) -> None:
    assert exported(directory)["of_graph"] == 1
    assert verify_directory(directory, deep=True) == []
    ran = run("verify", directory, "--deep")
    assert (ran.status, ran.out.strip()) == (0, "Nothing is wrong")
    retrain(directory, "llm.pt", "text_encoder.")
    ran = run("verify", directory, "--deep")
    assert ran.status == 1
    assert (
        f"{directory / 'llm.text_encoder.fp16.zip'}: {directory}: is not what llm.text_encoder.fp16.zip was made from"
        in (" ".join(ran.out.split()))
    )


@pytest.mark.slow
def test_verifying_deeply_sees_what_digests_do_not(directory: Path, store: Store) -> None:
    first = record_in(directory, store)
    exported(directory)
    second = record_in(directory, store)
    record.save(store, replace(second, sha256=first.sha256))  # as a fault of the build would have it
    assert outcome_of(directory).state == "cached"
    assert verify_directory(directory) == []
    ((where, problem),) = verify_directory(directory, deep=True)
    assert where == str(directory / "llm.text_encoder.fp16.zip")
    assert "is not the cast of its tensor" in problem


@pytest.mark.slow
def test_verifying_deeply_says_what_it_cannot_compare(directory: Path, store: Store) -> None:
    exported(directory)
    (name,) = (record.name_of(record_in(directory, store).fingerprint.key),)
    whole = store.read(name)
    assert whole is not None
    store.remove(name)
    ((_, problem),) = verify_directory(directory, deep=True)
    assert problem == f"{store}: has no record of llm.text_encoder.fp16.zip, and so not its checkpoint; export it again"
    store.write(name, whole)
    (directory / "llm.pt").unlink()
    ((_, problem),) = verify_directory(directory, deep=True)
    assert problem.startswith(f"{directory / 'llm.pt'}: ")


@pytest.mark.slow
def test_verifying_deeply_waits_for_memory_as_builds_do(
    directory: Path, store: Store, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Where others have reserved what there is, it does not begin."""
    exported(directory)
    with start(RESERVE, reservations_directory(), 1) as other:
        assert said(other) == "in"
        ((_, problem),) = verify_directory(directory, store=Store(store.root, wait=0.1), deep=True, memory=1)
    assert problem.startswith(f"memory: is in use by process {other.pid} ")
    monkeypatch.setenv("COSYJIT_MEMORY", "much")
    ran = run("verify", directory, "--deep")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("cosyjit: COSYJIT_MEMORY=much: is not an amount of memory")


@pytest.mark.slow
def test_what_is_verified_deeply_stays_when_another_command_begins(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Path(PRIVATE_ROOT).expanduser() / "tmp" / "cosyjit-of_dead1"  # of a process that was killed
    left.mkdir(parents=True)
    exported(directory)

    def prove_later(target: Target, path: Path) -> None:
        with Store("memory://another").in_use():
            assert not left.exists()
        prove(target, path)

    monkeypatch.setattr("cosyjit.operations.verify.prove", prove_later)
    assert verify_directory(directory, deep=True) == []


def record_in(directory: Path, store: Store) -> Record:
    """The record of the artifact that a directory shows."""
    live = PublishedDirectory(directory, store).require_live()
    ((_, artifact),) = live.artifacts.items()
    found = record.load(store, artifact.fingerprint)
    assert found is not None
    return found


@pytest.mark.parametrize("place", [(), ("store",)], ids=["no place", "a store"])
def test_verifying_deeply_is_for_a_directory(place: tuple[str, ...], store: Store, run: Run) -> None:
    put(store, b"one")
    ran = run("verify", *[store.root for _ in place], "--deep")
    assert ran.status == 2
    assert "--deep: compares what a directory shows with its checkpoint; name the directory" in " ".join(
        ran.err.split()
    )
