"""The sink loop: Kafka to a store that is idempotent by (topic, partition, offset).

Commit order, and why: rows first, offsets last. A crash in between writes the same rows again, and the store
collapses them; on assignment the loop asks the store how far it came, so that it rarely has to, and so that one that
was emptied or restored is filled again.

While the store writes one batch the next is read, never more: batches are written in their order, and the offsets of
one are committed when it is written. A process that slept past its session may write a batch when others have gone on
from there; its commit fails, and it carries out again what was deleted meanwhile. Records are read by the piece as they
come, while they lie in the processor's cache: gathered first and read then, they take twice the time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams import failpoints, kafka, metrics
from streams.kafka import Record
from streams.watchdog import LostMembershipError, Membership

log = logging.getLogger(__name__)
_PLACE, _OFFSET = attrgetter("topic", "partition"), attrgetter("offset")
LOST = (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.FENCED_INSTANCE_ID)


class Store(Protocol):
    """What a sink loop writes to."""

    def begin_at(self, topic: str, partition: int, committed: int) -> int:
        """The offset before which all is stored; the group has committed `committed` (0 or less = nothing)."""

    def read(self, records: list[Record]) -> Any:
        """What is to be written of some records of a batch. `write` may be at the batch before, in another thread."""

    def write(self, pieces: list[Any]) -> None:
        """Store durably what `read` made of a batch, in this order. Called again with the same after a crash."""

    def note(self, places: list[TopicPartition]) -> None:
        """What was written goes up to these; called after `write`, before the group commits them."""


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
    """Write `topics` into `store` until `stop`. `instance` names this place in the group, see `kafka.consumer`.

    Raises `LostMembershipError`.
    """
    client = kafka.consumer(bootstrap, group, instance)
    writing, batch = _Writing(bootstrap, client, store), _Batch()

    def on_assign(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        writing.settle()
        resumed = [_resumed(consumer, store, place) for place in partitions]
        consumer.assign(resumed)
        # What the store had already is not read again, so nothing else would ever move these offsets.
        _commit(consumer, [place for place in resumed if place.offset > 0])

    def on_revoke(*_: Any) -> None:
        writing.settle()
        # Whoever has the partitions now reads these records, and what deletes them; written here, they might come last.
        batch.clear()

    client.subscribe(topics, on_assign=on_assign, on_revoke=on_revoke)
    watched, member = metrics.Watched(client), Membership(client, bootstrap, group, instance)
    idle_at: set[tuple[str, int, int]] = set()
    try:
        while not stop.is_set():
            _gather(batch, client, store, batch_records, linger_s, stop)
            watched.came_round()
            member.check()
            if not writing.settle():
                # What is in hand has no offsets to be committed, and what came after it would hide that it is missing.
                raise LostMembershipError(f"{group} went on without this member")
            if batch.pieces:
                failpoints.hit("sink.gathered")
                writing.begin(batch)
                batch = _Batch()
            else:
                idle_at = kafka.commit_idle(client, idle_at)
        writing.settle()
    except (KafkaException, LostMembershipError):
        writing.delete_again()  # its place in the group is gone: what is being written comes late
        raise
    finally:
        writing.close()
        watched.close()
        client.close()


@dataclass
class _Batch:
    """What the store made of some records, how many there were by topic, where their partitions begin and go on."""

    pieces: list[Any] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    places: list[TopicPartition] = field(default_factory=list)
    first: dict[tuple[str, int], int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    size_bytes: int = 0

    def clear(self) -> None:
        self.pieces.clear()
        self.counts.clear()
        self.first.clear()
        self.size_bytes = 0


def _gather(
    batch: _Batch, client: Consumer, store: Store, batch_records: int, linger_s: float, stop: threading.Event
) -> None:
    """Read until there are records or bytes enough or `linger_s` has passed since the first; none where none came.

    A rebalance happens inside `consume`, and may clear the batch.
    """
    wait_s = 0.2
    while not stop.is_set():
        records = kafka.messages_of(client.consume(min(batch_records, kafka.CONSUME_RECORDS), timeout=wait_s))
        if records:
            if not batch.pieces:
                batch.began = time.monotonic()
            batch.pieces.append(store.read(records))
            batch.counts.update(metrics.by_topic(records))
            batch.size_bytes += kafka.size_bytes(records)
            back = records[::-1]
            batch.first = dict(zip(map(_PLACE, back), map(_OFFSET, back), strict=True)) | batch.first
        left_s = batch.began + linger_s - time.monotonic()
        full = batch.counts.total() >= batch_records or batch.size_bytes >= kafka.BATCH_BYTES
        if not batch.pieces or left_s <= 0 or full:
            break
        wait_s = min(left_s, 0.2)
    batch.places = kafka.positions(client)


class _Writing:
    """The batch that the store is at; its positions are committed once it is written."""

    def __init__(self, bootstrap: str, client: Consumer, store: Store) -> None:
        self._bootstrap, self._client, self._store = bootstrap, client, store
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sink-write")
        self._at: tuple[Future[None], _Batch] | None = None
        # Where that begins, by partition, of which no commit has said that it was ours when it was written.
        self._unsure: dict[tuple[str, int], int] = {}

    def begin(self, batch: _Batch) -> None:
        """Have a batch written; only after `settle`."""
        self._unsure = batch.first | self._unsure
        self._at = self._writer.submit(self._store.write, batch.pieces), batch

    def settle(self) -> bool:
        """Wait for what is being written and commit its offsets. Raises what `write` raised.

        False where this consumer is no longer of its group.
        """
        if self._at is None:
            return True
        (written, batch), self._at = self._at, None
        written.result()
        failpoints.hit("sink.written")
        self._store.note(batch.places)
        error = _commit(self._client, batch.places)
        failpoints.hit("sink.committed")
        metrics.batch_done(batch.counts, [], time.monotonic() - batch.began)
        if error is None:
            self._unsure.clear()
        lost = error is not None and (error.fatal() or error.code() in LOST)
        if lost:
            self.delete_again()
        return not lost

    def delete_again(self) -> None:
        """Carry out whatever deletions there are behind the begin of what may have been written late.

        Whoever had its partitions by then may have deleted a row that it has just brought back.
        """
        if self._at is not None:
            wait([self._at[0]])
        if not self._unsure:
            return
        deletions = []
        for (topic, partition), offset in self._unsure.items():
            for record in kafka.read_to_end(self._bootstrap, topic, [partition], start=offset):
                metrics.heartbeat()
                if record.value is None:
                    deletions.append(record)
        log.warning("a batch may have been written late; %d deletions are carried out again", len(deletions))
        self._store.write([self._store.read(deletions)])
        self._unsure.clear()

    def close(self) -> None:
        self._writer.shutdown()


def _commit(client: Consumer, places: list[TopicPartition]) -> KafkaError | None:
    """Why the offsets are not committed; the rows stand, and are at most written once more."""
    if not places:
        return None
    try:
        with kafka.at_most(kafka.COMMIT_LIMIT_S, "a commit", client):
            client.commit(offsets=places, asynchronous=False)
    except KafkaException as error:
        reason: KafkaError = error.args[0]
        log.warning("offsets not committed: %s", reason.str())
        return reason
    metrics.COMMITS.inc()
    return None


def _resumed(client: Consumer, store: Store, place: TopicPartition) -> TopicPartition:
    committed = client.committed([place], timeout=15)[0].offset
    return TopicPartition(place.topic, place.partition, store.begin_at(place.topic, place.partition, committed))
