"""What ClickHouse knows about a model's data, jobs and versions, as the conductor needs it.

The conductor asks ClickHouse instead of reading every topic itself: the monitor lands committed records only. Each look
first asks whether anything is new (one row of positions), and computes again only what that touches.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import msgspec
from clickhouse_connect.driver.client import Client

from schemas.events import BaseRegistered, Check, ShardRef, ShardSet, Version
from schemas.policy import ModelPolicy
from streams.artifacts import ArtifactStore, get_shard_set
from streams.clickhouse import rows
from streams.monitor.intervals import wilson
from streams.planning import FIRST, LEAST_UNITS, Disagreement, disagreement

# How many of the last answers tell whether a drift is over.
LAST_ANSWERS = 500
# A job of which nothing was heard for so long after its limits is given up: whoever had it, or its end, is lost.
LOST_AFTER_MS = 3_600_000
_TABLES = ("shard_written", "model_state_changed", "base_registered", "verdict_reached")


@dataclass(frozen=True)
class HeldRows:
    """Test rows, and whose they are: at most so many units, for a unit counts once for each shard that it is in."""

    rows: int
    units: int

    def __add__(self, other: HeldRows) -> HeldRows:
        return HeldRows(self.rows + other.rows, self.units + other.units)


NO_ROWS = HeldRows(0, 0)


@dataclass(frozen=True)
class KnownShard:
    """A committed shard: its reference, its SFT training examples, its test rows and when it was written (Unix ms)."""

    ref: ShardRef
    model: str
    examples: int
    ts_ms: int
    tests: HeldRows = NO_ROWS
    undated: int = 0  # of the test rows


@dataclass(frozen=True)
class End:
    """What became of a job: promoted | refused | failed | void | superseded | deferred | cancelled ("" = under way).

    `trained`: the trainer is done with it, for which it took so many `seconds`.
    """

    outcome: str = ""
    reason: str = ""
    at_ms: int = 0
    trained: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Recovery:
    """How the serving version does since a drift was found: the share right of people, with its lower 95% bound."""

    answers: int
    people: int
    quality: float
    low: float


@dataclass(frozen=True)
class Facts:
    """Everything the conductor knows of one model but its triggers and jobs.

    `previous` served before the champion (0 = the base), which came by `change` (`ModelStateChanged`).
    `epoch` is the registry's, `since_ms` when what serves began to (Unix ms; 0 = never). `numbered` names the jobs that
    became versions, `rolled_back` those whose versions were. `new` are shards that the champion has not learned from,
    `old` the others, `learned_from` how many rows it was trained on.
    """

    model: str
    champion: Version | None = None
    previous: int = 0
    change: str = ""
    epoch: int = 0
    since_ms: int = 0
    numbered: frozenset[str] = frozenset()
    rolled_back: frozenset[str] = frozenset()
    base: BaseRegistered | None = None
    new: Sequence[KnownShard] = ()
    old: Sequence[KnownShard] = ()
    learned_from: int = 0
    last: Disagreement = FIRST
    _times: list[int] = field(default_factory=list)  # of `new`, sorted; its examples up to each, summed
    _sums: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        ordered = sorted(self.new, key=lambda shard: shard.ts_ms)
        self._times[:] = [shard.ts_ms for shard in ordered]
        self._sums[:] = [0, *accumulate(shard.examples for shard in ordered)]

    def new_examples(self, since_ms: int = 0) -> int:
        """Training examples that the champion has not learned from, of shards written after then."""
        return self._sums[-1] - self._sums[bisect_right(self._times, since_ms)] if since_ms else self._sums[-1]

    def since(self, moment_ms: int) -> list[KnownShard]:
        """The shards that were written after then, of those that the champion has not learned from."""
        return [shard for shard in self.new if shard.ts_ms > moment_ms]

    def tests(self, changed_ms: int = 0) -> tuple[HeldRows, HeldRows]:
        """The test rows said since a change (without one: that the champion has not seen), and those of before.

        To a version what has no time is old, whenever it came; the first is judged by all there is.
        """
        if not changed_ms:
            return held(self.new, dated=self.champion is not None), held(self.old)
        everything = (*self.new, *self.old)
        late = [shard for shard in everything if shard.ts_ms > changed_ms]
        return held(late, dated=True), held(shard for shard in everything if shard.ts_ms <= changed_ms)


def held(shards: Iterable[KnownShard], dated: bool = False) -> HeldRows:
    """The test rows of these shards; `dated`: only those that say when they were said."""
    total = NO_ROWS
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
    """Reads facts; keeps what it has read until there is news, so that a look at an idle system is one query."""

    def __init__(self, client: Client, store: ArtifactStore) -> None:
        self._client, self._store = client, store
        self._shards: dict[str, dict[str, KnownShard]] = {}  # by model and id
        self._next_offset = 0
        self._lineage: dict[str, tuple[str, frozenset[str]]] = {}  # by model: the champion's digest, and its shards
        self._marks: dict[str, Any] = {}
        self._facts: dict[tuple[str, str], Facts] = {}

    def look(self) -> None:
        """Note whether anything is new since the last look: `facts` are of the last look."""
        asked = "SELECT '{0}' AS name, max(_offset) AS last, count() AS n FROM tuneloop.{0}"
        parts = [asked.format(table) for table in _TABLES]
        marks = {row["name"]: (row["last"], row["n"]) for row in rows(self._client, " UNION ALL ".join(parts))}
        if marks == self._marks:
            return
        if marks["shard_written"] != self._marks.get("shard_written"):
            self._read_shards()
        self._marks = marks
        self._facts.clear()

    def facts(self, model: str, policy: ModelPolicy) -> Facts:
        key = (model, policy.base)
        if key not in self._facts:
            self._facts[key] = self._read(model, policy)
        return self._facts[key]

    def _read(self, model: str, policy: ModelPolicy) -> Facts:
        state = self._state(model)
        versions = msgspec.json.decode(state["versions"], type=list[Version]) if state else []
        champion = next((one for one in versions if one.version == state["champion"]), None) if state else None
        used = self._used(model, champion)
        mine = self._shards.get(model, {}).values()
        old = [shard for shard in mine if shard.ref.shard_id in used]
        return Facts(
            model=model, champion=champion, previous=state["previous"] if state else 0,
            change=state["change"] if state else "", epoch=state["epoch"] if state else 0,
            since_ms=state["since_ms"] if state else 0,
            numbered=frozenset(one.job_id for one in versions),
            rolled_back=frozenset(one.job_id for one in versions if one.status == "rolled-back"),
            base=self._base(policy.base), new=[shard for shard in mine if shard.ref.shard_id not in used], old=old,
            learned_from=champion.seen.rows if champion and champion.seen else sum(shard.examples for shard in old),
            last=self._disagreement(model),
        )  # fmt: skip

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
            if not row["rows"]:  # of what was dropped nothing is left to open
                self._shards.get(row["model"], {}).pop(row["shard_id"], None)
                continue
            ref = ShardRef(shard_id=row["shard_id"], path=row["path"], digest=row["digest"], rows=row["rows"])
            by_split = json.loads(row["rows_by_split"])
            tests = HeldRows(by_split.get("test", 0), json.loads(row["units_by_split"]).get("test", 0))
            shards = self._shards.setdefault(row["model"], {})
            # Said again because somebody in it was forgotten, it is no newer for that.
            before = shards.get(ref.shard_id)
            shards[ref.shard_id] = KnownShard(
                ref, row["model"], by_split.get("train", 0), before.ts_ms if before else row["ts_ms"], tests,
                row["undated_tests"],
            )  # fmt: skip

    def _state(self, model: str) -> dict[str, Any] | None:
        """The registry's latest word, and when its epoch began: notes of quality repeat the state."""
        found = rows(
            self._client,
            "SELECT champion, previous, change, epoch, versions FROM tuneloop.model_state_changed FINAL "
            "WHERE model = {model:String} "
            "ORDER BY epoch DESC, _offset DESC LIMIT 1",
            model=model,
        )
        if not found:
            return None
        began = rows(
            self._client,
            "SELECT toUnixTimestamp64Milli(min(ts)) AS since_ms FROM tuneloop.model_state_changed "
            "WHERE model = {model:String} AND epoch = {epoch:Int64}",
            model=model, epoch=found[0]["epoch"],
        )
        return {**found[0], **began[0]}

    def _base(self, name: str) -> BaseRegistered | None:
        found = rows(
            self._client,
            "SELECT model, path, digest, architecture, parameters, context_tokens FROM tuneloop.base_registered FINAL "
            "WHERE model = {name:String} ORDER BY _offset DESC LIMIT 1",
            name=name,
        )
        return BaseRegistered(**found[0]) if found else None

    def _used(self, model: str, champion: Version | None) -> frozenset[str]:
        """Ids of the shards that the champion and its ancestors learned from or were judged on."""
        if champion is None:
            return frozenset()
        digest, used = self._lineage.get(model, ("", frozenset[str]()))
        if digest != champion.digest:
            sets: list[ShardSet | None] = [champion.new_data, champion.replay_data]
            used = frozenset(ref.shard_id for shards in sets for ref in get_shard_set(self._store, shards))
            self._lineage[model] = champion.digest, used
        return used

    def _disagreement(self, model: str) -> Disagreement:
        found = rows(
            self._client,
            "SELECT checks FROM tuneloop.verdict_reached FINAL WHERE model = {model:String} "
            "ORDER BY ts DESC LIMIT 20",
            model=model,
        )
        return disagreement(msgspec.json.decode(row["checks"], type=list[Check]) for row in reversed(found))

    def ends(self, job_ids: Sequence[str]) -> dict[str, End]:
        """What became of these jobs; those of which nothing was heard are left out."""
        if not job_ids:
            return {}
        ended = rows(
            self._client,
            "SELECT job_id, outcome, reason, seconds, toUnixTimestamp64Milli(ts) AS at_ms "
            "FROM tuneloop.job_ended FINAL WHERE job_id IN {jobs:Array(String)} ORDER BY ts",
            jobs=list(job_ids),
        )
        decided = rows(
            self._client,
            "SELECT job_id, decision AS outcome, reason, toUnixTimestamp64Milli(ts) AS at_ms "
            "FROM tuneloop.decision_made FINAL WHERE job_id IN {jobs:Array(String)} ORDER BY ts",
            jobs=list(job_ids),
        )
        found: dict[str, End] = {}
        for row in ended:
            outcome = "" if row["outcome"] == "succeeded" else row["outcome"]
            found[row["job_id"]] = End(outcome, row["reason"], row["at_ms"], True, row["seconds"])
        for row in decided:
            before = found.get(row["job_id"], End(trained=True))
            found[row["job_id"]] = replace(before, outcome=row["outcome"], reason=row["reason"], at_ms=row["at_ms"])
        return found

    def heard_ms(self, job_id: str) -> int:
        """When anything was last heard of a job that is under way (Unix ms); 0 = never."""
        found = rows(
            self._client,
            "SELECT toUnixTimestamp64Milli(max(ts)) AS ms FROM tuneloop.job_progressed WHERE job_id = {job:String}",
            job=job_id,
        )
        return max(0, int(found[0]["ms"]))

    def live_quality(self, model: str, version: int) -> float | None:
        """How a version does, by the last that was measured of it; None where nothing was."""
        found = rows(
            self._client,
            "SELECT recent_quality FROM tuneloop.performance_measured WHERE model = {model:String} "
            "AND version = {version:Int64} ORDER BY ts DESC LIMIT 1",
            model=model, version=version,
        )
        return found[0]["recent_quality"] if found else None

    def recovery(self, model: str, version: int, since_ms: int) -> Recovery | None:
        """How a version does on its last scored answers given after then, each person counted alike; where these are
        few, each conversation."""
        found = self._recovery(model, version, since_ms, "subject_id")
        if found is not None and found.people < LEAST_UNITS:
            return self._recovery(model, version, since_ms, "conversation_id")
        return found

    def _recovery(self, model: str, version: int, since_ms: int, person: str) -> Recovery | None:
        found = rows(
            self._client,
            "SELECT sum(n) AS answers, count() AS people, avg(share) AS quality FROM ("
            f"  SELECT {person}, count() AS n, avg(correct) AS share FROM ("
            f"    SELECT {person}, correct FROM tuneloop.scored_answers WHERE model = {{model:String}} "
            "      AND version = {version:Int64} AND by_alias "
            "      AND answered_at > fromUnixTimestamp64Milli({since:Int64}, 'UTC') "
            "    ORDER BY scored_at DESC, _partition DESC, _offset DESC LIMIT {last:Int64}) "
            f"  GROUP BY {person})",
            model=model, version=version, since=since_ms, last=LAST_ANSWERS,
        )
        if not found or not found[0]["people"]:
            return None
        people, quality = int(found[0]["people"]), float(found[0]["quality"])
        return Recovery(int(found[0]["answers"]), people, quality, wilson(min(people, quality * people), people)[0])
