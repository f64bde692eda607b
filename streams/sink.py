"""The sink loop: Kafka to a store that is idempotent by (topic, partition, offset).

Commit order, and why: rows first, offsets last. A crash in between writes the same rows again, and the store
collapses them; on assignment the loop asks the store how far it came, so that it rarely has to.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams import failpoints, kafka, metrics
from streams.kafka import Record
from streams.transact import gather
from streams.watchdog import Membership

log = logging.getLogger(__name__)


class Store(Protocol):
    """What a sink loop writes to."""

    def resume_at(self, topic: str, partition: int) -> int | None:
        """An offset before which all is stored, or None if none is known."""

    def write(self, batch: list[Record]) -> None:
        """Store these records durably. Called again with the same records after a crash."""


def run(
    bootstrap: str,
    group: str,
    topics: list[str],
    store: Store,
    stop: threading.Event,
    *,
    instance: str = "",
    batch_records: int = 20_000,
    linger_s: float = 0.3,
) -> None:
    """Write `topics` into `store` until `stop`. `instance` names this place in the group, see `kafka.consumer`."""
    client = kafka.consumer(bootstrap, group, instance)

    def on_assign(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        resumed = [_resumed(consumer, store, place) for place in partitions]
        consumer.assign(resumed)
        # What the store had already is not read again, so nothing else would ever move these offsets.
        _commit(consumer, [place for place in resumed if place.offset > 0])

    client.subscribe(topics, on_assign=on_assign)
    watched, member = metrics.Watched(client), Membership(client, bootstrap, group)
    batch: list[Record] = []
    idle_at: set[tuple[str, int, int]] = set()
    try:
        while not stop.is_set():
            gather(client, batch, batch_records, linger_s, stop)
            watched.came_round()
            member.check()
            if not batch:
                idle_at = kafka.commit_idle(client, idle_at)
                continue
            began = time.monotonic()
            failpoints.hit("sink.gathered")
            store.write(batch)
            failpoints.hit("sink.written")
            _commit(client, kafka.positions(client))
            failpoints.hit("sink.committed")
            metrics.batch_done(batch, [], time.monotonic() - began)
    finally:
        watched.close()
        client.close()


def _commit(client: Consumer, places: list[TopicPartition]) -> None:
    if not places:
        return
    try:
        with kafka.at_most(kafka.COMMIT_LIMIT_S, "a commit", client):
            client.commit(offsets=places, asynchronous=False)
        metrics.COMMITS.inc()
    except KafkaException as error:
        # The rows stand; a lost commit only means that they are written once more.
        log.warning("offsets not committed: %s", error.args[0].str())


def _resumed(client: Consumer, store: Store, place: TopicPartition) -> TopicPartition:
    committed = client.committed([place], timeout=15)[0].offset
    stored = store.resume_at(place.topic, place.partition)
    return TopicPartition(place.topic, place.partition, max(committed, stored or 0, 0))
