"""From a topic to ClickHouse rows: `clickhouse_vs_slower_end`, events/s.

Ours is the real sink loop with the monitor's `ClickHouseStore` over `usage.inferences` (InferenceServed, about 640
bytes, 8 headers, 4 partitions, 200,000 events); its clock runs from the assignment to the last commit. The peer is the
slower of its two ends alone: reading and decoding the same records without storing anything, and inserting the same
events as Arrow tables made beforehand, at the best of three block sizes, into a table of the same shape. What the loop
does besides (making the tables, dead letters, waiting for one end while the other works) is what the ratio shows, and
that both ends work at once on the same cores: how much CPU they took together goes to stderr.
"""

from __future__ import annotations

import threading
import time

import psutil
import pyarrow as pa

from schemas.events import InferenceServed
from schemas.landing import DATABASE, arrow_table, table_name
from streams import kafka, sink
from streams.clickhouse import connect, rows
from streams.kafka import Record
from streams.monitor.land import ClickHouseStore, Rows
from tests.bench.measure import Figure, Parts, Timed, clock, note, ratio
from tests.bench.reading import fill, read, typed
from tests.broker import Mark, fresh, group_from, since

TOPIC = "usage.inferences"
BLOCKS = (20_000, 50_000, 100_000)


class Counted(ClickHouseStore):
    """The store itself; sets `stop` with the last record, and takes up where its group stands."""

    def __init__(self, parts: Parts, count: int, stop: threading.Event) -> None:
        super().__init__(connect(parts.clickhouse), kafka.producer(parts.bootstrap))
        self.left, self.stop, self.begun = count, stop, 0.0

    def resume_at(self, topic: str, partition: int) -> int | None:
        super().resume_at(topic, partition)  # rows of an earlier repetition: asked for, then not heeded
        self.begun = self.begun or time.perf_counter()
        return None

    def read(self, records: list[Record]) -> Rows:
        self.left -= len(records)
        if self.left <= 0:
            self.stop.set()  # the loop writes and commits what it has in hand before it ends
        return super().read(records)


def land(parts: Parts, start: Mark, count: int) -> Timed:
    """The real loop once over; the checksum is the number of different rows that stand afterwards."""
    stop = threading.Event()
    store = Counted(parts, count, stop)
    sink.run(parts.bootstrap, group_from(parts.bootstrap, start), [TOPIC], store, stop)
    seconds = time.perf_counter() - store.begun
    places = [f"(_partition = {partition} AND _offset >= {offset})" for (_, partition), offset in start.items()]
    sql = f"SELECT count() AS n FROM {DATABASE}.{table_name(InferenceServed)} FINAL WHERE {' OR '.join(places)}"
    return Timed(count, seconds, rows(connect(parts.clickhouse), sql)[0]["n"])


def insert(parts: Parts, tables: list[pa.Table]) -> Timed:
    """Insert these tables one after the other into an empty twin of the landing table."""
    client, twin = connect(parts.clickhouse), f"{DATABASE}.{fresh('twin').replace('-', '_')}"
    client.command(f"CREATE TABLE {twin} AS {DATABASE}.{table_name(InferenceServed)}")
    with clock() as took:
        for table in tables:
            client.insert_arrow(twin, table)
    count = rows(client, f"SELECT count() AS n FROM {twin}")[0]["n"]
    client.command(f"DROP TABLE {twin} SYNC")
    return Timed(count, took[0], count)


def cpu_s() -> tuple[float, float]:
    """CPU seconds that this process has taken, and the broker and ClickHouse, which it started."""

    def of(process: psutil.Process) -> float:
        return process.cpu_times().user + process.cpu_times().system

    here = psutil.Process()
    return of(here), sum(of(child) for child in here.children(recursive=True))


def land_and_tell(parts: Parts, start: Mark, count: int) -> Timed:
    """`land`, and how much CPU that took of what there is."""
    before = cpu_s()
    timed = land(parts, start, count)
    mine, theirs = (after - at for after, at in zip(cpu_s(), before, strict=True))
    cores = psutil.cpu_count() or 1
    note(
        f"  CPU: {mine:.1f} s here, {theirs:.1f} s in ClickHouse and the broker; spread perfectly over {cores} cores "
        f"that is {count / (mine + theirs) * cores:,.0f} events/s"
    )
    return timed


def tables_of(start: Mark, parts: Parts) -> pa.Table:
    landed = []
    for record in since(parts.bootstrap, TOPIC, start):
        envelope, event = kafka.decode(record)
        landed.append((envelope, event, record))
    return arrow_table(InferenceServed, landed)


def blocks(table: pa.Table, size: int) -> list[pa.Table]:
    return [table.slice(offset, size) for offset in range(0, table.num_rows, size)]


def clickhouse_vs_slower_end(parts: Parts) -> list[Figure]:
    count = parts.size(200_000, 2_000)
    start = fill(parts, TOPIC, count)
    table = tables_of(start, parts)
    inserted = {size: insert(parts, blocks(table, size)).per_s for size in BLOCKS}
    best = max(inserted, key=lambda size: inserted[size])
    decoded = read(parts, start, count, typed).per_s
    note(f"  reading and decoding {decoded:,.0f}/s; inserting {inserted[best]:,.0f}/s in blocks of {best:,}")
    slower = "decode" if decoded < inserted[best] else "insert"

    def end() -> Timed:
        if slower == "insert":
            return insert(parts, blocks(table, best))
        timed = read(parts, start, count, typed)
        return Timed(timed.items, timed.seconds, count)

    return [ratio("clickhouse_vs_slower_end", parts, lambda: land_and_tell(parts, start, count), end, "events/s", slower)]
