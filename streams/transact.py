"""The transact loop: Kafka to Kafka, exactly once in effect.

Commit order, and why: (1) the step stores its artifacts under content-derived names; (2) its records and (3) the input
offsets go into one Kafka transaction. Until (3) is committed nobody reads the records and the input is read again; an
artifact that no committed record names is swept with the next erasure. State that a step keeps is a pure function of
committed output: `assigned` rebuilds it, and it is rebuilt after every abort.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from streams import failpoints, kafka, metrics, transaction
from streams.kafka import Out, Record
from streams.watchdog import Membership

log = logging.getLogger(__name__)
# How long a step may take over a batch. That it hangs the watchdog notices sooner, by its signs of life.
HANDLE_LIMIT_MS = 120_000


class Step(Protocol):
    """What a transact loop runs."""

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        """Rebuild state for these (topic, partition) pairs from committed output."""

    def handle(self, batch: list[Record]) -> list[Out]:
        """The records that this batch makes. May store artifacts; must not produce.

        May take out of a batch that lasts long the last records of a partition, but not all there are: they come
        again with the next.
        """


def run(
    bootstrap: str,
    group: str,
    topics: list[str],
    step: Step,
    stop: threading.Event,
    *,
    transactional_id: str,
    batch_records: int = 5_000,
    linger_s: float = 0.0,
    after_commit: Callable[[], None] = lambda: None,
    tick: Callable[[], list[Out]] | None = None,
    tick_s: float = 1.0,
) -> None:
    """Run `step` over `topics` until `stop`; `after_commit` is for what only committed records may lead to.

    `tick` is asked every `tick_s` while the partitions are this process's, for records that follow from something else
    than a record; its state is rebuilt after an abort as the step's is.

    Raises `transaction.FencedError`, `transaction.RefusedError`, `KafkaException` (fatal errors only) and
    `LostMembershipError`.
    """
    client = kafka.consumer(bootstrap, group, transactional_id, **{"max.poll.interval.ms": HANDLE_LIMIT_MS})
    writer = transaction.fresh_producer(bootstrap, transactional_id)
    batch: list[Record] = []

    def on_assign(_: Consumer, partitions: list[TopicPartition]) -> None:
        batch.clear()
        step.assigned([(partition.topic, partition.partition) for partition in partitions])

    def on_revoke(_: Consumer, partitions: list[TopicPartition]) -> None:
        # What was gathered under the old assignment has no position under the new one: it would go out without
        # its offsets, and once more from whoever reads it next.
        batch.clear()

    client.subscribe(topics, on_assign=on_assign, on_revoke=on_revoke)
    watched, member = metrics.Watched(client), Membership(client, bootstrap, group, transactional_id)
    idle_at: set[tuple[str, int, int]] = set()
    failures = 0  # in a row
    due_s = time.monotonic()
    try:
        while not stop.is_set():
            gather(client, batch, batch_records, linger_s, stop)
            watched.came_round()
            member.check()
            due = tick if time.monotonic() >= due_s and client.assignment() else None
            if not batch and due is None:
                idle_at = kafka.commit_idle(client, idle_at)
                continue
            due_s = time.monotonic() + tick_s if due else due_s
            if (left := _commit(client, writer, step, batch, failures, due)) is not None:
                failures = 0
                after_commit()
                batch[:] = left
            else:
                failures += 1
                batch.clear()
                writer, assignment = transaction.start_over(client, bootstrap, transactional_id)
                step.assigned([(place.topic, place.partition) for place in assignment])
    finally:
        watched.close()
        client.close()


def gather(client: Consumer, batch: list[Record], batch_records: int, linger_s: float, stop: threading.Event) -> None:
    """Fill `batch` until it is full (by records or bytes) or `linger_s` has passed since its first new record.

    A rebalance happens inside `consume`; whoever minds clears `batch` from its callback. One record is asked for even
    where it is full: whoever does not poll loses its place in the group.
    """
    wanted = max(1, min(batch_records - len(batch), kafka.CONSUME_RECORDS))
    batch += kafka.messages_of(client.consume(wanted, timeout=0.0 if batch else 0.2))
    deadline, left_bytes = time.monotonic() + linger_s, kafka.BATCH_BYTES - kafka.size_bytes(batch)
    while batch and len(batch) < batch_records and left_bytes > 0 and not stop.is_set():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        wanted = min(batch_records - len(batch), kafka.CONSUME_RECORDS)
        more = kafka.messages_of(client.consume(wanted, timeout=min(left_s, 0.2)))
        batch += more
        left_bytes -= kafka.size_bytes(more)


def _commit(
    client: Consumer, writer: Producer, step: Step, batch: list[Record], failures: int,
    tick: Callable[[], list[Out]] | None,
) -> list[Record] | None:  # fmt: skip
    """In one transaction what `tick` says, where it is due, and a batch, where there is one. What of this is left for
    the next; None = to be done again after starting over."""
    began, given = time.monotonic(), list(batch)
    failpoints.hit("transact.gathered")
    try:
        # The tick first: what a batch leads to must not be lost where a tick starts its state over.
        outs = [*(tick() if tick else ()), *(step.handle(batch) if batch else ())]
    except KafkaException as error:  # what it reads besides its batch comes from the same broker
        if error.args[0].fatal():
            raise
        log.warning("batch to be done again: %s", error.args[0].str())
        return None
    if not given and not outs:
        return []
    failpoints.hit("transact.handled")
    done = set(map(id, batch))
    left = [record for record in given if id(record) not in done] if len(batch) < len(given) else []
    if not transaction.commit(client, writer, outs, "transact", failures, left):
        return None
    metrics.batch_done(metrics.by_topic(batch), outs, time.monotonic() - began)
    return left
