"""The clock by which rows leave the tables of `join-feedback`.

A Faust timer may not write tables, so time comes as a record: a timer puts the clock into every partition of the
re-keyed topic, behind all feedback that was taken in before. The clock is the wall clock only as far as both
inputs have been taken in: after days of standing still, feedback that was in time must not find its answer gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from streams import kafka

EVERY_S = 30.0


def taken_in_until(bootstrap: str, group: str, topics: Sequence[str], now_ms: int, timeout_s: float = 15.0) -> int:
    """The time (Unix ms) up to which `group` has taken in all of `topics`: that of the oldest record left, or now.

    Looks at records instead of offsets: behind control markers a group's offsets never reach the end.
    Raises `KafkaException`, `TimeoutError`.
    """
    # Uncommitted records too, as Faust reads them.
    settings = {"enable.partition.eof": True, "isolation.level": "read_uncommitted"}
    reader = kafka.consumer(bootstrap, group, **settings)
    try:
        places = [TopicPartition(topic, n) for topic in topics for n in kafka.partitions_of(reader, topic)]
        committed = reader.committed(places, timeout=timeout_s)
        reader.assign([_from(place) for place in committed])
        oldest, left = now_ms, {(place.topic, place.partition) for place in places}
        while left:
            message = reader.poll(timeout_s)
            if message is None:
                raise TimeoutError(f"{group}: no answer from {sorted(left)} within {timeout_s:.0f} s")
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            place = (message.topic(), message.partition())
            if error is None and place in left:
                oldest = min(oldest, message.timestamp()[1])
            left.discard(place)
        return oldest
    finally:
        reader.close()


def _from(place: TopicPartition) -> TopicPartition:
    return TopicPartition(place.topic, place.partition, place.offset if place.offset >= 0 else OFFSET_BEGINNING)
