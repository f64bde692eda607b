"""Kafka clients with this project's settings, and the one way to publish an event.

Everything here talks to a bootstrap address; nothing knows who started the broker.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from confluent_kafka.cimpl import NewTopic

from schemas import codec
from schemas.topics import CONSUMER_GROUPS, DEAD_LETTER_BYTES, Topic, all_topics
from streams.kafka_security import security

log = logging.getLogger(__name__)
EX_TEMPFAIL = 75
# Transactions take milliseconds, or until a killed broker is back. One that hangs must be over before the coordinator
# would abort it of its own accord.
TRANSACTION_LIMIT_S = 8.0
LEAVE_LIMIT_S = 1.0
# A commit waits for a broker that is away, and answers once the session is lost; it has no time-out of its own.
COMMIT_LIMIT_S = 20.0
# With the defaults (45 s, 60 s) a crashed consumer's partitions stay unread for a minute. Not less than a killed local
# broker takes to be back, which is 6 s after a million records: a static member whose session ends joins under a new
# id, and its own requests of before are then refused as those of an impostor, for good.
SESSION_TIMEOUT_MS = 7_000
TRANSACTION_TIMEOUT_MS = 10_000
# The default of 10 s has a client look the other way for that long when the broker is back.
RECONNECT_MS = 1_000
# Messages asked for at a time: what 250 of them bring still lies in the processor's cache when it is decoded. At 1,000
# records under 8 headers take half as long again.
CONSUME_RECORDS = 250
# How much a batch may hold before it is dealt with, however few its records are.
BATCH_BYTES = 32 * 1024 * 1024
# What the client reads ahead. With its default of 64 MB a busy process is larger and none is faster.
QUEUED_KB = 4_096
# Kafka's own partitioner, so that Java clients, Faust and we agree on where a key lives.
PARTITIONER = "murmur2_random"
_NOT_ALLOWED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
UNASSIGNED = -1  # librdkafka's word for "the partitioner says"


# Structs, not dataclasses: a frozen dataclass takes five times as long to make, and these are made per record.
class Record(msgspec.Struct, frozen=True, gc=False):
    """One consumed record, as plain values. `value` is None for a tombstone; `timestamp_ms` is Unix time."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, Any]]

    @property
    def origin(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class Out(msgspec.Struct, frozen=True, gc=False):
    """One record to produce. `partition` None leaves it to the partitioner, `timestamp_ms` None to the client."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, Any]] = []
    partition: int | None = None
    timestamp_ms: int | None = None


def record_of(message: Message) -> Record:
    return Record(  # by position: this runs for every record
        message.topic() or "", message.partition() or 0, message.offset() or 0, message.timestamp()[1], message.key(),
        message.value(), message.headers() or [],  # type: ignore[arg-type]
    )


def decode(record: Record) -> tuple[codec.Envelope, Any]:
    """Envelope and event of a record that is not a tombstone. Raises `schemas.codec.ContractError`."""
    if record.value is None:
        raise codec.ContractError("a tombstone carries no event")
    return codec.decode(
        record.topic, record.value, record.headers, record.partition, record.offset, record.timestamp_ms
    )


def out(event: msgspec.Struct, *, source: str, partition: int | None = None, **attributes: Any) -> Out:
    """An event as a record for its topic: key by `schemas.codec.key_of`, CloudEvents headers."""
    return enveloped(event, source=source, partition=partition, **attributes)[1]


def enveloped(
    event: msgspec.Struct, *, source: str, partition: int | None = None, **attributes: Any
) -> tuple[codec.Envelope, Out]:
    """`out`, with the envelope that a reader will see."""
    encoded = codec.encode(event, source=source, **attributes)
    key = codec.key_of(event, encoded.envelope).encode()
    return encoded.envelope, Out(codec.topic_of(event), key, encoded.value, encoded.headers, partition)


def enqueue(client: Producer, record: Out, on_delivery: Any = None) -> None:
    """Enqueue one record without waiting. Raises `BufferError` where the client's queue is full, `KafkaException`."""
    client.produce(
        record.topic, record.value, record.key, UNASSIGNED if record.partition is None else record.partition,
        on_delivery=on_delivery, timestamp=record.timestamp_ms or 0, headers=record.headers,
    )


def produce(client: Producer, record: Out, on_delivery: Any = None) -> None:
    """Enqueue one record, waiting for room in the client's queue where it is full."""
    while True:
        try:
            enqueue(client, record, on_delivery)
        except BufferError:
            client.poll(0.1)
        else:
            client.poll(0)
            return


_of_all_clients: dict[str, Any] = {}


def quieten() -> None:
    """Have clients log nothing from now on: a command says what went wrong itself, and in one line."""
    _of_all_clients["log_level"] = 0


def client_settings(bootstrap: str, **more: Any) -> dict[str, Any]:
    """What every client starts from: the address, and how it proves who it is. Raises `KafkaConfigError`."""
    return {"bootstrap.servers": bootstrap, **security(), **_of_all_clients, **more}


def admin(bootstrap: str, **more: Any) -> AdminClient:
    """An administrating client."""
    return AdminClient(client_settings(bootstrap, **more))


def producer(
    bootstrap: str, *, transactional_id: str | None = None, linger_ms: int = 5, **overrides: Any
) -> Producer:
    """An idempotent producer; transactional where an id is given."""
    settings: dict[str, Any] = {
        **client_settings(bootstrap), "enable.idempotence": True, "partitioner": PARTITIONER,
        "linger.ms": linger_ms, "compression.type": "lz4", "reconnect.backoff.max.ms": RECONNECT_MS,
        "message.max.bytes": DEAD_LETTER_BYTES,  # what a topic refuses the broker says
    }
    if transactional_id:
        settings |= {"transactional.id": transactional_id, "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS}
    return Producer(settings | overrides)


def consumer(bootstrap: str, group: str, instance: str = "", /, **overrides: Any) -> Consumer:
    """A read-committed consumer that commits nothing by itself and starts at the beginning.

    `instance` names its place in the group (static membership): who comes back under that name within the session has
    its partitions at once, and whoever still holds the name is fenced. Without it a place that was killed stays taken
    until its session has run out; with it a place that was left politely does.
    """
    static = {"group.instance.id": instance} if instance else {}
    return Consumer(
        {
            **client_settings(bootstrap), "group.id": group, "isolation.level": "read_committed",
            "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "session.timeout.ms": SESSION_TIMEOUT_MS, "max.poll.interval.ms": 60_000,
            # The default of 3 s leaves no room for a late heartbeat within so short a session.
            "heartbeat.interval.ms": SESSION_TIMEOUT_MS // 10,  # an answer is how a member hears of a rebalance
            # Left at 1000 ms, this backoff costs five times the throughput.
            "fetch.queue.backoff.ms": 10, "fetch.wait.max.ms": 100, "reconnect.backoff.max.ms": RECONNECT_MS,
            "queued.max.messages.kbytes": QUEUED_KB, **static, **overrides,
        }
    )


def asking(bootstrap: str, group: str) -> Consumer:
    """A consumer that asks what a group has committed, and never joins it.

    Not an `AdminClient`: its `list_consumer_group_offsets` ends the process (librdkafka 2.16 follows a null pointer)
    where a broker answers that it is not the group's coordinator, as one that has just started does.
    """
    return consumer(bootstrap, group, **{"isolation.level": "read_uncommitted", "log_level": 0})


def messages_of(batch: list[Message]) -> list[Record]:
    """The records of a consumed batch. Raises `KafkaException` for an error the client cannot mend itself."""
    records = []
    for message in batch:
        error = message.error()
        if error is None:  # `record_of`, without the call
            records.append(Record(
                message.topic(), message.partition(), message.offset(), message.timestamp()[1],  # type: ignore[arg-type]
                message.key(), message.value(), message.headers() or [],  # type: ignore[arg-type]
            ))  # fmt: skip
        elif error.code() not in (KafkaError._PARTITION_EOF, KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
            raise KafkaException(error)
    return records


def size_bytes(records: Sequence[Record]) -> int:
    """How much the values of these records take."""
    return sum(len(record.value) for record in records if record.value is not None)


def positions(client: Consumer) -> list[TopicPartition]:
    """Where each assigned partition goes on. Not last offset + 1: control markers take offsets too."""
    return [position for position in client.position(client.assignment()) if position.offset >= 0]


@contextmanager
def at_most(limit_s: float, what: str, client: Consumer | None = None) -> Iterator[None]:
    """End this process, to be started again, where the block takes longer; `client` leaves its group before.

    A transactional request that meets the death of a broker may never return, whatever its own time-out is
    (seen: send_offsets_to_transaction, librdkafka 2.16); no exception reaches a thread that waits there.
    """

    def give_up() -> None:
        log.critical("%s did not return within %.0f s: ending this process; it stands here:", what, limit_s)
        faulthandler.dump_traceback(all_threads=True)
        if client is not None:
            # A member that goes without a word holds its partitions until its session has run out.
            leaving = threading.Thread(target=client.close, daemon=True)
            leaving.start()
            leaving.join(LEAVE_LIMIT_S)
        os._exit(EX_TEMPFAIL)

    timer = threading.Timer(limit_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def commit_idle(client: Consumer, before: set[tuple[str, int, int]]) -> set[tuple[str, int, int]]:
    """Commit positions that moved while no record came: behind control markers and aborted transactions.

    `before` is what the last call returned. Only for a loop that has no record in hand.
    """
    places = positions(client)
    now = {(place.topic, place.partition, place.offset) for place in places}
    if now - before:
        try:
            with at_most(COMMIT_LIMIT_S, "a commit", client):
                client.commit(offsets=places, asynchronous=False)
        except KafkaException:  # a rebalance is under way; the lag shows until the next record
            return before
    return now


def ensure_topics(bootstrap: str, replication: int = 1, timeout_s: float = 30.0) -> None:
    """Create every topic of `schemas.topics` that does not exist yet; those that do get what bounds their records.

    Raises `KafkaException`.
    """
    client = admin(bootstrap)
    existing = set(client.list_topics(timeout=timeout_s).topics)
    missing = [
        NewTopic(topic.name, topic.partitions, replication, config=topic.config())
        for topic in all_topics()
        if topic.name not in existing
    ]
    for future in client.create_topics(missing).values() if missing else ():
        try:
            future.result(timeout_s)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    wait_until_known(client, [topic.topic for topic in missing], timeout_s)
    if missing:
        _wait_for_coordinators(bootstrap, timeout_s)
    _bound(client, [topic for topic in all_topics() if topic.bounds() and topic.name in existing], timeout_s)


def _bound(client: AdminClient, topics: list[Topic], timeout_s: float) -> None:
    """Set what bounds the records of these topics, where it is not so yet; who may not is no reason to end."""
    asked = [ConfigResource(ResourceType.TOPIC, topic.name) for topic in topics]
    known = client.describe_configs(asked) if asked else {}
    try:
        now = {resource.name: future.result(timeout_s) for resource, future in known.items()}
        changed = []
        for topic in topics:
            wrong = [(name, value) for name, value in topic.bounds().items() if now[topic.name][name].value != value]
            entries = [ConfigEntry(*pair, incremental_operation=AlterConfigOpType.SET) for pair in wrong]
            if entries:
                changed.append(ConfigResource(ResourceType.TOPIC, topic.name, incremental_configs=entries))
        for future in client.incremental_alter_configs(changed).values() if changed else ():
            future.result(timeout_s)
    except KafkaException as error:
        if error.args[0].code() not in _NOT_ALLOWED:
            raise
        log.warning("what bounds the records of our topics is not checked: %s", error.args[0].str())


def wait_until_known(client: AdminClient, topics: list[str], timeout_s: float = 30.0) -> None:
    """Return once the broker names these topics: the controller, which creates them, knows of them earlier.

    Raises `TimeoutError`.
    """
    deadline = time.monotonic() + timeout_s
    while missing := set(topics) - set(client.list_topics(timeout=timeout_s).topics):
        if time.monotonic() > deadline:
            raise TimeoutError(f"topics that were created are not there within {timeout_s:.0f} s: {sorted(missing)}")
        time.sleep(0.02)


def _wait_for_coordinators(bootstrap: str, timeout_s: float) -> None:
    """Return once every group can be asked for its offsets: a broker makes their topic when that is asked first.

    Raises `KafkaException`.
    """
    deadline = time.monotonic() + timeout_s
    anywhere = [TopicPartition(all_topics()[0].name, 0)]
    for group in CONSUMER_GROUPS:
        client = asking(bootstrap, group)
        try:
            while True:
                try:
                    client.committed(anywhere, timeout=3)
                except KafkaException:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
                else:
                    break
        finally:
            client.close()


def partitions_of(client: Consumer, topic: str, timeout_s: float = 15.0) -> list[int]:
    """Raises `KafkaException` where the topic is not there: to its readers that is not the same as empty."""
    metadata = client.list_topics(topic, timeout=timeout_s).topics[topic]
    if metadata.error is not None:
        raise KafkaException(metadata.error)
    return sorted(metadata.partitions)


def read_to_end(
    bootstrap: str, topic: str, partitions: list[int] | None = None, timeout_s: float = 30.0, start: int = 0,
    settled: bool = False,
) -> Iterator[Record]:  # fmt: skip
    """Every committed record of a topic as it stands now, without a group. Raises `KafkaException`, `TimeoutError`.

    What comes meanwhile is left out: on a busy topic there would be no end. A transaction that was committed a moment
    ago may not show yet, for its markers come later; `settled` waits until every transaction that had begun has ended
    and shows.
    """
    reader = consumer(bootstrap, "unused-no-group", **{"enable.partition.eof": True})
    try:
        wanted = partitions_of(reader, topic) if partitions is None else partitions
        ends = _ends(bootstrap, topic, wanted, settled)
        left, idle_s = {number for number in wanted if ends[number] > start}, 0.0
        reader.assign([TopicPartition(topic, number, start) for number in left])
        while left:
            message = reader.poll(0.5)
            idle_s = idle_s + 0.5 if message is None else 0.0
            if idle_s > timeout_s:
                raise TimeoutError(f"{topic}: no end of partitions {sorted(left)} within {timeout_s} s")
            if message is None:
                continue
            number, offset, error = message.partition() or 0, message.offset() or 0, message.error()
            if error is None:
                if offset < ends[number]:
                    yield record_of(message)
                over = offset + 1 >= ends[number]
            else:
                over = error.code() == KafkaError._PARTITION_EOF and offset >= ends[number]
            if over:
                left.discard(number)
                reader.pause([TopicPartition(topic, number)])
    finally:
        reader.close()


def _ends(bootstrap: str, topic: str, partitions: list[int], settled: bool) -> dict[int, int]:
    """Where each partition ends: if `settled` with what is not committed yet, else before it."""
    isolation = {"isolation.level": "read_uncommitted" if settled else "read_committed"}
    reader = consumer(bootstrap, "unused-no-group", **isolation)
    try:
        return {number: end_of(reader, TopicPartition(topic, number)) for number in partitions}
    finally:
        reader.close()


def end_of(reader: Consumer, place: TopicPartition, timeout_s: float = 15.0) -> int:
    """Where a partition ends; one that was created just now, or whose broker was, may not have its leader yet.

    Raises `KafkaException`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return int(reader.get_watermark_offsets(place, timeout=timeout_s)[1])
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > deadline:
                raise
            time.sleep(0.05)

