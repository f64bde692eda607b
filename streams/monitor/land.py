"""Landing: every event of every topic as a ClickHouse row; the store of the monitor's sink loop.

Idempotent by (topic, partition, offset). What does not decode goes to `dead.monitor`, delivered before the
batch counts as written. A tombstone deletes the row of its key.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.codec import ContractError
from schemas.events import ErasureRequested, FeedbackGiven, InferenceServed
from schemas.identity import InferenceIds, MadeUpIdError
from schemas.landing import DATABASE, Landed, arrow_table, table_name, tables_of
from schemas.personal import PERSON_FIELDS
from schemas.topics import BY_NAME, TOPICS
from streams import erased, failpoints, kafka, metrics
from streams.clickhouse import KEYS_PER_STATEMENT, UNLOGGED, in_chunks, rows
from streams.dead_letters import Budget, dead_letter
from streams.erased import Nobody, Suppression, nameless
from streams.kafka import Out, Record

GROUP = "monitor"
POSITIONS, REBUILDS = f"{DATABASE}.landing_positions", f"{DATABASE}.landing_rebuilds"
LANDED_TOPICS = [topic.name for topic in TOPICS]
# Topics with people's words, of one event each, which a null value under a key deletes from.
FORGETTING = {topic.name: tables_of(topic)[0] for topic in TOPICS if topic.personal and topic.name != erased.TOPIC}


class Rows(NamedTuple):
    """What some records come to: those that delete, rows by landing table, dead letters."""

    deletions: list[Record]
    tables: dict[str, pa.Table]
    letters: list[Out]


class ClickHouseStore:
    """See the module."""

    def __init__(
        self, client: Client, producer: Producer, budget: Budget | None = None, erased: Suppression | None = None,
        ids: InferenceIds | None = None, group: str = "",
    ) -> None:  # fmt: skip
        """`group`: keep with the rows how far this consumer group came, and begin there, whatever Kafka says: what was
        emptied is filled again from the topics' beginnings, what was restored from where it was. `producer` takes dead
        letters, and deletions of what came late of somebody who was forgotten. Answers, and opinions on them, under an
        id that `ids` did not issue are refused; None takes any id."""
        self._ids, self._group = ids, group
        self._since: datetime | None = None
        self._client, self._producer = client, producer
        self._budget, self._erased = budget or Budget(), erased or Nobody()
        self._refused: list[KafkaError] = []

    def _say(self, record: Out) -> None:
        def told(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self._refused.append(error)

        kafka.produce(self._producer, record, told)

    def begin_at(self, topic: str, partition: int, committed: int) -> int:
        if not self._group:
            return max(committed, self.resume_at(topic, partition) or 0, 0)
        self._began()
        found = rows(
            self._client,
            f"SELECT max(next_offset) AS next FROM {POSITIONS} WHERE consumer = {{group:String}} "
            "AND topic = {topic:String} AND partition = {partition:Int32} "
            f"AND since >= (SELECT max(at) FROM {REBUILDS})",
            group=self._group, topic=topic, partition=partition,
        )
        return int(found[0]["next"])

    def note(self, places: list[TopicPartition]) -> None:
        if self._group and places:
            since = self._began()
            data = [[self._group, place.topic, place.partition, place.offset, since] for place in places]
            self._client.insert(POSITIONS, data, ["consumer", "topic", "partition", "next_offset", "since"])

    def _began(self) -> datetime:
        """When this store was first asked where to begin, by ClickHouse's clock."""
        self._since = self._since or rows(self._client, "SELECT now64(3, 'UTC') AS now")[0]["now"]
        return self._since

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
        self._budget.slow_down()
        letters: list[Out] = []
        landed = self._admitted(self._decoded(records, letters))
        tables = {table_name(event): arrow_table(event, rows) for event, rows in landed.items() if rows}
        deletions = [record for record in records if record.value is None and record.topic in FORGETTING]
        return Rows(deletions, tables, letters)

    def write(self, pieces: list[Rows]) -> None:
        """Dead letters, deletions, rows.

        `resume_at` takes a row for proof that what came before it was dealt with; after a crash in between, the rows'
        offsets would hide what is behind them.
        """
        if self._producer.flush(30):
            raise TimeoutError("dead letters were not acknowledged within 30 s")
        if self._refused:
            raise KafkaException(self._refused[0])
        metrics.produced([letter for piece in pieces for letter in piece.letters])
        failpoints.hit("land.dead_letters_flushed")
        deletions = [record for piece in pieces for record in piece.deletions]
        self._forget(deletions)
        failpoints.hit("land.deleted")
        for name in dict.fromkeys(name for piece in pieces for name in piece.tables):
            table = pa.concat_tables(piece.tables[name] for piece in pieces if name in piece.tables)
            kept = _not_deleted(name, table, deletions)
            if kept.num_rows:
                # In one piece: each small one would be a block of its own on the wire and in ClickHouse.
                self._client.insert_arrow(f"{DATABASE}.{name}", kept.combine_chunks())
            failpoints.hit("land.between_tables")

    def _decoded(self, records: list[Record], letters: list[Out]) -> dict[type[msgspec.Struct], list[Landed]]:
        """What decodes, by event; what does not goes to the dead letters, and into `letters`."""
        by_event: dict[type[msgspec.Struct], list[Landed]] = defaultdict(list)
        for record in records:
            if record.value is None:
                continue
            try:
                envelope, event = kafka.decode(record)
                if self._ids is not None and isinstance(event, FeedbackGiven | InferenceServed):
                    self._ids.check(event)
            except (ContractError, MadeUpIdError) as error:
                self._budget.count(refused=True)
                letters.append(dead_letter(GROUP, record, str(error)))
                self._say(letters[-1])
                continue
            self._budget.count(refused=False)
            by_event[type(event)].append((envelope, event, record))
        return by_event

    def _admitted(self, by_event: dict[type[msgspec.Struct], list[Landed]]) -> dict[type[msgspec.Struct], list[Landed]]:
        """What is landed: of a forgotten subject nothing, and the topic loses it too; of a request, no name."""
        if requests := by_event.get(ErasureRequested):
            by_event[ErasureRequested] = [(said, nameless(event), at) for said, event, at in requests]
        if not self._erased.anybody():
            return by_event
        # Answers first: whose feedback is, the answer tells.
        events = sorted(by_event, key=lambda event: event is not InferenceServed)
        return {event: [row for row in by_event[event] if self._kept(row)] for event in events}

    def _kept(self, row: Landed) -> bool:
        _, event, at = row
        if not BY_NAME[at.topic].personal:
            return True
        if not any(self._erased.covers(who, getattr(event, "inference_id", "")) for who in _persons(event)):
            return True
        if isinstance(event, InferenceServed):
            self._erased.answered(event.subject_id, event.inference_id)
        if at.topic != "training.raw":  # there, `prepare` does it in its transaction
            self._say(Out(at.topic, at.key or b"", None, [], at.partition))
        return False

    def _forget(self, deletions: list[Record]) -> None:
        """Delete every row of the keys, except what a key's own partition said after its deletion.

        As few statements as may be: each rewrites the parts that it touches.
        """
        last = {(record.topic, _key(record), record.partition): record.offset for record in deletions}
        layers: dict[str, list[dict[str, tuple[int, int]]]] = defaultdict(list)  # of each a key has one partition
        for (topic, key, partition), offset in last.items():
            layer = next((one for one in layers[topic] if key not in one), None)
            if layer is None:
                layers[topic].append(layer := {})
            layer[key] = partition, offset
        for topic, said in layers.items():
            for layer in said:
                for some in in_chunks(list(layer.items()), KEYS_PER_STATEMENT):
                    self._delete(topic, dict(some))

    def _delete(self, topic: str, places: dict[str, tuple[int, int]]) -> None:
        partitions, offsets = zip(*places.values(), strict=True)
        self._client.command(
            f"ALTER TABLE {DATABASE}.{FORGETTING[topic]} DELETE WHERE _key IN {{keys:Array(String)}} AND NOT "
            "(_partition = transform(_key, {keys:Array(String)}, {partitions:Array(Int32)}, toInt32(-1)) AND "
            "_offset > transform(_key, {keys:Array(String)}, {offsets:Array(Int64)}, toInt64(-1)))",
            parameters={"keys": list(places), "partitions": list(partitions), "offsets": list(offsets)},
            settings=UNLOGGED,
        )


def _persons(event: Any) -> set[str]:
    """Whom an event names; "" where nobody."""
    return {getattr(event, name, "") for name in PERSON_FIELDS}


def _key(record: Record) -> str:
    return (record.key or b"").decode(errors="replace")


def _not_deleted(name: str, table: pa.Table, deletions: list[Record]) -> pa.Table:
    """What `_forget` asks of stored rows, of those that came in the same batch."""
    by_key: dict[bytes, list[Record]] = defaultdict(list)
    for deletion in deletions:
        if name == FORGETTING[deletion.topic]:
            by_key[deletion.key or b""].append(deletion)
    if not by_key:
        return table
    places = zip(*(table[column].to_pylist() for column in ("_partition", "_offset", "_key")), strict=True)

    def gone(partition: int, offset: int, key: bytes) -> bool:
        return any(one.partition != partition or offset <= one.offset for one in by_key.get(key, ()))

    return table.filter(pa.array([not gone(*place) for place in places], pa.bool_()))
