"""The transact loop: Kafka to Kafka, exactly once in effect.

Commit order, and why: (1) the step stores its artifacts under content-derived names; (2) its records and
(3) the input offsets go into one Kafka transaction. Until (3) is committed nobody reads the records and the
input is read again; an artifact that no committed record names is swept. State that a step keeps is a pure
function of committed output: `assigned` rebuilds it, and it is rebuilt after every abort.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from streams import failpoints, kafka, metrics
from streams.kafka import Out, Record
from streams.watchdog import Membership

log = logging.getLogger(__name__)
REQUEST_TIMEOUT_S = 4.0
START_OVER_LIMIT_S = 8.0


class Step(Protocol):
    """What a transact loop runs."""

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        """Rebuild state for these (topic, partition) pairs from committed output."""

    def handle(self, batch: list[Record]) -> list[Out]:
        """The records that this batch makes. May store artifacts; must not produce."""


class FencedError(RuntimeError):
    """Another process has taken this one's place; the only right thing is to exit."""


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
) -> None:
    """Run `step` over `topics` until `stop`. Raises `FencedError`, `KafkaException` (fatal errors only)
    and `LostMembershipError`."""
    client = kafka.consumer(bootstrap, group)
    writer = _fresh_producer(bootstrap, transactional_id)
    batch: list[Record] = []

    def on_assign(_: Consumer, partitions: list[TopicPartition]) -> None:
        batch.clear()
        step.assigned([(partition.topic, partition.partition) for partition in partitions])

    def on_revoke(_: Consumer, partitions: list[TopicPartition]) -> None:
        # What was gathered under the old assignment has no position under the new one: it would go out without
        # its offsets, and once more from whoever reads it next.
        batch.clear()

    client.subscribe(topics, on_assign=on_assign, on_revoke=on_revoke)
    watched, member = metrics.Watched(client), Membership(client, bootstrap, group)
    idle_at: set[tuple[str, int, int]] = set()
    try:
        while not stop.is_set():
            gather(client, batch, batch_records, linger_s, stop)
            watched.came_round()
            member.check()
            if not batch:
                idle_at = kafka.commit_idle(client, idle_at)
            elif not _commit(client, writer, step, batch):
                # Seen to hang for minutes while the assignment was being lost; `seek` has no time-out of its own.
                with kafka.at_most(START_OVER_LIMIT_S, "starting over after an abort", client):
                    writer = _fresh_producer(bootstrap, transactional_id)
                    assignment = _rewind(client)
                step.assigned([(place.topic, place.partition) for place in assignment])
    finally:
        watched.close()
        client.close()


def gather(client: Consumer, batch: list[Record], batch_records: int, linger_s: float, stop: threading.Event) -> None:
    """Fill `batch` anew until it is full or `linger_s` has passed since its first record.

    A rebalance happens inside `consume`; whoever minds clears `batch` from its callback.
    """
    batch[:] = kafka.messages_of(client.consume(min(batch_records, kafka.CONSUME_RECORDS), timeout=0.2))
    deadline = time.monotonic() + linger_s
    while batch and len(batch) < batch_records and not stop.is_set():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        more = client.consume(min(batch_records - len(batch), kafka.CONSUME_RECORDS), timeout=min(left_s, 0.2))
        batch += kafka.messages_of(more)


def _commit(client: Consumer, writer: Producer, step: Step, batch: list[Record]) -> bool:
    """One transaction. True = committed; False = aborted and to be done again with a fresh producer."""
    began = time.monotonic()
    try:
        failpoints.hit("transact.gathered")
        outs = step.handle(batch)
        failpoints.hit("transact.handled")
        with kafka.at_most(kafka.TRANSACTION_LIMIT_S, "a transaction", client):
            _publish(client, writer, outs)
    except KafkaException as error:
        reason = error.args[0]
        if reason.fatal():
            raise FencedError(f"transaction refused for good: {reason.str()}") from error
        log.warning("transaction aborted, to be done again: %s", reason.str())
        metrics.ABORTED.inc()
        with kafka.at_most(kafka.TRANSACTION_LIMIT_S, "an abort", client):
            _abort(writer)
        return False
    metrics.COMMITS.inc()
    metrics.batch_done(batch, outs, time.monotonic() - began)
    return True


def _publish(client: Consumer, writer: Producer, outs: list[Out]) -> None:
    writer.begin_transaction()
    failpoints.hit("transact.begun")
    for record in outs:
        kafka.produce(writer, record)
    failpoints.hit("transact.produced")
    writer.send_offsets_to_transaction(kafka.positions(client), client.consumer_group_metadata(), REQUEST_TIMEOUT_S)
    failpoints.hit("transact.offsets_sent")
    _retrying(writer.commit_transaction)
    failpoints.hit("transact.committed")


def _retrying(request: object, attempts: int = 5) -> None:
    for attempt in range(attempts):
        try:
            request()  # type: ignore[operator]
        except KafkaException as error:
            if not error.args[0].retriable() or attempt == attempts - 1:
                raise
        else:
            return


def _abort(writer: Producer) -> None:
    try:
        writer.abort_transaction(REQUEST_TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].fatal():
            raise FencedError(f"abort refused: {error.args[0].str()}") from error
        log.warning("abort did not answer (%s); a fresh producer settles it", error.args[0].str())


def _fresh_producer(bootstrap: str, transactional_id: str) -> Producer:
    # After a request that timed out its outcome is unknown: only init_transactions of a new producer settles it.
    writer = kafka.producer(bootstrap, transactional_id=transactional_id)
    _retrying(lambda: writer.init_transactions(30))
    return writer


def _rewind(client: Consumer) -> list[TopicPartition]:
    """Back to the committed offsets; returns the partitions, whose state is to be rebuilt from committed output."""
    assignment = client.assignment()
    for place in client.committed(assignment, timeout=15):
        offset = place.offset if place.offset >= 0 else 0
        client.seek(TopicPartition(place.topic, place.partition, offset))
    return assignment
