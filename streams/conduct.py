"""`conduct`: decides when a job runs. One job per drift, never before it has earned one.

A Faust application. Reads `monitor.drift` and `models.commands` (both written without transactions, so that
reading uncommitted records is harmless); asks ClickHouse for the rest (`streams.situation`). Writes
`training.jobs`, and `JobDeferred` to `training.progress` while a drift waits.

State: the latest wish per model, in a Faust table that only the agents write (a timer may not). Whether a wish
got its job is read from the jobs themselves, so a crash in between cannot ask twice: same inputs, same job id.

A job that ended void (rows that it was trained on were erased meanwhile) is asked for again at once, with its cause and
its place: it waits for nothing but its turn, and counts neither for the cooldown nor for the day's budget.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec
from faust.app import App

from schemas.codec import ContractError, now_ms
from schemas.events import DriftDetected, JobDeferred, JobRequested, TrainingRequested
from schemas.identity import content_hash, job_id
from schemas.policy import ModelPolicy, must_be_better
from streams import kafka
from streams.artifacts import ArtifactStore, put_shard_set
from streams.conditions import needed, waits_for
from streams.dead_letters import Budget, dead_letter
from streams.faust_app import Sender, bytes_topic, faust_app, record_of, take
from streams.kafka import Out, Record
from streams.situation import Facts, Knowledge

log = logging.getLogger(__name__)
GROUP = "conduct"
TICK_S = 1.0  # each look asks ClickHouse several things of every model
DEFER_EVERY_MS = 2_000


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's wish for a job; `because` is the id of what asked for it: a drift, a command, the first data.

    `void_before`: the jobs that it got already, and that trained on what was erased meanwhile.
    """

    reason: str
    because: str
    asked_ms: int
    correlation_id: str = ""
    drift_id: str = ""
    from_base: bool = False
    void_before: int = 0
    changed_at: int = 0
    accept: str = ""

    @property
    def better(self) -> bool:
        """Whether its candidate must be better than what serves, not only no worse."""
        return must_be_better(self.reason, self.accept)


@dataclass(frozen=True)
class Requested:
    """Jobs asked for by this process that may not have landed in ClickHouse yet."""

    at_ms: dict[str, int]
    answered: dict[str, str]


def initial_wish(model: str, first_shards: list[str]) -> Wish:
    return Wish(reason="initial", because="initial-" + content_hash(model, first_shards), asked_ms=0)


def again(facts: Facts, answered: Collection[str]) -> Wish | None:
    """The wish whose job was void and that got no other since, None where there is none."""
    last = {job.because: job for job in sorted(facts.void, key=lambda job: job.void_before)}
    job = next((job for job in last.values() if job.because not in answered), None)
    if job is None:
        return None
    return Wish(
        reason=job.reason, because=job.because, asked_ms=job.ts_ms, correlation_id=job.correlation_id,
        drift_id=job.drift_id, from_base=job.from_base, void_before=job.void_before + 1, changed_at=job.changed_at,
        accept=job.accept,
    )


def request(model: str, policy: ModelPolicy, wish: Wish, facts: Facts, store: ArtifactStore) -> JobRequested:
    """The job that a wish becomes, all inputs resolved to digests. `facts.base` must be known."""
    assert facts.base is not None, "a wish without a base is still waiting"
    parent = None if wish.from_base else facts.champion
    new = [shard.ref for shard in facts.new]
    replay = [shard.ref for shard in facts.old]
    if wish.from_base:  # nothing is old to a model that knows nothing
        new, replay = [*replay, *new], []
    new_data = put_shard_set(store, model, new)
    replay_data = put_shard_set(store, model, replay) if replay else None
    digests = [new_data.digest, replay_data.digest if replay_data else ""]
    # A shard that was rewritten is named by its old digest until that is said: the inputs may be those of the void job.
    because = f"{wish.because}/{wish.void_before}" if wish.void_before else wish.because
    identity = job_id(
        model, facts.base.digest, parent.digest if parent else "", digests, "lora", policy.recipe, because
    )
    return JobRequested(
        model=model, job_id=identity, reason=wish.reason, base=policy.base, base_path=facts.base.path,
        base_digest=facts.base.digest, parent_version=parent.version if parent else 0,
        parent_path=parent.path if parent else "", parent_digest=parent.digest if parent else "",
        new_data=new_data, replay_data=replay_data, drift_id=wish.drift_id, recipe=policy.recipe,
        void_before=wish.void_before, changed_at=wish.changed_at, accept=wish.accept,
    )


class Conductor:
    """Takes wishes from events, and at every tick asks whether one has earned its job. Sends what comes of it."""

    def __init__(
        self, policies: Mapping[str, ModelPolicy], knowledge: Knowledge, store: ArtifactStore,
        wishes: MutableMapping[bytes, bytes], send: Callable[[Out], Awaitable[Any]],
        budget: Budget | None = None,
    ) -> None:
        self._policies, self._knowledge, self._store = policies, knowledge, store
        self._wishes, self._send, self._budget = wishes, send, budget or Budget()
        self._deferred_at: dict[str, tuple[int, dict[str, str]]] = {}
        self._requested: dict[str, Requested] = {name: Requested({}, {}) for name in policies}

    async def take(self, record: Record) -> None:
        """Note the wish in a record, if there is one."""
        if record.value is None:
            return
        try:
            envelope, fact = kafka.decode(record)
        except ContractError as error:
            self._budget.count(refused=True)
            await self._send(dead_letter(GROUP, record, str(error)))
            await asyncio.sleep(self._budget.wait_s())
            return
        self._budget.count(refused=False)
        if isinstance(fact, DriftDetected):
            self._open(fact.model, Wish(reason="drift", because=fact.drift_id, asked_ms=envelope.time_ms,
                                        correlation_id=envelope.correlation_id, drift_id=fact.drift_id,
                                        changed_at=fact.changed_at))
        elif isinstance(fact, TrainingRequested):
            reason = "erasure" if envelope.source == "register" else "person"
            self._open(fact.model, Wish(reason=reason, because=envelope.id, asked_ms=envelope.time_ms,
                                        correlation_id=envelope.id, from_base=fact.from_base, accept=fact.accept))

    def _open(self, model: str, wish: Wish) -> None:
        known = self._current(model, wish.from_base)
        if known is None or known.because != wish.because:
            self._wishes[_key(model, wish.from_base)] = msgspec.json.encode(wish)

    def _current(self, model: str, from_base: bool) -> Wish | None:
        data = self._wishes.get(_key(model, from_base))
        return msgspec.json.decode(data, type=Wish) if data else None

    async def tick(self) -> None:
        for model, policy in self._policies.items():
            await self._consider(model, policy)

    async def _consider(self, model: str, policy: ModelPolicy) -> None:
        mine = self._requested[model]
        facts = await asyncio.to_thread(self._knowledge.facts, model, policy, mine.at_ms)
        void = {job.job_id for job in facts.void}
        answered = facts.answered | {because for because, job in mine.answered.items() if job not in void}
        # First what had earned its job and lost it, then what trains anew from the base, as after an erasure: no drift
        # that comes meanwhile may take its place.
        wishes = [self._current(model, from_base) for from_base in (True, False)]
        lost = again(facts, answered)
        wish = lost or next((one for one in wishes if one is not None and one.because not in answered), None)
        if wish is None and facts.situation.champion == 0 and facts.new:
            wish = initial_wish(model, [facts.new[0].ref.shard_id, str(facts.situation.last_job_ms)])
        if wish is None or wish.because in answered:
            return
        if wish.changed_at:  # what is recent is what was said since then
            facts = facts.since(wish.changed_at)
        if unmet := self._unmet(facts, policy, wish):
            await self._defer(model, policy, wish, facts, unmet)
            return
        job = await asyncio.to_thread(request, model, policy, wish, facts, self._store)
        await self._send(kafka.out(job, source=GROUP, subject=job.job_id, causation_id=wish.because,
                                   correlation_id=wish.correlation_id or job.job_id, event_id=job.job_id))
        mine.at_ms[job.job_id] = now_ms()
        mine.answered[wish.because] = job.job_id
        log.info("%s: %s asked for (%s)", model, job.job_id, wish.reason)

    def _unmet(self, facts: Facts, policy: ModelPolicy, wish: Wish) -> dict[str, str]:
        earned = wish.void_before > 0
        return waits_for(
            facts.situation, policy, now_ms(), needs_new=not wish.from_base, earned=earned, better=wish.better
        )

    async def _defer(self, model: str, policy: ModelPolicy, wish: Wish, facts: Facts, unmet: dict[str, str]) -> None:
        said_ms, said = self._deferred_at.get(wish.because, (0, {}))
        due = unmet.keys() != said.keys() or (unmet != said and now_ms() - said_ms >= DEFER_EVERY_MS)
        if wish.reason == "initial" or not due:
            return
        self._deferred_at[wish.because] = now_ms(), unmet
        event = JobDeferred(
            model=model, drift_id=wish.drift_id or wish.because, waits_for=unmet,
            new_examples=facts.situation.new_examples, min_new_examples=needed(facts.situation, policy),
        )
        await self._send(kafka.out(event, source=GROUP, subject=event.drift_id, correlation_id=wish.correlation_id,
                                   causation_id=wish.because))


def _key(model: str, from_base: bool) -> bytes:
    return f"{model}\0base".encode() if from_base else model.encode()


def build(
    bootstrap: str, policies: Mapping[str, ModelPolicy], knowledge: Knowledge, store: ArtifactStore, data_dir: str,
    replication: int = 1, budget: Budget | None = None,
) -> App:
    """The Faust application."""
    app = faust_app(GROUP, bootstrap, data_dir, 1, replication)
    wishes = app.Table("wishes", key_type=bytes, value_type=bytes, partitions=1)
    conductor = Conductor(policies, knowledge, store, wishes, Sender(app).send, budget)

    for topic, name in (("monitor.drift", "drifts"), ("models.commands", "commands")):

        async def handle(event: Any, topic: str = topic) -> None:
            await conductor.take(record_of(event, topic))

        take(app, bytes_topic(app, topic), name, handle)

    @app.timer(TICK_S)
    async def tick() -> None:
        await conductor.tick()

    return app
