"""What `join-feedback` keeps and passes on: rows of its two tables, and records of its re-keyed topic.

`answers` holds each answer as it came with the marks of what was learnt from it, by inference id; `waiting`
holds feedback whose answer is not there yet, a row each, by (inference id, origin). Feedback keeps its original
bytes, headers and origin wherever it goes, so that it can become a dead letter or be forgotten.

The re-keyed topic carries three things, told apart by the last header: feedback (its origin), the clock (what
lets rows expire), and a null value that forgets the feedback of that key.
"""

from __future__ import annotations

import msgspec
from aiokafka.partitioner import murmur2

from schemas.topics import BY_NAME, DAY_MS
from streams.join.rules import Mark
from streams.kafka import Out, Record

GROUP = "join-feedback"
FEEDBACK, INFERENCES = "usage.feedback", "usage.inferences"
PARTITIONS = BY_NAME[INFERENCES].partitions
REKEYED = f"{GROUP}-feedback-by-inference"
# With a person's words in it, a tombstone must reach the disk within a day, however quiet the partition is.
_PERSONAL = {"max.compaction.lag.ms": str(DAY_MS), "segment.ms": str(DAY_MS)}
# As long as the topic that it comes from: what is under way here is read there no more.
REKEYED_CONFIG = {"cleanup.policy": "compact,delete", "retention.ms": str(30 * DAY_MS), **_PERSONAL}
CHANGELOG_CONFIG = {"cleanup.policy": "compact", **_PERSONAL}
_ORIGIN, _CLOCK = "join_origin", "join_clock"
# What `clock_of` and `feedback_of` raise for a record that somebody else wrote.
UNREADABLE = (ValueError, IndexError, AttributeError, TypeError)


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """One answer: since when it is known (Unix ms), what was made of it (by record id), and its JSON as it came."""

    since_ms: int
    made: dict[str, list[Mark]]
    value: bytes


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """One piece of feedback without its answer, as it came, and since when it waits (Unix ms)."""

    since_ms: int
    feedback: Record


pack = msgspec.msgpack.Encoder().encode
unpack_answer = msgspec.msgpack.Decoder(Answer).decode
unpack_waiting = msgspec.msgpack.Decoder(Waiting).decode


def waiting_prefix(inference: bytes) -> bytes:
    return inference + b"\0"


def waiting_key(inference: bytes, feedback: Record) -> bytes:
    return waiting_prefix(inference) + feedback.origin.encode()


def waits_for(key: bytes, inference: bytes) -> bool:
    """Whether this row of `waiting` waits for that answer (an id may hold a NUL itself, an origin cannot)."""
    return key.rpartition(b"\0")[0] == inference


def home(inference_id: str) -> int:
    """The partition of an inference's answer: where Kafka's own partitioner puts its id."""
    return int((murmur2(inference_id.encode()) & 0x7FFFFFFF) % PARTITIONS)


def rekeyed(feedback: Record, inference_id: str) -> Out:
    """Feedback on its way to its answer's partition, under its own key, so that it can be forgotten there."""
    origin = f"{feedback.partition}/{feedback.offset}/{feedback.timestamp_ms}"
    headers = [*feedback.headers, (_ORIGIN, origin.encode())]
    return Out(REKEYED, feedback.key or feedback.origin.encode(), feedback.value, headers, home(inference_id))


def forgotten(key: bytes) -> list[Out]:
    """Forget the feedback of this key wherever it went."""
    return [Out(REKEYED, key, None, [], partition) for partition in range(PARTITIONS)]


def clock(partition: int, time_ms: int) -> Out:
    """Tells a partition that everything up to this time has been taken in."""
    return Out(REKEYED, f"{_CLOCK}/{partition}".encode(), b"", [(_CLOCK, str(time_ms).encode())], partition)


def clock_of(record: Record) -> int | None:
    """The time that a record of the re-keyed topic tells; None where it is feedback."""
    name, value = record.headers[-1]
    return int(value) if name == _CLOCK else None


def feedback_of(record: Record) -> Record:
    """The feedback that a record of the re-keyed topic carries, as it came in."""
    partition, offset, timestamp_ms = map(int, record.headers[-1][1].decode().split("/"))
    return Record(FEEDBACK, partition, offset, timestamp_ms, record.key, record.value, record.headers[:-1])


def carried_by(record: Record) -> Record:
    """The answer or the feedback that a record of this consumer's own topics carries, as it came; it has a value.

    Raises what the decoders do, or `ValueError`, where it is none of these.
    """
    if record.topic == REKEYED:
        return record if clock_of(record) is not None else feedback_of(record)
    if record.topic.endswith("-answers-changelog"):
        value = unpack_answer(record.value or b"").value
        return Record(INFERENCES, record.partition, -1, record.timestamp_ms, record.key, value, [])
    return unpack_waiting(record.value or b"").feedback
