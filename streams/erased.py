"""Who was forgotten: what still comes of them, from a replay or a slow producer, is kept out.

Follows `subjects.erasures` without a group. `prepare` and `monitor` ask it before anything of a batch becomes durable;
whatever of the subject stood in a topic before the request is the business of `streams.erase`.
"""

from __future__ import annotations

import time
from typing import Protocol

import msgspec
from confluent_kafka import TopicPartition

from schemas.events import ErasureRequested
from schemas.identity import subject_hash
from streams import kafka
from streams.artifacts import ArtifactStore

TOPIC = "subjects.erasures"
# A request is this old at most before every consumer knows of it; `streams.erase` waits longer before it looks.
STALE_S = 0.5


class Suppression(Protocol):
    """Whether something of a forgotten subject came late."""

    def refresh(self) -> None:
        """Learn of the requests made meanwhile; called once per batch."""

    def anybody(self) -> bool:
        """Whether anybody was forgotten at all: where not, nobody need be asked about."""

    def covers(self, subject_id: str, inference_id: str = "") -> bool:
        """Whether this subject, or the subject of this inference, was forgotten."""


class Nobody:
    """Suppresses nothing."""

    def refresh(self) -> None: ...

    def anybody(self) -> bool:
        return False

    def covers(self, subject_id: str, inference_id: str = "") -> bool:
        return False


class Erased:
    """See the module; `secret` is what subjects are hashed with."""

    def __init__(self, bootstrap: str, secret: bytes, store: ArtifactStore) -> None:
        self._secret, self._store = secret, store
        self._hashes: set[str] = set()
        self._inferences: set[str] = set()
        self._refreshed_at = float("-inf")
        self._reader = kafka.consumer(bootstrap, "unused-no-group")
        self._place = TopicPartition(TOPIC, 0, 0)
        self._reader.assign([self._place])
        self._next = 0

    def refresh(self) -> None:
        if time.monotonic() - self._refreshed_at < STALE_S:
            return
        _, end = self._reader.get_watermark_offsets(self._place, timeout=15)
        deadline = time.monotonic() + 1.0  # what is not committed yet will be there next time
        while self._next < end and time.monotonic() < deadline:
            for record in kafka.messages_of(self._reader.consume(500, timeout=0.05)):
                self._take(record)
            self._next = max([self._next, *(place.offset for place in kafka.positions(self._reader))])
        self._refreshed_at = time.monotonic()

    def _take(self, record: kafka.Record) -> None:
        if record.value is None:
            return
        _, event = kafka.decode(record)
        self._hashes.add(event.subject_hash)
        if isinstance(event, ErasureRequested) and event.inferences:
            self._inferences.update(read_inferences(self._store, event.inferences))

    def anybody(self) -> bool:
        return bool(self._hashes)

    def covers(self, subject_id: str, inference_id: str = "") -> bool:
        if not self._hashes:
            return False
        return inference_id in self._inferences or subject_hash(self._secret, subject_id) in self._hashes


def put_inferences(store: ArtifactStore, erasure: str, inferences: set[str]) -> str:
    """Store the ids of a subject's inferences; they say nothing of the person."""
    path = f"erasures/{erasure}.json"
    store.put_bytes(path, msgspec.json.encode(sorted(inferences)))
    return path


def read_inferences(store: ArtifactStore, path: str) -> list[str]:
    return msgspec.json.decode(store.read_bytes(path), type=list[str])
