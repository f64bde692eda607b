"""The step of `conduct`: opens and closes triggers, and asks for jobs, of each model one at a time.

Reads `monitor.drift`, `monitor.performance` and `models.commands`; asks ClickHouse for the rest
(`streams.conduct.situation`). Writes `training.triggers`, `training.jobs`, reviews of promotions to
`models.candidates`, and `JobDeferred` to `training.progress` whenever what a job waits for changes.

State is its own topics, read to their end on assignment (`streams.conduct.ledger`); it looks at the situation only
while it has its partitions. What it says goes out in transactions: of two processes one is fenced, and a restart in
between asks for nothing twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from clickhouse_connect.driver.exceptions import ClickHouseError

from schemas.codec import Envelope, now_ms
from schemas.events import (
    DriftDetected,
    HoldRequested,
    JobDeferred,
    JobRequested,
    PerformanceMeasured,
    ReviewRequested,
    TrainingRequested,
    TriggerClosed,
    TriggerCloseRequested,
    TriggerOpened,
)
from schemas.identity import content_hash, job_id
from schemas.policy import ModelPolicy
from schemas.topics import DAY_MS
from streams import kafka
from streams.artifact_paths import ArtifactError
from streams.artifacts import ArtifactStore, put_shard_set
from streams.conduct.conditions import History, TrainerBudget, least_examples, trainer_waits, waits_for
from streams.conduct.ledger import Ledger, Trigger
from streams.conduct.situation import LOST_AFTER_MS, End, Facts, Knowledge
from streams.conduct.triggers import PRIORITY, Attempt, Closing, asked_for, attempts, over, recovered, trigger_id
from streams.dead_letters import Budget, events_of
from streams.kafka import Out, Record
from streams.register import read_registry
from streams.unreadable import readable

log = logging.getLogger(__name__)
GROUP = "conduct"
TOPICS = ["monitor.drift", "monitor.performance", "models.commands"]
# What its state follows from; how well a version does is only known as it is now.
REMEMBERED = ("monitor.drift", "models.commands")
OWN_TOPICS = ("training.triggers", "training.jobs", "models.candidates")
# A promotion is looked back on when these shares of `review_answers` were said since.
LOOKS = (1 / 6, 1 / 3, 2 / 3)
TICK_S = 1.0
# How often it is looked whether a drift is over, and a number that a job waits for is said again.
RECOVERY_LOOK_MS = 60_000
SAY_AGAIN_MS = 10_000
COMPLAIN_EVERY_S = 60.0


class ConductStep:
    """See the module. `clock` gives Unix ms, `champion` the version that serves a model by the registry's last word."""

    def __init__(
        self, bootstrap: str, policies: Mapping[str, ModelPolicy], knowledge: Knowledge, store: ArtifactStore,
        trainer: TrainerBudget = TrainerBudget(), budget: Budget | None = None, clock: Callable[[], int] = now_ms,
        champion: Callable[[str], int] | None = None,
    ) -> None:
        self._bootstrap, self._policies, self._knowledge, self._store = bootstrap, policies, knowledge, store
        self._trainer, self._budget, self._clock = trainer, budget or Budget(), clock
        self._champion = champion or self._registered
        self._ledger = Ledger()
        self._held: dict[str, str] = {}
        self._drifts: dict[str, float] = {}  # thresholds by drift
        self._live: dict[tuple[str, int], float | None] = {}
        self._ends: dict[str, End] = {}
        self._said: dict[str, tuple[int, dict[str, str]]] = {}  # what each trigger was last said to wait for, and when
        self._looked_ms: dict[str, int] = {}
        self._complained_s = -COMPLAIN_EVERY_S
        self._noted = False

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        """All that was ever said, from Kafka."""
        read = lambda topic: readable(kafka.read_to_end(self._bootstrap, topic, settled=True))  # noqa: E731
        self.remember(event for topic in (*REMEMBERED, *OWN_TOPICS) for event in read(topic))

    def remember(self, said: Iterable[tuple[Envelope, Any]]) -> None:
        """Begin anew with what was said so far."""
        self._ledger, self._held, self._drifts, self._ends = Ledger(), {}, {}, {}
        for envelope, event in said:
            self._note(envelope, event)

    def _note(self, envelope: Envelope, event: Any) -> None:
        self._ledger.apply(envelope, event)
        if isinstance(event, HoldRequested):
            self._held[event.model] = (event.reason or "asked for") if event.hold else ""
        elif isinstance(event, DriftDetected):
            self._drifts[event.drift_id] = event.threshold
        elif isinstance(event, PerformanceMeasured):
            self._live[event.model, event.version] = event.recent_quality

    def _live_quality(self, facts: Facts) -> float | None:
        """The share right of the version that serves, as it was last heard of, or else as it stands in ClickHouse."""
        if facts.champion is None:
            return None
        key = facts.model, facts.champion.version
        return self._live[key] if key in self._live else self._knowledge.live_quality(*key)

    def handle(self, batch: list[Record]) -> list[Out]:
        outs: list[Out] = []
        for envelope, event in events_of(batch, GROUP, self._budget, outs):
            self._note(envelope, event)
            outs += self._on(envelope, event)
        return outs

    def _on(self, envelope: Envelope, event: Any) -> list[Out]:
        if isinstance(event, DriftDetected):
            policy = self._policies.get(event.model)
            if policy is None or "drift" not in policy.triggers:
                return []
            fell = f"{event.metric} fell from {event.baseline:.3f} to {event.current:.3f} of {event.people} people"
            opened = TriggerOpened(
                model=event.model, trigger_id=trigger_id(event.model, "drift", event.drift_id), ordinal=0, kind="drift",
                reason=fell, version=event.version, drift_id=event.drift_id, changed_at=event.changed_at,
                actor="monitor",
            )
            return self._open(opened, envelope)
        if isinstance(event, TrainingRequested):
            opened = TriggerOpened(
                model=event.model, trigger_id=trigger_id(event.model, "person", envelope.id), ordinal=0, kind="person",
                reason=event.reason, version=self._champion(event.model), from_base=event.from_base,
                accept=event.accept, actor=event.actor,
            )
            return self._open(opened, envelope)
        if isinstance(event, TriggerCloseRequested):
            found = [one for one in self._ledger.open(event.model) if one.id == event.trigger_id]
            return [out for one in found for out in self._close(one, "person", event.reason, actor=event.actor)]
        return []

    def _registered(self, model: str) -> int:
        state = read_registry(self._bootstrap)[0].get(model)
        return state.champion if state else 0

    def _open(self, trigger: TriggerOpened, cause: Envelope | None = None) -> list[Out]:
        """Open a trigger, once."""
        if trigger.model not in self._policies or self._ledger.knows(trigger.trigger_id):
            return []
        said = msgspec.structs.replace(trigger, ordinal=self._ledger.next_ordinal(trigger.model))
        correlation = (cause.correlation_id or cause.id) if cause else said.trigger_id
        log.info("%s: %s trigger %s: %s", said.model, said.kind, said.trigger_id, said.reason)
        return [self._out(said, said.trigger_id, correlation, cause.id if cause else "", said.trigger_id)]

    def _close(self, trigger: Trigger, because: str, reason: str, job: str = "", actor: str = GROUP) -> list[Out]:
        said = TriggerClosed(
            model=trigger.said.model, trigger_id=trigger.id, ordinal=trigger.said.ordinal, because=because,
            reason=reason, job_id=job, actor=actor,
        )
        self._said.pop(trigger.id, None)
        log.info("%s: %s trigger %s is %s: %s", said.model, trigger.kind, trigger.id, because, reason)
        return [self._out(said, said.trigger_id, trigger.correlation_id, trigger.id, f"{trigger.id}/closed")]

    def _out(self, event: msgspec.Struct, subject: str, correlation: str, cause: str, identity: str = "") -> Out:
        """A record of ours, noted as if it had been read: what fails is read again from the topics."""
        envelope, out = kafka.enveloped(
            event, source=GROUP, subject=subject, correlation_id=correlation, causation_id=cause,
            event_id=identity or None, time_ms=self._clock(),
        )  # fmt: skip
        self._ledger.apply(envelope, event)
        self._noted = True
        return out

    def tick(self) -> list[Out]:
        """Look at how things stand: what follows from it. Nothing while ClickHouse or the store does not answer."""
        self._noted = False
        try:
            self._knowledge.look()
            self._learn_ends()
            outs: list[Out] = []
            for model, policy in self._policies.items():
                outs += [*self._settle(model, policy), *self._look_back(model, policy)]
            return outs + self._ask()
        except (ClickHouseError, ArtifactError, OSError) as error:
            if time.monotonic() - self._complained_s >= COMPLAIN_EVERY_S:
                self._complained_s = time.monotonic()
                log.warning("how things stand cannot be read (%s: %s); trying again", type(error).__name__, error)
            if self._noted:  # and not sent: it is not so
                self.assigned([])
            return []

    def _learn_ends(self) -> None:
        """What became of the jobs that were under way."""
        jobs = self._ledger.jobs()
        self._ends |= self._knowledge.ends([job.id for job in jobs if not self._ends.get(job.id, End()).outcome])
        decided: dict[str, int] = {}  # the last job of each model that was decided on
        for job in jobs:
            if self._ends.get(job.id, End()).outcome:
                decided[job.said.model] = job.asked_ms
        for job in jobs:
            if self._ends.get(job.id, End()).outcome:
                continue
            policy = self._policies.get(job.said.model, ModelPolicy())
            limit_ms = int(1000 * (policy.job_limit_s + policy.verdict_limit_s)) + LOST_AFTER_MS
            if job.asked_ms < decided.get(job.said.model, 0):
                self._ends[job.id] = End("lost", "a later job was decided on", self._clock(), True)
            elif self._clock() - job.asked_ms > limit_ms:
                heard_ms = max(job.asked_ms, self._knowledge.heard_ms(job.id))
                if self._clock() - heard_ms > limit_ms:
                    self._ends[job.id] = End("failed", "nothing was heard of it within its limits", heard_ms, True)

    def _settle(self, model: str, policy: ModelPolicy) -> list[Out]:
        """Close the triggers that are over, open those that the situation asks for."""
        facts, outs = self._knowledge.facts(model, policy), []
        jobs = {job.id: job for job in self._ledger.jobs(model)}
        for trigger in self._ledger.open(model):
            closing = over(trigger, facts, policy, jobs) or self._recovered(trigger)
            if closing is not None:
                outs += self._close(trigger, closing.because, closing.reason, closing.job_id)
        open_kinds = {one.kind for one in self._ledger.open(model)}
        for asked in asked_for(facts, policy, self._clock()):
            if asked.kind not in open_kinds:
                outs += self._open(asked)
        return outs

    def _look_back(self, model: str, policy: ModelPolicy) -> list[Out]:
        """Have the version before a promotion answer what was asked since, once there is enough of it."""
        facts = self._knowledge.facts(model, policy)
        look = self._ledger.looks(model, facts.epoch)
        if facts.champion is None or facts.change != "promoted" or self._held.get(model) or look >= len(LOOKS):
            return []
        if self._clock() - facts.since_ms > policy.review_days * DAY_MS:
            return []
        shards = facts.since(facts.since_ms)
        said = sum(shard.examples + shard.tests.rows - shard.undated for shard in shards)
        due = [number for number, share in enumerate(LOOKS, 1) if said >= share * policy.review_answers]
        if not due or due[-1] <= look:
            return []
        event = ReviewRequested(
            model=model, review_id="review-" + content_hash(model, facts.epoch, due[-1]),
            version=facts.champion.version, previous=facts.previous, epoch=facts.epoch, look=due[-1],
            since_ms=facts.since_ms, live_quality=self._live_quality(facts),
            data=put_shard_set(self._store, model, [shard.ref for shard in shards]),
        )
        subject = f"{model}@{facts.champion.version}"
        return [self._out(event, subject, facts.champion.correlation_id, "", event.review_id)]

    def _recovered(self, trigger: Trigger) -> Closing | None:
        threshold = self._drifts.get(trigger.said.drift_id)
        if trigger.kind != "drift" or threshold is None:
            return None
        if self._clock() - self._looked_ms.get(trigger.id, 0) < RECOVERY_LOOK_MS:
            return None
        self._looked_ms[trigger.id] = self._clock()
        found = self._knowledge.recovery(trigger.said.model, trigger.said.version, trigger.opened_ms)
        return recovered(found, threshold)

    def _ask(self) -> list[Out]:
        """Ask for the jobs that have earned their start, the most urgent first; say what the others wait for."""
        chosen: list[tuple[Attempt, Facts, dict[str, str]]] = []
        for model, policy in self._policies.items():
            facts, history = self._knowledge.facts(model, policy), self._history(model)
            found = [
                (one, waits_for(one, facts, policy, history, self._clock(), held=self._held.get(model, "")))
                for one in attempts(self._ledger.open(model), history.jobs, self._ends)
            ]
            if found:
                attempt, unmet = next((one for one in found if not one[1]), found[0])
                chosen.append((attempt, facts, unmet))
        chosen.sort(key=lambda one: (one[0].void_before == 0, PRIORITY.index(one[0].reason), one[0].lead.opened_ms))
        outs: list[Out] = []
        for attempt, facts, unmet in chosen:
            running = self._history(facts.model).in_flight(facts)
            if running is not None and attempt.lead.id in running.said.answers:
                continue  # it has its job
            busy = {} if unmet else trainer_waits(self._trainer, self._ledger.jobs(), self._ends, self._clock())
            outs += self._defer(attempt, facts, unmet | busy) if unmet or busy else self._request(attempt, facts)
        return outs

    def _history(self, model: str) -> History:
        return History(self._ledger.jobs(model), self._ends)

    def _request(self, attempt: Attempt, facts: Facts) -> list[Out]:
        policy, live = self._policies[facts.model], self._live_quality(facts)
        job = request(facts, policy, attempt, self._store, self._clock(), live)
        for one in attempt.answers:
            self._said.pop(one.id, None)
        log.info("%s: %s asked for (%s)", job.model, job.job_id, job.reason)
        return [self._out(job, job.job_id, attempt.lead.correlation_id, attempt.lead.id, job.job_id)]

    def _defer(self, attempt: Attempt, facts: Facts, unmet: dict[str, str]) -> list[Out]:
        lead, now = attempt.lead, self._clock()
        said_ms, said = self._said.get(lead.id, (0, {}))
        if unmet == said or (unmet.keys() == said.keys() and now - said_ms < SAY_AGAIN_MS):
            return []
        self._said[lead.id] = now, unmet
        policy = self._policies[facts.model]
        event = JobDeferred(
            model=facts.model, trigger_id=lead.id, waits_for=unmet, new_examples=facts.new_examples(attempt.changed_at),
            min_new_examples=least_examples(attempt, facts, policy, self._history(facts.model)),
        )
        return [self._out(event, lead.id, lead.correlation_id, lead.id)]


def request(
    facts: Facts, policy: ModelPolicy, attempt: Attempt, store: ArtifactStore, asked_ms: int, live: float | None
) -> JobRequested:  # fmt: skip
    """The job that an attempt becomes, all inputs resolved to digests.

    When it is asked for (Unix ms) tells it from others of the same inputs; `facts.base` must be known. Raises
    `ArtifactError`.
    """
    assert facts.base is not None, "a trigger without a base is still waiting"
    parent = None if attempt.from_base else facts.champion
    new, replay = [shard.ref for shard in facts.new], [shard.ref for shard in facts.old]
    if parent is None:  # nothing is old to a model that knows nothing
        new, replay = [*replay, *new], []
    new_data = put_shard_set(store, facts.model, new)
    replay_data = put_shard_set(store, facts.model, replay) if replay else None
    digests = [new_data.digest, replay_data.digest if replay_data else ""]
    identity = job_id(
        facts.model, facts.base.digest, parent.digest if parent else "", digests, "lora", policy.recipe,
        f"{attempt.lead.id}/{asked_ms}",
    )
    return JobRequested(
        model=facts.model, job_id=identity, reason=attempt.reason, base=policy.base, base_path=facts.base.path,
        base_digest=facts.base.digest, parent_version=parent.version if parent else 0,
        parent_path=parent.path if parent else "", parent_digest=parent.digest if parent else "",
        new_data=new_data, replay_data=replay_data, drift_id=attempt.lead.said.drift_id,
        answers=[one.id for one in attempt.answers], recipe=policy.recipe, void_before=attempt.void_before,
        changed_at=attempt.changed_at, accept=attempt.lead.said.accept,
        new_examples=facts.new_examples(attempt.changed_at), live_quality=live,
    )

