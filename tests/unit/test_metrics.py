"""What a process says of itself: names, counts per batch, and a port that is taken."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from schemas.events import ShardWritten
from serving.errors import ApiError
from serving.metrics import ReplicaMetrics
from streams import kafka, metrics
from streams.dead_letters import dead_letter
from streams.kafka import Out, Record
from streams.metrics import Lag, Rate
from tests.broker import fresh
from tests.examples import example

UNITS = ("_seconds", "_records", "_per_second")


def value(name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def records(topic: str, n: int) -> list[Record]:
    return [Record(topic, 0, offset, 0, b"k", b"{}", []) for offset in range(n)]


def misnamed(registry: CollectorRegistry) -> list[str]:
    """Metrics whose name breaks Prometheus' conventions: our prefix, a base unit, something that says what it is.

    Those of the process as such are named by the client library.
    """
    found = []
    for family in registry.collect():
        unit = family.type in ("counter", "info") or family.name.endswith(UNITS)
        fits = unit and family.documentation and re.fullmatch(r"tuneloop(_[a-z]+)+", family.name)
        if not fits and not family.name.startswith("process_"):
            found.append(family.name)
    return found


def test_names_follow_prometheus_conventions() -> None:
    assert misnamed(metrics.registry) == [] and misnamed(ReplicaMetrics("replica-1").registry) == []
    names = {family.name for family in metrics.registry.collect()}
    assert {"tuneloop_records_consumed", "tuneloop_lag_records", "tuneloop_process", "process_open_fds"} <= names


@pytest.mark.parametrize(
    "wrong",
    [
        lambda r: Counter("records_consumed", "No prefix.", registry=r),
        lambda r: Gauge("tuneloop_lag", "No unit.", registry=r),
        lambda r: Histogram("tuneloop_batch_ms", "Not the base unit.", registry=r),
        lambda r: Counter("tuneloop_records", "", registry=r),
        lambda r: Gauge("tuneloop_lagRecords", "Camels.", registry=r),
    ],
)
def test_a_name_against_the_conventions_is_found(wrong: Any) -> None:
    registry = CollectorRegistry()
    wrong(registry)
    assert len(misnamed(registry)) == 1


def test_a_batch_is_counted_by_topic_with_what_it_made() -> None:
    one, two, target = fresh("one"), fresh("two"), fresh("target")
    batches = value("tuneloop_batch_seconds_count")
    batch = [*records(one, 3), *records(two, 2)]
    metrics.batch_done(metrics.by_topic(batch), [Out(target, b"k", b"v")] * 4, 0.25)
    assert value("tuneloop_records_consumed_total", topic=one) == 3
    assert value("tuneloop_records_consumed_total", topic=two) == 2
    assert value("tuneloop_records_produced_total", topic=target) == 4
    assert value("tuneloop_batch_seconds_count") == batches + 1
    assert metrics.registry.get_sample_value("tuneloop_last_record_age_seconds") < 1  # type: ignore[operator]


def test_drops_are_those_of_the_shards_that_were_written() -> None:
    reason, other = fresh("reason"), fresh("reason")
    shards = [example(ShardWritten, "m", dropped={reason: 2}), example(ShardWritten, "m", dropped={reason: 1, other: 5})]
    metrics.produced([kafka.out(shard, source="prepare") for shard in shards])
    assert value("tuneloop_records_dropped_total", reason=reason) == 3
    assert value("tuneloop_records_dropped_total", reason=other) == 5


def test_dead_letters_are_counted_by_group_and_by_where_they_came_from() -> None:
    one, two = fresh("one"), fresh("two")
    letters = [dead_letter("prepare", record, "no") for record in [*records(one, 2), *records(two, 1)]]
    metrics.produced(letters)
    assert value("tuneloop_dead_letters_total", group="prepare", topic=one) == 2
    assert value("tuneloop_dead_letters_total", group="prepare", topic=two) == 1
    assert value("tuneloop_dead_letters_total", group="register", topic=one) == 0


def calls_for(n: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a metric is touched for a batch of `n` records that makes `n` records."""
    calls = 0

    def counted(own: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            return own(*args, **more)

        return call

    with monkeypatch.context() as patch:
        for kind, names in ((Counter, ("inc", "labels")), (Histogram, ("observe",)), (Rate, ("add",))):
            for name in names:
                patch.setattr(kind, name, counted(getattr(kind, name)))
        metrics.batch_done(metrics.by_topic(records("one", n)), [Out("two", b"k", b"v")] * n, 0.1)
    return calls


def test_the_hot_path_costs_per_batch_not_per_record(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls_for(1, monkeypatch) == calls_for(5_000, monkeypatch) > 0
    batch, outs = records("one", 5_000), [Out("two", b"k", b"v")] * 5_000
    best = min(_seconds(batch, outs) for _ in range(20))
    assert best < 5_000 * 1e-6, "a microsecond a record would be a tenth of the loop's own cost"


def _seconds(batch: list[Record], outs: list[Out]) -> float:
    began = time.perf_counter()
    metrics.batch_done(metrics.by_topic(batch), outs, 0.1)
    return time.perf_counter() - began


def test_a_rate_is_over_the_last_ten_whole_seconds() -> None:
    now = 100.0
    rate = Rate(lambda: now)
    rate.add(50)
    assert rate.per_second() == 0, "the second is not over"
    for now in (100.9, 101.5):  # noqa: B007 - the clock's next times
        rate.add(25)
    now = 102.0
    assert rate.per_second() == 10
    now = 111.9
    assert rate.per_second() == 2.5, "only the second of 101.5 is left"
    now = 112.0
    assert rate.per_second() == 0


def lag_of(lag: Lag) -> dict[tuple[str, str], float]:
    (family,) = lag.collect()
    return {(sample.labels["topic"], sample.labels["partition"]): sample.value for sample in family.samples}


def test_lag_is_read_when_asked_and_no_more_when_unwatched() -> None:
    lag, behind = Lag(), {("t", 0): 7}
    unwatch = lag.watch(lambda: behind)
    assert lag_of(lag) == {("t", "0"): 7}
    behind["t", 0] = 0
    assert lag_of(lag) == {("t", "0"): 0}
    unwatch()
    assert lag_of(lag) == {}


def test_a_broker_that_is_away_takes_only_the_lag_with_it(caplog: pytest.LogCaptureFixture) -> None:
    lag = Lag()

    def away() -> dict[tuple[str, int], int]:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    lag.watch(away)
    lag.watch(lambda: {("t", 1): 3})
    assert lag_of(lag) == {("t", "1"): 3}
    assert "lag unknown" in caplog.text


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield int(held.getsockname()[1])


def test_a_port_that_is_taken_is_one_line_and_no_error(taken_port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert metrics.listen("prepare", "127.0.0.1", taken_port) is False
        assert metrics.listen("prepare", "127.0.0.1", 70_000) is False
        assert metrics.listen("prepare", "127.0.0.1", 0) is False
    first, second = caplog.messages
    assert f"cannot listen on 127.0.0.1:{taken_port}" in first and "its work goes on" in first
    assert "70000" in second


def test_dead_letters_start_at_zero_for_every_topic_of_the_process() -> None:
    """A counter that begins at 1 has not increased for Prometheus: the first dead letter would raise no alarm."""
    metrics.listen("gate", "127.0.0.1", 0)
    labels = {"group": "gate", "topic": "models.candidates"}
    assert metrics.registry.get_sample_value("tuneloop_dead_letters_total", labels) is not None
    (info,) = [sample for family in metrics.PROCESS.collect() for sample in family.samples]
    assert info.labels.keys() == {"name", "version", "python"} and info.labels["name"] == "gate"


def test_a_replica_counts_requests_failures_answers_and_feedback() -> None:
    mine = ReplicaMetrics("replica-7")

    def get(name: str, **labels: str) -> float | None:
        return mine.registry.get_sample_value(f"tuneloop_{name}", {"replica": "replica-7", **labels})

    with mine.request("chat"):
        mine.answered("support@2", 0.3)
    for error in (ApiError(404, "no such model"), KeyError("a bug")):
        with pytest.raises(type(error)), mine.request("chat"):
            raise error
    mine.feedback("correct")
    assert get("requests_total", endpoint="chat") == 3
    assert get("request_failures_total", endpoint="chat", status="404") == 1
    assert get("request_failures_total", endpoint="chat", status="500") == 1
    assert get("request_seconds_count", version="support@2") == 1
    assert get("request_seconds_bucket", version="support@2", le="0.5") == 1
    assert get("feedback_total", metric="correct") == 1
    samples = [sample for family in mine.registry.collect() for sample in family.samples]
    assert samples and all(sample.labels["replica"] == "replica-7" for sample in samples), "replicas share a port"


def test_two_clients_of_one_partition_are_one_series() -> None:
    """During a rebalance both may hold it for a moment; Prometheus refuses a scrape that says a thing twice."""
    lag = Lag()
    lag.watch(lambda: {("t", 0): 1, ("t", 1): 1})
    lag.watch(lambda: {("t", 0): 2})
    (family,) = lag.collect()
    assert len(family.samples) == 2 and lag_of(lag)["t", "0"] == 2
