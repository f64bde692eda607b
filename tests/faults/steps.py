"""What the consumer processes run: the deterministic transform of the copy lane, the job of the work lane."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

from msgspec.structs import replace

from schemas.codec import Envelope
from schemas.events import JobEnded, JobProgressed, JobRequested
from streams import kafka
from streams.dead_letters import Budget, dead_letter
from streams.kafka import Out, Record
from streams.long_job import Limits

NUMBERS, COPIED, COPY_DEAD = "faults.numbers", "faults.copied", "faults.dead"


class Refused(ValueError):
    """A record of the numbers topic that is none."""


def transformed(record: Record) -> bytes:
    """What the copy lane makes of one record, alone. Raises `Refused`."""
    try:
        body = json.loads(record.value or b"")
        said = {"key": body["key"], "n": body["n"], "digest": hashlib.sha256(record.value or b"").hexdigest()}
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(str(error)) from error
    return json.dumps({**said, "origin": record.origin}).encode()


class Copy:
    """Each record becomes its transform on the same partition of `COPIED`, a poisoned one a dead letter.

    It keeps no state, so nothing but the loop itself stands between a crash and a double. Every output says of which
    batch it is and how many outputs that has: half a transaction would show.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def assigned(self, partitions: list[tuple[str, int]]) -> None: ...

    def handle(self, batch: list[Record]) -> list[Out]:
        outs = [self._one(record) for record in batch if record.value is not None]
        self._budget.slow_down()
        stamp = ("batch", f"{uuid.uuid4().hex}/{len(outs)}".encode())
        return [replace(out, headers=[*out.headers, stamp]) for out in outs]

    def _one(self, record: Record) -> Out:
        try:
            value = transformed(record)
        except Refused as error:
            self._budget.count(refused=True)
            return replace(dead_letter("prepare", record, str(error)), topic=COPY_DEAD)
        self._budget.count(refused=False)
        return Out(COPIED, record.key or b"", value, partition=record.partition)


class Work:
    """The parent's side of a job: a finished one is known from the committed results."""

    def __init__(self, bootstrap: str) -> None:
        records = kafka.read_to_end(bootstrap, "training.progress")
        said = [kafka.decode(record)[1] for record in records if record.value is not None]
        self._done = {event.job_id for event in said if isinstance(event, JobEnded)}
        self._job_id = ""

    def limits(self) -> Limits:
        return Limits()

    def accept(self, envelope: Envelope, event: JobRequested) -> Any | None:
        if event.job_id in self._done:
            return None
        self._job_id = event.job_id
        return {"job_id": event.job_id, "seconds": event.recipe.get("seconds", 0.0)}

    def progress(self, message: Any, elapsed_s: float) -> list[Out]:
        fields = message or {"phase": "heartbeat"}
        return [kafka.out(JobProgressed(model="m", job_id=self._job_id, **fields), source="work")]

    def finished(self, result: Any, elapsed_s: float) -> list[Out]:
        failed = isinstance(result, Exception)
        if not failed:
            self._done.add(self._job_id)
        reason = str(result) if failed else f"{result['path']} {result['digest']}"
        outcome = "failed" if failed else "succeeded"
        return [kafka.out(JobEnded(model="m", job_id=self._job_id, outcome=outcome, reason=reason), source="work")]
