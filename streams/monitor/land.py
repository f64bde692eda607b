"""Landing: every event of every topic as a ClickHouse row; the store of the monitor's sink loop.

Idempotent by (topic, partition, offset). What does not decode goes to `dead.monitor`, delivered before the
batch counts as written. A tombstone deletes the row of its key.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

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
# The columns that hold the key of a record with a person's words.
_KEY_COLUMNS = {
    "training.raw": ("record_id", "ce_id"),
    "usage.inferences": ("inference_id",),
    "usage.feedback": ("feedback_id", "ce_id"),
}


class Rows(NamedTuple):
    """What some records come to: those that delete, rows by landing table, dead letters."""

    deletions: list[Record]
    tables: dict[str, pa.Table]
    letters: list[Out]


class ClickHouseStore:
    """See the module."""

    def __init__(
        self, client: Client, producer: Producer, budget: Budget | None = None, erased: Suppression | None = None
    ) -> None:
        """`producer` takes dead letters, and deletions of what came late of somebody who was forgotten."""
        self._client, self._producer = client, producer
        self._budget, self._erased = budget or Budget(), erased or Nobody()

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

    def read(self, records: list[Record]) -> Rows:
        """Rows by landing table; the dead letters among the records are on their way."""
        self._erased.refresh()
        letters: list[Out] = []
        landed = self._admitted(self._decoded(records, letters))
        tables = {table_name(event): arrow_table(event, rows) for event, rows in landed.items() if rows}
        deletions = [record for record in records if record.value is None and record.topic in _KEY_COLUMNS]
        return Rows(deletions, tables, letters)

    def write(self, pieces: list[Rows]) -> None:
        """Dead letters, deletions, rows.

        `resume_at` takes a row for proof that what came before it was dealt with; after a crash in between, the rows'
        offsets would hide what is behind them.
        """
        if self._producer.flush(30):
            raise TimeoutError("dead letters were not acknowledged within 30 s")
        metrics.produced([letter for piece in pieces for letter in piece.letters])
        failpoints.hit("land.dead_letters_flushed")
        deletions = [record for piece in pieces for record in piece.deletions]
        self._forget(deletions)
        for name in dict.fromkeys(name for piece in pieces for name in piece.tables):
            table = pa.concat_tables(piece.tables[name] for piece in pieces if name in piece.tables)
            # In one piece: each small one would be a block of its own on the wire and in ClickHouse.
            self._client.insert_arrow(f"{DATABASE}.{name}", _not_deleted(name, table, deletions).combine_chunks())
            failpoints.hit("land.between_tables")

    def _decoded(self, records: list[Record], letters: list[Out]) -> dict[type[msgspec.Struct], list[Landed]]:
        """What decodes, by event; what does not goes to the dead letters, and into `letters`."""
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
            by_event[type(event)].append(Landed(envelope, event, record))
        return by_event

    def _admitted(self, by_event: dict[type[msgspec.Struct], list[Landed]]) -> dict[type[msgspec.Struct], list[Landed]]:
        """What is landed: of a forgotten subject nothing, and the topic loses it too; of a request, not whose it is."""
        if requests := by_event.get(ErasureRequested):
            nameless = [msgspec.structs.replace(row.event, subject_id="") for row in requests]
            by_event[ErasureRequested] = [row._replace(event=one) for row, one in zip(requests, nameless, strict=True)]
        if not self._erased.anybody():
            return by_event
        return {event: [row for row in rows if self._kept(row)] for event, rows in by_event.items()}

    def _kept(self, row: Landed) -> bool:
        if not self._erased.covers(getattr(row.event, "subject_id", ""), getattr(row.event, "inference_id", "")):
            return True
        if row.at.topic != "training.raw":  # there, `prepare` does it in its transaction
            kafka.produce(self._producer, Out(row.at.topic, row.at.key or b"", None, [], row.at.partition))
        return False

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


def _not_deleted(name: str, table: pa.Table, deletions: list[Record]) -> pa.Table:
    """What `_forget` asks of stored rows, of those that came in the same batch."""
    by_key: dict[str, list[Record]] = defaultdict(list)
    for deletion in deletions:
        if name == tables_of(BY_NAME[deletion.topic])[0]:
            by_key[_key(deletion)].append(deletion)
    if not by_key:
        return table
    topic = next(iter(by_key.values()))[0].topic
    columns = [table[column].to_pylist() for column in _KEY_COLUMNS[topic]]
    places = zip(table["_partition"].to_pylist(), table["_offset"].to_pylist(), *columns, strict=True)

    def gone(partition: int, offset: int, *keys: str) -> bool:
        said_before = (one for key in keys for one in by_key.get(key, ()))
        return any(one.partition != partition or offset <= one.offset for one in said_before)

    return table.filter(pa.array([not gone(*place) for place in places], pa.bool_()))
