"""What ClickHouse knows about a model's data, jobs and versions, as the conductor needs it.

The conductor asks ClickHouse instead of reading the transactional topics itself: the monitor lands committed
records only, while Faust would also see those of aborted transactions.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import msgspec
from clickhouse_connect.driver.client import Client

from schemas.codec import now_ms
from schemas.events import BaseRegistered, Check, ShardRef, ShardSet, Version
from schemas.policy import ModelPolicy
from streams.artifacts import ArtifactStore, get_shard_set
from streams.clickhouse import rows
from streams.conditions import DAY_MS, HeldRows, Situation
from streams.planning import Disagreement, disagreement


@dataclass
class KnownShard:
    """A committed shard: its reference, its SFT training examples, its test rows and when it was written (Unix ms)."""

    ref: ShardRef
    model: str
    examples: int
    ts_ms: int
    tests: HeldRows = field(default_factory=lambda: HeldRows(0, 0))
    undated: int = 0  # of the test rows


@dataclass(frozen=True)
class KnownJob:
    """A job that was asked for; `because` is the id of what asked for it."""

    job_id: str
    because: str
    correlation_id: str
    reason: str
    drift_id: str
    from_base: bool
    void_before: int
    ts_ms: int
    changed_at: int = 0
    accept: str = ""


@dataclass
class Facts:
    """Everything the conductor knows of one model; `answered` holds the wishes that got their job, `void` the jobs that
    trained on what was erased meanwhile."""

    situation: Situation
    champion: Version | None
    base: BaseRegistered | None
    new: list[KnownShard] = field(default_factory=list)
    old: list[KnownShard] = field(default_factory=list)
    answered: frozenset[str] = frozenset()
    void: tuple[KnownJob, ...] = ()

    def since(self, changed_ms: int) -> Facts:
        """The same for a drift that began then: new is what was prepared later, whatever the champion has seen."""
        late = [shard for shard in (*self.new, *self.old) if shard.ts_ms > changed_ms]
        early = [shard for shard in (*self.new, *self.old) if shard.ts_ms <= changed_ms]
        counted = max(changed_ms, self.situation.last_job_ms)
        examples = sum(shard.examples for shard in self.new if shard.ts_ms > counted)
        situation = replace(self.situation, new_examples=examples, recent=held(late, dated=True), older=held(early))
        return replace(self, situation=situation)


def held(shards: Iterable[KnownShard], dated: bool = False) -> HeldRows:
    """The test rows of these shards; `dated`: only those that say when they were said."""
    total = HeldRows(0, 0)
    for shard in shards:
        total += HeldRows(shard.tests.rows - shard.undated, shard.tests.units) if dated else shard.tests
    return total


def wait_for_tables(client: Client, stop: threading.Event) -> None:
    """Return once the monitor has migrated the database."""
    while not stop.is_set():
        found = rows(
            client,
            "SELECT count() AS n FROM system.tables WHERE database = 'tuneloop' AND name = 'lineage'",
        )
        if found[0]["n"]:
            return
        stop.wait(0.5)


class Knowledge:
    """Reads facts; keeps the shards it has seen, so that each look asks for new rows only."""

    def __init__(self, client: Client, store: ArtifactStore) -> None:
        self._client, self._store = client, store
        self._shards: dict[str, KnownShard] = {}
        self._next_offset = 0
        self._lineage: dict[str, frozenset[str]] = {}

    def facts(self, model: str, policy: ModelPolicy, requested: dict[str, int]) -> Facts:
        """`requested` maps job ids that were asked for, but may not have landed yet, to their time (ms)."""
        self._read_shards()
        champion = self._champion(model)
        base = self._base(policy.base)
        used = self._used(champion)
        mine = [shard for shard in self._shards.values() if shard.model == model]
        known, gone = self._jobs(model), self._void(model)
        jobs = {job.job_id: job.ts_ms for job in known if job.job_id not in gone}
        requested = {job: at_ms for job, at_ms in requested.items() if job not in gone}
        last_job_ms = max([*jobs.values(), *(t for j, t in requested.items() if j not in jobs)], default=0)
        new = [shard for shard in mine if shard.ref.shard_id not in used]
        old = [shard for shard in mine if shard.ref.shard_id in used]

        situation = Situation(
            champion=champion.version if champion else 0,
            new_examples=sum(shard.examples for shard in new if shard.ts_ms > last_job_ms),
            job_in_flight=self._in_flight(model, requested, jobs),
            last_job_ms=last_job_ms,
            jobs_last_day=sum(t > now_ms() - DAY_MS for t in {**requested, **jobs}.values()),
            base_known=base is not None,
            # To a version what has no time is old, whenever it came; the first is judged by all there is.
            recent=held(new, dated=champion is not None),
            older=held(old),
            last=self._disagreement(model),
        )
        answered = frozenset(job.because for job in known if job.job_id in jobs)
        void = tuple(job for job in known if job.job_id in gone)
        return Facts(situation, champion, base, new, old, answered, void)

    def _read_shards(self) -> None:
        found = rows(
            self._client,
            "SELECT model, shard_id, path, digest, rows, rows_by_split, units_by_split, undated_tests, "
            "toUnixTimestamp64Milli(ts) AS ts_ms, _offset "
            "FROM tuneloop.shard_written FINAL WHERE _offset >= {start:Int64} ORDER BY _offset",
            start=self._next_offset,
        )
        for row in found:
            self._next_offset = row["_offset"] + 1
            ref = ShardRef(shard_id=row["shard_id"], path=row["path"], digest=row["digest"], rows=row["rows"])
            by_split = json.loads(row["rows_by_split"])
            tests = HeldRows(by_split.get("test", 0), json.loads(row["units_by_split"]).get("test", 0))
            # Said again because somebody in it was forgotten, it is no newer for that.
            before = self._shards.get(ref.shard_id)
            written_ms = before.ts_ms if before else row["ts_ms"]
            self._shards[ref.shard_id] = KnownShard(
                ref, row["model"], by_split.get("train", 0), written_ms, tests, row["undated_tests"]
            )

    def _champion(self, model: str) -> Version | None:
        found = rows(
            self._client,
            "SELECT champion, versions FROM tuneloop.model_state_changed FINAL WHERE model = {model:String} "
            "ORDER BY epoch DESC, _offset DESC LIMIT 1",
            model=model,
        )
        if not found:
            return None
        versions = msgspec.json.decode(found[0]["versions"], type=list[Version])
        return next((entry for entry in versions if entry.version == found[0]["champion"]), None)

    def _base(self, name: str) -> BaseRegistered | None:
        found = rows(
            self._client,
            "SELECT model, path, digest, architecture, parameters, context_tokens FROM tuneloop.base_registered FINAL "
            "WHERE model = {name:String} ORDER BY _offset DESC LIMIT 1",
            name=name,
        )
        return BaseRegistered(**found[0]) if found else None

    def _used(self, champion: Version | None) -> frozenset[str]:
        """Ids of the shards that the champion and its ancestors learned from or were judged on."""
        if champion is None:
            return frozenset()
        if champion.digest not in self._lineage:
            sets: list[ShardSet | None] = [champion.new_data, champion.replay_data]
            refs = [ref.shard_id for shards in sets for ref in get_shard_set(self._store, shards)]
            self._lineage = {champion.digest: frozenset(refs)}
        return self._lineage[champion.digest]

    def _jobs(self, model: str) -> list[KnownJob]:
        found = rows(
            self._client,
            "SELECT job_id, causation_id AS because, correlation_id, reason, drift_id, changed_at, accept, "
            "reason IN ('person', 'erasure') AND parent_version = 0 AS from_base, void_before, "
            "toUnixTimestamp64Milli(ts) AS ts_ms "
            "FROM tuneloop.job_requested FINAL WHERE model = {model:String} ORDER BY ts_ms",
            model=model,
        )
        return [KnownJob(**row | {"from_base": bool(row["from_base"])}) for row in found]

    def _disagreement(self, model: str) -> Disagreement:
        found = rows(
            self._client,
            "SELECT checks FROM tuneloop.verdict_reached FINAL WHERE model = {model:String} "
            "ORDER BY ts DESC LIMIT 20",
            model=model,
        )
        return disagreement(msgspec.json.decode(row["checks"], type=list[Check]) for row in reversed(found))

    def _void(self, model: str) -> frozenset[str]:
        """Jobs that are to be asked for again: the trainer found it, or the gate."""
        found = rows(
            self._client,
            "SELECT job_id FROM tuneloop.job_ended FINAL WHERE model = {model:String} AND outcome = 'void' "
            "UNION DISTINCT SELECT job_id FROM tuneloop.decision_made FINAL "
            "WHERE model = {model:String} AND decision = 'void'",
            model=model,
        )
        return frozenset(row["job_id"] for row in found)

    def _in_flight(self, model: str, requested: dict[str, int], jobs: dict[str, int]) -> str:
        """A job that was asked for and has neither failed nor been decided on."""
        done = rows(
            self._client,
            "SELECT job_id FROM tuneloop.decision_made FINAL WHERE model = {model:String} AND job_id != '' "
            "UNION DISTINCT SELECT job_id FROM tuneloop.job_ended FINAL "
            "WHERE model = {model:String} AND outcome != 'succeeded'",
            model=model,
        )
        left = (requested.keys() | jobs.keys()) - {row["job_id"] for row in done}
        return max(left, key=lambda job: {**requested, **jobs}[job], default="")
