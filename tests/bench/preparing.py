"""From raw records to committed Parquet shards: `prepare_vs_rules` and `prepare_vs_datasets`, records/s.

Ours is the real thing: the transact loop with `PrepareStep` on `training.raw` (the shipped linger of 1 s, batches of
5,000), shards in a local artifact store, their events and offsets committed. Its clock runs from the assignment to
the last commit, with the worker processes started before, for starting up counts for nobody.

prepare_vs_rules: against `streams.prepare.rules.prepare` alone over the same decoded records in memory, which is what
Kafka, decoding, deduplication, Parquet and commits are measured by.

prepare_vs_datasets: against a Hugging Face `datasets` pipeline (`tests.bench.datasets_peer`): the raw bodies in memory
already, `map` in batches with num_proc=2 through the same codec and rules, deduplication, one Parquet file. No Kafka,
no commits. Both must make the same rows: content hash, split and texts are compared. `part: "plain rules"` is the
pipeline that one writes with the same libraries: repair, patterns and the search for phone numbers for every text.
`part: "our rules"` has our very code in the pipeline, so that only what is around the rules is compared.

60,000 records of about 660 bytes (`tests.bench.load.submissions`), one partition.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import codec
from schemas.identity import content_hash
from streams import kafka, transact
from streams.artifacts import ArtifactStore
from streams.kafka import Out, Record
from streams.prepare.rules import Prepared, prepare
from streams.prepare.step import Committed, PrepareStep
from streams.prepare.workers import WorkerPool
from tests.bench import load
from tests.bench.measure import Figure, Parts, Timed, clock, ratio
from tests.broker import Mark, fresh, group_from, mark, since
from tests.ids import SPLIT_KEY
from tests.parts import ROOT

RAW = "training.raw"
TEXTS = ("messages", "completion", "chosen", "rejected")


class Counted(PrepareStep):
    """The step itself; sets `stop` with the last record, so that the loop ends with its commit."""

    def __init__(self, store: ArtifactStore, count: int, stop: threading.Event, start: float = 0.0) -> None:
        super().__init__({load.MODEL: load.POLICY}, store, lambda: Committed([], []), SPLIT_KEY,
                         workers=WorkerPool({load.MODEL: load.POLICY}, SPLIT_KEY, 1))  # fmt: skip
        self.left, self.stop, self.begun, self._last = count, stop, start, 0

    def start_workers(self) -> None:
        """Before the clock, as with the peers: their processes, too, have everything imported."""
        self._workers.wait_warm()

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        self.begun = self.begun or time.perf_counter()
        self.left, self._last = self.left + self._last, 0  # a batch whose transaction was aborted is still to be done
        self.stop.clear()
        super().assigned(partitions)

    def handle(self, batch: list[Record]) -> list[Out]:
        outs = super().handle(batch)
        self.left, self._last = self.left - len(batch), len(batch)
        if self.left <= 0:
            self.stop.set()
        return outs


def submit(bootstrap: str, count: int, partitions: int = 1) -> Mark:
    """Publish `count` submissions; where they begin."""
    start, client = mark(bootstrap, RAW), kafka.producer(bootstrap, linger_ms=50)
    for number, event in enumerate(load.submissions(count)):
        kafka.produce(client, kafka.out(event, source="import", partition=number % partitions))
    assert client.flush(60) == 0
    return start


def run_loop(parts: Parts, start: Mark, count: int) -> Timed:
    """The real loop once over; the checksum is over the rows of the shards that it committed."""
    before = mark(parts.bootstrap, "training.shards")
    store, stop = ArtifactStore(str(parts.folder / fresh("shards"))), threading.Event()
    step, group = Counted(store, count, stop), group_from(parts.bootstrap, start)
    step.start_workers()
    transact.run(parts.bootstrap, group, [RAW], step, stop, transactional_id=group, linger_s=1.0)
    seconds = time.perf_counter() - step.begun
    shards = [kafka.decode(record)[1] for record in since(parts.bootstrap, "training.shards", before)]
    tables = [pq.read_table(io.BytesIO(store.get_bytes(shard.path, shard.digest))) for shard in shards]
    return Timed(count, seconds, rows_hash(pa.concat_tables(tables)))


def rows_hash(table: pa.Table) -> str:
    """One hash of a set of rows: content hash, split and texts of each, in no order."""
    rows = table.select(["content_hash", "split", *TEXTS]).to_pylist()
    return content_hash(sorted(json.dumps(row, sort_keys=True) for row in rows))


def rules_alone(events: list[tuple[codec.Envelope, Any]]) -> Timed:
    with clock() as took:
        made = [prepare(event, envelope, load.POLICY, SPLIT_KEY) for envelope, event in events]
    assert any(isinstance(one, Prepared) for one in made)
    return Timed(len(events), took[0])


def pipeline(parts: Parts, rules: str, raw: Path, count: int) -> Timed:
    """The `datasets` pipeline in a process of its own."""
    target = parts.folder / f"{fresh('datasets')}.parquet"
    command = [sys.executable, "-m", "tests.bench.datasets_peer", rules, str(raw), str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    if done.returncode:
        raise RuntimeError(f"the datasets pipeline failed: {done.stderr[-2000:]}")
    return Timed(count, json.loads(done.stdout.splitlines()[-1])["seconds"], rows_hash(pq.read_table(target)))


def prepare_vs_rules(parts: Parts) -> list[Figure]:
    count = parts.size(60_000, 1_500)
    start = submit(parts.bootstrap, count)
    events = [kafka.decode(record) for record in since(parts.bootstrap, RAW, start)]
    return [ratio(
        "prepare_vs_rules", parts, lambda: run_loop(parts, start, count), lambda: rules_alone(events), "records/s"
    )]  # fmt: skip


def prepare_vs_datasets(parts: Parts) -> list[Figure]:
    count = parts.size(60_000, 1_500)
    start = submit(parts.bootstrap, count)
    records = since(parts.bootstrap, RAW, start)
    raw = parts.folder / f"{fresh('raw')}.parquet"
    columns = {"value": [record.value for record in records], "offset": [record.offset for record in records]}
    pq.write_table(pa.table(columns), raw)
    return [
        ratio(
            "prepare_vs_datasets", parts, lambda: run_loop(parts, start, count),
            lambda rules=rules: pipeline(parts, rules, raw, count), "records/s", f"{rules} rules",
        )
        for rules in ("plain", "our")[: parts.size(2, 1)]
    ]  # fmt: skip
