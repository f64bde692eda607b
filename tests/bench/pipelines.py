"""Kafka to Kafka: `transact_vs_plain`, records/s of consume → transform → produce.

Ours is the real transact loop in transactions of 10,000 records. The peer is the same clients and the same transform
without transactions: it never waits for what it has sent, and commits its offsets every 10,000 records without waiting
either, so a crash may lose or repeat. Both read 300,000 usage events (about 640 bytes, 8 headers, 4 partitions) and
write each under a new key to a topic of 4 partitions. The transform decodes nothing: the lighter it is, the more the
transactions weigh. Clocks run from the assignment to the commit of the last record.
"""

from __future__ import annotations

import threading
import time

from confluent_kafka import Consumer, Producer, TopicPartition

from streams import kafka, transact
from streams.kafka import Out, Record
from tests.bench.measure import Figure, Parts, Timed, ratio
from tests.bench.reading import fill
from tests.broker import Mark, fresh, fresh_topic, group_from

TRANSACTION_RECORDS = 10_000


class Forward:
    """The transform as a step; sets `stop` with the last record, so that the loop ends with its commit.

    `assigned` comes again where a transaction was aborted: its batch is still to be done.
    """

    def __init__(self, target: str, count: int, stop: threading.Event) -> None:
        self.target, self.left, self.stop, self.begun = target, count, stop, 0.0
        self._last = 0

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        self.begun = self.begun or time.perf_counter()
        self.left, self._last = self.left + self._last, 0
        self.stop.clear()

    def handle(self, batch: list[Record]) -> list[Out]:
        self.left, self._last = self.left - len(batch), len(batch)
        if self.left <= 0:
            self.stop.set()
        return [Out(self.target, b"new-" + (record.key or b""), record.value, record.headers) for record in batch]


def transactional(parts: Parts, topic: str, start: Mark, count: int) -> Timed:
    target, stop = fresh_topic(parts.bootstrap, "target", 4), threading.Event()
    step = Forward(target, count, stop)
    transact.run(
        parts.bootstrap, group_from(parts.bootstrap, start), [topic], step, stop, transactional_id=fresh("transact"),
        batch_records=TRANSACTION_RECORDS, linger_s=0.5,
    )  # fmt: skip
    seconds = time.perf_counter() - step.begun
    return Timed(count, seconds, _written(parts, target))


def plain(parts: Parts, topic: str, start: Mark, count: int) -> Timed:
    target, stop = fresh_topic(parts.bootstrap, "target", 4), threading.Event()
    step = Forward(target, count, stop)
    client, writer = kafka.consumer(parts.bootstrap, group_from(parts.bootstrap, start)), kafka.producer(parts.bootstrap)

    def on_assign(_: Consumer, places: list[TopicPartition]) -> None:
        step.assigned([(place.topic, place.partition) for place in places])

    client.subscribe([topic], on_assign=on_assign)
    batch: list[Record] = []
    while not stop.is_set():
        transact.gather(client, batch, TRANSACTION_RECORDS, 0.5, stop)
        if batch:
            _forward(client, writer, step.handle(batch))
            batch.clear()
    assert writer.flush(60) == 0
    client.commit(offsets=kafka.positions(client), asynchronous=False)
    client.close()
    return Timed(count, time.perf_counter() - step.begun, _written(parts, target))


def _forward(client: Consumer, writer: Producer, outs: list[Out]) -> None:
    for record in outs:
        kafka.produce(writer, record)
    client.commit(offsets=kafka.positions(client), asynchronous=True)


def _written(parts: Parts, target: str) -> int:
    """How many committed records stand in `target`."""
    return sum(1 for _ in kafka.read_to_end(parts.bootstrap, target, settled=True))


def transact_vs_plain(parts: Parts) -> list[Figure]:
    count, topic = parts.size(300_000, 3_000), "usage.inferences"
    start = fill(parts, topic, count)
    return [ratio(
        "transact_vs_plain", parts, lambda: transactional(parts, topic, start, count),
        lambda: plain(parts, topic, start, count), "records/s",
    )]  # fmt: skip
