"""A program in another language takes part: kafkajs sends plain JSON without headers, and it is as good as our own."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schemas import codec
from schemas.codec import Envelope
from schemas.events import FeedbackGiven, RecordSubmitted, ShardWritten
from schemas.policy import ModelPolicy
from schemas.topics import BY_NAME
from streams import transact
from streams.artifacts import ArtifactStore
from streams.kafka import Out, Record
from streams.kafka_security import security
from streams.prepare.step import Committed, PrepareStep, read_committed_shards
from tests import node
from tests.broker import Mark, Running, fresh, fresh_topic, group_from, lag, mark, publish, since
from tests.ids import SPLIT_KEY

RAW, FEEDBACK, DEAD = "training.raw", "usage.feedback", "dead.prepare"
PROGRAM = Path(__file__).with_name("foreign_producer.js")
KAFKAJS = "2.2.4"


@dataclass
class Sent:
    """What the foreign program sent: the topic, key and text of each record, and where it was told they stand."""

    start: Mark
    model: str
    texts: dict[str, tuple[str, str]] = field(default_factory=dict)
    places: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    def record(self, bootstrap: str, key: str) -> Record:
        topic, partition, offset = self.places[key]
        records = since(bootstrap, topic, self.start)
        (found,) = [record for record in records if (record.partition, record.offset) == (partition, offset)]
        return found


@pytest.fixture(scope="module")
def sent(kafka_bootstrap: str) -> Sent:
    """Four training records, two of them broken, and two opinions."""
    installed = node.packages("kafkajs", KAFKAJS)
    sent = Sent(mark(kafka_bootstrap, RAW, FEEDBACK, DEAD), fresh("support"))
    bodies: dict[str, tuple[str, Any]] = {
        "order-1": (RAW, {"prompt": "Where is my parcel?", "completion": "parcel_tracking", "subject_id": "ünï-7"}),
        "order-2": (RAW, {"messages": [{"role": "user", "content": "Refund?"}, {"role": "assistant", "content": "refund"}]}),
        "order-3": (RAW, {"prompt": ["not", "a", "text"], "completion": "x"}),
        "order-4": (RAW, '{"prompt": "cut off'),
        "opinion-1": (FEEDBACK, {"inference_id": "chatcmpl-1", "metric_name": "correct", "value": False}),
        "opinion-2": (FEEDBACK, {"inference_id": "chatcmpl-1", "metric_name": "rating", "value": 3, "tags": {"via": "node"}}),
    }
    for word, (topic, body) in bodies.items():
        key = f"{word}-{sent.model}"
        named = {"model": sent.model, "record_id": key} if topic == RAW else {"feedback_id": key}
        sent.texts[key] = (topic, body if isinstance(body, str) else json.dumps({**named, **body}))
    records = [{"topic": topic, "key": key, "value": text} for key, (topic, text) in sent.texts.items()]
    known = security()
    sasl = {"mechanism": "plain", "username": known["sasl.username"], "password": known["sasl.password"]}
    told = node.run(PROGRAM, installed, json.dumps({"bootstrap": kafka_bootstrap, "sasl": sasl, "records": records}))
    sent.places = dict(zip(sent.texts, map(tuple, json.loads(told)), strict=True))
    return sent


def key(sent: Sent, word: str) -> str:
    return f"{word}-{sent.model}"


def read(bootstrap: str, sent: Sent, word: str) -> tuple[Record, Envelope, Any]:
    """One record as it stands on the broker, and what the codec makes of it."""
    record = sent.record(bootstrap, key(sent, word))
    envelope, event = codec.decode(
        record.topic, record.value or b"", record.headers,
        partition=record.partition, offset=record.offset, timestamp_ms=record.timestamp_ms,
    )  # fmt: skip
    return record, envelope, event


@pytest.mark.parametrize(("word", "kind"), [("order-1", RecordSubmitted), ("order-2", RecordSubmitted), ("opinion-1", FeedbackGiven), ("opinion-2", FeedbackGiven)])
def test_plain_json_is_an_event_named_by_its_place(kafka_bootstrap, sent, word, kind) -> None:
    record, envelope, event = read(kafka_bootstrap, sent, word)
    topic, text = sent.texts[key(sent, word)]
    assert (record.headers, record.key, record.value) == ([], key(sent, word).encode(), text.encode())
    assert sent.places[key(sent, word)] == (topic, record.partition, record.offset)
    assert (envelope.id, envelope.type) == (f"{topic}/{record.partition}/{record.offset}", kind.__name__)
    assert envelope.time_ms == record.timestamp_ms > 1_700_000_000_000
    named = key(sent, word)
    ours = named if kind is RecordSubmitted else f"chatcmpl-1/{named}/{event.metric_name}/0"
    assert type(event) is kind and codec.key_of(event, envelope) == ours
    body = json.loads(codec.encode(event, source="test").value)
    assert {name: body[name] for name in json.loads(text)} == json.loads(text)


def test_its_default_partitioner_is_ours(kafka_bootstrap, sent) -> None:
    topic = fresh_topic(kafka_bootstrap, "partitioned", BY_NAME[RAW].partitions)
    publish(kafka_bootstrap, [Out(topic, name.encode(), b"x") for name in sent.places])
    ours = {(record.key or b"").decode(): record.partition for record in since(kafka_bootstrap, topic)}
    assert ours == {name: partition for name, (_, partition, _) in sent.places.items()}


def prepared_rows(bootstrap: str, sent: Sent, store: ArtifactStore) -> dict[str, dict[str, Any]]:
    """The rows of the shards that a preparation of its own makes of all that was sent, by their record's id."""

    def shards() -> list[ShardWritten]:
        return [shard for shard in read_committed_shards(bootstrap) if shard.model == sent.model]

    group = group_from(bootstrap, {place: end for place, end in sent.start.items() if place[0] == RAW})
    step = PrepareStep({sent.model: ModelPolicy()}, store, lambda: Committed(shards(), []), SPLIT_KEY)
    with Running(lambda stop: transact.run(bootstrap, group, [RAW], step, stop, transactional_id=group)) as running:
        running.until(lambda: lag(bootstrap, group, RAW) == 0, what="lag 0")
    tables = [pq.read_table(io.BytesIO(store.get_bytes(shard.path, shard.digest))) for shard in shards()]
    return {row["record_id"]: row for table in tables for row in table.to_pylist()}


def test_what_it_submits_becomes_rows_of_shards_and_dead_letters(kafka_bootstrap, sent, tmp_path) -> None:
    rows = prepared_rows(kafka_bootstrap, sent, ArtifactStore(str(tmp_path)))
    assert {name: (row["completion"], row["partition"], row["offset"]) for name, row in rows.items()} == {
        key(sent, word): (answer, *sent.places[key(sent, word)][1:])
        for word, answer in (("order-1", "parcel_tracking"), ("order-2", "refund"))
    }
    assert rows[key(sent, "order-1")]["subject_id"] == "ünï-7"
    letters = {letter.key: letter for letter in since(kafka_bootstrap, DEAD, sent.start)}
    for word, reason in (("order-3", b"$.prompt"), ("order-4", b"truncated")):
        letter = letters["/".join(map(str, sent.places[key(sent, word)])).encode()]
        assert letter.value == sent.texts[key(sent, word)][1].encode(), "its bytes as they came"
        assert reason in dict(letter.headers)["__connect.errors.exception.message"]
