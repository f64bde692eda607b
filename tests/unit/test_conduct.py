"""The conductor's wishes: what asks for a model anew from its base is not lost to a drift that comes meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from schemas.codec import now_ms
from schemas.events import BaseRegistered, DriftDetected, JobRequested, ShardRef, TrainingRequested
from schemas.policy import ModelPolicy
from streams import kafka
from streams.artifacts import ArtifactStore
from streams.conditions import HeldRows, Situation
from streams.conduct import Conductor, initial_wish
from streams.kafka import Out, Record
from streams.situation import Facts, KnownJob, KnownShard, held
from tests.broker import landed
from tests.examples import example

ENOUGH = HeldRows(500, 50)


class Known:
    """Facts of a model that has a champion; a job is in flight until `free`."""

    def __init__(self) -> None:
        self.free = False
        self.void: tuple[KnownJob, ...] = ()
        self.answered: frozenset[str] = frozenset()
        self.unearned = False
        self.shard_ms = 1

    def facts(self, model: str, policy: ModelPolicy, requested: dict[str, int]) -> Facts:
        shard = KnownShard(ShardRef(shard_id="s", path="shards/s", digest="0" * 64, rows=9), model, 10_000, self.shard_ms, ENOUGH)
        situation = Situation(1, 10_000, "" if self.free else "a job", 0, 0, base_known=True, recent=ENOUGH)
        if self.unearned:
            situation = replace(situation, new_examples=0, last_job_ms=now_ms(), jobs_last_day=99)
        return Facts(situation, None, example(BaseRegistered, "b"), [shard], [], self.answered, self.void)


def said(event: Any) -> Record:
    return landed(kafka.out(event, source="test"))


def test_a_drift_does_not_take_the_place_of_a_training_anew(tmp_path: Path) -> None:
    sent: list[Out] = []

    async def send(out: Out) -> None:
        sent.append(out)

    async def story() -> None:
        await conductor.take(said(TrainingRequested(model="support", reason="erasure-1", from_base=True)))
        await conductor.take(said(example(DriftDetected, "support", drift_id="drift-1")))
        await conductor.tick()
        assert jobs() == []
        known.free = True
        for _ in range(3):
            await conductor.tick()

    def jobs() -> list[JobRequested]:
        return [kafka.decode(landed(out))[1] for out in sent if out.topic == "training.jobs"]

    known: Any = Known()
    policy = ModelPolicy(cooldown_s=0.0)
    conductor = Conductor({"support": policy}, known, ArtifactStore(str(tmp_path)), {}, send)
    asyncio.run(story())
    assert [job.reason for job in jobs()] == ["person", "drift"], "both got their job, the one anew first"


class Desk:
    """A conductor of one model with what it has sent."""

    def __init__(self, folder: Path) -> None:
        self.known, self.sent = Known(), list[Out]()
        self.known.free = True
        self.conductor = self.fresh(folder)
        self.folder = folder

    def fresh(self, folder: Path) -> Conductor:
        async def send(out: Out) -> None:
            self.sent.append(out)

        return Conductor({"support": ModelPolicy()}, self.known, ArtifactStore(str(folder)), {}, send)  # type: ignore[arg-type]

    def tick(self, times: int = 3) -> list[JobRequested]:
        """The jobs that were asked for so far."""
        for _ in range(times):
            asyncio.run(self.conductor.tick())
        return [kafka.decode(landed(out))[1] for out in self.sent if out.topic == "training.jobs"]

    def drift(self, name: str) -> None:
        asyncio.run(self.conductor.take(said(example(DriftDetected, "support", drift_id=name))))

    def envelopes(self) -> list[tuple[str, str]]:
        headers = [kafka.decode(landed(out))[0] for out in self.sent if out.topic == "training.jobs"]
        return [(one.causation_id, one.correlation_id) for one in headers]

    def end_void(self, job: JobRequested, because: str, **fields: Any) -> None:
        known = KnownJob(job.job_id, because, "corr", job.reason, job.drift_id, False, job.void_before, 1)
        self.known.void = (*self.known.void, replace(known, **fields))


def test_a_void_job_is_asked_for_again_at_once_with_its_cause(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.drift("drift-1")
    (first,) = desk.tick()
    desk.end_void(first, "drift-1")
    desk.known.unearned = True  # no new examples, cooling down, the day's budget used up
    jobs = desk.tick()
    assert [job.void_before for job in jobs] == [0, 1], "once, however often it is looked at"
    assert jobs[1].job_id != first.job_id and jobs[1].new_data == first.new_data
    assert (jobs[1].reason, jobs[1].drift_id) == ("drift", "drift-1")
    assert desk.envelopes()[1] == ("drift-1", "corr")


def test_it_waits_for_its_turn_alone(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.drift("drift-1")
    (first,) = desk.tick()
    desk.end_void(first, "drift-1")
    desk.known.free = False
    assert len(desk.tick()) == 1
    desk.known.free = True
    assert len(desk.tick()) == 2


def test_a_conductor_that_just_started_asks_again_for_what_ended_void_and_only_for_that(tmp_path: Path) -> None:
    """The wish itself may be gone from its table: a later drift took its place."""
    desk = Desk(tmp_path)
    desk.drift("drift-1")
    (first,) = desk.tick()
    desk.end_void(first, "drift-1")
    desk.conductor, desk.known.unearned = desk.fresh(tmp_path), True
    assert [job.drift_id for job in desk.tick()] == ["drift-1", "drift-1"]
    desk.known.answered = frozenset({"drift-1"})  # the second job has landed
    desk.conductor = desk.fresh(tmp_path)
    assert len(desk.tick()) == 2


def test_what_comes_after_a_void_job_waits_behind_it_and_keeps_its_place(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.drift("drift-1")
    (first,) = desk.tick()
    desk.end_void(first, "drift-1")
    desk.drift("drift-2")
    assert [(job.drift_id, job.void_before) for job in desk.tick()] == [("drift-1", 0), ("drift-1", 1), ("drift-2", 0)]


def test_a_training_anew_that_was_void_is_again_from_the_base(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    asyncio.run(desk.conductor.take(said(TrainingRequested(model="support", reason="erasure-1", from_base=True))))
    (first,) = desk.tick()
    desk.end_void(first, desk.envelopes()[0][0], from_base=True)
    assert [(job.reason, job.parent_version, job.void_before) for job in desk.tick()] == [("person", 0, 0), ("person", 0, 1)]


def test_a_drift_counts_from_the_change_and_so_does_the_gate(tmp_path: Path) -> None:
    """Shards of before it are enough for any other job, and none of them is about what changed."""
    desk, changed_ms = Desk(tmp_path), 1_763_700_000_123
    event = example(DriftDetected, "support", drift_id="drift-1", changed_at=changed_ms)
    asyncio.run(desk.conductor.take(said(event)))
    assert desk.tick() == []
    (deferred,) = [kafka.decode(landed(out))[1] for out in desk.sent if out.topic == "training.progress"][:1]
    assert deferred.waits_for.keys() == {"new examples", "test rows"} and deferred.new_examples == 0
    desk.known.shard_ms = changed_ms + 1
    (job,) = desk.tick()
    assert job.changed_at == changed_ms


def test_what_has_no_time_is_no_recent_row() -> None:
    shards = [KnownShard(ShardRef(shard_id="s", path="shards/s", digest="0" * 64, rows=9), "m", 80, 5, HeldRows(60, 30), 50)]
    assert (held(shards), held(shards, dated=True)) == (HeldRows(60, 30), HeldRows(10, 30))


def test_what_a_person_accepts_travels_with_the_job(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    asyncio.run(desk.conductor.take(said(TrainingRequested(model="support", accept="no worse", actor="jo"))))
    (job,) = desk.tick()
    assert (job.reason, job.accept) == ("person", "no worse")


def test_a_refused_first_job_is_not_the_last(tmp_path: Path) -> None:
    first, later = initial_wish("support", ["shard-1", "0"]), initial_wish("support", ["shard-1", "1763700000123"])
    assert first.because != later.because and first == initial_wish("support", ["shard-1", "0"])
