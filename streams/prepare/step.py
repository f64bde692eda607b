"""The step that the transact loop runs: a batch of raw records becomes shards, their events, dead letters.

Reads `training.raw`; writes Parquet shards (through the artifact store), `training.shards`, `dead.prepare`.
State (`admit.Admission`): what the rows of committed shards say, of every partition; rebuilt on assignment from
`training.shards`, so that an aborted batch leaves no trace in it. A shard's name carries the digest of its bytes: a
process that was fenced cannot overwrite what its heir has committed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from schemas.events import ShardWritten, SubjectShared
from schemas.identity import shard_id
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams import kafka, metrics
from streams.artifacts import ArtifactStore
from streams.dead_letters import Budget, dead_letter
from streams.erased import Nobody, Suppression
from streams.kafka import Out, Record
from streams.prepare.admit import Admission
from streams.prepare.augment import augmented
from streams.prepare.gathered import gather, remembered
from streams.prepare.read import Reading
from streams.prepare.rules import RULES_VERSION
from streams.prepare.shard import counted, put_shard, ref_of, table_of
from streams.prepare.workers import WorkerPool
from streams.unreadable import readable

log = logging.getLogger(__name__)
GROUP, SHARDS = "prepare", "training.shards"
GATHER_EVERY = 500
# A batch that takes longer to read is cut off there: its member must poll, and what is done is worth committing.
READ_LIMIT_S = 15.0
Place = tuple[str, int]


@dataclass(frozen=True)
class Committed:
    """What committed events say of the data: shards, each as it was said last, and subjects that are shared."""

    shards: list[ShardWritten]
    shared: list[SubjectShared]


class PrepareStep:
    """See the module. `committed` tells what stands in `training.shards`; the rules run in `workers`.

    `split_key` says whose rows are held out (`schemas.identity.split_key`).
    """

    def __init__(
        self,
        policies: Mapping[str, ModelPolicy],
        store: ArtifactStore,
        committed: Callable[[], Committed],
        split_key: bytes,
        budget: Budget | None = None,
        erased: Suppression | None = None,
        workers: WorkerPool | None = None,
    ) -> None:
        self._policies, self._store, self._committed = policies, store, committed
        self._budget, self._erased = budget or Budget(), erased or Nobody()
        self._split_key = split_key
        self._admission = Admission(split_key)
        self._workers = workers or WorkerPool(policies, split_key)
        self._said = 0  # shards since they were last gathered

    def assigned(self, partitions: list[Place]) -> None:
        self._admission = Admission(self._split_key)
        committed = self._committed()
        self._admission.share(committed.shared)
        for table in remembered(self._store, [ref_of(shard) for shard in committed.shards]):
            self._admission.remember(table, self._policies)

    def handle(self, batch: list[Record]) -> list[Out]:
        if self._said >= GATHER_EVERY:  # all of them are committed: what was not has its state rebuilt
            gather(self._store, [ref_of(shard) for shard in self._committed().shards])
            self._said = 0
        self._erased.refresh()
        outs: list[Out] = []
        done: list[Record] = []
        by_place: dict[Place, list[Record]] = defaultdict(list)
        for record in batch:
            by_place[record.topic, record.partition].append(record)
        until = time.monotonic() + READ_LIMIT_S
        for place, records in by_place.items():
            if done and time.monotonic() > until:
                break
            readings = self._workers.read(records, until)
            records = records[: sum(reading.records for reading in readings)]
            outs += self._partition(place, records, readings)
            done += records
        batch[:] = done
        self._said += sum(out.topic == SHARDS for out in outs)
        self._budget.slow_down()
        return outs

    def _partition(self, place: Place, records: list[Record], readings: list[Reading]) -> list[Out]:
        """The shards (one per model) and dead letters of one partition's records."""
        outs = self._refused(records, {offset: why for one in readings for offset, why in one.refused.items()})
        table = pa.Table.from_batches([reading.rows for reading in readings], SHARD_SCHEMA)
        drafts: dict[str, _Draft] = defaultdict(_Draft)
        erased = set()
        for number, fact in enumerate(fact for reading in readings for fact in reading.facts):
            draft = drafts[fact["model"]]
            who = (fact["subject_id"], fact["inference_id"]), (fact["author"], "")
            if any(self._erased.covers(*one) for one in who):
                draft.dropped["erased"] += 1
                erased.add(fact["offset"])
            else:
                draft.facts.append({**fact, "number": number})
        for reading in readings:
            for model, reasons in reading.dropped.items():
                drafts[model].dropped.update(reasons)
        # Their words must not stay where they came from either.
        outs += [Out(r.topic, r.key or b"", None, [], r.partition) for r in records if r.offset in erased]
        masked = {offset: kinds for reading in readings for offset, kinds in reading.masked.items()}
        first, last = records[0].offset, records[-1].offset
        for model, draft in drafts.items():
            outs += self._store_shard(model, place, (first, last), draft, table, masked)
        return outs

    def _refused(self, records: list[Record], reasons: dict[int, str]) -> list[Out]:
        """Dead letters."""
        letters = []
        for record in records:
            if record.value is not None:
                self._budget.count(refused=record.offset in reasons)
            if record.offset in reasons:
                letters.append(dead_letter(GROUP, record, reasons[record.offset]))
        return letters

    def _store_shard(
        self, model: str, place: Place, span: tuple[int, int], draft: _Draft, table: pa.Table,
        masked: Mapping[int, Mapping[str, int]],
    ) -> list[Out]:  # fmt: skip
        """The event of the shard, which is stored, and those of subjects that turned out to be shared."""
        topic, partition = place
        policy = self._policies[model]
        admitted = self._admission.admit(draft.facts, policy)
        found: Counter[str] = Counter()
        for fact in admitted.rows:
            if not fact.get("opened"):
                found.update(masked.get(fact["offset"], {}))
        rows = table_of(admitted.rows, table)
        made = augmented(rows.to_pylist(), policy) if policy.augment else []
        # In one piece, so that its bytes are the same however many workers read it.
        rows = pa.concat_tables([rows, pa.Table.from_pylist(made, schema=SHARD_SCHEMA)]).combine_chunks()
        identity = shard_id(topic, partition, *span, model, RULES_VERSION)
        path, digest, size_bytes = put_shard(self._store, model, identity, rows)
        shard = ShardWritten(
            model=model, shard_id=identity, path=path, digest=digest, size_bytes=size_bytes,
            dropped=dict(+(draft.dropped + admitted.dropped)), masked=dict(found),
            contradictions=admitted.contradictions, augmented=len(made), **counted(rows), source_topic=topic,
            source_partition=partition, first_offset=span[0], last_offset=span[1], rules_version=RULES_VERSION,
        )
        facts = [(shard, shard.shard_id), *((event, event.subject_key) for event in admitted.shared)]
        return [kafka.out(fact, source=GROUP, subject=subject) for fact, subject in facts]


class _Draft:
    """A shard in the making: the facts of its rows with their number in the table, and what was dropped on the way."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []
        self.dropped: Counter[str] = Counter()


def read_committed(bootstrap: str) -> Committed:
    """What stands in the topic."""
    shards: dict[str, ShardWritten] = {}
    shared: dict[str, SubjectShared] = {}
    for number, (_, event) in enumerate(readable(kafka.read_to_end(bootstrap, SHARDS, settled=True))):
        if number % 1_000 == 0:
            metrics.heartbeat()  # millions of shards take longer than a loop may be silent
        if isinstance(event, ShardWritten):
            shards[event.shard_id] = event
        else:
            shared[event.subject_key] = event
    return Committed(list(shards.values()), list(shared.values()))


def read_committed_shards(bootstrap: str) -> list[ShardWritten]:
    """The last committed `ShardWritten` of every shard (one that was rewritten is said again)."""
    return read_committed(bootstrap).shards
