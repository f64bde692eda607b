"""What cannot be read in a topic of our own, for whoever follows it without a group: counted and passed over.

Such readers begin at the topic's beginning: a record that ended one would end it at every start. They write no dead
letters; `monitor` reads every topic and writes one, with the bytes as they came, and an alarm is raised by both
(`tuneloop_unreadable_records_total` here, `tuneloop_dead_letters_total` there).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from schemas.codec import ContractError, Envelope
from streams import kafka, metrics
from streams.kafka import Record

log = logging.getLogger(__name__)


def decoded(record: Record) -> tuple[Envelope, Any] | None:
    """Envelope and event of a record that is no tombstone; None where it cannot be read."""
    try:
        return kafka.decode(record)
    except ContractError as error:
        metrics.UNREADABLE.labels(record.topic).inc()
        log.error("%s cannot be read and is passed over: %s", record.origin, error)
        return None


def readable(records: Iterable[Record]) -> Iterator[tuple[Envelope, Any]]:
    """The events among these records, in their order; tombstones are left out."""
    for record in records:
        pair = decoded(record) if record.value is not None else None
        if pair is not None:
            yield pair
