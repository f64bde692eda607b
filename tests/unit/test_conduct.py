"""What asks for a job gets one, once, and goes on asking until it is answered; meanwhile it is said what it waits for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clickhouse_connect.driver.exceptions import OperationalError

from schemas.codec import Envelope
from schemas.events import (
    BaseRegistered,
    DriftDetected,
    HoldRequested,
    JobDeferred,
    JobRequested,
    PerformanceMeasured,
    ReviewRequested,
    ShardRef,
    TrainingRequested,
    TriggerClosed,
    TriggerCloseRequested,
    TriggerOpened,
    Version,
)
from schemas.policy import TRIGGERS, WITHIN, ModelPolicy
from streams import kafka
from streams.artifacts import ArtifactStore
from streams.conduct.conditions import TrainerBudget
from streams.conduct.ledger import KEPT_JOBS, Ledger
from streams.conduct.situation import End, Facts, HeldRows, KnownShard, Recovery
from streams.conduct.step import ConductStep
from streams.conduct.triggers import yet_to_come
from streams.kafka import Out
from tests.broker import landed
from tests.examples import example

NOW, SECOND, DAY = 1_763_700_000_000, 1_000, 86_400_000
BASE = msgspec.structs.replace(example(BaseRegistered, "b"), digest="ba" * 32)
ENOUGH = HeldRows(500, 50)


def champion(number: int, **more: Any) -> Version:
    fields = {"version": number, "digest": f"{number:064x}", "base_digest": BASE.digest, "job_id": f"job-of-{number}", "erasures": []}
    return msgspec.structs.replace(example(Version, "support"), **{**fields, **more})


class World:
    """A conductor, what it is told of the situation, and all that it said. Time stands still until it is moved."""

    def __init__(self, folder: Path, *models: str, trainer: TrainerBudget = TrainerBudget(), **policy: Any) -> None:
        self.policies = {name: ModelPolicy(**{"triggers": ["drift"], **policy}) for name in models or ("support",)}
        self.known = {name: self.situation(name) for name in self.policies}
        self.ends_: dict[str, End] = {}
        self.now, self.shards, self.store, self.trainer = NOW, itertools.count(), ArtifactStore(str(folder)), trainer
        self.recovery_: Recovery | None = None
        self.live: float | None = 0.9
        self.heard, self.broken = 0, False
        self.said: list[tuple[Envelope, Any]] = []
        self.step = self.fresh()

    def situation(self, model: str) -> Facts:
        return Facts(model=model, champion=champion(1), epoch=1, since_ms=NOW - DAY, base=BASE, learned_from=200)

    def fresh(self) -> ConductStep:
        return ConductStep(
            "", self.policies, self, self.store, self.trainer, clock=lambda: self.now,  # type: ignore[arg-type]
            champion=lambda model: serving.version if (serving := self.known[model].champion) else 0,
        )

    def restart(self) -> None:
        self.step = self.fresh()
        self.step.remember(self.said)

    # what the conductor asks
    def look(self) -> None:
        if self.broken:
            raise OperationalError("no answer")

    def facts(self, model: str, policy: ModelPolicy) -> Facts:
        return self.known[model]

    def ends(self, jobs: list[str]) -> dict[str, End]:
        return {job: self.ends_[job] for job in jobs if job in self.ends_}

    def heard_ms(self, job: str) -> int:
        return self.heard

    def live_quality(self, model: str, version: int) -> float | None:
        return self.live

    def recovery(self, model: str, version: int, since_ms: int) -> Recovery | None:
        return self.recovery_

    # what happens
    def examples(self, count: int, model: str = "support", after_s: float = 1.0) -> None:
        """So many new examples, in a shard of their own, a second from now."""
        self.now += int(after_s * SECOND)
        ref = ShardRef(shard_id=f"s{next(self.shards)}", path="shards/s", digest="0" * 64, rows=count)
        shard = KnownShard(ref, model, count, self.now, ENOUGH)
        self.known[model] = replace(self.known[model], new=[*self.known[model].new, shard], _times=[], _sums=[])

    def looked(self, count: int) -> None:
        """So many answers of which something was said."""
        self.examples(count)
        shard = replace(self.known["support"].new[-1], tests=HeldRows(0, 0))
        self.known["support"] = replace(self.known["support"], new=[*self.known["support"].new[:-1], shard], _times=[], _sums=[])

    def serve(self, version: Version | None, model: str = "support", **more: Any) -> None:
        """From now on this version serves, which has learned from all there is."""
        self.now += SECOND
        before = self.known[model]
        self.known[model] = replace(
            before, champion=version, epoch=before.epoch + 1, since_ms=self.now, old=[*before.old, *before.new], new=[],
            numbered=before.numbered | ({version.job_id} if version else set()), _times=[], _sums=[], **more,
        )

    def end(self, job: JobRequested, outcome: str, reason: str = "worse", seconds: float = 60.0) -> None:
        self.ends_[job.job_id] = End(outcome, reason, self.now, True, seconds)

    def promote(self, job: JobRequested, number: int, **more: Any) -> None:
        self.end(job, "promoted", "better")
        self.serve(champion(number, job_id=job.job_id, **more), job.model)

    def tell(self, event: Any, **more: Any) -> str:
        """An event on one of the topics that it reads; returns its id."""
        envelope, out = kafka.enveloped(event, source="test", time_ms=self.now, **more)
        self.said.append((envelope, event))
        self._note(self.step.handle([landed(out)]))
        return envelope.id

    def drift(self, name: str = "drift-1", version: int = 1, model: str = "support") -> str:
        self.tell(example(DriftDetected, model, drift_id=name, version=version, changed_at=self.now, threshold=0.7))
        return self.open(model)[-1].trigger_id

    def tick(self, times: int = 3) -> None:
        for _ in range(times):
            self.now += SECOND
            self._note(self.step.tick())

    def _note(self, outs: Iterable[Out]) -> None:
        self.said += [kafka.decode(landed(out)) for out in outs]

    # what came of it
    def of(self, kind: type[Any], model: str = "") -> list[Any]:
        return [event for _, event in self.said if isinstance(event, kind) and model in ("", event.model)]

    def jobs(self, model: str = "") -> list[JobRequested]:
        return self.of(JobRequested, model)

    def open(self, model: str = "support") -> list[TriggerOpened]:
        closed = {event.trigger_id for event in self.of(TriggerClosed)}
        return [event for event in self.of(TriggerOpened, model) if event.trigger_id not in closed]

    def closed(self) -> list[tuple[str, str]]:
        return [(event.trigger_id, event.because) for event in self.of(TriggerClosed)]

    def waits(self) -> dict[str, str]:
        return self.of(JobDeferred)[-1].waits_for if self.of(JobDeferred) else {}


def test_a_drift_waits_for_examples_said_after_the_change_and_gets_one_job(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.examples(10_000)
    world.now += SECOND
    drift = world.drift()
    world.tick()
    assert world.jobs() == [] and world.waits().keys() == {"new examples", "test rows"}
    assert world.waits()["new examples"].startswith("0 of 200 ")
    world.examples(199)
    world.tick()
    assert world.jobs() == [] and world.waits().keys() == {"new examples"}
    world.examples(1)
    world.tick()
    (job,) = world.jobs()
    assert (job.reason, job.answers, job.drift_id, job.new_examples, job.parent_version) == ("drift", [drift], "drift-1", 200, 1)
    assert job.changed_at == world.of(DriftDetected)[0].changed_at


def test_a_refused_drift_stays_open_and_waits_for_half_again_as_many_examples(tmp_path: Path) -> None:
    world = World(tmp_path)
    drift = world.drift()
    for had, least in ((200, 300), (300, 450), (450, 675)):
        world.examples(had - sum(shard.examples for shard in world.known["support"].new))
        world.tick()
        job = world.jobs()[-1]
        assert job.new_examples == had
        world.end(job, "refused")
        world.tick()
        assert [one.trigger_id for one in world.open()] == [drift]
        assert f"{had:,} of {least:,} " in world.waits()["new examples"] and f"{job.job_id} was refused" in world.waits()["new examples"]
    assert len(world.jobs()) == 3 and len({job.job_id for job in world.jobs()}) == 3


def test_what_failed_is_tried_again_after_growing_pauses_that_are_named(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.drift()
    world.examples(200)
    for pause_s in (60, 240, 960):
        world.tick()
        world.end(world.jobs()[-1], "failed", "the disk is full")
        count = len(world.jobs())
        world.tick()
        assert "the disk is full" in world.waits()["pause"] and "2025-11-21" in world.waits()["pause"]
        world.now += (pause_s - 10) * SECOND
        world.tick()
        assert len(world.jobs()) == count
        world.now += 10 * SECOND
    world.tick()
    assert len(world.jobs()) == 4 and len({job.job_id for job in world.jobs()}) == 4
    world.end(world.jobs()[-1], "refused")
    world.examples(100)
    world.tick()
    assert len(world.jobs()) == 5, "a refusal ends the row of failures"


def test_a_void_job_is_asked_for_again_at_once_and_counts_for_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, cooldown_s=3600.0, max_jobs_per_day=1)
    drift = world.drift()
    world.examples(200)
    world.tick()
    world.end(world.jobs()[0], "void")
    world.known["support"] = replace(world.known["support"], new=[], _times=[], _sums=[])
    world.tick()
    first, second = world.jobs()
    assert (second.void_before, second.reason, second.answers) == (1, "drift", [drift]) and second.job_id != first.job_id
    world.restart()
    world.tick()
    assert len(world.jobs()) == 2
    world.end(second, "void")
    world.tick()
    assert [job.void_before for job in world.jobs()] == [0, 1, 2]


def test_a_void_training_anew_is_again_from_the_base_whatever_came_meanwhile(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.examples(200)
    world.tell(TrainingRequested(model="support", from_base=True))
    world.tick()
    world.end(world.jobs()[0], "void")
    world.drift()
    world.tick()
    assert [(job.reason, job.parent_version, job.void_before) for job in world.jobs()] == [("person", 0, 0), ("person", 0, 1)]


def test_all_open_triggers_stand_side_by_side_and_one_job_answers_them_by_name(tmp_path: Path) -> None:
    world = World(tmp_path)
    drift = world.drift()
    world.examples(50)
    world.tick()
    world.tell(TrainingRequested(model="support", reason="to help", actor="jo"))
    person = world.open()[-1]
    assert (person.kind, person.actor, person.ordinal) == ("person", "jo", 2)
    world.tick()
    assert world.jobs() == []
    world.examples(150)
    world.tick()
    (job,) = world.jobs()
    assert (job.reason, set(job.answers)) == ("drift", {drift, person.trigger_id}), "the drift's rule"
    world.end(job, "refused")
    world.tick()
    assert len(world.open()) == 2
    world.examples(100)
    world.tick()
    world.promote(world.jobs()[1], 2)
    world.tick()
    assert world.open() == [] and {because for _, because in world.closed()} == {"answered"}
    assert {event.job_id for event in world.of(TriggerClosed)} == {world.jobs()[1].job_id}


def test_a_person_need_not_wait_for_what_a_drift_waits_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.examples(500)
    world.now += SECOND
    world.drift()
    world.tell(TrainingRequested(model="support", accept="no worse"))
    world.tick()
    (job,) = world.jobs()
    assert (job.reason, job.accept, job.changed_at, len(job.answers)) == ("person", "no worse", 0, 2)


@pytest.mark.parametrize(("learned_from", "least"), [(200, 200), (1_000, 500)])
def test_new_examples_alone_ask_for_a_job(tmp_path: Path, learned_from: int, least: int) -> None:
    world = World(tmp_path, triggers=["volume"])
    world.known["support"] = replace(world.known["support"], learned_from=learned_from, _times=[], _sums=[])
    world.examples(least - 1)
    world.tick()
    assert world.open() == []
    world.examples(1)
    world.tick()
    (job,) = world.jobs()
    assert (job.reason, job.changed_at, job.new_examples) == ("volume", 0, least)
    world.promote(job, 2)
    world.tick()
    assert world.open() == [] and len(world.jobs()) == 1


def test_volume_beside_a_drift_waits_for_the_drift(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=["volume", "drift"])
    world.examples(150)
    world.now += SECOND
    world.drift()
    world.examples(60)
    world.tick()
    assert {one.kind for one in world.open()} == {"volume", "drift"} and world.jobs() == []
    world.examples(140)
    world.tick()
    assert [(job.reason, len(job.answers)) for job in world.jobs()] == [("drift", 2)]


def test_an_old_version_learns_again(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=["age"])
    world.examples(20)
    world.now = NOW + 88 * DAY
    world.tick()
    assert world.open() == []
    world.now += DAY + SECOND
    world.tick()
    (job,) = world.jobs()
    assert (job.reason, job.parent_version) == ("age", 1)


def test_what_is_not_among_the_triggers_asks_for_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=[])
    world.examples(10_000)
    world.now += 200 * DAY
    world.serve(champion(2, erasures=["e"], base_digest="0" * 64))
    world.examples(10_000)
    world.tell(example(DriftDetected, "support", version=2))
    world.tick()
    assert world.open() == [] and world.jobs() == []


def test_after_erasures_one_training_anew_for_all_of_them(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=["erasure"])
    world.examples(300)
    world.serve(champion(1, erasures=["e1"]))
    world.tick()
    (job,) = world.jobs()
    assert (job.reason, job.parent_version, job.replay_data) == ("erasure", 0, None) and job.new_data.shards == 1
    world.known["support"] = replace(world.known["support"], champion=champion(1, erasures=["e1", "e2"]), _times=[], _sums=[])
    world.tick()
    assert len(world.open()) == 1 and len(world.jobs()) == 1
    world.end(job, "refused")
    world.tick()
    assert len(world.jobs()) == 1 and "0 of 100 " in world.waits()["new examples"], "never at once again on the same data"
    world.examples(100)
    world.tick()
    world.promote(world.jobs()[1], 2)
    world.tick()
    assert world.open() == [] and len(world.jobs()) == 2


def test_another_base_is_trained_from_on_all_data_and_nothing_else_is_begun(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=["drift", "base", "volume"])
    world.examples(300)
    world.serve(champion(1))
    world.examples(300)
    drift = world.drift()
    world.known["support"] = replace(world.known["support"], base=msgspec.structs.replace(BASE, digest="cc" * 32), _times=[], _sums=[])
    world.tick()
    (job,) = world.jobs()
    assert (job.reason, job.parent_version, job.base_digest, job.new_data.shards) == ("base", 0, "cc" * 32, 2)
    assert drift in job.answers and len(job.answers) == 3
    world.promote(job, 2, base_digest="cc" * 32)
    world.tick()
    assert world.open() == []


def test_a_drift_whose_rows_are_there_sets_the_rule_of_a_training_anew(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=["drift", "erasure"])
    world.drift()
    world.examples(200)
    world.known["support"] = replace(world.known["support"], champion=champion(1, erasures=["e1"]), _times=[], _sums=[])
    world.tick()
    (job,) = world.jobs()
    assert (job.reason, job.parent_version, len(job.answers)) == ("drift", 0, 2)


@pytest.mark.parametrize(
    ("recovery", "over"),
    [
        (None, False), (Recovery(99, 50, 0.9, 0.8), False), (Recovery(200, 19, 0.9, 0.8), False),
        (Recovery(200, 50, 0.75, 0.7), False), (Recovery(200, 50, 0.9, 0.71), True),
    ],
)  # fmt: skip
def test_a_drift_is_over_once_quality_has_surely_recovered(tmp_path: Path, recovery: Recovery | None, over: bool) -> None:
    world = World(tmp_path)
    drift = world.drift()
    world.tick()
    world.recovery_ = recovery
    world.now += 60 * SECOND
    world.tick()
    assert world.closed() == ([(drift, "recovered")] if over else [])


def test_a_drift_of_a_version_that_serves_no_more_is_closed_however_late_it_comes(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.drift()
    world.serve(champion(2))
    world.tick()
    second = world.drift("drift-late", version=1)
    world.tick()
    assert world.closed() == [(first, "superseded"), (second, "superseded")]


def test_who_asks_for_a_version_that_has_not_landed_yet_is_not_sent_away(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.step._champion = lambda model: 2
    world.tell(TrainingRequested(model="support"))
    world.tick()
    assert [one.version for one in world.open()] == [2]


def test_a_person_closes_a_trigger_and_it_stays_closed(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=["volume"], cooldown_s=1e6)
    world.examples(200)
    world.tick()
    world.end(world.jobs()[0], "refused")
    (trigger,) = world.open()
    world.tell(TriggerCloseRequested(model="support", trigger_id=trigger.trigger_id, reason="not now", actor="jo"))
    (closed,) = world.of(TriggerClosed)
    assert (closed.because, closed.reason, closed.actor) == ("person", "not now", "jo")
    world.examples(1_000)
    world.tick()
    assert world.open() == []
    world.serve(champion(2))
    world.examples(1_000)
    world.tick()
    assert [one.version for one in world.open()] == [2]


def test_a_held_model_starts_no_job_until_it_is_let_go_on(tmp_path: Path) -> None:
    world = World(tmp_path, "support", "other")
    world.tell(HoldRequested(model="support", hold=True, reason="the audit"))
    for name in ("support", "other"):
        world.tell(example(DriftDetected, name, drift_id=f"drift-{name}", version=1, changed_at=0))
        world.examples(200, name)
    world.tick()
    world.restart()
    world.tick()
    assert [job.model for job in world.jobs()] == ["other"]
    waits = next(event.waits_for for event in world.of(JobDeferred) if event.model == "support")
    assert "the audit" in waits["a person"] and "resume" in waits["a person"]
    world.end(world.jobs()[0], "refused")
    world.tell(HoldRequested(model="support", hold=False))
    world.tick()
    assert [job.model for job in world.jobs()] == ["other", "support"]


def test_what_passed_while_the_model_was_held_is_asked_for_again_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.drift()
    world.examples(200)
    world.tick()
    world.tell(HoldRequested(model="support", hold=True))
    world.end(world.jobs()[0], "deferred", "it passed, but the model is held")
    world.tick()
    assert len(world.jobs()) == 1
    world.tell(HoldRequested(model="support", hold=False))
    world.tick()
    assert len(world.jobs()) == 2


def test_a_restart_in_between_asks_for_nothing_twice(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=list(TRIGGERS))
    world.drift()
    world.examples(500)
    world.tick(1)
    assert len(world.jobs()) == 1
    for _ in range(3):
        world.restart()
        world.tick(1)
    assert len(world.jobs()) == 1 and len(world.of(TriggerOpened)) == 2
    for envelope, event in list(world.said):
        if isinstance(event, DriftDetected):  # read again
            world._note(world.step.handle([landed(kafka.enveloped(event, source="test", event_id=envelope.id)[1])]))
    assert len(world.of(TriggerOpened)) == 2


def test_the_first_job_is_asked_for_again_when_it_was_refused(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=[])
    world.serve(None)
    world.tick()
    assert world.open() == [], "nothing to learn from"
    world.examples(150)
    world.tick()
    assert [one.kind for one in world.open()] == ["initial"] and "150 of 200" in world.waits()["new examples"]
    world.examples(50)
    world.tick()
    (job,) = world.jobs()
    assert (job.reason, job.parent_version, job.new_examples) == ("initial", 0, 200)
    world.end(job, "refused")
    world.examples(99)
    world.tick()
    assert len(world.jobs()) == 1
    world.examples(1)
    world.tick()
    assert len(world.jobs()) == 2
    world.promote(world.jobs()[1], 1)
    world.tick()
    assert world.open() == []


def test_a_version_that_was_rolled_back_is_not_made_again_of_the_same_data(tmp_path: Path) -> None:
    world = World(tmp_path, triggers=["volume"])
    world.examples(200)
    world.tick()
    (job,) = world.jobs()
    shards = world.known["support"].new
    world.promote(job, 2)
    world.tick()
    world.serve(champion(1), rolled_back=frozenset({job.job_id}))
    world.known["support"] = replace(world.known["support"], new=shards, old=[], _times=[], _sums=[])
    world.tick()
    assert [one.kind for one in world.open()] == ["volume"], "armed again"
    assert "was rolled back with 200" in world.waits()["new examples"] and len(world.jobs()) == 1
    world.examples(100)
    world.tick()
    assert len(world.jobs()) == 2


def test_a_job_of_which_nothing_is_heard_is_given_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.drift()
    world.examples(200)
    world.tick()
    limits = ModelPolicy()
    world.now += int(1000 * (limits.job_limit_s + limits.verdict_limit_s)) + 3_590 * SECOND
    world.heard = world.now
    world.tick()
    assert len(world.jobs()) == 1
    world.now += DAY
    world.tick()
    assert len(world.jobs()) == 2


def test_a_job_whose_end_is_lost_is_over_when_a_later_one_was_decided(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.drift()
    world.examples(200)
    world.tick()
    world.end(world.jobs()[0], "refused")
    world.examples(100)
    world.tick()
    first, second = world.jobs()
    del world.ends_[first.job_id]
    world.end(second, "refused")
    world.restart()
    world.examples(150)
    world.tick()
    assert len(world.jobs()) == 3


def test_each_wait_is_said_once_when_it_changes(tmp_path: Path) -> None:
    world = World(tmp_path, cooldown_s=86_400.0)
    world.drift()
    world.tick(100)
    assert len(world.of(JobDeferred)) == 1
    world.examples(5)
    world.tick(100)
    assert len(world.of(JobDeferred)) == 2
    world.examples(195)
    world.tick()
    world.end(world.jobs()[0], "failed")
    world.tick(50)
    waits = world.of(JobDeferred)[2:]
    assert [event.waits_for.keys() for event in waits] == [{"cooldown", "pause"}]


def test_one_trainer_takes_one_job_at_a_time_the_most_urgent_first(tmp_path: Path) -> None:
    world = World(tmp_path, "a", "b", "c", triggers=["drift", "age"])
    for name in "abc":
        world.examples(200, name)
    world.now += 100 * DAY
    world.tell(TrainingRequested(model="b"))
    world.tell(example(DriftDetected, "c", drift_id="drift-c", version=1, changed_at=1))
    world.tick()
    assert [(job.model, job.reason) for job in world.jobs()] == [("c", "drift")]
    assert {event.model: set(event.waits_for) for event in world.of(JobDeferred)} == {"a": {"trainer"}, "b": {"trainer"}}
    for model, reason in (("b", "person"), ("a", "age")):
        last = world.jobs()[-1]
        world.ends_[last.job_id] = End(trained=True)  # its candidate is being judged
        world.tick()
        assert (world.jobs()[-1].model, world.jobs()[-1].reason) == (model, reason)


@pytest.mark.parametrize(
    ("trainer", "what", "said"),
    [
        (TrainerBudget(jobs_per_day=2), "trainer's jobs", "2 of 2 in 24 h used"),
        (TrainerBudget(hours_per_day=1.5), "trainer's hours", "2.0 of 1.5 in 24 h used"),
        (TrainerBudget(money_per_day=5, price_per_hour=2.5), "trainer's money", "5.00 of 5 in 24 h spent"),
    ],
)
def test_the_trainers_day_bounds_all_models_together(tmp_path: Path, trainer: TrainerBudget, what: str, said: str) -> None:
    world = World(tmp_path, "a", "b", "c", trainer=trainer)
    for name in "abc":
        world.tell(example(DriftDetected, name, drift_id=f"drift-{name}", version=1, changed_at=0))
        world.examples(200, name)
    for _ in range(2):
        world.tick()
        world.end(world.jobs()[-1], "refused", seconds=3_600.0)
    world.tick()
    assert len(world.jobs()) == 2 and world.of(JobDeferred, "c")[-1].waits_for == {what: said}
    world.now += DAY
    world.tick()
    assert [job.model for job in world.jobs()] == ["a", "b", "c"]


def test_while_clickhouse_does_not_answer_nothing_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.broken = True
    world.drift()
    world.examples(200)
    world.tick()
    assert world.jobs() == [] and len(world.open()) == 1
    world.broken = False
    world.tick()
    assert len(world.jobs()) == 1


def test_a_promotion_of_which_the_decision_is_known_before_the_version_is_no_reason_for_another_job(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.drift()
    world.examples(200)
    world.tick()
    (job,) = world.jobs()
    world.end(job, "promoted", "better")
    world.tick()
    assert world.jobs() == [job]
    world.serve(champion(2, job_id=job.job_id))
    world.tick()
    assert world.jobs() == [job] and world.open() == []


def reviews(world: World) -> list[tuple[int, int, int]]:
    return [(event.version, event.previous, event.look) for event in world.of(ReviewRequested)]


def test_a_promotion_is_looked_back_on_as_answers_come(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.serve(champion(2), change="promoted", previous=1)
    since = world.now
    world.looked(49)
    world.tick()
    assert reviews(world) == []
    world.looked(1)
    world.tick()
    (first,) = world.of(ReviewRequested)
    assert (first.version, first.previous, first.look, first.since_ms, first.data.shards) == (2, 1, 1, since, 2)
    world.restart()
    world.tick()
    world.looked(160)
    world.tick()
    world.looked(500)
    world.tick()
    assert reviews(world) == [(2, 1, 1), (2, 1, 3)], "once each, and the last that is due"


@pytest.mark.parametrize("why", ["rolled back", "held", "two weeks ago", "before"])
def test_nothing_else_is_looked_back_on(tmp_path: Path, why: str) -> None:
    world = World(tmp_path)
    if why == "before":
        world.looked(500)
    world.serve(champion(2), change="rolled-back" if why == "rolled back" else "promoted", previous=1)
    if why == "held":
        world.tell(HoldRequested(model="support", hold=True))
    if why == "two weeks ago":
        world.now += 15 * DAY
    if why != "before":
        world.looked(500)
    world.tick()
    assert reviews(world) == []


def test_a_job_and_a_review_carry_how_well_the_version_does_by_what_was_last_heard(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.serve(champion(2), change="promoted", previous=1)
    world.looked(50)
    world.tick()
    world.tell(example(PerformanceMeasured, "support", version=2, recent_quality=0.4))
    world.tell(example(PerformanceMeasured, "support", version=1, recent_quality=0.1))
    world.drift(version=2)
    world.examples(200)
    world.tick()
    assert [event.live_quality for event in world.of(ReviewRequested)] == [0.9, 0.4]
    assert [job.live_quality for job in world.jobs()] == [0.4]


def test_the_ledger_keeps_a_bounded_number_of_jobs() -> None:
    ledger = Ledger()
    for number in range(KEPT_JOBS + 5):
        job = example(JobRequested, "support", job_id=f"job-{number}")
        ledger.apply(Envelope(f"e{number}", "JobRequested", "conduct", number), job)
    assert len(ledger.jobs("support")) == KEPT_JOBS and ledger.jobs()[0].id == "job-5"


def test_jobs_of_the_same_inputs_stay_different_ones_however_many_there_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year of them: the first are no longer remembered."""
    monkeypatch.setattr("streams.conduct.ledger.KEPT_JOBS", 2)
    world = World(tmp_path)
    world.drift()
    world.examples(200)
    for _ in range(4):
        world.tick()
        world.end(world.jobs()[-1], "void")
        world.now += SECOND
    assert len({job.job_id for job in world.jobs()}) == len(world.jobs()) == 4


@pytest.mark.parametrize(("end", "name"), [(end, name) for name in WITHIN for end in (0, 1) if "_share" not in name])
def test_the_conductor_bears_the_least_and_the_most_of_every_setting(tmp_path: Path, end: int, name: str) -> None:
    kind = type(getattr(ModelPolicy(), name))
    world = World(tmp_path, triggers=["drift", "volume", "age"], **{name: kind(WITHIN[name][end])})
    world.drift()
    world.examples(200)
    world.tick()
    for job in world.jobs():
        world.end(job, "failed")
    world.now += DAY
    world.examples(200)
    world.tick()
    (policy,) = world.policies.values()
    assert yet_to_come(world.known["support"], policy)["age"] and world.open()
