"""Migrations and the analysts' views on the real engine: applied once, guarded, and every view answers."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import msgspec
import pytest
from clickhouse_connect.driver.client import Client

from schemas import events as e
from schemas.landing import DATABASE
from schemas.policy import ModelPolicy
from streams import kafka, sink
from streams.clickhouse import connect, rows
from streams.monitor import migrate as migrations
from streams.monitor.land import ClickHouseStore
from streams.monitor.measure import note_policies
from streams.monitor.migrate import FOLDER, MigrationError, checksum, migrate, pending
from tests.broker import Running, fresh, group_from, lag, mark, publish
from tests.examples import example

LOCK = f"{DATABASE}.migration_lock"


@pytest.fixture
def client(clickhouse_url: str) -> Client:
    return connect(clickhouse_url)


def applied(client: Client) -> dict[str, str]:
    return {row["name"]: row["checksum"] for row in rows(client, f"SELECT * FROM {DATABASE}.migrations FINAL")}


def test_every_file_is_applied_and_a_second_time_changes_nothing(client) -> None:
    assert applied(client) == {path.name: checksum(path) for path in FOLDER.glob("*.sql")}
    assert migrate(client) == []


def test_a_changed_file_is_refused_by_name(client) -> None:
    name = "0001_landing_tables.sql"
    client.insert(f"{DATABASE}.migrations", [[name, "other"]], ["name", "checksum"])
    try:
        with pytest.raises(MigrationError, match=f"{name} was changed"):
            migrate(client)
    finally:
        client.insert(f"{DATABASE}.migrations", [[name, checksum(FOLDER / name)]], ["name", "checksum"])
    assert migrate(client) == [], "the refusal left no lock behind"


def test_files_are_applied_in_their_order(tmp_path) -> None:
    for name in ("0010_c.sql", "0002_b.sql", "0001_a.sql", "notes.md"):
        (tmp_path / name).write_text("SELECT 1;\n")
    assert [path.name for path in pending({}, tmp_path)] == ["0001_a.sql", "0002_b.sql", "0010_c.sql"]
    done = {"0001_a.sql": checksum(tmp_path / "0001_a.sql")}
    assert [path.name for path in pending(done, tmp_path)] == ["0002_b.sql", "0010_c.sql"]


def test_a_lock_that_another_holds_is_waited_for_and_then_refused(client, clickhouse_url) -> None:
    client.command(f"CREATE TABLE {LOCK} (taken DateTime) ENGINE = Memory")
    try:
        with pytest.raises(MigrationError, match="another process is migrating"):
            migrate(connect(clickhouse_url), wait_s=0.5)
    finally:
        client.command(f"DROP TABLE {LOCK}")
    assert migrate(client) == []


def test_a_lock_of_a_dead_process_is_broken(client, clickhouse_url, monkeypatch) -> None:
    client.command(f"CREATE TABLE {LOCK} (taken DateTime) ENGINE = Memory")
    monkeypatch.setattr(migrations, "LOCK_STALE_S", 1)
    assert migrate(connect(clickhouse_url), wait_s=10) == []


def test_two_at_once_take_turns(clickhouse_url) -> None:
    results: list[object] = []

    def one() -> None:
        try:
            results.append(migrate(connect(clickhouse_url)))
        except Exception as error:  # noqa: BLE001 - looked at below
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[], [], []]


@pytest.fixture(scope="module")
def model(kafka_bootstrap: str, clickhouse_url: str) -> str:
    """A model with eight answers of version 1, five of them scored right, two wrong, and its whole lineage."""
    name, client = fresh("model"), connect(clickhouse_url)
    note_policies(client, {name: ModelPolicy()})
    answers = [example(e.InferenceServed, name, version=1, latency_ms=10.0 * n) for n in range(1, 9)]
    scores: list[tuple[int, str, bool | int | str]] = [(n, "correct", n != 5) for n in range(6)]
    scores += [(6, "rating", 4), (7, "rating", 2), (6, "demonstration", "true story"), (7, "helpful", True)]
    said = [example(e.FeedbackGiven, name, inference_id=answers[n].inference_id, metric_name=metric, value=value)
            for n, metric, value in scores]  # fmt: skip
    said.append(example(e.FeedbackGiven, name, inference_id=answers[0].inference_id, value=True))
    said.append(msgspec.structs.replace(said[6], value=3))  # the rating, corrected
    drift = example(e.DriftDetected, name, version=1)
    job = example(e.JobRequested, name, reason="drift", drift_id=drift.drift_id)
    candidate = example(e.CandidateTrained, name, job_id=job.job_id, drift_id=drift.drift_id)
    verdict = example(e.VerdictReached, name, job_id=job.job_id, digest=candidate.digest)
    chain = {"job_id": job.job_id, "digest": candidate.digest, "version": 1, "drift_id": drift.drift_id}
    promoted = example(e.DecisionMade, name, decision="promoted", **chain)
    events = [*answers, *said, drift, job, candidate, verdict, promoted]
    topics = sorted({kafka.out(event, source="t").topic for event in events})
    start = mark(kafka_bootstrap, *topics)
    group = group_from(kafka_bootstrap, start)
    publish(kafka_bootstrap, [kafka.out(event, source="test") for event in events])
    store = ClickHouseStore(connect(clickhouse_url), kafka.producer(kafka_bootstrap))
    with Running(lambda stop: sink.run(kafka_bootstrap, group, topics, store, stop)) as running:
        running.until(lambda: lag(kafka_bootstrap, group, *topics) == 0, what="lag 0")
    return name


def view(client: Client, name: str, model: str, column: str = "model") -> list[dict[str, object]]:
    return rows(client, f"SELECT * FROM {DATABASE}.{name} WHERE {column} = {{m:String}}", m=model)


def test_scored_answers_hold_the_quality_metric_once_per_answer(client, model) -> None:
    found = view(client, "scored_answers", model)
    assert sorted(row["correct"] for row in found) == [0, 0, 1, 1, 1, 1, 1], "a repeated score replaces, it does not add"
    assert all(row["answered_at"] <= row["scored_at"] for row in found)


def test_live_quality_has_an_interval_around_it(client, model) -> None:
    found = view(client, "live_quality", model)
    assert sum(row["n"] for row in found) == 7
    for row in found:
        assert 0 <= row["quality_low"] <= row["quality"] <= row["quality_high"] <= 1
        assert row["quality_high"] - row["quality_low"] > 0.2, "seven answers say little"


def test_live_quality_agrees_with_the_detectors_interval(client, model) -> None:
    from streams.monitor.intervals import wilson

    for row in view(client, "live_quality", model):
        low, high = wilson(round(row["quality"] * row["n"]), row["n"])
        assert (row["quality_low"], row["quality_high"]) == pytest.approx((low, high), abs=1e-4)


def test_usage_daily_counts_each_request_once(client, model) -> None:
    found = view(client, "usage_daily", model)
    assert sum(row["requests"] for row in found) == 8 and sum(row["input_tokens"] for row in found) == 88
    (today,) = found
    assert today["day"] == datetime.now(UTC).date()
    assert (today["answers_with_feedback"], today["feedback_share"], today["rating"]) == (8, 1.0, 2.5), "of a rating what it was corrected to"
    assert 10 <= today["latency_ms_p50"] <= 80 and today["subjects"] == 8


def test_gen_ai_usage_speaks_opentelemetry(client, model) -> None:
    found = view(client, "gen_ai_usage", f"{model}@1", "`gen_ai.response.model`")
    assert len(found) == 8
    assert {row["gen_ai.usage.input_tokens"] for row in found} == {11}
    assert max(row["gen_ai.client.operation.duration"] for row in found) == 0.08
    assert all(str(row["gen_ai.response.id"]).startswith("chatcmpl-") for row in found)


def test_lineage_tells_the_whole_chain_in_one_row(client, model) -> None:
    (row,) = view(client, "lineage", model)
    assert (row["version"], row["reason"], row["requests"]) == (1, "drift", 8)
    chain = [row["drift_at"], row["job_at"], row["candidate_at"], row["verdict_at"], row["promoted_at"]]
    assert None not in chain and chain == sorted(chain)
    assert row["candidate"] and row["drift_id"] and row["drift_baseline"] == 0.5
