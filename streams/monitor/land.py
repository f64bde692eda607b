"""Landing: every event of every topic as a ClickHouse row; the store of the monitor's sink loop.

Idempotent by (topic, partition, offset). What does not decode goes to `dead.monitor`, delivered before the
batch counts as written. A tombstone deletes the row of its key.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer

from schemas.codec import ContractError
from schemas.events import ErasureRequested
from schemas.landing import DATABASE, Landed, arrow_table, table_name, tables_of
from schemas.topics import BY_NAME, TOPICS
from streams import failpoints, kafka, metrics
from streams.clickhouse import rows
from streams.dead_letters import Budget, dead_letter
from streams.erased import Nobody, Suppression
from streams.kafka import Out, Record

GROUP = "monitor"
LANDED_TOPICS = [topic.name for topic in TOPICS]
PART_RECORDS = 5_000
CACHED_RECORDS = 500  # decoded, these still lie in the processor's cache when their columns are made
# The columns that hold the key of a record with a person's words.
_KEY_COLUMNS = {
    "training.raw": ("record_id", "ce_id"),
    "usage.inferences": ("inference_id",),
    "usage.feedback": ("feedback_id", "ce_id"),
}


class ClickHouseStore:
    """See the module."""

    def __init__(
        self, client: Client, producer: Producer, budget: Budget | None = None, erased: Suppression | None = None
    ) -> None:
        """`producer` takes dead letters, and deletions of what came late of somebody who was forgotten."""
        self._client, self._producer = client, producer
        self._budget, self._erased = budget or Budget(), erased or Nobody()
        self._inserter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="insert")

    def resume_at(self, topic: str, partition: int) -> int | None:
        tables = tables_of(BY_NAME[topic])
        if len(tables) > 1:  # a crash between two inserts leaves one table ahead: its last offset proves nothing
            return None
        found = rows(
            self._client,
            f"SELECT max(_offset) AS last, count() AS n FROM {DATABASE}.{tables[0]} "
            "WHERE _topic = {topic:String} AND _partition = {partition:Int32}",
            topic=topic, partition=partition,
        )[0]
        return found["last"] + 1 if found["n"] else None

    def write(self, batch: list[Record]) -> None:
        """Deletions first, then rows in parts and in order: while ClickHouse takes one in, the next is decoded."""
        self._erased.refresh()
        # After a crash in between, the rows' offsets would hide the deletions behind them.
        deletions = [record for record in batch if record.value is None and record.topic in _KEY_COLUMNS]
        self._forget(deletions)
        inserting: Future[None] | None = None
        try:
            for begin in range(0, len(batch), PART_RECORDS):
                tables = self._tables(batch[begin : begin + PART_RECORDS], deletions)
                if inserting is not None:
                    inserting.result()
                inserting = self._inserter.submit(self._insert, tables)
        finally:
            if inserting is not None:
                inserting.result()

    def _tables(self, part: list[Record], deletions: list[Record]) -> dict[str, pa.Table]:
        """The rows of these records by landing table; returns once the dead letters among them are delivered.

        Before the rows: `resume_at` takes a row for proof that what came before it was dealt with.
        """
        made: dict[str, list[pa.Table]] = defaultdict(list)
        letters: list[Out] = []
        for begin in range(0, len(part), CACHED_RECORDS):
            for event, landed in self._decoded(part[begin : begin + CACHED_RECORDS], letters).items():
                kept = _not_deleted(landed, deletions)
                if kept:
                    made[table_name(event)].append(arrow_table(event, kept))
        if self._producer.flush(30):
            raise TimeoutError("dead letters were not acknowledged within 30 s")
        metrics.produced(letters)
        failpoints.hit("land.dead_letters_flushed")
        return {name: pa.concat_tables(tables) for name, tables in made.items()}

    def _decoded(self, records: list[Record], letters: list[Out]) -> dict[type[msgspec.Struct], list[Landed]]:
        """What decodes and is to be landed, by event; what does not goes to the dead letters, and into `letters`."""
        by_event: dict[type[msgspec.Struct], list[Landed]] = defaultdict(list)
        for record in records:
            if record.value is None:
                continue
            try:
                envelope, event = kafka.decode(record)
            except ContractError as error:
                self._budget.count(refused=True)
                letters.append(dead_letter(GROUP, record, str(error)))
                kafka.produce(self._producer, letters[-1])
                continue
            self._budget.count(refused=False)
            event = self._admitted(record, event)
            if event is not None:
                by_event[type(event)].append(Landed(envelope, event, record.topic, record.partition, record.offset))
        return by_event

    def _insert(self, tables: dict[str, pa.Table]) -> None:
        for name, table in tables.items():
            self._client.insert_arrow(f"{DATABASE}.{name}", table)
            failpoints.hit("land.between_tables")

    def _admitted(self, record: Record, event: Any) -> Any | None:
        """What is landed: of a forgotten subject nothing, and the topic loses it too; of a request, not whose it is."""
        if isinstance(event, ErasureRequested):
            return msgspec.structs.replace(event, subject_id="")
        if not self._erased.covers(getattr(event, "subject_id", ""), getattr(event, "inference_id", "")):
            return event
        if record.topic != "training.raw":  # there, `prepare` does it in its transaction
            kafka.produce(self._producer, Out(record.topic, record.key or b"", None, [], record.partition))
        return None

    def _forget(self, deletions: list[Record]) -> None:
        """Delete every row of the keys, except what a key's own partition said after its deletion.

        One statement per partition: each rewrites the parts that it touches.
        """
        by_place: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
        for record in deletions:
            by_place[record.topic, record.partition][_key(record)] = record.offset
        for (topic, partition), keys in by_place.items():
            table = tables_of(BY_NAME[topic])[0]
            for column in _KEY_COLUMNS[topic]:
                self._client.command(
                    f"ALTER TABLE {DATABASE}.{table} DELETE WHERE {column} IN {{keys:Array(String)}} AND NOT "
                    "(_partition = {partition:Int32} AND "
                    f"_offset > transform({column}, {{keys:Array(String)}}, {{offsets:Array(Int64)}}, toInt64(-1)))",
                    parameters={"keys": list(keys), "partition": partition, "offsets": list(keys.values())},
                )


def _key(record: Record) -> str:
    return (record.key or b"").decode(errors="replace")


def _not_deleted(landed: list[Landed], deletions: list[Record]) -> list[Landed]:
    """What `_forget` asks of stored rows, of those that stand in the same batch."""
    if not deletions:
        return landed
    by_key: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for deletion in deletions:
        by_key[deletion.topic, _key(deletion)].append(deletion)

    def gone(row: Landed) -> bool:
        keys = {row.envelope.id if c == "ce_id" else getattr(row.event, c) for c in _KEY_COLUMNS.get(row.topic, ())}
        said_before = (one for key in keys for one in by_key.get((row.topic, key), ()))
        return any(one.partition != row.partition or row.offset <= one.offset for one in said_before)

    return [row for row in landed if not gone(row)]
