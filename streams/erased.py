"""Who was forgotten: what still comes of them, from a replay or a slow producer, is kept out.

Follows `subjects.erasures` without a group. `prepare` and `monitor` ask it before anything of a batch becomes durable;
whatever of the subject stood in a topic before the request is the business of `streams.erase`.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas.events import ErasureCompleted, ErasureRequested
from schemas.identity import erasure_id, key_id, parse_answer_id, subject_hash
from streams import kafka, metrics
from streams.artifacts import ArtifactStore, MissingArtifactError
from streams.unreadable import decoded

log = logging.getLogger(__name__)
TOPIC = "subjects.erasures"
# A request is this old at most before every consumer knows of it; `streams.erase` waits longer before it looks.
STALE_S = 0.5
READ_LIMIT_S = 15.0
# Where the ids of answers lie that a forgotten subject was given afterwards, as names of empty files.
LATE = "erasures/late"


class OtherSecretError(RuntimeError):
    """This process hashes people with another secret than whoever asked to forget them, and would not know them."""


class Suppression(Protocol):
    """Whether something of a forgotten subject came late."""

    def refresh(self) -> None:
        """Learn of the requests made meanwhile; called once per batch."""

    def anybody(self) -> bool:
        """Whether anybody was forgotten at all: where not, nobody need be asked about."""

    def covers(self, subject_id: str, inference_id: str = "") -> bool:
        """Whether this subject, or the subject of this inference, was forgotten."""

    def answered(self, subject_id: str, inference_id: str) -> None:
        """Note that a forgotten subject was given an answer, so that feedback on it is known for theirs."""


class Nobody:
    """Suppresses nothing."""

    def refresh(self) -> None: ...

    def anybody(self) -> bool:
        return False

    def covers(self, subject_id: str, inference_id: str = "") -> bool:
        return False

    def answered(self, subject_id: str, inference_id: str) -> None: ...


class Erased:
    """See the module; `secret` is what subjects are hashed with.

    Feedback often says nothing of whose it is, only of which answer: so the ids of a subject's answers are known here,
    too, while they are being erased, afterwards, and of those that came after it all (`answered`).

    A request that cannot be read must not let through in silence what it was to keep out. Its key still says whom it
    is about: an erasure's id is made of the subject's hash. Under any other key nobody can tell; the alarm
    (`streams.unreadable`) then asks a person to find out who it was, and to ask for the erasure anew.
    """

    def __init__(self, bootstrap: str, secret: bytes, store: ArtifactStore) -> None:
        self._secret, self._store = secret, store
        self._hashes: set[str] = set()
        self._inferences = {path.rsplit("/", 1)[1] for path, _ in store.files(LATE)}
        self._ours = False  # whether a request under this secret was read
        self._unread: set[str] = set()  # erasures of which a record cannot be read
        self._under_way: set[str] = set()  # erasures whose subject's answers are still being found
        self._refreshed_at = float("-inf")
        self._reader = kafka.consumer(bootstrap, "unused-no-group")
        self._place = TopicPartition(TOPIC, 0, 0)
        self._reader.assign([self._place])
        self._next = 0

    def refresh(self) -> None:
        """Raises `KafkaException` where the requests cannot be read, `OtherSecretError` where one was made under a
        secret that is not this process's: to go on would let through what is suppressed."""
        if time.monotonic() - self._refreshed_at < STALE_S:
            return
        _, end = self._reader.get_watermark_offsets(self._place, timeout=15)
        deadline = time.monotonic() + READ_LIMIT_S
        while self._next < end:
            if time.monotonic() > deadline:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{TOPIC} could not be read to its end"))
            for record in kafka.messages_of(self._reader.consume(500, timeout=0.05)):
                self._take(record)
            self._next = max([self._next, *(place.offset for place in kafka.positions(self._reader))])
        for erasure in self._under_way:
            self._inferences.update(read_inferences(self._store, erasure))
        self._refreshed_at = time.monotonic()

    def _take(self, record: kafka.Record) -> None:
        if record.value is None:
            return
        pair = decoded(record)
        if pair is None:
            self._unread.add((record.key or b"").decode(errors="replace").removesuffix("/receipt"))
            return
        event = pair[1]
        if isinstance(event, ErasureRequested) and event.key_id != key_id(self._secret):
            self._foreign(record, event)
            return
        self._hashes.add(event.subject_hash)
        if isinstance(event, ErasureCompleted):
            return
        self._ours = True
        if event.subject_id:
            self._under_way.add(event.erasure_id)
        else:
            self._under_way.discard(event.erasure_id)
            self._inferences.update(read_inferences(self._store, event.erasure_id))

    def _foreign(self, record: kafka.Record, event: ErasureRequested) -> None:
        """A request under another secret. Whoever meets one first has the wrong secret, and ends; one among requests of
        its own is somebody else's mistake, and raises the alarm."""
        said = f"{record.origin} was made under identity secret {event.key_id}, this process has {key_id(self._secret)}"
        if not self._ours:
            raise OtherSecretError(f"{said}: name the same identity_secret_file for every process")
        metrics.UNREADABLE.labels(TOPIC).inc()
        log.error("%s: it is passed over, ask for it again", said)

    def anybody(self) -> bool:
        return bool(self._hashes or self._unread)

    def covers(self, subject_id: str, inference_id: str = "") -> bool:
        if not self.anybody():
            return False
        if inference_id and inference_id in self._inferences:
            return True
        if not subject_id:
            return False
        hashed = subject_hash(self._secret, subject_id)
        return hashed in self._hashes or (bool(self._unread) and erasure_id(hashed) in self._unread)

    def answered(self, subject_id: str, inference_id: str) -> None:
        if inference_id not in self._inferences and parse_answer_id(inference_id) is not None:
            self._store.put_bytes(f"{_late(subject_hash(self._secret, subject_id))}/{inference_id}", b"")
            self._inferences.add(inference_id)


def nameless(request: ErasureRequested) -> ErasureRequested:
    """A request as it may stay: without whose data it was about, and without who asked."""
    return msgspec.structs.replace(request, subject_id="", requested_by="")


def _path(erasure: str) -> str:
    return f"erasures/{erasure}.json"


def put_inferences(store: ArtifactStore, erasure: str, inferences: set[str]) -> str:
    """Store the ids of a subject's inferences; they say nothing of the person."""
    store.put_proven(_path(erasure), msgspec.json.encode(sorted(inferences)))
    return _path(erasure)


def _late(hashed: str) -> str:
    return f"{LATE}/{hashed}"


def late_inferences(store: ArtifactStore, hashed: str) -> set[str]:
    """The answers that a subject, by its hash, was given after it was forgotten."""
    return {path.rsplit("/", 1)[1] for path, _ in store.files(_late(hashed))}


def read_inferences(store: ArtifactStore, erasure: str) -> list[str]:
    """What was stored last; nothing where nothing was. Raises `ArtifactError` for a list that somebody else wrote."""
    try:
        return msgspec.json.decode(store.read_proven(_path(erasure)), type=list[str])
    except MissingArtifactError:
        return []
