"""The clock of `join-feedback` on a real broker: how far everything has been taken in."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, TopicPartition

from streams import kafka
from streams.join.expiry import taken_in_until
from streams.kafka import Out
from tests.broker import fresh, fresh_topic, since

pytestmark = pytest.mark.slow


def test_the_clock_stands_where_something_is_left_to_take_in(kafka_bootstrap) -> None:
    """Not behind control markers, as a replay of dead letters leaves them: there is no record to take in."""
    topic, group, now = fresh_topic(kafka_bootstrap, "clock", 2), fresh("group"), 9_000_000_000_000

    def until_when() -> int:
        return taken_in_until(kafka_bootstrap, group, [topic], now)

    assert until_when() == now
    client = kafka.producer(kafka_bootstrap, transactional_id=fresh("replay"))
    client.init_transactions()
    client.begin_transaction()
    kafka.produce(client, Out(topic, b"k", b"v", [], 1))
    client.commit_transaction()
    [record] = since(kafka_bootstrap, topic)
    assert until_when() == record.timestamp_ms
    reader = Consumer({**kafka.client_settings(kafka_bootstrap), "group.id": group})
    reader.commit(offsets=[TopicPartition(topic, 1, 1)], asynchronous=False)
    reader.close()
    assert until_when() == now
