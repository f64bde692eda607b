"""`erase`, the parent's side: takes requests, publishes rewritten shards and the receipt in one transaction.

Reads `subjects.erasures`; writes `training.shards` and `subjects.erasures`. What becomes of adapters that learned from
what is gone is the business of `work` and `gate` (a candidate is void) and of `register` (a version is marked).
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from schemas.codec import Envelope
from schemas.events import ErasureCompleted, ErasureRequested, ShardWritten, TaughtBy
from streams import kafka
from streams.kafka import Out
from streams.long_job import Limits
from streams.unreadable import readable

log = logging.getLogger(__name__)
GROUP, TOPIC, SOURCE = "erase", "subjects.erasures", "erase"


class EraseJob:
    """The job of the long-job loop; see `streams.long_job.Job`."""

    def __init__(self, bootstrap: str, key_id: str) -> None:
        """`key_id` names this process's identity secret: what was asked under another nobody here would know again."""
        self._key_id = key_id
        self._bootstrap = bootstrap
        self._current: tuple[Envelope, ErasureRequested] | None = None

    def accept(self, envelope: Envelope, event: ErasureRequested | ErasureCompleted) -> Any | None:
        """A request that has lost its subject is our own child's: it matters where its receipt was never given."""
        if isinstance(event, ErasureCompleted):
            return None
        if event.key_id != self._key_id:
            log.error("%s was asked for under another identity secret: nothing is done", event.erasure_id)
            return None
        if not event.subject_id and not event.inferences:
            log.warning("%s names nobody: nothing is done", event.erasure_id)
            return None
        if not event.subject_id and self._answered(envelope, event.erasure_id):
            return None
        self._current = envelope, event
        return {"event": msgspec.to_builtins(event), "asked_ms": envelope.time_ms, "id": envelope.id}

    def _answered(self, request: Envelope, erasure_id: str) -> bool:
        """Whether the last receipt is of this request or of what it was before it lost its subject."""
        last = _last_receipt(self._bootstrap, erasure_id)
        return last is not None and last[0].causation_id in (request.id, request.causation_id)

    def limits(self) -> Limits:
        return Limits()  # what is begun must end, and a large store takes its time

    def progress(self, message: Any, elapsed_s: float) -> list[Out]:
        return []

    def finished(self, result: Any, elapsed_s: float) -> list[Out]:
        envelope, event = self._now()
        if isinstance(result, Exception):
            # No receipt, and no offset: ending here makes the supervisor start anew and the request come again.
            raise RuntimeError(f"{event.erasure_id}: {result}")
        shards = [msgspec.convert(one, ShardWritten) for one in result["shards"]]
        receipt = ErasureCompleted(
            erasure_id=event.erasure_id, subject_hash=event.subject_hash, tombstones=result["tombstones"],
            shards=result["rewritten"], rows=result["rows"],
            adapters=[msgspec.convert(one, TaughtBy) for one in result["adapters"]], jobs=result["jobs"],
            deleted=result["deleted"], log_places=result["log_places"], seconds=elapsed_s,
        )
        log.info("%s: done, %d shards rewritten in %.0f s", event.erasure_id, receipt.shards, elapsed_s)
        return [self._out(fact, envelope) for fact in (*shards, receipt)]

    def _now(self) -> tuple[Envelope, ErasureRequested]:
        assert self._current is not None, "a result without a request"
        return self._current

    def _out(self, event: msgspec.Struct, cause: Envelope) -> Out:
        subject = getattr(event, "shard_id", "") or getattr(event, "erasure_id", "")
        return kafka.out(event, source=SOURCE, subject=subject, correlation_id=cause.id, causation_id=cause.id)


def receipt(bootstrap: str, erasure_id: str) -> ErasureCompleted | None:
    """The last receipt of an erasure, None where there is none yet."""
    last = _last_receipt(bootstrap, erasure_id)
    return last[1] if last else None


def asked_under(bootstrap: str) -> set[str]:
    """The identity secrets, by key id, under which erasures were asked for so far."""
    said = readable(kafka.read_to_end(bootstrap, TOPIC))
    return {event.key_id for _, event in said if isinstance(event, ErasureRequested)}


def _last_receipt(bootstrap: str, erasure_id: str) -> tuple[Envelope, ErasureCompleted] | None:
    found = None
    # It may be of the transaction before this one.
    for envelope, event in readable(kafka.read_to_end(bootstrap, TOPIC, settled=True)):
        if isinstance(event, ErasureCompleted) and event.erasure_id == erasure_id:
            found = envelope, event
    return found
