"""The conductor's wishes: what asks for a model anew from its base is not lost to a drift that comes meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from schemas.events import BaseRegistered, DriftDetected, JobRequested, ShardRef, TrainingRequested
from schemas.policy import ModelPolicy
from streams import kafka
from streams.artifacts import ArtifactStore
from streams.conditions import Situation
from streams.conduct import Conductor
from streams.kafka import Out, Record
from streams.situation import Facts, KnownShard
from tests.broker import landed
from tests.examples import example


class Known:
    """Facts of a model that has a champion; a job is in flight until `free`."""

    def __init__(self) -> None:
        self.free = False

    def facts(self, model: str, policy: ModelPolicy, requested: dict[str, int]) -> Facts:
        shard = KnownShard(ShardRef(shard_id="s", path="shards/s", digest="0" * 64, rows=9), model, 10_000, 1)
        situation = Situation(1, 10_000, "" if self.free else "a job", 0, 0, base_known=True)
        return Facts(situation, None, example(BaseRegistered, "b"), [shard])


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
