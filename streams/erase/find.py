"""Finding a subject's records in topics: which keys, in which partitions.

Reads every topic with a person's words to its end. Slow and sure: nothing else knows of a record whose landing failed,
of a dead letter, or of what a stream processor keeps in its own topics.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
from confluent_kafka.admin import AdminClient

from schemas.events import Message
from schemas.identity import subject_of_record
from schemas.topics import all_topics
from streams import kafka
from streams.join.rows import carried_by
from streams.kafka import Record

Place = tuple[str, int]
_INFERENCE = re.compile(rb"chatcmpl-[0-9a-f]{44}")
# Before a name under any key of a JSON object, but not before what people say or what things are called.
_NOT_NAMES = rb"role|content|prompt|completion|chosen|rejected|answer|value|model|kind|origin|metric_name"
_NAMING = rb'"(?!(?:' + _NOT_NAMES + rb')")[^"\\]*"\s*:\s*'
# Topics of this consumer's own (re-keyed records, changelogs of its tables) hold words too.
INTERNAL = "join-feedback-"


class _Who(msgspec.Struct):
    """What any event with a person's words says of whose they are."""

    subject_id: str = ""
    inference_id: str = ""
    prompt: str = ""
    messages: list[Message] = []


@dataclass
class Found:
    """Keys of records that still have a value, by partition; the ids of the subject's inferences; the offset of the
    last record of each partition that was looked at."""

    keys: dict[Place, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    inferences: set[str] = field(default_factory=set)
    last: dict[Place, int] = field(default_factory=dict)

    def count(self) -> dict[str, int]:
        total: dict[str, int] = defaultdict(int)
        for (topic, _), keys in self.keys.items():
            total[topic] += len(keys)
        return dict(total)


class Subject:
    """Recognises what belongs to one subject, given the inferences that are known to be theirs."""

    def __init__(self, subject_id: str, inferences: Iterable[str] = ()) -> None:
        self.subject_id = subject_id
        self.inferences = set(inferences)
        self._quoted = msgspec.json.encode(subject_id)
        self._named = re.compile(_NAMING + re.escape(self._quoted))

    def owns(self, record: Record) -> bool:
        """Whether a record is theirs by what it says, or, where it says nothing that can be read, by what it holds."""
        value = record.value or b""
        try:
            who = _decoder.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self.in_bytes(value)
        if who.subject_id:
            return who.subject_id == self.subject_id or who.inference_id in self.inferences
        named = self._quoted in value and self._named.search(value) is not None  # the cheap look first
        return named or self._asked(who) or self.in_key(value)

    def _asked(self, who: _Who) -> bool:
        """A row that came without a subject has that of its prompt."""
        if not self.subject_id.startswith("prompt-"):
            return False
        return subject_of_record(who.messages, who.prompt) == self.subject_id

    def in_bytes(self, value: bytes) -> bool:
        """Whether the subject's id stands there as a JSON string, or the id of one of their inferences."""
        return self._quoted in value or self.in_key(value)

    def in_key(self, value: bytes) -> bool:
        """Whether the id of one of their inferences stands there."""
        return any(match.group().decode() in self.inferences for match in _INFERENCE.finditer(value))


_decoder = msgspec.json.Decoder(_Who)


def find(bootstrap: str, subject: Subject) -> Found:
    """Every record of the subject that has a value and no later deletion under its key."""
    found = Found()
    for record in _live(bootstrap, "usage.inferences", subject.owns, found.last):
        found.keys[record.topic, record.partition].add(record.key or b"")
        subject.inferences.add((record.key or b"").decode(errors="replace"))
    for topic in personal_topics(bootstrap):
        if topic != "usage.inferences":
            for record in _live(bootstrap, topic, owner(subject, topic), found.last):
                found.keys[record.topic, record.partition].add(record.key or b"")
    found.inferences = set(subject.inferences)
    return found


def deleted_already(bootstrap: str, subject: Subject) -> dict[Place, set[bytes]]:
    """Keys of the subject's records that were deleted before, and whose values Kafka still stores."""
    doomed: dict[Place, set[bytes]] = defaultdict(set)
    for topic in personal_topics(bootstrap):
        own = owner(subject, topic)
        for record in kafka.read_to_end(bootstrap, topic):
            if record.value is not None and own(record):
                doomed[topic, record.partition].add(record.key or b"")
                if topic == "usage.inferences":
                    subject.inferences.add((record.key or b"").decode(errors="replace"))
    return doomed


def owner(subject: Subject, topic: str) -> Callable[[Record], bool]:
    """What tells whether a record of this topic is theirs: of a stream processor's own, what it carries."""
    if not topic.startswith(INTERNAL):
        return subject.owns

    def holds(record: Record) -> bool:
        try:
            carried = carried_by(record)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, IndexError):
            return subject.in_bytes((record.key or b"") + b"\0" + (record.value or b""))
        return subject.owns(carried) or subject.in_key(record.key or b"")

    return holds


def personal_topics(bootstrap: str) -> list[str]:
    """Topics with people's words: those declared so, except the requests themselves, and the internal ones."""
    declared = [topic.name for topic in all_topics() if topic.personal and topic.name != "subjects.erasures"]
    there = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=15).topics
    return [name for name in declared if name in there] + sorted(name for name in there if name.startswith(INTERNAL))


def _live(bootstrap: str, topic: str, owns: Callable[[Record], bool], last: dict[Place, int]) -> list[Record]:
    """The subject's records whose key was not deleted after them; notes in `last` how far it read.

    What is in an open transaction is waited for: a dead letter may show later than the offsets committed with it.
    """
    live: dict[tuple[int, bytes], Record] = {}
    for record in kafka.read_to_end(bootstrap, topic, settled=True):
        last[topic, record.partition] = record.offset
        place = record.partition, record.key or b""
        if record.value is None:
            live.pop(place, None)
        elif owns(record):
            live[place] = record
    return list(live.values())


def still_stored(bootstrap: str, doomed: dict[Place, set[bytes]]) -> int:
    """How many records with a value are stored under these keys."""
    return sum(
        record.key in keys and record.value is not None
        for (topic, partition), keys in doomed.items()
        for record in kafka.read_to_end(bootstrap, topic, [partition])
    )
