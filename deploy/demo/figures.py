"""The demo's figures, all from events in ClickHouse; the held-out questions by the serving engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clickhouse_connect.driver.client import Client

from deploy.demo.questions import Question
from schemas.events import Version
from schemas.landing import table_name
from schemas.topics import TOPICS
from serving.engine import Engine, Request
from streams.artifacts import ArtifactStore
from streams.clickhouse import rows
from streams.monitor.intervals import wilson

MS = "toUnixTimestamp64Milli"
HELDOUT_MAX_LENGTH = 320  # tokens of question and answer; more would only reserve memory


def share(good: int, n: int) -> dict[str, Any]:
    low, high = wilson(good, n)
    return {"value": good / n if n else None, "n": n, "low": low, "high": high}


def live_accuracy(client: Client, model: str, shift_ms: int, after_n: int) -> dict[str, dict[str, Any]]:
    """before (last 100 of version 1 ahead of the shift), drifted (all until version 2), after (first of version 2)."""
    answers = rows(
        client,
        f"SELECT version, correct, {MS}(answered_at) AS ms FROM tuneloop.scored_answers "
        # An inference id begins with the time it was issued: an order that the client knows too.
        "WHERE model = {model:String} ORDER BY inference_id",
        model=model,
    )
    first = [bool(row["correct"]) for row in answers if row["version"] == 1 and row["ms"] < shift_ms][-100:]
    drifted = [bool(row["correct"]) for row in answers if row["version"] == 1 and row["ms"] >= shift_ms]
    second = [bool(row["correct"]) for row in answers if row["version"] == 2][:after_n]
    phases = {"before": first, "drifted": drifted, "after": second}
    return {name: share(sum(values), len(values)) for name, values in phases.items()}


def moments(client: Client, model: str, *names: str) -> dict[str, int]:
    """When what happened (Unix ms), from the events' own times; absent where it did not happen. All, or these names."""
    queries = {
        "first_served": "SELECT min(ts) FROM tuneloop.inference_served WHERE model = {m:String} AND version = 1",
        "drift": "SELECT min(ts) FROM tuneloop.drift_detected WHERE model = {m:String} AND version = 1",
        "requested": "SELECT min(ts) FROM tuneloop.job_requested WHERE model = {m:String} AND reason = 'drift'",
        "job_started": "SELECT min(ts) FROM tuneloop.job_progressed WHERE ce_source = 'work' AND " + _of_drift_job(),
        "candidate": "SELECT min(ts) FROM tuneloop.candidate_trained WHERE " + _of_drift_job(),
        "gate_started": "SELECT min(ts) FROM tuneloop.job_progressed WHERE ce_source = 'gate' AND " + _of_drift_job(),
        "verdict": "SELECT min(ts) FROM tuneloop.verdict_reached WHERE " + _of_drift_job(),
        "second_served": "SELECT min(ts) FROM tuneloop.inference_served WHERE model = {m:String} AND version = 2",
    }
    found = {}
    for name in names or queries:
        query = queries[name].replace("SELECT min(ts)", f"SELECT {MS}(min(ts)) AS ms, count() AS n")
        row = rows(client, query, m=model)[0]
        if row["n"]:
            found[name] = row["ms"]
    return found


def _of_drift_job() -> str:
    """The drift's job that led to a promotion, else the latest one."""
    return (
        "job_id = (SELECT argMax(job_id, (job_id IN (SELECT job_id FROM tuneloop.decision_made "
        "WHERE decision = 'promoted'), job_requested.ts)) FROM tuneloop.job_requested "
        "WHERE model = {m:String} AND reason = 'drift')"
    )


def last_condition_ms(client: Client, model: str, drift_ms: int, min_new_examples: int) -> int:
    """When the drift's last condition was met: the shard that brought the new examples to the minimum."""
    shards = rows(
        client,
        f"SELECT {MS}(ts) AS ms, JSONExtractInt(rows_by_split, 'train') AS examples FROM tuneloop.shard_written FINAL "
        "WHERE model = {m:String} AND ts > (SELECT max(ts) FROM tuneloop.job_requested "
        "WHERE model = {m:String} AND reason = 'initial') ORDER BY _offset",
        m=model,
    )
    total = 0
    for shard in shards:
        total += shard["examples"]
        if total >= min_new_examples:
            return max(drift_ms, shard["ms"])
    return drift_ms


def event_to_row_p99_s(client: Client) -> float:
    """99th percentile over all events of all topics: from the event's time to its row being there."""
    tables = [table_name(event) for topic in TOPICS for event in topic.events]
    union = " UNION ALL ".join(
        f"SELECT {MS}(_landed_at) - {MS}(ts) AS ms FROM tuneloop.{table}" for table in tables
    )
    return float(rows(client, f"SELECT quantileExact(0.99)(ms) / 1000 AS p99 FROM ({union})")[0]["p99"])


def heldout_accuracy(
    versions: Sequence[Version], base_path: str, store: ArtifactStore, questions: Sequence[Question], max_tokens: int
) -> dict[str, dict[str, float]]:
    """{"old": {"1": share, "2": share}, "new": …} by the serving engine, in batches; touches no topic."""
    result: dict[str, dict[str, float]] = {"old": {}, "new": {}}
    base_dir = store.get_folder(base_path, versions[0].base_digest)
    engine = Engine(base_dir, slots=32, max_length=HELDOUT_MAX_LENGTH, threads=2)
    try:
        for entry in versions:
            engine.load(str(entry.version), store.get_folder(entry.path, entry.digest))
            answers = engine.generate(
                [
                    Request(
                        messages=[{"role": "user", "content": question.text}], adapter=str(entry.version),
                        max_new_tokens=max_tokens,
                    )
                    for question in questions
                ]
            )
            for group, old in (("old", True), ("new", False)):
                right = [
                    answer.text.strip() == question.intent
                    for answer, question in zip(answers, questions, strict=True)
                    if question.old == old
                ]
                result[group][str(entry.version)] = sum(right) / max(1, len(right))
    finally:
        engine.close()
    return result
