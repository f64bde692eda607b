"""Rules with mistakes, for workers to import: a module of its own, because a fresh worker imports all that it names."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from schemas.events import RecordSubmitted
from schemas.policy import ModelPolicy
from streams.kafka import Record
from streams.prepare.read import Reading, read


def planted(records: Iterable[Record], policies: Mapping[str, ModelPolicy], split_key: bytes) -> Reading:
    """`read`, with a rule that has mistakes."""
    return read(_through_a_rule(records), policies, split_key)


def _through_a_rule(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        _rule(msgspec.json.decode(record.value or b"{}", type=RecordSubmitted).completion)
        yield record


def _rule(completion: str) -> None:
    if completion == "loops":
        while True:
            pass
    if completion == "sleeps":
        time.sleep(3_600)
    if completion == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
