"""The sink loop into a real ClickHouse: every event lands once, whatever is killed or rewound in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas import events as e
from schemas.landing import table_name
from schemas.topics import TOPICS
from streams import failpoints, kafka, sink
from streams.clickhouse import connect, rows
from streams.dead_letters import Budget
from streams.kafka import Out, Record
from streams.monitor import land
from streams.monitor.land import LANDED_TOPICS, ClickHouseStore
from streams.watchdog import LostMembershipError
from tests.broker import Mark, Running, fresh, group_from, lag, mark, publish, since, until
from tests.examples import example

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(clickhouse_url: str) -> Client:
    return connect(clickhouse_url)


class Bench:
    """One sample of every event, all with one new `ce_source`, in the topics from `start` on."""

    def __init__(self, bootstrap: str, url: str) -> None:
        self.bootstrap, self.url, self.client = bootstrap, url, connect(url)
        self.source, self.model = fresh("source"), fresh("model")
        self.start: Mark = mark(bootstrap, *LANDED_TOPICS)
        self.group = group_from(bootstrap, self.start)

    def publish(self, *events: msgspec.Struct) -> None:
        publish(self.bootstrap, [kafka.out(event, source=self.source) for event in events])

    def publish_one_of_each(self, times: int = 1) -> None:
        self.publish(*(example(event, self.model) for _ in range(times) for event in e.EVENTS))

    def store(self) -> ClickHouseStore:
        return ClickHouseStore(connect(self.url), kafka.producer(self.bootstrap, linger_ms=0))

    def loop(self, store: sink.Store | None = None, topics: list[str] = LANDED_TOPICS, group: str = "") -> Callable:
        target = store or self.store()
        return lambda stop: sink.run(self.bootstrap, group or self.group, topics, target, stop, linger_s=0.1)

    def done(self, topics: list[str] = LANDED_TOPICS) -> bool:
        return lag(self.bootstrap, self.group, *topics) == 0

    def land(self, topics: list[str] = LANDED_TOPICS) -> None:
        with Running(self.loop(topics=topics)) as running:
            running.until(lambda: self.done(topics), what="lag 0")

    def counts(self) -> dict[str, int]:
        """Rows of this bench by table."""
        return {event.__name__: self.count(event) for event in e.EVENTS}

    def count(self, event: type[msgspec.Struct], where: str = "1") -> int:
        sql = f"SELECT count() AS n FROM tuneloop.{table_name(event)} FINAL WHERE ce_source = {{s:String}} AND {where}"
        return int(rows(self.client, sql, s=self.source)[0]["n"])


@pytest.fixture
def bench(kafka_bootstrap: str, clickhouse_url: str) -> Bench:
    return Bench(kafka_bootstrap, clickhouse_url)


def test_every_event_lands_once_even_when_all_is_read_again(bench) -> None:
    bench.publish_one_of_each(times=2)
    bench.land()
    assert bench.counts() == {event.__name__: 2 for event in e.EVENTS}
    again = group_from(bench.bootstrap, dict.fromkeys(bench.start, 0))

    class Forgetful(ClickHouseStore):
        def resume_at(self, topic: str, partition: int) -> int | None:
            return None

    # It meets whatever other tests have left in these topics, poison too.
    store = Forgetful(connect(bench.url), kafka.producer(bench.bootstrap), Budget(max_run=0))
    with Running(bench.loop(store, group=again)) as running:
        running.until(lambda: lag(bench.bootstrap, again, *LANDED_TOPICS) == 0, what="lag 0")
    assert bench.counts() == {event.__name__: 2 for event in e.EVENTS}


def test_a_batch_is_bounded_by_its_bytes_too(bench, monkeypatch) -> None:
    monkeypatch.setattr(kafka, "BATCH_BYTES", 100)
    batches: list[int] = []

    class Counting(ClickHouseStore):
        def write(self, pieces: list[land.Rows]) -> None:
            batches.append(sum(table.num_rows for piece in pieces for table in piece.tables.values()))
            super().write(pieces)

    bench.publish(*(example(e.FeedbackGiven, bench.model) for _ in range(1_000)))
    store = Counting(connect(bench.url), kafka.producer(bench.bootstrap))
    with Running(lambda stop: sink.run(bench.bootstrap, bench.group, ["usage.feedback"], store, stop, linger_s=5.0)) as running:
        running.until(lambda: bench.done(["usage.feedback"]), what="lag 0")
    assert max(batches) <= kafka.CONSUME_RECORDS and sum(batches) == bench.count(e.FeedbackGiven) == 1_000


def test_values_arrive_as_they_were_said(bench) -> None:
    said = example(e.InferenceServed, bench.model)
    bench.publish(said)
    bench.land(["usage.inferences"])
    sql = "SELECT * FROM tuneloop.inference_served FINAL WHERE model = {m:String}"
    (row,) = rows(bench.client, sql, m=bench.model)
    assert (row["answer"], row["input_tokens"], row["latency_ms"]) == (said.answer, 11, 12.5)
    assert msgspec.json.decode(row["messages"]) == msgspec.to_builtins(said.messages)
    assert row["ce_source"] == bench.source and row["_topic"] == "usage.inferences"


def test_a_crash_between_insert_and_commit_doubles_nothing(bench) -> None:
    bench.publish_one_of_each()

    class CrashAfter(ClickHouseStore):
        def write(self, pieces: list[land.Rows]) -> None:
            super().write(pieces)
            raise ConnectionError("gone after the insert")

    crashing = CrashAfter(connect(bench.url), kafka.producer(bench.bootstrap))
    with Running(bench.loop(crashing)) as running:
        assert isinstance(running.ended(), ConnectionError)
    assert sum(bench.counts().values()) > 0
    bench.land()
    assert bench.counts() == {event.__name__: 1 for event in e.EVENTS}


KILLED = """
import os, signal, sys, threading
from streams import failpoints, kafka, sink
from streams.clickhouse import connect
from streams.monitor.land import LANDED_TOPICS, ClickHouseStore

class Killed(ClickHouseStore):
    def write(self, pieces):
        super().write(pieces)
        os.kill(os.getpid(), signal.SIGKILL)

kafka.SESSION_TIMEOUT_MS = 2_000
bootstrap, url, group = sys.argv[1:]
store = Killed(connect(url), kafka.producer(bootstrap))
sink.run(bootstrap, group, LANDED_TOPICS, store, threading.Event(), linger_s=0.1)
"""


@pytest.mark.slow
def test_kill_9_between_insert_and_commit_doubles_nothing(bench) -> None:
    bench.publish_one_of_each()
    command = [sys.executable, "-c", KILLED, bench.bootstrap, bench.url, bench.group]
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert sum(bench.counts().values()) > 0
    bench.land()
    assert bench.counts() == {event.__name__: 1 for event in e.EVENTS}


@pytest.mark.parametrize("topic", [topic for topic in TOPICS if len(topic.events) > 1], ids=lambda topic: topic.name)
def test_a_crash_between_two_tables_of_a_topic_loses_nothing(bench, topic) -> None:
    """The first event's table has a later offset than the second's, whose insert never came."""
    first, second, *_ = topic.events
    bench.publish(*(example(event, bench.model) for event in (first, second, first)))

    class HalfWay(ClickHouseStore):
        def read(self, records: list[Record]) -> land.Rows:
            return super().read([record for record in records if kafka.decode(record)[0].type == first.__name__])

        def write(self, pieces: list[land.Rows]) -> None:
            super().write(pieces)
            raise ConnectionError("gone between two inserts")

    with Running(bench.loop(HalfWay(connect(bench.url), kafka.producer(bench.bootstrap)), [topic.name])) as running:
        assert isinstance(running.ended(), ConnectionError)
    bench.land([topic.name])
    assert (bench.count(first), bench.count(second)) == (2, 1)


def test_batches_land_in_order_and_one_that_fails_ends_it(bench) -> None:
    """What stands is a beginning of what was said: `resume_at` takes the last row for proof of all before it."""
    topic, said = "usage.inferences", [example(e.InferenceServed, bench.model) for _ in range(7)]
    publish(bench.bootstrap, [kafka.out(one, source=bench.source, partition=2) for one in said])

    class RefusedOnce(ClickHouseStore):
        batches, reading = 0, 0

        def read(self, records: list[Record]) -> land.Rows:
            self.reading += 1
            return super().read(records)

        def write(self, pieces: list[land.Rows]) -> None:
            self.batches += 1
            if self.batches == 2:
                until(lambda: self.reading == 3, what="the next batch read meanwhile")
                raise ConnectionError("no ClickHouse just now")
            super().write(pieces)

    refused = RefusedOnce(connect(bench.url), kafka.producer(bench.bootstrap))
    loop = lambda stop: sink.run(bench.bootstrap, bench.group, [topic], refused, stop, batch_records=2)  # noqa: E731
    with Running(loop) as running:
        assert isinstance(running.ended(), ConnectionError)
    assert (refused.batches, refused.reading) == (2, 3), "never more than one batch ahead"
    assert bench.count(e.InferenceServed) == 2 and not bench.done([topic])
    bench.land([topic])
    assert bench.count(e.InferenceServed) == 7


def test_a_batch_that_is_being_written_is_committed_before_its_partitions_go(bench) -> None:
    topic, begun = "usage.inferences", threading.Event()
    publish(bench.bootstrap, [kafka.out(example(e.InferenceServed, bench.model), source=bench.source, partition=2)])

    class Slow(ClickHouseStore):
        def write(self, pieces: list[land.Rows]) -> None:
            begun.set()
            time.sleep(1.0)
            super().write(pieces)

    slow = Slow(connect(bench.url), kafka.producer(bench.bootstrap))
    with Running(bench.loop(slow, [topic])) as running:
        running.until(begun.is_set, what="the write")
    assert bench.done([topic]) and bench.count(e.InferenceServed) == 1


def test_it_resumes_behind_what_is_stored(bench) -> None:
    topic = "monitor.drift"
    store = bench.store()
    bench.publish(example(e.DriftDetected, bench.model))
    bench.land([topic])
    assert store.resume_at(topic, 0) == mark(bench.bootstrap, topic)[topic, 0]
    seen: list[int] = []

    class Watched(ClickHouseStore):
        def read(self, records: list[Record]) -> land.Rows:
            seen.extend(record.offset for record in records)
            return super().read(records)

    rewound = group_from(bench.bootstrap, {(topic, 0): 0})
    bench.publish(example(e.DriftDetected, bench.model))
    with Running(bench.loop(Watched(connect(bench.url), kafka.producer(bench.bootstrap)), [topic], rewound)) as running:
        running.until(lambda: lag(bench.bootstrap, rewound, topic) == 0, what="lag 0")
    assert seen == [bench.start[topic, 0] + 1], "what was stored was not read again"
    assert store.resume_at("subjects.erasures", 99) is None


class OfItsOwn:
    """Drift events on their topic, landed by a store that keeps how far it came."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.group = bench, fresh("group")
        start = {("monitor.drift", 0): bench.start["monitor.drift", 0]}
        self.kafka_group = group_from(bench.bootstrap, start)
        self.bench.client.insert(
            land.POSITIONS, [[self.group, "monitor.drift", 0, start["monitor.drift", 0], datetime.now(UTC)]],
            ["consumer", "topic", "partition", "next_offset", "since"],
        )  # fmt: skip

    def land(self) -> list[int]:
        """The offsets, from the bench's first on, that were read this time."""
        seen: list[int] = []

        class Watched(ClickHouseStore):
            def read(self, records: list[Record]) -> land.Rows:
                seen.extend(record.offset - first for record in records if record.offset >= first)
                return super().read(records)

        first = self.bench.start["monitor.drift", 0]
        store = Watched(connect(self.bench.url), kafka.producer(self.bench.bootstrap), Budget(max_run=0), group=self.group)
        with Running(self.bench.loop(store, ["monitor.drift"], self.kafka_group)) as running:
            running.until(lambda: lag(self.bench.bootstrap, self.kafka_group, "monitor.drift") == 0, what="lag 0")
        return seen

    def say(self, count: int) -> None:
        self.bench.publish(*(example(e.DriftDetected, self.bench.model) for _ in range(count)))


def test_a_store_that_was_emptied_is_filled_again_from_the_beginning(bench) -> None:
    mine = OfItsOwn(bench)
    mine.say(2)
    assert mine.land() == [0, 1]
    mine.say(1)
    assert mine.land() == [2], "it goes on where it was"
    bench.client.command(f"ALTER TABLE {land.POSITIONS} DELETE WHERE consumer = '{mine.group}' SETTINGS mutations_sync = 1")
    assert mine.land() == [0, 1, 2]
    assert bench.count(e.DriftDetected) == 3


def test_a_store_that_was_restored_goes_on_from_where_it_was(bench) -> None:
    mine = OfItsOwn(bench)
    mine.say(1)
    mine.land()
    kept = bench.client.query(f"SELECT * FROM {land.POSITIONS} WHERE consumer = '{mine.group}'").result_rows
    mine.say(2)
    mine.land()
    bench.client.command(f"ALTER TABLE {land.POSITIONS} DELETE WHERE consumer = '{mine.group}' SETTINGS mutations_sync = 1")
    bench.client.insert(land.POSITIONS, kept)
    assert mine.land() == [1, 2]


def test_after_a_rebuild_was_asked_for_what_came_before_counts_no_more(bench) -> None:
    mine = OfItsOwn(bench)
    mine.say(1)
    mine.land()
    store = ClickHouseStore(connect(bench.url), kafka.producer(bench.bootstrap), group=mine.group)
    began = store.begin_at("monitor.drift", 0, 5)
    assert began == bench.start["monitor.drift", 0] + 1
    bench.client.command(f"INSERT INTO {land.REBUILDS} VALUES (now64(3))")
    store.note([TopicPartition("monitor.drift", 0, began)])  # by a process that has not heard of it
    anew = ClickHouseStore(connect(bench.url), kafka.producer(bench.bootstrap), group=mine.group)
    assert anew.begin_at("monitor.drift", 0, 5) == 0
    anew.note([TopicPartition("monitor.drift", 0, 3)])
    assert anew.begin_at("monitor.drift", 0, 5) == 3


def test_what_does_not_decode_is_a_dead_letter_also_when_the_rows_came_first(bench) -> None:
    before, topic = mark(bench.bootstrap, "dead.monitor"), "usage.inferences"
    broken = Out(topic, b"x", b'{"model": 7}', [("ce_type", b"InferenceServed"), ("mine", b"\x00\xff")], partition=1)
    stray = Out(topic, b"y", b"{}", [], partition=1)
    good = kafka.out(example(e.InferenceServed, bench.model), source=bench.source, partition=1)
    publish(bench.bootstrap, [broken, stray, good])
    bench.land([topic])
    letters = since(bench.bootstrap, "dead.monitor", before)
    reasons = {record.value: dict(record.headers)["__connect.errors.exception.message"] for record in letters}
    assert b"$.model" in reasons[broken.value or b""] and b"ce_type" in reasons[stray.value or b""]
    assert next(record for record in letters if record.value == broken.value).headers[:2] == broken.headers
    assert bench.count(e.InferenceServed) == 1


def test_a_crash_before_the_dead_letters_loses_none(bench) -> None:
    """Rows of later offsets must not stand before an earlier dead letter is acknowledged."""
    topic = "usage.inferences"
    broken = Out(topic, b"x", fresh("broken").encode(), [("ce_type", b"InferenceServed")], partition=3)
    good = kafka.out(example(e.InferenceServed, bench.model), source=bench.source, partition=3)
    publish(bench.bootstrap, [broken, good])
    before = mark(bench.bootstrap, "dead.monitor")

    class NeverAcknowledged:
        """A stand-in for a broker that is away just now, which cannot be had for one topic alone."""

        def produce(self, *_: Any, **__: Any) -> None: ...

        def poll(self, *_: Any) -> None: ...

        def flush(self, *_: Any) -> int:
            return 1

    store = ClickHouseStore(connect(bench.url), NeverAcknowledged())  # type: ignore[arg-type]
    with Running(bench.loop(store, [topic])) as running:
        assert isinstance(running.ended(), TimeoutError)
    bench.land([topic])
    assert broken.value in [letter.value for letter in since(bench.bootstrap, "dead.monitor", before)]
    assert bench.count(e.InferenceServed) == 1


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "later"])
@pytest.mark.parametrize(
    ("event", "key_field"),
    [(e.InferenceServed, "inference_id"), (e.RecordSubmitted, "record_id"), (e.FeedbackGiven, "feedback_id"),
     (e.ShadowAnswered, "inference_id")],
)
def test_a_tombstone_deletes_its_row_and_no_other(bench, event, key_field, together) -> None:
    gone, kept = example(event, bench.model), example(event, bench.model)
    topic = next(topic.name for topic in TOPICS if event in topic.events)
    said = [kafka.out(one, source=bench.source, partition=0) for one in (gone, kept)]
    tombstone = Out(topic, said[0].key, None, partition=0)
    publish(bench.bootstrap, [*said, tombstone] if together else said)
    bench.land([topic])
    if not together:
        assert bench.count(event) == 2
        publish(bench.bootstrap, [tombstone])
        bench.land([topic])
    deadline = time.monotonic() + 10
    while bench.count(event) != 1 and time.monotonic() < deadline:  # a mutation takes its time
        time.sleep(0.1)
    assert bench.count(event) == 1
    assert bench.count(event, f"{key_field} = '{getattr(kept, key_field)}'") == 1


@pytest.mark.parametrize("together", [True, False])
def test_a_deletion_outlives_a_crash_right_after_the_rows(bench, together) -> None:
    """The rows behind it are stored, so its offset is never read again: it must have been carried out before them."""
    gone, kept = (example(e.FeedbackGiven, bench.model) for _ in range(2))
    said = [kafka.out(one, source=bench.source, partition=0) for one in (gone, kept)]
    tombstone = Out("usage.feedback", said[0].key, None, partition=0)
    publish(bench.bootstrap, [said[0]])
    if not together:
        bench.land(["usage.feedback"])
    publish(bench.bootstrap, [tombstone, said[1]])
    failpoints.arm("land.between_tables=raise")
    try:
        with Running(bench.loop(topics=["usage.feedback"])) as running:
            assert isinstance(running.ended(), failpoints.FailpointError)
    finally:
        failpoints.arm("")
    bench.land(["usage.feedback"])
    until(lambda: bench.count(e.FeedbackGiven) == 1, 10, "one row")
    assert bench.count(e.FeedbackGiven, f"feedback_id = '{kept.feedback_id}'") == 1


def test_a_deletion_under_an_applications_own_key_takes_that_record_alone(bench) -> None:
    """Two answers, feedback on each under the id "1": what deletes the one is no word on the other."""
    said = [kafka.out(example(e.FeedbackGiven, bench.model, feedback_id="1"), source=bench.source, partition=0) for _ in range(2)]
    keys = [f"{bench.model}/{n}".encode() for n in range(2)]
    publish(bench.bootstrap, [*said, *(msgspec.structs.replace(out, key=key) for out, key in zip(said, keys, strict=True))])
    bench.land(["usage.feedback"])
    publish(bench.bootstrap, [Out("usage.feedback", key, None, partition=0) for key in (keys[0], said[1].key, b"1")])
    bench.land(["usage.feedback"])
    until(lambda: bench.count(e.FeedbackGiven) == 2, 10, "two rows")
    assert all(bench.count(e.FeedbackGiven, f"_key = '{key.decode()}'") == 1 for key in (keys[1], said[0].key or b""))


def test_a_record_said_again_after_its_deletion_stays(bench) -> None:
    one = example(e.RecordSubmitted, bench.model)
    said = kafka.out(one, source=bench.source, partition=0)
    publish(bench.bootstrap, [said, Out("training.raw", said.key, None, partition=0), said])
    bench.land(["training.raw"])
    time.sleep(1)
    assert bench.count(e.RecordSubmitted) == 1


def test_a_key_that_two_partitions_delete_keeps_what_each_says_after(bench) -> None:
    """Rows stored before and in the same batch, under one key."""
    one = example(e.RecordSubmitted, bench.model)
    said = [kafka.out(one, source=bench.source, partition=partition) for partition in (0, 1)]
    publish(bench.bootstrap, said)
    bench.land(["training.raw"])
    assert bench.count(e.RecordSubmitted) == 2
    deleted = [Out("training.raw", said[0].key, None, partition=partition) for partition in (0, 1)]
    publish(bench.bootstrap, [said[0], *deleted, said[1]])
    bench.land(["training.raw"])
    until(lambda: bench.count(e.RecordSubmitted) == 0, 10, "what the other partition deletes gone, too")
    publish(bench.bootstrap, [said[1]])
    bench.land(["training.raw"])
    assert bench.count(e.RecordSubmitted) == 1


@pytest.mark.parametrize("told_by", ["commit", "consume"])
def test_a_batch_written_after_others_went_on_brings_nothing_back(bench, monkeypatch, told_by: str) -> None:
    """A process that slept past its session: the heir has carried out a deletion of what the sleeper then writes."""
    topic, (gone, kept) = "usage.feedback", (example(e.FeedbackGiven, bench.model) for _ in range(2))
    said = [kafka.out(one, source=bench.source, partition=0) for one in (gone, kept)]
    publish(bench.bootstrap, said)
    writing, refused, messages_of = threading.Event(), threading.Event(), kafka.messages_of
    if told_by == "commit":
        lost = KafkaError(KafkaError.UNKNOWN_MEMBER_ID)
        monkeypatch.setattr(sink, "_commit", lambda client, places: lost if places and places[0].offset else None)
        refused.set()

    def fenced(messages: list[Any]) -> list[Record]:
        if told_by == "consume" and writing.is_set():
            refused.set()
            raise KafkaException(KafkaError(KafkaError._FATAL))
        return messages_of(messages)

    class Asleep(ClickHouseStore):
        def write(self, pieces: list[land.Rows]) -> None:
            if any(piece.tables for piece in pieces):
                writing.set()
                refused.wait(30)
                publish(bench.bootstrap, [Out(topic, said[0].key, None, partition=0)])
            super().write(pieces)

    monkeypatch.setattr(kafka, "messages_of", fenced)
    with Running(bench.loop(Asleep(connect(bench.url), kafka.producer(bench.bootstrap)), [topic])) as running:
        assert isinstance(running.ended(), LostMembershipError if told_by == "commit" else KafkaException)
    until(lambda: bench.count(e.FeedbackGiven) == 1, 10, "what was deleted meanwhile gone again")
    assert bench.count(e.FeedbackGiven, f"feedback_id = '{kept.feedback_id}'") == 1


def test_it_stops_when_told(bench) -> None:
    stop = threading.Event()
    stop.set()
    began = time.monotonic()
    sink.run(bench.bootstrap, bench.group, ["monitor.drift"], bench.store(), stop)
    assert time.monotonic() - began < 10
