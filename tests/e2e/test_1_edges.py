"""The nine edges of the pattern: each is an event that a plain Kafka client finds on its topic."""

from __future__ import annotations

import hashlib
import io
import itertools
import json

import jsonschema
import msgspec
import pyarrow.parquet as pq
import pytest

from deploy.demo.stage import MODEL
from deploy.why import chain
from schemas.events import FileRef
from streams.artifacts import folder_digest
from tests.e2e.system import ROOT, Seen, System
from trainers.row_files import get_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EDGES = (
    ("raw training data", "RecordSubmitted", "training.raw"),
    ("processed dataset", "ShardWritten", "training.shards"),
    ("pre-trained model", "BaseRegistered", "models.registry"),
    ("candidate model", "CandidateTrained", "models.candidates"),
    ("validated model", "VerdictReached", "models.verdicts"),
    ("deployed model", "ModelStateChanged", "models.registry"),
    ("model predictions", "InferenceServed", "usage.inferences"),
    ("performance metrics", "PerformanceMeasured", "monitor.performance"),
    ("usage analytics", "FeedbackGiven", "usage.feedback"),
)


@pytest.mark.parametrize(("edge", "event", "topic"), EDGES, ids=[edge.replace(" ", "-") for edge, _, _ in EDGES])
def test_an_edge_is_an_event_on_its_topic(system: System, edge: str, event: str, topic: str) -> None:
    schema = json.loads((ROOT / "schemas" / "published" / event / "1.json").read_text())
    contract = jsonschema.Draft202012Validator(schema)
    found = system.topic(topic, event)
    assert found, f"no {event} ({edge}) on {topic}"
    for seen in found:
        assert seen.headers["ce_specversion"] == "1.0"
        assert seen.headers["content-type"] == "application/json"
        assert {"ce_id", "ce_source", "ce_time"} <= seen.headers.keys()
        contract.validate(seen.body)
    assert len({seen.id for seen in found}) == len(found), "an event's id stands twice"


def test_raw_training_data_are_the_curated_rows_and_what_users_taught(system: System) -> None:
    records = system.topic("training.raw")
    imported = [seen for seen in records if seen.body["origin"] == "import"]
    assert sorted(seen.body["completion"] for seen in imported) == sorted(q.intent for q in system.plan.curated)
    taught = [seen for seen in records if seen.body["kind"] == "sft" and seen.body["origin"] == "feedback"]
    assert sorted(seen.body["inference_id"] for seen in taught) == sorted(s.inference_id for s in system.desk.scored)
    assert {seen.key for seen in taught} == {f"sft-{s.inference_id}" for s in system.desk.scored}
    thumbs = {s.body["inference_id"]: s.body["label"] for s in records if s.body["kind"] == "kto"}
    assert thumbs == {scored.inference_id: scored.correct for scored in system.desk.scored}


def test_the_processed_dataset_holds_every_raw_record_once(system: System) -> None:
    shards = system.topic("training.shards")
    rows = dropped = 0
    ranges: dict[int, list[tuple[int, int]]] = {}
    for seen in shards:
        data = (system.settings.data / "artifacts" / seen.body["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == seen.body["digest"]
        assert pq.read_table(io.BytesIO(data)).num_rows == seen.body["rows"]
        rows, dropped = rows + seen.body["rows"], dropped + sum(seen.body["dropped"].values())
        first_last = seen.body["first_offset"], seen.body["last_offset"]
        ranges.setdefault(seen.body["source_partition"], []).append(first_last)
    assert rows + dropped == len(system.topic("training.raw"))
    for covered in ranges.values():
        covered.sort()
        assert all(before[1] < after[0] for before, after in itertools.pairwise(covered))


def test_the_pre_trained_model_is_the_stored_one_that_jobs_start_from(system: System) -> None:
    base = system.topic("models.registry", "BaseRegistered")[-1]
    assert base.key == f"base/{system.settings.models[MODEL].base}"
    assert folder_digest(system.settings.data / "artifacts" / base.body["path"]) == base.body["digest"]
    assert {job.body["base_digest"] for job in system.topic("training.jobs")} == {base.body["digest"]}


def test_candidate_validated_and_deployed_model_are_the_same_adapter(system: System) -> None:
    candidates = system.topic("models.candidates", "CandidateTrained")
    for candidate in candidates:
        assert folder_digest(system.settings.data / "artifacts" / candidate.body["path"]) == candidate.body["digest"]
    passed = [seen.body["digest"] for seen in system.topic("models.verdicts", "VerdictReached") if seen.body["passed"]]
    state = system.topic("models.registry", "ModelStateChanged")[-1].body
    assert [version["digest"] for version in state["versions"]] == passed
    assert set(passed) <= {candidate.body["digest"] for candidate in candidates}
    assert state["champion"] == 2
    served = {(seen.body["version"], seen.body["digest"]) for seen in system.topic("usage.inferences")}
    assert served == {(0, ""), (1, passed[0]), (2, passed[1])}


def test_a_verdict_carries_the_numbers_it_rests_on(system: System) -> None:
    verdict = system.topic("models.verdicts", "VerdictReached")[-1].body
    checks = {check["dataset"]: check for check in verdict["checks"]}
    assert {"recent", "older", "classes"} <= checks.keys()
    for check in checks.values():
        assert check["passed"] and check["n"] >= check["n_required"] and check["units"] >= 20
        assert check["bound"] > -check["margin"] and json.loads(check["details"])["clusters"] == "unit"
        assert check["candidate_mean"] - check["champion_mean"] == pytest.approx(check["difference"])
    assert checks["older"]["margin"] == system.settings.models[MODEL].max_retention_loss
    tests, scores = (get_table(system.store, msgspec.convert(verdict[name], FileRef)) for name in ("test_rows", "scores"))
    assert tests.num_rows == scores.num_rows >= checks["recent"]["n"] + checks["older"]["n"]
    drift = system.topic("monitor.drift")[-1].body
    recent = [said_ms > drift["changed_at"] for said_ms in tests["said_ms"].to_pylist()]
    assert sum(recent) == checks["recent"]["n"], "recent is what was said since the change"


def test_performance_is_measured_for_every_version_that_was_scored(system: System) -> None:
    measured = system.topic("monitor.performance", "PerformanceMeasured")
    last = {seen.key: seen.body for seen in measured}
    for version in (1, 2):
        mine = [s.correct for s in system.desk.scored if s.version == version]
        body = last[f"{MODEL}@{version}"]
        assert body["quality_n"] == len(mine)
        assert body["quality"] == pytest.approx(sum(mine) / len(mine))
        assert body["quality_low"] <= body["quality"] <= body["quality_high"]


def the(found: list[Seen], **fields: object) -> Seen:
    """The one record whose body has these fields."""
    (one,) = [seen for seen in found if all(seen.body[name] == value for name, value in fields.items())]
    return one


def test_drift_job_candidate_verdict_and_state_are_one_linked_chain(system: System) -> None:
    drift = the(system.topic("monitor.drift"), version=1)
    job = the(system.topic("training.jobs"), reason="drift")
    candidate = the(system.topic("models.candidates", "CandidateTrained"), job_id=job.body["job_id"])
    verdict = the(system.topic("models.verdicts", "VerdictReached"), job_id=job.body["job_id"])
    (state,) = [seen for seen in system.topic("models.registry") if seen.causation == verdict.id]
    (decision,) = [seen for seen in system.topic("models.decisions") if seen.causation == verdict.id]
    trigger = the(system.topic("training.triggers", "TriggerOpened"), kind="drift")
    closed = the(system.topic("training.triggers", "TriggerClosed"), trigger_id=trigger.body["trigger_id"])
    assert (closed.body["because"], closed.body["job_id"]) == ("answered", job.body["job_id"])
    assert job.body["answers"] == [trigger.body["trigger_id"]]
    chain = [drift, trigger, job, candidate, verdict, state]
    assert {seen.correlation for seen in [*chain, decision]} == {drift.body["drift_id"]}
    assert [seen.causation for seen in chain[1:]] == [seen.id for seen in chain[:-1]]
    assert (decision.body["decision"], decision.body["version"]) == ("promoted", 2)
    assert state.body["champion"] == 2
    times = [seen.headers["ce_time"] for seen in chain]
    assert times == sorted(times)


def test_lineage_has_one_row_for_each_promotion_and_its_usage(system: System) -> None:
    found = system.rows("SELECT version, reason, drift_id, requests, examples FROM tuneloop.lineage ORDER BY version")
    assert [(row["version"], row["reason"]) for row in found] == [(1, "initial"), (2, "drift")]
    drift = the(system.topic("monitor.drift"), version=1)
    assert [row["drift_id"] for row in found] == ["", drift.body["drift_id"]]
    assert all(row["requests"] > 0 and row["examples"] > 0 for row in found)


@pytest.mark.parametrize("asked_by", ["drift", "job", "version", "verdict", "candidate"])
def test_why_knows_the_chain_by_any_of_its_ids(system: System, asked_by: str) -> None:
    job = the(system.topic("training.jobs"), reason="drift")
    verdict = the(system.topic("models.verdicts", "VerdictReached"), job_id=job.body["job_id"])
    identity = {
        "drift": job.body["drift_id"], "job": job.body["job_id"], "version": f"{MODEL}@2", "verdict": verdict.id,
        "candidate": verdict.body["digest"],
    }[asked_by]  # fmt: skip
    told = [row["event"] for row in chain(system.clickhouse, identity) if row["event"] != "job_deferred"]
    main_line = ["drift_detected", "trigger_opened", "job_requested", "candidate_trained", "verdict_reached", "model_state_changed"]
    assert [event for event in told if event in main_line] == main_line
    assert sorted(told) == sorted([*main_line, "job_ended", "decision_made", "requests", "trigger_closed"])


def test_why_knows_nothing_of_no_id(system: System) -> None:
    said = system.cli("why", "")
    assert said.code == 1 and "nothing is known of ''" in said.err


def test_why_prints_the_chain_on_one_screen(system: System) -> None:
    said = system.cli("why", f"{MODEL}@2")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert 9 <= len(lines) <= 24
    drift = the(system.topic("monitor.drift"), version=1)
    assert "drift_detected" in lines[1] and drift.body["drift_id"] in lines[1]
    requests = system.value("SELECT count() FROM tuneloop.inference_served FINAL WHERE version = 2")
    assert f"{requests} requests served by {MODEL}@2" in lines[-1]
