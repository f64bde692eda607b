"""What all event times are measured by: a record's own timestamp, which the broker lets nobody put far ahead."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from schemas import codec
from schemas.codec import MOST_AHEAD_MS
from schemas.topics import DAY_MS
from streams import kafka
from streams.kafka import Out
from tests.broker import fresh, mark, publish, since

FEEDBACK = "usage.feedback"
TOPICS = ("training.raw", FEEDBACK, "usage.inferences", "dead.prepare")
LAST_MS = 253_402_300_799_999  # the year 9999's
BODY = b'{"inference_id": "x", "metric_name": "correct", "value": true}'


@pytest.mark.parametrize("ahead_ms", [MOST_AHEAD_MS + 60_000, DAY_MS, LAST_MS])
def test_a_record_from_the_future_is_not_taken(kafka_bootstrap: str, ahead_ms: int) -> None:
    client, told = kafka.producer(kafka_bootstrap, linger_ms=0), []
    said_ms = min(codec.now_ms() + ahead_ms, LAST_MS)
    for topic in TOPICS:
        out = Out(topic, fresh("early").encode(), BODY, [], 0, said_ms)
        kafka.produce(client, out, lambda error, _: told.append(error and error.code()))
    assert client.flush(20) == 0
    assert told == [KafkaError.INVALID_TIMESTAMP] * len(TOPICS)


def test_what_is_as_early_as_it_may_be_counts_as_no_earlier_than_its_timestamp(kafka_bootstrap: str) -> None:
    start, key, early_ms = mark(kafka_bootstrap, FEEDBACK), fresh("early").encode(), codec.now_ms() + MOST_AHEAD_MS - 60_000
    header = [("ce_time", b"9999-12-31T00:00:00Z")]
    publish(kafka_bootstrap, [Out(FEEDBACK, key, BODY, header, 0, early_ms), Out(FEEDBACK, key, BODY, header, 0)])
    first, second = [kafka.decode(one)[0].time_ms for one in since(kafka_bootstrap, FEEDBACK, start) if one.key == key]
    assert first == early_ms and second <= codec.now_ms()
