"""Reads what the lanes left behind, as a committed reader would, and asks the oracle. Writes nothing."""

from __future__ import annotations

import io
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from schemas.events import ErasureCompleted, JobEnded, ShardWritten
from streams import kafka
from streams.artifacts import ArtifactError, ArtifactStore
from streams.clickhouse import connect, rows
from streams.kafka import Record
from tests.faults import oracle
from tests.faults.feed import POISON, TOPICS
from tests.faults.oracle import Expected, Verdict
from tests.faults.steps import COPIED, COPY_DEAD, Refused, transformed
from tests.stores import store_at

if TYPE_CHECKING:
    from tests.faults.machine import Machine

FORGOTTEN_WITHIN_S = 30.0


def _input(machine: Machine, lane: str) -> list[Record]:
    """The lane's accepted records by (partition, offset), checked against what the feed knows it said."""
    records = committed(machine.bootstrap, TOPICS[lane])
    return list(oracle.numbered(records, machine.feed.said, lane, machine.feed.personal))


def committed(bootstrap: str, topic: str) -> Iterator[Record]:
    """What a transactional reader sees once everything that had begun has ended."""
    return kafka.read_to_end(bootstrap, topic, settled=True)


def expected(record: Record) -> Expected:
    """What the copy lane must make of a record."""
    try:
        return Expected(record.key or b"", transformed(record))
    except Refused:
        return Expected(record.origin.encode(), record.value or b"", dead=True)


def _copy(machine: Machine) -> Verdict:
    outputs, letters = (committed(machine.bootstrap, topic) for topic in (COPIED, COPY_DEAD))
    return oracle.copied(_input(machine, "copy"), outputs, letters, expected)


def _split(records: list[Record]) -> tuple[list[Record], dict[bytes, bytes]]:
    """Records that are no poison, and the poison by its origin."""
    poison = {record.origin.encode(): POISON for record in records if record.value == POISON}
    return [record for record in records if record.value != POISON], poison


def _prepare(machine: Machine) -> Verdict:
    inputs, personal = _input(machine, "prepare"), machine.feed.personal
    good, poison = _split([record for record in inputs if record.value is not None])
    places = {said.place for said in personal.values() if said.place is not None}
    accepted: dict[int, list[int]] = defaultdict(list)
    for partition, offset in sorted({(record.partition, record.offset) for record in good} | places):
        accepted[partition].append(offset)
    store = store_at(machine.folder / "artifacts")
    verdict = oracle.prepared(accepted, shards_of(machine.bootstrap), shard_rows(store), places)
    oracle.dead_lettered(verdict, poison, committed(machine.bootstrap, "dead.prepare"))
    early = {key for key, said in personal.items() if said.early}
    verdict.merge(oracle.forgotten(machine.erasures, receipts(machine.bootstrap), early, inputs))
    verdict.merge(_on_disk(store, {said.person for said in personal.values()}))
    return verdict


def _on_disk(store: ArtifactStore, persons: set[str]) -> Verdict:
    """No file of a shard, whether a committed event names it or not, holds a row of these persons."""
    verdict = Verdict()
    for path, _ in store.files("shards"):
        table = pq.read_table(io.BytesIO(store.read_bytes(path)), columns=["subject_id"])
        if theirs := persons.intersection(table["subject_id"].to_pylist()):
            verdict.add("torn", f"{path} holds rows of {sorted(theirs)}")
    return verdict


def receipts(bootstrap: str) -> set[str]:
    """The erasures that are done."""
    said = [kafka.decode(record)[1] for record in committed(bootstrap, "subjects.erasures") if record.value]
    return {event.erasure_id for event in said if isinstance(event, ErasureCompleted)}


def shards_of(bootstrap: str) -> list[ShardWritten]:
    """Every committed shard event."""
    records = committed(bootstrap, "training.shards")
    events = [kafka.decode(record)[1] for record in records if record.value is not None]
    return [event for event in events if isinstance(event, ShardWritten)]


def shard_rows(store: ArtifactStore) -> Callable[[ShardWritten], list[tuple[int, int]] | None]:
    """The origins of a shard's rows, None where its file is missing or damaged."""

    def origins(shard: ShardWritten) -> list[tuple[int, int]] | None:
        try:
            data = store.get_bytes(shard.path, shard.digest)
        except ArtifactError:
            return None
        table = pq.read_table(io.BytesIO(data), columns=["partition", "offset"])
        return list(zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True))

    return origins


def _sink(machine: Machine) -> Verdict:
    records = _input(machine, "sink")
    forgotten = {record.key for record in records if record.value is None}
    good, poison = _split([record for record in records if record.value is not None])
    accepted = {
        (record.partition, record.offset): _said(json.loads(record.value or b""))
        for record in good if record.key not in forgotten
    }  # fmt: skip
    deadline = time.monotonic() + FORGOTTEN_WITHIN_S
    while True:  # a deletion is a mutation: accepted at once, done a little later
        verdict = oracle.landed(accepted, _rows(machine.clickhouse_url))
        if verdict.clean or time.monotonic() > deadline:
            break
        time.sleep(2)
    letters = committed(machine.bootstrap, "dead.monitor")
    oracle.dead_lettered(verdict, poison, letters, once=False)
    return verdict


def _said(body: dict[str, Any]) -> tuple[str, ...]:
    return body["inference_id"], body["metric_name"], json.dumps(body["value"]), body["feedback_id"]


def _rows(url: str) -> list[tuple[tuple[int, int], tuple[str, ...]]]:
    sql = "SELECT * FROM tuneloop.feedback_given FINAL WHERE _topic = 'usage.feedback'"
    found = rows(connect(url), sql)
    return [
        ((row["_partition"], row["_offset"]), tuple(row[name] for name in ("inference_id", "metric_name", "value", "feedback_id")))
        for row in found
    ]


def _work(machine: Machine) -> Verdict:
    jobs, poison = _split(_input(machine, "work"))
    store = store_at(machine.folder / "artifacts")
    said = [kafka.decode(record)[1] for record in committed(machine.bootstrap, "training.progress")]
    ended = [(event.job_id, event.reason) for event in said if isinstance(event, JobEnded)]
    verdict = oracle.worked([(job.key or b"").decode() for job in jobs], ended, whole_in(store))
    oracle.dead_lettered(verdict, poison, committed(machine.bootstrap, "dead.work"))
    return verdict


def whole_in(store: ArtifactStore) -> Callable[[str, str], bool]:
    """Is the artifact that a job's end names there, with the bytes that its digest says?"""

    def whole(job_id: str, said: str) -> bool:
        path, _, digest = said.partition(" ")
        try:
            return bool(store.get_bytes(path, digest))
        except (ArtifactError, OSError):
            return False

    return whole


LANES: dict[str, Callable[[Machine], Verdict]] = {
    "copy": _copy, "prepare": _prepare, "sink": _sink, "work": _work
}  # fmt: skip
