"""Results as JSON."""

import json

from cosyjit import Change, Diff, Difference, Fault, Published, Shown, Status
from cosyjit.doctor.finding import Finding
from cosyjit.errors import OutputError
from cosyjit.operations.copy_store import Copied
from cosyjit.provenance.lineage import Lineage
from cosyjit.provenance.record import embedded_provenance
from cosyjit.publishing.plans import OlderPlan, OutdatedPlan
from cosyjit.reports import as_json
from cosyjit.store.backends import Entry
from tests.reports.results import DIGEST, FIGURES, MARKUP, built, failed, planned, publication, record, target


def test_json_of_what_was_built_has_every_field_and_no_other() -> None:
    assert json.loads(as_json.outcomes([built("llm.llm", "fp16")])) == {
        "targets": [
            {
                "component": "llm.llm",
                "precision": "fp16",
                "device": "cpu",
                "fingerprint": target("llm.llm", "fp16").fingerprint.key,
                "state": "built",
                "reasons": ["torch 1 -> 2"],
                "path": "/models/m/llm.llm.fp16.zip",
                "sha256": DIGEST,
                "bytes": 4_007_654,
                "figures": FIGURES,
                "seconds": 12.346,
                "error": None,
            }
        ]
    }


def test_json_of_what_failed_has_null_for_what_there_is_not() -> None:
    assert json.loads(as_json.outcomes([failed("flow.encoder", "the build process was killed by SIGKILL")])) == {
        "targets": [
            {
                "component": "flow.encoder",
                "precision": "fp32",
                "device": "cpu",
                "fingerprint": target("flow.encoder").fingerprint.key,
                "state": "failed",
                "reasons": [],
                "path": None,
                "sha256": None,
                "bytes": None,
                "figures": None,
                "seconds": None,
                "error": "the build process was killed by SIGKILL",
            }
        ]
    }


def test_json_of_what_was_built_in_vain_has_its_digest_and_no_path() -> None:
    (entry, other) = json.loads(as_json.outcomes([built("llm.llm", published=False), failed("flow.encoder", "no")]))[
        "targets"
    ]
    assert (entry["state"], entry["path"], entry["sha256"]) == ("built", None, DIGEST)
    assert (other["state"], other["error"]) == ("failed", "no")


def test_json_keeps_the_order_and_any_text() -> None:
    outcomes = [failed("llm.llm", f'"{MARKUP}"\n\t\\ 语音'), built("llm.text_encoder", directory=f"/{MARKUP}/语音")]
    targets = json.loads(as_json.outcomes(outcomes))["targets"]
    assert [entry["component"] for entry in targets] == ["llm.llm", "llm.text_encoder"]
    assert targets[0]["error"] == f'"{MARKUP}"\n\t\\ 语音'
    assert targets[1]["path"] == f"/{MARKUP}/语音/llm.text_encoder.fp32.zip"


def test_json_of_nothing_is_an_empty_list() -> None:
    assert json.loads(as_json.outcomes([])) == {"targets": []}


def test_faults_are_named_in_json() -> None:
    assert json.loads(as_json.faults([Fault("a", MARKUP)])) == {"faults": [{"name": "a", "problem": MARKUP}]}


def test_a_plan_has_its_targets_and_what_an_export_would_refuse() -> None:
    reasons = (MARKUP, "object missing")
    refused = OutputError(f"{MARKUP}: is in the way")
    outdated = OutdatedPlan(f"a.{MARKUP}.plan", "a.onnx", f"a.{MARKUP}.plan.1")
    assert json.loads(as_json.plan([planned(*reasons)], [refused], [outdated])) == {
        "obstacles": [str(refused)],
        "outdated_plans": [{"name": f"a.{MARKUP}.plan", "file": "a.onnx", "kept": f"a.{MARKUP}.plan.1"}],
        "targets": [
            {
                "component": "llm.llm",
                "precision": "fp32",
                "device": "cpu",
                "fingerprint": target("llm.llm").fingerprint.key,
                "state": "stale",
                "reasons": list(reasons),
            }
        ],
    }


def test_a_status_has_its_publication_and_each_name() -> None:
    one = publication(1, a="1", b="2")
    names = Shown("a.zip", "damaged", "stale", (MARKUP,)), Shown("b.zip", "intact", "current")
    found = Status(one, names, "missing", older_plans=(OlderPlan("a.plan", "a.onnx"),))
    assert json.loads(as_json.status(found)) == {
        "publication": {"identity": one.identity, **json.loads(one.content)},
        "manifest": "missing",
        "compared_with": None,
        "names": [
            {"name": "a.zip", "file": "damaged", "state": "stale", "reasons": [MARKUP]},
            {"name": "b.zip", "file": "intact", "state": "current", "reasons": []},
        ],
        "older_plans": [{"name": "a.plan", "file": "a.onnx"}],
    }


def test_a_history_has_each_publication_with_its_artifacts() -> None:
    chain = [publication(3, 1, a="1"), publication(2, a="2", b="3"), publication(1, a="1")]
    found = json.loads(as_json.history(chain))["publications"]
    assert [each["identity"] for each in found] == [each.identity for each in chain]
    assert [(each["number"], each["restores"]) for each in found] == [(3, 1), (2, None), (1, None)]
    assert found[1]["artifacts"]["b.zip"] == {"sha256": "3" * 64, "bytes": 5, "fingerprint": "k" * 32}


def test_a_diff_has_its_publications_and_each_name_with_lists_of_changes() -> None:
    before, after = Published("1" * 64, 5, "k" * 32), Published("2" * 64, 6, "l" * 32, {"f": "3" * 64})
    tensor = {"dtype": "float32", "shape": (2, 3), "digest": "0" * 32}
    found = Diff(
        publication(1, a="1"),
        publication(2, a="2"),
        (
            Difference(
                "a.zip",
                "changed",
                before,
                after,
                (1, 1),
                tensors=(Change(MARKUP, "changed", None, tensor),),
                problems=(MARKUP,),
            ),
            Difference("b.zip", "added", None, after),
        ),
    )
    nothing: dict[str, list[object]] = {"tensors": [], "options": [], "versions": [], "figures": [], "files": []}
    told = json.loads(as_json.diff(found))
    assert told["before"] == {
        "number": 1,
        "identity": found.before.identity,
        "published": "2026-01-01",
        "source": f"/{MARKUP}",
    }
    assert told["after"]["number"] == 2
    shown = {"sha256": "2" * 64, "bytes": 6, "fingerprint": "l" * 32, "files": {"f": "3" * 64}}
    assert told["artifacts"] == [
        {
            "name": "a.zip",
            "state": "changed",
            "before": {"sha256": "1" * 64, "bytes": 5, "fingerprint": "k" * 32},
            "after": shown,
            **nothing,
            "tensors": [
                {"name": MARKUP, "state": "changed", "before": None, "after": {**tensor, "shape": [2, 3]}},
            ],
            "problems": [MARKUP],
        },
        {"name": "b.zip", "state": "added", "before": None, "after": shown, **nothing, "problems": []},
    ]


def test_findings_are_objects_and_say_whether_all_is_well() -> None:
    found = Finding("store", "free", 5, "note", MARKUP, "bytes")
    shown = {"part": "store", "name": "free", "value": 5, "state": "note", "advice": MARKUP, "unit": "bytes"}
    assert json.loads(as_json.findings([found])) == {"well": True, "findings": [shown]}
    assert json.loads(as_json.findings([Finding("a", "b", None, "wrong")]))["well"] is False


def test_a_lineage_is_the_record_or_else_what_the_file_says_of_itself() -> None:
    made = record(target("llm.llm"), run={"prefect_flow_run": "run 1"}, source=f"/{MARKUP}")
    assert json.loads(as_json.lineage(Lineage(made))) == json.loads(json.dumps(made.statement))
    said = json.loads(embedded_provenance(made.fingerprint))
    assert json.loads(as_json.lineage(Lineage(None, said, DIGEST))) == said


def test_garbage_has_each_file() -> None:
    assert json.loads(as_json.garbage([Entry("tmp/x", 5, 1.0)], removed=False)) == {
        "files": [{"name": "tmp/x", "bytes": 5}],
        "bytes": 5,
        "removed": False,
    }


def test_a_copy_has_what_was_copied_and_what_was_not() -> None:
    done = Copied((Entry("objects/ab/abc", 5, 1.0),), ("records/k.json",), (Fault("heads/h.json", MARKUP),))
    assert json.loads(as_json.copied(done)) == {
        "copied": [{"name": "objects/ab/abc", "bytes": 5}],
        "present": ["records/k.json"],
        "left_out": [{"name": "heads/h.json", "problem": MARKUP}],
    }
